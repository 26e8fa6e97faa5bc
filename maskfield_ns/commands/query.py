"""``maskfield query``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from maskfield_ns.answers.answer import Answer
from maskfield_ns.commands.options import Result
from maskfield_ns.errors import MaskfieldError
from maskfield_ns.files import slug, write_json
from maskfield_ns.pictures.sheets import class_picture, contact_sheet, heat_map, overlay, save_png
from maskfield_ns.scene import RenderedView, Scene

if TYPE_CHECKING:
    from maskfield_ns.cli import Query


def query(options: Query) -> Result:
    """Answers phrases in some views and writes images and ``answers.json`` into the output folder.

    Raises:
        MaskfieldError: the run cannot be opened, or the output cannot be written.
    """
    output = options.output
    scene = Scene.load(options.load_config)
    answers = scene.query(options.phrases, options.negatives or None)
    for answer in answers:
        verdict = "found" if answer.found else "not found"
        print(f'"{answer.phrase}": {verdict} (relevancy {answer.score:.2f})')
    cameras = scene.cameras(options.views.split, options.views.scale)
    if not cameras:
        raise MaskfieldError(f"the run's capture has no views in the {options.views.split} split: try --split train")
    wanted = options.views.max_views
    if wanted and len(cameras) > wanted:
        cameras = [cameras[i] for i in np.linspace(0, len(cameras) - 1, wanted).round().astype(int)]
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
    report = {
        "run": str(scene.config_path),
        "step": scene.step,
        "negatives": list(answers[0].negatives),
        "found_threshold": scene.model.config.decision.found_threshold,
        "answers": [{"phrase": a.phrase, "found": a.found, "score": a.score, "file": names[a.phrase]} for a in answers],
        "views": views,
    }
    write_json(output / "answers.json", report)
    print(f"images: {output / 'contact_sheet.png'} and one overlay and mask per phrase and view")
    print(f"scores: {output / 'answers.json'}")
    found = [answer for answer in answers if answer.found]
    _export(scene, found, output, options.exports)
    return Result({"output": str(output), **report}, bool(found))


def _export(scene: Scene, found: Sequence[Answer], output: Path, names: Sequence[str]) -> None:
    """Writes what was found in 3D."""
    if not names:
        return
    if not found:
        print("nothing was found: nothing is exported")
        return
    from maskfield_ns.selection.export import boxes_json, export_mesh, write_objects

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
            write_objects(things, output, "scene", False, path.stem)


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
