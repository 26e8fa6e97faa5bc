"""From scores to answers, against loops over pixels and queries."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from maskfield_ns.answers import decision
from maskfield_ns.answers.decision import DecisionRule, Verdict
from maskfield_ns.answers.relevancy import class_probabilities

NONE = torch.full((6,), -1)
"""Levels of queries without levels."""
RULE = DecisionRule(found_threshold=0.6, window=0.1, min_support=3.0)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def unit(count: int, dim: int = 6, seed: int = 0) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(count, dim, generator=generator(seed)), dim=-1)


def test_phrase_relevancy_is_lerfs_and_zero_for_queries_without_support() -> None:
    embeddings, phrases, negatives = 3 * unit(5), unit(2, seed=1), unit(3, seed=2)
    valid = torch.tensor([True, False, True, True, False])
    scores = decision.phrase_relevancy(embeddings, valid, phrases, negatives, 10.0)
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


@pytest.mark.parametrize("agreeing", [1, 2, 3])
def test_heat_map_is_the_mean_of_the_best_levels_expectations(agreeing: int) -> None:
    probabilities, scores = torch.rand(3, 4, 6, generator=generator()) / 3, torch.rand(2, 6, generator=generator(1))
    levels = torch.tensor([0, 0, 2, 1, 2, 2])
    heat = decision.heat_map(probabilities, scores, levels, replace(RULE, levels_agreeing=agreeing))
    assert heat.shape == (3, 4, 2)
    for row in range(3):
        for column in range(4):
            for t in range(2):
                of_level = [0.0, 0.0, 0.0]
                for n in range(6):
                    of_level[levels[n]] += float(probabilities[row, column, n] * scores[t, n])
                expected = sum(sorted(of_level)[-agreeing:]) / agreeing
                assert heat[row, column, t].item() == pytest.approx(expected)


def test_heat_map_without_levels_takes_the_best_query() -> None:
    probabilities, scores = torch.rand(3, 4, 5, generator=generator()), torch.rand(2, 5, generator=generator(1))
    heat = decision.heat_map(probabilities, scores, torch.full((5,), -1), replace(RULE, levels_agreeing=2))
    for row in range(3):
        for column in range(4):
            for t in range(2):
                best = max(float(probabilities[row, column, n] * scores[t, n]) for n in range(5))
                assert heat[row, column, t].item() == pytest.approx(best)


def test_phrase_masks_are_what_is_relevant_enough_for_phrases_that_are_found() -> None:
    heat = torch.tensor([[0.8, 0.59, 0.3], [0.41, 0.5, 0.7], [0.39, 0.5, 0.34], [0.0, 0.0, 0.0]])
    verdict = Verdict(torch.tensor([0.8, 0.59, 0.7]), torch.tensor([True, False, True]), torch.tensor([0.4, 0.3, 0.35]))
    masks = decision.phrase_masks(heat, verdict)
    assert masks.dtype == torch.bool
    assert masks.tolist() == [[True, False, False], [True, False, True], [False] * 3, [False] * 3]


def test_no_valid_query_finds_nothing() -> None:
    scores = decision.phrase_relevancy(unit(4), torch.zeros(4, dtype=torch.bool), unit(1), unit(2, seed=2), 10.0)
    assert (scores == 0).all()
    assert not decision.select_queries(scores, RULE).any()


def test_class_scores_are_the_levels_geometric_mean() -> None:
    probabilities = torch.rand(2, 3, 5, generator=generator()) / 3
    embeddings, classes, negatives = unit(5), unit(4, seed=1), unit(2, seed=2)
    valid, levels = torch.tensor([True, True, False, True, True]), torch.tensor([0, 2, 2, 1, 2])
    scores = decision.class_scores(probabilities, embeddings, valid, levels, classes, negatives, 20.0)
    per_query = class_probabilities(embeddings, classes, negatives, 20.0)
    for row in range(2):
        for column in range(3):
            for c in range(4):
                product = 1.0
                for level in range(3):
                    expected = sum(
                        float(probabilities[row, column, n] * per_query[n, c])
                        for n in range(5)
                        if levels[n] == level and valid[n]
                    )
                    product *= expected + 1e-3
                assert scores[row, column, c].item() == pytest.approx(product ** (1 / 3) - 1e-3, rel=1e-4, abs=1e-7)


def test_one_level_that_merged_two_things_is_outvoted() -> None:
    """Two levels know the pixel as class 0, the third takes it for part of class 1."""
    classes, negatives = torch.eye(3)[:2], torch.eye(3)[2:]
    embeddings, levels = classes[[0, 0, 1]], torch.tensor([0, 1, 2])
    probabilities = torch.tensor([[0.7, 0.6, 1.0]])
    valid = torch.ones(3, dtype=torch.bool)
    scores = decision.class_scores(probabilities, embeddings, valid, levels, classes, negatives, 20.0)
    assert decision.class_map(scores).tolist() == [0]


def test_duplicate_queries_do_not_change_class_votes() -> None:
    """Two queries for one thing must not outvote another thing's single query."""
    probabilities = torch.rand(4, 3, generator=generator())
    embeddings, classes, negatives = unit(3), unit(2, seed=1), unit(2, seed=2)
    valid = torch.ones(3, dtype=torch.bool)
    once = decision.class_scores(probabilities, embeddings, valid, NONE[:3], classes, negatives, 20.0)
    both = torch.cat([probabilities, probabilities], dim=-1)
    twice = decision.class_scores(both, embeddings.repeat(2, 1), valid.repeat(2), NONE, classes, negatives, 20.0)
    torch.testing.assert_close(once, twice)


