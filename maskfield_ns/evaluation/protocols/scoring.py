"""Scorers: labels and predictions view by view, the figures of the scene at the end, averaged as each protocol does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from maskfield_ns.errors import BenchmarkError
from maskfield_ns.evaluation.metrics import binary_iou, localisation_hit
from maskfield_ns.evaluation.protocols import classes as class_rules
from maskfield_ns.evaluation.protocols import threshold
from maskfield_ns.evaluation.protocols.labels import ViewLabels, nearest
from maskfield_ns.evaluation.protocols.masks import boundary_iou
from maskfield_ns.evaluation.protocols.predictions import ViewPrediction


@dataclass(frozen=True)
class Case:
    """One answer beside its label, for pictures of what went wrong."""

    view: str
    what: str
    """Phrase or class."""
    score: float
    """IoU in [0, 1]."""
    pred: np.ndarray
    """bool [H, W]"""
    label: np.ndarray
    """bool [H, W]"""


@dataclass
class SceneScore:
    """Everything known about one scene, JSON-serialisable; figures are in [0, 1], undefined ones are left out."""

    figures: dict[str, float]
    classes: dict[str, dict[str, float]]
    views: dict[str, dict[str, Any]]
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Plain dictionaries."""
        return {"figures": self.figures, "classes": self.classes, "views": self.views, "notes": self.notes}


OnCase = Callable[[Case], None]


class Scorer:
    """Base: keeps rows per view, leaves the rest to the protocols."""

    def __init__(self, on_case: OnCase | None = None) -> None:
        self._on_case = on_case or (lambda case: None)
        self._views: dict[str, dict[str, Any]] = {}

    def add(self, labels: ViewLabels, prediction: ViewPrediction | None) -> None:
        """Scores one view; None: nothing was predicted for it.

        Raises:
            BenchmarkError: a prediction that does not fit the labels or has NaN; a view added twice.
        """
        if labels.view in self._views:
            raise BenchmarkError(f"the view {labels.view} was scored twice")
        try:
            self._views[labels.view] = self._score(labels, prediction)
        except ValueError as error:
            raise BenchmarkError(f"view {labels.view}: {error}") from error

    def result(self) -> SceneScore:
        """The scene's figures.

        Raises:
            BenchmarkError: no view was added.
        """
        if not self._views:
            raise BenchmarkError("no view was scored")
        return self._result()

    def _score(self, labels: ViewLabels, prediction: ViewPrediction | None) -> dict[str, Any]:
        raise NotImplementedError

    def _result(self) -> SceneScore:
        raise NotImplementedError

    def _pairs(self, key: str) -> dict[str, list[Any]]:
        """Per phrase the values of all views that have it, None included."""
        table: dict[str, list[Any]] = {}
        for row in self._views.values():
            for what, values in row["classes"].items():
                table.setdefault(what, []).append(values[key])
        return table


class QueryScorer(Scorer):
    """LERF-OVS and Mip-NeRF360: one threshold mask and one place per (view, category); plain means over all pairs."""

    def __init__(self, smoothing: threshold.Smoothing = "langsplat", on_case: OnCase | None = None) -> None:
        super().__init__(on_case)
        self.smoothing: threshold.Smoothing = smoothing

    def _score(self, labels: ViewLabels, prediction: ViewPrediction | None) -> dict[str, Any]:
        assert labels.masks is not None
        maps = prediction.relevancy if prediction is not None and prediction.relevancy is not None else {}
        rows: dict[str, Any] = {}
        for phrase, label, boxes in zip(labels.phrases, labels.masks, labels.boxes, strict=True):
            relevancy = maps.get(phrase)
            if relevancy is None:
                rows[phrase] = {"iou": 0.0, "hit": False, "level": None, "missing": True}
                self._on_case(Case(labels.view, phrase, 0.0, np.zeros_like(label), label))
                continue
            if relevancy.shape[1:] != labels.size:
                raise ValueError(f"relevancy of {phrase!r} is {relevancy.shape[1:]}, the labels are {labels.size}")
            mask, level = threshold.predict_mask(relevancy, self.smoothing)
            hit = localisation_hit(threshold.locate(relevancy, self.smoothing), boxes)
            iou = binary_iou(mask, label)
            rows[phrase] = {"iou": 0.0 if iou is None else iou, "hit": hit, "level": level}
            if iou is None:
                rows[phrase]["empty"] = True
            self._on_case(Case(labels.view, phrase, rows[phrase]["iou"], mask, label))
        return {
            "figures": defined(
                {
                    "miou": mean_of([row["iou"] for row in rows.values()]),
                    "localisation_accuracy": mean_of([float(row["hit"]) for row in rows.values()]),
                }
            ),
            "classes": rows,
        }

    def _result(self) -> SceneScore:
        rows = [row for view in self._views.values() for row in view["classes"].values()]
        ious, hits = self._pairs("iou"), self._pairs("hit")
        figures = {
            "miou": mean_of([row["iou"] for row in rows]),
            "localisation_accuracy": mean_of([float(row["hit"]) for row in rows]),
            "num_pairs": float(len(rows)),
            "num_views": float(len(self._views)),
        }
        table = {
            phrase: defined(
                {
                    "iou": mean_of(ious[phrase]),
                    "localisation_accuracy": mean_of([float(hit) for hit in hits[phrase]]),
                    "num_views": float(len(ious[phrase])),
                }
            )
            for phrase in ious
        }
        notes = missing_note(rows)
        empty = sum(1 for row in rows if row.get("empty"))
        if empty:
            notes.append(f"{empty} pairs have neither label nor answer and count 0 (the published code has 0/0 there)")
        return SceneScore(defined(figures), table, self._views, notes)


