"""What every command shares: groups of options, refusal of wrong values before anything is loaded, and results.

Importing this loads nothing but the standard library.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from maskfield_ns.errors import MaskfieldError

Level = Literal["auto", "subpart", "part", "whole"]
Vector = tuple[float, float, float]


@dataclass
class Result:
    """What a command has done."""

    data: dict[str, Any] = field(default_factory=dict)
    """What ``--json`` prints."""
    found: bool = True
    """False if a question was asked and nothing in the scene answers: exit code 3."""


@dataclass
class Printing:
    """Printed output."""

    json: bool = False
    """Print the result as one JSON document on standard output, and nothing else there."""
    quiet: bool = False
    """Print nothing but errors."""


@dataclass
class Target:
    """Object to select: a phrase or numbered queries."""

    text: str | None = None
    """Phrase that names the object, e.g. "red mug"."""
    queries: tuple[int, ...] = ()
    """Numbers of queries, as maskfield export lists them in objects.json, instead of a phrase."""
    level: Level = "auto"
    """Mask level that the phrase is answered at; auto: all levels together."""

    def check(self) -> None:
        """Refuses empty phrases and negative numbers.

        Raises:
            MaskfieldError: says which.
        """
        if self.text is not None and not self.text.strip():
            raise MaskfieldError('--text needs a phrase, e.g. --text "red mug"')
        if self.text is not None and self.queries:
            raise MaskfieldError("give either --text or --queries, not both")
        check_queries(self.queries)

    @property
    def given(self) -> bool:
        """Whether an object is named."""
        return self.text is not None or bool(self.queries)


def check_queries(queries: Iterable[int]) -> None:
    """Refuses negative query numbers.

    Raises:
        MaskfieldError: there is one.
    """
    if any(query < 0 for query in queries):
        raise MaskfieldError("--queries takes numbers from 0 on, as in objects.json")


def check_phrases(phrases: Iterable[str]) -> None:
    """Refuses empty phrases.

    Raises:
        MaskfieldError: there is one.
    """
    if not all(phrase.strip() for phrase in phrases):
        raise MaskfieldError('give at least one phrase, e.g. --text "red mug", and no empty one')


def check_run(path: Path) -> None:
    """Refuses a run that is not there or was never saved.

    Raises:
        CheckpointError: says what is missing.
    """
    from maskfield_ns.checkpoints import newest_first
    from maskfield_ns.errors import CheckpointError
    from maskfield_ns.runs import CHECKPOINTS, find_config

    folder = find_config(path).resolve().parent / CHECKPOINTS
    if not newest_first(folder):
        raise CheckpointError(f"no checkpoint in {folder}: the training was stopped before its first save")


def check_folder(path: Path) -> None:
    """Makes the output folder.

    Raises:
        MaskfieldError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MaskfieldError(f"cannot write to {path}: {error.strerror}") from error


def check_file(path: Path | None, option: str, suffixes: tuple[str, ...]) -> None:
    """Refuses an output file of another kind, or in a folder that is not there.

    Raises:
        MaskfieldError: says what is wrong.
    """
    if path is None:
        return
    if path.suffix.lower() not in suffixes:
        raise MaskfieldError(f"{option} writes {' or '.join(suffixes)} files, not {path.name}")
    if not path.resolve().parent.is_dir():
        raise MaskfieldError(f"{option} {path}: there is no folder {path.resolve().parent}")


def check_numbers(option: str, values: Iterable[float] | None, low: float = -math.inf, high: float = math.inf) -> None:
    """Refuses numbers that are not finite or outside bounds.

    Raises:
        MaskfieldError: names the option and the bounds.
    """
    for value in values or ():
        if not math.isfinite(value) or not low <= value <= high:
            bounds = f"from {low:g} to {high:g}" if math.isfinite(high) else "that are finite"
            raise MaskfieldError(f"{option} takes numbers {bounds}, not {value:g}")
