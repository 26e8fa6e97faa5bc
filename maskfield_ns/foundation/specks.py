"""Small holes and islands of masks, looked for inside each mask's box only.

Same result as `segment_anything.utils.amg.remove_small_regions` on whole images (8-connected regions; of islands that
are all small the largest stays), which takes milliseconds per mask of a photograph, most of them for empty space.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool


def without_specks(mask: Bool[np.ndarray, "H W"], area: int) -> Bool[np.ndarray, "H W"]:
    """A mask without holes, and then without islands, of fewer than `area` pixels."""
    rows = np.flatnonzero(mask.any(1))
    if not len(rows):
        return mask if mask.size >= area else ~mask
    columns = np.flatnonzero(mask[rows[0] : rows[-1] + 1].any(0))
    (height, width), (top, bottom), (left, right) = mask.shape, (rows[0], rows[-1] + 1), (columns[0], columns[-1] + 1)
    outside = height * width - (bottom - top) * (right - left)
    if (top == 0 and bottom == height) or (left == 0 and right == width) or outside < area:
        # What surrounds the box is in pieces or small: regions that reach there have to be seen whole.
        top, bottom, left, right = 0, height, 0, width
        around = [(0, 0), (0, 0)]
    else:
        # All that surrounds the box is one region. A rim stands for it, wide enough to be no speck.
        rim = -(-area // min(bottom - top, right - left))
        inner = ((top > 0, bottom < height), (left > 0, right < width))
        around = [(rim * before, rim * after) for before, after in inner]
    part = np.pad(mask[top:bottom, left:right], around)
    part = _small_filled(part, area)
    kept = _large_only(part, area)
    (before, _), (left_of, _) = around
    result = np.zeros_like(mask)
    result[top:bottom, left:right] = kept[before : before + bottom - top, left_of : left_of + right - left]
    return result


def _regions(mask: Bool[np.ndarray, "H W"]) -> tuple[np.ndarray, np.ndarray]:
    """Label of each pixel (0: not in the mask) and size of each label's region."""
    import cv2

    _, regions, stats, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=8)
    return regions, stats[:, cv2.CC_STAT_AREA]


def _small_filled(mask: Bool[np.ndarray, "H W"], area: int) -> Bool[np.ndarray, "H W"]:
    regions, sizes = _regions(~mask)
    small = sizes < area
    small[0] = False
    return mask | small[regions] if small.any() else mask


def _large_only(mask: Bool[np.ndarray, "H W"], area: int) -> Bool[np.ndarray, "H W"]:
    regions, sizes = _regions(mask)
    if len(sizes) <= 2 or (sizes[1:] >= area).all():
        return mask
    kept = sizes >= area
    kept[0] = False
    if not kept.any():
        kept[1 + sizes[1:].argmax()] = True
    return kept[regions]
