"""Mask losses on logits, and the same quantities as pairwise matching costs (MaskFormer, MaskField sec. 3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

FOCAL_ALPHA = 0.25
FOCAL_GAMMA = 2.0


def focal_terms(
    logits: Float[Tensor, "*batch"], alpha: float = FOCAL_ALPHA, gamma: float = FOCAL_GAMMA
) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
    """Focal loss of every logit if its target were 1, and if it were 0 (Lin et al. 2017).

    The loss is linear in the target, so soft targets m mix the two: m * positive + (1 - m) * negative.
    """
    prob = logits.sigmoid()
    positive = alpha * (1 - prob) ** gamma * F.softplus(-logits)
    negative = (1 - alpha) * prob**gamma * F.softplus(logits)
    return positive, negative


def focal_loss(
    logits: Float[Tensor, "Q P"],
    targets: Float[Tensor, "Q P"],
    weights: Float[Tensor, "Q P"],
    alpha: float = FOCAL_ALPHA,
) -> Float[Tensor, " Q"]:
    """Weighted mean focal loss per mask; targets in [0, 1]; a mask whose weights are all 0 gives 0."""
    positive, negative = focal_terms(logits, alpha)
    loss = targets * positive + (1 - targets) * negative
    return (loss * weights).sum(-1) / weights.sum(-1).clamp(min=1)


def dice_loss(
    logits: Float[Tensor, "Q P"], targets: Float[Tensor, "Q P"], weights: Float[Tensor, "Q P"]
) -> Float[Tensor, " Q"]:
    """One minus the soft Dice coefficient with +1 smoothing, over weighted pixels; in [0, 1)."""
    prob = logits.sigmoid() * weights
    overlap = (prob * targets).sum(-1)
    return 1 - (2 * overlap + 1) / (prob.sum(-1) + (targets * weights).sum(-1) + 1)


def pairwise_focal(logits: Float[Tensor, "Q P"], masks: Float[Tensor, "M P"]) -> Float[Tensor, "Q M"]:
    """Mean focal loss of every query against every mask, without a [Q, M, P] tensor."""
    positive, negative = focal_terms(logits)
    return (positive @ masks.T + negative @ (1 - masks).T) / logits.shape[-1]


def pairwise_dice(logits: Float[Tensor, "Q P"], masks: Float[Tensor, "M P"]) -> Float[Tensor, "Q M"]:
    """Dice loss of every query against every mask."""
    prob = logits.sigmoid()
    total = prob.sum(-1)[:, None] + masks.sum(-1)[None]
    return 1 - (2 * prob @ masks.T + 1) / (total + 1)


def pairwise_cosine_distance(embeddings: Float[Tensor, "Q C"], targets: Float[Tensor, "M C"]) -> Float[Tensor, "Q M"]:
    """1 - cosine similarity of every pair."""
    return 1 - F.normalize(embeddings, dim=-1) @ F.normalize(targets, dim=-1).T


def soft_iou(logits: Float[Tensor, "Q P"], masks: Float[Tensor, "M P"]) -> Float[Tensor, "Q M"]:
    """IoU of every thresholded query (logit > 0) with every thresholded mask (> 0.5); empty pairs give 0."""
    predicted, truth = (logits > 0).float(), (masks > 0.5).float()
    overlap = predicted @ truth.T
    union = predicted.sum(-1)[:, None] + truth.sum(-1)[None] - overlap
    return torch.where(union > 0, overlap / union.clamp(min=1), torch.zeros_like(overlap))
