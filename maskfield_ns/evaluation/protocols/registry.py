"""The benchmarks by name: which labels, which kind of prediction, which scorer, which figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from maskfield_ns.errors import BenchmarkError
from maskfield_ns.evaluation.protocols import labels, scoring
from maskfield_ns.evaluation.protocols.predictions import Kind, read_prediction
from maskfield_ns.evaluation.protocols.scoring import OnCase, SceneScore, Scorer

ProtocolName = Literal["3d-ovs", "lerf-ovs", "lerf-mask", "replica", "scannet", "mipnerf360"]


@dataclass(frozen=True)
class Benchmark:
    """One benchmark and how it is scored."""

    name: ProtocolName
    title: str
    kind: Kind
    """What is predicted: relevancy maps, masks, or one class per pixel."""
    rules: tuple[str, ...]
    """Decision rules and averagings that published numbers were made with; the first is the default."""
    metrics: dict[str, str]
    """Headline figures: key in the results, and what papers call it."""
    open_labels: Callable[[Path, Path | None], labels.LabelSet]
    """Labels from their folder (and another class list than the scene's own)."""
    make_scorer: Callable[[str, Sequence[str], OnCase | None], Scorer]
    """From rule, classes and listener."""

    def rule(self, wanted: str | None) -> str:
        """The rule asked for, or the default one.

        Raises:
            BenchmarkError: this benchmark has no such rule.
        """
        if wanted in (None, "", "default"):
            return self.rules[0]
        if wanted not in self.rules:
            raise BenchmarkError(f"{self.name} has no rule {wanted!r}; it has {', '.join(self.rules)}.")
        return str(wanted)


_QUERY_METRICS = {"miou": "mIoU", "localisation_accuracy": "localisation acc."}


def _query_scorer(rule: str, names: Sequence[str], on_case: OnCase | None) -> Scorer:
    return scoring.QueryScorer("langsplat-v2" if rule == "langsplat-v2" else "langsplat", on_case)


BENCHMARKS: dict[str, Benchmark] = {
    each.name: each
    for each in (
        Benchmark(
            "3d-ovs",
            "3D-OVS",
            "classes",
            ("3d-ovs", "maskfield"),
            {"miou": "mIoU", "accuracy": "Acc"},
            lambda folder, _: labels.IndicatorLabels(folder),
            lambda rule, _, on_case: scoring.IndicatorScorer(rule, on_case),
        ),
        Benchmark(
            "lerf-ovs",
            "LERF-OVS",
            "relevancy",
            ("langsplat", "langsplat-v2"),
            _QUERY_METRICS,
            lambda folder, _: labels.PolygonLabels(folder),
            _query_scorer,
        ),
        Benchmark(
            "lerf-mask",
            "LERF-Mask",
            "masks",
            ("gaussian-grouping",),
            {"miou": "mIoU", "mbiou": "mBIoU"},
            lambda folder, _: labels.MaskLabels(folder),
            lambda rule, _, on_case: scoring.MaskScorer(on_case),
        ),
        Benchmark(
            "replica",
            "Replica",
            "classes",
            ("ov-nerf", "semantic-nerf"),
            {"miou": "mIoU", "accuracy": "mAcc"},
            lambda folder, classes: labels.IndexLabels(folder, "replica", classes),
            lambda rule, names, on_case: scoring.ConfusionScorer(names, rule, on_case),
        ),
        Benchmark(
            "scannet",
            "ScanNet",
            "classes",
            ("ov-nerf", "semantic-nerf"),
            {"miou": "mIoU", "accuracy": "mAcc"},
            lambda folder, classes: labels.IndexLabels(folder, "scannet", classes),
            lambda rule, names, on_case: scoring.ConfusionScorer(names, rule, on_case),
        ),
        Benchmark(
            "mipnerf360",
            "Mip-NeRF360 (GAGS labels)",
            "relevancy",
            ("gags", "langsplat-v2"),
            _QUERY_METRICS,
            lambda folder, _: labels.PolygonLabels(folder),
            _query_scorer,
        ),
    )
}


def benchmark(name: str) -> Benchmark:
    """A benchmark by name.

    Raises:
        BenchmarkError: there is none.
    """
    if name not in BENCHMARKS:
        raise BenchmarkError(f"There is no protocol {name!r}; there are {', '.join(BENCHMARKS)}.")
    return BENCHMARKS[name]


def score_folder(
    protocol: Benchmark,
    predictions: Path,
    label_set: labels.LabelSet,
    rule: str | None = None,
    on_case: OnCase | None = None,
) -> SceneScore:
    """Scores predictions on disk against the labels of a scene.

    Raises:
        BenchmarkError: labels or predictions that are missing, broken or do not fit; no prediction at all.
    """
    scorer = protocol.make_scorer(protocol.rule(rule), label_set.phrases, on_case)
    found = 0
    for view in label_set.views:
        prediction = read_prediction(predictions, view, protocol.kind, label_set.phrases_of(view))
        found += prediction is not None
        if prediction is None and protocol.kind == "classes":
            raise BenchmarkError(
                f"There is no prediction for the view {view}: expected {predictions / view} with the suffix .png or "
                ".npy (class ids), or .npz. Every labelled view is scored."
            )
        size = None if label_set.fixed_size or prediction is None else prediction.size
        scorer.add(label_set.load(view, size), prediction)
    if not found:
        raise BenchmarkError(
            f"{predictions} has no prediction for any of the labelled views ({', '.join(label_set.views[:4])}, ...): "
            "expected <view>.npz or a folder per view."
        )
    return scorer.result()
