"""Files: JSON written atomically and read within bounds, and file names for phrases."""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import unicodedata
from pathlib import Path
from typing import Any

from maskfield_ns.errors import MaskfieldError

MAX_JSON_BYTES = 1 << 28
"""Larger JSON files are refused: parsed they would take tens of times as much memory."""
MAX_JSON_DEPTH = 64
"""Brackets inside brackets; no format that is read here nests deeper than ten."""
MAX_NUMBER_LENGTH = 100
"""Characters of a number. The longest that a float needs are 24; integers of thousands of digits fit no array."""
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_LONG_NUMBER = re.compile(rb"[0-9.eE+-]{%d}" % (MAX_NUMBER_LENGTH + 1))
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def write_json(path: Path, data: object) -> None:
    """Writes JSON so that a reader never sees half a file, and writers do not disturb each other.

    Raises:
        MaskfieldError: the file cannot be written.
    """
    temporary = path.parent / f".{secrets.token_hex(8)}.tmp"
    try:
        temporary.write_text(json.dumps(data, indent=1, ensure_ascii=False), encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise MaskfieldError(f"cannot write {path}: {error.strerror or error}") from error


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
    import numpy as np

    codes = np.frombuffer(bare, np.uint8)
    steps = np.isin(codes, (0x5B, 0x7B)).astype(np.int8) - np.isin(codes, (0x5D, 0x7D)).astype(np.int8)
    return int(np.cumsum(steps, dtype=np.int32).max(initial=0))


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} occurs twice")
    return result


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
