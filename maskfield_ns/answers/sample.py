"""Relevancy of a sample of a scene's pixels: what thresholds are chosen by, without rendering anything."""

from __future__ import annotations

from collections.abc import Hashable
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor

from maskfield_ns.answers.assignments import PixelAssignments, assign_pixels
from maskfield_ns.answers.decision import DecisionRule
from maskfield_ns.systems.query_head import QueryHead

_KNOWN: WeakKeyDictionary[QueryHead, tuple[Hashable, PixelAssignments]] = WeakKeyDictionary()
"""What the sample of each opened scene belongs to."""


def sampled_features(head: QueryHead) -> Float[Tensor, "N channels"]:
    """Mask features of the sampled pixels; none for a scene without a sample."""
    return head.sample[(head.sample != 0).any(dim=1)]


def sample_assignments(head: QueryHead) -> PixelAssignments | None:
    """What the sampled pixels belong to, as one view of a single column; None for a scene without a sample."""
    tensors = (head.sample, *head.parameters())
    state = tuple((tensor.data_ptr(), tensor._version) for tensor in tensors)
    known = _KNOWN.get(head)
    if known is None or known[0] != state:
        known = (state, assign_pixels(sampled_features(head)[:, None].float(), head))
        _KNOWN[head] = known
    return known[1] if known[1].size[0] and known[1].by_level else None


@torch.no_grad()
def sample_heat(
    head: QueryHead, scores: Float[Tensor, "T Q"], rule: DecisionRule, level: int | None = None
) -> Float[Tensor, "T N"] | None:
    """Relevancy of the sampled pixels to each phrase; None for a scene without a sample.

    Args:
        head: of the scene.
        scores: relevancy of all its queries to each phrase.
        rule: how many levels must agree.
        level: ask only this level.
    """
    sampled = sample_assignments(head)
    if sampled is None or not sampled.of(level):
        return None
    return sampled.heat(scores, rule, level)[..., 0]
