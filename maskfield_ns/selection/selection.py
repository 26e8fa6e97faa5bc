"""What belongs to a thing: rules on mask features, and the selections they make in Gaussians or in a field."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from maskfield_ns.answers import decision
from maskfield_ns.answers.decision import DecisionRule, evidence
from maskfield_ns.errors import EditError, NothingFoundError, SelectionError
from maskfield_ns.selection.index_codec import Unpacker, pack_indices
from maskfield_ns.systems.query_head import QueryHead

_CHUNK = 1 << 15
"""Feature vectors looked at at once: all queries of a million Gaussians would be gigabytes."""
_SOFTNESS = 0.25
"""A field's membership goes from 0 to 1 while relevancy goes from 1 - this to 1 + this times the threshold."""


@dataclass(frozen=True)
class Membership:
    """Says of mask features whether they belong to a thing: their expected score over queries, as heat maps do."""

    queries: tuple[int, ...]
    scores: tuple[float, ...]
    """Relevancy of each of these queries to the thing, in [0, 1]."""
    threshold: float
    """Relevancy from which features belong to the thing."""
    levels_agreeing: int = 1
    """How many mask levels must agree (``DecisionRule.levels_agreeing``)."""

    @torch.no_grad()
    def relevancy(self, head: QueryHead, features: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch"]:
        """Relevancy in units of the threshold: 1 and more is inside."""
        queries = torch.tensor(self.queries, device=features.device)
        scores = torch.tensor([self.scores], device=features.device, dtype=features.dtype)
        rule = DecisionRule(levels_agreeing=self.levels_agreeing)
        levels = head.levels[queries]
        flat = features.flatten(0, -2)
        parts = [
            decision.heat_map(head.probabilities(part, queries), scores, levels, rule)[..., 0]
            for part in flat.split(_CHUNK)
        ]
        heat = torch.cat(parts) if parts else flat.new_zeros(0)
        return heat.reshape(features.shape[:-1]) / self.threshold

    def soft(self, head: QueryHead, features: Float[Tensor, "*batch D"], least: float = 1.0) -> Float[Tensor, "*batch"]:
        """Membership in [0, 1], 0.5 at ``least`` times the threshold; smooth, so that borders do not alias."""
        x = ((self.relevancy(head, features) / least - 1) / (2 * _SOFTNESS) + 0.5).clamp(0, 1)
        return x * x * (3 - 2 * x)

    def to_json(self) -> dict[str, Any]:
        """Plain numbers; queries that count for nothing are kept, since silent levels have a vote too."""
        return {
            "queries": list(self.queries),
            "scores": [round(s, 4) for s in self.scores],
            "threshold": self.threshold,
            "levels_agreeing": self.levels_agreeing,
        }

    @classmethod
    def from_json(cls, data: Any, num_queries: int | None = None) -> Membership:
        """The inverse of :meth:`to_json`.

        Raises:
            EditError: something else, or queries that the scene does not have.
        """
        try:
            queries, scores = tuple(data["queries"]), tuple(float(s) for s in data["scores"])
            threshold, agreeing = float(data["threshold"]), data["levels_agreeing"]
            if not all(type(number) is int and number < 1 << 31 for number in (*queries, agreeing)):
                raise TypeError("queries and levels are counted in whole numbers")
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise EditError("a selection's rule needs queries, scores, threshold and levels_agreeing") from error
        sane = len(queries) == len(scores) > 0 and 0 < threshold < math.inf and agreeing >= 1 and min(queries) >= 0
        if not sane or not all(math.isfinite(s) for s in scores):
            raise EditError("a selection's rule is damaged: its queries, scores or threshold make no sense")
        if num_queries is not None and max(queries) >= num_queries:
            raise EditError(f"a selection names query {max(queries)}, and the scene has {num_queries}: another run?")
        return cls(queries, scores, threshold, agreeing)


def phrase_membership(
    scores: Float[Tensor, " Q"],
    levels: Int[Tensor, " Q"],
    valid: Bool[Tensor, " Q"],
    weights: Float[Tensor, " Q"],
    rule: DecisionRule,
) -> Membership:
    """The rule by which pixels answer a phrase, for anything that has mask features.

    Args:
        scores: relevancy of every query to the phrase.
        levels: level of every query.
        valid: queries that count.
        weights: how much each counts as evidence.
        rule: how relevancies become answers.

    Raises:
        SelectionError: nothing is relevant enough.
    """
    used = valid.nonzero()[:, 0]
    sure = float(evidence(scores[used], weights[used])) if len(used) else 0.0
    if sure < rule.found_threshold:
        raise NothingFoundError(f"nothing there answers this (best relevancy {sure:.2f}): nothing to select")
    agreeing = min(rule.levels_agreeing, len(levels[used].unique()))
    return Membership(
        tuple(used.tolist()), tuple(scores[used].tolist()), rule.mask_share * float(scores[used].max()), agreeing
    )


def query_membership(queries: Sequence[int], threshold: float = 0.5) -> Membership:
    """Whatever belongs to any of some queries by more than ``threshold``."""
    return Membership(tuple(queries), (1.0,) * len(queries), threshold)


class Selection(ABC):
    """A thing, or things, in one trained scene. Immutable; ``|`` adds, ``-`` removes."""

    kind: ClassVar[str]
    name: str

    @property
    @abstractmethod
    def empty(self) -> bool:
        """Whether nothing is selected."""

    @abstractmethod
    def __or__(self, other: Selection) -> Selection: ...

    @abstractmethod
    def __sub__(self, other: Selection) -> Selection: ...

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """What an edit file holds."""

    @abstractmethod
    def named(self, name: str) -> Selection:
        """The same under another name."""


@dataclass(frozen=True, eq=False)
class GaussianSelection(Selection):
    """Some of a scene's Gaussians."""

    kind = "gaussians"

    name: str
    members: Int[np.ndarray, " N"]
    """Their indices, sorted, int64."""
    fringe: Int[np.ndarray, " M"]
    """Gaussians around the thing that show some of it (its edge, its shade of colour): gone with it, but never
    carried along. Sorted, disjoint from ``members``."""
    count: int
    """Gaussians in the scene."""

    def __post_init__(self) -> None:
        """Checks the indices.

        Raises:
            SelectionError: one is out of range.
        """
        for name in ("members", "fringe"):
            indices = np.asarray(getattr(self, name), np.int64)
            if not (indices[1:] > indices[:-1]).all():
                indices = np.unique(indices)
            if len(indices) and (indices[0] < 0 or indices[-1] >= self.count):
                raise SelectionError(f"Gaussian {indices[-1]} does not exist: the scene has {self.count}")
            object.__setattr__(self, name, indices)
        object.__setattr__(self, "fringe", np.setdiff1d(self.fringe, self.members))

    @property
    def empty(self) -> bool:
        return not len(self.members)

    @property
    def mask(self) -> Bool[np.ndarray, " count"]:
        """Per Gaussian of the scene: is it selected?"""
        result = np.zeros(self.count, bool)
        result[self.members] = True
        return result

    def __or__(self, other: Selection) -> GaussianSelection:
        other = self._same_scene(other)
        members, fringe = np.union1d(self.members, other.members), np.union1d(self.fringe, other.fringe)
        return GaussianSelection(f"{self.name}, {other.name}", members, fringe, self.count)

    def __sub__(self, other: Selection) -> GaussianSelection:
        other = self._same_scene(other)
        members, fringe = np.setdiff1d(self.members, other.members), np.setdiff1d(self.fringe, other.members)
        return GaussianSelection(f"{self.name} without {other.name}", members, fringe, self.count)

    def named(self, name: str) -> GaussianSelection:
        return replace(self, name=name)

    def _same_scene(self, other: Selection) -> GaussianSelection:
        if not isinstance(other, GaussianSelection) or other.count != self.count:
            raise SelectionError("selections of different scenes cannot be combined")
        return other

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "name": self.name,
            "count": self.count,
            "members": self._packed[0],
            "fringe": self._packed[1],
        }

    @cached_property
    def _packed(self) -> tuple[str, str]:
        """Members and fringe as text; a list of edits compares its selections by it, again with every edit."""
        return pack_indices(self.members), pack_indices(self.fringe)


