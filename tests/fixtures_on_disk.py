"""Benchmark scenes for tests: the packaged demo capture in every format of scripts/fixture_formats.py."""

from __future__ import annotations

import sys
from pathlib import Path

from runs import DEMO_CAPTURE

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))

import fixture_formats as formats


def source(frames: int = 14, labelled: int = 4, scale: float = 0.25) -> formats.Source:
    """The demo capture made small."""
    return formats.read_source(DEMO_CAPTURE, frames, labelled, scale)


def scene(folder: Path, kind: str, capture: formats.Source | None = None) -> Path:
    """A scene in a benchmark's format; returns its folder."""
    return formats.WRITERS[kind](capture or source(), folder)
