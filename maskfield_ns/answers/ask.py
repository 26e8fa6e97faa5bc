"""Phrases scored against the queries of a scene."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from maskfield_ns.answers import decision
from maskfield_ns.answers.decision import DecisionRule
from maskfield_ns.systems.query_head import QueryHead


@dataclass(frozen=True)
class ActiveQuery:
    """Phrases being asked, already scored against the scene's queries; replaced as a whole, never changed."""

    phrases: tuple[str, ...]
    scores: Float[Tensor, "T Q"]
    """Relevancy of every query to every phrase; see :func:`maskfield_ns.answers.decision.phrase_relevancy`."""
    weights: Float[Tensor, "*T Q"]
    """How much each query counts as evidence; see :func:`maskfield_ns.answers.decision.evidence_weights`."""
    classes: Float[Tensor, "T C"]
    """Text embeddings of the phrases."""
    negatives: Float[Tensor, "K C"]


def ask(
    head: QueryHead,
    phrases: Sequence[str],
    text: Float[Tensor, "T C"],
    negatives: Float[Tensor, "K C"],
    rule: DecisionRule,
) -> ActiveQuery:
    """Scores phrases against the scene's queries."""
    embeddings = head.embeddings.detach()
    text, negatives = text.to(embeddings), negatives.to(embeddings)
    scores = decision.phrase_relevancy(embeddings, head.valid(rule.min_support, rule.min_share), text, negatives, rule)
    weights = decision.evidence_weights(head.support, head.levels, rule)
    return ActiveQuery(tuple(phrases), scores, weights, text, negatives)
