"""Names of everyday things, packaged: for lists of what a scene contains, and to know how far apart cosines lie."""

from __future__ import annotations

from functools import lru_cache
from importlib import resources

_EVERY = 4
"""Every so many names make the bank: enough for a standard deviation, quick to embed with a large text model."""


@lru_cache(maxsize=1)
def vocabulary() -> tuple[str, ...]:
    """The packaged names: common things indoors and outdoors."""
    text = resources.files("maskfield_ns.assets").joinpath("vocabulary.txt").read_text(encoding="utf-8")
    lines = (line.strip() for line in text.splitlines())
    return tuple(dict.fromkeys(line for line in lines if line and not line.startswith("#")))


def calibration_bank() -> tuple[str, ...]:
    """Phrases of all kinds that an embedder's cosines are measured with."""
    return vocabulary()[::_EVERY]
