"""What a selection is in a radiance field: cells of the unit cube, and the mask field near its surface."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from nerfstudio.cameras.cameras import Cameras
from torch import Tensor

from maskfield_ns.fields.cells import cell_index
from maskfield_ns.fields.mask_field import unit_cube_positions
from maskfield_ns.selection.carving import Solid, votes
from maskfield_ns.selection.selection import FieldSelection, Selection
from maskfield_ns.selection.surface_views import SurfaceView

_SURFACE_GROWS, _SOLID_GROWS = 2, 1
"""Cells around a thing's surface and solid in which its mask field decides."""

CORE, SHELL = 2, 1
"""What a selection's term says of a cell: all of it belongs, or the mask field decides. 0: nothing belongs."""


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
    for term in selection.terms:
        kind = term.kinds(cells)
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


def _within(source: Any, selection: Selection, points: Float[Tensor, "N 3"]) -> Bool[Tensor, " N"]:
    """Points in cells where something may be selected."""
    assert isinstance(selection, FieldSelection)
    cells = cells_of(source, points, selection.resolution)
    result = torch.zeros_like(cells, dtype=torch.bool)
    for term in selection.terms:
        if term.adds:
            result |= term.kinds(cells) > 0
    return result


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
    views: Sequence[SurfaceView],
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

    device = model.device  # the scene box stays on the CPU

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
