"""Which query explains which mask of one view: bipartite matching with an option to match nothing."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from maskfield_ns.systems.mask_field.losses import pairwise_cosine_distance, pairwise_dice, pairwise_focal


@dataclass(frozen=True)
class MatchCosts:
    """Weights of the matching cost; MaskField's released values are 1, 0.05, 1."""

    focal: float = 1.0
    dice: float = 1.0
    clip: float = 0.5
    no_match: float | None = 1.1
    """A pair that costs more than this is left unmatched (the dustbin); None: every mask takes some query."""
    clip_l1: float = 0.0
    """MaskField adds the mean absolute difference of the embeddings to the matching cost only."""


def matching_cost(
    logits: Float[Tensor, "Q P"],
    embeddings: Float[Tensor, "Q C"],
    masks: Float[Tensor, "M P"],
    mask_embeddings: Float[Tensor, "M C"],
    costs: MatchCosts,
) -> Float[Tensor, "Q M"]:
    """Cost of explaining each mask by each query: focal + dice + CLIP distance (MaskField sec. 3)."""
    cost = costs.focal * pairwise_focal(logits, masks) + costs.dice * pairwise_dice(logits, masks)
    cost = cost + costs.clip * pairwise_cosine_distance(embeddings, mask_embeddings)
    if costs.clip_l1:
        cost = cost + costs.clip_l1 * torch.cdist(embeddings, mask_embeddings, p=1) / embeddings.shape[-1]
    return cost


@torch.no_grad()
def match(cost: Float[Tensor, "Q M"], no_match: float | None = None) -> tuple[Int64[Tensor, " K"], Int64[Tensor, " K"]]:
    """Optimal one-to-one pairs (query indices, mask indices), cheapest in total.

    With ``no_match`` every mask may instead stay unmatched at that cost, so a spurious mask steals no query.

    Raises:
        ValueError: the cost contains NaN.
    """
    from scipy.optimize import linear_sum_assignment

    if torch.isnan(cost).any():
        raise ValueError("matching cost contains NaN: the mask field has diverged")
    queries, masks = cost.shape
    table = cost.detach().cpu()
    if no_match is not None:
        table = torch.cat([table, torch.full((masks, masks), float(no_match))])
    rows, columns = linear_sum_assignment(table.numpy())
    kept = rows < queries
    device = cost.device
    return (
        torch.as_tensor(rows[kept], dtype=torch.long, device=device),
        torch.as_tensor(columns[kept], dtype=torch.long, device=device),
    )
