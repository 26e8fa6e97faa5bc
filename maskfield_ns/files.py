"""Files: written whole or not at all, JSON of bounded depth and number length, digests, names."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import secrets
import shutil
import socket
import time
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from maskfield_ns.errors import MaskfieldError

FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
ABANDONED_S = 3600
"""A temporary file of another machine counts as left over after this many seconds."""
_TEMPORARY = re.compile(r"\.([0-9a-f]{8})\.([0-9]+)\.[0-9a-f]{8}\.tmp$")
"""Host, process and a random part, see :func:`temporary_path`."""
MAX_JSON_BYTES = 1 << 28
"""Larger JSON files are refused: parsed they would take tens of times as much memory."""
MAX_JSON_DEPTH = 64
"""Brackets inside brackets; no format that is read here nests deeper than ten."""
MAX_NUMBER_LENGTH = 100
"""Characters of a number. The longest that a float needs are 24; integers of thousands of digits fit no array."""
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_LONG_NUMBER = re.compile(rb"[0-9.eE+-]{%d}" % (MAX_NUMBER_LENGTH + 1))
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


# --- writing ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A path to write to that becomes ``path`` when the block ends, and never exists when it fails.

    What was written is on the disk before it takes its name, so that neither a kill nor a power cut leaves half of it;
    until then the file of that name stays what it was. Missing folders are made.

    Args:
        path: of the file; replaced if it exists.

    Yields:
        A path in the same folder (hence on the same file system) that nobody else writes to.

    Raises:
        OSError: the file cannot be written; :func:`explained` turns it into one line for the user.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(path)
    try:
        yield temporary
        flush(temporary)
        os.replace(temporary, path)
        flush(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def temporary_path(path: Path) -> Path:
    """A name beside ``path`` that tells who writes it, for :func:`remove_leftovers`."""
    return path.with_name(f".{path.name[:32]}.{_host()}.{os.getpid()}.{secrets.token_hex(4)}.tmp")


def flush(path: Path) -> None:
    """Waits until a file's bytes, or a folder's names, are on the disk.

    Raises:
        OSError: they do not get there.
    """
    folder = path.is_dir()
    try:
        handle = os.open(path, os.O_RDONLY if folder else os.O_RDWR)
    except OSError:
        if folder:  # not every system opens folders
            return
        raise
    try:
        os.fsync(handle)
    except OSError as error:
        # Some file systems do not flush folders, and say so.
        if not folder or error.errno in FULL_DISK:
            raise
    finally:
        os.close(handle)


def remove_leftovers(folder: Path) -> int:
    """Deletes what writers that were killed left in a folder; returns how many."""
    removed = 0
    for path in folder.glob(".*.tmp"):
        with contextlib.suppress(OSError):
            if _abandoned(path):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
                removed += 1
    return removed


def _abandoned(path: Path) -> bool:
    found = _TEMPORARY.search(path.name)
    if found and found[1] == _host() and os.name == "posix":
        try:
            os.kill(int(found[2]), 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass
    # Alive, or another process by now, or on another machine: only age can tell.
    return time.time() - path.stat().st_mtime > ABANDONED_S


def _host() -> str:
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


@contextlib.contextmanager
def explained(path: Path, error: type[MaskfieldError] = MaskfieldError) -> Iterator[None]:
    """Turns a file-system error of the block into one line that names the file.

    Raises:
        MaskfieldError: of the class ``error``.
    """
    try:
        yield
    except OSError as cause:
        if cause.errno in FULL_DISK:
            raise error(f"cannot write {path}: the disk is full; free some space and try again") from cause
        raise error(f"cannot write {path}: {cause.strerror or cause}") from cause


def write_bytes(path: Path, data: bytes, error: type[MaskfieldError] = MaskfieldError) -> None:
    """Writes a file so that a reader never sees half of it, and writers do not disturb each other.

    Raises:
        MaskfieldError: of the class ``error``: the file cannot be written.
    """
    with explained(path, error), atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str, error: type[MaskfieldError] = MaskfieldError) -> None:
    """:func:`write_bytes` of text as UTF-8; halves of surrogate pairs are written as escapes."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"), error)