@dataclass(frozen=True)
class FieldTerm:
    """One step of a field selection."""

    adds: bool
    """Adds to what is selected so far, or takes from it."""
    rule: Membership
    cells: tuple[int, ...] | Int[np.ndarray, " N"]
    """Cells of the unit cube (contracted scene) in which the rule holds; elsewhere nothing belongs to the thing.
    Sorted."""
    core: tuple[int, ...] | Int[np.ndarray, " M"] = ()
    """Cells inside the thing, where everything belongs to it: no view has ever seen what the mask field says there.
    Sorted."""

    def kinds(self, cells: Int[Tensor, " P"]) -> UInt8[Tensor, " P"]:
        """What the term says of cells: 2 all of it belongs (core), 1 the rule decides, 0 nothing belongs."""
        result = torch.zeros(cells.shape, dtype=torch.uint8, device=cells.device)
        for kind, members in enumerate((self.cells, self.core), 1):
            known = torch.tensor(np.asarray(members, np.int64), device=cells.device)
            if len(known):
                place = torch.searchsorted(known, cells).clamp(max=len(known) - 1)
                result[known[place] == cells] = kind
        return result


@dataclass(frozen=True, eq=False)
class FieldSelection(Selection):
    """A thing in a radiance field: rules on the mask field, each within some cells of space."""

    kind = "field"

    name: str
    terms: tuple[FieldTerm, ...]
    resolution: int
    """The contracted scene is cut into this many cells along each axis."""

    @property
    def empty(self) -> bool:
        return not any(term.adds and len(term.cells) for term in self.terms)

    @property
    def cells(self) -> Int[np.ndarray, " N"]:
        """All cells in which something may be selected, sorted."""
        added = [np.asarray(term.cells, np.int64) for term in self.terms if term.adds]
        return np.unique(np.concatenate(added)) if added else np.zeros(0, np.int64)

    def __or__(self, other: Selection) -> FieldSelection:
        other = self._same_scene(other)
        if any(not term.adds for term in other.terms):
            raise SelectionError(f'"{other.name}" was made by removing: add to it rather than adding it')
        return replace(self, name=f"{self.name}, {other.name}", terms=self.terms + other.terms)

    def __sub__(self, other: Selection) -> FieldSelection:
        other = self._same_scene(other)
        taken = tuple(replace(term, adds=False) for term in other.terms if term.adds)
        return replace(self, name=f"{self.name} without {other.name}", terms=self.terms + taken)

    def named(self, name: str) -> FieldSelection:
        return replace(self, name=name)

    def _same_scene(self, other: Selection) -> FieldSelection:
        if not isinstance(other, FieldSelection) or other.resolution != self.resolution:
            raise SelectionError("selections of different scenes cannot be combined")
        return other

    def to_json(self) -> dict[str, Any]:
        terms = [
            {
                "adds": t.adds,
                "rule": t.rule.to_json(),
                "cells": pack_indices(np.asarray(t.cells, np.int64)),
                "core": pack_indices(np.asarray(t.core, np.int64)),
            }
            for t in self.terms
        ]
        return {"kind": self.kind, "name": self.name, "resolution": self.resolution, "terms": terms}


