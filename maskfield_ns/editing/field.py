"""Edits of radiance fields: density and colour change at the samples; what was moved is looked up where it was."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from nerfstudio.cameras.rays import Frustums, RayBundle, RaySamples
from nerfstudio.field_components.field_heads import FieldHeadNames
from torch import Tensor

from maskfield_ns.editing.edits import EditList, Layer, tint_matrix
from maskfield_ns.errors import EditError
from maskfield_ns.fields.mask_field import render_features
from maskfield_ns.models.contract import AnyModel, FieldModel
from maskfield_ns.runs import as_trained, open_run
from maskfield_ns.selection.field import _within, cube_positions, soft_membership
from maskfield_ns.selection.selection import FieldSelection
from maskfield_ns.selection.transform import Similarity

_REMOVED_FROM = 0.6
"""What is taken away includes this thin haze around a thing, which nobody wants to carry along when it is moved."""


class EditedField:
    """What a model renders instead of its field: ``model.edits``. A plain holder, in no checkpoint.

    Args:
        edits: the list.
        model: a maskfield model (NeRF).

    Raises:
        EditError: the edits do not fit the model. CheckpointError: an inserted run cannot be opened.
    """

    def __init__(self, edits: EditList, model: FieldModel) -> None:
        edits.check(model)
        self.list, self.layers = edits, edits.layers
        self._sources = {layer.source: _other_model(layer.source) for layer in edits.layers if layer.source is not None}
        for layer in self.layers:
            for change in layer.changes:
                if not isinstance(change.selection, FieldSelection):
                    raise EditError(f'"{change.selection.name}" was selected in a scene of Gaussians')

    def outputs(self, model: FieldModel, ray_bundle: RayBundle) -> dict[str, Tensor]:
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

    def _source(self, model: FieldModel, layer: Layer) -> FieldModel:
        return model if layer.source is None else self._sources[layer.source]

    def _density_fn(self, model: FieldModel, index: int) -> Callable[..., Tensor]:
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

    def _layer(self, model: FieldModel, layer: Layer, samples: RaySamples) -> tuple[Tensor, Tensor]:
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

    def _features(self, model: FieldModel, samples: RaySamples, weights: Tensor, shares: Tensor) -> Tensor:
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


def _query(source: FieldModel, layer: Layer, samples: RaySamples, points: Tensor) -> tuple[Tensor, Tensor]:
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
    source: FieldModel, layer: Layer, points: Float[Tensor, "*batch 3"], coarse: bool = False
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


def _other_model(config: str) -> FieldModel:
    model = cast(AnyModel, open_run(Path(config), update=as_trained).pipeline.model)
    if model.backbone == "gaussians":
        raise EditError(f"{config} is a scene of Gaussians: things from it cannot be put into a radiance field")
    return model
