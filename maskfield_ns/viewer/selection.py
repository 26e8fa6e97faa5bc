"""What a user has selected in the viewer: weights of the scene's queries, and the pixels of a view they claim."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from maskfield_ns.answers.assignments import Memberships
from maskfield_ns.answers.decision import DecisionRule

_NOTHING = 0.02
"""Weights below this are left out."""


@dataclass(frozen=True)
class Selection:
    """Things chosen by the user; replaced as a whole, never changed.

    A place is selected where the expected weight of what it belongs to is at least 1 (levels pooled as in
    :func:`maskfield_ns.answers.decision.heat_map`).
    """

    weights: tuple[tuple[int, float], ...] = ()
    """(query of the head, weight), by ascending query; 2 makes a place selected that belongs to it by half."""
    name: str = ""
    """What the user called it, or how it came about."""

    @classmethod
    def of(cls, queries: Iterable[int], name: str = "") -> Selection:
        """Some queries as they are."""
        return cls(tuple((query, 2.0) for query in sorted(set(queries))), name)

    @classmethod
    def answering(cls, scores: Float[Tensor, " Q"], rule: DecisionRule, name: str = "") -> Selection:
        """What is outlined as the answer to a phrase that is found (as in :func:`.decision.phrase_masks`)."""
        weights = (scores / (rule.mask_share * scores.max().clamp(min=1e-6))).tolist()
        return cls(tuple((query, weight) for query, weight in enumerate(weights) if weight > _NOTHING), name)

    @property
    def queries(self) -> tuple[int, ...]:
        """Queries that are selected as a whole."""
        return tuple(query for query, weight in self.weights if weight >= 1)

    def __bool__(self) -> bool:
        return bool(self.queries)

    def union(self, other: Selection) -> Selection:
        """Both."""
        weights = dict(self.weights)
        for query, weight in other.weights:
            weights[query] = max(weight, weights.get(query, 0.0))
        names = [name for name in (self.name, other.name) if name]
        return Selection(tuple(sorted(weights.items())), " + ".join(dict.fromkeys(names)))

    def minus(self, other: Selection) -> Selection:
        """This without the other."""
        gone = set(other.queries)
        left = Selection(tuple((query, weight) for query, weight in self.weights if query not in gone), self.name)
        return left if left else Selection()


def selection_mask(view: Memberships, selection: Selection, model: Any) -> Bool[Tensor, "H W"]:
    """Pixels of a view that belong to a selection; a selection of one level only is a matter of that level."""
    head = model.query_head
    weights = torch.zeros(1, head.num_queries, device=head.levels.device)
    for query, weight in selection.weights:
        weights[0, query] = weight
    levels = set(head.levels[weights[0] > 0].tolist())
    level = next(iter(levels)) if len(levels) == 1 else None
    return view.heat(weights, model.config.decision, None if level == -1 else level)[0] >= 1