def test_pixels_nobody_holds_have_no_class() -> None:
    embeddings, classes, negatives = unit(3), unit(2, seed=1), unit(2, seed=2)
    for valid, probabilities in ((torch.zeros(3), torch.ones(4, 3)), (torch.ones(3), torch.zeros(4, 3))):
        scores = decision.class_scores(probabilities, embeddings, valid.bool(), NONE[:3], classes, negatives, 20.0)
        assert torch.equal(scores, torch.zeros(4, 2))
        assert (decision.class_map(scores) == -1).all()


def test_class_map_takes_the_best_class_if_any_has_a_score() -> None:
    scores = torch.tensor([[[0.2, 0.7], [0.5, 0.4]], [[0.0, 0.0], [0.1, 0.3]]])
    assert decision.class_map(scores).tolist() == [[1, 0], [-1, 1]]


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


def test_phrase_map_keeps_weak_answers_and_leaves_the_rest_empty() -> None:
    masks = torch.tensor([[True, False], [True, True], [False, True], [False, False]])
    heat = torch.tensor([[0.43, 0.9], [0.5, 0.6], [0.9, 0.42], [0.9, 0.9]])
    assert decision.phrase_map(masks, heat).tolist() == [0, 1, 1, -1]


def test_what_only_a_subpart_answers_must_answer_well() -> None:
    levels, support = torch.tensor([0, 0, 1, 2]), torch.tensor([8.0, 18.0, 2.0, 6.0])
    rule = replace(RULE, subpart_weight=0.5, doubt=2.0, found_threshold=0.5)
    weights = decision.evidence_weights(support, levels, rule)
    assert weights.tolist() == pytest.approx([0.5 * 8 / 9, 0.5, 0.5 / 0.9, 0.75 / 0.9])
    scores = torch.tensor([[0.6, 0.9, 0.3, 0.1], [0.1, 0.2, 0.3, 0.7], [0.0, 0.0, 0.0, 0.0]])
    assert decision.evidence(scores, weights).tolist() == pytest.approx([0.45, 0.7 * 0.75 / 0.9, 0.0])
    verdict = decision.judge(scores, weights, None, rule)
    assert verdict.found.tolist() == [False, True, False]
    assert decision.phrase_masks(torch.ones(1, 3), verdict).tolist() == [[False, True, False]]
    asked = decision.evidence_weights(support, levels, rule, subparts=True)
    assert asked.tolist() == pytest.approx([8 / 9, 1.0, 0.5 / 0.9, 0.75 / 0.9])
    unknown = decision.evidence_weights(torch.zeros(1), torch.tensor([-1]), replace(rule, doubt=0.0))
    assert unknown.tolist() == [0.0], "a query that was never found says nothing"


def pixels(*groups: tuple[int, float, float]) -> Tensor:
    """Relevancy [1, N] of groups of pixels: how many, and evenly spread from where to where."""
    return torch.cat([torch.linspace(low, high, count) for count, low, high in groups])[None]


@pytest.mark.parametrize(
    ("sample", "between"),
    [
        # Something whose parts answer unevenly: the gap is below the preferred share of the peak.
        (pixels((9000, 0.0, 0.02), (420, 0.25, 0.9)), (0.02, 0.25)),
        # Large, with look-alikes: far above it.
        (pixels((5000, 0.0, 0.05), (2500, 0.2, 0.5), (4000, 0.85, 0.95)), (0.5, 0.85)),
    ],
)
def test_a_phrases_threshold_lies_in_the_gap_of_its_own_relevancies(
    sample: Tensor, between: tuple[float, float]
) -> None:
    (threshold,) = decision.stable_thresholds(sample, torch.zeros(1), RULE).tolist()
    assert between[0] < threshold < between[1]


def test_thresholds_follow_the_scale_of_relevancies_but_not_the_order_of_pixels() -> None:
    sample = torch.rand(3, 4000, generator=generator()) ** torch.tensor([[1.0], [4.0], [12.0]])
    thresholds = decision.stable_thresholds(sample, torch.zeros(3), RULE)
    mixed = sample[:, torch.randperm(4000, generator=generator(1))]
    assert torch.equal(decision.stable_thresholds(mixed, torch.zeros(3), RULE), thresholds)
    torch.testing.assert_close(decision.stable_thresholds(0.5 * sample, torch.zeros(3), RULE), 0.5 * thresholds)


def test_without_a_gap_the_preferred_share_of_the_peak_decides() -> None:
    """And where the sample has missed the object, its evidence stands in for the peak."""
    flat = torch.zeros(1, 1000)
    (threshold,) = decision.stable_thresholds(flat, torch.tensor([0.4]), RULE).tolist()
    assert threshold == pytest.approx(RULE.mask_share * 0.4, rel=0.05)
    scores, weights = torch.tensor([[0.8, 0.2]]), torch.tensor([0.5, 1.0])
    verdict = decision.judge(scores, weights, None, replace(RULE, mask_scale=0.5))
    assert verdict.thresholds.tolist() == pytest.approx([0.5 * RULE.mask_share * 0.4])


def test_a_rule_stored_with_figures_of_another_meaning_takes_the_present_ones() -> None:
    old = DecisionRule.__new__(DecisionRule)
    old.__setstate__({"found_threshold": 0.365, "mask_share": 0.3, "temperature": 10.0, "min_support": 2.0})
    assert old == DecisionRule(min_support=2.0)
    assert copy.deepcopy(RULE) == RULE
