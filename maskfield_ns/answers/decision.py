"""From query relevancies to answers: heat maps, selections, masks and class maps; pure tensor functions.

No 512-channel tensor ever meets a pixel: a phrase is scored against Q query embeddings, and pixels only mix Q masks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from maskfield_ns.answers.relevancy import class_probabilities, relevancy

_FLOOR = 1e-3
"""What a level grants a class it knows nothing of: without it one silent level would veto all others."""
_SHARES = (0.1, 0.8, 30)
"""Thresholds that are tried, as shares of a phrase's highest relevancy: from, to, how many."""
_STEP = 1.15
"""A threshold is stable when a mask hardly changes from this factor above to this factor below it (square roots)."""
_FEW = 1e-4
"""Share of the scene's pixels that is not worth a difference."""


@dataclass(frozen=True)
class DecisionRule:
    """How relevancies become answers. Figures were chosen, and judged on other scenes, with scripts/bench/answers.py.

    None of them is a cosine: those of a scene's queries with a bank of phrases give the unit (see ``sharpness``), so
    that an answer depends on what CLIP ranks and how clearly, not on the range of its cosines.
    """

    found_threshold: float = 0.33
    """A phrase for which the scene shows less :func:`evidence` than this names nothing in it."""
    subpart_weight: float = 0.8
    """Weight of subparts as evidence: they are many, mostly patches without a name, so one of them will look like
    anything. What only a subpart answers must answer well."""
    doubt: float = 5.0
    """Views: as evidence, a CLIP vector averaged over n views counts n / (n + doubt), relative to the surest one."""
    window: float = 0.15
    """Queries this close to the best one are selected too ("mug" with two mugs on the table)."""
    mask_share: float = 0.35
    """The preferred threshold of a mask, as a share of the phrase's highest relevancy in the scene."""
    preference: float = 0.1
    """How much a threshold loses for being half or twice the preferred one, in units of the mask's relative growth
    when the threshold falls by 14 %. Of all thresholds the one that loses least is the phrase's; see
    :func:`stable_thresholds`."""
    mask_scale: float = 1.0
    """A factor on every phrase's threshold: smaller values make masks larger."""
    levels_agreeing: int = 2
    """How many of the mask levels must find a pixel relevant: the mean of that many best ones counts."""
    min_support: float = 3.0
    """Queries matched in fewer training views stand for nothing."""
    min_share: float = 0.15
    """Nor do queries matched in less than this share of the training views that see their place."""
    sharpness: float = 1.8
    """Logits of relevancy per standard deviation of the cosines between the scene's queries and a bank of phrases: 10
    per unit of cosine (LERF's factor) for the embedded CLIP."""
    class_sharpness: float = 3.6
    """The same for class lists, where classes compete with each other."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Takes the values of a stored rule, or the present ones where it was stored by a version whose figures were
        cosines and shares with another meaning."""
        current = "sharpness" in state
        names = {field.name for field in fields(self)} if current else {"min_support", "min_share", "levels_agreeing"}
        self.__dict__.update({name: value for name, value in state.items() if name in names})


@dataclass(frozen=True)
class Verdict:
    """What is decided about phrases before any pixel is looked at."""

    evidence: Float[Tensor, " T"]
    """How surely each names something in the scene, in [0, 1]."""
    found: Bool[Tensor, " T"]
    thresholds: Float[Tensor, " T"]
    """Relevancy from which a pixel answers the phrase."""


def phrase_relevancy(
    embeddings: Float[Tensor, "Q C"],
    valid: Bool[Tensor, " Q"],
    phrases: Float[Tensor, "T C"],
    negatives: Float[Tensor, "K C"],
    temperature: float,
) -> Float[Tensor, "T Q"]:
    """LERF relevancy of every query to every phrase; 0 for queries that stand for nothing."""
    return relevancy(embeddings, phrases, negatives, temperature).T * valid


