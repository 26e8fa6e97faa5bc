"""A job in steps, each the command a user would type, run as a process of its own, timed and measured."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from maskfield_ns.errors import MaskfieldError

MAX_THREADS = 8
"""More threads than this only wait for each other on the small tensors of the CPU methods."""
NOISE = (
    "ignore::FutureWarning",
    "ignore::DeprecationWarning",
    *(
        f"ignore::UserWarning:{module}"
        for module in (
            "nerfstudio.cameras.cameras",
            "nerfstudio.engine.optimizers",
            "nerfstudio.utils.writer",
            "torch.utils.data.dataloader",
        )
    ),
)
"""Warnings of nerfstudio and torch about each other, which no user can do anything about."""
_VERSIONS = ("maskfield-ns", "nerfstudio", "torch", "torchvision", "open_clip_torch", "segment-anything", "numpy")


@dataclass(frozen=True)
class Step:
    """A step that has been run."""

    name: str
    command: str
    """As a shell would take it."""
    seconds: float
    """Wall time, start-up of the command included."""
    peak_mb: float
    """Largest resident set of the process, in 10^6 bytes."""

    def to_json(self) -> dict[str, Any]:
        """Plain values, rounded to what means something."""
        return asdict(self) | {"seconds": round(self.seconds, 1), "peak_mb": round(self.peak_mb)}


def run_step(title: str, name: str, command: Sequence[str | Path], log: Path | None = None) -> Step:
    """Runs a command to its end under a header; its output is the user's to see, or goes to a file.

    Args:
        title: what the header says.
        name: what the step is called in results.
        command: program and arguments; the program is taken from this Python's environment if it is there.
        log: file for the output; None: shown.

    Raises:
        MaskfieldError: the program is missing, or ended with another exit code than 0.
    """
    words = [str(word) for word in command]
    shown = shlex.join(words)
    print(f"\n=== {title}\n$ {shown}", flush=True)
    program = find_program(words[0])
    started = time.monotonic()
    output = None if log is None else log.open("wb")
    try:
        process = subprocess.Popen(
            [program, *words[1:]], env=child_environment(os.environ), stdout=output, stderr=output and subprocess.STDOUT
        )
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except KeyboardInterrupt:  # the terminal has told the child too
            process.wait()
            raise
        process.returncode = os.waitstatus_to_exitcode(status)
    finally:
        if output is not None:
            output.close()
    seconds = time.monotonic() - started
    if process.returncode:
        ended = f"exit code {process.returncode}" if process.returncode > 0 else f"signal {-process.returncode}"
        where = "its message is above" if log is None else f"its message is at the end of {log}:\n{_tail(log)}"
        raise MaskfieldError(f'the step "{name}" ended with {ended} after {seconds:.0f} s; {where}')
    print(f"--- {name}: {duration(seconds)}", flush=True)
    # ru_maxrss is in KiB on Linux and in bytes on macOS.
    return Step(name, shown, seconds, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6)


def child_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment for a step: what the user has set, and defaults for the rest.

    OpenMP threads that spin while they wait starve whatever else runs on a small machine, the other threads included:
    ten times slower steps on two busy cores.
    """
    defaults = {
        "OMP_NUM_THREADS": str(min(usable_cores(), MAX_THREADS)),
        "OMP_WAIT_POLICY": "passive",
        "PYTHONWARNINGS": ",".join(NOISE),
    }
    return defaults | dict(environment)


def usable_cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def find_program(name: str) -> str:
    """Path of a console script of this Python's environment, else from the search path.

    Raises:
        MaskfieldError: there is none.
    """
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.is_file() else shutil.which(name)
    if found is None:
        raise MaskfieldError(f"the command {name} is not installed: install maskfield-ns into this environment again")
    return found


def installed_versions() -> dict[str, str]:
    """Python's and the main packages' versions, and the number of cores: what figures depend on."""
    found = {"python": platform.python_version()}
    for name in _VERSIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found | {"cores": str(usable_cores())}


def duration(seconds: float) -> str:
    """Seconds for people."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _tail(log: Path, lines: int = 12) -> str:
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
