"""Real spherical harmonics with the signs of 3D Gaussian splatting, as polynomials of a unit direction."""

import numpy as np

from maskfield_ns.splatting.compiling import kernel
from maskfield_ns.splatting.simd import take_next

CHUNK = 1024
F = np.float32
HALF, ONE, TWO, THREE, FOUR, FIVE, SEVEN = F(0.5), F(1), F(2), F(3), F(4), F(5), F(7)
# normalisation constants, by degree and order
A0 = F(0.28209479177387814)
A1 = F(0.4886025119029199)
A20, A21, A22 = F(0.31539156525252005), F(1.0925484305920792), F(0.5462742152960396)
A30, A31, A32, A33 = F(0.3731763325901154), F(0.4570457994644658), F(1.445305721320277), F(0.5900435899266435)
A40, A41, A42 = F(0.10578554691520431), F(0.6690465435572892), F(0.47308734787878004)
A43, A44 = F(1.7701307697799304), F(0.6258357354491761)


@kernel
def basis(x, y, z, degree, out):
    """out[: (degree + 1)^2]: the basis functions at (x, y, z)."""
    out[0] = A0
    if degree > 0:
        out[1], out[2], out[3] = -A1 * y, A1 * z, -A1 * x
    if degree > 1:
        xx, yy, zz = x * x, y * y, z * z
        out[4], out[5], out[6] = A21 * x * y, -A21 * y * z, A20 * (THREE * zz - ONE)
        out[7], out[8] = -A21 * x * z, A22 * (xx - yy)
        if degree > 2:
            out[9], out[10] = -A33 * y * (THREE * xx - yy), TWO * A32 * x * y * z
            out[11], out[12] = -A31 * y * (FIVE * zz - ONE), A30 * z * (FIVE * zz - THREE)
            out[13], out[14] = -A31 * x * (FIVE * zz - ONE), A32 * z * (xx - yy)
            out[15] = -A33 * x * (xx - THREE * yy)
        if degree > 3:
            out[16], out[17] = FOUR * A44 * x * y * (xx - yy), -A43 * y * z * (THREE * xx - yy)
            out[18], out[19] = TWO * A42 * x * y * (SEVEN * zz - ONE), -A41 * y * z * (SEVEN * zz - THREE)
            out[20] = A40 * (F(35) * zz * zz - F(30) * zz + THREE)
            out[21], out[22] = -A41 * x * z * (SEVEN * zz - THREE), A42 * (xx - yy) * (SEVEN * zz - ONE)
            out[23] = -A43 * x * z * (xx - THREE * yy)
            out[24] = A44 * (xx * (xx - THREE * yy) - yy * (THREE * xx - yy))


@kernel
def basis_gradient(x, y, z, degree, out):
    """out[: (degree + 1)^2, 3]: derivatives of those polynomials by x, y and z."""
    out[:] = 0
    if degree > 0:
        out[1, 1], out[2, 2], out[3, 0] = -A1, A1, -A1
    if degree > 1:
        xx, yy, zz = x * x, y * y, z * z
        out[4, 0], out[4, 1] = A21 * y, A21 * x
        out[5, 1], out[5, 2] = -A21 * z, -A21 * y
        out[6, 2] = F(6) * A20 * z
        out[7, 0], out[7, 2] = -A21 * z, -A21 * x
        out[8, 0], out[8, 1] = TWO * A22 * x, -TWO * A22 * y
        if degree > 2:
            out[9, 0], out[9, 1] = -F(6) * A33 * x * y, -THREE * A33 * (xx - yy)
            out[10, 0], out[10, 1], out[10, 2] = TWO * A32 * y * z, TWO * A32 * x * z, TWO * A32 * x * y
            out[11, 1], out[11, 2] = -A31 * (FIVE * zz - ONE), -F(10) * A31 * y * z
            out[12, 2] = THREE * A30 * (FIVE * zz - ONE)
            out[13, 0], out[13, 2] = -A31 * (FIVE * zz - ONE), -F(10) * A31 * x * z
            out[14, 0], out[14, 1], out[14, 2] = TWO * A32 * x * z, -TWO * A32 * y * z, A32 * (xx - yy)
            out[15, 0], out[15, 1] = -THREE * A33 * (xx - yy), F(6) * A33 * x * y
        if degree > 3:
            out[16, 0], out[16, 1] = FOUR * A44 * y * (THREE * xx - yy), FOUR * A44 * x * (xx - THREE * yy)
            out[17, 0], out[17, 1] = -F(6) * A43 * x * y * z, -THREE * A43 * z * (xx - yy)
            out[17, 2] = -A43 * y * (THREE * xx - yy)
            out[18, 0], out[18, 1] = TWO * A42 * y * (SEVEN * zz - ONE), TWO * A42 * x * (SEVEN * zz - ONE)
            out[18, 2] = F(28) * A42 * x * y * z
            out[19, 1], out[19, 2] = -A41 * z * (SEVEN * zz - THREE), -A41 * y * (F(21) * zz - THREE)
            out[20, 2] = A40 * z * (F(140) * zz - F(60))
            out[21, 0], out[21, 2] = -A41 * z * (SEVEN * zz - THREE), -A41 * x * (F(21) * zz - THREE)
            out[22, 0], out[22, 1] = TWO * A42 * x * (SEVEN * zz - ONE), -TWO * A42 * y * (SEVEN * zz - ONE)
            out[22, 2] = F(14) * A42 * z * (xx - yy)
            out[23, 0], out[23, 1] = -THREE * A43 * z * (xx - yy), F(6) * A43 * x * y * z
            out[23, 2] = -A43 * x * (xx - THREE * yy)
            out[24, 0], out[24, 1] = FOUR * A44 * x * (xx - THREE * yy), FOUR * A44 * y * (yy - THREE * xx)


