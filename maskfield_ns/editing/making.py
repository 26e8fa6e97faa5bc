"""Edits as users describe them, kept beside a run; what :class:`maskfield_ns.Scene` and the commands share."""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from maskfield_ns.editing import edits as operations
from maskfield_ns.editing.edits import FILE_NAME, KINDS, Edit, EditList
from maskfield_ns.editing.selection import GaussianSelection, Selection
from maskfield_ns.editing.similarity import Similarity, axis_rotation
from maskfield_ns.errors import EditError, MaskfieldError

if TYPE_CHECKING:
    from maskfield_ns.scene import Scene

EDITED_CONFIG = "config_edited.yml"
"""The run's config with its edits, for nerfstudio's commands."""


def make_edit(
    scene: Scene,
    kind: str,
    selection: Selection | None = None,
    *,
    colour: Sequence[float] | None = None,
    strength: float = 0.8,
    transform: Similarity | None = None,
    translation: Sequence[float] | None = None,
    rotation: float = 0.0,
    axis: Sequence[float] = (0.0, 0.0, 1.0),
    scale: float = 1.0,
    at: Sequence[float] | None = None,
    copy: int | None = None,
    source: Path | str | None = None,
) -> Edit:
    """One edit; the arguments are those of :meth:`maskfield_ns.Scene.edit`.

    Raises:
        EditError: arguments are missing or make no sense.
    """
    if kind not in KINDS:
        raise EditError(f"an edit is one of {', '.join(KINDS)}, not {kind!r}")
    moving = transform is not None or translation is not None or at is not None or rotation != 0 or scale != 1
    if kind == "insert":
        if source is None:
            raise EditError("an insertion needs a source: a .ply of Gaussians, or the config.yml of another run")
        if transform is None and moving:
            points = inserted_points(Path(source), selection)
            transform = placement(points, translation, axis_rotation(axis, rotation), scale, at)
        return operations.insert(source, transform, selection)
    if selection is None:
        raise EditError(f"say what to {kind}: a selection is missing")
    if kind == "tint":
        if colour is None:
            raise EditError("a tint needs a colour")
        return operations.tint(selection, colour, strength, copy)
    if kind == "delete":
        return operations.delete(selection, copy)
    if kind == "extract":
        return operations.extract(selection, copy)
    if not moving:
        raise EditError(f"a {kind} needs to know where to: translation, rotation, scale or at")
    if transform is None:
        points = scene.measure(selection).cloud.points
        transform = placement(points, translation, axis_rotation(axis, rotation), scale, at)
    make = operations.move if kind == "move" else operations.duplicate
    return make(selection, transform, copy)


def placement(
    points: np.ndarray,
    translation: Sequence[float] | None,
    rotation: np.ndarray,
    scale: float,
    at: Sequence[float] | None,
) -> Similarity:
    """Turns and scales a thing about its middle, then moves it; with ``at``, so that its lowest middle point is there.

    Raises:
        EditError: both a translation and a place are given, or numbers make no sense.
    """
    if at is not None and translation is not None:
        raise EditError("give either a translation or a place, not both")
    low, high = np.quantile(points, (0.01, 0.99), axis=0)
    turned = Similarity.about((low + high) / 2, scale, rotation)
    if at is None:
        shift = np.zeros(3) if translation is None else np.asarray(translation, np.float64)
    else:
        low, high = np.quantile(turned(points), (0.01, 0.99), axis=0)
        shift = np.asarray(at, np.float64) - [(low[0] + high[0]) / 2, (low[1] + high[1]) / 2, low[2]]
    return Similarity(1.0, np.eye(3), shift) @ turned


def inserted_points(source: Path, selection: Selection | None) -> np.ndarray:
    """Points of what an insertion takes, in its own coordinates.

    Raises:
        PlyError, CheckpointError: the source cannot be read. EditError: nothing is selected in a run.
    """
    if source.suffix == ".ply":
        from maskfield_ns.editing.ply import read_gaussians

        return read_gaussians(source)["means"].astype(np.float64)
    if selection is None:
        raise EditError(f"say what to take from {source}: a selection made in that run")
    from maskfield_ns.scene import Scene

    return Scene.load(source).measure(selection).cloud.points


def save_edits(scene: Scene) -> Path:
    """Writes ``edits.json`` and ``config_edited.yml`` beside a run's config; returns the latter's path.

    Raises:
        MaskfieldError: a file cannot be written.
    """
    folder = scene.config_path.resolve().parent
    run = {"config": scene.config_path.name, "step": scene.step}
    scene.edits.save(folder / FILE_NAME, run)
    return write_edited_config(scene.config_path, folder / FILE_NAME)


def write_edited_config(config: Path, edit_file: Path) -> Path:
    """A run's config whose model shows an edit file; nerfstudio's commands read configs and nothing else.

    Raises:
        MaskfieldError: it cannot be written.
    """
    import yaml

    # As trusted as the config is by every nerfstudio command: its format names classes by import path.
    loaded = yaml.load(config.read_text(encoding="utf-8"), Loader=yaml.Loader)
    loaded.pipeline.model.edit_file = str(edit_file.resolve())
    path = config.resolve().parent / EDITED_CONFIG
    temporary = path.parent / f".{secrets.token_hex(8)}.tmp"
    try:
        temporary.write_text(yaml.dump(loaded), encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise MaskfieldError(f"cannot write {path}: {error.strerror or error}") from error
    return path


def load_edits(config: Path) -> EditList:
    """The edits kept beside a run; an empty list if there are none.

    Raises:
        EditError: the edit file is damaged.
    """
    path = config.resolve().parent / FILE_NAME
    return EditList.load(path) if path.exists() else EditList()


def export(scene: Scene, path: Path, selection: Selection | None, frame: Literal["scene", "capture"]) -> int:
    """What :meth:`maskfield_ns.Scene.export` does."""
    from maskfield_ns.cli import write_json
    from maskfield_ns.editing import exporting

    if path.suffix == ".json":
        if selection is None:
            raise MaskfieldError("boxes are of things: give a selection")
        run = {"config": str(scene.config_path), "step": scene.step}
        write_json(path, exporting.boxes_json([scene.measure(selection)], scene.frame, run))
        return 1
    if path.suffix != ".ply":
        raise MaskfieldError(f"{path.name}: an export is a .ply or a .json file")
    if path.stem.endswith("mesh"):
        if selection is None:
            raise MaskfieldError("a mesh is of a thing: give a selection")
        return exporting.export_mesh(scene.measure(selection), path, frame)
    if selection is None or isinstance(selection, GaussianSelection):
        if not scene.selector.gaussian:
            raise MaskfieldError("a radiance field cannot be written as Gaussians: export a selection as points")
        return exporting.export_gaussians(scene.selector, scene.frame, path, selection, frame)
    return exporting.export_points(scene.measure(selection), path, frame)
