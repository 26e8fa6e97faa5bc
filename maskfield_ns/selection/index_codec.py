"""Sets of indices as short text for JSON files."""

from __future__ import annotations

import base64
import binascii
import zlib
from typing import Any

import numpy as np
from jaxtyping import Int

from maskfield_ns.errors import EditError

_MOST = 1 << 31


def pack_indices(indices: Int[np.ndarray, " N"]) -> str:
    """Sorted, distinct indices below 2^31 as base64 of their deflated differences."""
    steps = np.diff(indices, prepend=0).astype("<u4")
    return base64.b64encode(zlib.compress(steps.tobytes(), 6)).decode("ascii")


def unpack_indices(text: Any, below: int, most: int = _MOST) -> Int[np.ndarray, " N"]:
    """The inverse of :func:`pack_indices`.

    Args:
        text: the packed indices.
        below: what they are below.
        most: so many of them at most.

    Raises:
        EditError: something else, or indices of ``below`` or more, or too many.
    """
    try:
        # Each index at most once, so a damaged or hostile text cannot unpack to more than all of them.
        limit = 4 * min(below, most)
        inflate = zlib.decompressobj()
        data = inflate.decompress(base64.b64decode(text, validate=True), limit + 4)
        steps = np.frombuffer(data, "<u4").astype(np.int64)
    except (TypeError, ValueError, binascii.Error, zlib.error) as error:
        raise EditError("a set of indices is damaged") from error
    distinct = bool((steps[1:] > 0).all())
    indices = np.cumsum(steps, out=steps)
    if most < below and len(data) > limit:
        raise EditError("its sets of indices are too large to be read from a file of this size")
    if len(data) > limit or not inflate.eof or not distinct or (len(indices) and indices[-1] >= below):
        raise EditError(f"a set of indices does not fit {below} things")
    return indices


class Unpacker:
    """Unpacks the sets of one file within a bound; equal texts give the same array.

    A run of neighbouring indices packs a thousandfold, so a small file could ask for any amount of memory.

    Args:
        most: indices in all sets together.
    """

    def __init__(self, most: int = _MOST) -> None:
        self._left = most
        self._known: dict[tuple[str, int], Int[np.ndarray, " N"]] = {}

    def __call__(self, text: Any, below: int) -> Int[np.ndarray, " N"]:
        """:func:`unpack_indices` within what is left."""
        if not isinstance(text, str):
            raise EditError("a set of indices is damaged")
        if (text, below) not in self._known:
            found = unpack_indices(text, below, self._left)
            found.setflags(write=False)
            self._left -= len(found)
            self._known[text, below] = found
        return self._known[text, below]
