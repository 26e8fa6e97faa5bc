"""Occam's LGS on 3D-OVS and OpenGaussian on LERF-OVS against references written from the protocols' texts."""

from __future__ import annotations

import io
import itertools
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from protocol_maps import MAPS, MASKS, SEEDS, SIZES, mask, relevancy
from scipy.signal import medfilt

from maskfield_ns.errors import BenchmarkError
from maskfield_ns.evaluation.protocols import single, stable
from maskfield_ns.evaluation.protocols.labels import IndicatorLabels, ViewLabels, fill_polygon
from maskfield_ns.evaluation.protocols.masks import SILHOUETTE_ABOVE
from maskfield_ns.evaluation.protocols.predictions import ViewPrediction, read_prediction
from maskfield_ns.evaluation.protocols.registry import BENCHMARKS, score_folder

FEW = settings(max_examples=25, deadline=None)
KINDS = (*MAPS, "bump", "two bumps")

# --- Occam's LGS ------------------------------------------------------------------------------------------------------


def heat(rng: np.random.Generator, kind: str, size: tuple[int, int]) -> np.ndarray:
    """As ``protocol_maps.relevancy``, and smooth hills of random height, steepness and place."""
    if "bump" not in kind:
        return relevancy(rng, kind, size)
    ys, xs = np.mgrid[: size[0], : size[1]]
    total = np.zeros(size)
    for _ in range(2 if kind == "two bumps" else 1):
        y, x, width = rng.uniform(0, size[0]), rng.uniform(0, size[1]), rng.uniform(1, 12)
        distance = np.hypot(ys - y, xs - x)
        total += rng.uniform(0.2, 1) / (1 + np.exp((distance - width) * rng.uniform(0.3, 4)))
    return total.astype(np.float32)


def looped_majority(cut: np.ndarray) -> np.ndarray:
    """+-3 pixels, ends clamped to h-1 and w-1 exclusive, ties to background."""
    height, width = cut.shape
    result = np.zeros(cut.shape, bool)
    for i, j in itertools.product(range(height), range(width)):
        window = cut[max(0, i - 3) : min(i + 4, height - 1), max(0, j - 3) : min(j + 4, width - 1)]
        result[i, j] = window.sum() * 2 > window.size
    return result


def reference(maps: np.ndarray, steepest: float, smallest: float, largest: float) -> tuple[np.ndarray, int, float]:
    """(mask, level, threshold), step by step."""
    thresholds = np.arange(0.01, 1, 0.01)
    slopes, chosen, normalised = [], [], []
    for level in maps:
        output = level - level.min()
        output = output / (output.max() - output.min() + np.float32(1e-9))
        normalised.append(output)
        scores, shares = [], []
        for t in thresholds:
            above = [float(value) for value in output.ravel() if float(value) > t]
            scores.append(sum(above) / len(above) if above else 0.0)
            shares.append(len(above) / output.size)
        score_grad = medfilt(np.abs(np.gradient(scores, thresholds)), 5)
        share_grad = medfilt(np.abs(np.gradient(shares, thresholds)), 5)
        runs: list[tuple[int, int]] = []
        start = None
        for k in range(len(thresholds)):
            fine = score_grad[k] < steepest and share_grad[k] < steepest and smallest < shares[k] < largest
            if fine and start is None:
                start = k
            if not fine and start is not None:
                if k - start >= 5:
                    runs.append((start, k))
                start = None
        if start is not None and len(thresholds) - start >= 5:
            runs.append((start, len(thresholds) - 1))
        if not runs:
            slopes.append(999.0)
            chosen.append(0.5)
            continue
        a, b = runs[-1]
        slopes.append((scores[b] - scores[a]) / (thresholds[b] - thresholds[a] + 1e-9))
        chosen.append((thresholds[a] + thresholds[b]) / 2)
    level = slopes.index(min(slopes))
    cut = np.array([[float(value) > chosen[level] for value in row] for row in normalised[level]])
    return looped_majority(cut), level, chosen[level]


