"""Scene figures on a small scene worked out by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from maskfield_ns.errors import CaptureError
from maskfield_ns.evaluation.labels import LabelledCapture
from maskfield_ns.evaluation.report import SegmentationReport

H, W = 10, 20


def _capture(root: Path) -> LabelledCapture:
    """View a: table left half (100 px), mug right half (100 px). View b: table everywhere but 4 px of mug."""
    a, b = np.full((H, W), 1, np.uint8), np.full((H, W), 1, np.uint8)
    a[:, 10:] = 2
    b[0, :4] = 2
    (root / "gt/instance").mkdir(parents=True)
    labels = {
        "1": {"name": "table", "class": "table", "queries": ["table"]},
        "2": {"name": "mug", "class": "mug", "queries": ["red mug"]},
        "3": {"name": "ghost", "class": "ghost", "queries": ["ghost"]},
    }
    (root / "gt/labels.json").write_text(json.dumps(labels))
    for name, ids in (("a", a), ("b", b), ("c", np.zeros((H, W), np.uint8))):
        Image.fromarray(ids).save(root / f"gt/instance/{name}.png")
    capture = LabelledCapture.load(root)
    assert capture is not None
    return capture


def _columns(start: int, stop: int) -> np.ndarray:
    mask = np.zeros((H, W), bool)
    mask[:, start:stop] = True
    return mask


def _view(labels: LabelledCapture, **changes: Any) -> dict[str, Any]:
    """Answers: table = columns 0..10, mug = columns 15..20, ghost = nothing; classes by the same halves."""
    masks = {"table": _columns(0, 10), "red mug": _columns(15, 20), "ghost": _columns(0, 0)}
    view: dict[str, Any] = {
        "phrase_masks": masks,
        "phrase_relevancy": {phrase: mask.astype(np.float32) for phrase, mask in masks.items()},
        "class_map": np.where(_columns(0, 15), 0, 1),
        "labels": labels,
    }
    return view | changes


def test_figures_by_hand(tmp_path: Path) -> None:
    labels, report = _capture(tmp_path), SegmentationReport()
    report.add_view("images/a.jpg", **_view(labels))
    report.add_view("images/b.jpg", **_view(labels))
    summary = report.summary()
    # a: table 100/100, mug 50/100. b: table has 196 px: 96 shared (4 are mug), union 200; mug has 4 px: no pair.
    assert summary["num_pairs"] == 3
    assert summary["iou/table"] == pytest.approx((1 + 96 / 200) / 2)
    assert summary["iou/red mug"] == pytest.approx(0.5)
    assert summary["query_miou"] == pytest.approx((1 + 0.5 + 96 / 200) / 3)
    # Pooled, the mug's 50 false pixels of view b count: intersection 50 + 0, union 100 + 54. No ghost anywhere.
    assert summary["query_miou_pooled"] == pytest.approx(((100 + 96) / (100 + 200) + 50 / 154) / 2)
    # LERF's box of the table in b is the whole picture; strictly, 4 of the peak's pixels lie on the mug.
    assert summary["localisation_accuracy"] == 1.0
    assert summary["localisation_accuracy_strict"] == pytest.approx(2 / 3)
    # Classes: columns 0..15 are called table. Table: hits 100 + 146, missed 50, wrongly 50 + 4.
    assert summary["class_iou/table"] == pytest.approx(246 / (246 + 50 + 54))
    assert summary["class_iou/mug"] == pytest.approx(50 / (50 + 54 + 50))
    assert summary["class_miou"] == pytest.approx((246 / 350 + 50 / 154) / 2)
    assert summary["pixel_accuracy"] == pytest.approx(296 / 400)
    assert "iou/ghost" not in summary
    assert "class_iou/ghost" not in summary
    assert all(type(value) is float and math.isfinite(value) for value in summary.values())


def test_json_has_every_view_and_phrase(tmp_path: Path) -> None:
    labels, report = _capture(tmp_path), SegmentationReport()
    report.add_view("images/a.jpg", **_view(labels))
    report.add_view("images/b.jpg", **_view(labels))
    content = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert content["summary"] == report.summary()
    assert content["classes_without_pixels"] == ["ghost"]
    assert content["views"]["images/b.jpg"]["phrases"]["red mug"] == {"iou": 0.0, "counted": False, "label_pixels": 4}
    assert content["views"]["images/a.jpg"]["phrases"]["red mug"] == {
        "iou": 0.5,
        "counted": True,
        "label_pixels": 100,
        "localised": True,
        "localised_strict": True,
    }
    assert content["views"]["images/a.jpg"]["query_miou"] == pytest.approx(0.75)
    assert content["phrases"]["ghost"] == {"ids": [3], "pairs": 0}


def test_min_pixels_decides_what_a_pair_is(tmp_path: Path) -> None:
    labels = _capture(tmp_path)
    for min_pixels, pairs in ((4, 2), (5, 1), (197, 0)):
        report = SegmentationReport(min_pixels)
        report.add_view("b.jpg", **_view(labels))
        assert report.summary()["num_pairs"] == pairs
    assert not {"query_miou", "localisation_accuracy"} & set(report.summary())  # over nothing: left out
    with pytest.raises(ValueError, match="min_pixels"):
        SegmentationReport(0)


def test_false_positive_of_a_phrase_that_is_nowhere_costs_in_the_pool(tmp_path: Path) -> None:
    labels, report = _capture(tmp_path), SegmentationReport()
    view = _view(labels)
    view["phrase_masks"] = view["phrase_masks"] | {"ghost": _columns(3, 4)}
    report.add_view("a.jpg", **view)
    assert report.summary()["query_miou_pooled"] == pytest.approx((1 + 0.5 + 0) / 3)
    assert report.summary()["query_miou"] == pytest.approx(0.75)


def test_nothing_labelled_and_no_view_give_no_figures(tmp_path: Path) -> None:
    report = SegmentationReport()
    assert report.summary() == {"num_pairs": 0.0}
    labels = _capture(tmp_path)
    nothing = {phrase: _columns(0, 0) for phrase, _ in labels.phrases()}
    report.add_view("c.jpg", **_view(labels, phrase_masks=nothing))
    assert report.summary() == {"num_pairs": 0.0}
    json.dumps(report.to_json(), allow_nan=False)


def test_evaluates_at_the_resolution_of_the_results(tmp_path: Path) -> None:
    labels, report = _capture(tmp_path), SegmentationReport(min_pixels=1)
    half = {phrase: mask[::2, ::2] for phrase, mask in _view(labels)["phrase_masks"].items()}
    relevancy = {phrase: mask.astype(float) for phrase, mask in half.items()}
    report.add_view(
        "a.jpg", phrase_masks=half, phrase_relevancy=relevancy, class_map=np.zeros((5, 10), int), labels=labels
    )
    assert report.summary()["iou/table"] == 1.0
    assert report.to_json()["views"]["a.jpg"]["phrases"]["table"]["label_pixels"] == 25


def test_refusals_leave_the_report_unchanged(tmp_path: Path) -> None:
    labels, report = _capture(tmp_path / "one"), SegmentationReport()
    report.add_view("a.jpg", **_view(labels))
    before = report.to_json()
    good = _view(labels)
    nan = {phrase: np.full((H, W), np.nan) for phrase in good["phrase_masks"]}
    cases: list[tuple[str, dict[str, Any], type[Exception], str]] = [
        ("a.jpg", {}, ValueError, "already added"),
        ("b.jpg", {"phrase_masks": {"table": _columns(0, 1)}}, ValueError, r"masks missing.*ghost.*red mug"),
        ("b.jpg", {"phrase_relevancy": good["phrase_relevancy"] | {"cat": nan["table"]}}, ValueError, "excess.*cat"),
        ("b.jpg", {"phrase_relevancy": nan}, ValueError, "NaN"),
        ("b.jpg", {"class_map": np.zeros((H, W + 1), int)}, ValueError, r"not \(10, 21\)"),
        ("b.jpg", {"class_map": np.full((H, W), 3)}, ValueError, "outside the 3 classes"),
        ("d.jpg", {}, CaptureError, r"d\.png"),
    ]
    for name, changes, kind, message in cases:
        with pytest.raises(kind, match=message):
            report.add_view(name, **(good | changes))
    other = _capture(tmp_path / "two")
    object.__setattr__(other, "labels", other.labels[:2])
    with pytest.raises(ValueError, match="share their labels"):
        report.add_view("b.jpg", **_view(other))
    assert report.to_json() == before
