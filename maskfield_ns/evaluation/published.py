"""Published figures of the benchmarks, each with where it was printed and how sure that is."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Literal

Evidence = Literal["paper", "secondary", "unverified", "issue thread"]


@dataclass(frozen=True)
class Published:
    """One printed number."""

    protocol: str
    metric: str
    """Key of the figure in results, like ``miou``."""
    method: str
    scene: str
    """A scene, or ``mean of N`` scenes."""
    value: str
    """Per cent, in the precision it was printed with."""
    source: str
    evidence: Evidence
    """paper: read in the paper. secondary: copied from another paper or a summary. issue thread: said by the authors
    there. unverified: widely quoted, but no copy could be opened."""
    note: str


@lru_cache
def published_results() -> tuple[Published, ...]:
    """All of them, in the order of the table ``assets/published_results.csv``."""
    text = files("maskfield_ns.assets").joinpath("published_results.csv").read_text(encoding="utf-8")
    return tuple(Published(**row) for row in csv.DictReader(text.splitlines()))  # type: ignore[arg-type]


def published(protocol: str, metric: str) -> list[Published]:
    """Those of one figure of a benchmark."""
    return [row for row in published_results() if (row.protocol, row.metric) == (protocol, metric)]
