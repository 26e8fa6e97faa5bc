"""Measures the CPU-sized methods on captures, side by side, and puts the figures into the README.

    python scripts/measure.py --captures DIR DIR --output OUT --max-side 320
    python scripts/measure.py --captures PHOTOS --proposer merged --output OUT --max-side 320
    python scripts/measure.py --demo --output OUT
    python scripts/measure.py --pair-pictures VAL --output OUT
    python scripts/measure.py --output OUT --update-readme

Every invocation adds to OUT/figures.json and writes OUT/figures.md; what is measured again, a capture with the same
proposer and method, replaces its old figures.
Every run trains from the start; the mask cache is made once per capture and shared. Captures are only read.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import tyro

from maskfield_ns.commands.steps import Step, duration, installed_versions, run_step
from maskfield_ns.errors import CaptureError, MaskfieldError
from maskfield_ns.files import write_json

README = Path(__file__).resolve().parents[1] / "README.md"
BEGIN, END = "<!-- figures:begin -->", "<!-- figures:end -->"
COLUMNS = {
    "psnr": ("PSNR", "{:.1f}"),
    "ssim": ("SSIM", "{:.2f}"),
    "query_miou": ("query mIoU", "{:.3f}"),
    "query_miou_pooled": ("pooled", "{:.3f}"),
    "localisation_accuracy": ("localisation", "{:.3f}"),
    "localisation_accuracy_strict": ("strict", "{:.3f}"),
    "class_miou": ("class mIoU", "{:.3f}"),
    "pixel_accuracy": ("pixel accuracy", "{:.3f}"),
    "agreement": ("agreement", "{:.3f}"),
}
"""Figure of ns-eval -> heading and format."""


@dataclass
class Measure:
    """What to measure."""

    output: Path
    """Folder for runs, caches, logs, figures.json and figures.md."""
    captures: tuple[Path, ...] = ()
    """Captures, each under the name of its folder."""
    methods: tuple[str, ...] = ("maskfield-splat-lite", "maskfield-lite")
    """Methods to train."""
    max_side: int = 0
    """Pictures are halved until their long side is at most this many pixels; 0: full size."""
    proposer: Literal["preset", "sam", "tiny-sam", "regions", "merged"] = "preset"
    """Another mask proposer than the method's own."""
    demo: bool = False
    """Also run the demo and record how long its steps take."""
    pair_pictures: Path | None = None
    """Also measure the embedded pair on these pictures of ``render_scenes.py dataset`` (layouts not trained on)."""
    update_readme: bool = False
    """Replace the README's figures by those of the output folder."""
    known: dict[str, Any] = field(init=False)
    """Contents of figures.json."""

    def run(self) -> None:
        """Measures, saving after every run, and prints the tables."""
        self.output = self.output.resolve()
        self.output.mkdir(parents=True, exist_ok=True)
        self._save("captures", {})
        for capture in self.captures:
            entry = self._begin(capture.resolve())
            for method in self.methods:
                figures = self._measure(capture.resolve(), method, entry["scale"])
                self._add_run(self._name(capture.resolve()), entry, method, figures)
        if self.demo:
            folder = self.output / "demo"
            run_step("demo", "demo", ["maskfield", "demo", "--output", str(folder)], self.output / "demo.log")
            self._save("demo", json.loads((folder / "demo.json").read_text(encoding="utf-8")))
        if self.pair_pictures is not None:
            sys.path.insert(0, str(Path(__file__).resolve().parent))
            from tiny_report import report

            self._save("pair", report(self.pair_pictures, 100, None))
        tables = markdown(self.known)
        (self.output / "figures.md").write_text(tables, encoding="utf-8")
        print(f"\n{tables}\n\nfigures: {self.output / 'figures.json'} and {self.output / 'figures.md'}")
        if self.update_readme:
            README.write_text(replace_block(README.read_text(encoding="utf-8"), tables), encoding="utf-8")
            print(f"updated: {README}")

    def _save(self, part: str, figures: dict[str, Any]) -> None:
        """Adds figures to figures.json, which another invocation may have changed since."""
        store = self.output / "figures.json"
        self.known = json.loads(store.read_text(encoding="utf-8")) if store.exists() else {"captures": {}}
        self.known[part] = self.known.get(part, {}) | figures
        write_json(store, self.known)

    def _add_run(self, name: str, entry: dict[str, Any], run: str, figures: dict[str, Any]) -> None:
        """Adds one run to a capture's figures, keeping what another invocation has added meanwhile."""
        self._save("captures", {})
        known = self.known["captures"].get(name, {}).get("runs", {})
        self._save("captures", {name: entry | {"runs": known | {run: figures}}})

    def _name(self, capture: Path) -> str:
        """Name of a capture in the tables: its folder, and the proposer where it is not the method's own."""
        return capture.name if self.proposer == "preset" else f"{capture.name} ({self.proposer})"

    def _begin(self, capture: Path) -> dict[str, Any]:
        """What is known of a capture before training: its pictures, and the time its cache takes."""
        try:
            meta = json.loads((capture / "transforms.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CaptureError(f"cannot read {capture / 'transforms.json'}: {error}") from error
        first = meta["frames"][0]
        width, height = (int(meta.get(key, first.get(key))) for key in ("w", "h"))
        scale = 1.0  # halving keeps cameras and pictures of the same size: no rounding
        while self.max_side and max(width, height) * scale > self.max_side:
            scale /= 2
        folder = self.output / capture.name
        folder.mkdir(exist_ok=True)
        before = self.known["captures"].get(self._name(capture), {})
        there = (folder / "cache").exists()
        command = ["maskfield", "extract", "--data", str(capture), "--cache-dir", str(folder / "cache")]
        cache = run_step(
            f"{capture.name}: masks and embeddings",
            "cache",
            [*command, "--method", self.methods[0], "--proposer", self.proposer],
            folder / "cache.log",
        )
        return {
            "pictures": len(meta["frames"]),
            "size": [int(width * scale), int(height * scale)],
            "scale": scale,
            "proposer": self.proposer,
            # Looking through a cache that is there says nothing about the time it took to make.
            "cache": before["cache"] if there and "cache" in before else cache.to_json(),
            "versions": installed_versions(),
            "runs": before.get("runs", {}),
        }

    def _measure(self, capture: Path, method: str, scale: float) -> dict[str, Any]:
        """Trains with one method and evaluates on the held-out views."""
        folder, stamp = self.output / capture.name, f"{method}-{time.strftime('%Y%m%d-%H%M%S')}"
        where = ["--output-dir", str(self.output / "runs"), "--experiment-name", capture.name, "--timestamp", stamp]
        manager = {"cache-dir": folder / "cache", "proposer-kind": self.proposer, "camera-res-scale-factor": scale}
        settings = [str(word) for key, value in manager.items() for word in (f"--pipeline.datamanager.{key}", value)]
        steps: list[Step] = [
            run_step(
                f"{capture.name}: training, {method}",
                "train",
                ["ns-train", method, "--data", str(capture), *where, "--vis", "tensorboard", *settings],
                folder / f"{stamp}-train.log",
            )
        ]
        config = self.output / "runs" / capture.name / method / stamp / "config.yml"
        metrics = folder / f"{stamp}.json"
        steps.append(
            run_step(
                f"{capture.name}: evaluation, {method}",
                "evaluate",
                [
                    *("ns-eval", "--load-config", config),
                    "--output-path",
                    metrics,
                    "--render-output-path",
                    folder / stamp,
                ],
                folder / f"{stamp}-eval.log",
            )
        )
        results = json.loads(metrics.read_text(encoding="utf-8"))["results"]
        print("    " + ", ".join(f"{key} {results[key]:.3f}" for key in COLUMNS if key in results), flush=True)
        return {"method": method, "figures": results, "steps": [step.to_json() for step in steps]}


def markdown(known: dict[str, Any]) -> str:
    """The figures as Markdown tables, with what they depend on."""
    parts = []
    captures = dict(sorted(known.get("captures", {}).items()))
    if captures:
        titles = [title for title, _ in COLUMNS.values()]
        header = ["capture", "method", *titles, "train", "evaluate", "peak memory"]
        rows = [_row(name, run) for name, entry in captures.items() for _, run in sorted(entry["runs"].items())]
        parts.append(_table(header, rows))
        parts.append("\n".join(_about(name, entry) for name, entry in captures.items()))
    if demo := known.get("demo"):
        rows = [[s["name"], duration(s["seconds"]), f"{s['peak_mb'] / 1000:.1f} GB"] for s in demo["steps"]]
        rows.append(["together", duration(demo["seconds"]), ""])
        parts.append(_table(["demo, step", "time", "peak memory"], rows))
        parts.append(f"Demo: {_versions(demo['versions'])}.")
    if pair := known.get("pair"):
        parts.append(_pair_tables(pair))
    return "\n\n".join(parts) or "Nothing measured yet."


def _row(name: str, run: dict[str, Any]) -> list[str]:
    figures = run["figures"]
    cells = [form.format(figures[key]) if key in figures else "" for key, (_, form) in COLUMNS.items()]
    times = [duration(step["seconds"]) for step in run["steps"]]
    return [
        name,
        run["method"],
        *cells,
        *times,
        f"{max(step['peak_mb'] for step in run['steps']) / 1000:.1f} GB",
    ]


def _about(name: str, entry: dict[str, Any]) -> str:
    width, height = entry["size"]
    proposer = "the method's own proposer" if entry["proposer"] == "preset" else f"proposer {entry['proposer']}"
    cache = f"cache made in {duration(entry['cache']['seconds'])}"
    versions = _versions(entry["versions"])
    return f"- {name}: {entry['pictures']} pictures, trained at {width}x{height}, {proposer}, {cache}; {versions}."


def _pair_tables(pair: dict[str, Any]) -> str:
    """Mask quality and zero-shot accuracy of the embedded pair."""
    form = {
        "mean_best_iou": "{:.3f}",
        "share_above_0.5": "{:.3f}",
        "share_above_0.75": "{:.3f}",
        "masks_per_picture": "{:.0f}",
        "seconds_per_picture": "{:.2f} s",
    }
    masks = [
        [name, *(text.format(row[key]) for key, text in form.items())]
        for name, row in pair.items()
        if isinstance(row, dict) and "mean_best_iou" in row
    ]
    words = [
        [name, f"{row['class_accuracy']:.3f}", f"{row['colour_accuracy']:.3f}"]
        for name, row in pair.items()
        if isinstance(row, dict) and "class_accuracy" in row
    ]
    phrases = next((row["phrases"] for row in pair.values() if isinstance(row, dict) and "phrases" in row), 0)
    titles = ["automatic masks", "mean best IoU", "above 0.5", "above 0.75", "masks a picture", "time a picture"]
    about = f"Embedded pair: {pair['pictures']} rendered pictures of layouts not trained on, {phrases} class phrases."
    return "\n\n".join([_table(titles, masks), _table(["regions", "class accuracy", "colour accuracy"], words), about])


def _versions(versions: dict[str, str]) -> str:
    packages = ", ".join(f"{name} {versions[name]}" for name in ("torch", "nerfstudio") if name in versions)
    return f"{versions['cores']} CPU cores, Python {versions['python']}, {packages}"


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def replace_block(text: str, block: str) -> str:
    """The text with what stands between the two markers replaced.

    Raises:
        MaskfieldError: the markers are missing.
    """
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise MaskfieldError(f"the README has lost its markers {BEGIN} and {END}")
    return f"{head}{BEGIN}\n{block}\n{END}{tail}"


if __name__ == "__main__":
    try:
        tyro.cli(Measure, description=__doc__).run()
    except MaskfieldError as failure:
        sys.exit(f"error: {failure}")
