"""What a scene contains: its queries, named by the best phrase of a vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from maskfield_ns.answers.assignments import Memberships
from maskfield_ns.answers.relevancy import relevancy
from maskfield_ns.foundation.protocols import LEVELS

if TYPE_CHECKING:
    from maskfield_ns.viewer.session import Settings

_COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "white", "grey", "black")
_SMALLEST = 0.001
"""Share of a picture; what is smaller in every view is left out."""


@dataclass(frozen=True)
class Thing:
    """One query, named."""

    query: int
    name: str
    confidence: float
    """Relevancy of the name, in [0, 1]; 0.5 is a tie with the best negative."""
    size: float
    """Largest share of a picture that it fills, over the views looked at."""

    def label(self) -> str:
        """One line for a list."""
        return f"{self.name} · {100 * self.size:.1f} % · {self.confidence:.2f}"


@lru_cache(maxsize=1)
def vocabulary() -> tuple[str, ...]:
    """The packaged names: common things indoors and outdoors."""
    text = resources.files("maskfield_ns.assets").joinpath("vocabulary.txt").read_text(encoding="utf-8")
    lines = (line.strip() for line in text.splitlines())
    return tuple(dict.fromkeys(line for line in lines if line and not line.startswith("#")))


@torch.no_grad()
def list_things(
    model: Any, settings: Settings, views: Sequence[Memberships], phrases: Sequence[str] = ()
) -> list[Thing]:
    """Things of one level (wholes unless the settings name another), largest first.

    Args:
        model: a QueryableModel with its text model loaded.
        settings: of the panel.
        views: to measure sizes in.
        phrases: names to choose from; :func:`vocabulary` by default.
    """
    head, rule = model.query_head, settings.rule
    valid = head.valid(rule.min_support, rule.min_share)
    if head.by_level:
        valid = valid & (head.levels == (len(LEVELS) - 1 if settings.level is None else settings.level))
    size = torch.zeros(head.num_queries)
    for view in views:
        for part in view.by_level:
            inside = part.best[part.best_share > 0.5].long()
            share = torch.bincount(inside, minlength=head.num_queries).cpu() / (view.size[0] * view.size[1])
            size = torch.maximum(size, share)
    chosen = (valid.cpu() & (size > _SMALLEST)).nonzero()[:, 0]
    chosen = chosen[size[chosen].argsort(descending=True)]
    embeddings = head.embeddings.detach()[chosen.to(head.levels.device)]
    own = tuple(phrases)
    names = [_best_name(e, own, model.text) if own else full_name(e, model.text) for e in embeddings]
    negatives = model.text(model.config.negatives).to(embeddings)
    things = []
    for query, name, embedding in zip(chosen.tolist(), names, embeddings, strict=True):
        confidence = relevancy(embedding, model.text([name]).to(embeddings), negatives, rule.temperature)
        things.append(Thing(query, name, float(confidence), float(size[query])))
    return things


def full_name(embedding: Float[Tensor, " C"], text: Callable) -> str:
    """The best name of the vocabulary, with a colour where that fits better: "mug" or "red mug"."""
    name = _best_name(embedding, vocabulary(), text)
    return _best_name(embedding, (name, *(f"{colour} {name}" for colour in _COLOURS)), text)


def _best_name(embedding: Float[Tensor, " C"], names: Sequence[str], text: Callable) -> str:
    vectors = text(names).to(embedding)
    return names[int((vectors @ embedding).argmax())]
