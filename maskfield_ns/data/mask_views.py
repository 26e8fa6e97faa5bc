"""Mask targets of the training views, reduced from cached full-resolution masks to coarse ray grids.

A view's grid divides its image into ``h x w`` equal cells, one ray through the centre of each. A mask's value in a
cell is the fraction of the cell it covers, so that things thinner than a cell fade instead of vanishing. Everything
is kept in raw image space: lens distortion is dealt with where rays are generated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch
from jaxtyping import Bool, Float, Float32, Int8, Int32, Int64, UInt8
from torch import Tensor

from maskfield_ns.errors import CacheError

FULL = 254
"""How a cell that is covered completely is stored; even, so that a cell covered by half is stored exactly."""


@dataclass(frozen=True)
class MaskTargets:
    """The masks of one view on its ray grid, as stored: of each mask only the part inside its box. M may be 0."""

    crops: UInt8[np.ndarray, " B"]
    """Covered fraction of each cell in units of 1 / :data:`FULL`: box after box, each row by row."""
    boxes: Int32[np.ndarray, "M 4"]
    """x0, y0, x1, y1 in cells of the grid, ends exclusive."""
    levels: Int8[np.ndarray, " M"]
    """Index into :data:`maskfield_ns.foundation.protocols.LEVELS`."""
    scores: Float32[np.ndarray, " M"]
    """Predicted IoU times stability, in [0, 1]."""
    embeddings: Float32[np.ndarray, "M C"]
    """Unit length."""
    places: Int64[np.ndarray, " M"]
    """Which of the masks that the targets were made from each one is: too small ones are left out."""
    areas: Float32[np.ndarray, " M"]
    """Covered fraction of the view's valid cells, in (0, 1]."""
    valid: Bool[np.ndarray, "h w"]
    """False where the capture's own masks (``mask_path``) exclude the cell: its ray must not be supervised."""

    def __len__(self) -> int:
        return len(self.levels)

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) of the ray grid."""
        return self.valid.shape[0], self.valid.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes held by the arrays."""
        return sum(array.nbytes for array in vars(self).values())

    def sparse(self) -> sp.csr_matrix:
        """Covered fractions [M, P], float32, with the cells of a mask's box as its entries."""
        widths, heights = (self.boxes[:, 2:] - self.boxes[:, :2]).T.astype(np.int64)
        counts = widths * heights
        ends = np.cumsum(counts)
        within = np.arange(len(self.crops)) - np.repeat(ends - counts, counts)
        rows, columns = np.divmod(within, np.repeat(widths, counts))
        columns += np.repeat(self.boxes[:, 0], counts) + self.grid[1] * (rows + np.repeat(self.boxes[:, 1], counts))
        values = self.crops.astype(np.float32) / np.float32(FULL)
        return sp.csr_matrix((values, columns, np.concatenate([[0], ends])), shape=(len(self), self.valid.size))

    def dense(self) -> Float32[np.ndarray, "M h w"]:
        """Covered fraction of each cell, in [0, 1]."""
        return self.sparse().toarray().reshape(len(self), *self.grid)


def pack_targets(
    masks: Iterable[Float[np.ndarray, "h w"]],
    levels: Int8[np.ndarray, " M"],
    scores: Float32[np.ndarray, " M"],
    embeddings: Float[np.ndarray, "M C"],
    valid: Bool[np.ndarray, "h w"],
) -> MaskTargets:
    """Targets from masks that are on the grid already, covered fractions in [0, 1]; none of them is left out."""
    boxes, crops = [], []
    for mask in masks:
        box = _box(mask > 0)
        boxes.append(box)
        crops.append(_quantised(mask[box[1] : box[3], box[0] : box[2]]))
    return _targets(boxes, crops, levels, scores, embeddings, valid, min_cells=-1.0)


