"""Gradient of the blending, front to back like the blending itself.

With the gradient v of a pixel's channels, every Gaussian matters through one number d = <feature, v>. The pixel keeps
R = (what is still to come) = sum of w d over the Gaussians behind, plus the background's part, so that

    dL/dalpha = T d - R / (1 - alpha)

and no channel is stored twice. Transmittances are recomputed with the forward pass's own operations. A Gaussian's
gradient is added up per slot (see kernels_tiles), where only one thread writes, and then summed over its slots.
"""

import numpy as np

from maskfield_ns.splatting.blocks import add_lane_sums, make_gather, make_pack
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
CHUNK = 1024
MOMENTS = 8  # of g = alpha dL/dalpha: g, gu, g dy, guu, gu dy, g dy dy and the two absolute position gradients
ALPHA_MAX = np.float32(0.999)
ALPHA_MIN = np.float32(1 / 255)
STOP = np.float32(1e-4)
LOG2_E = np.float32(1.4426950408889634)

pack8, pack4, pack3, pack1 = (make_pack(n) for n in (8, 4, 3, 1))
gather8, gather4, gather3, gather1 = (make_gather(n, with_dot=False) for n in (8, 4, 3, 1))
gather8d, gather4d, gather3d, gather1d = (make_gather(n, with_dot=True) for n in (8, 4, 3, 1))


@kernel
def load_row(tile, row, image, at, channels):
    """Sixteen pixels of an image (channels last) into [row, channel, lane]."""
    channel = 0
    target = row * channels * 16
    while channels - channel >= 8:
        pack8(tile, target + channel * 16, image, at, channels, channel)
        channel += 8
    if channels - channel >= 4:
        pack4(tile, target + channel * 16, image, at, channels, channel)
        channel += 4
    if channels - channel == 3:
        pack3(tile, target + channel * 16, image, at, channels, channel)
    else:
        while channel < channels:
            pack1(tile, target + channel * 16, image, at, channels, channel)
            channel += 1


