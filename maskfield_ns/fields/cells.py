"""Cells of the unit cube that a scene is contracted into."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor


def cell_index(cube: Float[Tensor, "*batch 3"], resolution: int) -> Int[Tensor, "*batch"]:
    """Index of the cell that holds each point of the unit cube, cut into resolution^3 cells."""
    index = (cube * resolution).long().clamp(0, resolution - 1)
    return (index[..., 0] * resolution + index[..., 1]) * resolution + index[..., 2]
