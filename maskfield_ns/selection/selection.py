"""Selections: objects in 3D, as Gaussians or as a part of a radiance field."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Int, UInt8
from torch import Tensor

from maskfield_ns.answers.membership import MembershipRule
from maskfield_ns.errors import EditError, SelectionError
from maskfield_ns.selection.index_codec import Unpacker, pack_indices


class Selection(ABC):
    """Objects of one trained scene. Immutable; ``|`` adds, ``-`` removes."""

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


@dataclass(frozen=True, eq=False, repr=False)
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
        if len(self.members):  # both are sorted: a search is many times faster than numpy's set operations
            place = np.searchsorted(self.members, self.fringe).clip(max=len(self.members) - 1)
            object.__setattr__(self, "fringe", self.fringe[self.members[place] != self.fringe])

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

    def __repr__(self) -> str:
        return f'GaussianSelection("{self.name}": {len(self.members)} of {self.count} Gaussians)'

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
    rule: MembershipRule
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


@dataclass(frozen=True, eq=False, repr=False)
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

    def __repr__(self) -> str:
        return f'FieldSelection("{self.name}": {len(self.cells)} of {self.resolution}^3 cells)'

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
                    MembershipRule.from_json(term["rule"]),
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
