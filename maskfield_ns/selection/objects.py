"""What a scene contains: its queries, each named by the best phrase of a vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from maskfield_ns.answers.relevancy import class_probabilities, relevancy
from maskfield_ns.foundation.protocols import LEVELS
from maskfield_ns.selection.selector import Selector

VOCABULARY = (
    "apple", "backpack", "bag", "ball", "banana", "basket", "bed", "bench", "bicycle", "bird", "blanket",
    "book", "bottle", "bowl", "box", "bucket", "building", "bush", "cabinet", "camera", "can", "candle",
    "car", "carpet", "cat", "ceiling", "chair", "clock", "computer", "cube", "cup", "curtain", "cushion",
    "desk", "dog", "door", "duck", "fence", "floor", "flower", "fork", "fruit", "glass", "grass", "guitar",
    "hat", "jacket", "keyboard", "knife", "lamp", "laptop", "leaf", "mirror", "monitor", "mouse", "mug",
    "pan", "paper", "pen", "person", "phone", "picture", "pillow", "plant", "plate", "pot", "printer", "road",
    "robot", "shelf", "shoe", "sign", "sink", "sky", "soccer ball", "sofa", "spoon", "stairs", "stone",
    "stool", "table", "teapot", "teddy bear", "television", "towel", "toy", "toy brick", "toy car", "tray",
    "tree", "vase", "wall", "window",
)  # fmt: skip
"""Everyday nouns; give your own for anything else."""
_LEAST = 0.1
"""An object named with a lower probability is listed without a name."""
_SURE = 0.5
"""Parts and subparts are listed only if their name is this probable: most are patches of something without a name."""
_SAME = 0.5
"""A part that lies this much within a larger object of the same name is not listed again."""


@dataclass(frozen=True)
class SceneObject:
    """One thing that a scene's queries know."""

    query: int
    name: str
    """Best phrase of the vocabulary; "unnamed" where none fits."""
    confidence: float
    """Probability of the name among the vocabulary and the run's negatives, in [0, 1]."""
    score: float
    """Relevancy of the query to its name, as :meth:`maskfield_ns.Scene.query` would report it; 0 if unnamed."""
    level: str
    """subpart, part or whole; empty for runs without levels."""
    views: int
    """Training views it was found in."""
    size: float
    """Share of the scene's visible matter that belongs to it for sure, in [0, 1]."""


@torch.no_grad()
def list_objects(selector: Selector, vocabulary: Sequence[str] | None = None) -> list[SceneObject]:
    """What a scene contains, largest first; parts of an object that would have its name are left out.

    Args:
        selector: of the opened run.
        vocabulary: phrases to name things by; a list of everyday nouns by default.

    Raises:
        ValueError: the vocabulary is empty or has an empty phrase. WeightsError: no text model.
    """
    names = list(dict.fromkeys(VOCABULARY if vocabulary is None else vocabulary))
    if not names or not all(name.strip() for name in names):
        raise ValueError("a vocabulary needs at least one phrase, and none may be empty")
    model = selector.model
    head, rule = model.query_head, model.config.decision
    valid = head.valid(rule.min_support, rule.min_share)
    words, negatives = model.text(names).to(head.embeddings), model.text(model.config.negatives).to(head.embeddings)
    probability = class_probabilities(head.embeddings, words, negatives, rule.class_temperature)
    scores = relevancy(head.embeddings, words, negatives, rule.temperature)
    owners, mass = selector.ownership()
    sizes = _sizes(owners, mass, head.num_queries)
    kept: list[tuple[SceneObject, int]] = []
    for column in reversed(range(owners.shape[1])):
        of_level = [q for q in valid.nonzero()[:, 0].tolist() if sizes[column][q] > 0]
        for query in sorted(of_level, key=lambda q: -sizes[column][q]):
            best = int(probability[query].argmax())
            confidence = float(probability[query, best])
            named = confidence >= _LEAST
            thing = SceneObject(
                query,
                names[best] if named else "unnamed",
                confidence,
                float(scores[query, best]) if named else 0.0,
                LEVELS[int(head.levels[query])] if head.by_level else "",
                int(head.support[query]),
                float(sizes[column][query] / mass.sum()),
            )
            inside = owners[:, column] == query
            if column < owners.shape[1] - 1 and confidence < _SURE:
                continue
            if not any(
                other.name == thing.name
                and mass[inside & (owners[:, c] == other.query)].sum() >= _SAME * mass[inside].sum()
                for other, c in kept
            ):
                kept.append((thing, column))
    found = [thing for thing, _ in kept]
    return sorted(found, key=lambda thing: -thing.size)


def _sizes(owners: Int[np.ndarray, "P L"], mass: Float[np.ndarray, " P"], count: int) -> list[Float[np.ndarray, " Q"]]:
    result = []
    for column in range(owners.shape[1]):
        own = owners[:, column] >= 0
        result.append(np.bincount(owners[own, column], mass[own], minlength=count))
    return result


def coarsest_owner(owners: Int[Any, "P L"]) -> Int[np.ndarray, " P"]:
    """The query of the coarsest level that holds each point for sure; -1: none."""
    result = np.full(len(owners), -1, np.int64)
    for column in range(owners.shape[1]):
        result = np.where(owners[:, column] >= 0, owners[:, column], result)
    return result
