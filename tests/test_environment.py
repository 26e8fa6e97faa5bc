"""What scripts/env.sh says about a machine before it installs anything, and the sets of versions that it installs."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
TOOLS = ("bash", "sh", "awk", "df", "dirname", "find")
PYTHON = """#!/bin/sh
# A Python 3.{minor} of a machine: what env.sh asks of it, it answers as told.
case "$2" in
    *version_info*3,\\ 14*) exit 0 ;;
    *version_info*3,\\ 13*) exit {old} ;;
    *python3.%d*) echo python3.{minor} ;;
    *ensurepip*) exit {no_venv} ;;
    *sysconfig*) echo {include} ;;
    *) exit 1 ;;
esac
"""


class Machine:
    """A search path with a few programs on it, and a Python that is a script."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.programs = folder, folder / "bin"
        self.programs.mkdir()
        for name in TOOLS:
            (self.programs / name).symlink_to(str(shutil.which(name)))

    def program(self, name: str, text: str = "#!/bin/sh\n") -> None:
        (self.programs / name).write_text(text)
        (self.programs / name).chmod(0o755)

    def python(self, minor: int = 11, venv: bool = True, headers: bool = False) -> None:
        include = self.folder / "include"
        include.mkdir(exist_ok=True)
        if headers:
            (include / "Python.h").write_text("")
        values = {"minor": minor, "old": int(minor < 13), "no_venv": int(not venv), "include": include}
        self.program("python3", PYTHON.format(**values))

    def check(self, **variables: str) -> tuple[int, list[str]]:
        """Exit code and lines of env.sh's look at the machine."""
        code = 'source "$1"; check_machine "$2" "$(choose_python)"'
        result = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", code, "bash", ROOT / "scripts" / "env.sh", self.folder / "new" / "venv"],
            env={"PATH": str(self.programs), **variables},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert not result.stdout
        return result.returncode, result.stderr.splitlines()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    made = Machine(tmp_path)
    (made.programs / "df").unlink()
    made.program("df", "#!/bin/sh\nprintf 'Filesystem 1024-blocks Used Available\\nx 99000000 1 50000000\\n'\n")
    return made


def test_a_machine_with_all_that_is_needed_is_not_told_anything(machine: Machine) -> None:
    machine.python()
    assert machine.check() == (0, [])
    machine.python(minor=13, headers=True)
    machine.program("c++")
    machine.program("nvidia-smi")
    assert machine.check() == (0, [])


def test_each_thing_that_is_missing_is_a_line_and_one_line_installs_all(machine: Machine) -> None:
    machine.python(minor=13, venv=False)
    machine.program("df", "#!/bin/sh\nprintf 'Filesystem 1024-blocks Used Available\\nx 99000000 1 2500000\\n'\n")
    status, lines = machine.check()
    assert status == 1
    *errors, remedy = lines
    assert [line.split(":")[0] for line in errors] == ["error"] * 4
    for line, words in zip(errors, ("environments", "Python.h", "C++ compiler", "2 GB are free"), strict=True):
        assert words in line
    assert remedy == "on Debian and Ubuntu: sudo apt install python3.13-venv python3.13-dev g++"


def test_without_python_and_with_one_that_does_not_fit(machine: Machine) -> None:
    status, lines = machine.check()
    assert status == 1 and "no Python from 3.10 to 3.13" in lines[0] and lines[1].endswith("python3 python3-venv")
    status, lines = machine.check(PYTHON="python2")
    assert status == 1 and "PYTHON=python2 is not a Python from 3.10 to 3.13" in lines[0] and len(lines) == 1


def test_a_gpu_wants_a_compiler_and_uv_no_venv_module(machine: Machine) -> None:
    machine.python(venv=False)
    machine.program("uv")
    assert machine.check() == (0, [])
    machine.program("nvidia-smi")
    status, lines = machine.check()
    assert status == 1 and "Python.h" in lines[0] and "C++ compiler" in lines[1] and len(lines) == 3
    assert machine.check(CPU_TORCH="1") == (0, [])


def test_an_environment_that_is_complete_needs_nothing(machine: Machine) -> None:
    machine.python(minor=13, venv=False)
    (machine.folder / "new" / "venv").mkdir(parents=True)
    assert machine.check()[0] == 1
    (machine.folder / "new" / "venv" / ".maskfield-locked.txt").write_text("")
    assert machine.check() == (0, [])


def test_torch_without_cuda_takes_less_disk(machine: Machine) -> None:
    machine.python()
    machine.program("df", "#!/bin/sh\nprintf 'Filesystem 1024-blocks Used Available\\nx 99000000 1 8000000\\n'\n")
    assert machine.check()[0] == 1
    assert machine.check(CPU_TORCH="1") == (0, [])


# --- the sets of versions ---------------------------------------------------------------------------------------------


def pins(name: str, minor: int) -> dict[str, Version]:
    """Versions of a set for a Python 3.minor on a Linux of this machine's kind."""
    environment = {**default_environment(), "python_version": f"3.{minor}", "python_full_version": f"3.{minor}.2"}
    found: dict[str, Version] = {}
    for line in (ROOT / "requirements" / name).read_text().splitlines():
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate(environment):
            key = canonicalize_name(requirement.name)
            (pin,) = requirement.specifier
            assert pin.operator == "==" and key not in found, line
            found[key] = Version(pin.version)
    return found


def asked_for(minor: int) -> Iterator[tuple[Requirement, bool]]:
    """What the project asks for on a Python 3.minor, and whether only its tests do."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    environment = {**default_environment(), "python_version": f"3.{minor}", "python_full_version": f"3.{minor}.2"}
    for lines, for_tests in ((project["dependencies"], False), (project["optional-dependencies"]["dev"], True)):
        for requirement in map(Requirement, lines):
            if requirement.marker is None or requirement.marker.evaluate(environment):
                yield requirement, for_tests


@pytest.mark.parametrize("minor", [10, 11, 12, 13])
def test_the_sets_hold_what_the_project_asks_for(minor: int) -> None:
    own, tests = pins("locked.txt", minor), pins("locked-dev.txt", minor)
    assert own.items() <= tests.items(), "the tests run with the versions that users get"
    for requirement, for_tests in asked_for(minor):
        version = (tests if for_tests else own).get(canonicalize_name(requirement.name))
        assert version is not None and version in requirement.specifier, f"run scripts/lock: {requirement}"


@pytest.mark.parametrize("minor", [10, 11, 12, 13])
def test_the_sets_leave_out_what_needs_a_compiler_or_a_display(minor: int) -> None:
    chosen = pins("locked-dev.txt", minor)
    assert "opencv-python-headless" in chosen
    assert not {"pyliblzfse", "opencv-python", "opencv-contrib-python"} & set(chosen)
