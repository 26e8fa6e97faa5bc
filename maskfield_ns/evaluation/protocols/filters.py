"""The smoothing steps of published evaluators, vectorised with their exact borders, anchors and ties.

OpenCV is imported when a filter is used: importing the package must stay cheap.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Float32, Int

LANGSPLAT_BOX = 30
"""Side of LangSplat's and GAGS's mean filter, in pixels."""
LANGSPLAT_V2_BOX = 29
"""Side of LangSplatV2's, in pixels."""
MAJORITY_RADIUS = 3
"""Majority filters look this many pixels to each side (7x7)."""


def box_mean(image: Float[np.ndarray, "H W"], side: int) -> Float32[np.ndarray, "H W"]:
    """Mean over a window, as OpenCV's ``filter2D`` computes it by default: LangSplat's, GAGS's, MaskField's filter.

    The border is mirrored without repeating the edge pixel, and the window of an even ``side`` reaches ``side/2``
    pixels up and left but one less down and right. The computation is float32 and OpenCV's own, rounding included:
    the evaluators take every pixel equal to the peak, so even the last bit of a plateau matters.

    Args:
        image: any finite values.
        side: of the window, in pixels.
    """
    import cv2

    kernel = np.ones((side, side)) / side**2
    return cv2.filter2D(np.ascontiguousarray(image, dtype=np.float32), -1, kernel)


def box_mean_inside(image: Float[np.ndarray, "H W"], side: int) -> Float32[np.ndarray, "H W"]:
    """Mean over the part of an odd window that lies in the image: LangSplatV2's average pooling.

    Summed in float64, so that a plateau of equal values stays one.

    Raises:
        ValueError: an even side.
    """
    import cv2

    if side % 2 == 0:
        raise ValueError(f"the window has no middle pixel: its side is {side}")
    values = np.ascontiguousarray(image, dtype=np.float64)
    sums = cv2.boxFilter(values, -1, (side, side), normalize=False, borderType=cv2.BORDER_CONSTANT)
    rows, columns = (_window_lengths(length, side // 2, length) for length in image.shape)
    return (sums / (rows[:, None] * columns[None, :])).astype(np.float32)


def majority(labels: Int[np.ndarray, "H W"], num_classes: int) -> Int[np.ndarray, "H W"]:
    """Most frequent label in the 7x7 window: the filter of LangSplat, GAGS and MaskField.

    The published loops end their slices at ``H - 1`` and ``W - 1`` *exclusive*: the last row and the last column never
    vote, although they receive a label. Ties go to the smallest label.

    Args:
        labels: 0 to ``num_classes - 1``.
        num_classes: how many labels there are.

    Raises:
        ValueError: a picture of less than 2x2 pixels, where nobody votes, or a label out of range.
    """
    height, width = labels.shape
    if height < 2 or width < 2:
        raise ValueError(f"nobody votes in a picture of {width}x{height} pixels")
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(f"labels {labels.min()}..{labels.max()} are outside the {num_classes} classes")
    best, most = np.zeros(labels.shape, np.int64), _votes(labels == 0)
    for label in range(1, num_classes):
        votes = _votes(labels == label)
        better = votes > most
        best[better], most = label, np.maximum(most, votes)
    return best


def majority_mask(mask: Bool[np.ndarray, "H W"]) -> Bool[np.ndarray, "H W"]:
    """:func:`majority` of a mask: ties are background.

    Raises:
        ValueError: a picture of less than 2x2 pixels.
    """
    height, width = mask.shape
    if height < 2 or width < 2:
        raise ValueError(f"nobody votes in a picture of {width}x{height} pixels")
    rows, columns = (_window_lengths(length, MAJORITY_RADIUS, length - 1) for length in mask.shape)
    return 2 * _votes(mask).astype(np.int64) > rows[:, None] * columns[None, :]


def majority_mask_inside(mask: Bool[np.ndarray, "H W"]) -> Bool[np.ndarray, "H W"]:
    """Strict majority of the part of the 7x7 window inside the image, every pixel voting: LangSplatV2's filter."""
    import cv2

    side = 2 * MAJORITY_RADIUS + 1
    votes = cv2.boxFilter(mask.astype(np.uint8), -1, (side, side), normalize=False, borderType=cv2.BORDER_CONSTANT)
    rows, columns = (_window_lengths(length, MAJORITY_RADIUS, length) for length in mask.shape)
    return 2 * votes.astype(np.int64) > rows[:, None] * columns[None, :]


def _votes(mask: Bool[np.ndarray, "H W"]) -> np.ndarray:
    """Voters for a label in each 7x7 window, at most 49: the last row and column do not vote."""
    import cv2

    side = 2 * MAJORITY_RADIUS + 1
    voters = mask.astype(np.uint8)
    voters[-1], voters[:, -1] = 0, 0
    return cv2.boxFilter(voters, -1, (side, side), normalize=False, borderType=cv2.BORDER_CONSTANT)


def _window_lengths(length: int, radius: int, end: int) -> Int[np.ndarray, " N"]:
    """Pixels of [i - radius, i + radius] that lie in [0, end), for every i."""
    middle = np.arange(length)
    return np.minimum(middle + radius + 1, end) - np.maximum(middle - radius, 0)
