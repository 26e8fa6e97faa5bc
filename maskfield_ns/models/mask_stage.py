"""The mask stage: fits mask features and queries to the cached masks, for any backbone that renders features.

Two rules are offered. ``consensus`` (ours): masks are grouped across views before training, so every query starts as
one thing with its CLIP vector, and each view is matched with the option to match nothing. ``reference``: MaskField's
released rule (queries from an index MLP, all levels in one pool, every mask takes a query, every unmatched query is
pushed to zero on the whole view), kept for comparison.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from maskfield_ns.foundation.protocols import LEVELS
from maskfield_ns.queries.head import QueryHead
from maskfield_ns.queries.losses import dice_loss, focal_loss, focal_terms, soft_iou
from maskfield_ns.queries.matching import MatchCosts, match, matching_cost

if TYPE_CHECKING:
    from maskfield_ns.data.mask_views import MaskViews, TargetTensors


@dataclass
class MaskStageConfig:
    """How masks become queries."""

    rule: Literal["consensus", "reference"] = "consensus"
    """"consensus" groups masks across views first; "reference" follows MaskField's released code."""
    num_queries: int = 240
    """Q, over all levels."""
    group_threshold: float = 0.25
    """Pooled IoU at which two groups of masks are taken for one thing."""
    min_views: int = 3
    """A thing must be found in at least this many training views to get a query."""
    rematch_every: int = 1
    """With the consensus rule: from ``rematch_after`` on, match again each time a view comes up (1) or never (0)."""
    rematch_after: int = 200
    """Mask-stage steps that trust the grouping before the field itself is asked."""
    focal_weight: float = 1.0
    """Weight of the focal loss."""
    dice_weight: float = 1.0
    """Weight of the dice loss (the reference rule uses MaskField's 0.05)."""
    clip_weight: float = 0.5
    """Weight of the cosine loss on CLIP vectors."""
    absent_weight: float = 1.0
    """Weight of pushing a query down where masks of its level show something else."""
    no_match_cost: float = 1.1
    """A mask that costs more than this to explain is left out."""


@dataclass
class ViewState:
    """What the stage remembers about one view between steps."""

    queries: Tensor
    """[K] query per explained mask."""
    masks: Tensor
    """[K] index of the mask."""


