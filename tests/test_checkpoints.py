"""Checkpoints: saved whole or not at all, verified before use, and what is opened when some are damaged."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maskfield_ns import checkpoints, compat
from maskfield_ns.errors import CheckpointError, WeightsError

compat.allow_numpy_scalars_in_checkpoints()


def state(step: int) -> dict[str, Any]:
    """As nerfstudio saves it, with a numpy scalar as its schedulers leave them."""
    rates = {"base_lrs": [np.float64(0.01)], "last_epoch": step}
    return {"step": step, "pipeline": {"_model.weight": torch.full((64,), float(step))}, "schedulers": rates}


def save(folder: Path, step: int) -> Path:
    path = folder / checkpoints.name_of(step)
    checkpoints.save(path, lambda scratch: torch.save(state(step), scratch / path.name))
    return path


def newest(folder: Path, step: int | None = None) -> int:
    return checkpoints.use_newest(checkpoints.good(folder, step), lambda path: checkpoints.read(path)["step"])


def flipped(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8 % len(data)] ^= 1 << bit % 8
    path.write_bytes(data)


# --- saving -----------------------------------------------------------------------------------------------------------


def test_the_checksum_beside_it_is_what_sha256sum_writes(tmp_path: Path) -> None:
    path = save(tmp_path, 7)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert (tmp_path / "step-000000007.ckpt.sha256").read_text() == f"{digest}  step-000000007.ckpt\n"
    assert checkpoints.problem(path) is None and newest(tmp_path) == 7
    assert len(list(tmp_path.iterdir())) == 2, "nothing else is left"


def test_older_checkpoints_go_with_their_checksums(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        path = save(tmp_path, step)
    (tmp_path / "notes.txt").write_text("mine")
    checkpoints.remove_older(path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["notes.txt", path.name, path.name + ".sha256"]


@pytest.mark.parametrize("fails", ["flush", "file_sha256", "write_text"])
def test_a_full_disk_takes_nothing_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str) -> None:
    save(tmp_path, 1)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoints, fails, full)
    with pytest.raises(CheckpointError, match="disk is full") as caught:
        save(tmp_path, 2)
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    assert newest(tmp_path) in (1, 2)
    assert checkpoints.problem(tmp_path / checkpoints.name_of(1)) is None
    assert not list(tmp_path.glob(".*"))


def test_torchs_own_report_of_a_full_disk_is_a_line(tmp_path: Path) -> None:
    def write(scratch: Path) -> None:
        raise RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0\nframe #0: ...")

    with pytest.raises(CheckpointError, match="is the disk full") as caught:
        checkpoints.save(tmp_path / checkpoints.name_of(1), write)
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def save_killed(folder: Path, step: int, at: int) -> int:
    """Saves in a process of its own, which is killed before it uses the file system for the ``at``-th time.

    Returns:
        The process's exit status as ``os.wait`` gives it.
    """
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    count = 0

    def audit(event: str, arguments: tuple) -> None:
        nonlocal count
        if event in ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir") and str(folder) in str(arguments[0]):
            count += 1
            if count == at:
                os.kill(os.getpid(), signal.SIGKILL)

    try:
        sys.addaudithook(audit)
        checkpoints.remove_older(save(folder, step))
    finally:
        os._exit(0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills by signal")
@pytest.mark.parametrize("step", [5, 6])
def test_a_kill_at_any_step_of_saving_loses_nothing(tmp_path: Path, step: int) -> None:
    """Saving step 5 replaces the checkpoint of step 5, saving step 6 is followed by its removal."""
    save(tmp_path, 5)
    for at in range(1, 40):
        status = save_killed(tmp_path, step, at)
        assert newest(tmp_path) in (5, step)
        if not os.WIFSIGNALED(status):
            break
    assert at > 8 and newest(tmp_path) == step
    name = checkpoints.name_of(step)
    assert sorted(p.name for p in tmp_path.iterdir()) == [name, f"{name}.sha256"]


# --- opening ----------------------------------------------------------------------------------------------------------


@given(bit=st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_any_flipped_bit_is_noticed(tmp_path_factory: pytest.TempPathFactory, bit: int) -> None:
    folder = tmp_path_factory.mktemp("flip")
    save(folder, 1)
    flipped(save(folder, 2), bit)
    assert newest(folder) == 1


def test_a_flipped_value_is_noticed_without_a_checksum(tmp_path: Path) -> None:
    """As nerfstudio's own methods and older versions of this package saved them."""
    path = tmp_path / checkpoints.name_of(3)
    torch.save(state(3), path)
    assert newest(tmp_path) == 3
    start = path.read_bytes().index(np.full(64, 3.0, np.float32).tobytes())
    flipped(path, 8 * (start + 100) + 6)
    assert torch.load(path)["step"] == 3, "torch sees nothing wrong"
    with pytest.raises(CheckpointError, match="no usable checkpoint"):
        newest(tmp_path)


