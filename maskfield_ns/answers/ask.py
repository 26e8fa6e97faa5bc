"""Phrases scored against the queries of a scene."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from maskfield_ns.answers import decision
from maskfield_ns.answers.decision import DecisionRule, Verdict
from maskfield_ns.answers.relevancy import DEFAULT_TEMPERATURE, cosine_similarity, relevancy
from maskfield_ns.answers.sample import sample_heat, sampled_features
from maskfield_ns.systems.query_head import QueryHead

_USUAL_SPREAD = 0.18
"""Of the embedded CLIP: where there is nothing to measure."""
_NO_SPREAD = 1e-4
"""A text model whose cosines differ by less cannot tell phrases apart."""


@dataclass(frozen=True)
class ActiveQuery:
    """Phrases being asked, already scored against the scene's queries; replaced as a whole, never changed."""

    phrases: tuple[str, ...]
    scores: Float[Tensor, "T Q"]
    """Relevancy of every query to every phrase; see :func:`maskfield_ns.answers.decision.phrase_relevancy`."""
    verdict: Verdict
    """What was found, and the thresholds of masks."""
    classes: Float[Tensor, "T C"]
    """Text embeddings of the phrases."""
    negatives: Float[Tensor, "K C"]
    temperature: float = DEFAULT_TEMPERATURE
    """Factor on cosines; see :attr:`DecisionRule.sharpness`."""
    class_temperature: float = 2 * DEFAULT_TEMPERATURE
    """Factor on cosines where classes compete; see :attr:`DecisionRule.class_sharpness`."""


def cosine_spread(head: QueryHead, bank: Float[Tensor, "B C"] | None, rule: DecisionRule) -> float:
    """Standard deviation of the cosines between the scene's queries and a bank of phrases: the embedder's unit.

    A CLIP of the wild spreads its cosines over 0.15 to 0.3, SigLIP over less, the embedded one over most of [-1, 1].
    What a difference of cosines means is only known in this unit; it takes no labels, and it varies by a few percent
    between scenes of one embedder.

    Args:
        head: of the scene.
        bank: embeddings of :func:`maskfield_ns.foundation.vocabulary.calibration_bank`; None: the embedded CLIP's
            unit, which makes relevancy LERF's to the letter.
        rule: which queries count.
    """
    embeddings = head.embeddings.detach()[head.valid(rule.min_support, rule.min_share)]
    if bank is None or not len(embeddings):
        return _USUAL_SPREAD
    spread = float(cosine_similarity(embeddings, bank.to(embeddings)).double().std(unbiased=False))
    return spread if spread > _NO_SPREAD else _USUAL_SPREAD


def ask(
    head: QueryHead,
    phrases: Sequence[str],
    text: Float[Tensor, "T C"],
    negatives: Float[Tensor, "K C"],
    rule: DecisionRule,
    bank: Float[Tensor, "B C"] | None = None,
) -> ActiveQuery:
    """Scores phrases against the scene's queries, and decides about them.

    Args:
        head: of the scene.
        phrases: their names.
        text: their embeddings.
        negatives: embeddings of what relevancy is measured against.
        rule: the figures.
        bank: as for :func:`cosine_spread`; None where a protocol demands LERF's relevancy.
    """
    embeddings = head.embeddings.detach()
    text, negatives = text.to(embeddings), negatives.to(embeddings)
    spread, valid = cosine_spread(head, bank, rule), head.valid(rule.min_support, rule.min_share)
    temperature = rule.sharpness / spread
    scores = decision.phrase_relevancy(embeddings, valid, text, negatives, temperature)
    verdict = judge_scores(head, scores, rule)
    meaning = head.decoded(sampled_features(head).float())
    if meaning is not None and len(text):  # features that mean something on their own: pixels are scored by that
        heat = relevancy(meaning, text, negatives, temperature).T
        weights = decision.evidence_weights(head.support, head.levels, rule)
        verdict = decision.judge(scores, weights, heat, rule)
    return ActiveQuery(tuple(phrases), scores, verdict, text, negatives, temperature, rule.class_sharpness / spread)


@torch.no_grad()
def judge_scores(
    head: QueryHead, scores: Float[Tensor, "T Q"], rule: DecisionRule, level: int | None = None
) -> Verdict:
    """What relevancies of all queries amount to in a scene.

    Args:
        head: of the scene.
        scores: 0 for queries that do not count.
        rule: the figures.
        level: the only mask level that is asked; None: all together.
    """
    weights = decision.evidence_weights(head.support, head.levels, rule, subparts=level == 0)
    return decision.judge(scores, weights, sample_heat(head, scores, rule, level), rule)
