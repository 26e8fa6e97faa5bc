"""Checkpoints on disk: saved whole or not at all, verified before they are used; the newest good one is opened."""

from __future__ import annotations

import contextlib
import re
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from maskfield_ns.errors import CheckpointError, MaskfieldError
from maskfield_ns.files import FULL_DISK, file_sha256, flush, remove_leftovers, temporary_path, write_text

if TYPE_CHECKING:
    from nerfstudio.pipelines.base_pipeline import Pipeline

CHECKSUM_SUFFIX = ".sha256"
"""Beside every checkpoint lies a file of its name and this, as ``sha256sum`` writes and checks it."""
_NAME = re.compile(r"step-(\d{1,18})\.ckpt")
_CHECKSUM = re.compile(r"([0-9a-f]{64})\s")

T = TypeVar("T")


def name_of(step: int) -> str:
    """nerfstudio's file name for the checkpoint of a training step."""
    return f"step-{step:09d}.ckpt"


def newest_first(folder: Path) -> list[Path]:
    """The checkpoints of a folder by their names, the one of the last step first; other files do not matter."""
    named = [(int(found[1]), path) for path in folder.glob("step-*.ckpt") if (found := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(named, reverse=True)]


def checksum_path(path: Path) -> Path:
    """Where a checkpoint's checksum is."""
    return path.with_name(path.name + CHECKSUM_SUFFIX)


# --- saving -----------------------------------------------------------------------------------------------------------


def save(path: Path, write: Callable[[Path], None]) -> None:
    """Saves a checkpoint: it is on the disk before it takes its name, and its checksum beside it.

    A kill at any moment leaves each checkpoint of the folder either as it was or as it will be.

    Args:
        path: of the checkpoint.
        write: writes it as a file of the same name into the (empty) folder that it is given.

    Raises:
        CheckpointError: it cannot be written; what was there before still is.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path.parent)
        scratch = temporary_path(path)
        scratch.mkdir()
        try:
            write(scratch)
            written = scratch / path.name
            flush(written)
            digest = file_sha256(written)
            # A checksum must never be of another file: first the old one goes, then the new one comes.
            checksum_path(path).unlink(missing_ok=True)
            written.replace(path)
            flush(path.parent)
        finally:
            with contextlib.suppress(OSError):
                (scratch / path.name).unlink(missing_ok=True)
                scratch.rmdir()
        write_text(checksum_path(path), f"{digest}  {path.name}\n")
    except OSError as error:
        full = error.errno in FULL_DISK
        reason = "the disk is full" if full else error.strerror or str(error)
        raise CheckpointError(f"cannot save {path}: {reason}") from error
    except MaskfieldError as error:
        raise CheckpointError(f"cannot save {path}: {error}") from error
    except RuntimeError as error:  # torch's writer says so of files that it cannot write
        reason = str(error).partition("\n")[0]
        raise CheckpointError(f"cannot save {path}: {reason} (is the disk full?)") from error


def remove_older(path: Path) -> None:
    """Deletes the other checkpoints of the folder, now that this one is there."""
    for other in newest_first(path.parent):
        if other != path:
            with contextlib.suppress(OSError):
                checksum_path(other).unlink(missing_ok=True)  # first: one without its checkpoint would be no use
                other.unlink()


# --- opening ----------------------------------------------------------------------------------------------------------


def problem(path: Path) -> str | None:
    """Why a file must not be used as a checkpoint, or None: it is whole.

    Compared with its checksum where there is one; others (of older trainings, of nerfstudio's own methods) by the
    checks of the zip archive that every checkpoint is.
    """
    try:
        size = path.stat().st_size
        if not size:
            return "the file is empty (its saving was interrupted)"
        with contextlib.suppress(FileNotFoundError):
            found = _CHECKSUM.match(checksum_path(path).read_text(encoding="ascii", errors="replace"))
            if found is not None:
                if file_sha256(path) == found[1]:
                    return None
                return (
                    "the file is damaged or not the one that was saved: its SHA-256 is not the one in "
                    f"{checksum_path(path).name} (delete that file to use the checkpoint all the same)"
                )
        return _archive_problem(path, size)
    except FileNotFoundError:
        return "there is no such file"
    except OSError as error:
        return f"the file cannot be read ({error.strerror or error})"


def _archive_problem(path: Path, size: int) -> str | None:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if any(e.compress_type != zipfile.ZIP_STORED for e in entries) or sum(e.file_size for e in entries) > size:
                return "the file is no checkpoint of torch (a compressed archive)"
            damaged = archive.testzip()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, RuntimeError, EOFError) as error:
        return f"the file is damaged, cut short or no checkpoint ({error or type(error).__name__})"
    return None if damaged is None else f"the file is damaged (wrong checksum of {damaged})"


def read(path: Path) -> dict[str, Any]:
    """What a checkpoint of nerfstudio holds, on the CPU; tensors are read when they are used.

    Nothing in it is executed: torch's safe mode reads tensors and plain data only.

    Raises:
        CheckpointError: it is none.
    """
    import torch

    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # a foreign file makes pickle and torch raise anything
        reason = str(error).partition("\n")[0]  # torch goes on with advice that would be unsafe to follow
        raise CheckpointError(f"the file is no checkpoint of nerfstudio ({type(error).__name__}: {reason})") from error
    if not isinstance(state, dict) or not isinstance(state.get("pipeline"), dict) or type(state.get("step")) is not int:
        raise CheckpointError("the file is no checkpoint of nerfstudio (it has no step or no pipeline)")
    return state


def good(folder: Path, step: int | None = None) -> Iterator[Path]:
    """The checkpoints of a folder that are whole, newest first; damaged ones are named in a line as they are met.

    Args:
        folder: of the checkpoints.
        step: only the checkpoint of this training step.

    Raises:
        CheckpointError: there is none, or no (further) one that is whole.
    """
    if not folder.is_dir():
        raise CheckpointError(f"there is no folder {folder} with checkpoints")
    there = newest_first(folder)
    if not there:
        raise CheckpointError(f"no checkpoint in {folder}: the training was stopped before its first save")
    if step is not None:
        wanted = [path for path in there if path.name == name_of(step)]
        if not wanted:
            steps = ", ".join(str(int(path.stem.removeprefix("step-"))) for path in there)
            raise CheckpointError(f"no checkpoint of step {step} in {folder}; there are: {steps}")
        there = wanted
    damaged: list[tuple[Path, str]] = []
    for path in there:
        if (reason := problem(path)) is None:
            for passed in damaged:
                pass_over(*passed)
            damaged.clear()
            yield path
        else:
            damaged.append((path, reason))
    if damaged:
        (path, reason), older = damaged[0], len(damaged) - 1
        more = f"; {older} older ones are damaged, too" if older else ""
        raise CheckpointError(f"no usable checkpoint in {folder}: {path.name}: {reason}{more}")
    raise CheckpointError(f"no usable checkpoint in {folder}")


def pass_over(path: Path, reason: object) -> None:
    """Tells the user, on standard error, that a checkpoint is not used."""
    print(f"warning: {path} is not used: {reason}", file=sys.stderr)


def use_newest(candidates: Iterator[Path], use: Callable[[Path], T]) -> T:
    """Uses the first of :func:`good` checkpoints that can be used.

    Args:
        candidates: whole files.
        use: loads one into a model. Whatever it raises because of the file makes the next one's turn.

    Raises:
        MaskfieldError: none of them can be used, or something else than the checkpoint is wrong.
    """
    import torch

    before: tuple[Path, CheckpointError] | None = None
    while True:
        try:
            path = next(candidates)
        except CheckpointError:
            if before is None:
                raise
            raise CheckpointError(f"cannot use {before[0]}: {before[1]}") from before[1]
        if before is not None:
            pass_over(*before)
        try:
            return use(path)
        except CheckpointError as error:
            before = path, error
        except (MaskfieldError, torch.OutOfMemoryError):
            raise
        except (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError, EOFError) as error:
            reason = str(error).partition("\n")[0]
            before = path, CheckpointError(f"it does not fit this run ({type(error).__name__}: {reason})")


def load_into(pipeline: Pipeline, folder: Path, step: int | None = None) -> tuple[Path, int]:
    """Loads the newest good checkpoint of a folder.

    Args:
        pipeline: of the run.
        folder: of its checkpoints.
        step: of the checkpoint to use, if it is there. A run that was resumed from a certain step keeps that number
            in its config, but has not got that checkpoint.

    Returns:
        (the checkpoint, its training step).

    Raises:
        MaskfieldError: no checkpoint can be used, or something else that the run needs is missing.
    """

    def use(path: Path) -> tuple[Path, int]:
        state = read(path)
        pipeline.load_pipeline(state["pipeline"], state["step"])
        return path, state["step"]

    here = step is not None and (folder / name_of(step)).is_file()
    return use_newest(good(folder, step if here else None), use)