@dataclass
class MaskStage:
    """Runs the stage; owned by a model but not part of its module tree (nothing here belongs in a checkpoint).

    Args:
        config: the rule.
        head: the query head, updated in place.
        views: masks of the training views on their ray grids.
        surface_cells: view index -> 3D cell that each ray of its grid ends in (-1: none) [h * w], and the number of
            cells.
    """

    config: MaskStageConfig
    head: QueryHead
    views: MaskViews
    surface_cells: Callable[[int], Int[Tensor, " P"]]
    num_cells: int
    states: dict[int, ViewState] = field(default_factory=dict)
    steps: int = 0
    prepared: bool = False

    def prepare(self, adopt: bool) -> None:
        """Groups masks across views and, with ``adopt``, lets queries stand for the groups (not when resuming)."""
        self.prepared = True
        if self.config.rule == "reference":
            return
        from maskfield_ns.queries.association import ViewMasks, associate

        cells = [self.surface_cells(v).cpu().numpy() for v in range(len(self.views))]
        targets = [self.views[v] for v in range(len(self.views))]
        explained: list[list[tuple[int, int]]] = [[] for _ in cells]
        for level in range(len(LEVELS)):
            of_level = [np.nonzero(t.levels == level)[0] for t in targets]
            level_views = [
                ViewMasks(c, t.masks[k].reshape(len(k), t.valid.size).astype(np.float32))
                for c, t, k in zip(cells, targets, of_level, strict=True)
            ]
            groups = associate(
                level_views, self.num_cells, self.config.group_threshold, min_views=self.config.min_views
            )
            for query, group in zip(self.head.bank(level).tolist(), groups, strict=False):
                total = torch.zeros(self.head.embeddings.shape[-1])
                for view, local in group.members:
                    k = int(of_level[view][local])
                    explained[view].append((query, k))
                    weight = float(targets[view].areas[k]) ** 0.5 * float(targets[view].scores[k])
                    total += weight * torch.from_numpy(targets[view].embeddings[k])
                if adopt:
                    self.head.adopt(query, total.to(self.head.support.device), group.views)
        device = self.head.support.device
        for view, pairs in enumerate(explained):
            table = torch.tensor(pairs, dtype=torch.long, device=device).reshape(-1, 2)
            self.states[view] = ViewState(table[:, 0], table[:, 1])

    def losses(
        self, view: int, features: Float[Tensor, "P D"]
    ) -> tuple[dict[str, Float[Tensor, ""]], dict[str, float]]:
        """Losses and figures of one step on one view's rendered mask features (rays in the grid's row order)."""
        targets = self.views.tensors(view, features.device)
        logits = self.head.logits(features).T
        rule = self._reference if self.config.rule == "reference" else self._consensus
        self.steps += 1
        if len(targets.masks) == 0:
            return {"mask_loss": (logits * 0).sum()}, {}
        return rule(view, logits, targets)

    def _consensus(self, view: int, logits: Float[Tensor, "Q P"], targets: TargetTensors) -> tuple[dict, dict]:
        cfg, head = self.config, self.head
        adopted = head.support > 0
        if cfg.rematch_every and self.steps > cfg.rematch_after:
            self._rematch(view, logits, targets, adopted)
        state = self.states[view]
        valid = targets.valid.float()
        # A query explained by several masks (SAM split the object) is shown their union.
        hit, place = state.queries.unique(return_inverse=True)
        union = torch.zeros(len(hit), logits.shape[-1], device=logits.device)
        union = union.scatter_reduce(0, place[:, None].expand(-1, logits.shape[-1]), targets.masks[state.masks], "amax")
        weights = valid.expand_as(union)
        rows = logits[hit]
        losses = {
            "mask_focal": cfg.focal_weight * _balanced(rows, union, weights).mean(),
            "mask_dice": cfg.dice_weight * dice_loss(rows, union, weights).mean(),
        }
        # Queries without a mask here: their object may well be visible and merely missed by the proposer, so they are
        # pushed down only where masks of their own level show something else.
        present = torch.zeros_like(adopted)
        present[hit] = True
        absent = (adopted & ~present).nonzero()[:, 0]
        if len(absent):
            elsewhere = torch.stack(
                [
                    union[head.levels[hit] == level].amax(0) if (head.levels[hit] == level).any() else valid * 0
                    for level in range(len(LEVELS))
                ]
            )
            weight = (elsewhere[head.levels[absent]] > 0.5).float() * valid
            negative = focal_terms(logits[absent])[1]
            losses["mask_absent"] = cfg.absent_weight * (negative * weight).sum() / weight.sum().clamp(min=1)
        cosine = F.cosine_similarity(head.embeddings[state.queries], targets.embeddings[state.masks], dim=-1)
        losses["mask_clip"] = cfg.clip_weight * (1 - cosine).mean()
        with torch.no_grad():
            iou = soft_iou(rows, union).diagonal().mean()
        return losses, {"mask_iou": float(iou), "masks_explained": len(state.masks) / len(targets.masks)}

    @torch.no_grad()
    def _rematch(self, view: int, logits: Float[Tensor, "Q P"], targets: TargetTensors, adopted: Tensor) -> None:
        """Asks the field which query explains which mask: the grouping's mistakes are mended here."""
        cfg = self.config
        costs = MatchCosts(no_match=cfg.no_match_cost)
        queries, masks = [], []
        for level in range(len(LEVELS)):
            bank = self.head.bank(level)
            bank = bank[adopted[bank]]
            chosen = (targets.levels == level).nonzero()[:, 0]
            if not len(bank) or not len(chosen):
                continue
            cost = matching_cost(
                logits[bank], self.head.embeddings[bank], targets.masks[chosen], targets.embeddings[chosen], costs
            )
            rows, columns = match(cost, costs.no_match)
            queries.append(bank[rows])
            masks.append(chosen[columns])
        if queries:
            self.states[view] = ViewState(torch.cat(queries), torch.cat(masks))

    def _reference(self, view: int, logits: Float[Tensor, "Q P"], targets: TargetTensors) -> tuple[dict, dict]:
        """MaskField's rule: L = focal + 0.05 dice + clip + mean of squared probabilities of unmatched queries."""
        costs = MatchCosts(focal=1.0, dice=0.05, clip=1.0, no_match=None, clip_l1=1.0)
        embeddings = self.head.embeddings
        with torch.no_grad():
            rows, columns = match(matching_cost(logits, embeddings, targets.masks, targets.embeddings, costs))
            self.head.support[rows] += 1
        masks = targets.masks[columns]
        weights = torch.ones_like(masks)
        count = len(targets.masks)
        cosine = F.cosine_similarity(embeddings[rows], targets.embeddings[columns], dim=-1)
        losses = {
            "mask_focal": focal_loss(logits[rows], masks, weights).sum() / count,
            "mask_dice": 0.05 * dice_loss(logits[rows], masks, weights).sum() / count,
            "mask_clip": (1 - cosine).mean(),
        }
        unmatched = torch.ones(len(logits), dtype=torch.bool, device=logits.device)
        unmatched[rows] = False
        if unmatched.any():
            losses["mask_absent"] = (logits[unmatched].sigmoid() ** 2).mean()
        with torch.no_grad():
            iou = soft_iou(logits[rows], masks).diagonal().mean()
        return losses, {"mask_iou": float(iou)}


def _balanced(
    logits: Float[Tensor, "K P"], targets: Float[Tensor, "K P"], weights: Float[Tensor, "K P"]
) -> Float[Tensor, " K"]:
    """Focal loss with inside and outside averaged separately, so that a 20-pixel object counts like a table."""
    positive, negative = focal_terms(logits, alpha=0.5)
    inside, outside = targets * weights, (1 - targets) * weights
    return (positive * inside).sum(-1) / inside.sum(-1).clamp(min=1) + (negative * outside).sum(-1) / outside.sum(
        -1
    ).clamp(min=1)