@kernel
def blend_backward(counter, bands, size, tiles, order, records, band_start, slot_owner, entry_slot, entry_rows,
                   tile_start, features, channels, image, transmittance, v_image, v_alpha, full,
                   slot_grads):  # fmt: skip
    """slot_grads [slots, 8 + channels]: moments and feature gradients.

    Without `full` only features get a gradient: the first moment is then the sum of the blending weights, the others
    are zero, and `features`, `image`, `transmittance` and `v_alpha` are not read.
    """
    width, height, columns = size[0], size[1], tiles[0]
    area = 16 * 16 * channels
    space = np.empty(area + 16, np.float32)
    skip = (64 - space.ctypes.data % 64) % 64 // 4
    pixel_grads = space[skip : skip + area]  # [row, channel, lane]
    edge = np.zeros(16 * channels, np.float32)
    row_image = np.empty(16 * channels, np.float32)  # [channel, lane]
    left_over = np.empty((16, 16), np.float32)
    behind = np.empty((16, 16), np.float32)  # R
    weights = np.empty((16, 16), np.float32)  # of one Gaussian, for the rows it touches
    dots = np.zeros((16, 16), np.float32)
    alphas = np.empty((16, 16), np.float32)
    befores = np.empty((16, 16), np.float32)
    offsets = np.empty((16, 16), np.float32)
    touched = np.empty(16, np.int32)
    lane_values = np.zeros(16, np.float32)
    lane, start = iota(), np.int64(0)
    zero, one = splat(0.0), splat(1.0)
    stride = MOMENTS + channels
    full_blocks = channels // 8 * 8
    while True:
        band = take_next(counter)
        if band >= bands:
            break
        for i in range(band_start[band] * stride, band_start[band + 1] * stride):
            slot_grads[i] = 0
        rows = min(TILE, height - band * TILE)
        for column in range(columns):
            entry, end = tile_start[band * columns + column, 0], tile_start[band * columns + column, 1]
            if entry == end:
                continue
            pixels = min(TILE, width - column * TILE)
            start_value = select(lane < np.float32(pixels), one, -one)
            for row in range(rows):
                store(left_over, row * 16, start_value)
                first = (band * TILE + row) * width + column * TILE
                if pixels == TILE:
                    load_row(pixel_grads, row, v_image, first * channels, channels)
                else:
                    for i in range(pixels * channels):
                        edge[i] = v_image[first * channels + i]
                    load_row(pixel_grads, row, edge, start, channels)
                if full:
                    if pixels == TILE:
                        load_row(row_image, start, image, first * channels, channels)
                        rest = -(load(transmittance, first) * load(v_alpha, first))
                    else:
                        for i in range(pixels * channels):
                            edge[i] = image[first * channels + i]
                        load_row(row_image, start, edge, start, channels)
                        for i in range(pixels):
                            lane_values[i] = -transmittance[first + i] * v_alpha[first + i]
                        rest = load(lane_values, 0)
                    for channel in range(channels):
                        shown = load(row_image, channel * 16)
                        rest = rest + shown * load(pixel_grads, (row * channels + channel) * 16)
                    store(behind, row * 16, rest)
            alive = (1 << rows) - 1
            while entry < end and alive != 0:
                wanted = np.int64(entry_rows[entry]) & alive
                slot = np.int64(entry_slot[entry])
                entry += 1
                if wanted == 0:
                    continue
                owner = np.int64(slot_owner[slot])
                x = records[owner, 0] - np.float32(column * TILE) - np.float32(0.5)
                y = records[owner, 1] - np.float32(band * TILE) - np.float32(0.5)
                a, m = records[owner, 2], records[owner, 3]
                e, level = records[owner, 4], records[owner, 5]
                steep = splat(-a)
                count = 0
                weight_sum = zero
                while wanted != 0:
                    row = lowest_bit(wanted)
                    wanted &= wanted - 1
                    dy = np.float32(row) - y
                    u = lane - (x - m * dy)
                    power = fma(u * u, steep, splat(level - e * dy * dy))
                    raw = exp2(power)
                    alpha = vmin(raw, splat(ALPHA_MAX))
                    before = load(left_over, row * 16)
                    after = fma(-alpha, before, before)
                    hit = alpha >= ALPHA_MIN
                    passed = after > STOP
                    drawn = hit & passed
                    if bits(drawn) != 0:
                        weight = select(drawn, alpha * before, zero)
                        store(weights, count * 16, weight)
                        if full:
                            store(alphas, count * 16, raw)
                            store(befores, count * 16, before)
                            store(offsets, count * 16, u)
                            store(dots, count * 16, zero)
                        else:
                            weight_sum = weight_sum + weight
                        touched[count] = row
                        count += 1
                    now = select(drawn, after, select(hit, -vabs(before), before))
                    store(left_over, row * 16, now)
                    if bits(now > np.float32(0)) == 0:
                        alive &= ~(1 << row)
                if count == 0:
                    continue
                at = slot * stride
                channel = 0
                if full:
                    source = np.int64(order[owner]) * channels
                    while channel < full_blocks:
                        gather8d(slot_grads, at + MOMENTS + channel, touched, count, weights, dots, pixel_grads,
                                 channels, channel, features, source + channel)  # fmt: skip
                        channel += 8
                    if channels - channel >= 4:
                        gather4d(slot_grads, at + MOMENTS + channel, touched, count, weights, dots, pixel_grads,
                                 channels, channel, features, source + channel)  # fmt: skip
                        channel += 4
                    if channels - channel == 3:
                        gather3d(slot_grads, at + MOMENTS + channel, touched, count, weights, dots, pixel_grads,
                                 channels, channel, features, source + channel)  # fmt: skip
                    else:
                        while channel < channels:
                            gather1d(slot_grads, at + MOMENTS + channel, touched, count, weights, dots, pixel_grads,
                                      channels, channel, features, source + channel)  # fmt: skip
                            channel += 1
                else:
                    while channel < full_blocks:
                        gather8(slot_grads, at + MOMENTS + channel, touched, count, weights, dots, pixel_grads,
                                channels, channel, features, 0)  # fmt: skip
                        channel += 8
                    if channels - channel >= 4:
                        gather4(slot_grads, at + MOMENTS + channel, touched, count, weights, dots, pixel_grads,
                                channels, channel, features, 0)  # fmt: skip
                        channel += 4
                    if channels - channel == 3:
                        gather3(slot_grads, at + MOMENTS + channel, touched, count, weights, dots, pixel_grads,
                                channels, channel, features, 0)  # fmt: skip
                    else:
                        while channel < channels:
                            gather1(slot_grads, at + MOMENTS + channel, touched, count, weights, dots, pixel_grads,
                                     channels, channel, features, 0)  # fmt: skip
                            channel += 1
                    add_lane_sums(slot_grads, at, weight_sum, zero, zero, zero, zero, zero, zero, zero)
                    continue
                sum_g, sum_u, sum_y = zero, zero, zero
                sum_uu, sum_uy, sum_yy = zero, zero, zero
                sum_ax, sum_ay = zero, zero
                slope_u, slope_y = a * m, e
                for i in range(count):
                    row = np.int64(touched[i])
                    dy = np.float32(row) - y
                    weight, raw = load(weights, i * 16), load(alphas, i * 16)
                    before, u, dot = load(befores, i * 16), load(offsets, i * 16), load(dots, i * 16)
                    rest = load(behind, row * 16) - weight * dot
                    store(behind, row * 16, rest)
                    alpha = vmin(raw, splat(ALPHA_MAX))
                    free = (weight > np.float32(0)) & (raw <= ALPHA_MAX)
                    g = select(free, alpha * (before * dot - rest / (one - alpha)), zero)
                    gu, gy = g * u, g * dy
                    sum_g = sum_g + g
                    sum_u = sum_u + gu
                    sum_y = sum_y + gy
                    sum_uu = sum_uu + gu * u
                    sum_uy = sum_uy + gu * dy
                    sum_yy = sum_yy + gy * dy
                    sum_ax = sum_ax + vabs(gu)
                    sum_ay = sum_ay + vabs(gu * slope_u + gy * slope_y)
                add_lane_sums(slot_grads, at, sum_g, sum_u, sum_y, sum_uu, sum_uy, sum_yy, sum_ax, sum_ay)


