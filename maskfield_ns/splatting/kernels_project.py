"""Perspective projection of Gaussians and its gradient, sixteen Gaussians at a time.

The projected covariance is ``Q Q^T + eps I`` with the 2 x 3 matrix ``Q = J W R S``. Its determinant is summed from the
squared cross products of Q's columns (Cauchy-Binet), so that needles keep their width in float32. Instead of the conic
(a, b, c) the kernels hand on its factors (a, m, e) with

    sigma = a u^2 / 2 + e dy^2 / 2,   u = dx + m dy,   b = a m,   c = a m^2 + e,

two squares that cannot cancel. Source of the equations: EWA splatting (Zwicker et al. 2001) as in 3D Gaussian
splatting (Kerbl et al. 2023); conventions (clamped Jacobian, radius, culling) follow gsplat 1.4.
"""

import numpy as np

from maskfield_ns.splatting.compiling import kernel
from maskfield_ns.splatting.simd import (
    dot2,
    dot3,
    load_strided,
    select,
    splat,
    store,
    store_strided,
    take_next,
    vceil,
    vmax,
    vmin,
    vsqrt,
)

CHUNK = 1024  # Gaussians a thread takes at a time
LANES = 16
IN_WIDTH = 10  # mean 3, quaternion 4, scale 3
OUT_WIDTH = 8  # x, y, depth, a, m, e, radius, compensation
GRAD_WIDTH = 7  # of x, y, depth, a, m, e, compensation


