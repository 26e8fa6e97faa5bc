"""``maskfield score``."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from maskfield_ns.data import layouts
from maskfield_ns.errors import BenchmarkError
from maskfield_ns.evaluation.protocols.known import unexpected
from maskfield_ns.evaluation.protocols.registry import Benchmark, benchmark, score_folder
from maskfield_ns.evaluation.protocols.scoring import SceneScore
from maskfield_ns.evaluation.worst_cases import WorstCases
from maskfield_ns.files import write_json


def score(
    protocol: str,
    predictions: Path,
    labels: Path,
    rule: str,
    class_file: Path | None,
    output: Path | None,
    pictures: Path | None,
    images: Path | None,
    method: str,
    scene: str | None,
) -> SceneScore:
    """Scores predictions on disk, prints the figures and writes them as JSON if asked to.

    Args:
        protocol: name of a benchmark.
        predictions: folder of one scene's predictions.
        labels: folder of its labels.
        rule: decision rule and averaging, or "default".
        class_file: another class list than the scene's.
        output: JSON file for all figures, readable by ``maskfield bench report``.
        pictures: PNG of the worst cases.
        images: photographs for it, found by the name of the view.
        method: whose predictions these are.
        scene: name of the scene; None: of the folder.

    Raises:
        MaskfieldError: labels or predictions that are missing, broken or do not fit; files that cannot be written.
    """
    chosen = benchmark(protocol).under(rule)
    label_set = chosen.open_labels(labels, class_file)
    worst = WorstCases()
    result = score_folder(chosen, predictions, label_set, rule, worst if pictures else None)
    name = scene or _scene_name(labels)
    result.notes[:0] = unexpected(chosen.name, name, label_set)
    details = result.to_json() | {
        "protocol": chosen.name,
        "rule": chosen.rule(rule),
        "scene": name,
        "split": None,
    }
    _show(chosen, result)
    if pictures is not None:
        worst.write(pictures, lambda view: _photograph(images, view))
        details["worst_cases"] = str(pictures.resolve())
        print(f"worst cases: {pictures}")
    if output is not None:
        write_json(output, {"method_name": method, "benchmark": details})
        print(f"figures: {output}")
    return result


def _show(protocol: Benchmark, result: SceneScore) -> None:
    for name, row in result.classes.items():
        print(f"  {name}: IoU {100 * row['iou']:.1f} %" if "iou" in row else f"  {name}: IoU undefined")
    for key, value in result.figures.items():
        counted = key.startswith("num_")
        title = protocol.metrics.get(key, key)
        print(f"{title}: {int(value)}" if counted else f"{title}: {100 * value:.2f} %")
    for note in result.notes:
        print(f"note: {note}")


def _scene_name(labels: Path) -> str:
    labels = labels.resolve()
    return labels.parent.name if labels.name in ("segmentations", "test_mask") else labels.name


def _photograph(images: Path | None, view: str) -> np.ndarray | None:
    if images is None:
        return None
    from PIL import Image

    try:
        with Image.open(layouts.by_stem([view], layouts.images_in(images), "view", images)[view]) as picture:
            return np.asarray(picture.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        raise BenchmarkError(f"the photograph of {view} in {images} cannot be read: {error}") from error
