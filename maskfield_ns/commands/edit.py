"""``maskfield edit``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from maskfield_ns.checkpoints import newest_first
from maskfield_ns.commands.options import Result
from maskfield_ns.editing.build import load_edits, save_edits
from maskfield_ns.editing.edits import FILE_NAME, EditList
from maskfield_ns.errors import MaskfieldError
from maskfield_ns.runs import CHECKPOINTS, CONFIG_NAME, EDITED_CONFIG, find_config

if TYPE_CHECKING:
    from maskfield_ns.commands.edit_options import EditCommand, Insert
    from maskfield_ns.scene import Scene


def edit(options: EditCommand) -> Result:
    """Adds an edit to those stored beside a run, or takes one back; lists them all.

    The scene is opened only for an edit or for files of it: edits are taken back and listed without.

    Raises:
        MaskfieldError: no such run, nothing selected, or an edit that makes no sense.
    """
    config = find_config(options.load_config)
    if config.name == EDITED_CONFIG:
        config = config.parent / CONFIG_NAME
    edits = load_edits(config)
    if options.takes_back == "last":
        edits = edits.undone()
    if options.takes_back == "all":
        edits = EditList()
    changed = bool(options.takes_back or options.kind)
    if options.kind or options.files.bake or options.files.preview:
        from maskfield_ns.scene import Scene

        scene = Scene.load(config)
        scene.edits = edits
        if options.kind:
            selection, how = _selection(scene, options)
            scene.edit(options.kind, selection, **how)
            edits = scene.edits
        if changed:
            _report(config, scene.save_edits())
        _write_files(scene, options)
    elif changed:
        newest = newest_first(config.resolve().parent / CHECKPOINTS)[0]
        _report(config, save_edits(edits, config, int(newest.stem.removeprefix("step-"))))
    lines = [item.describe() for item in edits.edits]
    for number, line in enumerate(lines, 1):
        print(f"{number}: {line}")
    if not lines:
        print("no edits: the scene is shown as it was trained")
    return Result({"config": str(config), "edits": lines})


def _report(config: Path, edited: Path) -> None:
    print(f"edits: {config.parent / FILE_NAME}")
    print(f"see them: ns-viewer --load-config {edited}")
    print(f"          ns-render dataset --load-config {edited} --rendered-output-names rgb")


def _selection(scene: Scene, options: EditCommand) -> tuple[Any, dict[str, Any]]:
    """What the edit applies to (in this scene, or for an insertion in the run it comes from), and its arguments."""
    how, target = options.arguments(), options.selected
    if options.kind == "insert":
        source = cast("Insert", options).source
        if source is None or source.suffix == ".ply" or not target.given:
            return None, how
        from maskfield_ns.scene import Scene as Opened

        scene = Opened.load(source)
        how["source"] = scene.config_path
    if target.text is not None:
        return scene.select(target.text, target.level), how
    return scene.select(list(target.queries)), how


def _write_files(scene: Scene, options: EditCommand) -> None:
    bake, preview = options.files.bake, options.files.preview
    if bake is not None:
        if not scene.selector.gaussian:
            raise MaskfieldError("only Gaussians can be baked; a radiance field is edited when it is rendered")
        print(f"{bake}: {scene.export(bake)} Gaussians, edits included")
    if preview is not None:
        from maskfield_ns.pictures.sheets import contact_sheet

        cameras = scene.cameras("test") or scene.cameras("train")
        chosen = [cameras[i] for i in sorted({0, len(cameras) // 3, 2 * len(cameras) // 3})]
        contact_sheet([[(camera.name, scene.render(camera).rgb) for camera in chosen]], preview)
        print(f"image: {preview}")
