#!/usr/bin/env python
"""Latency of questions and clicks in the viewer's session, and how often they are right on labelled captures.

    python scripts/bench_queries.py --output bench --splat RUN [RUN ...] --nerf RUN [RUN ...] [--threads 2]

Runs are config.yml files (or their folders). Latency is measured on the first run of each kind, success on all.
Writes queries.md and queries.json into the output folder. Labels (gt/ of the capture) are used for scoring only.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import ndimage

from maskfield_ns.answers import decision
from maskfield_ns.evaluation.labels import LabelledCapture
from maskfield_ns.scene import Scene
from maskfield_ns.viewer.selection import selection_mask
from maskfield_ns.viewer.session import PICTURE, Session

SIZES = ((320, 240), (480, 360), (960, 720))
CASES = 30
GOOD_IOU = 0.7
SMALLEST = 400 / (480 * 360)
"""Share of a picture; labels smaller than this in a view are not asked for."""
NEW_PHRASES = ("red mug", "robot", "duck", "soccer ball", "teddy bear", "tray", "cube", "lego", "table", "blue cup")
ABSENT = (
    # things the embedded CLIP has learnt, but which are in neither scene
    "bicycle", "bunny", "traffic cone", "bowl", "plate", "bottle", "book", "pyramid", "robot arm", "donut",
    # things it has never heard of
    "harp", "lighthouse", "ice cream", "sunflower", "canoe", "waterfall", "parachute", "chandelier", "tractor",
    "pineapple",
)  # fmt: skip


def timed(action: Callable[[], Any]) -> tuple[float, float]:
    """(wall, processor) milliseconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    action()
    return 1000 * (time.perf_counter() - wall), 1000 * (time.process_time() - cpu)


def latency(scene: Scene, repeats: int) -> list[dict]:
    """A row per picture size."""
    rows = []
    cameras = [named.camera for named in scene.cameras("test")]
    scene.model.text(scene.model.config.negatives)  # the text model is loaded when a viewer starts
    for width, height in SIZES:
        views = []
        for camera in cameras[: repeats + 1]:
            camera = camera[0:1].to(camera.device)
            camera.rescale_output_resolution(width / int(camera.width.item()))
            views.append(camera)
        session = Session(scene.model)

        def draw(camera: Any, session: Session = session) -> None:
            session.outputs(lambda: scene.model.render_view(camera, None), camera, None)[PICTURE]

        def ask(text: str, session: Session = session) -> None:
            session.ask(text)
            session.worker.settle()

        def phrase(text: str, camera: Any = views[0]) -> None:
            ask(text)
            draw(camera)

        def click(x: float, camera: Any = views[0], session: Session = session) -> None:
            session.click(camera, x, 0.5)
            draw(camera)

        scene.model.text._known.clear()
        draw(views[0])
        ask("warm up")
        kinds = {
            "new phrase, same camera": [timed(lambda t=t: phrase(t)) for t in NEW_PHRASES[:repeats]],
            "same phrase, new camera": [timed(lambda c=c: draw(c)) for c in views[1:]],
            "click": [timed(lambda x=x: click(x)) for x in np.linspace(0.2, 0.8, repeats)],
        }
        row: dict[str, Any] = {"size": f"{width}x{height}"}
        for kind, times in kinds.items():
            wall, cpu = zip(*times, strict=True)
            row[kind] = {"median_ms": statistics.median(wall), "best_ms": min(wall), "cpu_ms": statistics.median(cpu)}
        rows.append(row)
        print(json.dumps(row), flush=True)
    return rows


def iou(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two masks."""
    return float((a & b).sum() / max(1, (a | b).sum()))


def inmost(mask: np.ndarray) -> tuple[int, int, float]:
    """Row and column of the pixel farthest from a mask's border, and that distance: where a person would click."""
    depth = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    row, column = np.unravel_index(depth.argmax(), depth.shape)
    return int(row), int(column), float(depth.max())


def evenly(items: list, count: int) -> list:
    """Some items of a list, evenly spread."""
    return [items[i] for i in np.unique(np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int))]


