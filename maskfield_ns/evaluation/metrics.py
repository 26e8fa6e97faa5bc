"""Segmentation metrics as pure functions of numpy arrays.

Rules for 0/0, the same everywhere: a ratio without a denominator is *undefined*, returned as ``None`` (never NaN,
never a flattering 1), and left out of any mean; a mean over nothing is ``None`` too.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

_CHUNK = 1 << 16
"""Pixels per step in pairwise products: float32 counts stay exact and memory stays bounded."""


class ClassIoU(NamedTuple):
    """IoU per class and its mean over the classes for which it is defined."""

    mean: float | None
    """In [0, 1]; None when no class is defined."""
    per_class: dict[int, float]
    """Class index to IoU, defined classes only."""
    undefined: tuple[int, ...]
    """Classes that neither the labels nor the predictions contain."""


class Agreement(NamedTuple):
    """How well rendered masks explain proposed ones. None when there was no (non-empty) proposal."""

    matched: float | None
    """Mean over proposals of the IoU with the one rendered mask assigned to it; 0 when it got none."""
    best: float | None
    """Mean over proposals of the best IoU with any rendered mask; several proposals may share one."""
    num_proposals: int
    """Proposals that were counted."""


def binary_iou(pred: Bool[np.ndarray, "*shape"], label: Bool[np.ndarray, "*shape"]) -> float | None:
    """Intersection over union of two masks in [0, 1]; None when both are empty.

    Raises:
        ValueError: shapes differ or an array is not boolean.
    """
    intersection, union = intersection_and_union(pred, label)
    return intersection / union if union else None


def intersection_and_union(pred: Bool[np.ndarray, "*shape"], label: Bool[np.ndarray, "*shape"]) -> tuple[int, int]:
    """Pixel counts of the intersection and the union of two masks.

    Raises:
        ValueError: shapes differ or an array is not boolean.
    """
    if pred.shape != label.shape or pred.dtype != bool or label.dtype != bool:
        raise ValueError(
            f"masks must be boolean and of one shape: {pred.dtype}{pred.shape} and {label.dtype}{label.shape}"
        )
    return int(np.count_nonzero(pred & label)), int(np.count_nonzero(pred | label))


def confusion_matrix(
    pred: Int[np.ndarray, "*shape"], label: Int[np.ndarray, "*shape"], num_classes: int, ignore: int = -1
) -> Int[np.ndarray, "C C+1"]:
    """Pixel counts, row = label, column = prediction; the last column counts labelled pixels without a prediction.

    Pixels labelled ``ignore`` do not count at all, whatever is predicted there. A prediction of -1 or ``ignore``
    means "no class": it is a miss for the label's class and nobody's false positive. Matrices of several views add.

    Raises:
        ValueError: shapes differ, an array is not of integers, or a value is neither a class nor allowed above.
    """
    if pred.shape != label.shape or pred.dtype.kind not in "iu" or label.dtype.kind not in "iu":
        raise ValueError(
            f"class maps must be integer and of one shape: {pred.dtype}{pred.shape} and {label.dtype}{label.shape}"
        )
    counted = label != ignore
    rows, columns = label[counted].astype(np.int64), pred[counted].astype(np.int64)
    abstained = (columns == -1) | (columns == ignore)
    for what, values in (("label", rows), ("prediction", columns[~abstained])):
        if values.size and (values.min() < 0 or values.max() >= num_classes):
            raise ValueError(f"a {what} is outside the {num_classes} classes: {values.min()}..{values.max()}")
    columns[abstained] = num_classes
    flat = np.bincount(rows * (num_classes + 1) + columns, minlength=num_classes * (num_classes + 1))
    return flat.reshape(num_classes, num_classes + 1)


def mean_iou(confusion: Int[np.ndarray, "C C_or_more"]) -> ClassIoU:
    """IoU per class of a confusion matrix (square, or with the extra column of :func:`confusion_matrix`).

    A class that is predicted but never labelled is defined and 0; a class found in neither is undefined.

    Raises:
        ValueError: the matrix has fewer columns than rows.
    """
    classes = confusion.shape[0]
    if confusion.ndim != 2 or confusion.shape[1] < classes:
        raise ValueError(f"not a confusion matrix: {confusion.shape}")
    hits = np.diagonal(confusion)
    unions = confusion.sum(axis=1) + confusion[:, :classes].sum(axis=0) - hits
    per_class = {index: float(hits[index] / unions[index]) for index in range(classes) if unions[index] > 0}
    undefined = tuple(index for index in range(classes) if index not in per_class)
    return ClassIoU(mean_or_none(list(per_class.values())), per_class, undefined)


def pixel_accuracy(confusion: Int[np.ndarray, "C C_or_more"]) -> float | None:
    """Share of labelled pixels whose class was predicted, in [0, 1]; None without a labelled pixel."""
    total = int(confusion.sum())
    return int(np.trace(confusion)) / total if total else None


def localisation_hit(relevancy_map: Float[np.ndarray, "H W"], boxes: Float[np.ndarray, "N 4"]) -> bool:
    """LERF's localisation test: does a pixel of highest relevancy lie in a box of the object?

    All pixels equal to the peak take part and one inside is enough, so a constant map always hits; see
    :func:`localisation_hit_strict` for the test without that loophole. Smooth the map beforehand if the protocol
    asks for it.

    Args:
        relevancy_map: any real values; infinities are ordinary values.
        boxes: (x0, y0, x1, y1) in pixel indices, edges inclusive, corners in any order.

    Raises:
        ValueError: NaN in the map or the boxes, no pixel, or no box (then there is nothing to localise, and the
            pair does not belong into the denominator).
    """
    rows, columns = _peak(relevancy_map)
    corners = np.asarray(boxes, dtype=np.float64)
    if corners.ndim != 2 or corners.shape[1] != 4 or len(corners) == 0 or np.isnan(corners).any():
        raise ValueError(f"need one or more boxes (x0, y0, x1, y1), got shape {corners.shape}: {corners.tolist()}")
    x0, x1 = np.sort(corners[:, [0, 2]], axis=1).T[..., None]
    y0, y1 = np.sort(corners[:, [1, 3]], axis=1).T[..., None]
    return bool(((columns >= x0) & (columns <= x1) & (rows >= y0) & (rows <= y1)).any())


def localisation_hit_strict(relevancy_map: Float[np.ndarray, "H W"], mask: Bool[np.ndarray, "H W"]) -> bool:
    """Do all pixels of highest relevancy lie on the object itself? Harder than LERF's test; a constant map fails.

    Raises:
        ValueError: NaN in the map, no pixel, an empty mask, or shapes that differ.
    """
    rows, columns = _peak(relevancy_map)
    if mask.shape != relevancy_map.shape or mask.dtype != bool or not mask.any():
        raise ValueError(f"need a non-empty boolean mask of shape {relevancy_map.shape}, got {mask.dtype}{mask.shape}")
    return bool(mask[rows, columns].all())


def inclusive_box(mask: Bool[np.ndarray, "H W"]) -> tuple[int, int, int, int]:
    """Tight box (x0, y0, x1, y1) in pixel indices, edges inclusive, as :func:`localisation_hit` wants it.

    Raises:
        ValueError: the mask is empty.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        raise ValueError("an empty mask has no box")
    return int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1])


