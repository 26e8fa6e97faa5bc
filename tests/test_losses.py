"""Mask losses against per-pixel loops and torchvision, and the pairwise forms against the elementwise ones."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from maskfield_ns.systems.mask_field import losses


def random_case(queries: int = 5, masks: int = 4, pixels: int = 37, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits [Q, P] and soft masks [M, P], some pixels exactly 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(queries, pixels, generator=generator, dtype=torch.float64)
    masks_ = (2 * torch.rand(masks, pixels, generator=generator, dtype=torch.float64) - 0.5).clamp(0, 1)
    return logits, masks_


def loop_focal(logits: Tensor, target: Tensor, weight: Tensor, alpha: float = 0.25) -> float:
    """Lin et al. 2017, eq. 5, one pixel at a time; a soft target mixes the two branches."""
    total = 0.0
    for x, m, w in zip(logits.tolist(), target.tolist(), weight.tolist(), strict=True):
        p = 1 / (1 + math.exp(-x))
        total += w * (m * alpha * (1 - p) ** 2 * -math.log(p) + (1 - m) * (1 - alpha) * p**2 * -math.log(1 - p))
    return total / max(1.0, float(weight.sum()))


def loop_dice(logits: Tensor, target: Tensor, weight: Tensor) -> float:
    """1 - (2 |A B| + 1) / (|A| + |B| + 1) on weighted pixels."""
    shared = first = second = 0.0
    for x, m, w in zip(logits.tolist(), target.tolist(), weight.tolist(), strict=True):
        p = 1 / (1 + math.exp(-x))
        shared, first, second = shared + w * p * m, first + w * p, second + w * m
    return 1 - (2 * shared + 1) / (first + second + 1)


@pytest.mark.parametrize("seed", range(3))
def test_focal_and_dice_equal_loops_over_pixels(seed: int) -> None:
    logits, masks = random_case(4, 4, seed=seed)
    weights = (torch.rand(4, 37, generator=torch.Generator().manual_seed(seed)) > 0.4).double()
    focal = losses.focal_loss(logits, masks, weights)
    dice = losses.dice_loss(logits, masks, weights)
    for i in range(4):
        assert focal[i].item() == pytest.approx(loop_focal(logits[i], masks[i], weights[i]), rel=1e-9)
        assert dice[i].item() == pytest.approx(loop_dice(logits[i], masks[i], weights[i]), rel=1e-9)


@pytest.mark.parametrize("alpha", [0.25, 0.5, 0.9])
def test_focal_equals_torchvision_on_hard_targets(alpha: float) -> None:
    logits, masks = random_case(4, 4)
    hard = (masks > 0.5).double()
    expected = sigmoid_focal_loss(logits, hard, alpha=alpha, gamma=2.0).mean(-1)
    torch.testing.assert_close(losses.focal_loss(logits, hard, torch.ones_like(hard), alpha), expected)


def test_focal_gamma_equals_torchvision() -> None:
    logits, masks = random_case(4, 4)
    hard = (masks > 0.5).double()
    positive, negative = losses.focal_terms(logits, alpha=0.3, gamma=1.5)
    expected = sigmoid_focal_loss(logits, hard, alpha=0.3, gamma=1.5)
    torch.testing.assert_close(torch.where(hard > 0, positive, negative), expected)


def test_pairwise_costs_equal_elementwise_losses() -> None:
    logits, masks = random_case(5, 4)
    focal, dice = losses.pairwise_focal(logits, masks), losses.pairwise_dice(logits, masks)
    assert focal.shape == dice.shape == (5, 4)
    weights = torch.ones_like(masks[:1])
    for query in range(5):
        for mask in range(4):
            pair = logits[query : query + 1], masks[mask : mask + 1], weights
            torch.testing.assert_close(focal[query, mask], losses.focal_loss(*pair)[0])
            torch.testing.assert_close(dice[query, mask], losses.dice_loss(*pair)[0])


def test_pixels_without_weight_do_not_count() -> None:
    logits, masks = random_case(3, 3)
    weights = torch.ones_like(logits)
    weights[:, 10:20] = 0
    kept = weights[0] > 0
    for loss in (losses.focal_loss, losses.dice_loss):
        expected = loss(logits[:, kept], masks[:, kept], torch.ones_like(logits[:, kept]))
        torch.testing.assert_close(loss(logits, masks, weights), expected)


def test_masks_without_any_weight_give_zero_and_no_gradient() -> None:
    logits, masks = random_case(3, 3)
    logits.requires_grad_()
    for loss in (losses.focal_loss, losses.dice_loss):
        value = loss(logits, masks, torch.zeros_like(masks))
        torch.testing.assert_close(value, torch.zeros_like(value))
        (gradient,) = torch.autograd.grad(value.sum(), logits)
        assert (gradient == 0).all()


@pytest.mark.parametrize("magnitude", [30.0, 200.0, 1e4])
@pytest.mark.parametrize("form", ["elementwise", "pairwise"])
def test_values_and_gradients_stay_finite_at_extreme_logits(magnitude: float, form: str) -> None:
    logits = torch.tensor([[magnitude, -magnitude, magnitude, -magnitude, 0.0]], requires_grad=True)
    masks = torch.tensor([[1.0, 1.0, 0.0, 0.0, 0.5]])
    if form == "elementwise":
        weights = torch.ones_like(masks)
        value = losses.focal_loss(logits, masks, weights) + losses.dice_loss(logits, masks, weights)
    else:
        value = losses.pairwise_focal(logits, masks) + losses.pairwise_dice(logits, masks)
    assert torch.isfinite(value).all()
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    assert torch.isfinite(gradient).all()
    # The pixel that is wrong by a wide margin must still be pulled back.
    assert gradient[0, 1] < 0 < gradient[0, 2]


def test_losses_are_best_at_the_target() -> None:
    masks = torch.tensor([[1.0, 1.0, 0.0, 0.0]])
    right, wrong = 20 * (masks - 0.5), -20 * (masks - 0.5)
    weights = torch.ones_like(masks)
    for loss in (losses.focal_loss, losses.dice_loss):
        assert loss(right, masks, weights).item() < 1e-3 < 0.5 < loss(wrong, masks, weights).item()
    assert 0 <= losses.dice_loss(wrong, masks, weights).item() < 1


def test_dice_is_smoothed_complement_of_the_dice_coefficient() -> None:
    """Without the +1 of smoothing, hard predictions give 1 - F1."""
    from sklearn.metrics import f1_score

    logits, masks = random_case(1, 1, pixels=5000)
    hard_logits, hard = 200.0 * logits.sign(), (masks > 0.5).double()
    expected = 1 - f1_score(hard[0].numpy(), (logits[0] > 0).numpy())
    assert losses.dice_loss(hard_logits, hard, torch.ones_like(hard)).item() == pytest.approx(expected, abs=1e-3)


def test_cosine_distance_ignores_lengths() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(3, 8, generator=generator), torch.randn(4, 8, generator=generator)
    expected = torch.stack([1 - torch.cosine_similarity(row[None], second) for row in first])
    torch.testing.assert_close(losses.pairwise_cosine_distance(5 * first, 0.1 * second), expected)


def test_cosine_distance_of_a_zero_vector_is_finite() -> None:
    zero = torch.zeros(1, 8, requires_grad=True)
    value = losses.pairwise_cosine_distance(zero, torch.ones(1, 8))
    assert value.item() == 1
    (gradient,) = torch.autograd.grad(value.sum(), zero)
    assert torch.isfinite(gradient).all()


def test_soft_iou_equals_jaccard_index() -> None:
    from sklearn.metrics import jaccard_score

    logits, masks = random_case(4, 3)
    table = losses.soft_iou(logits, masks)
    for query in range(4):
        for mask in range(3):
            expected = jaccard_score((masks[mask] > 0.5).numpy(), (logits[query] > 0).numpy())
            assert table[query, mask].item() == pytest.approx(expected, abs=1e-6)


def test_soft_iou_of_two_empty_masks_is_zero() -> None:
    assert losses.soft_iou(-torch.ones(1, 6), torch.zeros(1, 6)).item() == 0
