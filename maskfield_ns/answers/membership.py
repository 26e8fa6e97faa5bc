"""Which mask features belong to what was asked for: one rule for the pixels of a view and for points in 3D."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from maskfield_ns.answers import decision
from maskfield_ns.answers.assignments import PixelAssignments
from maskfield_ns.answers.decision import DecisionRule
from maskfield_ns.errors import EditError
from maskfield_ns.systems.query_head import QueryHead

_CHUNK = 1 << 15
"""Feature vectors looked at at once: all queries of a million Gaussians would be gigabytes."""
_SOFTNESS = 0.25
"""A field's membership goes from 0 to 1 while relevancy goes from 1 - this to 1 + this times the threshold."""


@dataclass(frozen=True)
class MembershipRule:
    """Decides from mask features whether a point belongs to what was asked for.

    The features' expected score over queries (as in :func:`maskfield_ns.answers.decision.heat_map`) is compared with a
    threshold. Immutable and free of tensors: it can be saved, pickled and compared.
    """

    queries: tuple[int, ...]
    scores: tuple[float, ...]
    """Relevancy of each of these queries, in [0, 1]."""
    threshold: float
    """Expected score from which features belong."""
    levels_agreeing: int = 1
    """How many mask levels must agree (``DecisionRule.levels_agreeing``)."""

    @torch.no_grad()
    def relevancy(self, head: QueryHead, features: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch"]:
        """Relevancy in units of the threshold: 1 and more is inside."""
        queries = torch.tensor(self.queries, device=features.device)
        scores = torch.tensor([self.scores], device=features.device, dtype=features.dtype)
        rule = DecisionRule(levels_agreeing=self.levels_agreeing)
        levels = head.levels[queries]
        flat = features.flatten(0, -2)
        parts = [
            decision.heat_map(head.probabilities(part, queries), scores, levels, rule)[..., 0]
            for part in flat.split(_CHUNK)
        ]
        heat = torch.cat(parts) if parts else flat.new_zeros(0)
        return heat.reshape(features.shape[:-1]) / self.threshold

    @torch.no_grad()
    def mask(self, head: QueryHead, view: PixelAssignments) -> Bool[Tensor, "H W"]:
        """The pixels of a view that belong, as :meth:`relevancy` of their features up to negligible shares."""
        scores = torch.zeros(1, head.num_queries, device=head.levels.device)
        queries = torch.tensor(self.queries, device=scores.device)
        scores[0, queries] = torch.tensor(self.scores, device=scores.device)
        heat = view.heat(scores, DecisionRule(levels_agreeing=self.levels_agreeing), head.levels[queries].tolist())
        return heat[0] >= self.threshold

    def soft(self, head: QueryHead, features: Float[Tensor, "*batch D"], least: float = 1.0) -> Float[Tensor, "*batch"]:
        """Membership in [0, 1], 0.5 at ``least`` times the threshold; smooth, so that borders do not alias."""
        x = ((self.relevancy(head, features) / least - 1) / (2 * _SOFTNESS) + 0.5).clamp(0, 1)
        return x * x * (3 - 2 * x)

    def to_json(self) -> dict[str, Any]:
        """Plain numbers; queries that count for nothing are kept, since silent levels have a vote too."""
        return {
            "queries": list(self.queries),
            "scores": [round(s, 4) for s in self.scores],
            "threshold": self.threshold,
            "levels_agreeing": self.levels_agreeing,
        }

    @classmethod
    def from_json(cls, data: Any, num_queries: int | None = None) -> MembershipRule:
        """The inverse of :meth:`to_json`.

        Raises:
            EditError: something else, or queries that the scene does not have.
        """
        try:
            queries, scores = tuple(data["queries"]), tuple(float(s) for s in data["scores"])
            threshold, agreeing = float(data["threshold"]), data["levels_agreeing"]
            if not all(type(number) is int and number < 1 << 31 for number in (*queries, agreeing)):
                raise TypeError("queries and levels are counted in whole numbers")
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise EditError("a selection's rule needs queries, scores, threshold and levels_agreeing") from error
        sane = len(queries) == len(scores) > 0 and 0 < threshold < math.inf and agreeing >= 1 and min(queries) >= 0
        if not sane or not all(math.isfinite(s) for s in scores):
            raise EditError("a selection's rule is damaged: its queries, scores or threshold make no sense")
        if num_queries is not None and max(queries) >= num_queries:
            raise EditError(f"a selection names query {max(queries)}, and the scene has {num_queries}: another run?")
        return cls(queries, scores, threshold, agreeing)


def phrase_rule(
    scores: Float[Tensor, " Q"],
    levels: Int[Tensor, " Q"],
    valid: Bool[Tensor, " Q"],
    threshold: float,
    rule: DecisionRule,
) -> MembershipRule:
    """The rule by which pixels answer a phrase (:func:`.decision.phrase_masks`), for anything that has mask features.

    Args:
        scores: relevancy of every query to the phrase.
        levels: level of every query.
        valid: queries that count; at least one.
        threshold: relevancy from which a pixel answers.
        rule: how many levels must agree.
    """
    used = valid.nonzero()[:, 0]
    agreeing = min(rule.levels_agreeing, len(levels[used].unique()))
    return MembershipRule(tuple(used.tolist()), tuple(scores[used].tolist()), threshold, agreeing)


def query_rule(
    queries: Sequence[int], levels: Int[Tensor, " Q"], valid: Bool[Tensor, " Q"], rule: DecisionRule
) -> MembershipRule:
    """Whatever belongs to some queries by more than a half.

    Queries of one level are a matter of that level. Queries of several levels must agree as for a phrase; levels that
    hold none of them speak against them.

    Args:
        queries: at least one.
        levels: level of every query of the scene.
        valid: queries that count.
        rule: how many levels must agree.
    """
    chosen = sorted(set(queries))
    if len(levels[chosen].unique()) == 1:
        return MembershipRule(tuple(chosen), (1.0,) * len(chosen), 0.5)
    every = sorted({*valid.nonzero()[:, 0].tolist(), *chosen})
    agreeing = min(rule.levels_agreeing, len(levels[every].unique()))
    return MembershipRule(tuple(every), tuple(float(query in set(chosen)) for query in every), 0.5, agreeing)
