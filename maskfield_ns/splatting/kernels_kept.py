"""Blending with weights that were computed once: for many renders of one view with fixed geometry.

A pair is one Gaussian in one pixel row of a tile; its weights are sixteen lanes. Pairs are stored tile by tile and
Gaussian by Gaussian, as the gradient of the features wants them; `listed` sorts them by row, as rendering wants them.
"""

import numpy as np

from maskfield_ns.splatting.blocks import add_lane_sums
from maskfield_ns.splatting.compiling import kernel
from maskfield_ns.splatting.kernels_backward import gather1, gather3, gather4, gather8, load_row
from maskfield_ns.splatting.kernels_forward import ALPHA_MAX, ALPHA_MIN, STOP, mix_rows, store_row
from maskfield_ns.splatting.simd import (
    bits,
    exp2,
    fma,
    iota,
    load,
    lowest_bit,
    select,
    splat,
    store,
    take_next,
    vabs,
    vmin,
)

TILE = 16
MOMENTS = 8


@kernel
def weigh(counter, bands, size, tiles, records, slot_owner, entry_slot, entry_rows, tile_start, keep, band_pairs,
          pair_weights, pair_rows, entry_pairs, row_pairs, transmittance):  # fmt: skip
    """First without `keep`: band_pairs[band + 1] receives the band's number of pairs. Then, given where each band's
    pairs begin, fill pair_weights [pairs * 16], pair_rows [pairs], entry_pairs [entries] (pairs of each entry),
    row_pairs [tiles, 17] (where the tile's rows end in the list) and transmittance [H, W]."""
    width, height, columns = size[0], size[1], tiles[0]
    left_over = np.empty((16, 16), np.float32)
    lane = iota()
    while True:
        band = take_next(counter)
        if band >= bands:
            break
        rows = min(TILE, height - band * TILE)
        used = np.int64(band_pairs[band]) if keep else np.int64(0)
        for column in range(columns):
            tile = band * columns + column
            pixels = min(TILE, width - column * TILE)
            start_value = select(lane < np.float32(pixels), splat(1.0), splat(-1.0))
            for row in range(16):
                store(left_over, row * 16, start_value)
            if keep:
                for row in range(17):
                    row_pairs[tile, row] = 0
            alive = (1 << rows) - 1
            tile_first = used
            for entry in range(tile_start[tile, 0], tile_start[tile, 1]):
                wanted = np.int64(entry_rows[entry]) & alive
                owner = np.int64(slot_owner[entry_slot[entry]])
                before_entry = used
                x = records[owner, 0] - np.float32(column * TILE) - np.float32(0.5)
                y = records[owner, 1] - np.float32(band * TILE) - np.float32(0.5)
                a, m = records[owner, 2], records[owner, 3]
                e, level = records[owner, 4], records[owner, 5]
                steep = splat(-a)
                while wanted != 0:
                    row = lowest_bit(wanted)
                    wanted &= wanted - 1
                    dy = np.float32(row) - y
                    u = lane - (x - m * dy)
                    power = fma(u * u, steep, splat(level - e * dy * dy))
                    alpha = vmin(exp2(power), splat(ALPHA_MAX))
                    before = load(left_over, row * 16)
                    after = fma(-alpha, before, before)
                    hit = alpha >= ALPHA_MIN
                    passed = after > STOP
                    drawn = hit & passed
                    if bits(drawn) != 0:
                        if keep:
                            store(pair_weights, used * 16, select(drawn, alpha * before, splat(0.0)))
                            pair_rows[used] = row
                            row_pairs[tile, row + 1] += 1
                        used += 1
                    now = select(drawn, after, select(hit, -vabs(before), before))
                    store(left_over, row * 16, now)
                    if bits(now > np.float32(0)) == 0:
                        alive &= ~(1 << row)
                if keep:
                    entry_pairs[entry] = used - before_entry
            if keep:
                row_pairs[tile, 0] = tile_first
                for row in range(16):
                    row_pairs[tile, row + 1] += row_pairs[tile, row]
                for row in range(rows):
                    first = (band * TILE + row) * width + column * TILE
                    for i in range(pixels):
                        transmittance[first + i] = abs(left_over[row, i])
        if not keep:
            band_pairs[band + 1] = used


@kernel
def list_by_row(counter, bands, tiles, order, slot_owner, entry_slot, tile_start, entry_pairs, row_pairs, pair_rows,
                listed):  # fmt: skip
    """listed [pairs, 2]: the pairs of each tile sorted by row, front to back, as (pair, Gaussian)."""
    columns = tiles[0]
    places = np.zeros(16, np.int64)
    while True:
        band = take_next(counter)
        if band >= bands:
            break
        for tile in range(band * columns, (band + 1) * columns):
            for row in range(16):
                places[row] = row_pairs[tile, row]
            pair = row_pairs[tile, 0]
            for entry in range(tile_start[tile, 0], tile_start[tile, 1]):
                gaussian = order[slot_owner[entry_slot[entry]]]
                for _ in range(entry_pairs[entry]):
                    row = np.int64(pair_rows[pair])
                    place = places[row]
                    places[row] = place + 1
                    listed[place, 0] = pair
                    listed[place, 1] = gaussian
                    pair += 1


