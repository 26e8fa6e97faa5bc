"""What every backbone shows: pictures and answers from rendered mask features, shared by viewer, render and eval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from maskfield_ns.answers import decision
from maskfield_ns.answers.answer import Answer
from maskfield_ns.answers.ask import ActiveQuery
from maskfield_ns.answers.decision import DecisionRule
from maskfield_ns.answers.relevancy import class_probabilities, relevancy
from maskfield_ns.pictures.colors import palette
from maskfield_ns.systems.query_head import QueryHead

_CHUNK_PIXELS = 1 << 15
"""Pixels answered at once on a CPU: all queries of all pixels of a photograph would be gigabytes."""
_CHUNK_BYTES = 1 << 30
"""Memory for the probabilities of pixels answered at once on a GPU, where every chunk costs its launches."""
_INSIDE_LOGIT = 10.0
"""About what a query adds to the logit of a pixel inside its mask."""


class Outputs(dict):
    """Named pictures of one view, with the mask features they came from (too many channels to be shown)."""

    features: Float[Tensor, "H W D"]


def rows_at_once(features: Float[Tensor, "H W D"], head: QueryHead) -> int:
    """Rows of a view to answer at once."""
    on_cpu = features.device.type == "cpu"
    pixels = _CHUNK_PIXELS if on_cpu else _CHUNK_BYTES // (4 * max(1, head.num_queries))
    return max(1, pixels // features.shape[1])


def feature_axes(head: QueryHead) -> Float[Tensor, "D 3"]:
    """The three directions in which queries of one level differ most, the same in all views, scaled for a sigmoid.

    (A level has channels of its own; directions that only tell levels apart would leave every level one colour.)
    """
    in_use = head.support > 0 if (head.support > 0).sum() > 3 else torch.ones_like(head.support, dtype=torch.bool)
    used, levels = head.feature_vectors.detach().float()[in_use], head.levels[in_use]
    centred = torch.cat([used[levels == level] - used[levels == level].mean(0) for level in levels.unique()])
    axes = torch.linalg.svd(centred, full_matrices=False).Vh[:3].T
    # The contrast comes from the queries too: taken from the view, colours would flicker from view to view.
    inside = _INSIDE_LOGIT * used / used.square().sum(-1, keepdim=True).clamp(min=1e-6)
    return 2.5 * axes / (inside @ axes).std().clamp(min=1e-6)


def feature_colours(features: Float[Tensor, "H W D"], head: QueryHead) -> Float[Tensor, "H W 3"]:
    """Mask features as colours, see :func:`feature_axes`."""
    return torch.sigmoid(features @ feature_axes(head))


@torch.no_grad()
def mask_pictures(
    features: Float[Tensor, "H W D"],
    rgb: Float[Tensor, "H W 3"],
    head: QueryHead,
    active: ActiveQuery | None,
    rule: DecisionRule,
) -> dict[str, Float[Tensor, "H W _"]]:
    """The outputs ``mask_features``, ``mask_instances``, ``class_map``; per phrase ``relevancy_i``, ``composited_i``.

    All float: [H, W, 3] in 0..1, relevancy [H, W, 1].
    """
    rows, axes = rows_at_once(features, head), feature_axes(head)
    parts = [
        _pictures(part, colours, axes, head, active, rule)
        for part, colours in zip(features.split(rows), rgb.split(rows), strict=True)
    ]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _pictures(
    features: Float[Tensor, "H W D"],
    rgb: Float[Tensor, "H W 3"],
    axes: Float[Tensor, "D 3"],
    head: QueryHead,
    active: ActiveQuery | None,
    rule: DecisionRule,
) -> dict[str, Float[Tensor, "H W _"]]:
    used, valid = _used(head, rule)
    probabilities = head.probabilities(features, used)
    dark = torch.full_like(rgb, 0.18)
    instances = decision.instance_map(probabilities, valid, head.levels[used])
    table = palette(head.num_queries, rgb.device)[used]
    pictures = {
        "mask_features": torch.sigmoid(features @ axes),
        "mask_instances": torch.where(instances[..., None] >= 0, table[instances.clamp(min=0)], dark),
    }
    if active is None or not active.phrases:
        pictures["class_map"] = dark
        return pictures
    heat = heat_of(features, probabilities, used, head, active, rule)
    masks = decision.phrase_masks(heat, active.verdict)
    best = decision.phrase_map(masks, heat)
    table = palette(len(active.phrases), rgb.device)
    pictures["class_map"] = torch.where(best[..., None] >= 0, table[best.clamp(min=0)], dark)
    grey = rgb.mean(-1, keepdim=True) * 0.35
    for i in range(len(active.phrases)):
        pictures[f"relevancy_{i}"] = heat[..., i : i + 1]
        pictures[f"composited_{i}"] = torch.where(masks[..., i : i + 1], rgb, grey.expand_as(rgb))
    return pictures


def heat_of(
    features: Float[Tensor, "*batch D"],
    probabilities: Float[Tensor, "*batch U"],
    used: Int[Tensor, " U"],
    head: QueryHead,
    active: ActiveQuery,
    rule: DecisionRule,
) -> Float[Tensor, "*batch T"]:
    """Relevancy of features to phrases: by what they mean on their own, or by the queries that they belong to.

    Args:
        features: of pixels or of primitives.
        probabilities: how much they belong to the queries in use.
        used: indices of these.
        head: the scene's queries.
        active: what is asked. Image patches and clicks are scored against queries only.
        rule: how levels are pooled.
    """
    decoded = head.decoded(features) if len(active.classes) else None
    if decoded is None:
        return decision.heat_map(probabilities, active.scores[:, used], head.levels[used], rule)
    something = (decoded.norm(dim=-1, keepdim=True) > 0).float()
    return relevancy(decoded, active.classes, active.negatives, active.temperature) * something


def class_votes(
    features: Float[Tensor, "*batch D"],
    head: QueryHead,
    classes: Float[Tensor, "N C"],
    negatives: Float[Tensor, "K C"],
    rule: DecisionRule,
    temperature: float,
) -> Float[Tensor, "*batch N"]:
    """Score of features for each class of a list, in [0, 1]; 0 for all of them where nothing is known.

    Of features that mean something on their own: their soft-max over the classes and the negatives (DFF, eq. 5).
    """
    decoded = head.decoded(features)
    if decoded is None:
        used, valid = _used(head, rule)
        embeddings = head.embeddings.detach()[used]
        probabilities = head.probabilities(features, used)
        return decision.class_scores(
            probabilities, embeddings, valid, head.levels[used], classes, negatives, temperature
        )
    something = (decoded.norm(dim=-1, keepdim=True) > 0).float()
    return class_probabilities(decoded, classes, negatives, temperature) * something


def _used(head: QueryHead, rule: DecisionRule) -> tuple[Int[Tensor, " U"], Bool[Tensor, " U"]]:
    """Queries worth rendering and whether each is valid: the valid ones, or one that is not where there are none."""
    valid = head.valid(rule.min_support, rule.min_share)
    used = valid.nonzero()[:, 0]
    used = used if len(used) else torch.zeros(1, dtype=torch.long, device=valid.device)
    return used, valid[used]


@dataclass(frozen=True)
class ViewAnswer:
    """Answers in one view."""

    masks: np.ndarray
    """bool [T, H, W]"""
    relevancy: np.ndarray
    """float32 [T, H, W] in 0..1"""
    classes: np.ndarray
    """int [H, W] index into the class list; without one the phrase that answers the pixel, -1 where none does"""


@torch.no_grad()
def answer_view(
    features: Float[Tensor, "H W D"],
    head: QueryHead,
    active: ActiveQuery,
    class_embeddings: Float[Tensor, "N C"] | None,
    rule: DecisionRule,
) -> ViewAnswer:
    """Masks and relevancy of the active phrases, and a class map over a class list or over the phrases."""
    rows = rows_at_once(features, head)
    parts = [_answer(part, head, active, class_embeddings, rule) for part in features.split(rows)]
    return ViewAnswer(
        np.concatenate([part.masks for part in parts], axis=1),
        np.concatenate([part.relevancy for part in parts], axis=1),
        np.concatenate([part.classes for part in parts]),
    )


def _answer(
    features: Float[Tensor, "H W D"],
    head: QueryHead,
    active: ActiveQuery,
    class_embeddings: Float[Tensor, "N C"] | None,
    rule: DecisionRule,
) -> ViewAnswer:
    used, _ = _used(head, rule)
    probabilities = head.probabilities(features, used)
    heat = heat_of(features, probabilities, used, head, active, rule)
    masks = decision.phrase_masks(heat, active.verdict)
    classes = decision.phrase_map(masks, heat)
    if class_embeddings is not None and len(class_embeddings):
        votes = class_votes(features, head, class_embeddings, active.negatives, rule, active.class_temperature)
        classes = decision.class_map(votes)
    return ViewAnswer(
        masks.permute(2, 0, 1).cpu().numpy(), heat.permute(2, 0, 1).float().cpu().numpy(), classes.cpu().numpy()
    )


@torch.no_grad()
def answers_in_view(features: Float[Tensor, "H W D"], head: QueryHead, answers: Sequence[Answer]) -> ViewAnswer:
    """Masks, relevancy and a map of some answers in one view; by the same rule as :func:`answer_view`."""
    height, width = features.shape[:2]
    if not answers:
        return ViewAnswer(
            np.zeros((0, height, width), bool), np.zeros((0, height, width), np.float32), np.full((height, width), -1)
        )
    heat = features.new_zeros(len(answers), height, width)
    masks = torch.zeros_like(heat, dtype=torch.bool)
    for row, answer in enumerate(answers):
        if answer.rule is not None:
            relative = answer.rule.relevancy(head, features)
            heat[row], masks[row] = relative * answer.rule.threshold, (relative >= 1) & answer.found
    classes = decision.phrase_map(masks.movedim(0, -1), heat.movedim(0, -1))
    return ViewAnswer(masks.cpu().numpy(), heat.float().cpu().numpy(), classes.cpu().numpy())


@torch.no_grad()
def query_masks(
    features: Float[Tensor, "H W D"], head: QueryHead, queries: Int[Tensor, " N"]
) -> Bool[np.ndarray, "N H W"]:
    """Masks of some queries in one view."""
    rows = rows_at_once(features, head)
    parts = [head.probabilities(part, queries) > 0.5 for part in features.split(rows)]
    return torch.cat(parts).permute(2, 0, 1).cpu().numpy()
