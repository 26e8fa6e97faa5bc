"""Real spherical harmonics in the order and sign of Gaussian splatting, and how they turn."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

C0 = 0.28209479177387814
"""Of degree 0: a colour is 1/2 + C0 * coefficient."""


def band(degree: int, directions: Float[np.ndarray, "N 3"]) -> Float[np.ndarray, "N M"]:
    """The 2 * degree + 1 functions of one degree (0 to 4) at unit directions, as gsplat evaluates them.

    Polynomials from Sloan, "Efficient Spherical Harmonic Evaluation" (JCGT 2013), order m = -l..l.
    """
    x, y, z = np.asarray(directions, np.float64).T
    if degree == 0:
        columns = [np.full_like(x, C0)]
    elif degree == 1:
        columns = [c * v for c, v in ((-0.48860251190292, y), (0.48860251190292, z), (-0.48860251190292, x))]
    elif degree == 2:
        columns = [
            1.092548430592079 * x * y,
            -1.092548430592079 * y * z,
            0.9461746957575601 * z * z - 0.3153915652525201,
            -1.092548430592079 * x * z,
            0.5462742152960395 * (x * x - y * y),
        ]
    elif degree == 3:
        near = -2.285228997322329 * z * z + 0.4570457994644658
        columns = [
            -0.5900435899266435 * y * (3 * x * x - y * y),
            1.445305721320277 * z * 2 * x * y,
            near * y,
            z * (1.865881662950577 * z * z - 1.119528997770346),
            near * x,
            1.445305721320277 * z * (x * x - y * y),
            -0.5900435899266435 * x * (x * x - 3 * y * y),
        ]
    elif degree == 4:
        c1, s1 = x * x - y * y, 2 * x * y
        c2, s2 = x * c1 - y * s1, x * s1 + y * c1
        c3, s3 = x * c2 - y * s2, x * s2 + y * c2
        d = z * (-4.683325804901025 * z * z + 2.007139630671868)
        c = 3.31161143515146 * z * z - 0.47308734787878
        e = 1.984313483298443 * z * z * (1.865881662950577 * z * z - 1.119528997770346)
        columns = [
            0.6258357354491763 * s3,
            -1.770130769779931 * z * s2,
            c * s1,
            d * y,
            e - 1.006230589874905 * (0.9461746957575601 * z * z - 0.3153915652525201),
            d * x,
            c * c1,
            -1.770130769779931 * z * c2,
            0.6258357354491763 * c3,
        ]
    else:
        raise ValueError(f"degree {degree} is not supported (0 to 4)")
    return np.stack(columns, axis=-1)


def rotation_of_band(degree: int, rotation: Float[np.ndarray, "3 3"]) -> Float[np.ndarray, "M M"]:
    """How coefficients of one degree change when what they describe is rotated: c' = matrix @ c.

    Solved from the definition (the rotated function at a direction is the function at the direction turned back) at
    more directions than there are functions; exact, since a degree's functions are closed under rotation.
    """
    count = 4 * (2 * degree + 1)
    # Fibonacci directions: spread over the sphere, the same every time.
    k = np.arange(count) + 0.5
    z, angle = 1 - 2 * k / count, np.pi * (1 + 5**0.5) * k
    radius = np.sqrt(1 - z * z)
    directions = np.stack([radius * np.cos(angle), radius * np.sin(angle), z], axis=-1)
    return np.linalg.lstsq(band(degree, directions), band(degree, directions @ rotation), rcond=None)[0]


def rotate_rest(coefficients: Float[Tensor, "N K 3"], rotation: Float[np.ndarray, "3 3"]) -> Float[Tensor, "N K 3"]:
    """Coefficients of the degrees from 1 on (K = 0, 3, 8, 15 or 24) after a rotation; a copy.

    Raises:
        ValueError: K is no complete number of degrees.
    """
    result, start, degree = coefficients.clone(), 0, 1
    while start < coefficients.shape[1]:
        end = start + 2 * degree + 1
        if end > coefficients.shape[1]:
            raise ValueError(f"{coefficients.shape[1]} coefficients are no complete degrees of spherical harmonics")
        matrix = torch.from_numpy(rotation_of_band(degree, rotation)).to(coefficients)
        result[:, start:end] = torch.einsum("ij,njc->nic", matrix, coefficients[:, start:end])
        start, degree = end, degree + 1
    return result