@kernel
def blend_kept(counter, bands, size, tiles, row_pairs, listed, pair_weights, features, channels, background,
               transmittance, image):  # fmt: skip
    """image [H, W, channels] from features [N, channels]."""
    width, height, columns = size[0], size[1], tiles[0]
    space = np.empty(16 * 16 * channels + 16, np.float32)
    skip = (64 - space.ctypes.data % 64) % 64 // 4
    total = space[skip : skip + 16 * 16 * channels]
    edge = np.empty(16 * channels, np.float32)
    edge_rest = np.ones(16, np.float32)
    counts = np.zeros(16, np.int64)
    firsts = np.zeros(16, np.int64)
    start = np.int64(0)
    while True:
        band = take_next(counter)
        if band >= bands:
            break
        rows = min(TILE, height - band * TILE)
        for column in range(columns):
            tile = band * columns + column
            pixels = min(TILE, width - column * TILE)
            total[:] = 0
            for row in range(16):
                firsts[row] = row_pairs[tile, row]
                counts[row] = row_pairs[tile, row + 1] - row_pairs[tile, row]
            mix_rows(total, rows, pair_weights, listed, firsts, counts, features, channels)
            for row in range(rows):
                first = (band * TILE + row) * width + column * TILE
                source = row * channels * 16
                if pixels == TILE:
                    store_row(image, first * channels, channels, total, source, transmittance, first, background)
                else:
                    for i in range(pixels):
                        edge_rest[i] = transmittance[first + i]
                    store_row(edge, start, channels, total, source, edge_rest, start, background)
                    for i in range(pixels * channels):
                        image[first * channels + i] = edge[i]


@kernel
def gather_kept(counter, bands, size, tiles, band_start, tile_start, entry_slot, entry_pairs, row_pairs, pair_rows,
                pair_weights, v_image, channels, slot_grads):  # fmt: skip
    """slot_grads [slots, 8 + channels] as without `full` in kernels_backward."""
    width, height, columns = size[0], size[1], tiles[0]
    area = 16 * 16 * channels
    space = np.empty(area + 16, np.float32)
    skip = (64 - space.ctypes.data % 64) % 64 // 4
    pixel_grads = space[skip : skip + area]
    edge = np.zeros(16 * channels, np.float32)
    start, zero = np.int64(0), splat(0.0)
    stride = MOMENTS + channels
    while True:
        band = take_next(counter)
        if band >= bands:
            break
        for i in range(band_start[band] * stride, band_start[band + 1] * stride):
            slot_grads[i] = 0
        rows = min(TILE, height - band * TILE)
        for column in range(columns):
            tile = band * columns + column
            pixels = min(TILE, width - column * TILE)
            pair = row_pairs[tile, 0]
            if pair == row_pairs[tile, 16]:
                continue
            for row in range(rows):
                first = (band * TILE + row) * width + column * TILE
                if pixels == TILE:
                    load_row(pixel_grads, row, v_image, first * channels, channels)
                else:
                    for i in range(pixels * channels):
                        edge[i] = v_image[first * channels + i]
                    load_row(pixel_grads, row, edge, start, channels)
            for entry in range(tile_start[tile, 0], tile_start[tile, 1]):
                count = np.int64(entry_pairs[entry])
                if count == 0:
                    continue
                at = np.int64(entry_slot[entry]) * stride
                touched = pair_rows[pair : pair + count]
                weights = pair_weights[pair * 16 : (pair + count) * 16]
                pair += count
                weight_sum = zero
                for i in range(count):
                    weight_sum = weight_sum + load(weights, i * 16)
                add_lane_sums(slot_grads, at, weight_sum, zero, zero, zero, zero, zero, zero, zero)
                at += MOMENTS
                channel = 0
                while channels - channel >= 8:
                    gather8(slot_grads, at + channel, touched, count, weights, weights, pixel_grads, channels, channel,
                            weights, 0)  # fmt: skip
                    channel += 8
                if channels - channel >= 4:
                    gather4(slot_grads, at + channel, touched, count, weights, weights, pixel_grads, channels, channel,
                            weights, 0)  # fmt: skip
                    channel += 4
                if channels - channel == 3:
                    gather3(slot_grads, at + channel, touched, count, weights, weights, pixel_grads, channels, channel,
                            weights, 0)  # fmt: skip
                else:
                    while channel < channels:
                        gather1(slot_grads, at + channel, touched, count, weights, weights, pixel_grads, channels,
                                channel, weights, 0)  # fmt: skip
                        channel += 1
