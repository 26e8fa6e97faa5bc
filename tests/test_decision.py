"""From scores to answers, against loops over pixels and queries."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from maskfield_ns.queries import decision
from maskfield_ns.queries.decision import DecisionRule

RULE = DecisionRule(found_threshold=0.6, window=0.1, min_support=3.0, temperature=10.0, class_temperature=20.0)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def unit(count: int, dim: int = 6, seed: int = 0) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(count, dim, generator=generator(seed)), dim=-1)


def test_phrase_relevancy_is_lerfs_and_zero_for_queries_without_support() -> None:
    embeddings, phrases, negatives = 3 * unit(5), unit(2, seed=1), unit(3, seed=2)
    valid = torch.tensor([True, False, True, True, False])
    scores = decision.phrase_relevancy(embeddings, valid, phrases, negatives, RULE)
    assert scores.shape == (2, 5)
    for t in range(2):
        for n in range(5):
            e = embeddings[n] / embeddings[n].norm()
            pairs = []
            for k in range(3):
                positive, negative = math.exp(10 * float(e @ phrases[t])), math.exp(10 * float(e @ negatives[k]))
                pairs.append(positive / (positive + negative))
            assert scores[t, n].item() == pytest.approx(min(pairs) if valid[n] else 0.0, rel=1e-4)


def test_selected_queries_are_relevant_and_close_to_the_best() -> None:
    scores = torch.tensor(
        [
            [0.95, 0.86, 0.84, 0.10],  # the third is too far from the best
            [0.65, 0.62, 0.58, 0.10],  # the third is not relevant enough
            [0.59, 0.58, 0.55, 0.10],  # nothing answers
            [0.60, 0.60, 0.00, 0.00],  # exactly at the threshold
        ]
    )
    expected = [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 0, 0]]
    assert decision.select_queries(scores, RULE).long().tolist() == expected


def test_heat_map_takes_the_best_query_per_pixel() -> None:
    probabilities, scores = torch.rand(3, 4, 5, generator=generator()), torch.rand(2, 5, generator=generator(1))
    heat = decision.heat_map(probabilities, scores)
    assert heat.shape == (3, 4, 2)
    for row in range(3):
        for column in range(4):
            for t in range(2):
                best = max(float(probabilities[row, column, n] * scores[t, n]) for n in range(5))
                assert heat[row, column, t].item() == pytest.approx(best)


def test_phrase_masks_are_the_union_of_selected_queries() -> None:
    probabilities = torch.rand(3, 4, 5, generator=generator())
    selected = torch.tensor([[True, False, True, False, False], [False] * 5, [True] * 5])
    masks = decision.phrase_masks(probabilities, selected)
    assert masks.dtype == torch.bool
    for row in range(3):
        for column in range(4):
            for t in range(3):
                inside = any(probabilities[row, column, n] > 0.5 and selected[t, n] for n in range(5))
                assert bool(masks[row, column, t]) == inside


def test_nothing_found_gives_empty_masks() -> None:
    scores = torch.full((1, 5), 0.59)
    masks = decision.phrase_masks(torch.ones(3, 4, 5), decision.select_queries(scores, RULE))
    assert masks.shape == (3, 4, 1)
    assert not masks.any()


def test_no_valid_query_finds_nothing() -> None:
    scores = decision.phrase_relevancy(unit(4), torch.zeros(4, dtype=torch.bool), unit(1), unit(2, seed=2), RULE)
    assert (scores == 0).all()
    assert not decision.select_queries(scores, RULE).any()


def test_class_votes_equal_a_loop() -> None:
    probabilities = torch.rand(2, 3, 5, generator=generator())
    embeddings, classes, negatives = unit(5), unit(3, seed=1), unit(2, seed=2)
    valid = torch.tensor([True, True, False, True, False])
    scores = decision.class_scores(probabilities, embeddings, valid, classes, negatives, RULE)
    assert scores.shape == (2, 3, 3)
    for row in range(2):
        for column in range(3):
            votes, cast = [0.0] * 3, 0.0
            for n in range(5):
                if not valid[n]:
                    continue
                weights = [math.exp(20 * float(embeddings[n] @ t)) for t in [*classes, *negatives]]
                vote = float(probabilities[row, column, n]) ** 2
                cast += vote
                for c in range(3):
                    votes[c] += vote * weights[c] / sum(weights)
            for c in range(3):
                assert scores[row, column, c].item() == pytest.approx(votes[c] / cast, rel=1e-4)
    assert (scores.sum(-1) <= 1 + 1e-6).all()


def test_duplicate_queries_do_not_change_class_votes() -> None:
    """Two queries for one thing must not outvote another thing's single query."""
    probabilities = torch.rand(4, 3, generator=generator())
    embeddings, classes, negatives = unit(3), unit(2, seed=1), unit(2, seed=2)
    valid = torch.ones(3, dtype=torch.bool)
    once = decision.class_scores(probabilities, embeddings, valid, classes, negatives, RULE)
    both = torch.cat([probabilities, probabilities], dim=-1)
    twice = decision.class_scores(both, embeddings.repeat(2, 1), valid.repeat(2), classes, negatives, RULE)
    torch.testing.assert_close(once, twice)


def test_pixels_nobody_holds_have_no_class() -> None:
    embeddings, classes, negatives = unit(3), unit(2, seed=1), unit(2, seed=2)
    for valid, probabilities in ((torch.zeros(3), torch.ones(4, 3)), (torch.ones(3), torch.zeros(4, 3))):
        scores = decision.class_scores(probabilities, embeddings, valid.bool(), classes, negatives, RULE)
        assert torch.equal(scores, torch.zeros(4, 2))
        assert (decision.class_map(scores) == -1).all()


def test_class_map_takes_the_best_class_above_the_minimum() -> None:
    scores = torch.tensor([[[0.2, 0.7], [0.5, 0.4]], [[0.0, 0.0], [0.1, 0.3]]])
    assert decision.class_map(scores).tolist() == [[1, 0], [-1, 1]]
    assert decision.class_map(scores, minimum=0.5).tolist() == [[1, -1], [-1, -1]]


def test_instance_map_prefers_whole_things() -> None:
    levels, valid = torch.tensor([0, 0, 1, 2, 2]), torch.tensor([True, True, True, True, False])
    probabilities = torch.tensor(
        [
            [0.9, 0.8, 0.7, 0.6, 0.0],  # whole before part before subpart, whatever the confidence
            [0.9, 0.8, 0.7, 0.4, 0.0],
            [0.8, 0.9, 0.5, 0.4, 0.0],  # 0.5 is not inside
            [0.1, 0.2, 0.1, 0.1, 0.0],
            [0.1, 0.2, 0.1, 0.1, 0.9],  # only a query that stands for nothing
        ]
    )
    assert decision.instance_map(probabilities, valid, levels).tolist() == [3, 2, 1, -1, -1]


def test_instance_map_without_levels_takes_the_most_probable() -> None:
    probabilities = torch.rand(3, 4, 6, generator=generator())
    found = decision.instance_map(probabilities, torch.ones(6, dtype=torch.bool), torch.full((6,), -1))
    for row in range(3):
        for column in range(4):
            best = max(range(6), key=lambda n: probabilities[row, column, n].item())
            assert found[row, column] == (best if probabilities[row, column, best] > 0.5 else -1)
