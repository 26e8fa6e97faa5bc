"""From query relevancies to answers: heat maps, selections, masks and class maps; pure tensor functions.

No 512-channel tensor ever meets a pixel: a phrase is scored against Q query embeddings, and pixels only mix Q masks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from maskfield_ns.queries.relevancy import class_probabilities, relevancy


@dataclass(frozen=True)
class DecisionRule:
    """How relevancies become answers. The figures were measured by scripts/measure_threshold.py."""

    found_threshold: float = 0.42
    """A phrase whose best query stays below this relevancy names nothing in the scene."""
    window: float = 0.15
    """Queries this close to the best one answer too ("mug" with two mugs on the table)."""
    min_support: float = 3.0
    """Queries matched in fewer training views stand for nothing."""
    min_share: float = 0.15
    """Nor do queries matched in less than this share of the views of the query found most often."""
    temperature: float = 10.0
    """LERF's factor on cosines."""
    class_temperature: float = 20.0
    """The same for class lists, where classes compete with each other."""


def phrase_relevancy(
    embeddings: Float[Tensor, "Q C"],
    valid: Bool[Tensor, " Q"],
    phrases: Float[Tensor, "T C"],
    negatives: Float[Tensor, "K C"],
    rule: DecisionRule,
) -> Float[Tensor, "T Q"]:
    """LERF relevancy of every query to every phrase; 0 for queries that stand for nothing."""
    return relevancy(embeddings, phrases, negatives, rule.temperature).T * valid


def select_queries(scores: Float[Tensor, "T Q"], rule: DecisionRule) -> Bool[Tensor, "T Q"]:
    """Queries that answer each phrase: relevant enough, and nearly as relevant as the best one."""
    best = scores.amax(dim=1, keepdim=True)
    return (scores >= rule.found_threshold) & (scores >= best - rule.window)


def heat_map(probabilities: Float[Tensor, "*batch Q"], scores: Float[Tensor, "T Q"]) -> Float[Tensor, "*batch T"]:
    """Relevancy per pixel: the best mixture of "inside this mask" and "this mask answers the phrase", in [0, 1]."""
    # One phrase at a time: a [..., T, Q] tensor would be gigabytes for a photograph.
    return torch.stack([(probabilities * row).amax(dim=-1) for row in scores], dim=-1)


def phrase_masks(probabilities: Float[Tensor, "*batch Q"], selected: Bool[Tensor, "T Q"]) -> Bool[Tensor, "*batch T"]:
    """Pixels inside any selected query; a phrase without a selected query has an empty mask."""
    inside = (probabilities > 0.5).to(torch.float32)
    return inside @ selected.to(inside).T > 0.5


def class_scores(
    probabilities: Float[Tensor, "*batch Q"],
    embeddings: Float[Tensor, "Q C"],
    valid: Bool[Tensor, " Q"],
    classes: Float[Tensor, "N C"],
    negatives: Float[Tensor, "K C"],
    rule: DecisionRule,
) -> Float[Tensor, "*batch N"]:
    """Votes per class: sum over queries of "inside" times "is this class", normalised by the votes cast."""
    per_query = class_probabilities(embeddings, classes, negatives, rule.class_temperature) * valid[:, None]
    votes = (probabilities * valid) ** 2
    return votes @ per_query / votes.sum(-1, keepdim=True).clamp(min=1e-6)


def class_map(scores: Float[Tensor, "*batch N"], minimum: float = 0.0) -> Int64[Tensor, "*batch"]:
    """Best class per pixel; -1 where even the best has at most ``minimum``."""
    best = scores.max(dim=-1)
    return torch.where(best.values > minimum, best.indices, torch.full_like(best.indices, -1))


def instance_map(
    probabilities: Float[Tensor, "*batch Q"], valid: Bool[Tensor, " Q"], levels: Int64[Tensor, " Q"]
) -> Int64[Tensor, "*batch"]:
    """Index of the query a pixel belongs to, coarsest level first; -1 where no query holds it."""
    result = torch.full(probabilities.shape[:-1], -1, dtype=torch.long, device=probabilities.device)
    for level in sorted(set(levels.tolist())):
        chosen = ((levels == level) & valid).nonzero()[:, 0]
        if len(chosen):
            best = probabilities[..., chosen].max(dim=-1)
            result = torch.where(best.values > 0.5, chosen[best.indices], result)
    return result
