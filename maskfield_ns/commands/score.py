"""``maskfield score``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from maskfield_ns.data import layouts
from maskfield_ns.errors import BenchmarkError
from maskfield_ns.evaluation.protocols.known import unexpected
from maskfield_ns.evaluation.protocols.registry import Benchmark, benchmark, score_folder
from maskfield_ns.evaluation.protocols.scoring import SceneScore
from maskfield_ns.evaluation.worst_cases import WorstCases
from maskfield_ns.files import write_json

if TYPE_CHECKING:
    from maskfield_ns.commands.bench_options import Score


def score(options: Score) -> dict[str, Any]:
    """Scores predictions on disk, prints the figures and writes them as JSON if asked to.

    Returns:
        What the JSON file holds, readable by ``maskfield bench report``.

    Raises:
        MaskfieldError: labels or predictions that are missing, broken or do not fit; files that cannot be written.
    """
    chosen = benchmark(options.protocol).under(options.rule)
    label_set = chosen.open_labels(options.labels, options.class_file)
    worst = WorstCases()
    result = score_folder(chosen, options.predictions, label_set, options.rule, worst if options.pictures else None)
    name = options.scene or _scene_name(options.labels)
    result.notes[:0] = unexpected(chosen.name, name, label_set)
    details = result.to_json() | {
        "protocol": chosen.name,
        "rule": chosen.rule(options.rule),
        "scene": name,
        "split": None,
    }
    _show(chosen, result)
    if options.pictures is not None:
        worst.write(options.pictures, lambda view: _photograph(options.images, view))
        details["worst_cases"] = str(options.pictures.resolve())
        print(f"worst cases: {options.pictures}")
    data = {"method_name": options.method, "benchmark": details}
    if options.output is not None:
        write_json(options.output, data)
        print(f"figures: {options.output}")
    return data


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
