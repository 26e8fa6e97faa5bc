"""How well scores become answers: masks, "found" and "not found", on trained runs of labelled captures.

    python scripts/bench/answers.py --runs RUN_A/config.yml RUN_B/config.yml --output answers.json

Per run: query mIoU and localization of the held-out views as ns-eval reports them; the query mIoU if labels chose each
phrase's threshold on the same relevancy maps (the headroom); and whether phrases that name something are found, and
phrases that name nothing are not. Present phrases are the capture's own; absent ones are the phrases of the other runs'
captures whose noun names nothing here, and a list of everyday things.

``--scales`` repeats all of it with cosines compressed to a + b cos, as embedders of other ranges would give them.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import tyro
from jaxtyping import Float
from torch import Tensor

from maskfield_ns.answers.ask import cosine_spread
from maskfield_ns.answers.render import answer_view
from maskfield_ns.evaluation.labels import LabelledCapture
from maskfield_ns.evaluation.report import SegmentationReport
from maskfield_ns.foundation.vocabulary import calibration_bank
from maskfield_ns.scene import Scene

EVERYDAY = (
    "banana", "elephant", "umbrella", "laptop", "guitar", "shoe", "fire hydrant", "wooden spoon", "red chair",
    "green bottle", "purple vase", "yellow cone", "white plate", "bicycle", "black cat", "telephone", "pizza",
    "orange traffic cone", "pink bunny", "blue book",
)  # fmt: skip
THRESHOLDS = np.linspace(0.01, 0.97, 49)
"""Of relevancy, tried for the headroom."""


def capture_of(scene: Scene) -> Path:
    """Folder of the capture that a run was trained on."""
    return Path(scene.model.run_info.capture_dir)


def compressed(vectors: Float[Tensor, "N C"], a: float, b: float, text: bool) -> Float[Tensor, "N C+3"]:
    """Unit vectors whose cosines between images and texts are exactly a + b times what they were."""
    unit = torch.nn.functional.normalize(vectors.double(), dim=1)
    own = unit.new_tensor([a**0.5, 0.0, (1 - a - b) ** 0.5] if text else [a**0.5, (1 - a - b) ** 0.5, 0.0])
    return torch.cat([b**0.5 * unit, own.expand(len(unit), -1)], dim=1).float()


def compressed_model(model: Any, a: float, b: float) -> Any:
    """What of a model answers questions, with an embedder of other cosines."""
    head = copy.deepcopy(model.query_head)
    head.semantic_table.data = compressed(head.embeddings.detach(), a, b, text=False)
    return SimpleNamespace(
        query_head=head, text=lambda words: compressed(model.text(words), a, b, text=True), config=model.config
    )


@dataclass
class Args:
    """Trained runs on labelled captures."""

    runs: list[Path]
    """config.yml of each."""
    scales: tuple[tuple[float, float], ...] = ((0.0, 1.0),)
    """(a, b) of cosines a + b cos; (0, 1) are the embedder's own."""
    extra_absent: tuple[str, ...] = field(default=EVERYDAY)
    """Phrases that name nothing in any of the captures."""
    output: Path | None = None


@torch.no_grad()
def main(args: Args) -> dict[str, Any]:
    """Prints a table, and writes it with the phrases' own figures."""
    found: dict[str, Any] = {}
    opened = [(run, Scene.load(run)) for run in args.runs]
    labels = {run: LabelledCapture.load(capture_of(scene)) for run, scene in opened}
    own = {run: [phrase for phrase, _ in label.phrases()] for run, label in labels.items() if label is not None}
    assert len(own) == len(opened), "every run must be trained on a labelled capture"
    columns = ("mIoU", "oracle", "local", "found", "absent", "balanced")
    print(f"{'scene':24} {'a':>5} {'b':>5} " + " ".join(f"{column:>8}" for column in columns))
    for run, scene in opened:
        label = labels[run]
        assert label is not None
        views = [(camera.name, scene.model.render_view(camera.camera).features) for camera in scene.cameras("test")]
        nouns = {phrase.split()[-1] for phrase in own[run]}
        foreign = {p for phrases in own.values() for p in phrases if p.split()[-1] not in nouns}
        absent = sorted(foreign | {p for p in args.extra_absent if p.split()[-1] not in nouns})
        for a, b in args.scales:
            model = compressed_model(scene.model, a, b) if (a, b) != (0, 1) else scene.model
            figures = measure(model, label, views, absent)
            name = Path(capture_of(scene)).name
            found.setdefault(name, []).append({"run": str(run), "a": a, "b": b} | figures)
            row = [figures[k] for k in ("query_miou", "oracle", "localisation", "found", "not_found", "balanced")]
            print(f"{name:24} {a:5.2f} {b:5.2f} " + " ".join(f"{value:8.3f}" for value in row))
    if args.output is not None:
        args.output.write_text(json.dumps(found, indent=1))
    return found


def measure(model: Any, label: LabelledCapture, views: list[tuple[str, Tensor]], absent: list[str]) -> dict[str, Any]:
    """All figures of one run."""
    phrases = [phrase for phrase, _ in label.phrases()]
    active, rule = asked(model, phrases), model.config.decision
    report = SegmentationReport()
    ious: dict[str, list[np.ndarray]] = {phrase: [] for phrase in phrases}
    for name, features in views:
        answer = answer_view(features, model.query_head, active, model.text(label.classes()), rule)
        report.add_view(
            name,
            phrase_masks=dict(zip(phrases, answer.masks, strict=True)),
            phrase_relevancy=dict(zip(phrases, answer.relevancy, strict=True)),
            class_map=answer.classes,
            labels=label,
        )
        ids = label.instances(name, answer.classes.shape)
        for (phrase, wanted), heat in zip(label.phrases(), answer.relevancy, strict=True):
            truth = np.isin(ids, sorted(wanted))
            if truth.sum() >= report.min_pixels:
                ious[phrase].append(iou_curve(heat, truth))
    best = [max(np.mean(rows, axis=0)) for rows in ious.values() for _ in rows if rows]
    nothing = asked(model, absent).verdict
    hits, misses = float(active.verdict.found.float().mean()), float((~nothing.found).float().mean())
    summary = report.summary()
    return {
        "query_miou": summary["query_miou"],
        "oracle": float(np.mean(best)),
        "localisation": summary["localisation_accuracy"],
        "class_miou": summary["class_miou"],
        "found": hits,
        "not_found": misses,
        "balanced": (hits + misses) / 2,
        "spread": cosine_spread(model.query_head, model.text(calibration_bank()), rule),
        "present": dict(sorted(zip(phrases, active.verdict.evidence.tolist(), strict=True), key=lambda row: row[1])),
        "absent": dict(sorted(zip(absent, nothing.evidence.tolist(), strict=True), key=lambda row: -row[1])),
        "iou": {phrase: summary.get(f"iou/{phrase}") for phrase in phrases},
        "thresholds": dict(zip(phrases, active.verdict.thresholds.tolist(), strict=True)),
    }


def iou_curve(heat: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """IoU of the pixels of at least each of THRESHOLDS."""
    everything, inside = np.sort(heat, axis=None), np.sort(heat[truth])
    claimed = heat.size - np.searchsorted(everything, THRESHOLDS)
    right = len(inside) - np.searchsorted(inside, THRESHOLDS)
    return right / np.maximum(claimed + len(inside) - right, 1)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
