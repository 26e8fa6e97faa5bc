"""Mask targets of the training views, reduced from cached full-resolution masks to coarse ray grids.

A view's grid divides its image into ``h x w`` equal cells, one ray through the centre of each. A mask's value in a
cell is the fraction of the cell it covers, so that things thinner than a cell fade instead of vanishing. Everything
is kept in raw image space: lens distortion is dealt with where rays are generated.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Float16, Float32, Int8, Int64
from torch import Tensor

_CHUNK_PIXELS = 1 << 25
"""Mask pixels averaged at once: bounds the float32 copy to 128 MiB."""


@dataclass(frozen=True)
class MaskTargets:
    """The masks of one view on its ray grid, as stored; M may be 0."""

    masks: Float16[np.ndarray, "M h w"]
    """Covered fraction of each cell, in [0, 1]."""
    levels: Int8[np.ndarray, " M"]
    """Index into :data:`maskfield_ns.foundation.protocols.LEVELS`."""
    scores: Float32[np.ndarray, " M"]
    """Predicted IoU times stability, in [0, 1]."""
    embeddings: Float32[np.ndarray, "M C"]
    """Unit length."""
    areas: Float32[np.ndarray, " M"]
    """Covered fraction of the view's valid cells, in (0, 1]."""
    valid: Bool[np.ndarray, "h w"]
    """False where the capture's own masks (``mask_path``) exclude the cell: its ray must not be supervised."""

    def __len__(self) -> int:
        return len(self.masks)

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) of the ray grid."""
        return self.valid.shape[0], self.valid.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes held by the arrays."""
        return sum(array.nbytes for array in vars(self).values())


@dataclass(frozen=True)
class TargetTensors:
    """:class:`MaskTargets` ready for a loss: on a device, cells flattened to P = h * w in the order of the rays."""

    masks: Float32[Tensor, "M P"]
    levels: Int64[Tensor, " M"]
    scores: Float32[Tensor, " M"]
    embeddings: Float32[Tensor, "M C"]
    areas: Float32[Tensor, " M"]
    valid: Bool[Tensor, " P"]


class MaskViews(Sequence[MaskTargets]):
    """Mask targets of all training views, in the order of the train dataset, on the CPU."""

    def __init__(self, names: Sequence[str], targets: Sequence[MaskTargets], embedding_dim: int):
        if len(names) != len(targets):
            raise ValueError(f"{len(names)} names for {len(targets)} views")
        self.names = tuple(names)
        """Image names, as the cache and labels know them."""
        self.embedding_dim = embedding_dim
        """C."""
        self._targets = tuple(targets)
        self.supervised = tuple(index for index, view in enumerate(targets) if len(view) > 0)
        """Indices of the views that have at least one mask."""

    def __len__(self) -> int:
        return len(self._targets)

    def __getitem__(self, index: int) -> MaskTargets:  # type: ignore[override]
        return self._targets[index]

    def __iter__(self) -> Iterator[MaskTargets]:
        return iter(self._targets)

    def tensors(self, index: int, device: torch.device | str) -> TargetTensors:
        """One view's targets on a device."""
        view = self._targets[index]
        return TargetTensors(
            masks=torch.from_numpy(view.masks).to(device).float().flatten(1),
            levels=torch.from_numpy(view.levels).to(device).long(),
            scores=torch.from_numpy(view.scores).to(device),
            embeddings=torch.from_numpy(view.embeddings).to(device),
            areas=torch.from_numpy(view.areas).to(device),
            valid=torch.from_numpy(view.valid).to(device).flatten(),
        )

    @property
    def num_masks(self) -> int:
        """Masks in all views together."""
        return sum(len(view) for view in self._targets)

    @property
    def nbytes(self) -> int:
        """Bytes held by all targets."""
        return sum(view.nbytes for view in self._targets)


def reduce_masks(
    masks: Bool[np.ndarray, "M H W"],
    levels: Int8[np.ndarray, " M"],
    scores: Float32[np.ndarray, " M"],
    embeddings: Float[np.ndarray, "M C"],
    *,
    grid: tuple[int, int],
    valid: Bool[np.ndarray, "Hv Wv"] | None = None,
    min_cells: float = 1.0,
) -> MaskTargets:
    """One view's targets on a grid (h, w) from its masks at any finer resolution.

    Args:
        valid: the capture's own mask of the image, True where pixels count, at any resolution; None means everywhere.
            A cell is valid if at least half of it is.
        min_cells: masks that cover less than this many (valid) cells in total are dropped.
    """
    cell_valid = np.ones(grid, bool)
    if valid is not None:
        cell_valid = area_average(valid[None], grid)[0] >= 0.5
    # float16 rounds fractions of a cell to about a thousandth.
    fractions = area_average(masks, grid).astype(np.float16)
    cells = fractions.astype(np.float32)[:, cell_valid].sum(axis=1)
    keep = (cells >= min_cells) & (cells > 0)
    vectors = np.asarray(embeddings, np.float32)[keep]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-6)  # the cache holds half precision
    return MaskTargets(
        masks=fractions[keep],
        levels=np.asarray(levels, np.int8)[keep],
        scores=np.asarray(scores, np.float32)[keep],
        embeddings=vectors,
        areas=cells[keep] / np.float32(max(1, cell_valid.sum())),
        valid=cell_valid,
    )


def grid_size(width: int, height: int, max_side: int) -> tuple[int, int]:
    """(h, w) of the ray grid of an image: its shape with the long side at ``max_side``, never finer than its pixels."""
    scale = min(1.0, max_side / max(width, height))
    return max(1, round(height * scale)), max(1, round(width * scale))


def grid_centres(grid: tuple[int, int], width: float, height: float) -> Float32[Tensor, "h w 2"]:
    """Centres of the cells as (row, column) in pixels, nerfstudio's order for ``Cameras.generate_rays(coords=...)``.

    The centre of pixel (r, c) is (r + 0.5, c + 0.5), as in ``Cameras.get_image_coords``.
    """
    rows = (torch.arange(grid[0], dtype=torch.float32) + 0.5) * (height / grid[0])
    columns = (torch.arange(grid[1], dtype=torch.float32) + 0.5) * (width / grid[1])
    return torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1)


def area_average(masks: Bool[np.ndarray, "M H W"], grid: tuple[int, int]) -> Float32[np.ndarray, "M h w"]:
    """Exact covered fraction of each cell, cells being any (also fractional) number of pixels wide."""
    count, height, width = masks.shape
    by_row, by_column = _overlap(height, grid[0]), _overlap(width, grid[1]).T
    averaged = np.zeros((count, *grid), np.float32)
    step = max(1, _CHUNK_PIXELS // max(1, height * width))
    for start in range(0, count, step):
        averaged[start : start + step] = by_row @ masks[start : start + step].astype(np.float32) @ by_column
    return averaged.clip(0, 1)


def _overlap(pixels: int, cells: int) -> Float32[np.ndarray, "cells pixels"]:
    """Row i holds the share of cell i that each pixel fills; rows sum to 1."""
    edges = np.arange(cells + 1) * (pixels / cells)
    left = np.maximum(edges[:-1, None], np.arange(pixels)[None])
    right = np.minimum(edges[1:, None], np.arange(1, pixels + 1)[None])
    return (np.clip(right - left, 0, None) * (cells / pixels)).astype(np.float32)
