"""Blending weights of one view, kept in memory: about 76 bytes per Gaussian and pixel row of a tile."""

from dataclasses import dataclass

import numpy as np

from maskfield_ns.splatting.threads import run
from maskfield_ns.splatting.tiles import TileLists


@dataclass(frozen=True)
class KeptWeights:
    """See kernels_kept; P pairs of a Gaussian and a pixel row, E tile entries, T tiles."""

    pair_weights: np.ndarray  # [P * 16] float32
    pair_rows: np.ndarray  # [P] int32
    entry_pairs: np.ndarray  # [E] int32
    row_pairs: np.ndarray  # [T, 17] int64
    listed: np.ndarray  # [P, 2] int32
    transmittance: np.ndarray  # [H * W] float32

    @property
    def nbytes(self) -> int:
        return sum(value.nbytes for value in vars(self).values())


def keep_weights(lists: TileLists) -> KeptWeights:
    """Compute the blending weights of a view (float32, exactly those of the blending)."""
    from maskfield_ns.splatting import kernels_kept as kernels

    entries, tiles = len(lists.entry_slot), len(lists.tile_start)
    geometry = (lists.size, lists.tiles, lists.records, lists.slot_owner, lists.entry_slot, lists.entry_rows,
                lists.tile_start)  # fmt: skip
    band_pairs, row_pairs = np.zeros(lists.bands + 1, np.int64), np.zeros((tiles, 17), np.int64)
    nothing, no_numbers = np.empty(0, np.float32), np.empty(0, np.int32)
    run(kernels.weigh, lists.bands, *geometry, False, band_pairs, nothing, no_numbers, no_numbers, row_pairs, nothing)
    band_pairs = np.cumsum(band_pairs)
    pairs = int(band_pairs[-1])
    weights, rows = np.empty(pairs * 16, np.float32), np.empty(pairs, np.int32)
    entry_pairs = np.zeros(entries, np.int32)
    rest = np.empty(int(lists.size.prod()), np.float32)
    run(kernels.weigh, lists.bands, *geometry, True, band_pairs, weights, rows, entry_pairs, row_pairs, rest)
    listed = np.empty((pairs, 2), np.int32)
    run(kernels.list_by_row, lists.bands, lists.tiles, lists.order, lists.slot_owner, lists.entry_slot,
        lists.tile_start, entry_pairs, row_pairs, rows, listed)  # fmt: skip
    return KeptWeights(weights, rows, entry_pairs, row_pairs, listed, rest)


def blend_kept(
    lists: TileLists, kept: KeptWeights, features: np.ndarray, background: np.ndarray, image: np.ndarray
) -> None:
    """Fill image [H, W, D] from features [N, D]."""
    from maskfield_ns.splatting import kernels_kept as kernels

    run(kernels.blend_kept, lists.bands, lists.size, lists.tiles, kept.row_pairs, kept.listed, kept.pair_weights,
        features.reshape(-1), features.shape[1], background, kept.transmittance, image.reshape(-1))  # fmt: skip


def gather_kept(lists: TileLists, kept: KeptWeights, values: np.ndarray) -> np.ndarray:
    """Sums per slot of values [H, W, D], as kernels_backward.blend_backward leaves them."""
    from maskfield_ns.splatting import kernels_kept as kernels

    channels = values.shape[2]
    slot_grads = np.empty(int(lists.band_start[-1]) * (kernels.MOMENTS + channels), np.float32)
    run(kernels.gather_kept, lists.bands, lists.size, lists.tiles, lists.band_start, lists.tile_start, lists.entry_slot,
        kept.entry_pairs, kept.row_pairs, kept.pair_rows, kept.pair_weights, values.reshape(-1), channels,
        slot_grads)  # fmt: skip
    return slot_grads
