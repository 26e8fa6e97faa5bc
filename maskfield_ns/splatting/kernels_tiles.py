"""Which Gaussians a tile draws, front to back.

Visible Gaussians are sorted by depth once, appended in that order to every band (a row of tiles) they touch, and each
band is then split into tiles; nothing is sorted twice. A Gaussian's place in a band is its *slot*: bands are worked on
by one thread each, so a slot is also where that thread may add up the Gaussian's gradient.

A tile is 16 x 16 pixels. Tiles outside gsplat's square of three standard deviations are left out as there, and so are
tiles and pixel rows in which alpha stays below 1/255: the image is the same.
"""

import numpy as np

from maskfield_ns.splatting.compiling import kernel
from maskfield_ns.splatting.simd import bits, float_bits, iota, splat, take_next, vmax

TILE = 16
CHUNK = 2048
RECORD = 8  # x, y, a, m, e, log2 opacity (a and e for exponents of 2), two unused
LOG2_E = np.float32(1.4426950408889634)
LOG2_255 = np.float32(7.994353436858858)
SLACK = np.float32(0.01)  # of the cut in log2 units; the kernels decide exactly, per pixel


@kernel
def tile_ranges(counter, pieces, means2d, geometry, opacities, radii, tiles, ranges, levels):
    """ranges [N, 4]: first and past-the-last tile column and row; levels [N]: log2 of the opacity."""
    n = radii.shape[0]
    half = np.float32(0.5)
    while True:
        piece = take_next(counter)
        if piece >= pieces:
            break
        for g in range(piece * CHUNK, min((piece + 1) * CHUNK, n)):
            ranges[g, 0] = 0
            ranges[g, 1] = 0
            ranges[g, 2] = 0
            ranges[g, 3] = 0
            if radii[g] <= 0 or opacities[g] * np.float32(255) < np.float32(1):
                continue
            level = np.float32(np.log2(opacities[g]))
            levels[g] = level
            reach = (level + LOG2_255 + SLACK) * np.float32(2) / LOG2_E  # largest a u^2 + e dy^2 drawn
            a, m, e = geometry[g, 0], geometry[g, 1], geometry[g, 2]
            high = np.sqrt(reach / e) + np.float32(0.01)
            wide = np.sqrt(reach * (np.float32(1) / a + m * m / e)) + np.float32(0.01)
            x, y, radius = means2d[g, 0], means2d[g, 1], np.float32(radii[g])
            left = max(np.floor((x - radius) / TILE), np.floor(np.ceil(x - wide - half) / TILE))
            right = min(np.ceil((x + radius) / TILE), np.floor(np.floor(x + wide - half) / TILE) + 1)
            top = max(np.floor((y - radius) / TILE), np.floor(np.ceil(y - high - half) / TILE))
            bottom = min(np.ceil((y + radius) / TILE), np.floor(np.floor(y + high - half) / TILE) + 1)
            left, right = max(left, 0.0), min(right, float(tiles[0]))
            top, bottom = max(top, 0.0), min(bottom, float(tiles[1]))
            if left < right and top < bottom:
                ranges[g, 0] = np.int32(left)
                ranges[g, 1] = np.int32(right)
                ranges[g, 2] = np.int32(top)
                ranges[g, 3] = np.int32(bottom)


@kernel
def sort_by_depth(ranges, depths, keys, order, spare_keys, spare_order, band_slots, band_entries):
    """Stable radix sort of the drawn Gaussians into order[:count]; returns count.

    band_slots and band_entries (zero on entry) receive how many slots and, at most, tile entries each band needs.
    """
    count = 0
    histogram = np.zeros((3, 2048), np.int64)
    for g in range(ranges.shape[0]):
        if ranges[g, 0] < ranges[g, 1]:
            key = float_bits(depths[g])
            keys[count] = key
            order[count] = g
            count += 1
            histogram[0, key & np.uint32(2047)] += 1
            histogram[1, (key >> np.uint32(11)) & np.uint32(2047)] += 1
            histogram[2, key >> np.uint32(22)] += 1
            for band in range(ranges[g, 2], ranges[g, 3]):
                band_slots[band] += 1
                band_entries[band] += ranges[g, 1] - ranges[g, 0]
    for digit in range(3):
        shift = np.uint32(11 * digit)
        total = 0
        for i in range(2048):
            total, histogram[digit, i] = total + histogram[digit, i], total
        for i in range(count):
            key = keys[i]
            bucket = (key >> shift) & np.uint32(2047)
            place = histogram[digit, bucket]
            histogram[digit, bucket] = place + 1
            spare_keys[place] = key
            spare_order[place] = order[i]
        keys, spare_keys = spare_keys, keys
        order, spare_order = spare_order, order
    for i in range(count):  # after three swaps the result lies in the spare arrays
        spare_order[i] = order[i]
    return count


