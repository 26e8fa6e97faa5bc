"""From relevancy maps to masks and places: the rule of LangSplat, GAGS and LangSplatV2 (LERF-OVS, Mip-NeRF360).

Sources: minghanqin/LangSplat ``eval/evaluate_iou_loc.py`` (Qin et al., CVPR 2024), ZhaoYujie2002/LangSplatV2
``eval_lerf.py``, WHU-USI3DV/GAGS ``evaluate_iou_loc.py``. Every query is decided alone, without labels: one map per
level in, the level with the highest peak out.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32

from maskfield_ns.evaluation.protocols import filters

Smoothing = Literal["langsplat", "langsplat-v2"]
SMOOTHINGS: tuple[Smoothing, ...] = ("langsplat", "langsplat-v2")
"""GAGS smooths as LangSplat does."""

MASK_THRESHOLD = 0.4
"""The figure in the published scripts. They stretch the normalised map to [-1, 1] and clip it to [0, 1] first, so the
normalised relevancy has to exceed 0.7."""


class ThresholdMask(NamedTuple):
    """A query's mask in one view."""

    mask: Bool[np.ndarray, "H W"]
    level: int
    """Position of the chosen level."""


def predict_mask(
    relevancy: Float[np.ndarray, "L H W"], smoothing: Smoothing = "langsplat", threshold: float = MASK_THRESHOLD
) -> ThresholdMask:
    """Smooth, normalise, cut, and filter by majority; the level with the largest smoothed relevancy answers.

    Normalisation lifts some pixel to 1 whatever the query: the protocol asks only for what is in the view.

    Raises:
        ValueError: relevancy that is not finite, not [L, H, W], or smaller than 2x2 pixels; an unknown smoothing.
    """
    levels = _checked(relevancy, smoothing)
    blended = [np.float32(0.5) * (_smoothed(level, smoothing) + level) for level in levels]
    chosen = int(np.argmax([level.max() for level in blended]))
    above = normalise(blended[chosen]) > np.float32(threshold)
    mask = filters.majority_mask(above) if smoothing == "langsplat" else filters.majority_mask_inside(above)
    return ThresholdMask(mask, chosen)


def normalise(relevancy: Float32[np.ndarray, "H W"]) -> Float32[np.ndarray, "H W"]:
    """Min-max over the image, stretched to [-1, 1] and clipped to [0, 1]."""
    shifted = relevancy - relevancy.min()
    return np.clip(shifted / (shifted.max() + np.float32(1e-9)) * np.float32(2) - np.float32(1), 0, 1)


def locate(relevancy: Float[np.ndarray, "L H W"], smoothing: Smoothing = "langsplat") -> Float32[np.ndarray, "H W"]:
    """The smoothed map whose peak is the query's place: the level with the highest peak, chosen anew.

    All pixels equal to its maximum are the place (:func:`maskfield_ns.evaluation.metrics.localisation_hit`).

    Raises:
        ValueError: as :func:`predict_mask`.
    """
    smoothed = [_smoothed(level, smoothing) for level in _checked(relevancy, smoothing)]
    return smoothed[int(np.argmax([level.max() for level in smoothed]))]


def _smoothed(level: Float32[np.ndarray, "H W"], smoothing: Smoothing) -> Float32[np.ndarray, "H W"]:
    if smoothing == "langsplat":
        return filters.box_mean(level, filters.LANGSPLAT_BOX)
    return filters.box_mean_inside(level, filters.LANGSPLAT_V2_BOX)


def _checked(relevancy: np.ndarray, smoothing: str) -> Float32[np.ndarray, "L H W"]:
    if smoothing not in SMOOTHINGS:
        raise ValueError(f"unknown smoothing {smoothing!r}; there are {', '.join(SMOOTHINGS)}")
    if relevancy.ndim != 3 or 0 in relevancy.shape or min(relevancy.shape[1:]) < 2:
        raise ValueError(f"relevancy must be [levels, height, width] of at least 2x2 pixels, not {relevancy.shape}")
    levels = relevancy.astype(np.float32)
    if not np.isfinite(levels).all():
        raise ValueError("relevancy has NaN or infinity")
    return levels