def selection_from_json(data: Any, unpack: Callable[[Any, int], Int[np.ndarray, " N"]] | None = None) -> Selection:
    """The inverse of ``Selection.to_json``.

    Args:
        data: plain data.
        unpack: for sets of indices; an :class:`maskfield_ns.selection.index_codec.Unpacker` bounds those of a file.

    Raises:
        EditError: something else.
    """
    unpack = unpack or Unpacker()
    try:
        kind, name = data["kind"], data["name"]
        if not isinstance(name, str):
            raise EditError("the name of a selection is no text")
        if kind == GaussianSelection.kind:
            count = _whole(data["count"], "a selection's number of Gaussians", 1 << 31)
            members, fringe = unpack(data["members"], count), unpack(data["fringe"], count)
            return GaussianSelection(name, members, fringe, count)
        if kind == FieldSelection.kind:
            resolution = _whole(data["resolution"], "a selection's resolution", 1024)
            terms = tuple(
                FieldTerm(
                    _yes_or_no(term["adds"]),
                    Membership.from_json(term["rule"]),
                    unpack(term["cells"], resolution**3),
                    unpack(term["core"], resolution**3),
                )
                for term in data["terms"]
            )
            return FieldSelection(name, terms, resolution)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise EditError(f"a selection is damaged: {error!r}") from error
    raise EditError(f"a selection of kind {str(kind)[:40]!r} is unknown to this version")


def _whole(value: Any, what: str, most: int) -> int:
    if type(value) is not int or not 1 <= value <= most:
        raise EditError(f"{what} must be a whole number from 1 to {most}, not {str(value)[:40]}")
    return value


def _yes_or_no(value: Any) -> bool:
    if not isinstance(value, bool):
        raise EditError("whether a term adds must be true or false")
    return value
