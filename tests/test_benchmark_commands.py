"""``maskfield score`` and ``maskfield bench``, and the published figures."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fixtures_on_disk import labels_of
from oracle import Command, Evaluated
from PIL import Image

from maskfield_ns.commands.bench import find_results
from maskfield_ns.errors import BenchmarkError
from maskfield_ns.evaluation.benchmark import PREDICTIONS
from maskfield_ns.evaluation.protocols.registry import BENCHMARKS, benchmark, published_tables
from maskfield_ns.evaluation.published import published, published_results

pytest_plugins = ("fixtures_on_disk", "oracle")

# --- commands ---------------------------------------------------------------------------------------------------------


def test_score_command(
    command: Command, evaluated: Callable[[str], Evaluated], scenes: dict[str, Path], tmp_path: Path
) -> None:
    run = evaluated("lerf-mask")
    arguments = ["score", "lerf-mask", "--predictions", run.folder / "eval" / PREDICTIONS]
    arguments += ["--labels", labels_of("lerf-mask", scenes["lerf-mask"]), "--output", tmp_path / "figures.json"]
    arguments += ["--pictures", tmp_path / "worst.png", "--method", "somebody"]
    printed = command(*arguments)
    assert f"mIoU: {100 * run.figures['miou']:.2f} %" in printed
    data = json.loads((tmp_path / "figures.json").read_text())
    assert data["method_name"] == "somebody" and data["benchmark"]["scene"] == "tabletop"
    assert data["benchmark"]["figures"]["mbiou"] == pytest.approx(run.figures["mbiou"], abs=1e-9)
    with Image.open(tmp_path / "worst.png") as picture:
        assert picture.height > 100


def test_score_command_says_what_is_missing(
    command: Command, evaluated: Callable[[str], Evaluated], scenes: dict[str, Path], tmp_path: Path
) -> None:
    labels = labels_of("replica", scenes["replica"])
    predictions = tmp_path / "predictions"
    shutil.copytree(evaluated("replica").folder / "eval" / PREDICTIONS, predictions)
    next(iter(sorted(predictions.iterdir()))).unlink()
    given = ["--predictions", predictions, "--labels", labels]
    assert "rgb_0000" in command("score", "replica", *given, code=1)
    assert "no rule 'langsplat'" in command("score", "replica", *given, "--rule", "langsplat", code=1)
    wrong = ["--predictions", tmp_path / "absent", "--labels", labels]
    assert "absent" in command("score", "replica", *wrong, code=1)
    polygons = labels_of("lerf-ovs", scenes["lerf-ovs"])
    (tmp_path / "empty").mkdir()
    message = command("score", "lerf-ovs", "--predictions", tmp_path / "empty", "--labels", polygons, code=1)
    assert "no prediction for any" in message


def test_report(command: Command, evaluated: Callable[[str], Evaluated], tmp_path: Path) -> None:
    runs = [evaluated(kind).folder for kind in ("lerf-ovs", "scannet", "semantic-nerf")]
    command("bench", "report", *runs, runs[0], "--output", tmp_path / "report")
    text = (tmp_path / "report" / "report.md").read_text()
    own = f"**{100 * evaluated('lerf-ovs').figures['miou']:.1f}**"
    assert own in text
    assert "labelled views trained on" in text and "labelled views held out" in text
    assert "run 2" in text, "the same scene twice is two rows"
    assert "| LangSplatV2 | 51.8 | 72.2 | 59.1 | 56.4 |" in text and "[secondary]" in text
    assert "3D-OVS" not in [line[3:] for line in text.splitlines() if line.startswith("## ")]
    for name in sorted(path.name for path in (tmp_path / "report" / "pictures").iterdir()):
        assert f"(pictures/{name})" in text
    with (tmp_path / "report" / "report.csv").open() as file:
        rows = list(csv.DictReader(file))
    mine = [row for row in rows if row["ours"] == "1" and row["protocol"] == "scannet" and row["scene"] != "mean"]
    assert {row["scene"] for row in mine} == {"scene0004"}, "printed without the suffix"
    latex = (tmp_path / "report" / "report.tex").read_text()
    assert latex.count(r"\begin{tabular}") == latex.count(r"\end{tabular}") == 6
    assert r"waldo\_kitchen" in latex


def test_rules_that_do_not_compare_have_tables_of_their_own(command: Command, tmp_path: Path) -> None:
    figures = {"miou": 0.4321, "acc_25": 0.8, "acc_50": 0.3, "localisation_accuracy": 0.6}
    files = []
    for protocol, rule, kept in (
        ("lerf-ovs", "opengaussian", ("miou", "acc_25", "acc_50")),
        ("lerf-ovs", "langsplat", ("miou", "localisation_accuracy")),
        ("3d-ovs", "occam", ("miou",)),
    ):
        details = {"protocol": protocol, "rule": rule, "scene": "ramen", "split": None, "views": {"a": {}}}
        details["figures"] = {key: figures[key] for key in kept}  # type: ignore[assignment]
        files.append(tmp_path / f"{rule}.json")
        files[-1].write_text(json.dumps({"method_name": rule, "benchmark": details}))
    command("bench", "report", *files, "--output", tmp_path / "report")
    text = (tmp_path / "report" / "report.md").read_text()
    parts = {part.split("\n")[0]: part for part in text.split("\n## ")[1:]}
    other, usual, occam = parts["LERF-OVS, OpenGaussian's evaluation"], parts["LERF-OVS"], parts["3D-OVS"]
    assert other.count("43.2") == 2 and "47.22 (4)" in other and "74.84 (4)" in other and "LangSplatV2" not in other
    assert "Acc@0.5 (%)" in other and "**30.0**" in other
    assert "LangSplatV2" in usual and "opengaussian" not in usual and "47.22" not in usual
    assert "occam rule" in occam and "3D-OVS, mIoU" in occam and "Acc (%)" not in occam
    with (tmp_path / "report" / "report.csv").open() as file:
        keys = {row["protocol"] for row in csv.DictReader(file) if row["ours"] == "1"}
    assert keys == {"lerf-ovs", "lerf-ovs:opengaussian", "3d-ovs"}
    (tmp_path / "odd.json").write_text(files[0].read_text().replace('"rule": "opengaussian"', '"rule": "other"'))
    assert "the rule other" in command("bench", "report", tmp_path / "odd.json", code=1)


def test_report_without_results(command: Command, tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text('{"results": {"psnr": 3}}')
    assert "ns-eval" in command("bench", "report", tmp_path, code=1)
    assert "ns-eval" in command("bench", "report", tmp_path / "other.json", code=1)
    assert "no run at" in command("bench", "report", tmp_path / "absent", code=1)
    assert "at least one run" in command("bench", "report", code=1)


def test_a_run_is_read_once(evaluated: Callable[[str], Evaluated]) -> None:
    (result,) = find_results(evaluated("3d-ovs").folder)
    assert result.method == "oracle" and result.place.endswith("benchmark.json")


def test_listing(command: Command) -> None:
    printed = command("bench", "list")
    assert all(name in printed for name in BENCHMARKS)
    for each in BENCHMARKS.values():
        assert all(f"--rule {rule}" in printed for rule in each.rules)
    assert "opengaussian: predictions: silhouettes; mIoU (miou), Acc@0.25 (acc_25)" in printed
    with pytest.raises(BenchmarkError, match="there are 3d-ovs"):
        benchmark("coco")


def test_a_released_scene_with_other_counts_is_noticed(
    command: Command, scenes: dict[str, Path], evaluated: Callable[[str], Evaluated]
) -> None:
    labels = labels_of("lerf-mask", scenes["lerf-mask"])
    given = ["--predictions", evaluated("lerf-mask").folder / "eval" / PREDICTIONS, "--labels", labels]
    assert "published evaluations have 7: is the download complete?" in command(
        "score", "lerf-mask", *given, "--scene", "figurines"
    )
    assert "download complete" not in command("score", "lerf-mask", *given)


# --- published figures ------------------------------------------------------------------------------------------------


def test_published_figures_are_numbers_with_sources() -> None:
    rows = published_results()
    assert len(rows) > 600
    for row in rows:
        assert 0 < float(row.value) <= 100
        assert row.source and row.evidence in ("paper", "secondary", "unverified", "issue thread")
        assert row.metric in published_tables()[row.protocol].metrics
    keys = [(row.protocol, row.metric, row.method, row.scene, row.source) for row in rows]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize(
    ("protocol", "metric", "method", "source"),
    [
        ("lerf-ovs", "miou", "LangSplatV2", "LangSplatV2 Table 2"),
        ("lerf-ovs", "localisation_accuracy", "GAGS", "GAGS Table 1"),
        ("3d-ovs", "miou", "LangSplatV2", "LangSplatV2 Table 3"),
        ("replica", "miou", "OV-NeRF CLIP", "OV-NeRF Tables I and II"),
        ("scannet", "accuracy", "OV-NeRF (FC-CLIP)", "OV-NeRF Tables III and IV"),
        ("mipnerf360", "miou", "GAGS", "GAGS Tables 1-2"),
    ],
)
def test_published_means_are_means(protocol: str, metric: str, method: str, source: str) -> None:
    rows = [row for row in published(protocol, metric) if (row.method, row.source) == (method, source)]
    cells = [float(row.value) for row in rows if not row.scene.startswith("mean")]
    (mean,) = [row for row in rows if row.scene.startswith("mean")]
    assert int(mean.scene.split()[-1]) == len(cells)
    assert float(mean.value) == pytest.approx(np.mean(cells), abs=0.06)


def test_the_documentation_shows_what_the_command_prints(command: Command) -> None:
    text = (Path(__file__).resolve().parents[1] / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    shown = text.split("<!-- published:begin -->")[1].split("<!-- published:end -->")[0].strip()
    assert shown == command("bench", "published").strip()


def test_localisation_percentages_are_counts_of_pairs() -> None:
    """The numbers of pairs that the labels must have show in every published percentage."""
    pairs = {"ramen": 71, "teatime": 59, "waldo_kitchen": 22, "figurines": 56}
    off = []
    for row in published("lerf-ovs", "localisation_accuracy"):
        if row.scene in pairs:
            hits = float(row.value) / 100 * pairs[row.scene]
            off.append(abs(hits - round(hits)) / pairs[row.scene] * 100)
    assert np.median(off) < 0.06
