"""Answers depend on what an embedder ranks and how clearly, not on the range of its cosines."""

from __future__ import annotations

import zlib
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from maskfield_ns.answers.ask import ActiveQuery, ask, cosine_spread
from maskfield_ns.answers.decision import DecisionRule, class_scores
from maskfield_ns.answers.image_queries import image_relevancy
from maskfield_ns.foundation.vocabulary import calibration_bank
from maskfield_ns.systems.query_head import QueryHead

DIM = 256
THINGS = ("red mug", "yellow duck", "robot", "table", "soccer ball", "cube")
ABSENT = ("banana", "guitar", "purple umbrella", "penguin")
NEGATIVES = ("object", "things", "stuff", "texture")
RULE = DecisionRule(min_support=3.0)


def word(phrase: str) -> Tensor:
    """A direction of its own for every phrase; the generic ones are a little of everything."""
    generator = torch.Generator().manual_seed(zlib.crc32(phrase.encode()))
    vector = torch.randn(DIM, generator=generator, dtype=torch.float64)
    vector = torch.nn.functional.normalize(vector, dim=0)
    return (
        torch.nn.functional.normalize(0.3 * vector + sum(map(word, THINGS)), dim=0) if phrase in NEGATIVES else vector
    )


class World:
    """A scene in which each object has a query on every level, and pixels that belong to it.

    Args:
        a, b: cosines between its queries and phrases are a + b cos.
    """

    def __init__(self, a: float = 0.0, b: float = 1.0) -> None:
        torch.manual_seed(0)
        self.a, self.b = a, b
        self.query_head = QueryHead(3 * len(THINGS), 8, DIM + 3)
        generator = torch.Generator().manual_seed(1)
        pictures = torch.stack([word(thing) for thing in THINGS]).repeat(3, 1)
        pictures = pictures + 0.06 * torch.randn(pictures.shape, generator=generator, dtype=torch.float64)
        own = torch.tensor([a**0.5, (1 - a - b) ** 0.5, 0.0], dtype=torch.float64)
        for query, picture in enumerate(pictures):
            self.query_head.adopt(query, self._vector(picture, own).float(), 5.0 + query, 30.0)
        vectors = self.query_head.feature_vectors.detach() / 10
        pixels = sum(vectors[level * len(THINGS) : (level + 1) * len(THINGS)] for level in range(3))
        assert isinstance(pixels, Tensor)
        for view in range(8):
            self.query_head.remember(view, pixels[torch.randint(len(THINGS), (500,), generator=generator)])

    def _vector(self, vector: Tensor, own: Tensor) -> Tensor:
        return torch.cat([self.b**0.5 * torch.nn.functional.normalize(vector, dim=0), own])

    def text(self, phrases: Any) -> Tensor:
        own = torch.tensor([self.a**0.5, 0.0, (1 - self.a - self.b) ** 0.5], dtype=torch.float64)
        return torch.stack([self._vector(word(phrase), own) for phrase in phrases]).float()

    def ask(self, *phrases: str) -> ActiveQuery:
        texts = [self.text(words) for words in (phrases, NEGATIVES, calibration_bank())]
        return ask(self.query_head, phrases, texts[0], texts[1], RULE, texts[2])

    @property
    def spread(self) -> float:
        return cosine_spread(self.query_head, self.text(calibration_bank()), RULE)

    def patch(self, thing: str) -> Tensor:
        own = torch.tensor([self.a**0.5, (1 - self.a - self.b) ** 0.5, 0.0], dtype=torch.float64)
        return self._vector(word(thing), own).float()


@pytest.fixture(scope="module")
def plain() -> World:
    return World()


def test_the_embedders_own_answers_are_right(plain: World) -> None:
    """Or else the tests below would compare nothing."""
    active = plain.ask(*THINGS, *ABSENT)
    assert active.verdict.found.tolist() == [True] * len(THINGS) + [False] * len(ABSENT)
    assert active.scores[: len(THINGS)].argmax(dim=1).remainder(len(THINGS)).tolist() == list(range(len(THINGS)))


@settings(deadline=None, max_examples=25)
@given(b=st.floats(0.05, 1.0), share=st.floats(0.0, 1.0))
def test_compressed_cosines_change_no_answer(plain: World, b: float, share: float) -> None:
    a = share * (1 - b)
    assume(a + b <= 1)
    other = World(a, b)
    first, second = plain.ask(*THINGS, *ABSENT), other.ask(*THINGS, *ABSENT)
    torch.testing.assert_close(second.scores, first.scores, atol=2e-3, rtol=0)
    assert torch.equal(second.verdict.found, first.verdict.found)
    torch.testing.assert_close(second.verdict.thresholds, first.verdict.thresholds, atol=5e-3, rtol=0)
    assert other.spread == pytest.approx(b * plain.spread, rel=1e-3)


@settings(deadline=None, max_examples=25)
@given(b=st.floats(0.05, 1.0), share=st.floats(0.0, 1.0), seed=st.integers(0, 99))
def test_compressed_cosines_change_no_class_and_no_patch(plain: World, b: float, share: float, seed: int) -> None:
    other = World(share * (1 - b), b)
    shares = torch.rand(40, 3 * len(THINGS), generator=torch.Generator().manual_seed(seed)) / len(THINGS)
    results, patches = [], []
    for world in (plain, other):
        head, active = world.query_head, world.ask(*THINGS)
        valid = head.valid(RULE.min_support, RULE.min_share)
        results.append(
            class_scores(
                shares, head.embeddings, valid, head.levels, active.classes, active.negatives, active.class_temperature
            )
        )
        looked_for, nothing = ([world.patch(name) for name in names] for names in (THINGS, ABSENT))
        embeddings = head.embeddings.detach()
        patches.append(image_relevancy(embeddings, valid, torch.stack(looked_for), torch.stack(nothing)))
    torch.testing.assert_close(results[1], results[0], atol=5e-3, rtol=0)
    torch.testing.assert_close(patches[1], patches[0], atol=5e-3, rtol=0)
    assert (patches[0].argmax(dim=1) % len(THINGS)).tolist() == list(range(len(THINGS)))
