"""Masks as run lengths: what a mask takes on disk depends on its outline, not on the size of the image.

A mask is read row by row as one long sequence of pixels. Its runs are the lengths of the stretches of equal pixels,
outside and inside in turn, starting with outside (which may have no pixels). A run longer than 65,535 is written as
65,535, an empty run of the other kind, and the rest.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int64, UInt16

LONGEST = 0xFFFF


def encode_masks(masks: Bool[np.ndarray, "M H W"]) -> tuple[UInt16[np.ndarray, " R"], Int64[np.ndarray, " M"]]:
    """The runs of all masks, one mask after the other, and where each mask's end in them."""
    count, pixels = len(masks), masks.shape[1] * masks.shape[2]
    parts = [_runs(mask.reshape(pixels)) for mask in masks]
    ends = np.cumsum([len(part) for part in parts], dtype=np.int64) if count else np.zeros(0, np.int64)
    return np.concatenate(parts) if count else np.zeros(0, np.uint16), ends


def decode_masks(
    runs: UInt16[np.ndarray, " R"], ends: Int64[np.ndarray, " M"], height: int, width: int
) -> Bool[np.ndarray, "M H W"]:
    """The inverse of :func:`encode_masks`; the runs must have passed :func:`runs_problem`."""
    masks = np.zeros((len(ends), height * width), bool)
    for mask, own in zip(masks, np.split(runs, ends[:-1]) if len(ends) else [], strict=True):
        mask[:] = np.repeat(np.arange(len(own)) % 2 == 1, own)
    return masks.reshape(len(ends), height, width)


def runs_problem(runs: UInt16[np.ndarray, " R"], ends: Int64[np.ndarray, " M"], pixels: int) -> str | None:
    """Why these are not the runs of masks of so many pixels, or None."""
    starts = np.concatenate([[0], ends[:-1]]).astype(np.int64) if len(ends) else ends
    if (ends < starts).any() or (int(ends[-1]) if len(ends) else 0) != len(runs):
        return "runs that end where they should not"
    if not len(ends):
        return None
    total = np.concatenate([[0], np.cumsum(runs, dtype=np.int64)])
    if (total[ends] - total[starts] != pixels).any():
        return "runs that do not fill the image"
    return None


def _runs(pixels: Bool[np.ndarray, " N"]) -> UInt16[np.ndarray, " R"]:
    changes = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    edges = np.concatenate([[0], changes, [len(pixels)]])
    lengths = np.diff(edges)
    if len(pixels) and pixels[0]:
        lengths = np.concatenate([[0], lengths])
    more = np.maximum(lengths - 1, 0) // LONGEST  # times that a run has to be interrupted
    if not more.any():
        return lengths.astype(np.uint16)
    pieces = np.zeros(len(lengths) + 2 * int(more.sum()), np.uint16)
    last = np.cumsum(1 + 2 * more) - 1
    pieces[last] = lengths - more * LONGEST
    full = np.repeat(last - 2 * more, more) + 2 * (np.arange(more.sum()) - np.repeat(np.cumsum(more) - more, more))
    pieces[full] = LONGEST
    return pieces
