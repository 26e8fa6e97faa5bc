"""Scores held-out views of a run one by one: against labels, or without labels against proposed masks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maskfield_ns.answers.ask import ActiveQuery, ask
from maskfield_ns.answers.decision import DecisionRule
from maskfield_ns.answers.render import Outputs, answer_view, query_masks
from maskfield_ns.evaluation.labels import LabelledCapture
from maskfield_ns.evaluation.metrics import Agreement, matched_mean_iou
from maskfield_ns.evaluation.report import SegmentationReport
from maskfield_ns.files import write_json
from maskfield_ns.foundation.base import ProposerConfig
from maskfield_ns.foundation.protocols import LEVELS, propose
from maskfield_ns.foundation.vocabulary import calibration_bank
from maskfield_ns.models.contract import QueryableModel
from maskfield_ns.systems.query_head import QueryHead


class Evaluator:
    """Scores held-out views one by one."""

    def add(self, name: str, outputs: Outputs, picture: Tensor) -> None:
        """Takes in one rendered view and the picture [H, W, 3 or 4] it should be (uint8, or float in 0..1)."""
        raise NotImplementedError

    def summary(self) -> tuple[dict[str, float], dict[str, Any]]:
        """(flat figures, per-view details)."""
        raise NotImplementedError

    @staticmethod
    def write(path: Path, details: dict[str, Any]) -> None:
        """Writes details as JSON."""
        write_json(path, details)


class LabelEvaluator(Evaluator):
    """Queries and classes of a labelled capture."""

    def __init__(self, model: QueryableModel, labels: LabelledCapture) -> None:
        self.head: QueryHead = model.query_head
        self.rule: DecisionRule = model.config.decision
        self.labels, self.report = labels, SegmentationReport()
        phrases = [phrase for phrase, _ in labels.phrases()]
        negatives = model.text(model.config.negatives)
        bank = model.text(calibration_bank())
        self.active: ActiveQuery = ask(self.head, phrases, model.text(phrases), negatives, self.rule, bank)
        self.classes = model.text(labels.classes()).to(self.active.classes)

    def add(self, name: str, outputs: Outputs, picture: Tensor) -> None:
        answer = answer_view(outputs.features, self.head, self.active, self.classes, self.rule)
        self.report.add_view(
            name,
            phrase_masks=dict(zip(self.active.phrases, answer.masks, strict=True)),
            phrase_relevancy=dict(zip(self.active.phrases, answer.relevancy, strict=True)),
            class_map=answer.classes,
            labels=self.labels,
        )

    def summary(self) -> tuple[dict[str, float], dict[str, Any]]:
        return self.report.summary(), self.report.to_json()


class AgreementEvaluator(Evaluator):
    """Label-free: do rendered masks agree with masks proposed on the photograph itself?"""

    def __init__(self, model: QueryableModel, proposer: ProposerConfig) -> None:
        self.model = model
        self.proposer = proposer.setup(model.device)
        self.views: dict[str, dict[str, Agreement]] = {}

    def add(self, name: str, outputs: Outputs, picture: Tensor) -> None:
        colours = picture[..., :3].cpu()
        image = (colours if colours.dtype == torch.uint8 else (colours * 255).round().byte()).numpy()
        proposed = propose(self.proposer, np.ascontiguousarray(image), name)
        head: QueryHead = self.model.query_head
        valid = head.valid(self.model.config.decision.min_support, self.model.config.decision.min_share)
        per_level: dict[str, Agreement] = {}
        for level in np.unique(proposed.levels):
            queries = head.bank(int(level))
            queries = queries[valid[queries]]
            rendered = query_masks(outputs.features, head, queries)
            rendered = rendered[rendered.any(axis=(1, 2))]
            per_level[LEVELS[level]] = matched_mean_iou(proposed.masks[proposed.levels == level], rendered)
        self.views[name] = per_level

    def summary(self) -> tuple[dict[str, float], dict[str, Any]]:
        figures: dict[str, float] = {}
        by_level = {k: [view[k] for view in self.views.values() if k in view] for k in LEVELS}
        chosen_by_name = {"agreement": [a for group in by_level.values() for a in group]}
        chosen_by_name |= {f"agreement_{level}": group for level, group in by_level.items()}
        for name, chosen in chosen_by_name.items():
            count = sum(a.num_proposals for a in chosen)
            if count:
                figures[name] = sum((a.matched or 0.0) * a.num_proposals for a in chosen) / count
        return figures, {"views": {n: {k: a._asdict() for k, a in v.items()} for n, v in self.views.items()}}