@kernel
def sh_colors(counter, pieces, means, coefficients, centre, radii, degree, colors):
    """colors [N, 3] of the Gaussians with a radius; coefficients [N, K, 3]."""
    n = means.shape[0]
    used = (degree + 1) ** 2
    values = np.zeros(25, np.float32)
    while True:
        piece = take_next(counter)
        if piece >= pieces:
            break
        for g in range(piece * CHUNK, min((piece + 1) * CHUNK, n)):
            if radii[g] <= 0:
                continue
            x, y, z = means[g, 0] - centre[0], means[g, 1] - centre[1], means[g, 2] - centre[2]
            inverse = ONE / max(np.sqrt(x * x + y * y + z * z), F(1e-12))
            basis(x * inverse, y * inverse, z * inverse, degree, values)
            red, green, blue = HALF, HALF, HALF
            for k in range(used):
                red += values[k] * coefficients[g, k, 0]
                green += values[k] * coefficients[g, k, 1]
                blue += values[k] * coefficients[g, k, 2]
            colors[g, 0], colors[g, 1], colors[g, 2] = max(red, F(0)), max(green, F(0)), max(blue, F(0))


@kernel
def sh_colors_backward(counter, pieces, means, coefficients, centre, radii, degree, colors, v_colors, v_means,
                       v_coefficients, v_centre):  # fmt: skip
    """Adds to v_means and v_coefficients; v_centre[piece] receives minus the camera centre's gradient."""
    n = means.shape[0]
    used = (degree + 1) ** 2
    values = np.zeros(25, np.float32)
    slopes = np.zeros((25, 3), np.float32)
    while True:
        piece = take_next(counter)
        if piece >= pieces:
            break
        for g in range(piece * CHUNK, min((piece + 1) * CHUNK, n)):
            if radii[g] <= 0:
                continue
            # a colour clamped to 0 passes no gradient
            red = v_colors[g, 0] if colors[g, 0] > 0 else F(0)
            green = v_colors[g, 1] if colors[g, 1] > 0 else F(0)
            blue = v_colors[g, 2] if colors[g, 2] > 0 else F(0)
            x, y, z = means[g, 0] - centre[0], means[g, 1] - centre[1], means[g, 2] - centre[2]
            inverse = ONE / max(np.sqrt(x * x + y * y + z * z), F(1e-12))
            x, y, z = x * inverse, y * inverse, z * inverse
            basis(x, y, z, degree, values)
            basis_gradient(x, y, z, degree, slopes)
            vx, vy, vz = F(0), F(0), F(0)
            for k in range(used):
                pull = red * coefficients[g, k, 0] + green * coefficients[g, k, 1] + blue * coefficients[g, k, 2]
                vx += pull * slopes[k, 0]
                vy += pull * slopes[k, 1]
                vz += pull * slopes[k, 2]
                v_coefficients[g, k, 0] += values[k] * red
                v_coefficients[g, k, 1] += values[k] * green
                v_coefficients[g, k, 2] += values[k] * blue
            along = vx * x + vy * y + vz * z
            vx, vy, vz = (vx - along * x) * inverse, (vy - along * y) * inverse, (vz - along * z) * inverse
            v_means[g, 0] += vx
            v_means[g, 1] += vy
            v_means[g, 2] += vz
            v_centre[piece, 0] += vx
            v_centre[piece, 1] += vy
            v_centre[piece, 2] += vz
