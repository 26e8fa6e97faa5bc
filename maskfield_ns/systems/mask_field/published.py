"""MaskField as released: queries from an MLP of their index, all levels in one pool, matched anew in every step.

Every mask takes a query, and every unmatched query is pushed to zero on the whole view. Source of the rule: MaskField's
paper and released code. The grouping rule of :mod:`.mask_stage` is this package's own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from maskfield_ns.systems.base import Losses, Space, System, SystemConfig
from maskfield_ns.systems.mask_field.losses import dice_loss, focal_loss, soft_iou
from maskfield_ns.systems.mask_field.matching import MatchCosts, match, matching_cost
from maskfield_ns.systems.query_head import QueryHead

if TYPE_CHECKING:
    from maskfield_ns.data.mask_views import MaskViews

STEPS = 5000
"""Iterations of the mask stage in MaskField's paper."""


@dataclass
class PublishedConfig(SystemConfig):
    """MaskField's released rule."""

    _target: type = field(default_factory=lambda: PublishedSystem)
    """Target class to instantiate."""
    feature_dim: int = 16
    """Channels of the mask feature (D)."""
    num_queries: int = 240
    """Q, for masks of all levels together."""
    dice_weight: float = 0.05
    """Weight of the dice loss, in the loss and in the matching."""


class PublishedSystem(System):
    """MaskField's rule in one scene."""

    def __init__(self, config: PublishedConfig, embedding_dim: int | None) -> None:
        super().__init__()
        self.config = config
        self.query_head = QueryHead(
            config.num_queries, config.feature_dim, embedding_dim or 1, by_level=False, parametrisation="index_mlp"
        )
        self.views: MaskViews | None = None

    def begin(self, views: MaskViews, space: Space, resuming: bool) -> str:
        self.views = views
        return f"{self.query_head.num_queries} queries to be matched in every step"

    def losses(self, view: int, features: Float[Tensor, "P channels"]) -> Losses:
        assert self.views is not None, "begin() comes first"
        targets = self.views.tensors(view, features.device)
        # Costs are sums over thousands of pixels: half precision overflows under nerfstudio's mixed precision.
        with torch.autocast(features.device.type, enabled=False):
            features = features[targets.valid].float()
            if not len(targets.levels):
                return {"mask_loss": (features * 0).sum()}, {}
            return self._matched(features, targets.masks()[:, targets.valid], targets.embeddings)

    def _matched(
        self, features: Float[Tensor, "P channels"], masks: Float[Tensor, "M P"], vectors: Float[Tensor, "M C"]
    ) -> Losses:
        """L = focal + 0.05 dice + clip + mean of squared probabilities of unmatched queries."""
        dice_weight = self.config.dice_weight
        logits = self.query_head.logits(features).T
        costs = MatchCosts(focal=1.0, dice=dice_weight, clip=1.0, no_match=None, clip_l1=1.0)
        embeddings = self.query_head.embeddings
        with torch.no_grad():
            rows, columns = match(matching_cost(logits, embeddings, masks, vectors, costs))
            self.query_head.support[rows] += 1
        masks, count = masks[columns], len(masks)
        weights = torch.ones_like(masks)
        cosine = F.cosine_similarity(embeddings[rows], vectors[columns], dim=-1)
        losses = {
            "mask_focal": focal_loss(logits[rows], masks, weights).sum() / count,
            "mask_dice": dice_weight * dice_loss(logits[rows], masks, weights).sum() / count,
            "mask_clip": (1 - cosine).mean(),
        }
        unmatched = torch.ones(len(logits), dtype=torch.bool, device=logits.device)
        unmatched[rows] = False
        if unmatched.any():
            losses["mask_absent"] = (logits[unmatched].sigmoid() ** 2).mean()
        with torch.no_grad():
            iou = soft_iou(logits[rows], masks).diagonal().mean()
        return losses, {"mask_iou": float(iou)}
