"""Short runs of the campaigns against kills, damaged entries and checkpoints, .ply files and edit lists."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

CAMPAIGNS = Path(__file__).parent.parent / "scripts" / "campaigns"


@pytest.fixture
def campaign(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], ModuleType]]:
    monkeypatch.syspath_prepend(str(CAMPAIGNS))
    yield importlib.import_module
    for name in ("corrupt", "files", "kill"):
        sys.modules.pop(name, None)


def failures(tallies: list[Any], least: int) -> list[str]:
    assert all(tally.tried >= least and tally.accepted + tally.refused == tally.tried for tally in tallies), tallies
    return [failure for tally in tallies for failure in tally.failures]


def test_damaged_entries_and_checkpoints_are_never_taken_for_good_ones(campaign: Callable[[str], Any]) -> None:
    assert failures(campaign("corrupt").run(120, seed=1), 30) == []


def test_damaged_files_are_refused_or_read_right_and_within_memory(campaign: Callable[[str], Any]) -> None:
    assert failures(campaign("files").run(60, seed=1), 60) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")
def test_a_killed_extraction_loses_nothing(campaign: Callable[[str], Any]) -> None:
    (tally,) = campaign("kill").run(6, seed=1, only="extraction")
    assert failures([tally], 7) == [] and tally.notes["killed"] > 0


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")
def test_a_killed_training_loses_nothing(campaign: Callable[[str], Any]) -> None:
    """In a process of its own: a process that has trained must not fork."""
    import subprocess

    command = [sys.executable, str(CAMPAIGNS / "kill.py"), "--cases", "8", "--seed", "1", "--only", "training"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-2000:]
    assert " 0 failed" in run.stdout


def test_a_wrong_result_and_a_traceback_count_as_failures(campaign: Callable[[str], Any]) -> None:
    module = campaign("campaign")
    tally = module.Campaign("itself", 9)

    def wrong() -> None:
        raise module.Wrong("another value")

    def refused() -> None:
        from maskfield_ns.errors import MaskfieldError

        raise MaskfieldError("one line")

    def long() -> None:
        from maskfield_ns.errors import MaskfieldError

        raise MaskfieldError("two\nlines")

    cases: list[Callable[[], object]] = [wrong, refused, long, lambda: 1 / 0, lambda: None]
    assert [tally.attempt("case", case) for case in cases] == [False, True, False, False, True]
    assert (tally.tried, tally.refused, tally.accepted, tally.failed) == (5, 1, 1, 3)
    assert module.finish([tally]) == 1
