"""``maskfield export``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from maskfield_ns.commands.options import Result
from maskfield_ns.errors import MaskfieldError, NothingFoundError
from maskfield_ns.files import write_json
from maskfield_ns.scene import Scene
from maskfield_ns.selection.export import boxes_json, write_objects

if TYPE_CHECKING:
    from maskfield_ns.cli import Export


def export(options: Export) -> Result:
    """Writes what a run holds: the scene's Gaussians, a .ply per object, ``boxes.json``, ``objects.json``.

    Raises:
        MaskfieldError: the run cannot be opened, there is nothing to write, or the output cannot be written.
    """
    output = options.output
    scene = Scene.load(options.load_config)
    run = {"config": str(scene.config_path), "step": scene.step}
    if scene.selector.gaussian:
        count = scene.export(output / "scene.ply", frame=options.frame)
        print(f"{output / 'scene.ply'}: {count} Gaussians with the property instance (a query of the scene, -1: none)")
    elif not options.phrases and not options.queries:
        raise MaskfieldError("a radiance field has no Gaussians to write: name things with --text or --queries")
    objects = scene.objects()
    write_json(
        output / "objects.json",
        {"format": "maskfield objects", "schema_version": 1, "run": run, "objects": [vars(thing) for thing in objects]},
    )
    print(f"{output / 'objects.json'}: {len(objects)} objects and their names")
    things, missing = [], []
    for phrase in options.phrases:
        try:
            things.append(scene.measure(scene.select(phrase, options.level)))
        except NothingFoundError as error:
            missing.append(phrase)
            print(f"not found: {error}")
    things += [scene.measure(scene.select(query)) for query in options.queries]
    write_objects(things, output, options.frame, options.mesh)
    if things:
        write_json(output / "boxes.json", boxes_json(things, scene.frame, run))
        print(f"{output / 'boxes.json'}: boxes, centroids and volumes in scene and capture coordinates")
    data = {
        "run": run,
        "output": str(output),
        "objects": [thing.selection.name for thing in things],
        "missing": missing,
    }
    return Result(data, bool(things) or not missing)
