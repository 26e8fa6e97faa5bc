"""The mask field: features whose products with the scene's queries are masks, fitted to the cached masks.

Masks are grouped across views before training, so every query starts as one object with its CLIP vector, and each view
is matched with the option to match nothing. (MaskField's own rule is :mod:`.published`.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from maskfield_ns.foundation.protocols import LEVELS
from maskfield_ns.systems.base import Losses, Space, Start, System, SystemConfig
from maskfield_ns.systems.mask_field.association import Group, ViewMasks, associate, mask_cells, nested
from maskfield_ns.systems.mask_field.level_loss import LevelTargets, level_loss, level_targets
from maskfield_ns.systems.mask_field.matching import MatchCosts, match, matching_cost
from maskfield_ns.systems.query_head import QueryHead

if TYPE_CHECKING:
    from maskfield_ns.data.mask_views import MaskViews, TargetTensors


_KEPT_BYTES = 1 << 30
"""Memory for what masks say about pixels; beyond it, that is worked out anew in every step."""


@dataclass
class MaskStageConfig(SystemConfig):
    """The mask field: how masks become queries."""

    _target: type = field(default_factory=lambda: MaskFieldSystem)
    """Target class to instantiate."""
    feature_dim: int = 16
    """Channels of the mask feature (D), per mask level."""
    num_queries: int = 240
    """Q, over all levels, at least: a level gets as many as objects are found in it."""
    group_threshold: float = 0.25
    """Pooled IoU at which two groups of masks are taken for one thing."""
    min_views: int = 3
    """A thing must be found in at least this many training views to get a query."""
    trust_power: float = 4.0
    """A mask's CLIP vector counts by its agreement (IoU) with its group to this power; 0: all count alike."""
    min_agreement: float = 0.5
    """A mask whose IoU with what its group's views say is below this says nothing about pixels."""
    nested_share: float = 0.7
    """A group of which a larger one of the same level covers this share, where it sees it, goes one level down (its
    masks were ranked too high where the larger thing was missed); above 1: never."""
    rematch_every: int = 0
    """From ``rematch_after`` on, match again each time a view comes up (1) or never (0)."""
    rematch_after: int = 200
    """Mask-stage steps that trust the grouping before the field itself is asked."""
    focal_weight: float = 1.0
    """Weight of the cross-entropy (consensus)."""
    dice_weight: float = 1.0
    """Weight of the dice loss."""
    clip_weight: float = 0.5
    """Weight of the cosine loss on CLIP vectors."""
    absent_weight: float = 0.05
    """Weight of "nothing here" where no mask of a level covers a pixel; small, for the proposer may have missed it."""
    small_weight: float = 0.5
    """Weight of the cross-entropy averaged per thing, in which a 20-pixel object counts like a table."""
    no_match_cost: float = 1.1
    """A mask that costs more than this to explain is left out."""


