"""The answer to one question, and what a user has chosen by several."""

from __future__ import annotations

import html
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool
from torch import Tensor

from maskfield_ns.answers.assignments import PixelAssignments
from maskfield_ns.answers.membership import MembershipRule
from maskfield_ns.errors import SelectionError
from maskfield_ns.systems.query_head import QueryHead

if TYPE_CHECKING:
    from maskfield_ns.selection.selection import Selection

Place = tuple[float, float, float]


@dataclass(frozen=True)
class Answer:
    """Result of one question: a text, an image, a pixel or a region of an image. Can be pickled and compared."""

    phrase: str
    """The phrase, or a name for anything else that was asked with."""
    score: float
    """Evidence that the scene shows it (:func:`maskfield_ns.answers.decision.evidence`), in [0, 1]. Of a pixel or
    region: the share of it that belongs to the object."""
    found: bool
    """Whether the evidence reaches the measured threshold: False means nothing in the scene answers."""
    queries: tuple[int, ...]
    """The scene's queries that answer, best first; empty when not found."""
    negatives: tuple[str, ...] = ()
    """Phrases that the relevancy was measured against; empty for anything but text."""
    rule: MembershipRule | None = field(default=None, repr=False)
    """Decides from mask features what belongs to the answer; None where the scene has no valid query."""
    places: tuple[Place, ...] = ()
    """Scene coordinates [3] of what was pointed at: of the pieces in 3D the nearest one is meant. Several where a pixel
    shows a copy: wherever it may stem from."""
    reason: str = ""
    """Why nothing was found, where there is more to say."""
    _select: Callable[[Answer], Selection] | None = field(default=None, repr=False, compare=False)

    @cached_property
    def selection(self) -> Selection:
        """What answers, in 3D; worked out at first use.

        Raises:
            SelectionError: nothing was found, or the answer was loaded from a file: use ``scene.select(answer)``.
        """
        if self._select is None:
            raise SelectionError(f'the answer to "{self.phrase}" is not tied to an opened scene: scene.select(answer)')
        return self._select(self)

    def mask(self, head: QueryHead, view: PixelAssignments) -> Bool[Tensor, "H W"]:
        """Pixels of a view that answer; none where nothing was found."""
        if not self.found or self.rule is None:
            return torch.zeros(view.size, dtype=torch.bool, device=head.levels.device)
        return self.rule.mask(head, view)

    def to_json(self) -> dict[str, Any]:
        """Plain numbers and texts."""
        return {
            "phrase": self.phrase,
            "score": self.score,
            "found": self.found,
            "queries": list(self.queries),
            "negatives": list(self.negatives),
            "rule": None if self.rule is None else self.rule.to_json(),
            "places": [list(place) for place in self.places],
        }

    def _repr_html_(self) -> str:
        """For notebooks."""
        verdict = "found" if self.found else "not found"
        return f"<b>{html.escape(self.phrase)}</b>: {verdict}, evidence {self.score:.2f}, {len(self.queries)} queries"

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the tie to the opened scene."""
        return {name: None if name == "_select" else value for name, value in self.__dict__.items()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`__getstate__`."""
        self.__dict__.update(state)


@dataclass(frozen=True)
class Chosen:
    """Answers that were added and removed, in order; replaced as a whole, never changed."""

    terms: tuple[tuple[bool, Answer], ...] = ()
    """(added or removed, answer)."""

    @classmethod
    def of(cls, *answers: Answer) -> Chosen:
        """All that was found."""
        return cls(tuple((True, answer) for answer in answers if answer.found))

    def __bool__(self) -> bool:
        return bool(self.terms)

    @property
    def name(self) -> str:
        """Names of what was added."""
        return " + ".join(dict.fromkeys(answer.phrase for adds, answer in self.terms if adds and answer.phrase))

    @property
    def queries(self) -> tuple[int, ...]:
        """Queries of what was added and not removed."""
        queries: set[int] = set()
        for adds, answer in self.terms:
            queries = queries | set(answer.queries) if adds else queries - set(answer.queries)
        return tuple(sorted(queries))

    def union(self, other: Chosen) -> Chosen:
        """Both."""
        return Chosen(self.terms + tuple(term for term in other.terms if term not in self.terms))

    def minus(self, other: Chosen) -> Chosen:
        """This without what the other one adds: what was added just so is taken back, all else is cut out."""
        gone = [answer for adds, answer in other.terms if adds]
        left = tuple(term for term in self.terms if not term[0] or term[1] not in gone)
        if not any(adds for adds, _ in left):
            return Chosen()
        added = [answer for adds, answer in self.terms if adds]
        return Chosen(left + tuple((False, answer) for answer in gone if answer not in added))

    def mask(self, head: QueryHead, view: PixelAssignments) -> Bool[Tensor, "H W"]:
        """Pixels of a view that are chosen."""
        result = torch.zeros(view.size, dtype=torch.bool, device=head.levels.device)
        for adds, answer in self.terms:
            own = answer.mask(head, view)
            result = result | own if adds else result & ~own
        return result
