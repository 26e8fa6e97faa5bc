"""``maskfield export``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from maskfield_ns.errors import MaskfieldError, SelectionError
from maskfield_ns.files import write_json
from maskfield_ns.scene import Scene
from maskfield_ns.selection.export import boxes_json, write_things
from maskfield_ns.selection.selector import Level


def export(
    load_config: Path,
    output: Path,
    phrases: Sequence[str],
    queries: Sequence[int],
    level: Level,
    frame: Literal["scene", "capture"],
    mesh: bool,
) -> None:
    """Writes what a run holds into a folder: the scene's Gaussians, a .ply per thing, ``boxes.json``, ``objects.json``.

    Raises:
        MaskfieldError: no such run, nothing found at all, or the output cannot be written.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MaskfieldError(f"cannot write to {output}: {error.strerror}") from error
    scene = Scene.load(load_config)
    run = {"config": str(scene.config_path), "step": scene.step}
    if scene.selector.gaussian:
        count = scene.export(output / "scene.ply", frame=frame)
        print(f"{output / 'scene.ply'}: {count} Gaussians with the property instance (a query of the scene, -1: none)")
    elif not phrases and not queries:
        raise MaskfieldError("a radiance field has no Gaussians to write: name things with --text or --queries")
    objects = scene.objects()
    write_json(
        output / "objects.json",
        {"format": "maskfield objects", "schema_version": 1, "run": run, "objects": [vars(thing) for thing in objects]},
    )
    print(f"{output / 'objects.json'}: {len(objects)} things and their names")
    things, missing = [], []
    for phrase in dict.fromkeys(phrases):
        try:
            things.append(scene.measure(scene.select(phrase, level)))
        except SelectionError as error:
            missing.append(phrase)
            print(f"not found: {error}")
    things += [scene.measure(scene.select(query)) for query in queries]
    write_things(things, output, frame, mesh)
    if things:
        write_json(output / "boxes.json", boxes_json(things, scene.frame, run))
        print(f"{output / 'boxes.json'}: boxes, centroids and volumes in scene and capture coordinates")
    if missing and not things:
        raise MaskfieldError(f"none of {', '.join(missing)} was found in the scene")