@dataclass(frozen=True)
class TargetTensors:
    """:class:`MaskTargets` on a device, cells numbered 0 to P = h * w in the order of the rays."""

    crops: UInt8[Tensor, " B"]
    boxes: Int64[Tensor, "M 4"]
    grid: tuple[int, int]
    levels: Int64[Tensor, " M"]
    scores: Float32[Tensor, " M"]
    embeddings: Float32[Tensor, "M C"]
    areas: Float32[Tensor, " M"]
    valid: Bool[Tensor, " P"]

    def masks(self, chosen: Int64[Tensor, " K"] | None = None) -> Float32[Tensor, "K P"]:
        """Covered fraction of each cell, of some masks or all."""
        sizes = self.boxes[:, 2:] - self.boxes[:, :2]
        areas = sizes.prod(1)
        first = areas.cumsum(0) - areas
        boxes = self.boxes
        if chosen is not None:
            boxes, sizes, areas, first = boxes[chosen], sizes[chosen], areas[chosen], first[chosen]
        cells = self.grid[0] * self.grid[1]
        owner = torch.repeat_interleave(torch.arange(len(areas), device=areas.device), areas)
        within = torch.arange(len(owner), device=areas.device) - (areas.cumsum(0) - areas)[owner]
        rows = within.div(sizes[owner, 0], rounding_mode="floor")
        place = owner * cells + (boxes[owner, 1] + rows) * self.grid[1]
        place += boxes[owner, 0] + within - rows * sizes[owner, 0]
        values = self.crops[first[owner] + within].float() / FULL
        return values.new_zeros(len(areas) * cells).index_put_((place,), values).unflatten(0, (len(areas), cells))


class MaskViews(Sequence[MaskTargets]):
    """Mask targets of all training views, in the order of the train dataset, on the CPU."""

    def __init__(
        self,
        names: Sequence[str],
        targets: Sequence[MaskTargets],
        embedding_dim: int,
        dense: Callable[[int], Float[Tensor, "P C"]] | None = None,
    ):
        if len(names) != len(targets):
            raise ValueError(f"{len(names)} names for {len(targets)} views")
        self.names = tuple(names)
        """Image names, as the cache and labels know them."""
        self.embedding_dim = embedding_dim
        """C."""
        self._targets = tuple(targets)
        self._dense = dense
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
            crops=torch.from_numpy(view.crops).to(device),
            boxes=torch.from_numpy(view.boxes).to(device).long(),
            grid=view.grid,
            levels=torch.from_numpy(view.levels).to(device).long(),
            scores=torch.from_numpy(view.scores).to(device),
            embeddings=torch.from_numpy(view.embeddings).to(device),
            areas=torch.from_numpy(view.areas).to(device),
            valid=torch.from_numpy(view.valid).to(device).flatten(),
        )

    def dense(self, index: int, device: torch.device | str) -> Float[Tensor, "P C"]:
        """The embedder's own map of a view's image, on its grid; of any length.

        Raises:
            CacheError: maps were not asked for (``Needs.dense``).
        """
        if self._dense is None:
            raise CacheError("no maps of embeddings were made: --pipeline.datamanager.dense-maps True")
        return self._dense(index).to(device)

    @property
    def num_masks(self) -> int:
        """Masks in all views together."""
        return sum(len(view) for view in self._targets)

    @property
    def nbytes(self) -> int:
        """Bytes held by all targets."""
        return sum(view.nbytes for view in self._targets)