def evidence_weights(
    support: Float[Tensor, " Q"], levels: Int64[Tensor, " Q"], rule: DecisionRule, subparts: bool = False
) -> Float[Tensor, " Q"]:
    """How much each query counts when it is asked whether a scene has something, in [0, 1].

    Args:
        support: views that each query was found in. Of all queries: the surest one counts in full, in captures of few
            views too.
        levels: level of each query, 0 for subparts, -1 for none.
        rule: the discounts.
        subparts: the question is about subparts, which then count like anything.
    """
    weight = support / (support + max(rule.doubt, 1e-9))
    weight = weight / weight.max().clamp(min=1e-9) if len(weight) else weight
    return weight if subparts else torch.where(levels == 0, rule.subpart_weight * weight, weight)


def evidence(scores: Float[Tensor, "*T Q"], weights: Float[Tensor, "*T Q"]) -> Float[Tensor, "*T"]:
    """How surely phrases name something in the scene, in [0, 1]: the best of all weighted scores."""
    return (scores * weights).amax(dim=-1)


def select_queries(scores: Float[Tensor, "T Q"], rule: DecisionRule) -> Bool[Tensor, "T Q"]:
    """Queries that answer each phrase: relevant enough, and nearly as relevant as the best one."""
    best = scores.amax(dim=1, keepdim=True)
    return (scores >= rule.found_threshold) & (scores >= best - rule.window)


def judge(
    scores: Float[Tensor, "T Q"],
    weights: Float[Tensor, "*T Q"],
    sample: Float[Tensor, "T N"] | None,
    rule: DecisionRule,
) -> Verdict:
    """Which phrases name something in the scene, and from which relevancy on a pixel answers each.

    Args:
        scores: relevancy of every query.
        weights: how much each counts as evidence.
        sample: relevancy of a sample of the scene's pixels; None where a run has none.
        rule: the figures.
    """
    sure = evidence(scores, weights)
    if sample is None or not sample.shape[1]:
        thresholds = rule.mask_share * sure
    else:
        thresholds = stable_thresholds(sample, 0.5 * sure, rule)
    return Verdict(sure, sure >= rule.found_threshold, rule.mask_scale * thresholds.clamp(min=1e-6))


def stable_thresholds(
    sample: Float[Tensor, "T N"], least: Float[Tensor, " T"], rule: DecisionRule
) -> Float[Tensor, " T"]:
    """For each phrase the threshold at which its masks are most stable, not far from the preferred share of its peak.

    Between the relevancy of what answers and of what does not there is a gap, in which masks hardly change: an
    object's parts, its mixed borders and its look-alikes put the gap elsewhere for every phrase. (Maximally stable
    extremal regions, Matas et al. 2002, on the relevancy of a scene instead of grey values.)

    Args:
        sample: relevancy of a sample of the scene's pixels.
        least: the peak is at least this, where the sample has missed a small object.
        rule: the preference.
    """
    peak = torch.maximum(sample.amax(dim=1), least)
    first, last, count = _SHARES
    shares = torch.logspace(math.log10(first), math.log10(last), count, device=sample.device)
    ascending = sample.sort(dim=1).values

    def area(at: Float[Tensor, "T G"]) -> Float[Tensor, "T G"]:
        below = torch.searchsorted(ascending, at.to(ascending).contiguous())
        return ((sample.shape[1] - below) / sample.shape[1] + _FEW).log()

    grid = peak[:, None] * shares
    growth = area(grid / _STEP**0.5) - area(grid * _STEP**0.5)
    loss = growth + rule.preference * (shares / rule.mask_share).log2().square()
    return grid.gather(1, loss.argmin(dim=1, keepdim=True))[:, 0]


