"""Every protocol against an independent reference: scikit-learn, OpenCV, torch, loops written from protocol texts."""

from __future__ import annotations

import itertools
import warnings

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from protocol_maps import MAPS, MASKS, SEEDS, SIZES, mask, relevancy
from sklearn.metrics import accuracy_score, jaccard_score
from sklearn.metrics import confusion_matrix as sklearn_confusion

from maskfield_ns.errors import BenchmarkError
from maskfield_ns.evaluation.protocols import classes, filters, masks, scoring, threshold
from maskfield_ns.evaluation.protocols.labels import ViewLabels
from maskfield_ns.evaluation.protocols.predictions import ViewPrediction

FEW = settings(max_examples=25, deadline=None)

# --- filters ----------------------------------------------------------------------------------------------------------


def mirrored(index: int, length: int) -> int:
    """Reflect-101: -1 is 1, length is length - 2."""
    if length == 1:
        return 0
    while not 0 <= index < length:
        index = -index if index < 0 else 2 * (length - 1) - index
    return index


def looped_box_mean(image: np.ndarray, side: int) -> np.ndarray:
    height, width = image.shape
    result = np.zeros(image.shape)
    for i, j in itertools.product(range(height), range(width)):
        rows = [mirrored(i + d, height) for d in range(-(side // 2), side - side // 2)]
        columns = [mirrored(j + d, width) for d in range(-(side // 2), side - side // 2)]
        result[i, j] = image[np.ix_(rows, columns)].astype(np.float64).mean()
    return result


@settings(max_examples=12, deadline=None)
@given(seed=SEEDS, size=st.tuples(st.integers(2, 18), st.integers(2, 18)), kind=st.sampled_from(MAPS))
@pytest.mark.parametrize("side", [15, 30])
def test_box_mean_is_the_mean_over_a_mirrored_window(side: int, seed: int, size: tuple[int, int], kind: str) -> None:
    image = relevancy(np.random.default_rng(seed), kind, size)
    np.testing.assert_allclose(filters.box_mean(image, side), looped_box_mean(image, side), atol=2e-6)


def test_an_even_window_reaches_further_up_and_left() -> None:
    image = np.zeros((80, 90), np.float32)
    image[40, 50] = 900.0
    rows, columns = np.nonzero(filters.box_mean(image, 30) > 0.5)
    # The pixel is seen by those whose window (15 back, 14 ahead) holds it.
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (40 - 14, 40 + 15, 50 - 14, 50 + 15)


@FEW
@given(seed=SEEDS, size=SIZES, kind=st.sampled_from(MAPS))
def test_box_mean_inside_is_average_pooling_without_padding(seed: int, size: tuple[int, int], kind: str) -> None:
    image = relevancy(np.random.default_rng(seed), kind, size)
    pooled = torch.nn.functional.avg_pool2d(
        torch.from_numpy(image)[None, None].double(), 29, stride=1, padding=14, count_include_pad=False
    )[0, 0]
    np.testing.assert_allclose(filters.box_mean_inside(image, 29), pooled.numpy(), atol=1e-6)


def test_a_plateau_stays_one() -> None:
    image = np.full((60, 70), np.float32(0.7))
    assert len(np.unique(filters.box_mean_inside(image, 29))) == 1
    with pytest.raises(ValueError, match="middle"):
        filters.box_mean_inside(image, 30)


def looped_majority(labels: np.ndarray) -> np.ndarray:
    """+-3 pixels, the slice ends clamped to h-1 and w-1 exclusive, most frequent value, ties to the smallest."""
    height, width = labels.shape
    result = labels.copy()
    for i, j in itertools.product(range(height), range(width)):
        window = labels[max(0, i - 3) : min(i + 4, height - 1), max(0, j - 3) : min(j + 4, width - 1)]
        counts: dict[int, int] = {}
        for value in window.ravel().tolist():
            counts[value] = counts.get(value, 0) + 1
        result[i, j] = min(counts, key=lambda value: (-counts[value], value))
    return result


@FEW
@given(seed=SEEDS, size=SIZES, count=st.integers(1, 5))
def test_majority_is_the_clamped_loop(seed: int, size: tuple[int, int], count: int) -> None:
    labels = np.random.default_rng(seed).integers(0, count, size)
    assert np.array_equal(filters.majority(labels, count), looped_majority(labels))


@FEW
@given(seed=SEEDS, size=SIZES, kind=st.sampled_from(MASKS))
def test_majority_of_masks(seed: int, size: tuple[int, int], kind: str) -> None:
    given_mask = mask(np.random.default_rng(seed), kind, size)
    assert np.array_equal(filters.majority_mask(given_mask), looped_majority(given_mask.astype(int)) == 1)
    pooled = torch.nn.functional.avg_pool2d(
        torch.from_numpy(given_mask)[None, None].double(), 7, stride=1, padding=3, count_include_pad=False
    )[0, 0]
    assert np.array_equal(filters.majority_mask_inside(given_mask), (pooled > 0.5).numpy())


def test_the_last_row_does_not_vote_but_gets_a_label() -> None:
    last = np.zeros((9, 9), bool)
    last[-1] = True
    assert not filters.majority_mask(last).any()
    but_last = ~last
    assert filters.majority_mask(but_last).all()
    for shape in ((1, 9), (9, 1)):
        with pytest.raises(ValueError, match="nobody votes"):
            filters.majority_mask(np.ones(shape, bool))
        with pytest.raises(ValueError, match="nobody votes"):
            filters.majority(np.zeros(shape, int), 2)
    with pytest.raises(ValueError, match="outside"):
        filters.majority(np.full((4, 4), 2), 2)


# --- thresholds: LERF-OVS, Mip-NeRF360 --------------------------------------------------------------------------------


def reference_query(maps: np.ndarray, smoothing: str) -> tuple[np.ndarray, np.ndarray]:
    """(mask, smoothed map of the place) from the protocol text, step by step."""

    def smooth(level: np.ndarray) -> np.ndarray:
        if smoothing == "langsplat":
            return cv2.filter2D(level, -1, np.full((30, 30), 1 / 900))
        tensor = torch.from_numpy(level)[None, None]
        return torch.nn.functional.avg_pool2d(tensor, 29, 1, 14, count_include_pad=False)[0, 0].numpy()

    blended = [0.5 * (level + smooth(level)) for level in maps]
    peaks = [level.max() for level in blended]
    r1 = blended[peaks.index(max(peaks))]
    normalised = (r1 - r1.min()) / ((r1 - r1.min()).max() + 1e-9)
    cut = np.clip(2 * normalised - 1, 0, 1) > 0.4
    if smoothing == "langsplat":
        final = looped_majority(cut.astype(int)) == 1
    else:
        pooled = torch.nn.functional.avg_pool2d(
            torch.from_numpy(cut)[None, None].float(), 7, 1, 3, count_include_pad=False
        )
        final = (pooled[0, 0] > 0.5).numpy()
    smoothed = [smooth(level) for level in maps]
    peaks = [level.max() for level in smoothed]
    return final, smoothed[peaks.index(max(peaks))]


@FEW
@given(seed=SEEDS, size=SIZES, kinds=st.lists(st.sampled_from(MAPS), min_size=1, max_size=3))
def test_langsplat_masks_and_places(seed: int, size: tuple[int, int], kinds: list[str]) -> None:
    rng = np.random.default_rng(seed)
    maps = np.stack([relevancy(rng, kind, size) for kind in kinds])
    wanted, place = reference_query(maps, "langsplat")
    assert np.array_equal(threshold.predict_mask(maps, "langsplat").mask, wanted)
    assert np.array_equal(threshold.locate(maps, "langsplat"), place)


@FEW
@given(seed=SEEDS, size=SIZES, levels=st.integers(1, 3))
def test_langsplat_v2_masks_and_places(seed: int, size: tuple[int, int], levels: int) -> None:
    # No ties between levels here: the reference sums in float32, and rounding would choose.
    maps = np.random.default_rng(seed).random((levels, *size), dtype=np.float32)
    wanted, place = reference_query(maps, "langsplat-v2")
    result = threshold.predict_mask(maps, "langsplat-v2").mask
    assert np.mean(result != wanted) <= 1 / result.size, "one pixel may lie at the threshold within rounding"
    np.testing.assert_allclose(threshold.locate(maps, "langsplat-v2"), place, atol=1e-6)


def test_the_scripts_four_tenths_are_seven_tenths_of_the_range() -> None:
    ramp = np.tile(np.linspace(0, 1, 1001, dtype=np.float32), (4, 1))
    above = threshold.normalise(ramp) > np.float32(threshold.MASK_THRESHOLD)
    assert ramp[above].min() == pytest.approx(0.7, abs=0.0011)


def test_a_constant_map_has_no_mask_and_hits_everything() -> None:
    for value in (0.0, 1.0):
        maps = np.full((2, 20, 30), value, np.float32)
        for smoothing in threshold.SMOOTHINGS:
            assert not threshold.predict_mask(maps, smoothing).mask.any()


def test_the_level_with_the_highest_peak_answers() -> None:
    low, high = np.full((40, 50), 0.2, np.float32), np.full((40, 50), 0.1, np.float32)
    low[:10, :10], high[20:35, 20:40] = 0.5, 0.9
    mask_, level = threshold.predict_mask(np.stack([low, high]))
    assert level == 1 and mask_[27, 30] and not mask_[3, 3]
    assert threshold.predict_mask(np.stack([high, low])).level == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_relevancy_must_be_finite(bad: float) -> None:
    maps = np.zeros((1, 5, 5), np.float32)
    maps[0, 2, 2] = bad
    for function in (threshold.predict_mask, threshold.locate):
        with pytest.raises(ValueError, match="NaN or infinity"):
            function(maps)
    with pytest.raises(ValueError, match="levels, height, width"):
        threshold.predict_mask(maps[0])
    with pytest.raises(ValueError, match="unknown smoothing"):
        threshold.locate(np.zeros((1, 5, 5)), "gauss")  # pyright: ignore[reportArgumentType]


def query_view(rng: np.random.Generator, name: str, size: tuple[int, int], count: int) -> ViewLabels:
    label = np.stack([mask(rng, str(rng.choice(MASKS[2:])), size) for _ in range(count)])
    boxes = []
    for each in label:
        rows, columns = np.nonzero(each)
        tight = (columns.min(), rows.min(), columns.max(), rows.max())
        box = [tight[2], tight[3], tight[0], tight[1]] if rng.random() < 0.5 else tight  # corners in any order
        boxes.append(np.array([box], float))
    return ViewLabels(name, tuple(f"thing {i}" for i in range(count)), size, label, tuple(boxes))


@settings(max_examples=12, deadline=None)
@given(seed=SEEDS, size=SIZES)
@pytest.mark.parametrize("smoothing", ["langsplat"])
def test_lerf_ovs_scene_figures(smoothing: threshold.Smoothing, seed: int, size: tuple[int, int]) -> None:
    rng = np.random.default_rng(seed)
    scorer = scoring.QueryScorer(smoothing)
    ious, hits = [], []
    for number in range(3):
        labels = query_view(rng, f"frame_{number}", size, count=number + 1)
        maps = {
            phrase: np.stack([relevancy(rng, str(rng.choice(MAPS)), size) for _ in range(2)])
            for phrase in labels.phrases[: None if number else 1]
        }
        scorer.add(labels, ViewPrediction(relevancy=maps))
        assert labels.masks is not None
        for phrase, label, boxes in zip(labels.phrases, labels.masks, labels.boxes, strict=True):
            final, place = reference_query(maps[phrase], smoothing)
            inter = sum(1 for p, g in zip(final.ravel(), label.ravel(), strict=True) if p and g)
            union = sum(1 for p, g in zip(final.ravel(), label.ravel(), strict=True) if p or g)
            ious.append(inter / union)
            hit = False
            for i, j in np.argwhere(place == place.max()).tolist():
                for x1, y1, x2, y2 in boxes.tolist():
                    hit |= min(x1, x2) <= j <= max(x1, x2) and min(y1, y2) <= i <= max(y1, y2)
            hits.append(hit)
    figures = scorer.result().figures
    assert figures["miou"] == pytest.approx(sum(ious) / len(ious), abs=1e-6)
    assert figures["localisation_accuracy"] == pytest.approx(sum(hits) / len(hits), abs=1e-6)
    assert figures["num_pairs"] == len(ious) == 6


def test_missing_queries_count_nothing() -> None:
    labels = query_view(np.random.default_rng(0), "a", (12, 12), 3)
    scorer = scoring.QueryScorer()
    scorer.add(labels, None)
    result = scorer.result()
    assert result.figures["miou"] == result.figures["localisation_accuracy"] == 0.0
    assert result.notes == ["3 of 3 pairs have no prediction and count 0"]


# --- LERF-Mask --------------------------------------------------------------------------------------------------------


def reference_boundary(mask_: np.ndarray) -> np.ndarray:
    """Pad by one zero pixel, erode d times by 3x3, subtract."""
    height, width = mask_.shape
    times = max(1, round(0.02 * (height**2 + width**2) ** 0.5))
    eroded = np.pad(mask_.astype(bool), 1)
    for _ in range(times):
        shifted = np.pad(eroded, 1)
        eroded = np.logical_and.reduce(
            [shifted[1 + i : 1 + i + height + 2, 1 + j : 1 + j + width + 2] for i in (-1, 0, 1) for j in (-1, 0, 1)]
        )
    return mask_ & ~eroded[1:-1, 1:-1]


@FEW
@given(seed=SEEDS, size=st.tuples(st.integers(2, 90), st.integers(2, 90)), kind=st.sampled_from(MASKS))
def test_boundaries(seed: int, size: tuple[int, int], kind: str) -> None:
    given_mask = mask(np.random.default_rng(seed), kind, size)
    assert np.array_equal(masks.boundary(given_mask), reference_boundary(given_mask))


def test_boundary_width_at_lerf_sizes() -> None:
    assert masks.boundary_width(728, 986) in (24, 25)
    assert masks.boundary_width(3, 3) == 1


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, size=st.tuples(st.integers(4, 60), st.integers(4, 60)))
def test_lerf_mask_scene_figures(seed: int, size: tuple[int, int]) -> None:
    rng = np.random.default_rng(seed)
    scorer = scoring.MaskScorer()
    table: dict[str, list[tuple[float, float]]] = {}
    for number in range(3):
        phrases = ("cup", "hat", "egg")[: 3 if number == 1 else 2]  # one prompt in one view only
        label = np.stack([mask(rng, str(rng.choice(MASKS)), size) for _ in phrases])
        pred = {phrase: mask(rng, str(rng.choice(MASKS)), size) for phrase in phrases}
        scorer.add(ViewLabels(str(number), phrases, size, label), ViewPrediction(masks=pred))
        for phrase, wanted in zip(phrases, label, strict=True):
            values = []
            for a, b in ((pred[phrase], wanted), (reference_boundary(pred[phrase]), reference_boundary(wanted))):
                union = np.logical_or(a, b).sum()
                values.append(np.logical_and(a, b).sum() / union if union else np.nan)
            table.setdefault(phrase, []).append((values[0], values[1]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the mean of nothing
        per_phrase = [np.nanmean(np.array(rows), axis=0) for rows in table.values()]
        wanted_miou, wanted_mbiou = np.nanmean(np.array(per_phrase), axis=0)
    figures = scorer.result().figures
    assert figures.get("miou", np.nan) == pytest.approx(wanted_miou, abs=1e-6, nan_ok=True)
    assert figures.get("mbiou", np.nan) == pytest.approx(wanted_mbiou, abs=1e-6, nan_ok=True)


def test_a_missing_mask_counts_nothing_and_another_size_is_resized() -> None:
    label = np.zeros((2, 20, 30), bool)
    label[:, 4:12, 6:18] = True
    scorer = scoring.MaskScorer()
    half = label[0, ::2, ::2]
    scorer.add(ViewLabels("0", ("cup", "hat"), (20, 30), label), ViewPrediction(masks={"cup": half}))
    result = scorer.result()
    assert result.classes["cup"]["iou"] == 1.0
    assert result.classes["hat"] == {"iou": 0.0, "boundary_iou": 0.0, "num_views": 1.0}
    assert result.figures["miou"] == 0.5
    assert result.notes == ["1 of 2 pairs have no prediction and count 0"]


# --- 3D-OVS -----------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
@FEW
@given(seed=SEEDS, size=SIZES, count=st.integers(2, 6))
def test_3d_ovs_is_scikit_learns_jaccard_and_subset_accuracy(seed: int, size: tuple[int, int], count: int) -> None:
    rng = np.random.default_rng(seed)
    names = tuple(f"class {i}" for i in range(count))
    scorer = scoring.IndicatorScorer()
    ious, accuracies = [], []
    for number in range(2):
        label = np.stack([mask(rng, str(rng.choice(MASKS)), size) for _ in names])  # overlaps, gaps, absent classes
        scores = np.stack([relevancy(rng, str(rng.choice(MAPS)), size) for _ in names])
        scorer.add(ViewLabels(str(number), names, size, label), ViewPrediction(scores=scores))
        predicted = np.zeros((size[0] * size[1], count), int)
        for pixel, values in enumerate(scores.reshape(count, -1).T.tolist()):
            predicted[pixel, values.index(max(values))] = 1
        truth = label.reshape(count, -1).T.astype(int)
        ious.append(jaccard_score(truth, predicted, average=None, zero_division=0))
        accuracies.append(accuracy_score(truth, predicted))
    figures = scorer.result().figures
    assert figures["miou"] == pytest.approx(np.mean(ious), abs=1e-6)
    assert figures["accuracy"] == pytest.approx(np.mean(accuracies), abs=1e-6)


@settings(max_examples=10, deadline=None)
@given(seed=SEEDS, size=SIZES, queries=st.integers(1, 7), count=st.integers(2, 4))
def test_maskfields_rule_blends_queries(seed: int, size: tuple[int, int], queries: int, count: int) -> None:
    """Section 1.5 of the protocol: each query's mask is blended, then weighted; here sums are blended instead."""
    rng = np.random.default_rng(seed)
    query_masks, weights = rng.random((queries, *size), dtype=np.float32), rng.random((queries, count))
    votes = np.zeros((count, *size))
    for each, row in zip(query_masks, weights, strict=True):
        blended = 0.5 * (each + cv2.filter2D(each, -1, np.full((15, 15), 1 / 225)))
        votes += row[:, None, None] * blended
    ordered = np.sort(votes, axis=0)
    wanted = looped_majority(votes.argmax(axis=0))
    result = classes.maskfield_classes(np.einsum("qc,qhw->chw", weights, query_masks))
    if (ordered[-1] - ordered[-2]).min() > 1e-5:  # no class is ahead by rounding only
        assert np.array_equal(result, wanted)


def test_subset_accuracy_never_forgives_gaps_and_overlaps() -> None:
    label = np.zeros((2, 2, 2), bool)
    label[0, 0] = True  # upper row: class 0; lower right: both; lower left: none
    label[:, 1, 1] = True
    score = classes.indicator_score(np.zeros((2, 2), int), label)
    assert score.accuracy == 0.5
    assert score.iou.tolist() == [0.75, 0.0]


# --- Replica and ScanNet ----------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
@FEW
@given(seed=SEEDS, size=SIZES, count=st.integers(2, 6))
def test_ov_nerf_and_semantic_nerf_figures(seed: int, size: tuple[int, int], count: int) -> None:
    rng = np.random.default_rng(seed)
    names = [" ", *(f"class {i}" for i in range(1, count))]
    scorers = {rule: scoring.ConfusionScorer(names, rule) for rule in ("ov-nerf", "semantic-nerf")}
    mious, accuracies, truths, answers = [], [], [], []
    for number in range(3):
        index = rng.integers(0, rng.integers(1, count + 1), size)  # often without the last classes
        index[rng.random(size) < 0.3] = 0
        if number == 2:
            index[:] = 0  # a view without labels
        pred = rng.integers(0, count, size)
        for scorer in scorers.values():
            scorer.add(ViewLabels(str(number), tuple(names), size, index=index), ViewPrediction(classes=pred))
        truth, answer = index[index > 0], pred[index > 0]
        truths.append(truth)
        answers.append(answer)
        if not len(truth):
            continue
        matrix = sklearn_confusion(truth, answer, labels=range(count)).astype(float)
        union = matrix.sum(0) + matrix.sum(1) - np.diag(matrix)
        with np.errstate(invalid="ignore"):
            mious.append(np.nanmean(np.diag(matrix) / union))
        accuracies.append(accuracy_score(truth, answer))
    if not mious:
        assert set(scorers["ov-nerf"].result().figures) == {"num_views"}
        return
    figures = scorers["ov-nerf"].result().figures
    assert figures["miou"] == pytest.approx(np.mean(mious), abs=1e-6)
    assert figures["accuracy"] == pytest.approx(np.mean(accuracies), abs=1e-6)
    truth, answer = np.concatenate(truths), np.concatenate(answers)
    present = sorted(set(truth.tolist()))
    either = sorted(set(truth.tolist()) | set(answer.tolist()))
    figures = scorers["semantic-nerf"].result().figures
    assert figures["miou"] == pytest.approx(jaccard_score(truth, answer, labels=either, average="macro"), abs=1e-6)
    labelled = jaccard_score(truth, answer, labels=present, average="macro")
    assert figures["miou_labelled"] == pytest.approx(labelled, abs=1e-6)
    assert figures["accuracy"] == pytest.approx(accuracy_score(truth, answer), abs=1e-6)
    by_class = np.mean([np.mean(answer[truth == c] == c) for c in present])
    assert figures["class_accuracy"] == pytest.approx(by_class, abs=1e-6)
    assert figures["miou_by_image"] == pytest.approx(np.mean(mious), abs=1e-6)


def test_void_predictions_are_errors_and_void_labels_are_nothing() -> None:
    label, pred = np.array([[1, 1, 0, 0]]), np.array([[1, 0, 1, 2]])
    score = classes.confusion_score(classes.confusion(pred, label, 3))
    assert score.iou == {0: 0.0, 1: 0.5}
    assert score.miou == 0.25 and score.miou_labelled == 0.5 and score.accuracy == 0.5


# --- what scorers refuse ----------------------------------------------------------------------------------------------


def test_bad_predictions_are_errors_with_the_view_in_them() -> None:
    size = (6, 8)
    label = np.ones((1, *size), bool)
    boxes = (np.array([[0.0, 0.0, 7.0, 5.0]]),)
    nan = np.full((1, *size), np.nan, np.float32)
    query = ViewLabels("frame_7", ("cup",), size, label, boxes)
    indexed = ViewLabels("frame_7", (" ", "cup"), size, index=np.ones(size, int))
    for scorer, labels, prediction, message in (
        (scoring.QueryScorer(), query, ViewPrediction(relevancy={"cup": nan}), "NaN"),
        (scoring.QueryScorer(), query, ViewPrediction(relevancy={"cup": nan[:, :3]}), r"\(3, 8\)"),
        (scoring.IndicatorScorer(), query, ViewPrediction(scores=nan), "NaN"),
        (scoring.IndicatorScorer("maskfield"), query, ViewPrediction(scores=nan), "NaN"),
        (scoring.IndicatorScorer("maskfield"), query, ViewPrediction(classes=np.zeros(size, int)), "not enough"),
        (scoring.IndicatorScorer(), query, ViewPrediction(classes=np.ones(size, int)), "outside"),
        (scoring.IndicatorScorer(), query, None, "no prediction"),
        (scoring.ConfusionScorer([" ", "cup"]), indexed, ViewPrediction(classes=np.full(size, 2)), "outside"),
        (scoring.ConfusionScorer([" ", "cup"]), indexed, ViewPrediction(classes=np.ones((3, 3), int)), "labels are"),
        (scoring.ConfusionScorer([" ", "cup"]), indexed, ViewPrediction(scores=np.ones((3, *size))), "3 score maps"),
    ):
        with pytest.raises(BenchmarkError, match=f"frame_7.*{message}"):
            scorer.add(labels, prediction)
        with pytest.raises(BenchmarkError, match="no view"):
            scorer.result()


def test_a_view_counts_once() -> None:
    labels = query_view(np.random.default_rng(0), "a", (12, 12), 1)
    scorer = scoring.QueryScorer()
    scorer.add(labels, None)
    with pytest.raises(BenchmarkError, match="twice"):
        scorer.add(labels, None)
