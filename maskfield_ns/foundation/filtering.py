"""Which of many overlapping masks to keep: pure functions on boolean masks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from maskfield_ns.foundation.protocols import MaskProposals

INSIDE, SMALL_SHARE = 0.85, 0.5
"""A mask is nested in another when at least 85 % of it lies inside and it covers less than half of the other."""
COMPARE_SIDE = 512
"""Masks are compared on every s-th pixel so that the longer side has at most this many."""


def pairwise_intersections(masks: Bool[Tensor, "M H W"]) -> tuple[Float[Tensor, "M M"], Float[Tensor, " M"]]:
    """Pixels that each pair of masks has in common, and each mask's pixels, both on the comparison grid."""
    stride = -(-max(masks.shape[1:]) // COMPARE_SIDE)
    start = stride // 2
    flat = masks[:, start::stride, start::stride].flatten(1).float()
    # A matmul of 0/1 values is exact in float32 up to 2**24 pixels, and far faster than a loop over pairs.
    return flat @ flat.T, flat.sum(1)


def keep_distinct(
    masks: Bool[Tensor, "M H W"],
    scores: Float[Tensor, " M"],
    *,
    overlap_thresh: float,
    inner_thresh: float = 1.0,
) -> Bool[Tensor, " M"]:
    """Drop near-duplicates and nested masks among the masks of one level.

    A mask goes when its IoU with a higher-scored one is above `overlap_thresh` (of equal scores the first wins). Of
    what is left, a mask nested in another goes when 1 - (share of it inside) * (share of the other it covers) is above
    `inner_thresh`; 1 keeps nested masks. This is the rule of LangSplat's, MaskField's and GAGS' preprocessing, except
    that there a mask that was itself dropped still removes what is nested in it.
    """
    if len(masks) == 0:
        return torch.zeros(0, dtype=torch.bool, device=masks.device)
    inter, area = pairwise_intersections(masks)
    iou = inter / (area[:, None] + area[None, :] - inter).clamp(min=1)
    order = scores.argsort(descending=True, stable=True)
    highest = iou[order][:, order].triu(diagonal=1).amax(dim=0)
    keep = torch.empty(len(masks), dtype=torch.bool, device=masks.device)
    keep[order] = highest <= overlap_thresh

    share = inter / area.clamp(min=1)[None, :]  # [a, b]: share of b inside a
    nested = (share >= INSIDE) & (share.T < SMALL_SHARE) & (1 - share * share.T > inner_thresh)
    return keep & ~(nested & keep[:, None]).any(dim=0)


def distinct_from(
    masks: Bool[Tensor, "M H W"], others: Bool[Tensor, "K H W"], overlap_thresh: float
) -> Bool[Tensor, " M"]:
    """Which masks overlap none of the others by more than `overlap_thresh` IoU."""
    if len(masks) == 0 or len(others) == 0:
        return torch.ones(len(masks), dtype=torch.bool, device=masks.device)
    inter, area = pairwise_intersections(torch.cat([masks, others]))
    inter, area, other_area = inter[: len(masks), len(masks) :], area[: len(masks)], area[len(masks) :]
    iou = inter / (area[:, None] + other_area[None, :] - inter).clamp(min=1)
    return iou.amax(dim=1) <= overlap_thresh


def empty_proposals(height: int, width: int) -> MaskProposals:
    """No masks, for a picture of this size in pixels."""
    return MaskProposals(
        masks=np.zeros((0, height, width), bool),
        levels=np.zeros(0, np.int8),
        scores=np.zeros(0, np.float32),
        stability=np.zeros(0, np.float32),
        boxes=np.zeros((0, 4), np.int32),
    )


def select(proposals: MaskProposals, index: np.ndarray) -> MaskProposals:
    """Some of the masks, by boolean or integer index."""
    return MaskProposals(
        masks=proposals.masks[index],
        levels=proposals.levels[index],
        scores=proposals.scores[index],
        stability=proposals.stability[index],
        boxes=proposals.boxes[index],
    )


def concatenate(parts: Sequence[MaskProposals]) -> MaskProposals:
    """All masks of one picture from several sources, in the order given."""
    return MaskProposals(
        masks=np.concatenate([part.masks for part in parts]),
        levels=np.concatenate([part.levels for part in parts]),
        scores=np.concatenate([part.scores for part in parts]),
        stability=np.concatenate([part.stability for part in parts]),
        boxes=np.concatenate([part.boxes for part in parts]),
    )


def reduced_size(height: int, width: int, max_side: int) -> tuple[int, int]:
    """(height, width) of a picture reduced so that its longer side has at most `max_side` pixels; never enlarged."""
    scale = min(1.0, max_side / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))