def heat_map(
    probabilities: Float[Tensor, "*batch Q"],
    scores: Float[Tensor, "T Q"],
    levels: Int64[Tensor, " Q"],
    rule: DecisionRule,
) -> Float[Tensor, "*batch T"]:
    """Relevancy per pixel, in [0, 1].

    Within a level the things exclude each other, so a pixel's relevancy is the expectation over what it may belong to.
    Levels are opinions on the same pixel: the mean of the best ``rule.levels_agreeing`` of them counts, because a
    thing that only one level knows is often a slip of the grouping. Queries without a level are opinions each.

    Args:
        probabilities: how much each pixel belongs to each query.
        scores: relevancy of each query to each phrase.
        levels: level of each query, -1 for none.
        rule: how many levels must agree.
    """
    opinions = []
    for level in sorted(set(levels.tolist())):
        of_level = levels == level
        inside, relevant = probabilities[..., of_level], scores[:, of_level]
        if level >= 0:
            opinions.append(inside @ relevant.T)
        else:
            # One phrase at a time: a [..., T, Q] tensor would be gigabytes for a photograph.
            opinions.append(torch.stack([(inside * row).amax(dim=-1) for row in relevant], dim=-1))
    return pool_opinions(torch.stack(opinions), rule.levels_agreeing)


def pool_opinions(opinions: Float[Tensor, "L *batch"], agreeing: int) -> Float[Tensor, "*batch"]:  # noqa: UP037
    """The mean of the best ``agreeing`` of some levels' opinions (of all of them where there are fewer)."""
    count = len(opinions)
    if agreeing >= count:
        return opinions.mean(dim=0)
    if agreeing == count - 1:  # the usual case, and many times faster than finding the best ones
        return (opinions.sum(dim=0) - opinions.amin(dim=0)) / agreeing
    return opinions.topk(agreeing, dim=0).values.mean(dim=0)


def phrase_masks(heat: Float[Tensor, "*batch T"], verdict: Verdict) -> Bool[Tensor, "*batch T"]:
    """Pixels that answer each phrase: relevant enough for it; none where nothing answers.

    The yardstick is the scene, not the view's best pixel: a view without the thing has an empty mask.
    """
    return (heat >= verdict.thresholds) & verdict.found


def phrase_map(masks: Bool[Tensor, "*batch T"], heat: Float[Tensor, "*batch T"]) -> Int64[Tensor, "*batch"]:
    """The phrase that answers each pixel best among those whose masks hold it; -1 outside all masks."""
    best = heat.masked_fill(~masks, -1.0).max(dim=-1)
    return torch.where(masks.any(dim=-1), best.indices, torch.full_like(best.indices, -1))


def class_scores(
    probabilities: Float[Tensor, "*batch Q"],
    embeddings: Float[Tensor, "Q C"],
    valid: Bool[Tensor, " Q"],
    levels: Int64[Tensor, " Q"],
    classes: Float[Tensor, "N C"],
    negatives: Float[Tensor, "K C"],
    temperature: float,
) -> Float[Tensor, "*batch N"]:
    """Score per class, in [0, 1]; 0 for every class where no valid query holds the pixel.

    Each level expects a class from what the pixel may belong to; levels are pooled by their geometric mean (a
    logarithmic opinion pool), so that one level that merged two things cannot outvote two that did not.
    """
    per_query = class_probabilities(embeddings, classes, negatives, temperature) * valid[:, None]
    opinions = []
    for level in sorted(set(levels.tolist())):
        of_level = levels == level
        inside, meaning = probabilities[..., of_level], per_query[of_level]
        if level < 0:
            # Queries without a level do not exclude each other: the surest count most, and votes are normalised.
            inside = (inside * valid[of_level]) ** 2
            inside = inside / inside.sum(-1, keepdim=True).clamp(min=1e-6)
        opinions.append(inside @ meaning)
    said = torch.stack(opinions)
    pooled = (said + _FLOOR).log().mean(dim=0).exp() - _FLOOR
    return torch.where((said > 0).any(dim=0), pooled.clamp(min=0), 0.0)


def class_map(scores: Float[Tensor, "*batch N"]) -> Int64[Tensor, "*batch"]:
    """Best class per pixel; -1 where no class has a score above 0."""
    best = scores.max(dim=-1)
    return torch.where(best.values > 0, best.indices, torch.full_like(best.indices, -1))


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