@FEW
@given(seed=SEEDS, size=SIZES, kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=2))
@pytest.mark.parametrize("stability", [stable.SCRIPT, stable.EVALUATOR_DEFAULTS])
def test_occam_masks(stability: stable.Stability, seed: int, size: tuple[int, int], kinds: list[str]) -> None:
    rng = np.random.default_rng(seed)
    maps = np.stack([heat(rng, kind, size) for kind in kinds])
    wanted, level, threshold = reference(maps, stability.steepest, stability.smallest, stability.largest)
    result = stable.predict_mask(maps, stability)
    assert (result.level, result.threshold) == (level, pytest.approx(threshold, abs=1e-12))
    assert np.array_equal(result.mask, wanted)


def test_the_two_published_settings() -> None:
    assert (stable.SCRIPT.steepest, stable.SCRIPT.smallest, stable.SCRIPT.largest) == (0.4, 0.005, 0.9)
    assert stable.Stability(0.3, 0.001, 0.95) == stable.EVALUATOR_DEFAULTS
    assert len(stable.THRESHOLDS) == 99


def test_the_last_stable_run_is_taken_with_the_threshold_after_it() -> None:
    values = np.zeros((20, 20), np.float32)
    values[:4], values[4:8] = 1.0, np.linspace(0.4, 0.6, 80, dtype=np.float32).reshape(4, 20)
    found = stable.search(values)  # stable below 0.4 and above 0.6
    assert found.found and 0.78 < found.threshold < 0.82
    # Two steps only: the median does not see them. But the upper fifth alone is too small here.
    values[4:8] = 0.503
    assert stable.search(values).threshold == pytest.approx(0.5)
    lower = stable.search(values, stable.Stability(0.4, 0.25, 0.9))
    # Thresholds 0.01 .. 0.50 give two fifths; 0.51 is the first that does not.
    assert lower.threshold == pytest.approx((0.01 + 0.51) / 2)
    assert lower.slope == pytest.approx((1.0 - (1 + 0.503) / 2) / 0.5, rel=1e-6)
    assert stable.THRESHOLDS[49] == 0.5
    values[4:8] = 0.5  # does not exceed 0.5
    assert stable.search(values, stable.Stability(0.4, 0.25, 0.9)).threshold == pytest.approx((0.01 + 0.5) / 2)


def test_maps_without_a_stable_threshold_are_cut_at_half_their_range() -> None:
    flat = stable.predict_mask(np.full((1, 12, 12), 0.7, np.float32))
    assert not flat.found and flat.never_valid and flat.threshold == 0.5 and not flat.mask.any()
    speck = np.zeros((1, 30, 30), np.float32)
    speck[0, 4, 5] = 1.0  # less than 0.5 % of the picture
    result = stable.predict_mask(speck)
    assert result.never_valid and not result.found and result.level == 0
    ramp = np.tile(np.linspace(0, 1, 50, dtype=np.float32), (1, 40, 1))  # the share falls by 1 per unit of threshold
    result = stable.predict_mask(ramp)
    assert not result.found and not result.never_valid and result.threshold == 0.5


def test_a_level_with_a_stable_run_comes_before_one_without() -> None:
    ramp = np.tile(np.linspace(0, 1, 50, dtype=np.float32), (40, 1))
    block = np.zeros((40, 50), np.float32)
    block[10:25, 10:30] = 1.0
    result = stable.predict_mask(np.stack([ramp, block]))
    assert result.level == 1 and result.mask[15, 15] and not result.mask[2, 45]
    assert stable.predict_mask(np.stack([block, block])).level == 0, "the first of equals"


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_occam_relevancy_must_be_finite(bad: float) -> None:
    maps = np.zeros((1, 6, 6), np.float32)
    maps[0, 1, 1] = bad
    with pytest.raises(ValueError, match="NaN or infinity"):
        stable.predict_mask(maps)
    with pytest.raises(ValueError, match="levels, height, width"):
        stable.predict_mask(np.zeros((6, 6)))
    labels = ViewLabels("07", ("cup",), (6, 6), np.ones((1, 6, 6), bool))
    with pytest.raises(BenchmarkError, match=r"07.*NaN"):
        single.StableScorer().add(labels, ViewPrediction(relevancy={"cup": maps}))