@kernel
def collect(counter, pieces, order, records, geometry, opacities, slots, slots_of, channels, full, slot_grads,
            v_means2d, v_geometry, v_opacities, absolute, v_features):  # fmt: skip
    """Sum the slots of each Gaussian; adds to v_features [N * channels], sets the rest.

    Without `full`, v_opacities receives the sum of the blending weights and nothing else is set but v_features.
    """
    n = order.shape[0]
    stride = MOMENTS + channels
    to_natural = np.float32(2) / LOG2_E
    moments = np.zeros(MOMENTS, np.float32)
    while True:
        piece = take_next(counter)
        if piece >= pieces:
            break
        for i in range(piece * CHUNK, min((piece + 1) * CHUNK, n)):
            g = np.int64(order[i])
            for j in range(MOMENTS):
                moments[j] = 0
            for k in range(slots_of[i], slots_of[i + 1]):
                at = np.int64(slots[k]) * stride
                for j in range(MOMENTS):
                    moments[j] += slot_grads[at + j]
                for j in range(channels):
                    v_features[g * channels + j] += slot_grads[at + MOMENTS + j]
            if not full:
                v_opacities[g] = moments[0]
                continue
            a, m, e = geometry[g, 0], geometry[g, 1], geometry[g, 2]
            v_means2d[g, 0] = a * moments[1]
            v_means2d[g, 1] = a * m * moments[1] + e * moments[2]
            v_geometry[g, 0] = np.float32(-0.5) * moments[3]
            v_geometry[g, 1] = -a * moments[4]
            v_geometry[g, 2] = np.float32(-0.5) * moments[5]
            v_opacities[g] = moments[0] / opacities[g]
            absolute[g, 0] = a * moments[6]
            absolute[g, 1] = to_natural * moments[7]