@dataclass
class ViewState:
    """What the stage remembers about one view between steps."""

    queries: Tensor
    """[K] query per explained mask."""
    masks: Tensor
    """[K] index of the mask."""
    trust: Tensor
    """[K] how much the mask's CLIP vector says about the query, in [0, 1]."""
    embeddings: Tensor | None = None
    """[K, C] the masks' CLIP vectors; None: not looked up yet."""


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
    _kept: dict[tuple[int, int], LevelTargets | None] = field(default_factory=dict)
    _kept_bytes: int = 0
    _rays: dict[int, Int[Tensor, " P"] | None] = field(default_factory=dict)

    def prepare(self, adopt: bool) -> None:
        """Groups masks across views and, with ``adopt``, lets queries stand for the groups (not when resuming)."""
        self.prepared = True
        cells = mask_cells((self._view_masks(view) for view in range(len(self.views))), self.num_cells).compact()
        targets = list(self.views)
        levels = np.concatenate([t.levels for t in targets]).astype(np.int64)
        first = np.searchsorted(cells.view_of, np.arange(len(targets)))
        found: list[list[Group]] = [[] for _ in LEVELS]
        for level in reversed(range(len(LEVELS))):
            groups = associate(cells, levels == level, self.config.group_threshold, min_views=self.config.min_views)
            if level and self.config.nested_share <= 1:
                parts = nested(cells, groups, self.config.nested_share, self.config.min_agreement)
                for group in (g for g, part in zip(groups, parts, strict=True) if part):
                    levels[[first[view] + k for view, k in group.members]] = level - 1
                groups = [g for g, part in zip(groups, parts, strict=True) if not part]
            found[level] = groups
        sizes = self.head.bank_sizes()
        if adopt and any(len(groups) > size for groups, size in zip(found, sizes, strict=True)):
            self.head.resize_banks([max(len(groups), size) for groups, size in zip(found, sizes, strict=True)])
        explained: list[list[tuple[int, int, float]]] = [[] for _ in targets]
        for level, groups in enumerate(found):
            for query, group in zip(self.head.bank(level).tolist(), groups, strict=False):
                if not adopt and self.head.support[query] == 0:
                    continue  # masks were grouped differently when the run was started: this query was not in use
                total = torch.zeros(self.head.embeddings.shape[-1])
                for (view, k), agreement in zip(group.members, group.agreement, strict=True):
                    # A mask that holds half of the thing or its neighbour too has a CLIP vector of something else.
                    trust = agreement**self.config.trust_power
                    if agreement >= self.config.min_agreement:
                        explained[view].append((query, k, trust))
                    weight = trust * float(targets[view].areas[k]) ** 0.5 * float(targets[view].scores[k])
                    total += weight * torch.from_numpy(targets[view].embeddings[k])
                if adopt:
                    self.head.adopt(query, total.to(self.head.support.device), group.views, group.visible)
        device = self.head.support.device
        for view, pairs in enumerate(explained):
            table = torch.tensor(pairs, dtype=torch.float64, device=device).reshape(-1, 3)
            self.states[view] = ViewState(table[:, 0].long(), table[:, 1].long(), table[:, 2].float())

    def _view_masks(self, view: int) -> ViewMasks:
        """What a view adds to the comparison across views."""
        targets = self.views[view]
        # Rays that the capture's own masks exclude see nothing that counts.
        cells = np.where(targets.valid.ravel(), self.surface_cells(view).cpu().numpy(), -1)
        return ViewMasks(cells, targets.sparse())

    @torch.no_grad()
    def pixel_codes(self, view: int, device: torch.device) -> tuple[Float[Tensor, "P channels"], Float[Tensor, "P L"]]:
        """What the explained masks of a view say about its pixels; see :func:`.closed_form.pixel_codes`."""
        from maskfield_ns.systems.mask_field.closed_form import pixel_codes

        head, state = self.head, self.states.get(view)
        blocks = len(LEVELS) if head.by_level else 1
        if state is None or not len(state.queries):
            cells = self.views[view].valid.size
            return torch.zeros(cells, head.channels, device=device), torch.zeros(cells, blocks, device=device)
        targets = self.views.tensors(view, device)
        unit = F.normalize(head.feature_vectors, dim=-1)
        levels = head.levels[state.queries].clamp(min=0)
        masks = targets.masks(state.masks) * targets.valid
        return pixel_codes(unit, state.queries, levels, masks, head.support[state.queries] ** 2, blocks)

    def losses(
        self, view: int, features: Float[Tensor, "P channels"]
    ) -> tuple[dict[str, Float[Tensor, ""]], dict[str, float]]:
        """Losses and figures of one step on one view's rendered mask features (rays in the grid's row order)."""
        self.steps += 1
        rays = self._valid_rays(view, features.device)
        # Costs are sums over thousands of pixels: half precision overflows under nerfstudio's mixed precision.
        with torch.autocast(features.device.type, enabled=False):
            features = (features if rays is None else features[rays]).float()
            if len(self.views[view]) == 0:
                return {"mask_loss": (features * 0).sum()}, {}
            return self._consensus(view, features)

    def _valid_rays(self, view: int, device: torch.device) -> Int[Tensor, " P"] | None:
        """Indices of the rays that the capture's own masks leave; None: all."""
        if view not in self._rays:
            valid = self.views[view].valid.ravel()
            self._rays[view] = None if valid.all() else torch.from_numpy(np.flatnonzero(valid)).to(device)
        return self._rays[view]

    def _masks(
        self, view: int, targets: TargetTensors, chosen: Int[Tensor, " K"] | None = None
    ) -> Float[Tensor, "K P"]:
        """Some masks of a view, or all, on its valid rays."""
        rays = self._valid_rays(view, targets.crops.device)
        masks = targets.masks(chosen)
        return masks if rays is None else masks[:, rays]

    def _consensus(
        self, view: int, features: Float[Tensor, "P channels"]
    ) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Soft-max cross-entropy and dice within each level, on pixels that an explained mask covers."""
        cfg, head = self.config, self.head
        if cfg.rematch_every and self.steps > cfg.rematch_after:
            self._rematch(view, head.logits(features).T, head.support > 0)
        state = self.states[view]
        cross_entropy, dice = [], []
        for level in range(len(LEVELS)):
            level_targets = self._level_targets(view, level, features.device)
            if level_targets is None:
                continue
            vectors, bias = head.level_parameters(head.used(level))
            loss, dice_of_things = level_loss(
                head.level_block(features, level), vectors, bias, level_targets, cfg.absent_weight, cfg.small_weight
            )
            cross_entropy.append(loss)
            dice.append(dice_of_things)
        if not cross_entropy:
            return {"mask_loss": (features * 0).sum()}, {}
        if state.embeddings is None:
            own = self.views[view].embeddings[state.masks.cpu().numpy()]
            state.embeddings = torch.from_numpy(own).to(features.device)
        cosine = F.cosine_similarity(head.embeddings[state.queries], state.embeddings, dim=-1)
        losses = {
            "mask_cross_entropy": cfg.focal_weight * torch.stack(cross_entropy).mean(),
            "mask_dice": cfg.dice_weight * torch.cat(dice).mean(),
            "mask_clip": cfg.clip_weight * (state.trust * (1 - cosine)).mean(),
        }
        overlap = 1 - torch.cat(dice).detach().mean()
        return losses, {
            "masks_explained": len(state.masks) / len(self.views[view]),
            "mask_dice_overlap": float(overlap),
        }

    def _level_targets(self, view: int, level: int, device: torch.device) -> LevelTargets | None:
        """Targets of a level in a view, kept while memory lasts; None: nothing of the level is explained there."""
        key = (view, level)
        if key in self._kept:
            return self._kept[key]
        state, head = self.states[view], self.head
        of_level = (head.levels[state.queries] == level).nonzero()[:, 0]
        result = None
        if len(of_level):
            used = head.used(level)
            position = torch.zeros(head.num_queries, dtype=torch.long, device=used.device)
            position[used] = torch.arange(len(used), device=used.device)
            masks = self._masks(view, self.views.tensors(view, device), state.masks[of_level])
            result = level_targets(position[state.queries[of_level]], masks, head.support[used])
        if not self.config.rematch_every and self._kept_bytes < _KEPT_BYTES:
            self._kept[key] = result
            self._kept_bytes += 0 if result is None else result.nbytes
        return result

    @torch.no_grad()
    def _rematch(self, view: int, logits: Float[Tensor, "Q P"], adopted: Tensor) -> None:
        """Asks the field which query explains which mask: the grouping's mistakes are mended here."""
        cfg = self.config
        costs = MatchCosts(no_match=cfg.no_match_cost)
        queries, masks, targets = [], [], self.views.tensors(view, logits.device)
        for level in range(len(LEVELS)):
            bank = self.head.bank(level)
            bank = bank[adopted[bank]]
            chosen = (targets.levels == level).nonzero()[:, 0]
            if not len(bank) or not len(chosen):
                continue
            cost = matching_cost(
                logits[bank],
                self.head.embeddings[bank],
                self._masks(view, targets, chosen),
                targets.embeddings[chosen],
                costs,
            )
            rows, columns = match(cost, costs.no_match)
            queries.append(bank[rows])
            masks.append(chosen[columns])
        if queries:
            chosen = torch.cat(queries)
            self.states[view] = ViewState(chosen, torch.cat(masks), torch.ones_like(chosen, dtype=torch.float32))


