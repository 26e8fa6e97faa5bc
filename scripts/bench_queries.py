#!/usr/bin/env python
"""Latency of questions and clicks in the viewer's session, and how often they are right on labelled captures.

    python scripts/bench_queries.py --output bench --splat RUN [RUN ...] --nerf RUN [RUN ...] [--absent CAPTURE ...]

Runs are config.yml files (or their folders). Latency is measured on the first run of each kind, success on all.
Success: texts, clicks and image queries on held-out views; texts and images of what is not in the scene. Images are
crops of photographs (10 % wider than the label); absent ones are plain, noisy and checkered, and crops from the
captures of --absent of classes that the run's own capture does not have.
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
from PIL import Image
from scipy import ndimage

from maskfield_ns.answers.answer import Answer
from maskfield_ns.answers.assignments import PixelAssignments
from maskfield_ns.evaluation.labels import Label, LabelledCapture
from maskfield_ns.scene import Scene
from maskfield_ns.viewer.session import PICTURE, Session

SIZES = ((320, 240), (480, 360), (960, 720))
CASES = 30
GOOD_IOU = 0.7
CROPS = 3
"""Image queries per label."""
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


def success(scene: Scene, labels: LabelledCapture, scale: float, absent: list[LabelledCapture]) -> dict:
    """Texts, clicks, images and what is absent on the held-out views, rendered at a share of the labels' size."""
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
    report: dict[str, Any] = {"texts": [], "clicks": [], "images": [], "absent": [], "absent_images": []}
    views = {name: session.view_of(camera) for name, camera, _, _ in things}

    def mask_of(answer: Answer, view: PixelAssignments) -> np.ndarray:
        return answer.mask(scene.model.query_head, view).cpu().numpy()

    for name, camera, phrase, mask in evenly(texts, CASES):
        (answer,) = scene.query(phrase)
        shown = scene.render(camera, [answer]).masks[phrase]
        report["texts"].append(
            {
                "view": name,
                "phrase": phrase,
                "iou": iou(shown, mask),
                "selected_iou": iou(mask_of(answer, views[name].assignments), mask),
            }
        )
    for name, _, label, mask in evenly(things, CASES):
        row, column, _ = inmost(mask)
        answer = session.object_under(views[name], (column + 0.5) / mask.shape[1], (row + 0.5) / mask.shape[0])
        selected = mask_of(answer, views[name].assignments)
        figures = {
            "view": name,
            "object": label.name,
            "iou": iou(selected, mask),
            "holds_pixel": bool(selected[row, column]),
        }
        report["clicks"].append(figures)
    for label, crop in crops(labels, CROPS):
        (answer,) = scene.query(image=crop)
        of_label = [(name, mask) for name, _, other, mask in things if other.id == label.id]
        ious = [iou(mask_of(answer, views[name].assignments), mask) for name, mask in of_label]
        if ious:
            mean = float(np.mean(ious))
            report["images"].append({"object": label.name, "score": answer.score, "found": answer.found, "iou": mean})
    for phrase in ABSENT:
        (answer,) = scene.query(phrase)
        report["absent"].append({"phrase": phrase, "score": answer.score, "found": answer.found})
    own = set(labels.classes())
    strangers = [
        (f"{other.directory.name}: {label.name}", crop)
        for other in absent
        for label, crop in crops(other, CROPS)
        if label.class_name not in own
    ]
    for name, image in [*absent_images().items(), *strangers]:
        (answer,) = scene.query(image=image)
        report["absent_images"].append({"image": name, "score": answer.score, "found": answer.found})
    return report


def crops(labels: LabelledCapture, count: int) -> list[tuple[Label, np.ndarray]]:
    """(label, uint8 [H, W, 3]): photographs cut to a label and a tenth around it; the views that show most of it."""
    paths = sorted((labels.directory / "images").iterdir())[::3]
    maps = {path: labels.instances(path.name) for path in paths}
    result = []
    for label in labels.labels:
        by_area = sorted(paths, key=lambda path: -int((maps[path] == label.id).sum()))
        for path in evenly(by_area[: len(by_area) // 3], count):
            rows, columns = (maps[path] == label.id).nonzero()
            if len(rows) < SMALLEST * maps[path].size:
                continue
            (top, bottom), (left, right) = ((v.min(), v.max() + 1) for v in (rows, columns))
            down, across = (bottom - top) // 10, (right - left) // 10
            with Image.open(path) as photograph:
                pixels = np.asarray(photograph.convert("RGB"))
            result.append((label, pixels[max(0, top - down) : bottom + down, max(0, left - across) : right + across]))
    return result


def absent_images() -> dict[str, np.ndarray]:
    """Images that show nothing: plain, noisy, checkered, striped; uint8 [64, 64, 3]."""
    rng, (y, x) = np.random.default_rng(0), np.indices((64, 64))
    gray = {f"gray {level}": np.full((64, 64), level) for level in (30, 90, 150, 200, 250)}
    gray |= {f"checkerboard {side}": (y // side + x // side) % 2 * 255 for side in (4, 8, 16)}
    gray |= {"stripes": x // 8 % 2 * 200, "gradient": x * 4}
    result = {name: np.repeat(values[..., None], 3, axis=2).astype(np.uint8) for name, values in gray.items()}
    return result | {f"noise {i}": rng.integers(0, 256, (64, 64, 3)).astype(np.uint8) for i in range(4)}


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
        "| method | capture | phrases | phrases, as shown in the viewer | clicks (mean IoU) | images found (mean IoU) "
        "| absent phrases: not found | absent images: not found |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for entry in report["success"]:
        texts, clicks, absent = entry["texts"], entry["clicks"], entry["absent"]
        images, nothing = entry["images"], entry["absent_images"]
        means = [f"{float(np.mean([case['iou'] for case in cases])):.3f}" for cases in (clicks, images)]
        cells = [
            f"{sum(t['iou'] >= GOOD_IOU for t in texts)}/{len(texts)}",
            f"{sum(t['selected_iou'] >= GOOD_IOU for t in texts)}/{len(texts)}",
            f"{sum(c['iou'] >= GOOD_IOU for c in clicks)}/{len(clicks)} ({means[0]})",
            f"{sum(i['found'] for i in images)}/{len(images)} ({means[1]})",
            f"{sum(not a['found'] for a in absent)}/{len(absent)}",
            f"{sum(not a['found'] for a in nothing)}/{len(nothing)}",
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
    parser.add_argument("--absent", type=Path, nargs="*", default=[], help="labelled captures of other scenes")
    parser.add_argument("--scale", type=float, default=1.0, help="of the labels' size, for success")
    parser.add_argument("--only", choices=("latency", "success"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    strangers = [found for found in map(LabelledCapture.load, options.absent) if found is not None]
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
                answers = success(scene, labels, options.scale, strangers)
                report["success"].append({"method": method, "capture": capture.name, **answers})
            write(report, options.output)  # after every run: the next may take long
    write(report, options.output)


if __name__ == "__main__":
    main()
