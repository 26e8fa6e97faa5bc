"""SSIM of two pictures and its derivative, rows at a time.

Pictures are [H, row] float32 with interleaved channels, rows padded to whole vectors and long enough for every window
that starts in a vector; what is in the padding does not matter.
"""

import numpy as np

from maskfield_ns.splatting.compiling import kernel
from maskfield_ns.splatting.simd import WIDTH, fma, iota, load, select, splat, store, take_next

ROWS = 4
TAPS = 11
F = np.float32
C1, C2 = F(0.01**2), F(0.03**2)


def padded(columns: int, channels: int) -> int:
    """Length of a row that holds `columns` numbers: whole vectors, each followed by a window."""
    return -(-columns // WIDTH) * WIDTH + (TAPS - 1) * channels


@kernel
def ssim_rows(counter, pieces, x, y, window, channels, columns, rows, sums, by_mean, by_square, by_product):
    """Per piece of output rows the sum of SSIM, and the derivatives of each pixel's SSIM by the windowed means of x,
    x^2 and x y [rows, padded columns], 0 in the padding. Only pixels whose window lies inside the picture count."""
    length, out_length = x.shape[1], by_mean.shape[1]
    column = np.zeros((5, length), np.float32)
    lane_sums = np.zeros(WIDTH, np.float32)
    zero, one, two, c1, c2 = splat(F(0)), splat(F(1)), splat(F(2)), splat(C1), splat(C2)
    while True:
        piece = take_next(counter)
        if piece >= pieces:
            return
        total = 0.0
        for i in range(piece * ROWS, min((piece + 1) * ROWS, rows)):
            for j in range(0, length - WIDTH + 1, WIDTH):
                m0, m1, m2, m3, m4 = zero, zero, zero, zero, zero
                for k in range(TAPS):
                    g = splat(window[k])
                    a, b = load(x, (i + k) * length + j), load(y, (i + k) * length + j)
                    ga, gb = g * a, g * b
                    m0, m1 = m0 + ga, m1 + gb
                    m2, m3, m4 = fma(ga, a, m2), fma(gb, b, m3), fma(ga, b, m4)
                store(column, j, m0)
                store(column, length + j, m1)
                store(column, 2 * length + j, m2)
                store(column, 3 * length + j, m3)
                store(column, 4 * length + j, m4)
            sum_of_row = zero
            for j in range(0, columns, WIDTH):
                mx, my, xx, yy, xy = zero, zero, zero, zero, zero
                for k in range(TAPS):
                    g, at = splat(window[k]), j + k * channels
                    mx, my = fma(g, load(column, at), mx), fma(g, load(column, length + at), my)
                    xx = fma(g, load(column, 2 * length + at), xx)
                    yy = fma(g, load(column, 3 * length + at), yy)
                    xy = fma(g, load(column, 4 * length + at), xy)
                inside = iota() < splat(F(columns - j))
                product, squares = mx * my, mx * mx + my * my
                a1, b1 = two * product + c1, squares + c1
                a2, b2 = two * (xy - product) + c2, xx + yy - squares + c2
                rest = one / (b1 * b2)
                value = a1 * a2 * rest
                sum_of_row = sum_of_row + select(inside, value, zero)
                by_xx, by_xy = zero - value / b2, two * a1 * rest
                by_mx = two * my * a2 * rest - two * mx * (value / b1 + by_xx) - my * by_xy
                place = i * out_length + j
                store(by_mean, place, select(inside, by_mx, zero))
                store(by_square, place, select(inside, by_xx, zero))
                store(by_product, place, select(inside, by_xy, zero))
            store(lane_sums, 0, sum_of_row)
            for lane in range(WIDTH):
                total += lane_sums[lane]
        sums[piece] = total


@kernel
def ssim_rows_backward(counter, pieces, x, y, window, channels, rows, scale, by_mean, by_square, by_product, out):
    """out = scale * derivative of the sum of SSIM by x, [H, row] like x."""
    height, length = x.shape
    out_length = by_mean.shape[1]
    lead = (TAPS - 1) * channels  # windows that start left of the picture find zeros
    buffer = lead + length + WIDTH
    column = np.zeros((3, buffer), np.float32)
    zero, two, factor = splat(F(0)), splat(F(2)), splat(scale)
    while True:
        piece = take_next(counter)
        if piece >= pieces:
            return
        for i in range(piece * ROWS, min((piece + 1) * ROWS, height)):
            for j in range(0, out_length, WIDTH):
                m0, m1, m2 = zero, zero, zero
                for r in range(max(0, i - TAPS + 1), min(i + 1, rows)):
                    g, place = splat(window[i - r]), r * out_length + j
                    m0, m1 = fma(g, load(by_mean, place), m0), fma(g, load(by_square, place), m1)
                    m2 = fma(g, load(by_product, place), m2)
                store(column, lead + j, m0)
                store(column, buffer + lead + j, m1)
                store(column, 2 * buffer + lead + j, m2)
            for j in range(0, length - WIDTH + 1, WIDTH):
                m0, m1, m2 = zero, zero, zero
                for k in range(TAPS):
                    g, at = splat(window[k]), lead + j - k * channels
                    m0, m1 = fma(g, load(column, at), m0), fma(g, load(column, buffer + at), m1)
                    m2 = fma(g, load(column, 2 * buffer + at), m2)
                a, b = load(x, i * length + j), load(y, i * length + j)
                store(out, i * length + j, factor * (m0 + two * a * m1 + b * m2))
