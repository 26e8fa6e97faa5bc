"""Two masks compared: IoU and boundary IoU (LERF-Mask).

Boundary IoU: Cheng et al., "Boundary IoU", CVPR 2021, with the constants of lkeab/gaussian-grouping
``script/eval_lerf_mask.py``. Two empty masks have no IoU: ``None``.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool

from maskfield_ns.evaluation.metrics import binary_iou

BOUNDARY_RATIO = 0.02
"""Width of the boundary as a share of the image diagonal."""
FOREGROUND_ABOVE = 128
"""8-bit grey values above this are foreground, in labels and predictions alike."""
SILHOUETTE_ABOVE = 10
"""The same in OpenGaussian's evaluator (yanmin-wu/OpenGaussian ``scripts/compute_lerf_iou.py``)."""


def boundary_width(height: int, width: int, ratio: float = BOUNDARY_RATIO) -> int:
    """Pixels by which a mask is eroded: the rounded share of the diagonal, at least 1."""
    return max(1, round(ratio * float(np.hypot(height, width))))


def boundary(mask: Bool[np.ndarray, "H W"], ratio: float = BOUNDARY_RATIO) -> Bool[np.ndarray, "H W"]:
    """Pixels of a mask within the boundary width of its edge; the image border counts as an edge."""
    import cv2

    side = 2 * boundary_width(mask.shape[0], mask.shape[1], ratio) + 1
    # d erosions by 3x3 are one by a square of side 2d + 1; outside the image is background.
    inner = cv2.erode(
        mask.astype(np.uint8), np.ones((side, side), np.uint8), borderType=cv2.BORDER_CONSTANT, borderValue=0
    )
    return mask & (inner == 0)


def boundary_iou(
    pred: Bool[np.ndarray, "H W"], label: Bool[np.ndarray, "H W"], ratio: float = BOUNDARY_RATIO
) -> float | None:
    """IoU of the boundaries of two masks; None when both are empty.

    Raises:
        ValueError: shapes differ or an array is not boolean.
    """
    binary_iou(pred, label)  # for its checks
    return binary_iou(boundary(pred, ratio), boundary(label, ratio))
