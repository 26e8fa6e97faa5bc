"""From relevancy maps to masks with a threshold searched for every map: the rule of Occam's LGS on 3D-OVS.

Source: insait-institute/OccamLGS (Cheng et al., "Occam's LGS"), ``eval/eval_utils.py``, ``eval/evaluate_iou_3dovs.py``.
Every query is decided alone and without labels: where mask and mean score hardly change with the threshold, the mask
can be trusted. Nothing is smoothed before the threshold; the 7x7 majority filter follows it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64

from maskfield_ns.evaluation.protocols import filters

THRESHOLDS: Float64[np.ndarray, " K"] = np.arange(0.01, 1, 0.01)
"""What is tried, on the normalised map."""
SHORTEST_RUN = 5
"""Steps that a run of stable thresholds has at least."""
FALLBACK = 0.5
"""Threshold of a map without a stable run."""
_MEDIAN = 5
_NO_SLOPE = 999.0
"""Slope of a map without a stable run: such a level answers only if no level has one."""


@dataclass(frozen=True)
class Stability:
    """What counts as stable."""

    steepest: float = 0.4
    """Both the mean score and the share of the picture must change by less than this per unit of threshold."""
    smallest: float = 0.005
    """The mask must be more than this share of the picture,"""
    largest: float = 0.9
    """and less than this."""


SCRIPT = Stability()
"""What the published ``eval_3DOVS.sh`` sets."""
EVALUATOR_DEFAULTS = Stability(0.3, 0.001, 0.95)
"""What the published evaluator does without options."""


class StableMask(NamedTuple):
    """A query's mask in one view."""

    mask: Bool[np.ndarray, "H W"]
    level: int
    """Position of the chosen level."""
    threshold: float
    """Of the normalised map."""
    found: bool
    """Whether any level has a stable run of thresholds; without one :data:`FALLBACK` is used on the first level."""
    never_valid: bool
    """Some level has no threshold with a mask of valid size: the published evaluator stops there."""


class Search(NamedTuple):
    """What one map's threshold should be."""

    threshold: float
    slope: float
    """Change of the mean score over the run, per unit of threshold; the level with the least of it answers."""
    found: bool
    ever_valid: bool


def predict_mask(relevancy: Float[np.ndarray, "L H W"], stability: Stability = SCRIPT) -> StableMask:
    """Normalise, search the threshold of every level, cut the level of least slope, filter by majority.

    Raises:
        ValueError: relevancy that is not finite, not [L, H, W], or smaller than 2x2 pixels.
    """
    if relevancy.ndim != 3 or 0 in relevancy.shape or min(relevancy.shape[1:]) < 2:
        raise ValueError(f"relevancy must be [levels, height, width] of at least 2x2 pixels, not {relevancy.shape}")
    if not np.isfinite(relevancy).all():
        raise ValueError("relevancy has NaN or infinity")
    levels = [normalise(level) for level in relevancy.astype(np.float32)]
    searches = [search(level, stability) for level in levels]
    chosen = int(np.argmin([each.slope for each in searches]))
    # Thresholds are doubles; a Python number would be rounded to the map's precision here, but not in the search.
    mask = filters.majority_mask(levels[chosen] > np.float64(searches[chosen].threshold))
    never_valid = not all(each.ever_valid for each in searches)
    return StableMask(mask, chosen, searches[chosen].threshold, searches[chosen].found, never_valid)


def normalise(relevancy: Float32[np.ndarray, "H W"]) -> Float32[np.ndarray, "H W"]:
    """Min-max over the image; a constant map becomes 0."""
    shifted = relevancy - relevancy.min()
    return shifted / (shifted.max() + np.float32(1e-9))


def search(normalised: Float32[np.ndarray, "H W"], stability: Stability = SCRIPT) -> Search:
    """Looks for the last run of thresholds at which the mask is stable; the threshold is its middle.

    Gradients are absolute and median-filtered over five thresholds (zeros beyond the ends). As in the published code, a
    run that ends before the last threshold counts the threshold after it as its end, in the middle and in the slope.
    """
    scores, shares = _curves(normalised)
    steep = [_median(np.abs(np.gradient(curve, THRESHOLDS))) for curve in (scores, shares)]
    valid = (shares > stability.smallest) & (shares < stability.largest)
    stable = valid & (steep[0] < stability.steepest) & (steep[1] < stability.steepest)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], stable, [False]]).astype(np.int8)))
    runs = [(start, end) for start, end in edges.reshape(-1, 2).tolist() if end - start >= SHORTEST_RUN]
    if not runs:
        return Search(FALLBACK, _NO_SLOPE, False, bool(valid.any()))
    start, end = runs[-1]
    end = min(end, len(THRESHOLDS) - 1)
    slope = (scores[end] - scores[start]) / (THRESHOLDS[end] - THRESHOLDS[start] + 1e-9)
    return Search(float((THRESHOLDS[start] + THRESHOLDS[end]) / 2), float(slope), True, True)


def _curves(normalised: Float32[np.ndarray, "H W"]) -> tuple[Float64[np.ndarray, " K"], Float64[np.ndarray, " K"]]:
    """Per threshold: mean of the values above it (0 where there are none), and their share of the picture."""
    values = normalised.ravel().astype(np.float64)
    # How many thresholds a pixel is above; those above threshold k are the pixels that are above more than k.
    passed = np.searchsorted(THRESHOLDS, values, side="left")
    bins = len(THRESHOLDS) + 1
    counts = np.bincount(passed, minlength=bins)[::-1].cumsum()[::-1][1:]
    sums = np.bincount(passed, weights=values, minlength=bins)[::-1].cumsum()[::-1][1:]
    return np.divide(sums, counts, out=np.zeros(len(THRESHOLDS)), where=counts > 0), counts / values.size


def _median(curve: Float64[np.ndarray, " K"]) -> Float64[np.ndarray, " K"]:
    padded = np.pad(curve, _MEDIAN // 2)
    return np.median(np.lib.stride_tricks.sliding_window_view(padded, _MEDIAN), axis=-1)
