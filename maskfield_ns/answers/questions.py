"""Questions by text, image and pixel, and their answers: the one door for viewer, API and commands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from maskfield_ns.answers import clicks, decision
from maskfield_ns.answers.answer import Answer, Place
from maskfield_ns.answers.ask import cosine_spread, judge_scores
from maskfield_ns.answers.assignments import PixelAssignments
from maskfield_ns.answers.decision import DecisionRule
from maskfield_ns.answers.image_queries import image_relevancy, images_of_nothing
from maskfield_ns.answers.membership import phrase_rule, query_rule
from maskfield_ns.answers.text import TextEncoder
from maskfield_ns.errors import QuestionError, SelectionError
from maskfield_ns.foundation.protocols import LEVELS
from maskfield_ns.foundation.vocabulary import calibration_bank
from maskfield_ns.systems.query_head import QueryHead

Level = Literal["auto", "subpart", "part", "whole"]
SMALLEST_IMAGE = 8
"""Pixels along each side that an image query needs; less shows nothing."""
NOTHING_KNOWN = "nothing was learnt about that pixel: no mask of the training views covers it"


@dataclass(frozen=True)
class Question:
    """Texts or images to look for; replaced as a whole, never changed."""

    names: tuple[str, ...]
    """Phrases, or what the images are called."""
    vectors: Float[Tensor, "T C"]
    """Their embeddings."""
    negatives: Float[Tensor, "K C"]
    """Embeddings of what relevancy is measured against: phrases for texts, images for images."""
    negative_names: tuple[str, ...] = ()
    """The phrases."""
    of_images: bool = False
    bank: Float[Tensor, "B C"] | None = None
    """Embeddings of phrases of all kinds, which give cosines their unit; see :func:`.ask.cosine_spread`."""


def level_index(level: str) -> int | None:
    """Index into LEVELS; None for "auto".

    Raises:
        SelectionError: no such level.
    """
    if level != "auto" and level not in LEVELS:
        raise SelectionError(f"a level is auto, {', '.join(LEVELS)}, not {level}")
    return None if level == "auto" else LEVELS.index(level)


def valid_queries(head: QueryHead, rule: DecisionRule, level: int | None = None) -> Bool[Tensor, " Q"]:
    """Queries that count, of one level or (None, or a head without levels) of all."""
    valid = head.valid(rule.min_support, rule.min_share)
    return valid if level is None or not head.by_level else valid & (head.levels == level)


def question_relevancy(
    head: QueryHead, question: Question, rule: DecisionRule, level: int | None = None
) -> Float[Tensor, "T Q"]:
    """Relevancy of every query to each text or image, in [0, 1]; 0 for queries that do not count."""
    embeddings, valid = head.embeddings.detach(), valid_queries(head, rule, level)
    vectors, negatives = question.vectors.to(embeddings), question.negatives.to(embeddings)
    if question.of_images:
        return image_relevancy(embeddings, valid_queries(head, rule), vectors, negatives) * valid
    temperature = rule.sharpness / cosine_spread(head, question.bank, rule)
    return decision.phrase_relevancy(embeddings, valid, vectors, negatives, temperature)


def ask_texts(text: TextEncoder, phrases: Sequence[str], negatives: Sequence[str]) -> Question:
    """A question by texts, taken verbatim.

    Raises:
        CheckpointError: the run has no text model. WeightsError: its weights cannot be had.
    """
    return Question(tuple(phrases), text(phrases), text(negatives), tuple(negatives), bank=text(calibration_bank()))


def ask_image(text: TextEncoder, image: UInt8[np.ndarray, "H W 3"], name: str = "image") -> Question:
    """A question by an image of what is looked for.

    Raises:
        QuestionError: it is no image. CheckpointError: the run has no model for images. WeightsError: no weights.
    """
    pixels, least = np.asarray(image), SMALLEST_IMAGE
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
        raise QuestionError(f"an image is uint8 [H, W, 3], not {pixels.dtype} {list(pixels.shape)}")
    if min(pixels.shape[:2]) < least:
        raise QuestionError(f"an image of {pixels.shape[1]}x{pixels.shape[0]} is too small: {least} pixels a side")
    nothing = torch.stack([text.image(negative) for negative in images_of_nothing()])
    return Question((name,), text.image(pixels)[None], nothing, of_images=True)


def answer_question(head: QueryHead, question: Question, rule: DecisionRule, level: int | None = None) -> list[Answer]:
    """An answer per text or image; each is answered on its own."""
    valid, relevant = valid_queries(head, rule, level), question_relevancy(head, question, rule, level)
    verdict = judge_scores(head, relevant, rule, level if head.by_level else None)
    # Read back together: a GPU has to be waited for at each reading.
    evidence, founds, thresholds = (part.tolist() for part in (verdict.evidence, verdict.found, verdict.thresholds))
    anything = bool(valid.any())
    answers = []
    for index, (name, scores) in enumerate(zip(question.names, relevant, strict=True)):
        (chosen,) = decision.select_queries(scores[None], rule)
        best, found = float(evidence[index]), bool(founds[index])
        order = scores.argsort(descending=True)
        ranked = zip(order.tolist(), chosen[order].tolist(), strict=True)  # at once: a GPU has to be waited for
        queries = tuple(q for q, answers in ranked if found and answers)
        threshold = float(thresholds[index])
        membership = phrase_rule(scores, head.levels, valid, threshold, rule) if anything else None
        answers.append(Answer(name, best, found, queries, question.negative_names, membership))
    return answers


def answer_queries(head: QueryHead, queries: Sequence[int], rule: DecisionRule, name: str) -> Answer:
    """What some of the scene's queries hold."""
    chosen = tuple(int(query) for query in queries)
    return Answer(name, 1.0, True, chosen, (), query_rule(chosen, head.levels, valid_queries(head, rule), rule))


def answer_pixel(
    head: QueryHead,
    view: PixelAssignments,
    row: int,
    column: int,
    rule: DecisionRule,
    level: int | None = None,
    name: str = "",
    places: tuple[Place, ...] = (),
) -> Answer:
    """The object under a pixel of a view.

    Args:
        head: of the scene.
        view: what its pixels belong to.
        row, column: of the pixel.
        rule: which queries count.
        level: whether the pixel's subpart, part or whole is meant; None: the object, which levels may cut differently.
        name: of the answer.
        places: where the pixel's ray ends, scene coordinates.
    """
    valid = valid_queries(head, rule, level)
    if level is None:
        chosen = clicks.object_at(view, row, column, head.embeddings.detach(), valid, rule)
        shares = view.shares_at(row, column, head.num_queries).to(valid.device) * chosen
        queries = sorted(chosen.nonzero()[:, 0].tolist(), key=lambda query: -float(shares[query]))
        membership = query_rule(queries, head.levels, valid, rule) if queries else None
        if membership is not None and membership.mask(head, view)[row, column]:
            return Answer(name, float(shares.max()), True, tuple(queries), (), membership, places)
    # A mask must hold the pixel that was pointed at: one query's always does.
    query, share = clicks.query_at(view, row, column, head.levels, valid)
    if query < 0:
        return Answer(name, 0.0, False, (), places=places, reason=NOTHING_KNOWN)
    return Answer(name, share, True, (query,), (), query_rule([query], head.levels, valid, rule), places)
