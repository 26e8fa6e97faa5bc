"""Regions of a view as questions, and answers made larger, smaller or repeated; pure functions on queries."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from maskfield_ns.answers.assignments import PixelAssignments
from maskfield_ns.answers.image_queries import likeness

ALIKE = 0.4
"""Likeness from which queries mean the same object. Best of 0.33 to 0.73 on two rendered scenes."""
_WITHIN = 0.5
"""A query lies in another one, or in a region, when more than this share of it does."""


def queries_of_region(
    view: PixelAssignments, region: Bool[Tensor, "H W"], valid: Bool[Tensor, " Q"]
) -> tuple[Bool[Tensor, " Q"], float]:
    """The queries that a region of a view (a mask, a box) shows, and how well they fill it (IoU in [0, 1]).

    Either the one query whose visible part is most like the region, or all those that lie mostly in it, whichever
    is more like it.
    """
    everywhere, here = view.areas(len(valid)), view.areas(len(valid), region)
    counts = valid.cpu() & (here > 0)
    result = torch.zeros_like(valid)
    if not counts.any():
        return result, 0.0
    area = float(region.sum())
    alone = torch.where(counts, here / (everywhere + area - here), torch.zeros_like(here))
    best = int(alone.argmax())
    within = (here > _WITHIN * everywhere) & counts
    covered = torch.zeros(region.numel(), dtype=torch.bool)
    for part in view.by_level:
        covered |= ((part.best_share > 0.5) & within.to(part.best.device)[part.best.long()]).cpu()
    inside = float((covered & region.flatten().cpu()).sum())
    together = inside / max(float(covered.sum()) + area - inside, 1.0)
    if together > float(alone[best]):
        return within.to(valid.device), together
    result[best] = True
    return result, float(alone[best])


def alike(embeddings: Float[Tensor, "Q C"], valid: Bool[Tensor, " Q"], queries: Sequence[int]) -> Bool[Tensor, " Q"]:
    """All queries that look like some queries, those included: "this and everything like it"."""
    chosen = list(queries)
    example = torch.nn.functional.normalize(embeddings[chosen].float(), dim=-1).mean(0)
    result = (likeness(embeddings, valid, example[None])[0] >= ALIKE) & valid
    result[chosen] = True
    return result


def larger(owners: Int[np.ndarray, "P L"], mass: Float[np.ndarray, " P"], queries: Sequence[int]) -> tuple[int, ...]:
    """The smallest query that holds most of some queries, of a coarser level; the queries themselves if there is none.

    Args:
        owners: query per point and level, fine to coarse, -1 for none.
        mass: of each point.
        queries: what is to grow.
    """
    own = np.isin(owners, list(queries)).any(axis=1)
    total = float(mass[own].sum())
    level = max((k for k in range(owners.shape[1]) if np.isin(owners[:, k], list(queries)).any()), default=-1)
    for k in range(level + 1, owners.shape[1]):
        column = owners[:, k]
        counts = np.bincount(column[own & (column >= 0)], mass[own & (column >= 0)], minlength=1)
        best = int(counts.argmax())
        if total > 0 and counts[best] > _WITHIN * total and mass[column == best].sum() > 1.05 * total:
            return (best,)
    return tuple(queries)


def smaller(
    owners: Int[np.ndarray, "P L"],
    mass: Float[np.ndarray, " P"],
    queries: Sequence[int],
    distance: Float[np.ndarray, " P"] | None = None,
) -> tuple[int, ...]:
    """The largest query of a finer level that lies in some queries; the queries themselves if there is none.

    Args:
        owners, mass: as for :func:`larger`.
        queries: what is to shrink.
        distance: of each point from the place that was pointed at: the query of the nearest point is meant.
    """
    own = np.isin(owners, list(queries)).any(axis=1)
    level = min((k for k in range(owners.shape[1]) if np.isin(owners[:, k], list(queries)).any()), default=0)
    for k in range(level - 1, -1, -1):
        column = owners[:, k]
        inside = own & (column >= 0)
        parts = [
            int(query)
            for query in np.unique(column[inside])
            if mass[inside & (column == query)].sum() > _WITHIN * mass[column == query].sum()
            and mass[column == query].sum() < 0.95 * mass[own].sum()
        ]
        if not parts:
            continue
        if distance is not None:
            near = np.isin(column, parts)
            return (int(column[near][distance[near].argmin()]),)
        return (max(parts, key=lambda query: float(mass[column == query].sum())),)
    return tuple(queries)