@kernel
def project(counter, pieces, means, quats, scales, view, camera, size, limits, means2d, depths, geometry, conics,
            radii, compensations, bad):  # fmt: skip
    """One camera. camera: fx, fy, cx, cy; size: width, height; limits: near, far, eps2d, radius_clip.

    bad[piece]: how many means, quats, scales of the piece are not finite.
    """
    n = means.shape[0]
    fx, fy = splat(camera[0]), splat(camera[1])
    cx, cy = splat(camera[2]), splat(camera[3])
    width, height = splat(size[0]), splat(size[1])
    near, far = splat(limits[0]), splat(limits[1])
    eps, clip = splat(limits[2]), splat(limits[3])
    high_x = (width - cx) / fx + width / fx * 0.15
    low_x = -(cx / fx + width / fx * 0.15)
    high_y = (height - cy) / fy + height / fy * 0.15
    low_y = -(cy / fy + height / fy * 0.15)
    w00, w01 = splat(view[0, 0]), splat(view[0, 1])
    w02, t0 = splat(view[0, 2]), splat(view[0, 3])
    w10, w11 = splat(view[1, 0]), splat(view[1, 1])
    w12, t1 = splat(view[1, 2]), splat(view[1, 3])
    w20, w21 = splat(view[2, 0]), splat(view[2, 1])
    w22, t2 = splat(view[2, 2]), splat(view[2, 3])
    zero, one = splat(0.0), splat(1.0)
    inputs = np.zeros((LANES, IN_WIDTH), np.float32)
    outputs = np.zeros((LANES, OUT_WIDTH), np.float32)
    while True:
        piece = take_next(counter)
        if piece >= pieces:
            break
        for start in range(piece * CHUNK, min((piece + 1) * CHUNK, n), LANES):
            count = min(LANES, n - start)
            for i in range(count):
                g = start + i
                for j in range(3):
                    inputs[i, j] = means[g, j]
                    inputs[i, 7 + j] = scales[g, j]
                for j in range(4):
                    inputs[i, 3 + j] = quats[g, j]
                if not np.isfinite(means[g, 0] + means[g, 1] + means[g, 2]):
                    bad[piece, 0] += 1
                if not np.isfinite(quats[g, 0] + quats[g, 1] + quats[g, 2] + quats[g, 3]):
                    bad[piece, 1] += 1
                if not np.isfinite(scales[g, 0] + scales[g, 1] + scales[g, 2]):
                    bad[piece, 2] += 1
            mx, my, mz = load_strided(inputs, 0, 10), load_strided(inputs, 1, 10), load_strided(inputs, 2, 10)
            qw, qx = load_strided(inputs, 3, 10), load_strided(inputs, 4, 10)
            qy, qz = load_strided(inputs, 5, 10), load_strided(inputs, 6, 10)
            s0, s1, s2 = load_strided(inputs, 7, 10), load_strided(inputs, 8, 10), load_strided(inputs, 9, 10)
            # camera space
            x = dot3(w00, w01, w02, mx, my, mz) + t0
            y = dot3(w10, w11, w12, mx, my, mz) + t1
            z = dot3(w20, w21, w22, mx, my, mz) + t2
            visible = (z >= near) & (z <= far)
            inverse = one / vmax(vsqrt(dot3(qw, qx, qy, qw, qx, qy) + qz * qz), splat(1e-12))
            qw, qx = qw * inverse, qx * inverse
            qy, qz = qy * inverse, qz * inverse
            r00, r01, r02 = one - dot2(qy, qz, qy, qz) * 2.0, (qx * qy - qw * qz) * 2.0, dot2(qx, qw, qz, qy) * 2.0
            r10, r11, r12 = dot2(qx, qw, qy, qz) * 2.0, one - dot2(qx, qz, qx, qz) * 2.0, (qy * qz - qw * qx) * 2.0
            r20, r21, r22 = (qx * qz - qw * qy) * 2.0, dot2(qy, qw, qz, qx) * 2.0, one - dot2(qx, qy, qx, qy) * 2.0
            # columns of W R S
            g00, g01, g02 = (
                dot3(w00, w01, w02, r00, r10, r20) * s0,
                dot3(w00, w01, w02, r01, r11, r21) * s1,
                dot3(w00, w01, w02, r02, r12, r22) * s2,
            )
            g10, g11, g12 = (
                dot3(w10, w11, w12, r00, r10, r20) * s0,
                dot3(w10, w11, w12, r01, r11, r21) * s1,
                dot3(w10, w11, w12, r02, r12, r22) * s2,
            )
            g20, g21, g22 = (
                dot3(w20, w21, w22, r00, r10, r20) * s0,
                dot3(w20, w21, w22, r01, r11, r21) * s1,
                dot3(w20, w21, w22, r02, r12, r22) * s2,
            )
            rz = one / select(visible, z, one)
            ratio_x, ratio_y = x * rz, y * rz
            j0, j1 = fx * rz, fy * rz
            j02 = -(j0 * vmin(high_x, vmax(low_x, ratio_x)))
            j12 = -(j1 * vmin(high_y, vmax(low_y, ratio_y)))
            px0, px1, px2 = dot2(j0, j02, g00, g20), dot2(j0, j02, g01, g21), dot2(j0, j02, g02, g22)
            py0, py1, py2 = dot2(j1, j12, g10, g20), dot2(j1, j12, g11, g21), dot2(j1, j12, g12, g22)
            sxx = dot3(px0, px1, px2, px0, px1, px2)
            sxy = dot3(px0, px1, px2, py0, py1, py2)
            syy = dot3(py0, py1, py2, py0, py1, py2)
            c01, c02, c12 = px0 * py1 - px1 * py0, px0 * py2 - px2 * py0, px1 * py2 - px2 * py1
            sharp = dot3(c01, c02, c12, c01, c02, c12)  # determinant before the blur
            det = sharp + eps * (sxx + syy) + eps * eps
            sxx, syy = sxx + eps, syy + eps
            half = (sxx + syy) * 0.5
            radius = vceil(vsqrt(half + vsqrt(vmax(half * half - det, splat(0.01)))) * 3.0)
            u, v = fx * ratio_x + cx, fy * ratio_y + cy
            # a comparison with NaN is false, and an overflowing Gaussian has no finite radius: both are culled
            visible = visible & (det > zero) & (det < splat(3e38)) & (radius > clip) & (radius < splat(1e9))
            visible = visible & (u + radius > zero) & (u - radius < width)
            visible = visible & (v + radius > zero) & (v - radius < height)
            store_strided(outputs, 0, 8, select(visible, u, zero))
            store_strided(outputs, 1, 8, select(visible, v, zero))
            store_strided(outputs, 2, 8, select(visible, z, zero))
            store_strided(outputs, 3, 8, select(visible, syy / det, one))
            store_strided(outputs, 4, 8, select(visible, -(sxy / syy), zero))
            store_strided(outputs, 5, 8, select(visible, one / syy, one))
            store_strided(outputs, 6, 8, select(visible, radius, zero))
            store_strided(outputs, 7, 8, select(visible, vsqrt(sharp / det), zero))
            for i in range(count):
                g = start + i
                a, m, e = outputs[i, 3], outputs[i, 4], outputs[i, 5]
                means2d[g, 0], means2d[g, 1] = outputs[i, 0], outputs[i, 1]
                depths[g] = outputs[i, 2]
                geometry[g, 0], geometry[g, 1], geometry[g, 2] = a, m, e
                conics[g, 0], conics[g, 1], conics[g, 2] = a, a * m, a * m * m + e
                radii[g] = np.int32(outputs[i, 6])
                compensations[g] = outputs[i, 7]


