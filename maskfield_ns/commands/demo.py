"""``maskfield demo``: the main job on the packaged capture, every step as the command a user would type."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

from maskfield_ns.commands.steps import Step, duration, installed_versions, run_step
from maskfield_ns.errors import MaskfieldError
from maskfield_ns.files import atomic_path, explained, write_json

CAPTURE = Path(__file__).resolve().parents[1] / "assets" / "demo_capture"
PHRASES = ("green mug", "rubber duck", "soccer ball", "the red one", "teddy bear", "robot", "elephant")
"""The last one is not on the table, and the answer should say so."""
SHEET_VIEWS = 3
"""Held-out views shown on the contact sheet."""
FIGURES = {
    "psnr": "PSNR (dB)",
    "ssim": "SSIM",
    "query_miou": "query mIoU",
    "localisation_accuracy": "localisation accuracy",
    "class_miou": "class mIoU",
    "pixel_accuracy": "pixel accuracy",
}
"""Of ns-eval's figures, those worth a line."""


def demo(output: Path, method: str) -> None:
    """Runs the demo; a second run trains afresh and reuses nothing but the mask cache.

    Writes ``capture/``, ``runs/`` (nerfstudio's layout), ``results/<time>/``, and of the last run
    ``contact_sheet.png``, ``metrics.json`` and ``demo.json``.

    Raises:
        MaskfieldError: the output cannot be written, or a step has failed (its own message stands above).
    """
    output = output.expanduser().resolve()  # nerfstudio writes paths into config.yml: they should hold anywhere
    capture, stamp = output / "capture", time.strftime("%Y-%m-%d_%H%M%S")
    results = output / "results" / stamp
    try:
        copy_capture(CAPTURE, capture)
        results.mkdir(parents=True)
    except OSError as error:
        raise MaskfieldError(f"cannot write to {output}: {error.strerror or error}; choose another --output") from error
    config = output / "runs" / "demo" / method / stamp / "config.yml"
    metrics = results / "metrics.json"
    training = ["ns-train", method, "--data", capture, "--output-dir", output / "runs", "--experiment-name", "demo"]
    training += ["--timestamp", stamp, "--vis", "tensorboard"]  # no viewer: its port may be taken, nobody looks at it
    training += ["--pipeline.model.phrases", *PHRASES]  # what ns-viewer and ns-eval show as relevancy_0 and so on
    asked = [word for phrase in PHRASES for word in ("--text", phrase)]
    sheet = ["--output", results / "query", "--max-views", SHEET_VIEWS]
    commands: list[tuple[str, str, list[Any]]] = [
        (
            "cache",
            "propose and embed masks, once per capture",
            ["maskfield", "extract", "--data", capture, "--method", method],
        ),
        ("train", "colours and geometry, then masks", training),
        ("query", "ask for things by name", ["maskfield", "query", "--load-config", config, *asked, *sheet]),
        (
            "evaluate",
            "held-out views against the capture's labels",
            [*("ns-eval", "--load-config", config), "--output-path", metrics, "--render-output-path", results / "eval"],
        ),
    ]
    print(f"The demo: 54 pictures of a table with seven things on it, 6 of them held out; everything goes to {output}")
    steps = [
        run_step(f"step {number} of {len(commands)}: {title}", name, [str(word) for word in command])
        for number, (name, title, command) in enumerate(commands, 1)
    ]
    figures = json.loads(metrics.read_text(encoding="utf-8"))["results"]
    answers = json.loads((results / "query" / "answers.json").read_text(encoding="utf-8"))["answers"]
    _publish(results / "query" / "contact_sheet.png", output / "contact_sheet.png")
    _publish(metrics, output / "metrics.json")
    write_json(
        output / "demo.json",
        {
            "steps": [step.to_json() for step in steps],
            "seconds": round(sum(step.seconds for step in steps), 1),
            "figures": {key: figures[key] for key in FIGURES if key in figures},
            "answers": answers,
            "config": str(config),
            "results": str(results),
            "versions": installed_versions(),
        },
    )
    print(_summary(steps, figures, answers))
    print(f"pictures: {output / 'contact_sheet.png'}, more in {results}")
    print(f"metrics:  {output / 'metrics.json'}, per view in {results / 'eval' / 'segmentation.json'}")
    print(f"run:      {config}")
    print(f"times:    {output / 'demo.json'}")
    print(f"look at it: ns-viewer --load-config {config}")


def copy_capture(source: Path, target: Path) -> None:
    """Copies files by content: the package may be read-only, and its permissions must not come along.

    Raises:
        OSError: a file cannot be read or written.
    """
    for path in sorted(source.rglob("*")):
        if path.is_file():
            copy = target / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            _publish(path, copy)


def _publish(source: Path, target: Path) -> None:
    """Copies a file so that nobody sees half of it."""
    with explained(target), atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)


def _summary(steps: list[Step], figures: dict[str, float], answers: list[dict[str, Any]]) -> str:
    lines = ["\n=== done", ""]
    lines += [f"  {label:<24}{figures[key]:8.3f}" for key, label in FIGURES.items() if key in figures]
    lines += ["", *(f'  "{a["phrase"]}": {_verdict(a)}' for a in answers), ""]
    lines += [f"  {step.name:<10}{duration(step.seconds):>12}{step.peak_mb / 1000:8.1f} GB" for step in steps]
    lines += [f"  {'together':<10}{duration(sum(step.seconds for step in steps)):>12}", ""]
    return "\n".join(lines)


def _verdict(answer: dict[str, Any]) -> str:
    return f"{'found' if answer['found'] else 'not found'} (relevancy {answer['score']:.2f})"
