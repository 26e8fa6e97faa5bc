"""What is under a pixel of a view: the one rule for clicks of viewer and API."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from maskfield_ns.answers.assignments import PixelAssignments
from maskfield_ns.answers.decision import DecisionRule
from maskfield_ns.answers.image_queries import likeness
from maskfield_ns.answers.prompts import ALIKE

SURE = 0.5
"""A query holds a pixel for sure that belongs to it by more than this."""
LEAST = 0.25
"""A pixel that belongs to no query by more than this shows nothing that was learnt."""


def object_at(
    view: PixelAssignments,
    row: int,
    column: int,
    embeddings: Float[Tensor, "Q C"],
    valid: Bool[Tensor, " Q"],
    rule: DecisionRule,
) -> Bool[Tensor, " Q"]:
    """The queries of the object under a pixel; none where nothing is.

    Levels often cut an object differently. So: what the pixel may belong to has a meaning (the mean of the queries'
    embeddings by share); the queries of like meaning are taken together; the connected part of their mask under the
    pixel is the object, and queries that lie mostly in it are its own.
    """
    unit = F.normalize(embeddings.float(), dim=-1)
    meaning = (view.shares_at(row, column, len(valid)).to(unit) * valid) @ unit
    if not meaning.any():
        return torch.zeros_like(valid)
    alike = (likeness(embeddings, valid, meaning[None])[0] >= ALIKE) & valid
    mask = connected_part(view.heat(alike[None].float(), rule)[0] > SURE, row, column)
    everywhere, here = view.areas(len(valid)), view.areas(len(valid), mask)
    return (here > 0.5 * everywhere).to(valid.device) & alike


def connected_part(mask: Bool[Tensor, "H W"], row: int, column: int) -> Bool[Tensor, "H W"]:
    """The pixels of a mask that are connected (by edges) to one of them; none where that pixel is outside."""
    from scipy import ndimage

    if not mask[row, column]:
        return torch.zeros_like(mask)
    labelled: Any = ndimage.label(mask.cpu().numpy())
    parts = labelled[0]
    return torch.from_numpy(parts == parts[row, column]).to(mask.device)


def query_at(
    view: PixelAssignments, row: int, column: int, levels: Int[Tensor, " Q"], valid: Bool[Tensor, " Q"]
) -> tuple[int, float]:
    """The query under a pixel and how much the pixel belongs to it, in [0, 1]; (-1, 0) where nothing is.

    The coarsest level that holds the pixel for sure decides; where none does, the query that holds it most.

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
