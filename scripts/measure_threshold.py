"""Where "not found" should begin: scores of phrases for things that are there against things that are not.

    python scripts/measure_threshold.py --runs RUN_A/config.yml RUN_B/config.yml --output threshold.json

Every run must be trained on a labelled capture. Present phrases are the capture's own; absent ones are the phrases of
the other captures that name nothing here, and a list of everyday things. The threshold with the best balanced accuracy
over all runs is printed; :class:`maskfield_ns.answers.decision.DecisionRule` holds the one in use.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from maskfield_ns.evaluation.labels import LabelledCapture
from maskfield_ns.scene import Scene

EVERYDAY = (
    "banana", "elephant", "umbrella", "laptop", "guitar", "shoe", "fire hydrant", "wooden spoon", "red chair",
    "green bottle", "purple vase", "yellow cone", "white plate", "bicycle", "black cat", "telephone", "pizza",
    "orange traffic cone", "pink bunny", "blue book",
)  # fmt: skip


@dataclass
class Args:
    """Trained runs on labelled captures."""

    runs: list[Path]
    output: Path | None = None


def main(args: Args) -> None:
    """Prints the scores' distribution and the best threshold."""
    scenes = [Scene.load(run) for run in args.runs]
    labels = [LabelledCapture.load(s.pipeline.datamanager.capture_dir) for s in scenes]
    assert all(label is not None for label in labels), "every run must be trained on a labelled capture"
    own = [{phrase for phrase, _ in label.phrases()} for label in labels if label is not None]
    present, absent = [], []
    for scene, phrases in zip(scenes, own, strict=True):
        classes = {phrase.split()[-1] for phrase in phrases}
        foreign = {p for other in own for p in other if p.split()[-1] not in classes}
        present += [(a.phrase, a.score) for a in scene.query(sorted(phrases))]
        absent += [(a.phrase, a.score) for a in scene.query(sorted(foreign | set(EVERYDAY)))]
    hits, misses = (np.array([score for _, score in rows]) for rows in (present, absent))
    candidates = np.linspace(0.05, 0.95, 181)
    balanced = np.array([((hits >= t).mean() + (misses < t).mean()) / 2 for t in candidates])
    best = candidates[balanced >= balanced.max() - 1e-9]
    threshold = float((best[0] + best[-1]) / 2)
    figures = {
        "threshold": threshold,
        "balanced_accuracy": float(balanced.max()),
        "present": sorted(present, key=lambda row: row[1]),
        "absent": sorted(absent, key=lambda row: -row[1]),
        "in_use": scenes[0].model.config.decision.found_threshold,
    }
    print(json.dumps(figures, indent=1))
    if args.output is not None:
        args.output.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