@kernel
def fill_slots(ranges, order, slot_next, slot_owner, slots, slots_of):
    """slot_owner[slot] = position in `order`; slots_of[i] .. slots_of[i + 1] index `slots`, the slots of position i."""
    used = 0
    for i in range(order.shape[0]):
        g = order[i]
        slots_of[i] = used
        for band in range(ranges[g, 2], ranges[g, 3]):
            slot = slot_next[band]
            slot_next[band] = slot + 1
            slot_owner[slot] = i
            slots[used] = slot
            used += 1
    slots_of[order.shape[0]] = used


@kernel
def pack_records(counter, pieces, order, means2d, geometry, levels, records):
    n = order.shape[0]
    scale = np.float32(0.5) * LOG2_E
    while True:
        piece = take_next(counter)
        if piece >= pieces:
            break
        for i in range(piece * CHUNK, min((piece + 1) * CHUNK, n)):
            g = order[i]
            records[i, 0] = means2d[g, 0]
            records[i, 1] = means2d[g, 1]
            records[i, 2] = geometry[g, 0] * scale
            records[i, 3] = geometry[g, 1]
            records[i, 4] = geometry[g, 2] * scale
            records[i, 5] = levels[g]


@kernel
def fill_tiles(counter, bands, size, tiles, ranges, order, records, band_start, entry_start, slot_owner, entry_slot,
               entry_rows, tile_start):  # fmt: skip
    """tile_start[tile] .. [tile] + count: entries of the tile, each a slot and the bits of its pixel rows.

    tile_start is [tiles, 2]: first entry and past-the-last one.
    """
    columns = tiles[0]
    width = np.float32(size[0])
    while True:
        band = take_next(counter)
        if band >= bands:
            break
        first_row = band * TILE
        all_rows = (1 << min(TILE, size[1] - first_row)) - 1
        rows = iota() + (np.float32(first_row) + np.float32(0.5))
        masks = np.empty(entry_start[band + 1] - entry_start[band], np.uint16)
        counts = np.zeros(columns, np.int64)
        used = 0
        for slot in range(band_start[band], band_start[band + 1]):
            i = slot_owner[slot]
            g = order[i]
            x, y, a = records[i, 0], records[i, 1], records[i, 2]
            m, e = records[i, 3], records[i, 4]
            dy = rows - y
            centre = splat(x) - dy * m
            left_over = splat(records[i, 5] + LOG2_255 + SLACK) - dy * dy * e
            for column in range(ranges[g, 0], ranges[g, 1]):
                left = np.float32(column * TILE) + np.float32(0.5)
                right = min(left + np.float32(TILE - 1), width - np.float32(0.5))
                gap = vmax(vmax(splat(left) - centre, centre - right), splat(0.0))
                mask = bits(gap * gap * a <= left_over) & all_rows
                masks[used] = mask
                used += 1
                if mask != 0:
                    counts[column] += 1
        total = entry_start[band]
        for column in range(columns):
            tile_start[band * columns + column, 0] = total
            total, counts[column] = total + counts[column], total
            tile_start[band * columns + column, 1] = total
        used = 0
        for slot in range(band_start[band], band_start[band + 1]):
            g = order[slot_owner[slot]]
            for column in range(ranges[g, 0], ranges[g, 1]):
                mask = masks[used]
                used += 1
                if mask != 0:
                    place = counts[column]
                    counts[column] = place + 1
                    entry_slot[place] = slot
                    entry_rows[place] = mask
