"""Cross-entropy and dice of one level's things in one view, with their gradients in closed form.

Things of a level exclude each other, so pixels are explained by a soft-max over them and "none of them". The masks of a
view never change, so everything that depends on them alone is computed once; and since cross-entropy needs nothing of
the soft-max but its denominator, a step is two matrix products and a few passes over [P, N].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class LevelTargets:
    """What the masks of one level say about the P pixels of a view."""

    things: Int[Tensor, " K"]
    """Positions, among the used queries of the level, of the K things that are seen."""
    places: Int[Tensor, " E"]
    """Which pairs of a pixel and a thing have a target at all, numbered pixel by pixel: p K + k."""
    values: Float[Tensor, " E"]
    """How much of the pixel belongs to the thing there; overlapping masks share it."""
    covered: Float[Tensor, " P"]
    """How much of each pixel any of them covers."""

    @classmethod
    def of(cls, things: Int[Tensor, " K"], target: Float[Tensor, "P K"], covered: Float[Tensor, " P"]) -> LevelTargets:
        """From the whole table of pixels and things, of which most is 0."""
        places = target.flatten().nonzero()[:, 0]
        return cls(things, places.int(), target.flatten()[places], covered)

    @property
    def target(self) -> Float[Tensor, "P K"]:
        """The whole table."""
        size = len(self.covered), len(self.things)
        return self.values.new_zeros(size[0] * size[1]).scatter_(0, self.places.long(), self.values).view(size)

    @property
    def nbytes(self) -> int:
        """Memory held."""
        return self.places.nbytes + self.values.nbytes + self.covered.nbytes


def level_targets(
    things: Int[Tensor, " M"], masks: Float[Tensor, "M P"], belief: Float[Tensor, " N"], power: float = 2.0
) -> LevelTargets:
    """Targets from the explained masks of one level.

    Args:
        things: position of the thing that each mask shows; a thing that several masks show (the proposer split it) is
            shown their union.
        masks: covered fraction of each pixel.
        belief: how sure we are of each thing, positive. Masks of one level should exclude each other; where they do
            not, they share pixels by this to some power: a proposal that merges two things is the rarer one.
    """
    hit, place = things.unique(return_inverse=True)
    union = masks.new_zeros(len(hit), masks.shape[1])
    union = union.scatter_reduce(0, place[:, None].expand_as(masks), masks, "amax")
    trust = union * belief[hit][:, None] ** power
    covered = union.amax(0)
    target = trust / trust.sum(0).clamp(min=1e-6) * covered
    return LevelTargets.of(hit, target.T, covered)


def level_loss(
    features: Float[Tensor, "P D"],
    vectors: Float[Tensor, "N D"],
    bias: Float[Tensor, " N"],
    targets: LevelTargets,
    absent_weight: float,
    small_weight: float,
) -> tuple[Float[Tensor, ""], Float[Tensor, " K"]]:
    """Cross-entropy and, per thing, dice loss of rendered features.

    Args:
        features: of the level's channels.
        vectors, bias: of the level's N used queries.
        absent_weight: weight of "none of them" where no mask covers a pixel.
        small_weight: weight of the cross-entropy averaged per thing, in which small things count like large ones.

    Returns:
        ``mean_p [-sum_k t_pk log p_pk + absent (1 - c_p) (-log p_none)] + small mean_k [sum_p -t_pk log p_pk / max(1,
        sum_p t_pk)]`` and ``1 - (2 sum_p q_pk t_pk + 1) / (sum_p q_pk + sum_p t_pk + 1)`` with q = p c.
    """
    return _LevelLoss.apply(features, vectors, bias, targets, absent_weight, small_weight)  # type: ignore[return-value]


class _LevelLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *args: Any) -> Any:
        features, vectors, bias, targets, absent_weight, small_weight = args
        target, covered = targets.target, targets.covered
        pixels, count = target.shape
        area = target.sum(0)
        per_thing = 1 / pixels + small_weight / (count * area.clamp(min=1))
        at_all = target @ per_thing + absent_weight / pixels * (1 - covered)
        logits = torch.addmm(bias, features, vectors.T)
        partition = torch.nn.functional.pad(logits, (0, 1)).logsumexp(1)
        chosen = logits.index_select(1, targets.things)
        cross_entropy = (partition * at_all).sum() - ((target * chosen).sum(0) * per_thing).sum()
        probability = logits.sub_(partition[:, None]).exp_()
        seen = probability.index_select(1, targets.things).mul_(covered[:, None])
        overlap, total = (seen * target).sum(0), seen.sum(0)
        numerator, denominator = 2 * overlap + 1, total + area + 1
        ctx.save_for_backward(features, vectors, probability, seen, per_thing, at_all, numerator, denominator)
        ctx.target, ctx.things = target, targets.things
        return cross_entropy, 1 - numerator / denominator

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:  # type: ignore[override]
        features, vectors, probability, seen, per_thing, at_all, numerator, denominator = ctx.saved_tensors
        by_entropy, by_dice = grads
        target, things = ctx.target, ctx.things
        # d dice / d q, times q: (seen already holds q).
        slope = torch.addcmul(
            (by_dice * numerator / denominator**2).expand_as(target), target, -2 * by_dice / denominator
        ).mul_(seen)
        logits = probability * (by_entropy * at_all - slope.sum(1))[:, None]
        logits.index_add_(1, things, slope.addcmul_(target, (-by_entropy * per_thing).expand_as(target)))
        return logits @ vectors, logits.T @ features, logits.sum(0), None, None, None