def success(scene: Scene, labels: LabelledCapture, scale: float) -> dict:
    """Scripted phrases, clicks and absent things on the held-out views, rendered at a share of the labels' size."""
    session = Session(scene.model)
    things = []
    for named in scene.cameras("test"):
        camera = named.camera
        full = labels.instances(named.name).shape
        ids = labels.instances(named.name, (round(full[0] * scale), round(full[1] * scale)))
        camera.rescale_output_resolution(ids.shape[1] / int(camera.width.item()))
        for label in labels.labels:
            mask = ids == label.id
            if mask.mean() >= SMALLEST and inmost(mask)[2] >= 3:
                things.append((named.name, camera, label, mask))
    texts = [(name, camera, phrase, mask) for name, camera, label, mask in things for phrase in label.queries]
    report: dict[str, Any] = {"texts": [], "clicks": [], "absent": []}
    for name, camera, phrase, mask in evenly(texts, CASES):
        session.ask(phrase)
        session.worker.settle()
        view = session.view_of(camera)
        assert session.question is not None
        scores = session.scores(session.question)
        heat = view.memberships.heat(scores, session.settings.rule).movedim(0, -1)
        masks = decision.phrase_masks(heat, scores, session.weights(), session.settings.rule)
        outlined = masks[..., 0].cpu().numpy()
        found = session.found_things()
        selected = selection_mask(view.memberships, found, scene.model).cpu().numpy() if found else mask & False
        report["texts"].append(
            {"view": name, "phrase": phrase, "iou": iou(outlined, mask), "selected_iou": iou(selected, mask)}
        )
    for name, camera, label, mask in evenly(things, CASES):
        row, column, _ = inmost(mask)
        view = session.view_of(camera)
        thing = session.thing_under(view.memberships, (column + 0.5) / mask.shape[1], (row + 0.5) / mask.shape[0])
        selected = selection_mask(view.memberships, thing, scene.model).cpu().numpy() if thing else mask & False
        report["clicks"].append({"view": name, "object": label.name, "iou": iou(selected, mask)})
    for phrase in ABSENT:
        session.ask(phrase)
        session.worker.settle()
        (finding,) = session.findings()
        report["absent"].append({"phrase": phrase, "score": finding.score, "found": finding.found})
    return report


def table(report: dict) -> str:
    """Markdown of everything."""
    lines = [
        f"Threads: {report['threads']}; wall time, median of {report['repeats']} (processor time of all threads in "
        "brackets); text model loaded, phrases never asked before.",
        "",
        "| method | size | new phrase, same camera | same phrase, new camera | click |",
        "|---|---|---|---|---|",
    ]
    for method, rows in report["latency"].items():
        for row in rows:
            cells = [f"{v['median_ms']:.0f} ms ({v['cpu_ms']:.0f})" for k, v in row.items() if k != "size"]
            lines.append(f"| {method} | {row['size']} | " + " | ".join(cells) + " |")
    lines += [
        "",
        f"A phrase or click counts as right when the mask has an IoU of at least {GOOD_IOU} with the label.",
        "",
        "| method | capture | phrases, outlined | phrases, selected | clicks | absent: not found |",
        "|---|---|---|---|---|---|",
    ]
    for entry in report["success"]:
        texts, clicks, absent = entry["texts"], entry["clicks"], entry["absent"]
        cells = [
            f"{sum(t['iou'] >= GOOD_IOU for t in texts)}/{len(texts)}",
            f"{sum(t['selected_iou'] >= GOOD_IOU for t in texts)}/{len(texts)}",
            f"{sum(c['iou'] >= GOOD_IOU for c in clicks)}/{len(clicks)}",
            f"{sum(not a['found'] for a in absent)}/{len(absent)}",
        ]
        lines.append(f"| {entry['method']} | {entry['capture']} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def write(report: dict, folder: Path) -> None:
    """Writes the report so far."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "queries.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    (folder / "queries.md").write_text(table(report), encoding="utf-8")
    print(table(report), flush=True)


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--splat", type=Path, nargs="*", default=[])
    parser.add_argument("--nerf", type=Path, nargs="*", default=[])
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--labels", type=Path, nargs="*", default=[], help="labelled captures; default: each run's own")
    parser.add_argument("--scale", type=float, default=1.0, help="of the labels' size, for success")
    parser.add_argument("--only", choices=("latency", "success"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    report: dict[str, Any] = {"threads": options.threads, "repeats": options.repeats, "latency": {}, "success": []}
    for kind, runs in (("Gaussians", options.splat), ("NeRF", options.nerf)):
        for number, run in enumerate(runs):
            scene = Scene.load(run)
            method = f"{scene.config_path.parent.parent.name} ({kind})"
            if number == 0 and options.only != "success":
                report["latency"][method] = latency(scene, options.repeats)
            if options.only == "latency":
                continue
            own = Path(scene.pipeline.datamanager.capture_dir)
            capture = next((p for p in options.labels if p.name == own.name), own)
            labels = LabelledCapture.load(capture)
            if labels is not None:
                answers = success(scene, labels, options.scale)
                report["success"].append({"method": method, "capture": capture.name, **answers})
            write(report, options.output)  # after every run: the next may take long
    write(report, options.output)


if __name__ == "__main__":
    main()