def foreign(path: Path) -> None:
    torch.save([1, 2], path)


def compressed(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10**6))


def pickled_code(path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple:
            return os.system, (f"touch {path.parent / 'executed'}",)

    torch.save({"step": 9, "pipeline": {}, "evil": Evil()}, path)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "text": lambda path: path.write_text("hello"),
    "another checkpoint": lambda path: torch.save(state(8), path),
    "foreign": foreign,
    "compressed": compressed,
    "pickled code": pickled_code,
    "folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("with_checksum", [True, False])
@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_damaged_is_named_and_the_newest_good_one_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str, with_checksum: bool
) -> None:
    for step in (3, 4):
        save(tmp_path, step)
    bad = save(tmp_path, 9)
    DAMAGES[damage](bad)
    if not with_checksum:
        checkpoints.checksum_path(bad).unlink()
        if damage in ("another checkpoint", "longer"):
            return  # nothing can tell these from good ones
    for stray in ("notes.txt", "step-x.ckpt", ".hidden", "step-000000099.ckpt.part", "step-12.txt"):
        (tmp_path / stray).write_text("mine")
    assert newest(tmp_path) == 4
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("is not used") == 1 and bad.name in said
    assert not (tmp_path / "executed").exists()
    with pytest.raises(CheckpointError):
        newest(tmp_path, step=9)


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no folder"):
        newest(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        newest(tmp_path)
    for step in (10, 20):
        save(tmp_path, step)
    assert newest(tmp_path, step=10) == 10
    with pytest.raises(CheckpointError, match="there are: 20, 10"):
        newest(tmp_path, step=30)


class Pipeline:
    """Loads what fits."""

    def __init__(self, error: Exception | None = None) -> None:
        self.loaded: list[int] = []
        self.error = error

    def load_pipeline(self, tensors: dict[str, torch.Tensor], step: int) -> None:
        if self.error is not None and step == 9:
            raise self.error
        assert float(tensors["_model.weight"][0]) == step
        self.loaded.append(step)


@pytest.mark.parametrize("error", [RuntimeError("size mismatch\nfor x"), CheckpointError("other"), KeyError("x")])
def test_a_checkpoint_that_does_not_fit_makes_the_next_ones_turn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    for step in (4, 9):
        save(tmp_path, step)
    pipeline: Any = Pipeline(error)
    assert checkpoints.load_into(pipeline, tmp_path) == (tmp_path / checkpoints.name_of(4), 4)
    assert "step-000000009.ckpt is not used" in " ".join(capsys.readouterr().err.split())
    checkpoints.remove_older(tmp_path / checkpoints.name_of(9))
    with pytest.raises(CheckpointError, match="cannot use") as caught:
        checkpoints.load_into(pipeline, tmp_path)
    assert "\n" not in str(caught.value)


def test_what_is_no_fault_of_the_checkpoint_is_said_as_it_is(tmp_path: Path) -> None:
    for step in (4, 9):
        save(tmp_path, step)
    pipeline: Any = Pipeline(WeightsError("no weights"))
    with pytest.raises(WeightsError, match="no weights"):
        checkpoints.load_into(pipeline, tmp_path)


def test_the_step_of_a_resumed_training_is_none_of_its_own_checkpoints(tmp_path: Path) -> None:
    """config.yml keeps --load-step, and nerfstudio would look for that checkpoint in the new run."""
    for step in (4, 9):
        save(tmp_path, step)
    pipeline: Any = Pipeline()
    assert checkpoints.load_into(pipeline, tmp_path, step=2)[1] == 9
    assert checkpoints.load_into(pipeline, tmp_path, step=4)[1] == 4
