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
    return base64.b64encode(zlib.compress(steps.tobytes(), 9)).decode("ascii")


def unpack_indices(text: Any, below: int) -> Int[np.ndarray, " N"]:
    """The inverse of :func:`pack_indices`.

    Raises:
        EditError: something else, or indices of ``below`` or more.
    """
    try:
        # Each index at most once, so a damaged or hostile text cannot unpack to more than all of them.
        most = 4 * min(below, _MOST)
        inflate = zlib.decompressobj()
        data = inflate.decompress(base64.b64decode(text, validate=True), most + 4)
        steps = np.frombuffer(data, "<u4").astype(np.int64)
    except (TypeError, ValueError, binascii.Error, zlib.error) as error:
        raise EditError("a set of indices is damaged") from error
    indices = np.cumsum(steps)
    distinct = bool((steps[1:] > 0).all())
    if len(data) > most or not inflate.eof or not distinct or (len(indices) and indices[-1] >= below):
        raise EditError(f"a set of indices does not fit {below} things")
    return indices
