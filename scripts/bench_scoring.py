"""How long scoring takes: a prediction set of LERF-OVS's size, against a plain per-pixel Python majority filter.

    python scripts/bench_scoring.py --output OUT

Makes labels and relevancy maps with the frames, picture sizes and numbers of (frame, category) pairs of the four scenes
(22 frames, 208 pairs), scores them from disk and from memory, and filters some of the same masks with the double loop
over pixels that the published evaluators use. Times are seconds of CPU, so that a busy machine does not matter. Writes
OUT/scoring.json. The predictions are drawn, not a method's.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import tyro

from maskfield_ns.commands.steps import installed_versions
from maskfield_ns.errors import MaskfieldError
from maskfield_ns.evaluation.protocols import filters, threshold
from maskfield_ns.evaluation.protocols.predictions import ViewPrediction, read_prediction, write_prediction
from maskfield_ns.evaluation.protocols.registry import benchmark, score_folder
from maskfield_ns.files import write_json

SCENES = {
    "figurines": ((986, 728), 4, 56),
    "ramen": ((988, 731), 7, 71),
    "teatime": ((988, 730), 6, 59),
    "waldo_kitchen": ((985, 725), 5, 22),
}
"""Scene -> (width, height), labelled frames, (frame, category) pairs."""


@dataclass
class BenchScoring:
    """What to measure."""

    output: Path
    """Folder for scoring.json and, while it runs, the predictions (some hundred megabytes)."""
    levels: int = 1
    """Relevancy maps per phrase: 1 as GAGS, 3 as LangSplat."""
    plain_masks: int = 4
    """How many masks the plain filter gets; its time is scaled to all of them. 0: all, which takes long."""
    rule: Literal["langsplat", "langsplat-v2"] = "langsplat"
    """Decision rule."""


def plain_majority(mask: np.ndarray) -> np.ndarray:
    """The 7x7 majority filter as a loop over pixels, clamped and tied as in the protocol."""
    height, width = mask.shape
    result = mask.copy()
    for row in range(height):
        for column in range(width):
            window = mask[max(0, row - 3) : min(row + 4, height - 1), max(0, column - 3) : min(column + 4, width - 1)]
            result[row, column] = np.argmax(np.bincount(window.reshape(-1)))
    return result


def draw(folder: Path, levels: int) -> None:
    """Labels and predictions of all scenes: an ellipse per pair, relevancy high on it and noisy everywhere."""
    rng = np.random.default_rng(0)
    for scene, ((width, height), frames, pairs) in SCENES.items():
        rows, columns = np.mgrid[:height, :width].astype(np.float32)
        (folder / "label" / scene).mkdir(parents=True)
        for frame in range(frames):
            objects, maps = [], {}
            for number in range(pairs // frames + (frame < pairs % frames)):
                centre, radii = rng.uniform(0.1, 0.9, 2) * (width, height), rng.uniform(15, 120, 2)
                angles = np.linspace(0, 2 * np.pi, 60, endpoint=False)
                ring = np.stack([np.cos(angles), np.sin(angles)], axis=1) * radii + centre
                ring = ring.clip(0, (width - 1, height - 1))
                box = [*ring.min(axis=0), *ring.max(axis=0)]
                name = f"thing {number}"
                objects.append({"category": name, "segmentation": ring.tolist(), "bbox": box})
                near = ((columns - centre[0]) / radii[0]) ** 2 + ((rows - centre[1]) / radii[1]) ** 2
                clean = (0.3 + 0.5 / (1 + near**3)).astype(np.float32)
                maps[name] = np.stack(
                    [np.round(clean + rng.normal(0, 0.03, clean.shape), 3) for _ in range(levels)]
                ).astype(np.float32)
            stem = f"frame_{frame + 1:05d}"
            info = {"name": f"{stem}.jpg", "width": width, "height": height}
            path = folder / "label" / scene / f"{stem}.json"
            path.write_text(json.dumps({"info": info, "objects": objects}), encoding="utf-8")
            write_prediction(folder / "predictions" / scene, stem, ViewPrediction(relevancy=maps), list(maps))


def main(args: BenchScoring) -> dict[str, float]:
    """Measures and prints."""
    work = args.output / "drawn"
    if work.exists():
        raise MaskfieldError(f"{work} is in the way; remove it")
    protocol = benchmark("lerf-ovs")
    try:
        print("drawing labels and predictions ...", flush=True)
        draw(work, args.levels)
        from_disk, in_memory, pairs, views, plain, masks = 0.0, 0.0, 0, 0, 0.0, 0
        for scene in SCENES:
            labels = protocol.open_labels(work / "label" / scene, None)
            started = time.process_time()
            result = score_folder(protocol, work / "predictions" / scene, labels, args.rule)
            from_disk += time.process_time() - started
            pairs, views = pairs + int(result.figures["num_pairs"]), views + int(result.figures["num_views"])
            scorer = protocol.make_scorer(args.rule, labels.phrases, None)
            for view in labels.views:
                prediction = read_prediction(work / "predictions" / scene, view, "relevancy", labels.phrases_of(view))
                assert prediction is not None and prediction.relevancy is not None
                started = time.process_time()
                scorer.add(labels.load(view), prediction)
                in_memory += time.process_time() - started
                maps = list(prediction.relevancy.values())
                wanted = len(maps) if args.plain_masks == 0 else min(1, args.plain_masks - masks)
                for relevancy in maps[: max(0, wanted)]:
                    blended = 0.5 * (relevancy[0] + filters.box_mean(relevancy[0], filters.LANGSPLAT_BOX))
                    mask = threshold.normalise(blended) > np.float32(threshold.MASK_THRESHOLD)
                    started = time.process_time()
                    filtered = plain_majority(mask.astype(np.uint8))
                    plain, masks = plain + time.process_time() - started, masks + 1
                    if not np.array_equal(filtered.astype(bool), filters.majority_mask(mask)):
                        raise MaskfieldError(f"{scene}, {view}: the two filters disagree")
    finally:
        shutil.rmtree(work, ignore_errors=True)
    scaled = plain / masks * pairs * args.levels
    figures = {
        "views": views,
        "pairs": pairs,
        "levels": args.levels,
        "seconds_from_disk": round(from_disk, 2),
        "seconds_in_memory": round(in_memory, 2),
        "plain_filter_masks": masks,
        "plain_filter_seconds_per_mask": round(plain / masks, 3),
        "plain_filter_seconds_for_all": round(scaled, 1),
        "ratio_from_disk": round(scaled / from_disk, 1),
        "ratio_in_memory": round(scaled / in_memory, 1),
    }
    write_json(args.output / "scoring.json", figures | {"versions": installed_versions()})
    print(
        f"{views} views, {pairs} pairs, {args.levels} level(s): scored in {from_disk:.1f} s from disk, "
        f"{in_memory:.1f} s in memory.\nPlain majority filter alone: {plain / masks:.2f} s a mask over {masks} masks, "
        f"{scaled:.0f} s for all, which is {scaled / from_disk:.0f} times (from disk) and {scaled / in_memory:.0f} "
        "times (in memory) as long."
    )
    return figures


if __name__ == "__main__":
    try:
        main(tyro.cli(BenchScoring, description=__doc__))
    except MaskfieldError as error:
        sys.exit(f"error: {error}")