def reduce_masks(
    masks: Iterable[Bool[np.ndarray, "H W"]],
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
        masks: one after the other, so that they need not be in memory at once.
        levels, scores, embeddings: of the masks.
        grid: (h, w).
        valid: the capture's own mask of the image, True where pixels count, at any resolution; None means everywhere.
            A cell is valid if at least half of it is.
        min_cells: masks that cover less than this many (valid) cells in total are dropped.
    """
    cell_valid = np.ones(grid, bool)
    if valid is not None:
        cell_valid = area_average(valid[None], grid)[0] >= 0.5
    boxes, crops, shares = [], [], {}
    for mask in masks:
        if mask.shape not in shares:
            shares[mask.shape] = _overlap(mask.shape[0], grid[0]), _overlap(mask.shape[1], grid[1]).T
        box, crop = _reduced(mask, *shares[mask.shape])
        boxes.append(box)
        crops.append(crop)
    return _targets(boxes, crops, levels, scores, embeddings, cell_valid, min_cells)


Box = tuple[int, int, int, int]


def _targets(
    boxes: list[Box],
    crops: list[UInt8[np.ndarray, "_ _"]],
    levels: Int8[np.ndarray, " M"],
    scores: Float32[np.ndarray, " M"],
    embeddings: Float[np.ndarray, "M C"],
    valid: Bool[np.ndarray, "h w"],
    min_cells: float,
) -> MaskTargets:
    counted = [valid[y0:y1, x0:x1] for x0, y0, x1, y1 in boxes]
    units = [int(crop[own].sum(dtype=np.int64)) for crop, own in zip(crops, counted, strict=True)]
    cells = np.array(units, np.float32) / np.float32(FULL)
    keep = np.flatnonzero((cells >= min_cells) & ((cells > 0) | (min_cells < 0)))
    kept = [crops[k].ravel() for k in keep]
    return MaskTargets(
        crops=np.concatenate(kept) if kept else np.zeros(0, np.uint8),
        boxes=np.array(boxes, np.int32).reshape(-1, 4)[keep],
        levels=np.asarray(levels, np.int8)[keep],
        scores=np.asarray(scores, np.float32)[keep],
        embeddings=unit_vectors(embeddings)[keep],
        places=keep,
        areas=cells[keep] / np.float32(max(1, valid.sum())),
        valid=valid,
    )


def unit_vectors(embeddings: Float[np.ndarray, "M C"]) -> Float32[np.ndarray, "M C"]:
    """Embeddings in single precision, of unit length: the cache holds half precision."""
    vectors = np.asarray(embeddings, np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-6)


def _reduced(
    mask: Bool[np.ndarray, "H W"], by_row: Float32[np.ndarray, "h H"], by_column: Float32[np.ndarray, "W w"]
) -> tuple[Box, UInt8[np.ndarray, "_ _"]]:
    """A mask's box in cells, and how much of each it covers; of most masks that is a small part of the grid."""
    (height, width), h, w = mask.shape, len(by_row), by_column.shape[1]
    left, top, right, bottom = _box(mask)
    # Cells that the box of pixels touches, in whole numbers.
    x0, y0, x1, y1 = left * w // width, top * h // height, -(-right * w // width), -(-bottom * h // height)
    part = mask[top:bottom, left:right].astype(np.float32)
    return (x0, y0, x1, y1), _quantised(by_row[y0:y1, top:bottom] @ part @ by_column[left:right, x0:x1])


def _box(mask: Bool[np.ndarray, "H W"]) -> Box:
    """x0, y0, x1, y1 of what is True, ends exclusive; all 0 where nothing is."""
    rows = np.flatnonzero(mask.any(1))
    if not len(rows):
        return 0, 0, 0, 0
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    columns = np.flatnonzero(mask[top:bottom].any(0))
    return int(columns[0]), top, int(columns[-1]) + 1, bottom


def _quantised(fractions: Float[np.ndarray, "*n"]) -> UInt8[np.ndarray, "*n"]:
    return np.rint(np.clip(fractions, 0, 1) * FULL).astype(np.uint8)


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
    for mask, result in zip(masks, averaged, strict=True):
        result[:] = by_row @ mask.astype(np.float32) @ by_column
    return averaged.clip(0, 1)


def _overlap(pixels: int, cells: int) -> Float32[np.ndarray, "cells pixels"]:
    """Row i holds the share of cell i that each pixel fills; rows sum to 1."""
    edges = np.arange(cells + 1) * (pixels / cells)
    left = np.maximum(edges[:-1, None], np.arange(pixels)[None])
    right = np.minimum(edges[1:, None], np.arange(1, pixels + 1)[None])
    return (np.clip(right - left, 0, None) * (cells / pixels)).astype(np.float32)
