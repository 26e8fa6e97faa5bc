"""The drawing order of one camera, made from projected Gaussians by the kernels of kernels_tiles."""

from dataclasses import dataclass

import numpy as np

from maskfield_ns.splatting.threads import run


@dataclass(frozen=True)
class TileLists:
    """Sorted Gaussians and their tiles for one camera; see kernels_tiles for the meaning of slots and entries.

    V Gaussians are drawn somewhere; S = slots, E = room for tile entries, B = bands, T = tiles.
    """

    size: np.ndarray  # [2] int64: width, height
    tiles: np.ndarray  # [2] int64: tile columns, bands
    order: np.ndarray  # [V] int32: Gaussians, nearest first
    records: np.ndarray  # [V, 8] float32
    band_start: np.ndarray  # [B + 1] int64, into slots
    slot_owner: np.ndarray  # [S] int32
    slots: np.ndarray  # [S] int32
    slots_of: np.ndarray  # [V + 1] int64
    entry_slot: np.ndarray  # [E] int32
    entry_rows: np.ndarray  # [E] uint16
    tile_start: np.ndarray  # [T, 2] int64

    @property
    def bands(self) -> int:
        return int(self.tiles[1])

    @property
    def nbytes(self) -> int:
        return sum(value.nbytes for value in vars(self).values())


def build_tile_lists(
    means2d: np.ndarray,
    geometry: np.ndarray,
    opacities: np.ndarray,
    depths: np.ndarray,
    radii: np.ndarray,
    *,
    size: tuple[int, int],
) -> TileLists:
    """All arrays are of one camera, contiguous float32 (radii int32)."""
    from maskfield_ns.splatting import kernels_tiles as kernels

    n = radii.shape[0]
    width, height = size
    columns, bands = -(-width // kernels.TILE), -(-height // kernels.TILE)
    pixels, tiles = np.array([width, height], np.int64), np.array([columns, bands], np.int64)
    ranges = np.empty((n, 4), np.int32)
    levels = np.empty(n, np.float32)
    pieces = -(-n // kernels.CHUNK)
    run(kernels.tile_ranges, pieces, means2d, geometry, opacities, radii, tiles, ranges, levels)
    order, keys = np.empty(n, np.int32), np.empty(n, np.uint32)
    band_slots, band_entries = np.zeros(bands, np.int64), np.zeros(bands, np.int64)
    drawn = kernels.sort_by_depth(
        ranges, depths, keys, order, np.empty_like(keys), np.empty_like(order), band_slots, band_entries
    )
    order = order[:drawn].copy()
    band_start = np.concatenate([[0], np.cumsum(band_slots)])
    entry_start = np.concatenate([[0], np.cumsum(band_entries)])
    slot_owner, slots = np.empty(band_start[-1], np.int32), np.empty(band_start[-1], np.int32)
    slots_of = np.empty(drawn + 1, np.int64)
    kernels.fill_slots(ranges, order, band_start[:-1].copy(), slot_owner, slots, slots_of)
    records = np.zeros((drawn, kernels.RECORD), np.float32)
    run(kernels.pack_records, -(-drawn // kernels.CHUNK), order, means2d, geometry, levels, records)
    entry_slot, entry_rows = np.empty(entry_start[-1], np.int32), np.empty(entry_start[-1], np.uint16)
    tile_start = np.zeros((columns * bands, 2), np.int64)
    run(
        kernels.fill_tiles,
        bands,
        pixels,
        tiles,
        ranges,
        order,
        records,
        band_start,
        entry_start,
        slot_owner,
        entry_slot,
        entry_rows,
        tile_start,
    )
    return TileLists(
        pixels, tiles, order, records, band_start, slot_owner, slots, slots_of, entry_slot, entry_rows, tile_start
    )
