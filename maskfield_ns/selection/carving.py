"""The solid behind a selected surface: space carving with rendered depth, for volumes, centroids and meshes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from maskfield_ns.selection.geometry import Box
from maskfield_ns.selection.surface_views import SurfaceView

CELLS = 48
"""Voxels along the longest edge of the box that is carved."""
_MAJORITY = 0.5
"""A voxel is inside when this share of the views that look at it have the thing's surface in front of it."""


@dataclass(frozen=True, eq=False)
class Solid:
    """A voxel model in scene coordinates."""

    filled: Bool[np.ndarray, "X Y Z"]
    origin: Float[np.ndarray, " 3"]
    """Corner of the first voxel."""
    cell: float
    """Edge of a voxel."""

    @property
    def volume(self) -> float:
        """Sum of the filled voxels."""
        return float(self.filled.sum()) * self.cell**3

    @property
    def centres(self) -> Float[np.ndarray, "N 3"]:
        """Of the filled voxels."""
        return self.origin + (np.argwhere(self.filled) + 0.5) * self.cell

    def mesh(self) -> tuple[Float[np.ndarray, "V 3"], Int[np.ndarray, "F 3"]]:
        """A closed surface around the filled voxels (marching cubes on the slightly smoothed grid).

        Empty arrays where nothing is filled.
        """
        from scipy.ndimage import gaussian_filter
        from skimage.measure import marching_cubes

        if not self.filled.any():
            return np.zeros((0, 3)), np.zeros((0, 3), np.int64)
        smooth = gaussian_filter(np.pad(self.filled, 2).astype(np.float32), 0.7)
        level = min(0.5, float(smooth.max()) / 2)
        vertices, faces, _, _ = marching_cubes(smooth, level)
        return self.origin + (vertices - 1.5) * self.cell, faces[:, ::-1].astype(np.int64)


@torch.no_grad()
def carve(
    views: Sequence[SurfaceView],
    masks: Sequence[Bool[Tensor, "H W"]],
    box: Box,
    cells: int = CELLS,
    margin: float = 0.1,
) -> Solid:
    """Voxels that no view sees through and that lie behind the thing's surface wherever something is in front.

    Inside means: in no more than a few views in front of every surface (seen through), and in most views that have a
    surface before the voxel this is the thing's own. What no view can tell (the inside of a bowl seen from below, say)
    follows the majority.

    Args:
        views: the survey.
        masks: the thing in each view.
        box: where to look (its axis-aligned hull is carved).
        cells: voxels along the longest edge.
        margin: of the box, as a share of its edges.
    """
    corners = box.corners
    low, high = corners.min(axis=0), corners.max(axis=0)
    grown = (high - low) * margin
    low, high = low - grown, high + grown
    cell = max(float((high - low).max()) / cells, 1e-9)
    counts = np.maximum(1, np.ceil((high - low) / cell - 1e-6).astype(int))
    axes = [torch.arange(int(n), dtype=torch.float64) for n in counts]
    index = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, 3)
    device = views[0].depth.device
    centres = (torch.from_numpy(low) + (index + 0.5) * cell).float().to(device)
    own, other, free = votes(views, masks, centres, cell)
    allowed = 0.1 * (own + other + free)  # a few views may be wrong about an edge
    filled = (own > 0) & (free <= allowed) & (own >= _MAJORITY * (own + other))
    return Solid(filled.reshape(*counts.tolist()).cpu().numpy(), low, cell)


@torch.no_grad()
def votes(
    views: Sequence[SurfaceView], masks: Sequence[Bool[Tensor, "H W"]], points: Float[Tensor, "N 3"], tolerance: float
) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"], Float[Tensor, " N"]]:
    """What the views say of each point: how many have the thing's surface in front of it (or at it), how many another
    surface, and how many see through it.

    Args:
        views: the survey.
        masks: the thing in each view.
        points: scene coordinates.
        tolerance: how far behind a point its own surface may seem to be.
    """
    own, other, free = (torch.zeros(len(points), device=points.device) for _ in range(3))
    for view, mask in zip(views, masks, strict=True):
        row, column, depth = view.project(points)
        seen = (row >= 0) & view.solid[row, column]
        surface, inside = view.depth[row, column], mask[row, column]
        before = depth < surface - tolerance
        free += seen & before
        own += seen & ~before & inside
        other += seen & ~before & ~inside
    return own, other, free
