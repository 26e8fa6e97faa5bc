"""The loss of one level against the plain formula and autograd."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maskfield_ns.systems.mask_field.level_loss import LevelTargets, level_loss, level_targets


def plain(features, vectors, bias, targets: LevelTargets, absent: float, small: float):
    """The documented formula, term by term."""
    logits = torch.cat([features @ vectors.T + bias, features.new_zeros(len(features), 1)], dim=1)
    log_p = torch.log_softmax(logits, dim=1)
    own, none = log_p[:, targets.things], log_p[:, -1]
    t, c = targets.target, targets.covered
    entropy = (-(t * own).sum(1) - absent * (1 - c) * none).mean()
    entropy = entropy + small * (-(t * own).sum(0) / t.sum(0).clamp(min=1)).mean()
    q = own.exp() * c[:, None]
    dice = 1 - (2 * (q * t).sum(0) + 1) / (q.sum(0) + t.sum(0) + 1)
    return entropy, dice


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 30), st.integers(1, 4))
def test_values_and_gradients(seed: int, queries: int, pixels: int, masks: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def random(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    leaves = [random(pixels, 3).requires_grad_(), 3 * random(queries, 3), random(queries)]
    leaves = [leaf.detach().requires_grad_() for leaf in leaves]
    things = torch.randint(queries, (masks,), generator=generator)
    covered = (random(masks, pixels) > 0).double() * torch.rand(masks, pixels, generator=generator).double()
    targets = level_targets(things, covered, torch.rand(queries, generator=generator).double() + 0.5)
    weights = random(len(targets.things))
    gradients = []
    for function in (level_loss, plain):
        entropy, dice = function(*leaves, targets, 0.05, 0.5)
        gradients.append([entropy, dice, *torch.autograd.grad(1.7 * entropy + (weights * dice).sum(), leaves)])
    for ours, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, expected)


def test_overlapping_masks_share_pixels_by_belief() -> None:
    masks = torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.0, 1.0, 1.0, 0.0], [0.0, 0.0, 0.5, 0.0]])
    targets = level_targets(torch.tensor([2, 0, 0]), masks, torch.tensor([1.0, 9.0, 3.0]))
    assert targets.things.tolist() == [0, 2]
    torch.testing.assert_close(targets.covered, torch.tensor([1.0, 1.0, 1.0, 0.0]))
    torch.testing.assert_close(targets.target.T, torch.tensor([[0.0, 0.1, 1.0, 0.0], [1.0, 0.9, 0.0, 0.0]]))


def test_a_perfect_answer_costs_next_to_nothing() -> None:
    target = torch.eye(3).repeat_interleave(50, 0)
    targets = LevelTargets.of(torch.arange(3), target, torch.ones(150))
    entropy, dice = level_loss(20 * target, torch.eye(3), torch.zeros(3), targets, 0.05, 0.5)
    assert entropy.item() == pytest.approx(0, abs=1e-5)
    assert dice.abs().max().item() < 1e-5
