"""Distinct colors for instances and classes."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor


def palette(count: int, device: torch.device) -> Float[Tensor, "N 3"]:
    """Distinct colours in 0..1, the same as in all pictures of this package."""
    return torch.from_numpy(colour_table(count).astype(np.float32) / 255).to(device)


UNLABELLED_COLOUR = (45, 45, 45)
"""Darker than any colour of :func:`colour_table`."""


def colour_table(count: int) -> UInt8[np.ndarray, "N 3"]:
    """Distinct sRGB colours, always the same ones: a longer table starts with the shorter one.

    Each colour is the one farthest, in CIELAB, from all before it. Past 256 the colours repeat.
    """
    return _all_colours()[np.arange(count) % 256]


@lru_cache(maxsize=1)
def _all_colours() -> UInt8[np.ndarray, "256 3"]:
    steps = np.linspace(0, 255, 16).round().astype(np.uint8)
    candidates = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(-1, 3)
    lab = _lab(candidates)
    chroma = np.hypot(lab[:, 1], lab[:, 2])
    # Neither near black (the unlabelled grey), near white (the page), grey (unpainted) nor glaring over large areas.
    usable = (lab[:, 0] > 38) & (lab[:, 0] < 90) & (chroma > 22) & (chroma < 90)
    candidates, lab = candidates[usable], lab[usable]
    chosen = [int(np.abs(lab - _lab(np.array([[230, 60, 50]], np.uint8))).sum(axis=1).argmin())]
    taken = np.stack([lab[chosen[0]], _lab(np.array([UNLABELLED_COLOUR], np.uint8))[0]])
    distance = np.linalg.norm(lab[:, None] - taken, axis=2).min(axis=1)
    while len(chosen) < 256:
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, np.linalg.norm(lab - lab[chosen[-1]], axis=1))
    table = candidates[chosen]
    table.flags.writeable = False
    return table


def _lab(rgb: UInt8[np.ndarray, "N 3"]) -> Float[np.ndarray, "N 3"]:
    """sRGB (IEC 61966-2-1, D65) to CIELAB (CIE 1976)."""
    value = rgb.astype(np.float64) / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    relative = linear @ to_xyz.T / to_xyz.sum(axis=1)  # the white point is the sum of the primaries
    root = np.where(relative > (6 / 29) ** 3, np.cbrt(relative), relative / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = root.T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=1)