def write_json(path: Path, data: object, error: type[MaskfieldError] = MaskfieldError) -> None:
    """:func:`write_bytes` of JSON; NaN and infinity, which JSON does not have, become null."""
    try:
        text = json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False)
    except ValueError:
        text = json.dumps(finite(data), indent=1, ensure_ascii=False, allow_nan=False)
    write_text(path, text, error)


def finite(data: Any) -> Any:
    """Plain data with None for every number that is NaN or infinite."""
    if isinstance(data, Mapping):
        return {key: finite(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [finite(value) for value in data]
    if isinstance(data, float) and not math.isfinite(data):
        return None
    return data


# --- reading ----------------------------------------------------------------------------------------------------------


def read_json(path: Path, what: str, error: type[MaskfieldError] = MaskfieldError, unique_keys: bool = False) -> Any:
    """A JSON file that somebody brings, checked before it is parsed.

    Args:
        path: the file; UTF-8, with or without a byte-order mark.
        what: what it should be, for the message: "the cameras of the capture".
        error: class of the error.
        unique_keys: refuse objects with two equal keys (json would keep the last one without a word).

    Raises:
        MaskfieldError: of the class ``error``: no such file, not UTF-8, not JSON, too large, nested deeper than
            MAX_JSON_DEPTH, a number of more than MAX_NUMBER_LENGTH characters, or text that is no valid Unicode.
    """
    try:
        size = path.stat().st_size
        if size > MAX_JSON_BYTES:
            raise error(f"{path} ({what}) has {size >> 20} MiB; JSON is read up to {MAX_JSON_BYTES >> 20} MiB.")
        data = path.read_bytes()
    except FileNotFoundError as cause:
        raise error(f"There is no {path} ({what}).") from cause
    except (OSError, ValueError) as cause:  # ValueError: a null byte in the path
        raise error(f"{path} ({what}) cannot be read: {getattr(cause, 'strerror', None) or cause}.") from cause
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as cause:
        raise error(f"{path} ({what}) is not UTF-8 text (byte {cause.start}); save it as UTF-8.") from cause
    bare = _STRING.sub(b"", data)
    if (depth := _depth(bare)) > MAX_JSON_DEPTH:
        raise error(f"{path} ({what}) nests brackets {depth} deep; {MAX_JSON_DEPTH} is the most that is read.")
    if _LONG_NUMBER.search(bare):
        raise error(f"{path} ({what}) has a number of more than {MAX_NUMBER_LENGTH} characters; shorten it.")
    try:
        parsed = json.loads(text, object_pairs_hook=_unique_keys if unique_keys else None)
        if _SURROGATE.search(data):  # halves of surrogate pairs parse, but cannot be written or printed
            json.dumps(parsed, ensure_ascii=False).encode("utf-8")
    except json.JSONDecodeError as cause:
        place = f"{cause.msg} at line {cause.lineno}, column {cause.colno}"
        raise error(f"{path} ({what}) is not valid JSON: {place}.") from cause
    except UnicodeEncodeError as cause:
        raise error(f"{path} ({what}) has text that is no valid Unicode (half of a surrogate pair).") from cause
    except (ValueError, RecursionError) as cause:
        raise error(f"{path} ({what}) cannot be read as JSON: {cause}.") from cause
    return parsed


def _depth(bare: bytes) -> int:
    """How deep brackets nest in JSON whose strings were taken out."""

    codes = np.frombuffer(bare, np.uint8)
    steps = np.isin(codes, (0x5B, 0x7B)).astype(np.int8) - np.isin(codes, (0x5D, 0x7D)).astype(np.int8)
    return int(np.cumsum(steps, dtype=np.int32).max(initial=0))


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} occurs twice")
    return result


def file_sha256(path: Path) -> str:
    """Hex digest of a file's bytes, read now (no memory of earlier reads: files may change under us).

    Raises:
        OSError: it cannot be read.
    """
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def slug(text: str, taken: set[str] | None = None) -> str:
    """A file name for a phrase: readable where it can be, and unlike any name already taken."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    name = re.sub(r"[^a-z0-9]+", "_", plain.lower()).strip("_")[:40] or "phrase"
    taken = taken if taken is not None else set()
    unique, number = name, 2
    while unique in taken:
        unique, number = f"{name}_{number}", number + 1
    taken.add(unique)
    return unique
