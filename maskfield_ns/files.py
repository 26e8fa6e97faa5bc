"""Files: JSON written atomically, and file names for phrases."""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import unicodedata
from pathlib import Path

from maskfield_ns.errors import MaskfieldError


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
