"""How good selections in 3D are, on a run of a labelled capture (labels are read here, for scoring, and nowhere else).

    python scripts/measure_selections.py RUN [--output FILE.json] [--scale 0.5]

Per phrase of the labels:
  mask     IoU of the selection's mask with the label, pooled over the held-out views that show it
  gaussian (runs of Gaussians) IoU with the Gaussians that paint the label, weighted by the pixels they paint:
           a Gaussian is the label's when most of what it paints in all training views lies in it
  seconds  to make the selection; the survey of views, made once, is timed on its own
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from maskfield_ns.errors import SelectionError
from maskfield_ns.evaluation.labels import LabelledCapture
from maskfield_ns.files import write_json
from maskfield_ns.scene import NamedCamera, Scene
from maskfield_ns.selection.selection import GaussianSelection
from maskfield_ns.splatting import accumulate


def painted(scene: Scene, labels: LabelledCapture, scale: float) -> torch.Tensor:
    """Pixels that each Gaussian paints within each label id, over all training views: [N, 256]."""
    total = torch.zeros(len(scene.model.gauss_params["means"]), 256)
    for camera in scene.cameras("train", scale):
        view = scene.model.prepared_view(camera.camera)
        ids = torch.from_numpy(labels.instances(camera.name, size_of(camera)).astype(np.int64))
        total += accumulate(view, torch.nn.functional.one_hot(ids, 256).float())[0]
    return total


def size_of(camera: NamedCamera) -> tuple[int, int]:
    """(height, width)."""
    return int(camera.camera.height.item()), int(camera.camera.width.item())


def measure(scene: Scene, labels: LabelledCapture, scale: float) -> dict[str, Any]:
    """Figures per phrase."""
    start = time.perf_counter()
    _ = scene.selector.surface_views
    result: dict[str, Any] = {"survey_seconds": round(time.perf_counter() - start, 1), "phrases": {}}
    cameras = scene.cameras("test", scale)
    truth = {camera.name: labels.instances(camera.name, size_of(camera)) for camera in cameras}
    weights = painted(scene, labels, scale) if scene.selector.gaussian else None
    scene.query("anything")  # loads the text model
    for phrase, ids in labels.phrases():
        start = time.perf_counter()
        try:
            selection = scene.select(phrase)
        except SelectionError:
            result["phrases"][phrase] = {"found": False}
            continue
        figures: dict[str, Any] = {"found": True, "seconds": round(time.perf_counter() - start, 2)}
        thing = scene.measure(selection)
        both = either = 0
        for camera in cameras:
            label = np.isin(truth[camera.name], list(ids))
            if label.any():
                mask = thing.mask(camera.camera)
                both, either = both + int((mask & label).sum()), either + int((mask | label).sum())
        figures["mask"] = both / max(either, 1)
        if weights is not None and isinstance(selection, GaussianSelection):
            seen = weights.sum(dim=1)
            own = weights[:, list(ids)].sum(dim=1) > 0.5 * seen
            chosen = torch.from_numpy(selection.mask)
            figures["gaussian"] = float(seen[own & chosen].sum() / seen[own | chosen].sum())
        result["phrases"][phrase] = figures
    return result


def main() -> None:
    """Prints a table and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="config.yml of a run, or its folder")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    parser.add_argument("--scale", type=float, default=1.0, help="of the pictures, e.g. 0.5 for half")
    arguments = parser.parse_args()
    scene = Scene.load(arguments.run)
    folder = scene.pipeline.datamanager.capture_dir
    labels = LabelledCapture.load(folder)
    if labels is None:
        parser.error(f"{folder} has no labels")
    result = measure(scene, labels, arguments.scale)
    print("| phrase | mask | gaussian | seconds |\n| --- | --- | --- | --- |")
    for phrase, figures in result["phrases"].items():
        if not figures["found"]:
            print(f"| {phrase} | not found | | |")
            continue
        gaussian = f"{figures['gaussian']:.3f}" if "gaussian" in figures else ""
        print(f"| {phrase} | {figures['mask']:.3f} | {gaussian} | {figures['seconds']:.2f} |")
    found = [figures for figures in result["phrases"].values() if figures["found"]]
    for key in ("mask", "gaussian"):
        values = [figures[key] for figures in found if key in figures]
        if values:
            result[f"mean_{key}"] = float(np.mean(values))
    means = {key: round(value, 4) for key, value in result.items() if key.startswith("mean_")}
    print(json.dumps(means), f"survey: {result['survey_seconds']} s")
    if arguments.output is not None:
        write_json(arguments.output, result)


if __name__ == "__main__":
    main()
