"""What is in a scene: its queries, named by the best phrase of a vocabulary; one list for viewer, API and commands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras
from torch import Tensor

from maskfield_ns.answers.ask import cosine_spread
from maskfield_ns.answers.assignments import PixelAssignments
from maskfield_ns.answers.decision import DecisionRule
from maskfield_ns.answers.questions import valid_queries
from maskfield_ns.answers.relevancy import relevancy
from maskfield_ns.foundation.protocols import LEVELS
from maskfield_ns.foundation.vocabulary import calibration_bank, vocabulary
from maskfield_ns.systems.query_head import QueryHead

UNNAMED = "unnamed"
OVERVIEW_VIEWS, OVERVIEW_HEIGHT = 6, 120
"""Training views that a list is made from, and their height in pixels."""
_COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "white", "gray", "black")
_SMALLEST = 0.001
"""Share of an image; what is smaller in every view is left out."""
_SAME = 0.5
"""A query is not listed if at least this share of its pixels belongs to larger objects of the same name."""

EncodeText = Callable[[Sequence[str]], Float[Tensor, "T C"]]


@dataclass(frozen=True)
class SceneObject:
    """One object that a scene's queries know."""

    query: int
    name: str
    """Best phrase of the vocabulary; "unnamed" where none is relevant enough to be found."""
    confidence: float
    """Relevancy of the query to the best phrase, in [0, 1]; 0.5 is a tie with the best negative."""
    level: str
    """subpart, part or whole; empty for runs without levels."""
    views: int
    """Training views that its masks were found in."""
    size: float
    """Largest share of an image that it fills, over the views looked at, in [0, 1]."""

    def label(self) -> str:
        """One line for a list."""
        return f"{self.name} · {100 * self.size:.1f} % · {self.confidence:.2f}"


def overview_cameras(cameras: Cameras) -> list[Cameras]:
    """A few small cameras [1], evenly spread over training cameras [N], to list a scene's objects from."""
    chosen = np.unique(np.linspace(0, len(cameras) - 1, min(OVERVIEW_VIEWS, len(cameras))).astype(int)).tolist()
    views = [cameras[index : index + 1] for index in chosen]
    for view in views:
        view.rescale_output_resolution(min(1.0, OVERVIEW_HEIGHT / float(view.height.max())))
    return views


@torch.no_grad()
def list_objects(
    head: QueryHead,
    text: EncodeText,
    negatives: Sequence[str],
    views: Sequence[PixelAssignments],
    rule: DecisionRule,
    phrases: Sequence[str] | None = None,
    level: int | None = None,
) -> list[SceneObject]:
    """The objects of a scene, largest first.

    Args:
        head: of the scene.
        text: embeds phrases.
        negatives: phrases that relevancy is measured against.
        views: of the scene; they give the sizes.
        rule: which queries count, and how relevant a name must be.
        phrases: names to choose from; by default the packaged vocabulary, with a color where that fits better.
        level: only queries of this mask level; None: whole objects, and parts that have a name of their own.

    Raises:
        ValueError: an empty vocabulary, or an empty phrase in it. WeightsError: no text model.
    """
    if phrases is not None and (not phrases or not all(phrase.strip() for phrase in phrases)):
        raise ValueError("a vocabulary needs at least one phrase, and none may be empty")
    size = torch.zeros(head.num_queries)
    for view in views:
        size = torch.maximum(size, view.areas(head.num_queries) / (view.size[0] * view.size[1]))
    wanted = (valid_queries(head, rule, level).cpu() & (size > _SMALLEST)).nonzero()[:, 0]
    wanted = wanted[size[wanted].argsort(descending=True)]
    embeddings = head.embeddings.detach()
    against = text(negatives).to(embeddings)
    temperature = rule.sharpness / cosine_spread(head, text(calibration_bank()), rule)
    listed: list[SceneObject] = []
    for query in sorted(wanted.tolist(), key=lambda query: -int(head.levels[query])):  # stable: whole objects first
        name = full_name(embeddings[query], text, phrases)
        confidence = float(relevancy(embeddings[query], text([name]).to(embeddings), against, temperature))
        named = confidence >= rule.found_threshold
        of_level = LEVELS[int(head.levels[query])] if head.by_level else ""
        if level is None and of_level not in ("", LEVELS[-1]):
            same = [other.query for other in listed if other.name == name]
            if not named or _covered(views, query, same) >= _SAME:
                continue
        found = SceneObject(
            query, name if named else UNNAMED, confidence, of_level, int(head.support[query]), float(size[query])
        )
        listed.append(found)
    return sorted(listed, key=lambda found: -found.size)


def full_name(embedding: Float[Tensor, " C"], text: EncodeText, phrases: Sequence[str] | None = None) -> str:
    """The best of some phrases; by default of the vocabulary, with a color where that fits better ("red mug")."""
    if phrases is not None:
        return _best_name(embedding, phrases, text)
    name = _best_name(embedding, vocabulary(), text)
    return _best_name(embedding, (name, *(f"{color} {name}" for color in _COLORS)), text)


def _best_name(embedding: Float[Tensor, " C"], names: Sequence[str], text: EncodeText) -> str:
    return names[int((text(names).to(embedding) @ embedding).argmax())]


def _covered(views: Sequence[PixelAssignments], query: int, others: Sequence[int]) -> float:
    """Share of a query's pixels, over all views, that belong to one of some other queries."""
    own = inside = 0.0
    if not others:
        return 0.0
    for view in views:
        covered = torch.zeros(view.size[0] * view.size[1], dtype=torch.bool)
        mine = torch.zeros_like(covered)
        for part in view.by_level:
            sure, best = (part.best_share > 0.5).cpu(), part.best.long().cpu()
            covered |= sure & torch.isin(best, torch.tensor(list(others)))
            mine |= sure & (best == query)
        own, inside = own + float(mine.sum()), inside + float((mine & covered).sum())
    return inside / max(own, 1.0)
