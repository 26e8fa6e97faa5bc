"""Scorers of evaluations that ask one phrase at a time: Occam's LGS on 3D-OVS, OpenGaussian on LERF-OVS.

Both give one IoU per (view, phrase), an empty answer to an empty label is 0, and the scene's figure is the plain mean
over all pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool

from maskfield_ns.evaluation.metrics import binary_iou
from maskfield_ns.evaluation.protocols import stable
from maskfield_ns.evaluation.protocols.labels import ViewLabels
from maskfield_ns.evaluation.protocols.predictions import ViewPrediction
from maskfield_ns.evaluation.protocols.scoring import Case, OnCase, SceneScore, Scorer, defined, mean_of, missing_note

ACCURACIES = {"acc_25": 0.25, "acc_50": 0.5}
"""Share of pairs whose IoU is above this."""


class PairScorer(Scorer):
    """Base: a mask per (view, phrase) from whatever is predicted."""

    def _mask(self, prediction: ViewPrediction, phrase: str) -> tuple[Bool[np.ndarray, "H W"], dict[str, Any]] | None:
        """The answer, and what else to note about it; None: nothing was predicted."""
        raise NotImplementedError

    def _figures(self, ious: Sequence[float]) -> dict[str, float | None]:
        return {"miou": mean_of(ious)}

    def _notes(self, rows: Sequence[dict[str, Any]]) -> list[str]:
        return []

    def _score(self, labels: ViewLabels, prediction: ViewPrediction | None) -> dict[str, Any]:
        assert labels.masks is not None
        rows: dict[str, Any] = {}
        for phrase, label in zip(labels.phrases, labels.masks, strict=True):
            answer = None if prediction is None else self._mask(prediction, phrase)
            mask, row = (np.zeros_like(label), {"missing": True}) if answer is None else answer
            if mask.shape != labels.size:
                raise ValueError(f"the answer to {phrase!r} is {mask.shape}, the labels are {labels.size}")
            iou = binary_iou(mask, label)
            rows[phrase] = {"iou": 0.0 if iou is None else iou} | row | ({"empty": True} if iou is None else {})
            if iou is not None:
                self._on_case(Case(labels.view, phrase, iou, mask, label))
        return {"figures": defined(self._figures([row["iou"] for row in rows.values()])), "classes": rows}

    def _result(self) -> SceneScore:
        rows = [row for view in self._views.values() for row in view["classes"].values()]
        figures = self._figures([row["iou"] for row in rows])
        figures |= {"num_pairs": float(len(rows)), "num_views": float(len(self._views))}
        table = {
            phrase: defined({"iou": mean_of(ious), "num_views": float(len(ious))})
            for phrase, ious in self._pairs("iou").items()
        }
        notes = missing_note(rows) + self._notes(rows)
        empty = sum(1 for row in rows if row.get("empty"))
        if empty:
            notes.append(f"{empty} pairs have neither label nor answer and count 0")
        return SceneScore(defined(figures), table, self._views, notes)


class StableScorer(PairScorer):
    """Occam's LGS on 3D-OVS: every class is asked in every labelled view, with a threshold searched for each map."""

    def __init__(self, stability: stable.Stability = stable.SCRIPT, on_case: OnCase | None = None) -> None:
        super().__init__(on_case)
        self.stability = stability

    def _mask(self, prediction: ViewPrediction, phrase: str) -> tuple[Bool[np.ndarray, "H W"], dict[str, Any]] | None:
        relevancy = (prediction.relevancy or {}).get(phrase)
        if relevancy is None:
            return None
        answer = stable.predict_mask(relevancy, self.stability)
        row: dict[str, Any] = {"level": answer.level, "threshold": answer.threshold}
        row |= {} if answer.found else {"fallback": True}
        return answer.mask, row | ({"never_valid": True} if answer.never_valid else {})

    def _notes(self, rows: Sequence[dict[str, Any]]) -> list[str]:
        notes = []
        fallback = sum(1 for row in rows if row.get("fallback"))
        if fallback:
            notes.append(f"{fallback} maps have no stable threshold and are cut at {stable.FALLBACK} of their range")
        never = sum(1 for row in rows if row.get("never_valid"))
        if never:
            notes.append(
                f"{never} pairs have a map that no threshold gives a mask of valid size (published code stops there)"
            )
        return notes


class SilhouetteScorer(PairScorer):
    """OpenGaussian on LERF-OVS: masks of what was selected in 3D; mIoU, and shares of pairs above 0.25 and 0.5.

    Source: yanmin-wu/OpenGaussian ``scripts/compute_lerf_iou.py`` (Wu et al., NeurIPS 2024). It reads labels from .jpg
    files that LangSplat's evaluator has written; at the quality they are written in, polygons come back unchanged.
    """

    def _mask(self, prediction: ViewPrediction, phrase: str) -> tuple[Bool[np.ndarray, "H W"], dict[str, Any]] | None:
        mask = (prediction.masks or {}).get(phrase)
        return None if mask is None else (mask, {})

    def _figures(self, ious: Sequence[float]) -> dict[str, float | None]:
        above = {key: mean_of([float(iou > least) for iou in ious]) for key, least in ACCURACIES.items()}
        return {"miou": mean_of(ious)} | above
