"""Bipartite matching against brute force, and MaskField's cost against a literal loop."""

from __future__ import annotations

import math
from itertools import combinations, permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from maskfield_ns.systems.mask_field.matching import MatchCosts, match, matching_cost


def pairings(queries: int, masks: int, size: int) -> list[list[tuple[int, int]]]:
    """Every one-to-one pairing of a given size."""
    return [
        list(zip(rows, columns, strict=True))
        for rows in combinations(range(queries), size)
        for columns in permutations(range(masks), size)
    ]


def cheapest(cost: np.ndarray, no_match: float | None) -> float:
    """Smallest total over all pairings; without ``no_match`` only complete ones count."""
    queries, masks = cost.shape
    full = min(queries, masks)
    sizes = [full] if no_match is None else range(full + 1)
    return min(
        sum(cost[pair] for pair in pairing) + (masks - size) * (no_match or 0.0)
        for size in sizes
        for pairing in pairings(queries, masks, size)
    )


@settings(max_examples=60, deadline=None)
@given(
    queries=st.integers(0, 4),
    masks=st.integers(0, 4),
    no_match=st.none() | st.floats(-0.5, 2.0),
    seed=st.integers(0, 2**16),
)
def test_match_is_as_cheap_as_the_best_pairing(queries: int, masks: int, no_match: float | None, seed: int) -> None:
    # Quarters, so that ties happen and sums are exact.
    cost = np.random.default_rng(seed).integers(-2, 8, (queries, masks)) / 4
    rows, columns = match(torch.tensor(cost), no_match)
    assert rows.dtype == columns.dtype == torch.int64
    assert len(set(rows.tolist())) == len(set(columns.tolist())) == len(rows) == len(columns)
    if no_match is None:
        assert len(rows) == min(queries, masks)
    total = sum(cost[pair] for pair in zip(rows.tolist(), columns.tolist(), strict=True))
    total += (masks - len(columns)) * (no_match or 0.0)
    assert total == pytest.approx(cheapest(cost, no_match), abs=1e-6)


def test_a_spurious_mask_takes_no_query() -> None:
    # Without the option the second mask would get query 0 or 1 although nothing explains it.
    cost = torch.tensor([[0.1, 3.0], [3.0, 2.5]])
    assert [x.tolist() for x in match(cost)] == [[0, 1], [0, 1]]
    assert [x.tolist() for x in match(cost, no_match=1.1)] == [[0], [0]]


def test_a_mask_nobody_explains_does_not_push_others_from_their_query() -> None:
    # Complete pairing must give both masks a query and so moves mask 0 to its second best.
    cost = torch.tensor([[0.2, 0.3], [1.0, 9.0]])
    assert dict(zip(*(x.tolist() for x in match(cost)), strict=True)) == {0: 1, 1: 0}
    assert dict(zip(*(x.tolist() for x in match(cost, no_match=0.9)), strict=True)) == {0: 0}


@pytest.mark.parametrize("no_match", [None, 1.0])
@pytest.mark.parametrize("shape", [(0, 0), (3, 0), (0, 3)])
def test_empty_sides_match_nothing(shape: tuple[int, int], no_match: float | None) -> None:
    rows, columns = match(torch.zeros(shape), no_match)
    assert len(rows) == len(columns) == 0


@pytest.mark.parametrize("shape", [(2, 5), (5, 2)])
def test_more_of_one_side_than_of_the_other(shape: tuple[int, int]) -> None:
    rows, columns = match(torch.rand(shape, generator=torch.Generator().manual_seed(0)))
    assert len(rows) == len(columns) == 2


@pytest.mark.parametrize("no_match", [None, 1.0])
def test_nan_is_refused(no_match: float | None) -> None:
    cost = torch.ones(3, 2)
    cost[1, 1] = math.nan
    with pytest.raises(ValueError, match="NaN"):
        match(cost, no_match)


def maskfield_cost(logits: Tensor, embeddings: Tensor, masks: Tensor, mask_embeddings: Tensor) -> np.ndarray:
    """MaskField's released cost, from its equations, one pair and one pixel at a time."""
    table = np.zeros((len(logits), len(masks)))
    for n in range(len(logits)):
        for k in range(len(masks)):
            focal = shared = predicted = covered = 0.0
            for x, m in zip(logits[n].tolist(), masks[k].tolist(), strict=True):
                s = 1 / (1 + math.exp(-x))
                focal += 0.25 * (1 - s) ** 2 * -math.log(s) if m == 1 else 0.75 * s**2 * -math.log(1 - s)
                shared, predicted, covered = shared + s * m, predicted + s, covered + m
            e, c = embeddings[n].tolist(), mask_embeddings[k].tolist()
            cosine = sum(a * b for a, b in zip(e, c, strict=True)) / math.hypot(*e) / math.hypot(*c)
            absolute = sum(abs(a - b) for a, b in zip(e, c, strict=True)) / len(e)
            dice = 1 - (2 * shared + 1) / (predicted + covered + 1)
            table[n, k] = focal / logits.shape[1] + 0.05 * dice + (1 - cosine) + absolute
    return table


def test_cost_follows_maskfield() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(4, 30, generator=generator, dtype=torch.float64)
    masks = (torch.rand(3, 30, generator=generator) > 0.6).double()
    embeddings = 2 * torch.randn(4, 6, generator=generator, dtype=torch.float64)
    mask_embeddings = torch.nn.functional.normalize(torch.randn(3, 6, generator=generator, dtype=torch.float64), dim=-1)
    costs = MatchCosts(focal=1.0, dice=0.05, clip=1.0, no_match=None, clip_l1=1.0)
    cost = matching_cost(logits, embeddings, masks, mask_embeddings, costs)
    expected = maskfield_cost(logits, embeddings, masks, mask_embeddings)
    np.testing.assert_allclose(cost.numpy(), expected, rtol=1e-6)


def test_weights_scale_their_terms() -> None:
    generator = torch.Generator().manual_seed(1)
    logits, masks = torch.randn(3, 20, generator=generator), torch.rand(2, 20, generator=generator)
    embeddings, targets = torch.randn(3, 5, generator=generator), torch.randn(2, 5, generator=generator)

    def cost(**weights: float) -> Tensor:
        zero = {"focal": 0.0, "dice": 0.0, "clip": 0.0, "clip_l1": 0.0}
        return matching_cost(logits, embeddings, masks, targets, MatchCosts(**(zero | weights)))

    alone = {"focal": 0.7, "dice": 0.2, "clip": 0.4, "clip_l1": 1.3}
    torch.testing.assert_close(cost(**alone), sum(cost(**{k: v}) for k, v in alone.items()))
    torch.testing.assert_close(cost(dice=0.2), 0.2 * cost(dice=1.0))


def test_cost_without_masks_has_no_columns() -> None:
    cost = matching_cost(torch.zeros(3, 5), torch.ones(3, 4), torch.zeros(0, 5), torch.zeros(0, 4), MatchCosts())
    assert cost.shape == (3, 0)
