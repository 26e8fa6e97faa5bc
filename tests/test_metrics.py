"""Metrics against scikit-learn and plain Python loops."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, jaccard_score
from sklearn.metrics import confusion_matrix as sklearn_confusion_matrix

from maskfield_ns.evaluation.metrics import (
    Agreement,
    binary_iou,
    confusion_matrix,
    inclusive_box,
    localisation_hit,
    localisation_hit_strict,
    matched_mean_iou,
    mean_iou,
    pairwise_iou,
    pixel_accuracy,
)

SEEDS = st.integers(0, 2**31)


# ---------------------------------------------------------------- binary IoU


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, density=st.sampled_from([0.05, 0.5, 1.0]))
def test_binary_iou_is_sklearns_jaccard(seed: int, density: float) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.random((2, 5, 7)) < density
    if (a | b).any():
        assert binary_iou(a, b) == pytest.approx(jaccard_score(a.ravel(), b.ravel()))
    else:
        assert binary_iou(a, b) is None


def test_binary_iou_corner_cases() -> None:
    empty, full, one = np.zeros((3, 4), bool), np.ones((3, 4), bool), np.zeros((3, 4), bool)
    one[2, 3] = True
    assert binary_iou(empty, empty) is None
    assert binary_iou(empty, full) == 0.0
    assert binary_iou(full, full) == 1.0
    assert binary_iou(one, full) == pytest.approx(1 / 12)
    assert binary_iou(one, one) == 1.0
    assert binary_iou(np.zeros((0, 4), bool), np.zeros((0, 4), bool)) is None
    with pytest.raises(ValueError, match="one shape"):
        binary_iou(full, full[:1])  # would broadcast
    with pytest.raises(ValueError, match="boolean"):
        binary_iou(full.astype(np.uint8), full)


# ---------------------------------------------------------------- classes


@pytest.mark.filterwarnings("ignore:A single label was found")
@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, classes=st.integers(1, 6), used=st.integers(1, 6), unlabelled=st.sampled_from([0.0, 0.3]))
def test_class_figures_are_sklearns(seed: int, classes: int, used: int, unlabelled: float) -> None:
    rng = np.random.default_rng(seed)
    used = min(used, classes)  # classes past it are absent from both
    label, pred = rng.integers(0, used, (2, 6, 5))
    label[rng.random(label.shape) < unlabelled] = -1
    counted = label >= 0
    matrix = confusion_matrix(pred, label, classes)
    assert matrix.shape == (classes, classes + 1)
    if not counted.any():
        assert matrix.sum() == 0
        return
    y, p = label[counted], pred[counted]
    assert np.array_equal(matrix[:, :classes], sklearn_confusion_matrix(y, p, labels=range(classes)))
    assert pixel_accuracy(matrix) == pytest.approx(accuracy_score(y, p))

    present = sorted(set(y.tolist()) | set(p.tolist()))
    scores = jaccard_score(y, p, labels=present, average=None)
    result = mean_iou(matrix)
    assert result.per_class == pytest.approx(dict(zip(present, scores, strict=True)))
    assert result.mean == pytest.approx(scores.mean())
    assert result.undefined == tuple(c for c in range(classes) if c not in present)


def test_confusion_matrix_against_a_loop_with_abstentions() -> None:
    rng = np.random.default_rng(0)
    label, pred = rng.integers(-1, 3, (2, 8, 8))
    expected = np.zeros((3, 4), int)
    for row, column in zip(label.ravel().tolist(), pred.ravel().tolist(), strict=True):
        if row != -1:
            expected[row, column if column != -1 else 3] += 1
    assert np.array_equal(confusion_matrix(pred, label, 3), expected)


def test_abstaining_costs_a_miss_and_nothing_else() -> None:
    label = np.array([[0, 0, 1, 1]])
    matrix = confusion_matrix(np.array([[0, -1, 1, 1]]), label, 2)
    assert mean_iou(matrix).per_class == {0: 0.5, 1: 1.0}
    assert pixel_accuracy(matrix) == 0.75


def test_ignored_pixels_may_hold_any_prediction_and_ignore_may_be_255() -> None:
    label = np.array([[0, 255, 1]], np.uint8)
    pred = np.array([[0, 77, 255]], np.uint8)
    assert confusion_matrix(pred, label, 2, ignore=255).tolist() == [[1, 0, 0], [0, 0, 1]]


def test_class_predicted_but_never_labelled_is_zero_not_undefined() -> None:
    result = mean_iou(confusion_matrix(np.array([0, 1]), np.array([0, 0]), 3))
    assert result.per_class == {0: 0.5, 1: 0.0}
    assert (result.mean, result.undefined) == (0.25, (2,))


def test_nothing_labelled_is_undefined() -> None:
    matrix = confusion_matrix(np.zeros((2, 2), int), np.full((2, 2), -1), 2)
    assert mean_iou(matrix) == (None, {}, (0, 1))
    assert pixel_accuracy(matrix) is None


@pytest.mark.parametrize(
    ("pred", "label"),
    [([2], [0]), ([0], [2]), ([-2], [0]), ([0], [-2])],
    ids=["pred", "label", "pred below", "label below"],
)
def test_values_outside_the_classes_raise(pred: list[int], label: list[int]) -> None:
    with pytest.raises(ValueError, match="outside"):
        confusion_matrix(np.array(pred), np.array(label), 2)


def test_class_maps_must_be_integers_of_one_shape() -> None:
    with pytest.raises(ValueError, match="integer"):
        confusion_matrix(np.array([0.5]), np.array([0]), 2)
    with pytest.raises(ValueError, match="integer"):
        confusion_matrix(np.array([0, 1]), np.array([0]), 2)
    with pytest.raises(ValueError, match="not a confusion matrix"):
        mean_iou(np.zeros((3, 2), int))


# ---------------------------------------------------------------- localisation


def _hit_by_loops(relevancy: np.ndarray, boxes: list[list[float]]) -> bool:
    peak = max(value for row in relevancy.tolist() for value in row)
    for y, row in enumerate(relevancy.tolist()):
        for x, value in enumerate(row):
            for x0, y0, x1, y1 in boxes:
                if value == peak and min(x0, x1) <= x <= max(x0, x1) and min(y0, y1) <= y <= max(y0, y1):
                    return True
    return False


@settings(max_examples=80, deadline=None)
@given(seed=SEEDS, levels=st.integers(1, 12), count=st.integers(1, 3))
def test_localisation_against_loops(seed: int, levels: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    relevancy = rng.integers(0, levels, (5, 6)) / levels  # few levels make many ties
    boxes = rng.integers(-1, 7, (count, 4)).astype(float)  # any corner order
    assert localisation_hit(relevancy, boxes) == _hit_by_loops(relevancy, boxes.tolist())


def test_localisation_edges_are_inclusive_and_ties_all_count() -> None:
    relevancy = np.zeros((4, 5))
    relevancy[1, 3] = 1.0
    assert localisation_hit(relevancy, np.array([[3, 1, 3, 1]]))
    assert localisation_hit(relevancy, np.array([[4, 2, 3, 1]]))
    assert not localisation_hit(relevancy, np.array([[0, 0, 2, 3]]))
    assert not localisation_hit(relevancy, np.array([[3.5, 0, 4, 3]]))
    relevancy[3, 0] = 1.0
    assert localisation_hit(relevancy, np.array([[0, 0, 2, 3]]))
    assert localisation_hit(np.full((4, 5), -np.inf), np.array([[2, 2, 2, 2]]))


def test_strict_localisation_closes_the_constant_map_loophole() -> None:
    mask = np.zeros((3, 3), bool)
    mask[1, 1] = True
    constant = np.full((3, 3), 0.5)
    assert localisation_hit(constant, np.array([inclusive_box(mask)]))
    assert not localisation_hit_strict(constant, mask)
    assert localisation_hit_strict(constant + mask, mask)
    assert localisation_hit_strict(constant, np.ones((3, 3), bool))


def test_localisation_refuses_what_has_no_answer() -> None:
    box, good = np.array([[0, 0, 1, 1]]), np.zeros((2, 2))
    nan = np.array([[0.0, np.nan], [0.0, 0.0]])
    for call in (
        lambda: localisation_hit(nan, box),
        lambda: localisation_hit_strict(nan, np.ones((2, 2), bool)),
        lambda: localisation_hit(np.zeros((0, 2)), box),
        lambda: localisation_hit(good, np.zeros((0, 4))),
        lambda: localisation_hit(good, np.array([[0, 0, np.nan, 1]])),
        lambda: localisation_hit_strict(good, np.zeros((2, 2), bool)),
        lambda: localisation_hit_strict(good, np.ones((3, 2), bool)),
        lambda: inclusive_box(np.zeros((2, 2), bool)),
    ):
        with pytest.raises(ValueError, match=r"NaN|pixel|box|mask"):
            call()


def test_inclusive_box() -> None:
    mask = np.zeros((6, 9), bool)
    mask[2, 7] = mask[4, 1] = True
    assert inclusive_box(mask) == (1, 2, 7, 4)
    assert inclusive_box(np.ones((1, 1), bool)) == (0, 0, 0, 0)


# ---------------------------------------------------------------- agreement


def _iou_by_sets(a: np.ndarray, b: np.ndarray) -> float:
    first, second = (set(map(tuple, np.argwhere(mask).tolist())) for mask in (a, b))
    return len(first & second) / len(first | second) if first | second else 0.0


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, proposals=st.integers(1, 4), rendered=st.integers(1, 4))
def test_agreement_against_all_assignments(seed: int, proposals: int, rendered: int) -> None:
    rng = np.random.default_rng(seed)
    p, r = rng.random((proposals, 4, 4)) < 0.4, rng.random((rendered, 4, 4)) < 0.4
    p[:, 0, 0] = True  # not empty
    table = np.array([[_iou_by_sets(a, b) for b in r] for a in p])
    np.testing.assert_allclose(pairwise_iou(p, r), table)
    # Every one-to-one assignment, with dummies for "unmatched".
    padded = np.hstack([table, np.zeros((proposals, proposals))])
    best = max(
        sum(padded[i, c] for i, c in enumerate(columns))
        for columns in itertools.permutations(range(padded.shape[1]), proposals)
    )
    result = matched_mean_iou(p, r)
    assert result.matched == pytest.approx(best / proposals)
    assert result.best == pytest.approx(np.mean([max(row) for row in table.tolist()]))
    assert result.num_proposals == proposals


def test_agreement_shares_no_rendered_mask_and_greedy_is_not_enough() -> None:
    left, right = np.zeros((2, 2, 4), bool)
    left[:, :2], right[:, 2:] = True, True
    assert matched_mean_iou(np.stack([left, left]), left[None]) == Agreement(0.5, 1.0, 2)
    assert matched_mean_iou(np.stack([left, right]), np.stack([right, left, left])) == Agreement(1.0, 1.0, 2)


def test_agreement_of_nothing() -> None:
    none, some = np.zeros((0, 3, 3), bool), np.ones((2, 3, 3), bool)
    assert matched_mean_iou(none, some) == Agreement(None, None, 0)
    assert matched_mean_iou(none, none) == Agreement(None, None, 0)
    assert matched_mean_iou(some, none) == Agreement(0.0, 0.0, 2)
    assert matched_mean_iou(np.zeros((2, 3, 3), bool), some) == Agreement(None, None, 0)
    half_empty = np.stack([some[0], np.zeros((3, 3), bool)])
    assert matched_mean_iou(half_empty, half_empty) == Agreement(1.0, 1.0, 1)


def test_pairwise_iou_is_exact_past_one_chunk() -> None:
    masks = np.zeros((2, 300, 300), bool)  # 90,000 pixels, more than one chunk
    masks[0, :200], masks[1, 100:] = True, True
    assert pairwise_iou(masks, masks).tolist() == [[1.0, 100 / 300], [100 / 300, 1.0]]


def test_mask_stacks_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        pairwise_iou(np.ones((1, 2, 2), bool), np.ones((1, 2, 3), bool))
    with pytest.raises(ValueError, match="boolean"):
        pairwise_iou(np.ones((1, 2, 2)), np.ones((1, 2, 2), bool))
