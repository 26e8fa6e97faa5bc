"""Blending, front to back: from tile lists and features to an image.

Semantics of gsplat: alpha = min(0.999, opacity * exp(-sigma)), left out below 1/255; a pixel stops before the Gaussian
that would bring its transmittance to 1e-4 or less. A stopped pixel keeps its transmittance with a negative sign.

Gaussians go through a tile in batches. The weights of a batch are computed one pixel row (sixteen lanes) at a time and
listed per row; then each row's list is multiplied with the features, a block of channels in registers at a time.
"""

import numpy as np

from maskfield_ns.splatting.blocks import make_mix, make_unpack
from maskfield_ns.splatting.compiling import kernel
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
BATCH = 32
ALPHA_MAX = np.float32(0.999)
ALPHA_MIN = np.float32(1 / 255)
STOP = np.float32(1e-4)

mix8, mix4, mix3, mix1 = (make_mix(n) for n in (8, 4, 3, 1))
unpack8, unpack4, unpack3, unpack1 = (make_unpack(n) for n in (8, 4, 3, 1))


@kernel
def mix_rows(total, rows, weights, pairs, first, listed, features, channels):
    """Add each row's list of pairs, pairs[first[row]] and listed[row] - 1 more, to total [row, channel, lane]."""
    channel = 0
    while channels - channel >= 8:
        for row in range(rows):
            at = (row * channels + channel) * 16
            mix8(total, at, weights, pairs, first[row], listed[row], features, channels, channel)
        channel += 8
    if channels - channel >= 4:
        for row in range(rows):
            at = (row * channels + channel) * 16
            mix4(total, at, weights, pairs, first[row], listed[row], features, channels, channel)
        channel += 4
    if channels - channel == 3:
        for row in range(rows):
            at = (row * channels + channel) * 16
            mix3(total, at, weights, pairs, first[row], listed[row], features, channels, channel)
    else:
        while channel < channels:
            for row in range(rows):
                at = (row * channels + channel) * 16
                mix1(total, at, weights, pairs, first[row], listed[row], features, channels, channel)
            channel += 1


@kernel
def store_row(target, at, channels, total, source, left_over, place, background):
    """Sixteen pixels of an image (channels last) from total[source ...], with the background where it shows."""
    rest = vabs(load(left_over, place))
    channel = 0
    while channels - channel >= 8:
        unpack8(target, at, channels, total, source + channel * 16, rest, background, channel)
        channel += 8
    if channels - channel >= 4:
        unpack4(target, at, channels, total, source + channel * 16, rest, background, channel)
        channel += 4
    if channels - channel == 3:
        unpack3(target, at, channels, total, source + channel * 16, rest, background, channel)
    else:
        while channel < channels:
            unpack1(target, at, channels, total, source + channel * 16, rest, background, channel)
            channel += 1


@kernel
def blend(counter, bands, size, tiles, order, records, slot_owner, entry_slot, entry_rows, tile_start, features,
          channels, background, image, transmittance):  # fmt: skip
    """image [H, W, channels] and transmittance [H, W] of one camera; features [N, channels], background [channels]."""
    width, height, columns = size[0], size[1], tiles[0]
    space = np.empty(16 * 16 * channels + 16, np.float32)
    skip = (64 - space.ctypes.data % 64) % 64 // 4
    total = space[skip : skip + 16 * 16 * channels]  # [row, channel, lane]
    space = np.empty(BATCH * 16 * 16 + 16, np.float32)
    skip = (64 - space.ctypes.data % 64) % 64 // 4
    weights = space[skip : skip + BATCH * 16 * 16]  # [pair, lane]
    left_over = np.empty((16, 16), np.float32)  # transmittance [row, lane]
    edge = np.empty(16 * channels, np.float32)
    pairs = np.empty((16 * BATCH, 2), np.int32)  # per row: place in `weights`, Gaussian
    listed = np.zeros(16, np.int64)
    first_pair = np.arange(16) * BATCH
    lane, start = iota(), np.int64(0)
    while True:
        band = take_next(counter)
        if band >= bands:
            break
        rows = min(TILE, height - band * TILE)
        for column in range(columns):
            pixels = min(TILE, width - column * TILE)
            total[:] = 0
            start_value = select(lane < np.float32(pixels), splat(1.0), splat(-1.0))
            for row in range(16):
                store(left_over, row * 16, start_value)
            alive = (1 << rows) - 1
            entry, end = tile_start[band * columns + column, 0], tile_start[band * columns + column, 1]
            while entry < end and alive != 0:
                batch_end = min(entry + BATCH, end)
                used = 0
                for row in range(16):
                    listed[row] = 0
                while entry < batch_end:
                    wanted = np.int64(entry_rows[entry]) & alive
                    owner = np.int64(slot_owner[entry_slot[entry]])
                    entry += 1
                    if wanted == 0:
                        continue
                    x = records[owner, 0] - np.float32(column * TILE) - np.float32(0.5)
                    y = records[owner, 1] - np.float32(band * TILE) - np.float32(0.5)
                    a, m = records[owner, 2], records[owner, 3]
                    e, level = records[owner, 4], records[owner, 5]
                    gaussian = order[owner]
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
                            store(weights, used * 16, select(drawn, alpha * before, splat(0.0)))
                            place = row * BATCH + listed[row]
                            pairs[place, 0] = used
                            pairs[place, 1] = gaussian
                            listed[row] += 1
                            used += 1
                        now = select(drawn, after, select(hit, -vabs(before), before))
                        store(left_over, row * 16, now)
                        if bits(now > np.float32(0)) == 0:
                            alive &= ~(1 << row)
                mix_rows(total, rows, weights, pairs, first_pair, listed, features, channels)
            for row in range(rows):
                rest = vabs(load(left_over, row * 16))
                first = (band * TILE + row) * width + column * TILE
                source = row * channels * 16
                if pixels == TILE:
                    store(transmittance, first, rest)
                    store_row(image, first * channels, channels, total, source, left_over, row * 16, background)
                else:
                    store_row(edge, start, channels, total, source, left_over, row * 16, background)
                    store(left_over, row * 16, rest)
                    for i in range(pixels):
                        transmittance[first + i] = left_over[row, i]
                    for i in range(pixels * channels):
                        image[first * channels + i] = edge[i]