class MaskFieldSystem(System):
    """The mask field in one scene."""

    def __init__(self, config: MaskStageConfig, embedding_dim: int | None) -> None:
        super().__init__()
        self.config = config
        self.query_head = QueryHead(
            config.num_queries, config.feature_dim, embedding_dim or 1, spread=embedding_dim is not None
        )
        self._stage: MaskStage | None = None

    def under_way(self) -> MaskStage:
        """The stage that has begun. (No property: nerfstudio's viewer reads every property of a model's parts.)"""
        assert self._stage is not None, "begin() comes first"
        return self._stage

    def begin(self, views: MaskViews, space: Space, resuming: bool) -> str:
        planned = self.query_head.num_queries
        self._stage = MaskStage(self.config, self.query_head, views, space.surface_cells, space.num_cells)
        self._stage.prepare(adopt=not resuming)
        counts = [int((self.query_head.support[self.query_head.bank(k)] > 0).sum()) for k in range(len(LEVELS))]
        found = f"{sum(counts)} objects found (subpart, part, whole: {counts})"
        more = self.query_head.num_queries
        return found if more == planned else f"{found}; more than the {planned} queries planned for: now {more}"

    def start(self, view: int, device: torch.device) -> Start:
        return Start(*self.under_way().pixel_codes(view, device))

    def losses(self, view: int, features: Float[Tensor, "P channels"]) -> Losses:
        return self.under_way().losses(view, features)