def pairwise_iou(first: Bool[np.ndarray, "M H W"], second: Bool[np.ndarray, "R H W"]) -> Float[np.ndarray, "M R"]:
    """IoU of every mask with every other, in [0, 1]; 0 where both are empty, since they share nothing.

    Raises:
        ValueError: pictures of different size, or arrays that are not boolean stacks.
    """
    if first.ndim != 3 or second.ndim != 3 or first.shape[1:] != second.shape[1:]:
        raise ValueError(f"mask stacks do not fit: {first.shape} and {second.shape}")
    if first.dtype != bool or second.dtype != bool:
        raise ValueError(f"mask stacks must be boolean: {first.dtype} and {second.dtype}")
    pixels = first.shape[1] * first.shape[2]
    flat_first, flat_second = first.reshape(len(first), pixels), second.reshape(len(second), pixels)
    shared = np.zeros((len(first), len(second)))
    for start in range(0, pixels, _CHUNK):
        part = slice(start, start + _CHUNK)
        shared += flat_first[:, part].astype(np.float32) @ flat_second[:, part].astype(np.float32).T
    unions = flat_first.sum(axis=1)[:, None] + flat_second.sum(axis=1)[None, :] - shared
    return np.divide(shared, unions, out=np.zeros_like(shared), where=unions > 0)


def matched_mean_iou(proposed: Bool[np.ndarray, "M H W"], rendered: Bool[np.ndarray, "R H W"]) -> Agreement:
    """Label-free agreement: how well the rendered masks of a view explain the masks proposed for it.

    Proposals and rendered masks are paired one to one so that the sum of IoUs is largest. A proposal without a
    partner counts 0; rendered masks without one cost nothing, because a scene may know more than one view shows.
    Empty proposals are left out. Averages over views should weigh by ``num_proposals``.

    Raises:
        ValueError: as :func:`pairwise_iou`.
    """
    from scipy.optimize import linear_sum_assignment

    iou = pairwise_iou(proposed, rendered)[proposed.any(axis=(1, 2))]
    count = len(iou)
    if count == 0:
        return Agreement(None, None, 0)
    if iou.shape[1] == 0:
        return Agreement(0.0, 0.0, count)
    rows, columns = linear_sum_assignment(iou, maximize=True)
    return Agreement(float(iou[rows, columns].sum() / count), float(iou.max(axis=1).mean()), count)


def mean_or_none(values: list[float]) -> float | None:
    """Plain mean; None of nothing."""
    return float(np.mean(values)) if len(values) else None


def _peak(relevancy_map: Float[np.ndarray, "H W"]) -> tuple[Int[np.ndarray, " P"], Int[np.ndarray, " P"]]:
    """Rows and columns of all pixels equal to the maximum."""
    if relevancy_map.ndim != 2 or relevancy_map.size == 0:
        raise ValueError(f"a relevancy map has shape [H, W] and at least one pixel, not {relevancy_map.shape}")
    if np.isnan(relevancy_map).any():
        raise ValueError("the relevancy map has NaN, so its peak is undefined")
    rows, columns = np.nonzero(relevancy_map == relevancy_map.max())
    return rows, columns
