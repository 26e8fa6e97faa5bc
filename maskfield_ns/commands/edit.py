"""``maskfield edit``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maskfield_ns.editing.build import load_edits
from maskfield_ns.editing.edits import FILE_NAME, EditList
from maskfield_ns.errors import EditError, MaskfieldError
from maskfield_ns.runs import EDITED_CONFIG, find_config
from maskfield_ns.scene import Scene


@dataclass(frozen=True)
class Request:
    """What the command line asks for."""

    load_config: Path
    text: str | None
    queries: tuple[int, ...]
    level: Any
    action: str | None
    how: dict[str, Any]
    undo: bool
    clear: bool
    bake: Path | None
    preview: Path | None


def edit(request: Request) -> None:
    """Adds an edit to those kept beside a run, or takes one back; lists them all.

    Raises:
        MaskfieldError: no such run, nothing selected, or an edit that makes no sense.
    """
    config = find_config(request.load_config)
    if config.name == EDITED_CONFIG:
        config = config.parent / "config.yml"
    if sum((request.undo, request.clear, request.action is not None)) > 1:
        raise EditError("give one of --action, --undo and --clear")
    edits = load_edits(config)
    if request.undo:
        edits = edits.undone()
    if request.clear:
        edits = EditList()
    changed = request.undo or request.clear
    if changed or request.action or request.bake or request.preview:
        scene = Scene.load(config)
        scene.edits = edits
        if request.action:
            selection = _selection(scene, request)
            scene.edit(request.action, selection, **request.how)
            changed = True
        if changed:
            path = scene.save_edits()
            print(f"edits: {config.parent / FILE_NAME}")
            print(f"see them: ns-viewer --load-config {path}")
            print(f"          ns-render dataset --load-config {path} --rendered-output-names rgb")
        edits = scene.edits
        _outputs(scene, request)
    for number, item in enumerate(edits.edits, 1):
        print(f"{number}: {item.describe()}")
    if not edits:
        print("no edits: the scene is shown as it was trained")


def _selection(scene: Scene, request: Request) -> Any:
    """What the edit applies to: in this scene, or for an insertion in the run it comes from."""
    if request.action == "insert":
        source = request.how.get("source")
        if source is None or Path(source).suffix == ".ply" or not (request.text or request.queries):
            return None
        scene = Scene.load(source)
        request.how["source"] = scene.config_path
    if request.text is not None:
        return scene.select(request.text, request.level)
    if request.queries:
        return scene.select(list(request.queries))
    raise EditError(f"say what to {request.action}: --text or --queries")


def _outputs(scene: Scene, request: Request) -> None:
    if request.bake is not None:
        if not scene.selector.gaussian:
            raise MaskfieldError("only Gaussians can be baked; a radiance field is edited when it is rendered")
        count = scene.export(request.bake)
        print(f"{request.bake}: {count} Gaussians, edits included")
    if request.preview is not None:
        from maskfield_ns.pictures.sheets import contact_sheet

        cameras = scene.cameras("test") or scene.cameras("train")
        chosen = [cameras[i] for i in sorted({0, len(cameras) // 3, 2 * len(cameras) // 3})]
        contact_sheet([[(camera.name, scene.render(camera).rgb) for camera in chosen]], request.preview)
        print(f"picture: {request.preview}")
