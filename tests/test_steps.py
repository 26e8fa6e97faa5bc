"""Steps of the demo and of measurements: processes with a time, a peak of memory and an honest end."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from maskfield_ns.commands import steps
from maskfield_ns.commands.steps import child_environment, duration, find_program, run_step
from maskfield_ns.errors import MaskfieldError


def python(code: str) -> list[str]:
    """A command that runs some Python."""
    return [sys.executable, "-c", code]


def test_a_step_is_announced_timed_and_measured(capfd: pytest.CaptureFixture[str]) -> None:
    started = time.monotonic()
    step = run_step("a title", "fill", python("import time; b = bytearray(200_000_000); time.sleep(0.2); print('hi')"))
    elapsed = time.monotonic() - started
    assert 0.2 < step.seconds <= elapsed
    assert step.peak_mb > 200
    out = capfd.readouterr().out
    assert out.index("=== a title") < out.index("$ ") < out.index("hi") < out.index("--- fill")


def test_peak_memory_is_that_of_the_step_and_not_of_an_earlier_one() -> None:
    # Measured from a small process, as the commands do: a child's peak starts at the size of the process it was
    # spawned from, and a test run that has built full-size models is several gigabytes large.
    code = """
import sys
from maskfield_ns.commands.steps import run_step
run_step("", "large", [sys.executable, "-c", "bytearray(300_000_000)"])
assert run_step("", "small", [sys.executable, "-c", "pass"]).peak_mb < 150
"""
    subprocess.run(python(code), check=True)


def test_a_failed_step_ends_with_its_exit_code(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(MaskfieldError, match=r'"train" ended with exit code 3 .* message is above'):
        run_step("", "train", python("import sys; print('no disk', file=sys.stderr); sys.exit(3)"))
    assert "no disk" in capfd.readouterr().err


def test_a_killed_step_says_so() -> None:
    with pytest.raises(MaskfieldError, match="ended with signal 9"):
        run_step("", "train", python("import os; os.kill(os.getpid(), 9)"))


def test_a_logged_step_shows_the_end_of_its_log(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "step.log"
    run_step("", "fine", python("print('kept')"), log)
    assert log.read_text() == "kept\n"
    with pytest.raises(MaskfieldError, match=r"(?s)the end of .*step.log.*last words"):
        run_step("", "eval", python("import sys; print('first'); sys.exit('last ' + 'words')"), log)
    assert "last words" not in capfd.readouterr().out


def test_arguments_are_shown_as_a_shell_would_take_them(capfd: pytest.CaptureFixture[str]) -> None:
    step = run_step("", "say", [*python("import sys; print(sys.argv[1])"), "red mug"])
    assert step.command.endswith(" 'red mug'")
    assert "red mug\n" in capfd.readouterr().out


def test_what_the_user_has_set_is_left_alone() -> None:
    given = {"OMP_NUM_THREADS": "7", "PYTHONWARNINGS": "error", "HOME": "/somewhere"}
    assert child_environment(given) == given | {"OMP_WAIT_POLICY": "passive"}


@pytest.mark.parametrize(("cores", "threads"), [(1, "1"), (2, "2"), (64, str(steps.MAX_THREADS))])
def test_threads_are_bounded(monkeypatch: pytest.MonkeyPatch, cores: int, threads: str) -> None:
    monkeypatch.setattr(steps, "usable_cores", lambda: cores)
    assert child_environment({})["OMP_NUM_THREADS"] == threads


def test_ignored_warnings_are_ignored_and_others_shown(tmp_path: Path) -> None:
    """The module filter takes a full module name: a typo would silently filter nothing, or everything."""
    package = tmp_path / "nerfstudio" / "cameras"
    package.mkdir(parents=True)
    for folder in (package, package.parent):
        (folder / "__init__.py").touch()
    (package / "cameras.py").write_text("import warnings\nwarnings.warn('noise')\n")
    (package / "other.py").write_text("import warnings\nwarnings.warn('signal')\n")
    modules = "nerfstudio.cameras.cameras, nerfstudio.cameras.other"
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import {modules}"
    log = tmp_path / "log"
    run_step("", "warn", python(code), log)
    assert "signal" in log.read_text()
    assert "noise" not in log.read_text()


def test_a_missing_program_is_named() -> None:
    with pytest.raises(MaskfieldError, match="ns-nothing is not installed"):
        find_program("ns-nothing")


def test_this_environment_comes_before_the_search_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = Path(sys.executable).name
    (tmp_path / name).write_text("#!/bin/sh\n")
    (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert Path(find_program(name)) == Path(sys.executable)


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (59.6, "1 min 00 s"), (125, "2 min 05 s")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
