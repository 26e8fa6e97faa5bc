"""All benchmark formats end to end: make the fixture, train shortly, evaluate by the protocol, one table.

    python scripts/bench_fixtures.py --capture CAPTURE --output OUT

Writes OUT/figures.json, OUT/figures.md and OUT/report/ (the tables of ``maskfield bench report``). The scenes are one
small capture in six formats and the training is short: the figures show that everything runs and agrees with
``maskfield score``, and say nothing about the benchmarks.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import tomllib
import tyro
from fixture_formats import DATAPARSERS, WRITERS, read_source

from maskfield_ns.commands.bench import find_results, report
from maskfield_ns.commands.steps import installed_versions, run_step
from maskfield_ns.errors import MaskfieldError
from maskfield_ns.evaluation.protocols.registry import BENCHMARKS, score_folder
from maskfield_ns.files import write_json

ROOT = Path(__file__).resolve().parents[1]
_GROUP = "nerfstudio.dataparser_configs"


@dataclass
class BenchFixtures:
    """What to run on."""

    capture: Path
    """Labelled capture without lens distortion."""
    output: Path
    """Folder for scenes, runs, logs and results; what is there is not made again."""
    formats: tuple[str, ...] = tuple(WRITERS)
    """Formats to run."""
    method: str = "maskfield-lite"
    """Method to train."""
    frames: int = 36
    """Pictures of the capture to use."""
    labelled: int = 5
    """How many of them are labelled in the formats that label only a few."""
    scale: float = 0.5
    """Of the picture size."""
    colour_steps: int = 600
    """Steps before mask training."""
    mask_steps: int = 200
    """Steps of mask training."""
    train_options: tuple[str, ...] = field(default_factory=tuple)
    """More options for ns-train."""


def main(args: BenchFixtures) -> None:
    """Runs every format and prints the table."""
    register()
    source = read_source(args.capture, args.frames, args.labelled, args.scale)
    rows, runs = [], []
    for name in args.formats:
        folder = args.output / name
        scene = folder / "done.txt"
        if not scene.is_file():
            path = WRITERS[name](source, folder / "data")
            scene.write_text(str(path), encoding="utf-8")
        row, run = run_format(args, name, Path(scene.read_text(encoding="utf-8")), folder)
        rows.append(row)
        runs.append(run)
    report(runs, args.output / "report")
    write_json(args.output / "figures.json", {"versions": installed_versions(), "rows": rows})
    text = table(rows)
    (args.output / "figures.md").write_text(text, encoding="utf-8")
    print(f"\n{text}")


def register() -> None:
    """Makes this checkout's dataparsers known to the commands, if it was installed before they existed."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        wanted = tomllib.load(file)["project"]["entry-points"][_GROUP]
    known = {each.name for each in entry_points(group=_GROUP)}
    missing = [f"{name}={place}" for name, place in wanted.items() if name not in known]
    if missing:
        os.environ["NERFSTUDIO_DATAPARSER_CONFIGS"] = ",".join(missing)


def run_format(args: BenchFixtures, name: str, scene: Path, folder: Path) -> tuple[dict[str, Any], Path]:
    """Trains and evaluates one scene; the predictions that ns-eval saved are scored again from disk."""
    run = folder / "runs" / name / args.method / "run"
    seconds: dict[str, float] = {}
    checkpoints = run / "nerfstudio_models"
    if not (checkpoints.is_dir() and any(checkpoints.glob("*.ckpt"))):
        command = ["ns-train", args.method, "--data", scene, "--output-dir", folder / "runs", "--experiment-name", name]
        command += ["--timestamp", "run", "--vis", "tensorboard"]
        command += ["--max-num-iterations", str(args.colour_steps + args.mask_steps)]
        command += ["--pipeline.datamanager.mask-start", str(args.colour_steps), *args.train_options]
        step = run_step(f"{name}: train", "train", [*command, *DATAPARSERS[name]], folder / "train.log")
        seconds["train"] = round(step.seconds, 1)
    if not (run / "benchmark.json").is_file():  # the last thing that ns-eval writes
        command = ["ns-eval", "--load-config", run / "config.yml", "--output-path", run / "benchmark.json"]
        command += ["--render-output-path", run / "eval"]
        step = run_step(f"{name}: evaluate", "evaluate", command, folder / "eval.log")
        seconds["evaluate"] = round(step.seconds, 1)
    (result,) = find_results(run)
    protocol = BENCHMARKS[result.details["protocol"]]
    info = json.loads((run / "benchmark.json").read_text(encoding="utf-8"))["results"]
    started = time.perf_counter()
    figures = {key: result.details["figures"][key] for key in (*protocol.metrics, "num_views")}
    predictions = run / "eval" / "predictions"
    again = score_folder(protocol, predictions, open_labels(name, scene), result.details["rule"])
    for key, value in figures.items():
        if abs(again.figures[key] - value) > 1e-6:
            raise MaskfieldError(f"{name}: ns-eval says {key} {value}, maskfield score says {again.figures[key]}")
    seconds["score"] = round(time.perf_counter() - started, 2)
    row = {
        "format": name,
        "protocol": protocol.name,
        "rule": result.details["rule"],
        "size": result.details["scored_sizes"],
        "trained_on_labelled": result.details["labelled_views_trained"],
        "psnr": info["psnr"],
        "figures": figures,
        "own_masks": result.details["figures"].get("miou_own_masks"),
        "notes": result.details["notes"],
        "seconds": seconds,
    }
    return row, run


def open_labels(name: str, scene: Path) -> Any:
    """The label set of a fixture, where its format keeps it."""
    places = {"3d-ovs": scene / "segmentations", "lerf-mask": scene / "test_mask"}
    beside = scene.parent / "label" / scene.name
    place = places.get(name, beside if name in ("lerf-ovs", "mipnerf360") else scene)
    return BENCHMARKS["replica" if name == "semantic-nerf" else name].open_labels(place, None)


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    head = "| format | rule | scored at | views | trained on them | PSNR | mIoU | second figure | same from disk |"
    lines = [head, "|" + " --- |" * 9]
    for row in rows:
        keys = list(BENCHMARKS[row["protocol"]].metrics)
        titles, figures = BENCHMARKS[row["protocol"]].metrics, row["figures"]
        second = f"{100 * figures[keys[1]]:.1f} ({titles[keys[1]]})"
        size = ", ".join(f"{width}x{height}" for width, height in row["size"])
        trained = "yes" if row["trained_on_labelled"] else "no"
        cells = [row["format"], row["rule"], size, f"{figures['num_views']:.0f}", trained, f"{row['psnr']:.1f}"]
        lines.append("| " + " | ".join([*cells, f"{100 * figures[keys[0]]:.1f}", second, "yes"]) + " |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    try:
        main(tyro.cli(BenchFixtures, description=__doc__))
    except MaskfieldError as error:
        sys.exit(f"error: {error}")
