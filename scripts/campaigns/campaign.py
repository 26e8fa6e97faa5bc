"""What all campaigns share: seeded cases within a count and a time, and the tally of what became of them."""

from __future__ import annotations

import argparse
import contextlib
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from maskfield_ns.errors import MaskfieldError
from maskfield_ns.files import write_json


class Wrong(Exception):
    """A case was accepted and the result is not what it must be."""


class Refused(Exception):
    """A case was refused as it should be, by other means than a MaskfieldError (a command's one line)."""


class TooSlow(BaseException):
    """A case took too long. No Exception: code that is tried must not take it for one of its own."""


@dataclass
class Campaign:
    """Tries cases and counts: refused clearly, accepted, failed (a raw exception, a wrong result, too slow)."""

    name: str
    cases: int
    """At most this many."""
    seconds: float = float("inf")
    """No new case after this time."""
    seed: int = 0
    case_seconds: float = 60.0
    """A case that takes longer has failed."""
    tried: int = 0
    refused: int = 0
    accepted: int = 0
    failed: int = 0
    failures: list[str] = field(default_factory=list)
    """One entry per failure: the case and what happened."""
    messages: dict[str, int] = field(default_factory=dict)
    """Beginnings of refusals, and how many there were."""
    notes: dict[str, Any] = field(default_factory=dict)
    """Further figures of the campaign."""

    def each(self) -> Iterator[tuple[int, np.random.Generator]]:
        """Case numbers and their random generators; a case depends on seed and number alone."""
        end = time.monotonic() + self.seconds
        for number in range(self.cases):
            if time.monotonic() > end:
                return
            yield number, np.random.default_rng([self.seed, number])

    def attempt(self, label: str, act: Callable[[], object]) -> bool:
        """Tries one case: ``act`` returns if it is accepted and right, raises :class:`Wrong` if the result is wrong.

        Returns:
            Whether the case was handled as it must be: accepted, or refused in one line.
        """
        self.tried += 1
        try:
            with _alarm(self.case_seconds):
                act()
        except (MaskfieldError, Refused) as error:
            text = str(error)
            if not text.strip() or len(text.splitlines()) != 1:
                return self._fail(label, f"a refusal that is not one line: {text!r}")
            self.refused += 1
            key = f"{type(error).__name__}: {text[:60]}"
            self.messages[key] = self.messages.get(key, 0) + 1
            return True
        except (Exception, TooSlow) as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            return self._fail(label, f"{type(error).__name__}: {error} ({Path(place.filename).name}:{place.lineno})")
        self.accepted += 1
        return True

    def _fail(self, label: str, what: str) -> bool:
        self.failed += 1
        self.failures.append(f"{label}: {what}"[:1000])
        return False

    def line(self) -> str:
        """The tally in a line."""
        counts = f"{self.tried} tried, {self.refused} refused clearly, {self.accepted} accepted, {self.failed} failed"
        notes = "".join(f"; {name}: {value}" for name, value in self.notes.items())
        return f"{self.name}: {counts} (seed {self.seed}){notes}"


@contextlib.contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """Ends the block with TooSlow after some seconds, where signals can (the main thread of a POSIX system)."""

    def ring(*_: object) -> None:
        raise TooSlow(f"took more than {seconds:.0f} s")

    try:
        before = signal.signal(signal.SIGALRM, ring)
    except (ValueError, AttributeError):
        yield
        return
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def parser(description: str | None, cases: int) -> argparse.ArgumentParser:
    """Options that all campaigns have: --cases, --seconds, --seed, --output."""
    result = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--cases", type=int, default=cases, help="how many, at most")
    result.add_argument("--seconds", type=float, default=float("inf"), help="no new case after this time")
    result.add_argument("--seed", type=int, default=0, help="of the cases")
    result.add_argument("--output", type=Path, help="JSON file for the tallies")
    return result


def options(description: str | None, cases: int, arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line of a campaign without options of its own."""
    return parser(description, cases).parse_args(arguments)


def finish(campaigns: Sequence[Campaign], output: Path | None = None) -> int:
    """Prints the tallies and what failed; returns the exit code: 1 if anything did."""
    for campaign in campaigns:
        print(campaign.line())
        for failure in campaign.failures[:20]:
            print(f"  failed: {failure}")
    if output is not None:
        write_json(output, [asdict(campaign) for campaign in campaigns])
    return int(any(campaign.failed for campaign in campaigns))
