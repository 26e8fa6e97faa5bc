"""Relevancy against a literal loop of LERF's formula."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maskfield_ns.answers.relevancy import (
    CANONICAL_NEGATIVES,
    class_probabilities,
    cosine_similarity,
    pairwise_relevancy,
    relevancy,
)


def _dot(a: list[float], b: list[float]) -> float:
    length = math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(x * x for x in b))
    return sum(x * y for x, y in zip(a, b, strict=True)) / length


def _literal(embedding: list[float], phrase: list[float], negatives: list[list[float]], factor: float) -> float:
    scores = []
    for negative in negatives:
        yes, no = math.exp(factor * _dot(embedding, phrase)), math.exp(factor * _dot(embedding, negative))
        scores.append(yes / (yes + no))
    return min(scores)


def test_canonical_negatives_are_lerfs() -> None:
    assert CANONICAL_NEGATIVES == ("object", "things", "stuff", "texture")


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    pixels=st.integers(1, 4),
    phrases=st.integers(1, 3),
    negatives=st.integers(1, 4),
    channels=st.integers(1, 6),
    factor=st.floats(0.1, 50),
    length=st.floats(1e-3, 1e3),
)
def test_equals_the_literal_formula(
    seed: int, pixels: int, phrases: int, negatives: int, channels: int, factor: float, length: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    e, q, n = (
        length * torch.randn(rows, channels, generator=generator, dtype=torch.float64)
        for rows in (pixels, phrases, negatives)
    )
    expected = [[_literal(ee, qq, n.tolist(), factor) for qq in q.tolist()] for ee in e.tolist()]
    torch.testing.assert_close(relevancy(e, q, n, factor), torch.tensor(expected, dtype=torch.float64))
    pairs = pairwise_relevancy(e, q, n, factor)
    assert pairs.shape == (pixels, phrases, negatives)
    torch.testing.assert_close(pairs.amin(-1), torch.tensor(expected, dtype=torch.float64))


def test_known_values() -> None:
    axes = torch.eye(3)
    # The phrase itself against an orthogonal negative: e^10 / (e^10 + 1); a tie is one half.
    answer = relevancy(torch.stack([axes[0], axes[1], axes[2]]), axes[:1], axes[1:2])
    torch.testing.assert_close(answer[:, 0], torch.tensor([0.9999546, 0.0000454, 0.5]), atol=1e-6, rtol=0)


def test_the_hardest_negative_decides_and_phrases_do_not_compete() -> None:
    generator = torch.Generator().manual_seed(0)
    e, q, n = (torch.randn(k, 8, generator=generator) for k in (5, 3, 4))
    alone = torch.cat([relevancy(e, q[i : i + 1], n) for i in range(3)], dim=-1)
    torch.testing.assert_close(relevancy(e, q, n), alone)
    assert (relevancy(e, q, n) <= relevancy(e, q, n[:2])).all()


def test_leading_dimensions_and_lengths_do_not_matter() -> None:
    generator = torch.Generator().manual_seed(1)
    e, q, n = torch.randn(2, 3, 4, 8, generator=generator), torch.randn(5, 8), torch.randn(4, 8)
    answer = relevancy(e, q, n)
    assert answer.shape == (2, 3, 4, 5)
    torch.testing.assert_close(answer.reshape(-1, 5), relevancy(e.reshape(-1, 8), q, n))
    torch.testing.assert_close(answer, relevancy(e * 7, q * 0.01, n * 300))
    assert relevancy(e[0, 0, 0], q, n).shape == (5,)
    assert relevancy(e[:0], q, n).shape == (0, 3, 4, 5)


def test_extreme_temperature_stays_finite() -> None:
    axes = torch.eye(2)
    answer = relevancy(axes, axes[:1], axes[1:], temperature=1e6)
    assert answer.flatten().tolist() == [1.0, 0.0]


def test_zero_embedding_is_a_tie_and_has_a_finite_gradient() -> None:
    e = torch.zeros(1, 4, requires_grad=True)
    answer = relevancy(e, torch.eye(4)[:2], torch.eye(4)[2:])
    assert answer.tolist() == [[0.5, 0.5]]
    answer.sum().backward()
    assert torch.isfinite(e.grad).all()


def test_half_precision_is_computed_in_single() -> None:
    generator = torch.Generator().manual_seed(2)
    e, q, n = (torch.randn(k, 64, generator=generator).half() for k in (20, 3, 4))
    answer = relevancy(e, q, n)
    assert answer.dtype == torch.float32
    torch.testing.assert_close(answer, relevancy(e.double(), q.double(), n.double()).float(), atol=1e-5, rtol=0)


def test_class_probabilities_leave_room_for_none_of_these() -> None:
    generator = torch.Generator().manual_seed(3)
    e, c, n = (torch.randn(k, 6, generator=generator, dtype=torch.float64) for k in (4, 3, 2))
    for row, embedding in zip(class_probabilities(e, c, n), e.tolist(), strict=True):
        weights = [math.exp(10 * _dot(embedding, other)) for other in c.tolist() + n.tolist()]
        assert row.tolist() == pytest.approx([w / sum(weights) for w in weights[:3]])
    for none in (None, n[:0]):
        torch.testing.assert_close(class_probabilities(e, c, none).sum(-1), torch.ones(4, dtype=torch.float64))


def test_inputs_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="at least one negative"):
        relevancy(torch.ones(2, 4), torch.ones(1, 4), torch.ones(0, 4))
    with pytest.raises(ValueError, match="do not fit"):
        cosine_similarity(torch.ones(2, 4), torch.ones(1, 5))
    with pytest.raises(ValueError, match="do not fit"):
        cosine_similarity(torch.ones(2, 4), torch.ones(4))
