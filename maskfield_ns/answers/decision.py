"""From query relevancies to answers: heat maps, selections, masks and class maps; pure tensor functions.

No 512-channel tensor ever meets a pixel: a phrase is scored against Q query embeddings, and pixels only mix Q masks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from maskfield_ns.answers.relevancy import class_probabilities, relevancy

_FLOOR = 1e-3
"""What a level grants a class it knows nothing of: without it one silent level would veto all others."""


@dataclass(frozen=True)
class DecisionRule:
    """How relevancies become answers. The figures were measured by scripts/measure_threshold.py."""

    found_threshold: float = 0.365
    """A phrase for which the scene shows less :func:`evidence` than this names nothing in it."""
    subpart_weight: float = 0.65
    """Weight of subparts as evidence: they are many, mostly patches without a name, so one of them will look like
    anything. What only a subpart answers must answer well.

    Balanced accuracy on five runs of three scenes: 0.98 for weights from 0.6 to 0.7 and thresholds from 0.36 to 0.37,
    with ``doubt`` 2; 0.93 where all count alike."""
    doubt: float = 2.0
    """Views: as evidence, a CLIP vector averaged over n views counts n / (n + doubt), relative to the surest one."""
    window: float = 0.15
    """Queries this close to the best one are selected too ("mug" with two mugs on the table)."""
    mask_share: float = 0.3
    """A pixel answers when its relevancy is at least this share of the best query's."""
    levels_agreeing: int = 2
    """How many of the mask levels must find a pixel relevant: the mean of that many best ones counts."""
    min_support: float = 3.0
    """Queries matched in fewer training views stand for nothing."""
    min_share: float = 0.15
    """Nor do queries matched in less than this share of the training views that see their place."""
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


def phrase_masks(
    heat: Float[Tensor, "*batch T"], scores: Float[Tensor, "T Q"], weights: Float[Tensor, "*T Q"], rule: DecisionRule
) -> Bool[Tensor, "*batch T"]:
    """Pixels that answer each phrase: their relevancy is a fair share of the best query's; none where nothing answers.

    The yardstick is the scene's best query, not the view's best pixel: a view without the thing has an empty mask.
    """
    found = evidence(scores, weights) >= rule.found_threshold
    return (heat >= rule.mask_share * scores.amax(dim=1)) & found


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
    rule: DecisionRule,
) -> Float[Tensor, "*batch N"]:
    """Score per class, in [0, 1]; 0 for every class where no valid query holds the pixel.

    Each level expects a class from what the pixel may belong to; levels are pooled by their geometric mean (a
    logarithmic opinion pool), so that one level that merged two things cannot outvote two that did not.
    """
    per_query = class_probabilities(embeddings, classes, negatives, rule.class_temperature) * valid[:, None]
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