class MaskScorer(Scorer):
    """LERF-Mask: IoU and boundary IoU per (view, prompt); mean over views per prompt, then over prompts."""

    def _score(self, labels: ViewLabels, prediction: ViewPrediction | None) -> dict[str, Any]:
        assert labels.masks is not None
        masks = prediction.masks if prediction is not None and prediction.masks is not None else {}
        rows: dict[str, Any] = {}
        for phrase, label in zip(labels.phrases, labels.masks, strict=True):
            given = masks.get(phrase)
            pred = np.zeros_like(label) if given is None else nearest(given, labels.size)
            iou, edge = binary_iou(pred, label), boundary_iou(pred, label)
            rows[phrase] = {"iou": iou, "boundary_iou": edge} | ({"missing": True} if given is None else {})
            if given is None:
                rows[phrase] |= {"iou": 0.0, "boundary_iou": 0.0}
            if iou is not None:
                self._on_case(Case(labels.view, phrase, iou, pred, label))
        figures = {
            "miou": mean_of([row["iou"] for row in rows.values()]),
            "mbiou": mean_of([row["boundary_iou"] for row in rows.values()]),
        }
        return {"figures": defined(figures), "classes": rows}

    def _result(self) -> SceneScore:
        ious, edges = self._pairs("iou"), self._pairs("boundary_iou")
        rows = [row for view in self._views.values() for row in view["classes"].values()]
        table = {
            phrase: defined(
                {
                    "iou": mean_of(ious[phrase]),
                    "boundary_iou": mean_of(edges[phrase]),
                    "num_views": float(len(ious[phrase])),
                }
            )
            for phrase in ious
        }
        figures = defined(
            {
                "miou": mean_of([row.get("iou") for row in table.values()]),
                "mbiou": mean_of([row.get("boundary_iou") for row in table.values()]),
                "num_pairs": float(len(rows)),
                "num_views": float(len(self._views)),
            }
        )
        notes = missing_note(rows)
        empty = sum(1 for row in rows if row["iou"] is None)
        if empty:
            notes.append(f"{empty} pairs have neither label nor answer and are left out (the published code has NaN)")
        return SceneScore(figures, table, self._views, notes)


class IndicatorScorer(Scorer):
    """3D-OVS: argmax over the scene's classes; mean over classes and views, absent classes included as 0."""

    def __init__(self, rule: str = "3d-ovs", on_case: OnCase | None = None) -> None:
        super().__init__(on_case)
        if rule not in ("3d-ovs", "maskfield"):
            raise ValueError(f"unknown rule {rule!r}")
        self.rule = rule

    def _score(self, labels: ViewLabels, prediction: ViewPrediction | None) -> dict[str, Any]:
        assert labels.masks is not None
        pred = _class_map(labels, prediction, self.rule)
        score = class_rules.indicator_score(pred, labels.masks)
        rows = {
            phrase: {"iou": float(iou)} | ({"empty": True} if index in score.undefined else {})
            for index, (phrase, iou) in enumerate(zip(labels.phrases, score.iou, strict=True))
        }
        for index, phrase in enumerate(labels.phrases):
            if labels.masks[index].any():
                self._on_case(Case(labels.view, phrase, float(score.iou[index]), pred == index, labels.masks[index]))
        return {"figures": {"miou": float(score.iou.mean()), "accuracy": score.accuracy}, "classes": rows}

    def _result(self) -> SceneScore:
        views = self._views.values()
        ious = self._pairs("iou")
        figures = {
            "miou": mean_of([view["figures"]["miou"] for view in views]),
            "accuracy": mean_of([view["figures"]["accuracy"] for view in views]),
            "num_pairs": float(sum(len(values) for values in ious.values())),
            "num_views": float(len(self._views)),
        }
        empty = sum(1 for view in views for row in view["classes"].values() if row.get("empty"))
        notes = [f"{empty} (view, class) pairs have neither label nor answer and count 0"] if empty else []
        table = {phrase: defined({"iou": mean_of(values)}) for phrase, values in ious.items()}
        return SceneScore(defined(figures), table, self._views, notes)


