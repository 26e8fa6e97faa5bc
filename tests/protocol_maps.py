"""Maps and labels that trip evaluators up: empty, full, tied, absent, one pixel, at the border; drawn from a seed."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

SEEDS = st.integers(0, 2**31)
SIZES = st.tuples(st.integers(2, 40), st.integers(2, 40))
MAPS = ("random", "constant 0", "constant 1", "tied", "one pixel", "border", "blob", "last row")
MASKS = ("random", "empty", "full", "one pixel", "border", "blob", "last row")


def relevancy(rng: np.random.Generator, kind: str, size: tuple[int, int]) -> np.ndarray:
    """float32 [H, W] in 0..1."""
    if kind == "random":
        return rng.random(size, dtype=np.float32)
    if kind == "constant 0":
        return np.zeros(size, np.float32)
    if kind == "constant 1":
        return np.ones(size, np.float32)
    if kind == "tied":
        return (rng.integers(0, 3, size) / 2).astype(np.float32)
    return np.where(mask(rng, kind, size), np.float32(0.9), np.float32(0.1))


def mask(rng: np.random.Generator, kind: str, size: tuple[int, int]) -> np.ndarray:
    """bool [H, W]."""
    height, width = size
    result = np.zeros(size, bool)
    if kind == "random":
        return rng.random(size) < rng.choice([0.1, 0.5, 0.9])
    if kind == "full":
        result[:] = True
    elif kind == "one pixel":
        result[rng.integers(height), rng.integers(width)] = True
    elif kind == "border":
        result[0], result[-1], result[:, 0], result[:, -1] = True, True, True, True
    elif kind == "last row":
        result[-1] = True
    elif kind == "blob":
        top, left = rng.integers(height), rng.integers(width)
        result[top : top + 1 + rng.integers(height), left : left + 1 + rng.integers(width)] = True
    return result