@kernel
def project_backward(counter, pieces, means, quats, scales, view, camera, size, limits, radii, antialiased, v_means2d,
                     v_depths, v_geometry, v_compensations, v_means, v_quats, v_scales, v_view):  # fmt: skip
    """Adds to v_means, v_quats and v_scales; v_view[piece] receives the piece's share of the 3 x 4 view gradient."""
    n = means.shape[0]
    fx, fy = splat(camera[0]), splat(camera[1])
    cx, cy = splat(camera[2]), splat(camera[3])
    width, height = splat(size[0]), splat(size[1])
    eps = splat(limits[2])
    high_x = (width - cx) / fx + width / fx * 0.15
    low_x = -(cx / fx + width / fx * 0.15)
    high_y = (height - cy) / fy + height / fy * 0.15
    low_y = -(cy / fy + height / fy * 0.15)
    w00, w01 = splat(view[0, 0]), splat(view[0, 1])
    w02, t0 = splat(view[0, 2]), splat(view[0, 3])
    w10, w11 = splat(view[1, 0]), splat(view[1, 1])
    w12, t1 = splat(view[1, 2]), splat(view[1, 3])
    w20, w21 = splat(view[2, 0]), splat(view[2, 1])
    w22, t2 = splat(view[2, 2]), splat(view[2, 3])
    zero, one = splat(0.0), splat(1.0)
    inputs = np.zeros((LANES, IN_WIDTH), np.float32)
    grads = np.zeros((LANES, GRAD_WIDTH), np.float32)
    outputs = np.zeros((LANES, IN_WIDTH), np.float32)
    shares = np.zeros((12, LANES), np.float32)
    flags = np.zeros(LANES, np.float32)
    while True:
        piece = take_next(counter)
        if piece >= pieces:
            break
        for start in range(piece * CHUNK, min((piece + 1) * CHUNK, n), LANES):
            count = min(LANES, n - start)
            seen = 0
            for i in range(LANES):
                flags[i] = 0.0
                if i < count and radii[start + i] > 0:
                    flags[i] = 1.0
                    seen += 1
            if seen == 0:
                continue
            for i in range(LANES):
                g = start + min(i, count - 1)
                for j in range(3):
                    inputs[i, j] = means[g, j]
                    inputs[i, 7 + j] = scales[g, j]
                    grads[i, 3 + j] = v_geometry[g, j]
                for j in range(4):
                    inputs[i, 3 + j] = quats[g, j]
                grads[i, 0], grads[i, 1], grads[i, 2] = v_means2d[g, 0], v_means2d[g, 1], v_depths[g]
                grads[i, 6] = v_compensations[g] if antialiased else np.float32(0)
            visible = load_strided(flags, 0, 1) > zero
            mx, my, mz = load_strided(inputs, 0, 10), load_strided(inputs, 1, 10), load_strided(inputs, 2, 10)
            qw, qx = load_strided(inputs, 3, 10), load_strided(inputs, 4, 10)
            qy, qz = load_strided(inputs, 5, 10), load_strided(inputs, 6, 10)
            s0, s1, s2 = load_strided(inputs, 7, 10), load_strided(inputs, 8, 10), load_strided(inputs, 9, 10)
            v_u, v_v = load_strided(grads, 0, 7), load_strided(grads, 1, 7)
            v_depth, v_a = load_strided(grads, 2, 7), load_strided(grads, 3, 7)
            v_m, v_e = load_strided(grads, 4, 7), load_strided(grads, 5, 7)
            # the forward pass again
            x = dot3(w00, w01, w02, mx, my, mz) + t0
            y = dot3(w10, w11, w12, mx, my, mz) + t1
            z = dot3(w20, w21, w22, mx, my, mz) + t2
            inverse = one / vmax(vsqrt(dot3(qw, qx, qy, qw, qx, qy) + qz * qz), splat(1e-12))
            qw, qx = qw * inverse, qx * inverse
            qy, qz = qy * inverse, qz * inverse
            r00, r01, r02 = one - dot2(qy, qz, qy, qz) * 2.0, (qx * qy - qw * qz) * 2.0, dot2(qx, qw, qz, qy) * 2.0
            r10, r11, r12 = dot2(qx, qw, qy, qz) * 2.0, one - dot2(qx, qz, qx, qz) * 2.0, (qy * qz - qw * qx) * 2.0
            r20, r21, r22 = (qx * qz - qw * qy) * 2.0, dot2(qy, qw, qz, qx) * 2.0, one - dot2(qx, qy, qx, qy) * 2.0
            a00, a01 = dot3(w00, w01, w02, r00, r10, r20), dot3(w00, w01, w02, r01, r11, r21)
            a02 = dot3(w00, w01, w02, r02, r12, r22)
            a10, a11 = dot3(w10, w11, w12, r00, r10, r20), dot3(w10, w11, w12, r01, r11, r21)
            a12 = dot3(w10, w11, w12, r02, r12, r22)
            a20, a21 = dot3(w20, w21, w22, r00, r10, r20), dot3(w20, w21, w22, r01, r11, r21)
            a22 = dot3(w20, w21, w22, r02, r12, r22)
            g00, g01, g02 = a00 * s0, a01 * s1, a02 * s2
            g10, g11, g12 = a10 * s0, a11 * s1, a12 * s2
            g20, g21, g22 = a20 * s0, a21 * s1, a22 * s2
            rz = one / select(visible, z, one)
            ratio_x, ratio_y = x * rz, y * rz
            tx, ty = vmin(high_x, vmax(low_x, ratio_x)), vmin(high_y, vmax(low_y, ratio_y))
            inside_x = (ratio_x <= high_x) & (ratio_x >= low_x)
            inside_y = (ratio_y <= high_y) & (ratio_y >= low_y)
            j0, j1 = fx * rz, fy * rz
            j02, j12 = -(j0 * tx), -(j1 * ty)
            px0, px1, px2 = dot2(j0, j02, g00, g20), dot2(j0, j02, g01, g21), dot2(j0, j02, g02, g22)
            py0, py1, py2 = dot2(j1, j12, g10, g20), dot2(j1, j12, g11, g21), dot2(j1, j12, g12, g22)
            sxx0 = dot3(px0, px1, px2, px0, px1, px2)
            sxy = dot3(px0, px1, px2, py0, py1, py2)
            syy0 = dot3(py0, py1, py2, py0, py1, py2)
            c01, c02, c12 = px0 * py1 - px1 * py0, px0 * py2 - px2 * py0, px1 * py2 - px2 * py1
            sharp = dot3(c01, c02, c12, c01, c02, c12)
            det = sharp + eps * (sxx0 + syy0) + eps * eps
            sxx, syy = sxx0 + eps, syy0 + eps
            a, m, e = syy / det, -(sxy / syy), one / syy
            # (a, m, e) to the covariance
            pull = a * a * v_a
            v_sxx = -pull
            v_sxy = -(pull * m * 2.0) - e * v_m
            v_syy = -(pull * m * m) - m * e * v_m - e * e * v_e
            if antialiased:
                share = sharp / det
                v_share = load_strided(grads, 6, 7) * 0.5 / (vsqrt(share) + 1e-6) / det
                v_sxx = v_sxx + v_share * (syy0 - share * syy)
                v_syy = v_syy + v_share * (sxx0 - share * sxx)
                v_sxy = v_sxy - v_share * (one - share) * sxy * 2.0
            # to Q
            vx0, vx1, vx2 = (
                v_sxx * px0 * 2.0 + v_sxy * py0,
                v_sxx * px1 * 2.0 + v_sxy * py1,
                v_sxx * px2 * 2.0 + v_sxy * py2,
            )
            vy0, vy1, vy2 = (
                v_syy * py0 * 2.0 + v_sxy * px0,
                v_syy * py1 * 2.0 + v_sxy * px1,
                v_syy * py2 * 2.0 + v_sxy * px2,
            )
            # to the Jacobian and the camera-space centre
            v_j0 = dot3(vx0, vx1, vx2, g00, g01, g02)
            v_j1 = dot3(vy0, vy1, vy2, g10, g11, g12)
            v_j02 = dot3(vx0, vx1, vx2, g20, g21, g22)
            v_j12 = dot3(vy0, vy1, vy2, g20, g21, g22)
            v_x = j0 * v_u - select(inside_x, j0 * rz * v_j02, zero)
            v_y = j1 * v_v - select(inside_y, j1 * rz * v_j12, zero)
            once_or_twice_x = select(inside_x, tx * 2.0, tx)
            once_or_twice_y = select(inside_y, ty * 2.0, ty)
            v_z = (
                v_depth
                - (j0 * ratio_x * v_u + j1 * ratio_y * v_v)
                - dot2(j0, j1, v_j0, v_j1) * rz
                + (j0 * once_or_twice_x * v_j02 + j1 * once_or_twice_y * v_j12) * rz
            )
            # to W R S
            vg00, vg01, vg02 = j0 * vx0, j0 * vx1, j0 * vx2
            vg10, vg11, vg12 = j1 * vy0, j1 * vy1, j1 * vy2
            vg20, vg21, vg22 = dot2(j02, j12, vx0, vy0), dot2(j02, j12, vx1, vy1), dot2(j02, j12, vx2, vy2)
            v_s0 = dot3(vg00, vg10, vg20, a00, a10, a20)
            v_s1 = dot3(vg01, vg11, vg21, a01, a11, a21)
            v_s2 = dot3(vg02, vg12, vg22, a02, a12, a22)
            va00, va10, va20 = vg00 * s0, vg10 * s0, vg20 * s0
            va01, va11, va21 = vg01 * s1, vg11 * s1, vg21 * s1
            va02, va12, va22 = vg02 * s2, vg12 * s2, vg22 * s2
            # v_R = W^T v_A
            o00, o01 = dot3(w00, w10, w20, va00, va10, va20), dot3(w00, w10, w20, va01, va11, va21)
            o02 = dot3(w00, w10, w20, va02, va12, va22)
            o10, o11 = dot3(w01, w11, w21, va00, va10, va20), dot3(w01, w11, w21, va01, va11, va21)
            o12 = dot3(w01, w11, w21, va02, va12, va22)
            o20, o21 = dot3(w02, w12, w22, va00, va10, va20), dot3(w02, w12, w22, va01, va11, va21)
            o22 = dot3(w02, w12, w22, va02, va12, va22)
            v_qw = (qx * (o21 - o12) + qy * (o02 - o20) + qz * (o10 - o01)) * 2.0
            v_qx = (qy * (o01 + o10) + qz * (o02 + o20) + qw * (o21 - o12) - qx * (o11 + o22) * 2.0) * 2.0
            v_qy = (qx * (o01 + o10) + qz * (o12 + o21) + qw * (o02 - o20) - qy * (o00 + o22) * 2.0) * 2.0
            v_qz = (qx * (o02 + o20) + qy * (o12 + o21) + qw * (o10 - o01) - qz * (o00 + o11) * 2.0) * 2.0
            along = dot3(v_qw, v_qx, v_qy, qw, qx, qy) + v_qz * qz
            store_strided(outputs, 0, 10, dot3(w00, w10, w20, v_x, v_y, v_z))
            store_strided(outputs, 1, 10, dot3(w01, w11, w21, v_x, v_y, v_z))
            store_strided(outputs, 2, 10, dot3(w02, w12, w22, v_x, v_y, v_z))
            store_strided(outputs, 3, 10, (v_qw - along * qw) * inverse)
            store_strided(outputs, 4, 10, (v_qx - along * qx) * inverse)
            store_strided(outputs, 5, 10, (v_qy - along * qy) * inverse)
            store_strided(outputs, 6, 10, (v_qz - along * qz) * inverse)
            store_strided(outputs, 7, 10, v_s0)
            store_strided(outputs, 8, 10, v_s1)
            store_strided(outputs, 9, 10, v_s2)
            for i in range(count):
                if flags[i] > 0:
                    g = start + i
                    for j in range(3):
                        v_means[g, j] += outputs[i, j]
                        v_scales[g, j] += outputs[i, 7 + j]
                    for j in range(4):
                        v_quats[g, j] += outputs[i, 3 + j]
            if v_view.shape[0] > 0:
                store(shares, 0, dot3(va00, va01, va02, r00, r01, r02) + v_x * mx)
                store(shares, 16, dot3(va00, va01, va02, r10, r11, r12) + v_x * my)
                store(shares, 32, dot3(va00, va01, va02, r20, r21, r22) + v_x * mz)
                store(shares, 48, v_x)
                store(shares, 64, dot3(va10, va11, va12, r00, r01, r02) + v_y * mx)
                store(shares, 80, dot3(va10, va11, va12, r10, r11, r12) + v_y * my)
                store(shares, 96, dot3(va10, va11, va12, r20, r21, r22) + v_y * mz)
                store(shares, 112, v_y)
                store(shares, 128, dot3(va20, va21, va22, r00, r01, r02) + v_z * mx)
                store(shares, 144, dot3(va20, va21, va22, r10, r11, r12) + v_z * my)
                store(shares, 160, dot3(va20, va21, va22, r20, r21, r22) + v_z * mz)
                store(shares, 176, v_z)
                for j in range(12):
                    for i in range(count):
                        if flags[i] > 0:
                            v_view[piece, j // 4, j % 4] += shares[j, i]