class ConfusionScorer(Scorer):
    """Replica and ScanNet: figures per image, then their mean (OV-NeRF), or of one matrix (Semantic-NeRF).

    Both are computed; ``rule`` says which are called ``miou`` and ``accuracy``, the others get a suffix.
    """

    def __init__(self, names: Sequence[str], rule: str = "ov-nerf", on_case: OnCase | None = None) -> None:
        super().__init__(on_case)
        if rule not in ("ov-nerf", "semantic-nerf"):
            raise ValueError(f"unknown rule {rule!r}")
        self.names, self.rule = tuple(names), rule
        self._total = np.zeros((len(self.names), len(self.names)), np.int64)

    def _score(self, labels: ViewLabels, prediction: ViewPrediction | None) -> dict[str, Any]:
        assert labels.index is not None
        pred = _class_map(labels, prediction, "argmax")
        matrix = class_rules.confusion(pred, labels.index, len(self.names))
        score = class_rules.confusion_score(matrix)
        self._total = self._total + matrix
        for index in np.flatnonzero(matrix.sum(axis=1)).tolist():
            label = labels.index == index
            self._on_case(Case(labels.view, self._name(index), score.iou[index], pred == index, label))
        figures = {"miou": score.miou, "accuracy": score.accuracy, "class_accuracy": score.class_accuracy}
        return {
            "figures": defined(figures),
            "classes": {self._name(index): {"iou": iou} for index, iou in score.iou.items()},
        }

    def _result(self) -> SceneScore:
        views = [view["figures"] for view in self._views.values()]
        whole = class_rules.confusion_score(self._total)
        by_image = {key: mean_of([view.get(key) for view in views]) for key in ("miou", "accuracy")}
        at_once = {
            "miou": whole.miou,
            "accuracy": whole.accuracy,
            "miou_labelled": whole.miou_labelled,
            "class_accuracy": whole.class_accuracy,
        }
        first, second, name = (
            (by_image, at_once, "_whole") if self.rule == "ov-nerf" else (at_once, by_image, "_by_image")
        )
        figures = first | {f"{key}{name}": value for key, value in second.items()}
        figures |= {"num_views": float(len(views))}
        bare = [name for name, view in self._views.items() if not view["figures"]]
        notes = [f"{len(bare)} views have no labelled pixel and are left out: {', '.join(bare)}"] if bare else []
        table = {self._name(index): {"iou": iou} for index, iou in whole.iou.items()}
        return SceneScore(defined(figures), table, self._views, notes)

    def _name(self, index: int) -> str:
        return self.names[index].strip() or "void"


def _class_map(labels: ViewLabels, prediction: ViewPrediction | None, rule: str) -> np.ndarray:
    if prediction is None:
        raise ValueError("there is no prediction: expected <view>.png, .npy or .npz")
    if prediction.scores is not None:
        if len(prediction.scores) != len(labels.phrases):
            raise ValueError(f"{len(prediction.scores)} score maps for {len(labels.phrases)} classes")
        rules = class_rules.maskfield_classes if rule == "maskfield" else class_rules.argmax
        pred = rules(prediction.scores)
    elif prediction.classes is not None and rule != "maskfield":
        pred = prediction.classes
    else:
        raise ValueError("MaskField's rule smooths class scores: class ids are not enough")
    if pred.shape != labels.size:
        raise ValueError(f"the prediction is {pred.shape}, the labels are {labels.size}")
    return pred


def missing_note(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What a user should know about pairs without a prediction."""
    missing = sum(1 for row in rows if row.get("missing"))
    return [f"{missing} of {len(rows)} pairs have no prediction and count 0"] if missing else []


def mean_of(values: Sequence[float | None]) -> float | None:
    """Mean of what is defined; None when nothing is."""
    given = [value for value in values if value is not None]
    return float(np.mean(given)) if given else None


def defined(figures: dict[str, float | None]) -> dict[str, float]:
    """Without what is None."""
    return {key: value for key, value in figures.items() if value is not None}
