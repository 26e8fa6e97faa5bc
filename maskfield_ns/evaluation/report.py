"""From per-view results to the figures of a scene."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from maskfield_ns.evaluation import metrics
from maskfield_ns.evaluation.labels import LabelledCapture


@dataclass(frozen=True)
class _PhraseResult:
    """One phrase in one view."""

    label_pixels: int
    intersection: int
    union: int
    hit: bool | None
    """LERF localisation; None when the object is too small in the view to count as a pair."""
    strict_hit: bool | None

    @property
    def is_pair(self) -> bool:
        return self.hit is not None

    @property
    def iou(self) -> float | None:
        return self.intersection / self.union if self.union else None


class SegmentationReport:
    """Accumulates counts view by view; holds no pictures.

    Figures of :meth:`summary`, all in [0, 1] but the count; an undefined one is left out, so nothing is ever NaN:

    - ``query_miou``: plain mean of the IoU over pairs (view, phrase), the averaging of LERF-OVS. A pair exists when
      the phrase's objects cover at least ``min_pixels`` pixels of the view at the evaluated resolution.
    - ``query_miou_pooled``: per phrase, intersections and unions are summed over all views, then the mean over
      phrases. Here a mask in a view without the object costs.
    - ``localisation_accuracy``: share of pairs in which a pixel of highest relevancy lies in the box of an object
      (LERF's test, one box per labelled object); ``localisation_accuracy_strict``: all of them lie on the object.
    - ``class_miou`` and ``pixel_accuracy``: from one confusion matrix over the labelled pixels of all views.
    - ``num_pairs``: how many pairs there are (0 if none).
    - ``iou/<phrase>``: mean over that phrase's pairs; ``class_iou/<class>``.
    """

    def __init__(self, min_pixels: int = 20) -> None:
        if min_pixels < 1:
            raise ValueError("min_pixels must be at least 1: an object without pixels cannot be found")
        self.min_pixels = min_pixels
        self._classes: list[str] | None = None
        self._phrases: list[tuple[str, set[int]]] = []
        self._confusion = np.zeros((0, 1), np.int64)
        self._views: dict[str, dict[str, _PhraseResult]] = {}
        self._view_confusions: dict[str, np.ndarray] = {}

    def add_view(
        self,
        name: str,
        *,
        phrase_masks: Mapping[str, Bool[np.ndarray, "H W"]],
        phrase_relevancy: Mapping[str, Float[np.ndarray, "H W"]],
        class_map: Int[np.ndarray, "H W"],
        labels: LabelledCapture,
    ) -> None:
        """Score one view against its labels, at the resolution of the results.

        Args:
            name: path of the image, as :meth:`LabelledCapture.instances` takes it.
            phrase_masks: the answer to every phrase of ``labels.phrases()``, and to no other.
            phrase_relevancy: the same keys.
            class_map: index into ``labels.classes()``, -1 for none.
            labels: the same for all views.

        Raises:
            CaptureError: from the labels.
            ValueError: phrases missing or in excess, sizes that differ, NaN relevancy, classes out of range, a view
                added twice, or labels other than those of earlier views. The report is then unchanged.
        """
        classes, phrases = labels.classes(), labels.phrases()
        if self._classes is not None and (classes, phrases) != (self._classes, self._phrases):
            raise ValueError("all views of one report must share their labels")
        if name in self._views:
            raise ValueError(f"the view {name} was already added")
        expected = {phrase for phrase, _ in phrases}
        for what, given in (("masks", phrase_masks), ("relevancy", phrase_relevancy)):
            if set(given) != expected:
                raise ValueError(f"view {name}: {what} missing or in excess for {sorted(set(given) ^ expected)}")
            for phrase, values in given.items():
                if values.shape != class_map.shape:
                    raise ValueError(f"view {name}: {what} of {phrase!r} is {values.shape}, not {class_map.shape}")
                if np.isnan(values).any():
                    raise ValueError(f"view {name}: {what} of {phrase!r} has NaN")
        size = (class_map.shape[0], class_map.shape[1])

        ids = labels.instances(name, size)
        results = {
            phrase: self._score(ids, wanted, phrase_masks[phrase], phrase_relevancy[phrase])
            for phrase, wanted in phrases
        }
        confusion = metrics.confusion_matrix(class_map, labels.class_map(name, size), len(classes))

        if self._classes is None:
            self._classes, self._phrases, self._confusion = classes, phrases, np.zeros_like(confusion)
        self._confusion = self._confusion + confusion
        self._views[name] = results
        self._view_confusions[name] = confusion

    def summary(self) -> dict[str, float]:
        """The scene's figures; see the class."""
        pairs = [result for results in self._views.values() for result in results.values() if result.is_pair]
        per_phrase = self._per_phrase()
        classes = metrics.mean_iou(self._confusion)
        figures: dict[str, float | None] = {
            "query_miou": _mean(result.iou for result in pairs),
            "query_miou_pooled": _mean(entry["iou_pooled"] for entry in per_phrase.values()),
            "localisation_accuracy": _mean(result.hit for result in pairs),
            "localisation_accuracy_strict": _mean(result.strict_hit for result in pairs),
            "class_miou": classes.mean,
            "pixel_accuracy": metrics.pixel_accuracy(self._confusion),
            "num_pairs": float(len(pairs)),
        }
        figures |= {f"iou/{phrase}": entry["iou"] for phrase, entry in per_phrase.items()}
        figures |= {f"class_iou/{(self._classes or [])[index]}": iou for index, iou in classes.per_class.items()}
        return {key: value for key, value in figures.items() if value is not None}

    def to_json(self) -> dict[str, Any]:
        """Everything as one JSON-serialisable dictionary: the summary, each phrase, each view; no NaN."""
        classes = metrics.mean_iou(self._confusion)
        return {
            "min_pixels": self.min_pixels,
            "summary": self.summary(),
            "classes_without_pixels": [(self._classes or [])[index] for index in classes.undefined],
            "phrases": {phrase: _defined(entry) for phrase, entry in self._per_phrase().items()},
            "views": {name: self._view(name) for name in self._views},
        }

    def _view(self, name: str) -> dict[str, Any]:
        phrases = {
            phrase: _defined(
                {
                    "iou": result.iou,
                    "counted": result.is_pair,
                    "label_pixels": result.label_pixels,
                    "localised": result.hit,
                    "localised_strict": result.strict_hit,
                }
            )
            for phrase, result in self._views[name].items()
        }
        confusion = self._view_confusions[name]
        figures = {
            "query_miou": _mean(result.iou for result in self._views[name].values() if result.is_pair),
            "class_miou": metrics.mean_iou(confusion).mean,
            "pixel_accuracy": metrics.pixel_accuracy(confusion),
        }
        return _defined(figures) | {"phrases": phrases}

    def _score(
        self, ids: np.ndarray, wanted: set[int], mask: Bool[np.ndarray, "H W"], relevancy: Float[np.ndarray, "H W"]
    ) -> _PhraseResult:
        objects = [ids == identity for identity in sorted(wanted)]
        label = np.logical_or.reduce(objects)
        intersection, union = metrics.intersection_and_union(mask, label)
        pixels = int(np.count_nonzero(label))
        hit = strict_hit = None
        if pixels >= self.min_pixels:
            boxes = np.array([metrics.inclusive_box(one) for one in objects if one.any()], np.float64)
            hit = metrics.localisation_hit(relevancy, boxes)
            strict_hit = metrics.localisation_hit_strict(relevancy, label)
        return _PhraseResult(pixels, intersection, union, hit, strict_hit)

    def _per_phrase(self) -> dict[str, dict[str, Any]]:
        table: dict[str, dict[str, Any]] = {}
        for phrase, wanted in self._phrases:
            results = [view[phrase] for view in self._views.values()]
            pairs = [result for result in results if result.is_pair]
            union = sum(result.union for result in results)
            table[phrase] = {
                "ids": sorted(wanted),
                "pairs": len(pairs),
                "iou": _mean(result.iou for result in pairs),
                "iou_pooled": sum(result.intersection for result in results) / union if union else None,
                "localisation_accuracy": _mean(result.hit for result in pairs),
                "localisation_accuracy_strict": _mean(result.strict_hit for result in pairs),
            }
        return table


def _mean(values: Any) -> float | None:
    return metrics.mean_or_none([float(value) for value in values if value is not None])


def _defined(entry: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if value is not None}