@settings(max_examples=10, deadline=None)
@given(seed=SEEDS, size=SIZES)
def test_occam_scene_figures(seed: int, size: tuple[int, int]) -> None:
    rng = np.random.default_rng(seed)
    scorer, ious = single.StableScorer(), []
    names = ("cup", "hat", "egg")
    for number in range(2):
        label = np.stack([mask(rng, str(rng.choice(MASKS)), size) for _ in names])  # absent classes too
        maps = {name: heat(rng, str(rng.choice(KINDS)), size)[None] for name in names[number:]}
        scorer.add(ViewLabels(f"{number:02d}", names, size, label), ViewPrediction(relevancy=maps))
        for name, wanted in zip(names, label, strict=True):
            if name not in maps:
                ious.append(0.0)
                continue
            final = reference(maps[name], 0.4, 0.005, 0.9)[0]
            ious.append((final & wanted).sum() / ((final | wanted).sum() + 1e-9))
    result = scorer.result()
    assert result.figures["miou"] == pytest.approx(sum(ious) / len(ious), abs=1e-6)
    assert result.figures["num_pairs"] == 6 and "accuracy" not in result.figures
    assert result.notes[0] == "1 of 6 pairs have no prediction and count 0"


def test_any_grey_is_foreground_for_occam(tmp_path: Path) -> None:
    (tmp_path / "00").mkdir()
    (tmp_path / "classes.txt").write_text("cup\n")
    Image.fromarray(np.array([[0, 1, 128, 254, 255]], np.uint8).repeat(4, 0)).save(tmp_path / "00" / "cup.png")
    protocol = BENCHMARKS["3d-ovs"]
    strict, loose = (protocol.under(rule).open_labels(tmp_path, None).load("00").masks for rule in ("3d-ovs", "occam"))
    assert strict is not None and loose is not None
    assert strict[0, 0].tolist() == [False] * 4 + [True] and loose[0, 0].tolist() == [False] + [True] * 4
    assert isinstance(protocol.under("occam-defaults").open_labels(tmp_path, None), IndicatorLabels)


# --- OpenGaussian -----------------------------------------------------------------------------------------------------


@FEW
@given(seed=SEEDS, size=SIZES)
def test_opengaussian_scene_figures(seed: int, size: tuple[int, int]) -> None:
    rng = np.random.default_rng(seed)
    scorer, ious = single.SilhouetteScorer(), []
    for number in range(3):
        names = tuple(f"thing {k}" for k in range(number + 1))
        label = np.stack([mask(rng, str(rng.choice(MASKS)), size) for _ in names])
        pred = {name: mask(rng, str(rng.choice(MASKS)), size) for name in names[: 1 if number == 2 else None]}
        scorer.add(ViewLabels(f"frame_{number}", names, size, label), ViewPrediction(masks=pred))
        for name, wanted in zip(names, label, strict=True):
            both = either = 0
            for p, g in zip(pred[name].ravel(), wanted.ravel(), strict=True) if name in pred else ():
                both, either = both + (p and g), either + (p or g)
            ious.append(both / either if either else 0.0)
    figures = scorer.result().figures
    assert figures["miou"] == pytest.approx(sum(ious) / 6, abs=1e-6)
    assert figures["acc_25"] == pytest.approx(sum(1 for iou in ious if iou > 0.25) / 6, abs=1e-6)
    assert figures["acc_50"] == pytest.approx(sum(1 for iou in ious if iou > 0.5) / 6, abs=1e-6)


