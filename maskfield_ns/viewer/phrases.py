"""What people type into a text box, made harmless: phrases to ask for, and text that may appear in the panel."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass

MAX_PHRASES = 50
MAX_LENGTH = 200
"""Characters of one phrase; CLIP's tokeniser reads about 300 of them at most."""


@dataclass(frozen=True)
class Phrases:
    """What was understood."""

    phrases: tuple[str, ...]
    """Each once, trimmed, not empty, without control characters."""
    note: str
    """What was left out, for the user; empty if nothing was."""


def split_phrases(text: str) -> Phrases:
    """Phrases of a comma-separated list, in any language; never raises.

    Commas of other scripts and line breaks separate too. Control characters, lone surrogates and text past the limits
    are left out, and the note says so.
    """
    clean = "".join(_harmless(character) for character in text)
    for comma in ("\uff0c", "\u3001", "\u060c", "\uff1b", ";", "\n"):
        clean = clean.replace(comma, ",")
    found = [" ".join(part.split()) for part in clean.split(",")]
    unique = list(dict.fromkeys(part for part in found if part))
    notes = []
    if any(len(part) > MAX_LENGTH for part in unique):
        notes.append(f"phrases are cut after {MAX_LENGTH} characters")
        unique = list(dict.fromkeys(part[:MAX_LENGTH].strip() for part in unique))
    if len(unique) > MAX_PHRASES:
        notes.append(f"only the first {MAX_PHRASES} of {len(unique)} phrases are asked")
        unique = unique[:MAX_PHRASES]
    return Phrases(tuple(unique), "; ".join(notes))


def _harmless(character: str) -> str:
    category = unicodedata.category(character)
    if category in ("Zl", "Zp") or character == "\n":
        return "\n"
    # Cf holds what joins emoji and scripts (ZWJ) but also what reverses text: the joiners stay.
    if category in ("Cc", "Cs", "Co", "Cn") or (category == "Cf" and character not in "\u200c\u200d"):
        return " "
    return character


def panel_text(text: str, limit: int = 60) -> str:
    """Text as the panel's markdown shows it verbatim, shortened.

    The client evaluates markdown as MDX, which is a programming language: everything but letters, digits, spaces and
    emoji becomes a character reference, which stands for itself and nothing else.
    """
    text = " ".join("".join(_harmless(character) for character in text).split())
    if len(text) > limit:
        text = text[: limit - 1].rstrip() + "…"
    return "".join(c if c.isalnum() or c == " " or ord(c) > 0x2000 else f"&#{ord(c)};" for c in text)
