"""Edits of radiance fields: density and colour change at the samples; what was moved is looked up where it was."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import Frustums, RayBundle, RaySamples
from nerfstudio.field_components.field_heads import FieldHeadNames
from torch import Tensor

from maskfield_ns.editing.carving import Solid, votes
from maskfield_ns.editing.edits import EditList, Layer, tint_matrix
from maskfield_ns.editing.selection import FieldSelection, Selection
from maskfield_ns.editing.similarity import Similarity
from maskfield_ns.editing.survey import SurveyView
from maskfield_ns.errors import EditError
from maskfield_ns.fields.mask_field import render_features, unit_cube_positions
from maskfield_ns.models.queryable import cell_index

_REMOVED_FROM = 0.6
"""What is taken away includes this thin haze around a thing, which nobody wants to carry along when it is moved."""
_SURFACE_GROWS, _SOLID_GROWS = 2, 1
"""Cells around a thing's surface and solid in which its mask field decides."""
CORE, SHELL = 2, 1
"""What a selection's grid says of a cell: all of it belongs, or the mask field decides. 0: nothing belongs."""


def cube_positions(model: Any, points: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3"]:
    """Scene points in the unit cube that a model's mask field and a selection's cells live in."""
    aabb = model.scene_box.aabb.to(points)
    return unit_cube_positions(points, aabb, not model.config.disable_scene_contraction)


def cells_of(model: Any, points: Float[Tensor, "*batch 3"], resolution: int) -> Int[Tensor, "*batch"]:
    """The cell that each scene point is in."""
    return cell_index(cube_positions(model, points), resolution)


def grown_cells(cells: Int[np.ndarray, " N"], resolution: int, steps: int) -> Int[np.ndarray, " M"]:
    """Cells and all within some steps of them (also diagonally), sorted."""
    place = np.stack(np.unravel_index(np.unique(cells), (resolution,) * 3), axis=-1)
    span = np.arange(-steps, steps + 1)
    offsets = np.stack(np.meshgrid(span, span, span, indexing="ij"), axis=-1).reshape(-1, 3)
    grown = (place[:, None] + offsets).reshape(-1, 3)
    grown = grown[((grown >= 0) & (grown < resolution)).all(axis=1)]
    return np.unique(np.ravel_multi_index(tuple(grown.T), (resolution,) * 3)).astype(np.int64)


@torch.no_grad()
def soft_membership(
    model: Any,
    selection: Selection,
    points: Float[Tensor, "*batch 3"],
    features: Float[Tensor, "*batch D"] | None = None,
    least: float = 1.0,
) -> Float[Tensor, "*batch"]:
    """How much points belong to a selection, in [0, 1].

    Args:
        model: a maskfield model.
        selection: made in its run.
        points: scene coordinates.
        features: mask features there; looked up in the mask field where they are needed if None.
        least: relevancy, in units of the threshold, at which membership is a half.
    """
    assert isinstance(selection, FieldSelection)
    flat = points.reshape(-1, 3)
    cells = cells_of(model, flat, selection.resolution)
    result = flat.new_zeros(len(flat))
    for term, grid in zip(selection.terms, selection.grids, strict=True):
        kind = grid.to(cells.device)[cells]
        value = (kind == CORE).to(result)
        doubtful = (kind == SHELL).nonzero()[:, 0]
        if len(doubtful):
            if features is None:
                found = model.mask_field(cube_positions(model, flat[doubtful]))
            else:
                found = features.reshape(len(flat), -1)[doubtful]
            value[doubtful] = term.rule.soft(model.query_head, found, least)
        result = torch.maximum(result, value) if term.adds else result * (1 - value)
    return result.reshape(points.shape[:-1])


@torch.no_grad()
def field_mask(model: Any, selection: FieldSelection, camera: Cameras) -> Bool[np.ndarray, "H W"]:
    """Pixels of a camera [1] that show the selection: most of what their rays collect belongs to it."""
    rays = camera.generate_rays(camera_indices=0, keep_shape=True)
    height, width = rays.origins.shape[:2]
    flat, parts = rays.flatten(), []
    for start in range(0, height * width, model.config.eval_num_rays_per_chunk):
        bundle = flat[start : start + model.config.eval_num_rays_per_chunk]
        if model.collider is not None:
            bundle = model.collider(bundle)
        samples, _, _ = model.proposal_sampler(bundle, density_fns=model.density_fns)
        density, _ = model.field.get_density(samples)
        weights = samples.get_weights(density)[..., 0]
        inside = soft_membership(model, selection, samples.frustums.get_positions())
        opacity = weights.sum(dim=-1)
        parts.append(((weights * inside).sum(dim=-1) > 0.5 * opacity) & (opacity >= 0.5))
    return torch.cat(parts).reshape(height, width).cpu().numpy()


class EditedField:
    """What a model renders instead of its field: ``model.edits``. A plain holder, in no checkpoint.

    Args:
        edits: the list.
        model: a maskfield model (NeRF).

    Raises:
        EditError: the edits do not fit the model. CheckpointError: an inserted run cannot be opened.
    """

    def __init__(self, edits: EditList, model: Any) -> None:
        edits.check(model)
        self.list, self.layers = edits, edits.layers
        self._sources = {layer.source: _other_model(layer.source) for layer in edits.layers if layer.source is not None}
        for layer in self.layers:
            for change in layer.changes:
                if not isinstance(change.selection, FieldSelection):
                    raise EditError(f'"{change.selection.name}" was selected in a scene of Gaussians')

    def outputs(self, model: Any, ray_bundle: RayBundle) -> dict[str, Tensor]:
        """The outputs of ``MaskfieldModel.get_outputs`` in evaluation, for the edited scene."""
        count = len(model.density_fns)
        fns = [self._density_fn(model, index) for index in range(count)]
        samples, prop_weights, prop_samples = model.proposal_sampler(ray_bundle, density_fns=fns)
        parts = [self._layer(model, layer, samples) for layer in self.layers]
        shape = samples.frustums.shape
        if parts:
            densities = torch.stack([part[0] for part in parts])
            total = densities.sum(dim=0)
            shares = densities / total.clamp(min=1e-10)
            rgb = sum(share[..., None] * part[1] for share, part in zip(shares, parts, strict=True))
        else:
            total, rgb = samples.deltas.new_zeros(shape), samples.deltas.new_zeros(*shape, 3)
            shares = total[None][:0]
        weights = samples.get_weights(total[..., None])
        outputs = {
            "rgb": model.renderer_rgb(rgb=rgb, weights=weights),
            "accumulation": model.renderer_accumulation(weights=weights),
            "depth": model.renderer_depth(weights=weights, ray_samples=samples),
            "expected_depth": model.renderer_expected_depth(weights=weights, ray_samples=samples),
            "features": self._features(model, samples, weights[..., 0], shares),
        }
        for i, (w, s) in enumerate(zip(prop_weights, prop_samples, strict=True)):
            outputs[f"prop_depth_{i}"] = model.renderer_depth(weights=w, ray_samples=s)
        return outputs

    def _source(self, model: Any, layer: Layer) -> Any:
        return model if layer.source is None else self._sources[layer.source]

    def _density_fn(self, model: Any, index: int) -> Callable[..., Tensor]:
        """The edited scene for a proposal network: coarse, so that samples fall wherever there may be something."""

        def density(positions: Tensor, times: Any = None) -> Tensor:
            total = positions.new_zeros(*positions.shape[:-1], 1)
            for layer in self.layers:
                source = self._source(model, layer)
                back = layer.transform.inverse
                local = positions if back.is_identity else _moved(positions, back)
                fn = source.density_fns[min(index, len(source.density_fns) - 1)]
                factor, places = _presence(source, layer, local, coarse=True)
                if places is None:
                    total = total + fn(local) * factor[..., None] / layer.transform.scale
                elif len(places):
                    flat = total.reshape(-1, 1)
                    # A line of positions: proposal networks take [R, S, 3].
                    more = fn(local.reshape(-1, 3)[places][None])[0] * factor[:, None] / layer.transform.scale
                    total = flat.index_add(0, places, more).reshape(total.shape)
            return total

        return density

    def _layer(self, model: Any, layer: Layer, samples: RaySamples) -> tuple[Tensor, Tensor]:
        """Density [R, S] and colour [R, S, 3] of one layer at the samples."""
        source = self._source(model, layer)
        local = warped(samples, layer.transform.inverse)
        points = local.frustums.get_positions()
        factor, places = _presence(source, layer, points)
        shape = samples.frustums.shape
        if places is not None:
            density, rgb = points.new_zeros(math.prod(shape)), points.new_zeros(math.prod(shape), 3)
            if len(places):
                part = local.flatten()[places]
                found, colour = _query(source, layer, part, points.reshape(-1, 3)[places])
                density[places], rgb[places] = found * factor, colour
            return density.reshape(shape), rgb.reshape(*shape, 3)
        found, colour = _query(source, layer, local, points)
        return found * factor, colour

    def _features(self, model: Any, samples: RaySamples, weights: Tensor, shares: Tensor) -> Tensor:
        """Rendered mask features: of the heaviest samples, as the unedited model does; inserted things have none."""
        k = min(model.config.samples_per_ray, weights.shape[1])
        top = weights.topk(k, dim=1)
        points = samples.frustums.get_positions().gather(1, top.indices[..., None].expand(-1, -1, 3))
        features = points.new_zeros(*points.shape[:-1], model.query_head.channels)
        for layer, share in zip(self.layers, shares, strict=True):
            if layer.source is not None:
                continue
            part = share.gather(1, top.indices)
            used = part > 1e-3
            if used.any():
                local = _moved(points[used], layer.transform.inverse)
                features[used] += part[used][:, None] * model.mask_field(cube_positions(model, local))
        return render_features(top.values, features)


def _query(source: Any, layer: Layer, samples: RaySamples, points: Tensor) -> tuple[Tensor, Tensor]:
    """Density (of the scene it is shown in) and tinted colour of a source at samples in its own coordinates."""
    density, embedding = source.field.get_density(samples)
    rgb = source.field.get_outputs(samples, density_embedding=embedding)[FieldHeadNames.RGB]
    for change in layer.changes:
        if change.kind == "tint":
            paint = torch.from_numpy(tint_matrix(change.colour, change.strength)).to(rgb)
            inside = soft_membership(source, change.selection, points)[..., None]
            rgb = rgb + inside * ((rgb @ paint.T).clamp(0, 1) - rgb)
    # Twice as large means half as dense: a ray collects as much along twice the way.
    return density[..., 0] / layer.transform.scale, rgb


def _presence(
    source: Any, layer: Layer, points: Float[Tensor, "*batch 3"], coarse: bool = False
) -> tuple[Tensor, Int[Tensor, " P"] | None]:
    """How much of the source's matter is in a layer at points of the source.

    Args:
        coarse: what is kept by cells alone, without the mask field; never less than the truth.

    Returns:
        (factor, places): with ``places`` None a factor per point; else the factor is that of the flattened points
        ``places``, and nothing is anywhere else.
    """
    kept = [c.selection for c in layer.changes if c.kind == "keep"]
    removed = [c.selection for c in layer.changes if c.kind == "remove"]
    if not kept:
        factor = points.new_ones(points.shape[:-1])
        for selection in removed:
            factor = factor * (1 - soft_membership(source, selection, points, least=_REMOVED_FROM))
        return factor, None
    flat = points.reshape(-1, 3)
    places = _within(source, kept[0], flat).nonzero()[:, 0]
    inside = flat[places]
    factor = inside.new_ones(len(inside))
    if len(inside):
        for selection in kept:
            factor = factor * (
                _within(source, selection, inside).to(factor) if coarse else soft_membership(source, selection, inside)
            )
        for selection in removed:
            factor = factor * (1 - soft_membership(source, selection, inside, least=_REMOVED_FROM))
    return factor, places


def _within(source: Any, selection: Selection, points: Float[Tensor, "N 3"]) -> Bool[Tensor, " N"]:
    """Points in cells where something may be selected."""
    assert isinstance(selection, FieldSelection)
    cells = cells_of(source, points, selection.resolution)
    result = torch.zeros_like(cells, dtype=torch.bool)
    for term, grid in zip(selection.terms, selection.grids, strict=True):
        if term.adds:
            result |= grid.to(cells.device)[cells] > 0
    return result


def warped(samples: RaySamples, transform: Similarity) -> RaySamples:
    """Samples of rays as a similarity moves them: what a moved thing's rays are in its own coordinates."""
    if transform.is_identity:
        return samples
    frustums = samples.frustums
    rotation = torch.from_numpy(transform.rotation).to(frustums.directions)
    moved = Frustums(
        origins=_moved(frustums.origins, transform),
        directions=frustums.directions @ rotation.T,
        starts=frustums.starts * transform.scale,
        ends=frustums.ends * transform.scale,
        pixel_area=frustums.pixel_area,
    )
    return RaySamples(frustums=moved, camera_indices=samples.camera_indices, deltas=samples.deltas)


def _moved(points: Float[Tensor, "*batch 3"], transform: Similarity) -> Float[Tensor, "*batch 3"]:
    if transform.is_identity:
        return points
    matrix = torch.from_numpy(transform.scale * transform.rotation).to(points)
    return points @ matrix.T + torch.from_numpy(transform.translation).to(points)


def _other_model(config: str) -> Any:
    from maskfield_ns.scene import Scene

    model = Scene.load(config).model
    if hasattr(model, "gauss_params"):
        raise EditError(f"{config} is a scene of Gaussians: things from it cannot be put into a radiance field")
    return model


def cell_centres(model: Any, cells: Int[np.ndarray, " N"], resolution: int) -> Float[np.ndarray, "N 3"]:
    """Scene coordinates of the centres of cells: the inverse of the contraction (or of the scene box)."""
    place = np.stack(np.unravel_index(cells, (resolution,) * 3), axis=-1)
    cube = (place + 0.5) / resolution
    if model.config.disable_scene_contraction:
        low, high = model.scene_box.aabb.cpu().double().numpy()
        return low + cube * (high - low)
    contracted = 4 * cube - 2
    size = np.abs(contracted).max(axis=-1, keepdims=True)
    return np.where(size <= 1, contracted, contracted / size / np.maximum(2 - size, 1e-6))


def field_terms(
    model: Any,
    resolution: int,
    points: Float[np.ndarray, "N 3"],
    solid: Solid,
    views: Sequence[SurveyView],
    masks: Sequence[Bool[Tensor, "H W"]],
) -> tuple[Int[np.ndarray, " C"], Int[np.ndarray, " K"]]:
    """(cells, core) of a thing whose surface and solid are known; both sorted.

    Args:
        model: the field's.
        resolution: of the cells.
        points: on the surface.
        solid: what the views say it fills.
        views, masks: the survey and the thing in it. Cells behind the surface of other things (the inside of a table
            below a mug), where the mask field was never taught anything, are left out.
    """
    from scipy.ndimage import binary_erosion

    device = model.scene_box.aabb.device

    def cells(places: np.ndarray) -> np.ndarray:
        if not len(places):
            return np.zeros(0, np.int64)
        return cells_of(model, torch.from_numpy(places).float().to(device), resolution).cpu().numpy()

    surface, inner = cells(points), cells(solid.centres)
    around = np.union1d(grown_cells(surface, resolution, _SURFACE_GROWS), grown_cells(inner, resolution, _SOLID_GROWS))
    centres = cell_centres(model, around, resolution)
    own, other, _ = votes(views, masks, torch.from_numpy(centres).float().to(device), 4.0 / resolution)
    around = around[(own >= other).cpu().numpy() | np.isin(around, surface)]
    eroded = binary_erosion(solid.filled, iterations=2)
    deep = cells(solid.origin + (np.argwhere(eroded) + 0.5) * solid.cell)
    rest = cells(solid.origin + (np.argwhere(~eroded) + 0.5) * solid.cell)
    core = np.setdiff1d(np.unique(deep), rest)  # cells that are filled from wall to wall
    return np.union1d(around, core), core