def test_a_quarter_is_not_above_a_quarter() -> None:
    label = np.zeros((3, 4, 4), bool)
    label[:, 0] = True
    pred = np.zeros((3, 4, 4), bool)
    pred[0, 0, 0], pred[1, 0, :2], pred[2, 0, :3] = True, True, True
    names = ("a", "b", "c")
    scorer = single.SilhouetteScorer()
    scorer.add(ViewLabels("v", names, (4, 4), label), ViewPrediction(masks=dict(zip(names, pred, strict=True))))
    figures = scorer.result().figures
    assert figures["miou"] == 0.5
    assert figures["acc_25"] == pytest.approx(2 / 3) and figures["acc_50"] == pytest.approx(1 / 3)
    with pytest.raises(BenchmarkError, match=r"'a' is \(2, 4\)"):
        single.SilhouetteScorer().add(
            ViewLabels("v", ("a",), (4, 4), label[:1]), ViewPrediction(masks={"a": pred[0, :2]})
        )


def test_renders_are_read_as_their_evaluator_reads_them(tmp_path: Path) -> None:
    grey = np.array([[0, 10, 11, 200]], np.uint8).repeat(3, 0)
    Image.fromarray(grey).save(tmp_path / "frame_00041_old camera.png")
    Image.fromarray(np.dstack([grey] * 3)).save(tmp_path / "frame_00041_waldo.png")  # torchvision writes three channels
    read = read_prediction(tmp_path, "frame_00041", "silhouettes", ["old camera", "waldo", "bag"])
    assert read is not None and read.masks is not None and list(read.masks) == ["old camera", "waldo"]
    for each in read.masks.values():
        assert each[0].tolist() == [False, False, True, True]
    assert read_prediction(tmp_path, "frame_00042", "silhouettes", ["bag"]) is None
    np.savez(tmp_path / "frame_00043.npz", phrases=np.array(["bag"]), masks=grey[None])
    packed = read_prediction(tmp_path, "frame_00043", "silhouettes", ["bag"])
    assert packed is not None and packed.masks is not None
    assert packed.masks["bag"][0].tolist() == [False, False, True, True]


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS)
def test_polygons_come_back_unchanged_from_the_jpegs_that_their_evaluator_reads(seed: int) -> None:
    rng = np.random.default_rng(seed)
    angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 40)))
    radii = rng.uniform(3, 60, 2) * rng.uniform(0.5, 1, (len(angles), 1))
    ring = np.stack([np.cos(angles), np.sin(angles)], axis=1) * radii + rng.uniform(0, 150, 2)
    drawn = fill_polygon(ring, (150, 200))
    encoded = cv2.imencode(".jpg", drawn.astype(np.uint8) * 255)[1]
    with Image.open(io.BytesIO(encoded.tobytes())) as picture:
        assert np.array_equal(np.asarray(picture) > SILHOUETTE_ABOVE, drawn)


def test_folders_are_scored_by_rule(tmp_path: Path) -> None:
    """Grey renders of OpenGaussian against polygons, through the registry."""
    labels, predictions = tmp_path / "label" / "ramen", tmp_path / "renders"
    labels.mkdir(parents=True)
    predictions.mkdir()
    (labels / "frame_00006.json").write_text(
        '{"info": {"name": "frame_00006.jpg", "width": 40, "height": 30}, "objects": [{"category": "egg", '
        '"segmentation": [[8, 8], [23, 8], [23, 23], [8, 23]], "bbox": [8, 8, 23, 23]}]}'
    )
    render = np.zeros((30, 40), np.uint8)
    render[8:24, 8:24] = 11
    Image.fromarray(render).save(predictions / "frame_00006_egg.png")
    protocol = BENCHMARKS["lerf-ovs"].under("opengaussian")
    result = score_folder(protocol, predictions, protocol.open_labels(labels, None), "opengaussian")
    assert result.figures["miou"] > 0.9 and result.figures["acc_50"] == 1.0
    with pytest.raises(BenchmarkError, match="no rule 'opengaussian'"):
        BENCHMARKS["3d-ovs"].under("opengaussian")
