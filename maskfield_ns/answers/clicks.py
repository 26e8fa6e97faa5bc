"""What is under a pixel of a view: the one rule for clicks of viewer and API."""

from __future__ import annotations

from jaxtyping import Bool, Int
from torch import Tensor

from maskfield_ns.answers.assignments import PixelAssignments

SURE = 0.5
"""A query holds a pixel for sure that belongs to it by more than this."""
LEAST = 0.25
"""A pixel that belongs to no query by more than this shows nothing that was learnt."""


def query_at(
    view: PixelAssignments, row: int, column: int, levels: Int[Tensor, " Q"], valid: Bool[Tensor, " Q"]
) -> tuple[int, float]:
    """The query under a pixel and how much the pixel belongs to it, in [0, 1]; (-1, 0) where nothing is.

    The coarsest level that holds the pixel for sure decides; where none does, the query that holds it most. On trained
    scenes this is nearly the best of all levels, and better than joining queries of like meaning around the pixel.

    Args:
        view: what its pixels belong to.
        row, column: of the pixel.
        levels: level of every query, -1 for none.
        valid: queries that count.
    """
    shares = view.shares_at(row, column, len(valid)).to(valid.device) * valid
    for level in sorted(set(levels[valid].tolist()), reverse=True):
        own = shares * (levels == level)
        if own.max() > SURE:
            return int(own.argmax()), float(own.max())
    return (int(shares.argmax()), float(shares.max())) if shares.max() >= LEAST else (-1, 0.0)
