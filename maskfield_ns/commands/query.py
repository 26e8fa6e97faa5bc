"""``maskfield query``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from maskfield_ns.errors import MaskfieldError
from maskfield_ns.files import slug, write_json
from maskfield_ns.pictures.sheets import class_picture, contact_sheet, heat_map, overlay, save_png
from maskfield_ns.scene import Answer, RenderedView, Scene

MAX_SCALE = 8
"""Times the size of the capture's pictures: beyond it there is nothing more to see, and memory ends."""


def query(
    load_config: Path,
    phrases: Sequence[str],
    output: Path,
    negatives: Sequence[str],
    split: str,
    max_views: int,
    scale: float,
    exports: Sequence[str] = (),
) -> None:
    """Answers phrases in some views and writes pictures and ``answers.json`` into ``output``.

    Args:
        load_config: the run.
        phrases: what to ask for.
        output: folder.
        negatives: what relevancy is measured against; empty for the run's.
        split: views to answer in.
        max_views: at most this many; 0 for all.
        scale: of the picture size.
        exports: names of .json and .ply files with what was found in 3D.

    Raises:
        MaskfieldError: no phrase, an empty one, no such run, or the output cannot be written.
    """
    if not phrases or not all(p.strip() for p in phrases):
        raise MaskfieldError('give at least one phrase, e.g. --text "red mug", and no empty one')
    if not 0 < scale <= MAX_SCALE or max_views < 0:
        raise MaskfieldError(f"--scale must be above 0 and at most {MAX_SCALE}, and --max-views 0 (all) or more")
    wrong = [name for name in exports if Path(name).suffix not in (".json", ".ply") or Path(name).name != name]
    if wrong:
        raise MaskfieldError(f"--export takes names of .json and .ply files in the output folder, not {wrong[0]}")
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MaskfieldError(f"cannot write to {output}: {error.strerror}") from error
    scene = Scene.load(load_config)
    answers = scene.query(list(dict.fromkeys(phrases)), negatives or None)
    for answer in answers:
        verdict = "found" if answer.found else "not found"
        print(f'"{answer.phrase}": {verdict} (relevancy {answer.score:.2f})')
    cameras = scene.cameras("train" if split == "train" else "test", scale)
    if not cameras:
        raise MaskfieldError(f"the run's capture has no views in the {split} split: try --split train")
    if max_views and len(cameras) > max_views:
        cameras = [cameras[i] for i in np.linspace(0, len(cameras) - 1, max_views).round().astype(int)]
    taken: set[str] = set()
    names = {a.phrase: slug(a.phrase, taken) for a in answers}
    rows, views = [], []
    for number, camera in enumerate(cameras):
        view = scene.render(camera, answers)
        views.append({"view": camera.name, "phrases": _write_view(output, number, view, answers, names)})
        tiles = [(camera.name, view.rgb), ("class map", class_picture(view.class_map, [a.phrase for a in answers]))]
        tiles += [
            (a.phrase if a.found else f"{a.phrase}: not found", heat_map(view.relevancy[a.phrase])) for a in answers
        ]
        rows.append(tiles)
        print(f"view {number + 1}/{len(cameras)}: {camera.name}", flush=True)
    contact_sheet(rows, output / "contact_sheet.png")
    write_json(
        output / "answers.json",
        {
            "run": str(scene.config_path),
            "step": scene.step,
            "negatives": list(answers[0].negatives),
            "found_threshold": scene.model.config.decision.found_threshold,
            "answers": [
                {"phrase": a.phrase, "found": a.found, "score": a.score, "file": names[a.phrase]} for a in answers
            ],
            "views": views,
        },
    )
    print(f"pictures: {output / 'contact_sheet.png'} and one overlay and mask per phrase and view")
    print(f"scores: {output / 'answers.json'}")
    _export(scene, [answer for answer in answers if answer.found], output, exports)


def _export(scene: Scene, found: Sequence[Answer], output: Path, names: Sequence[str]) -> None:
    """Writes what was found in 3D."""
    if not names:
        return
    if not found:
        print("nothing was found: nothing is exported")
        return
    from maskfield_ns.selection.export import boxes_json, export_mesh, write_things

    things = [scene.measure(answer) for answer in found]
    for name in names:
        path = output / name
        if path.suffix == ".json":
            run = {"config": str(scene.config_path), "step": scene.step}
            write_json(path, boxes_json(things, scene.frame, run))
            print(f"boxes: {path}")
        elif path.stem.endswith("mesh"):
            taken: set[str] = set()
            for thing in things:
                own = "" if len(things) == 1 else f"_{slug(thing.selection.name, taken)}"
                target = output / f"{path.stem}{own}.ply"
                print(f"mesh: {target} ({export_mesh(thing, target)} triangles)")
        else:
            write_things(things, output, "scene", False, path.stem)


def _write_view(
    output: Path, number: int, view: RenderedView, answers: Sequence[Answer], names: dict[str, str]
) -> dict[str, Any]:
    figures = {}
    for answer in answers:
        mask, heat = view.masks[answer.phrase], view.relevancy[answer.phrase]
        stem = f"view_{number:03d}_{names[answer.phrase]}"
        save_png(output / f"{stem}_mask.png", mask)
        save_png(output / f"{stem}_overlay.png", overlay(view.rgb, mask))
        figures[answer.phrase] = {
            "visible": bool(mask.any()),
            "pixels": int(mask.sum()),
            "max_relevancy": float(heat.max()),
            "files": [f"{stem}_mask.png", f"{stem}_overlay.png"],
        }
    return figures
