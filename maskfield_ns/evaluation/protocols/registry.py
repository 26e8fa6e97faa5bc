"""The benchmarks by name: which labels, which kind of prediction, which scorer, which figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from maskfield_ns.errors import BenchmarkError
from maskfield_ns.evaluation.protocols import labels, scoring, single, stable
from maskfield_ns.evaluation.protocols.predictions import Kind, read_prediction
from maskfield_ns.evaluation.protocols.scoring import OnCase, SceneScore, Scorer

ProtocolName = Literal["3d-ovs", "lerf-ovs", "lerf-mask", "replica", "scannet", "mipnerf360"]


LabelOpener = Callable[[Path, "Path | None"], labels.LabelSet]
"""Labels from their folder (and another class list than the scene's own)."""
ScorerMaker = Callable[[str, Sequence[str], "OnCase | None"], Scorer]
"""From rule, classes and listener."""


@dataclass(frozen=True)
class Variant:
    """What a rule changes about its benchmark besides the scorer's own choices."""

    kind: Kind
    metrics: dict[str, str]
    open_labels: LabelOpener
    make_scorer: ScorerMaker
    table: str | None = None
    """Key of its published figures where they do not compare with those of the other rules."""
    title: str | None = None
    """Of its table."""


@dataclass(frozen=True)
class Benchmark:
    """One benchmark and how it is scored. :meth:`under` gives it as a rule has it."""

    name: ProtocolName
    title: str
    kind: Kind
    """What is predicted: relevancy maps, masks, or one class per pixel."""
    rules: tuple[str, ...]
    """Decision rules and averagings that published numbers were made with; the first is the default."""
    metrics: dict[str, str]
    """Headline figures: key in the results, and what papers call it."""
    open_labels: LabelOpener
    make_scorer: ScorerMaker
    variants: Mapping[str, Variant] = field(default_factory=dict)
    """Rules that take other predictions, read labels in another way or give other figures than the default one."""
    table: str = ""
    """Key of the published figures that compare with these; the name where it is empty."""

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

    def under(self, wanted: str | None) -> Benchmark:
        """The benchmark as a rule has it: kind of prediction, labels, scorer, figures and published figures.

        Raises:
            BenchmarkError: this benchmark has no such rule.
        """
        variant = self.variants.get(self.rule(wanted))
        if variant is None:
            return self
        return replace(
            self,
            title=variant.title or self.title,
            kind=variant.kind,
            metrics=variant.metrics,
            open_labels=variant.open_labels,
            make_scorer=variant.make_scorer,
            table=variant.table or self.table,
        )

    @property
    def published(self) -> str:
        """Key of the published figures that compare with these."""
        return self.table or self.name

    @property
    def tables(self) -> list[Benchmark]:
        """One per table of published figures: the default rule's, then those of rules that do not compare with it."""
        return [self, *(self.under(rule) for rule, variant in self.variants.items() if variant.table)]


_QUERY_METRICS = {"miou": "mIoU", "localisation_accuracy": "localisation acc."}


def _query_scorer(rule: str, names: Sequence[str], on_case: OnCase | None) -> Scorer:
    return scoring.QueryScorer("langsplat-v2" if rule == "langsplat-v2" else "langsplat", on_case)


def _occam(stability: stable.Stability) -> Variant:
    return Variant(
        "relevancy",
        {"miou": "mIoU"},
        # Any grey is foreground there.
        lambda folder, _: labels.IndicatorLabels(folder, darkest=1),
        lambda rule, _, on_case: single.StableScorer(stability, on_case),
    )


_OPENGAUSSIAN = Variant(
    "silhouettes",
    {"miou": "mIoU", "acc_25": "Acc@0.25", "acc_50": "Acc@0.5"},
    lambda folder, _: labels.PolygonLabels(folder),
    lambda rule, _, on_case: single.SilhouetteScorer(on_case),
    table="lerf-ovs:opengaussian",
    title="LERF-OVS, OpenGaussian's evaluation",
)

BENCHMARKS: dict[str, Benchmark] = {
    each.name: each
    for each in (
        Benchmark(
            "3d-ovs",
            "3D-OVS",
            "classes",
            ("3d-ovs", "maskfield", "occam", "occam-defaults"),
            {"miou": "mIoU", "accuracy": "Acc"},
            lambda folder, _: labels.IndicatorLabels(folder),
            lambda rule, _, on_case: scoring.IndicatorScorer(rule, on_case),
            {"occam": _occam(stable.SCRIPT), "occam-defaults": _occam(stable.EVALUATOR_DEFAULTS)},
        ),
        Benchmark(
            "lerf-ovs",
            "LERF-OVS",
            "relevancy",
            ("langsplat", "langsplat-v2", "opengaussian"),
            _QUERY_METRICS,
            lambda folder, _: labels.PolygonLabels(folder),
            _query_scorer,
            {"opengaussian": _OPENGAUSSIAN},
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


def published_tables() -> dict[str, Benchmark]:
    """Every table of figures that compare with each other, by the key of its published ones."""
    return {table.published: table for each in BENCHMARKS.values() for table in each.tables}


def score_folder(
    protocol: Benchmark,
    predictions: Path,
    label_set: labels.LabelSet,
    rule: str | None = None,
    on_case: OnCase | None = None,
) -> SceneScore:
    """Scores predictions on disk against the labels of a scene.

    Args:
        protocol: the benchmark.
        predictions: folder of one scene's predictions.
        label_set: labels as ``protocol.under(rule).open_labels`` gives them.
        rule: decision rule and averaging; None: the benchmark's default.
        on_case: hears of every answer.

    Raises:
        BenchmarkError: labels or predictions that are missing, broken or do not fit; no prediction at all.
    """
    protocol, rule = protocol.under(rule), protocol.rule(rule)
    scorer = protocol.make_scorer(rule, label_set.phrases, on_case)
    found = 0
    for view in label_set.views:
        phrases = label_set.phrases_of(view)
        prediction = read_prediction(predictions, view, protocol.kind, phrases, label_set.class_ids)
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
