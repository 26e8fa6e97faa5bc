"""Edits as users describe them, kept beside a run; what :class:`maskfield_ns.Scene` and the commands share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from maskfield_ns.editing import edits as operations
from maskfield_ns.editing.edits import FILE_NAME, KINDS, Edit, EditList
from maskfield_ns.errors import EditError
from maskfield_ns.runs import as_trained, open_run, write_edited_config
from maskfield_ns.selection.coordinates import CaptureCoordinates
from maskfield_ns.selection.measure import Measurement
from maskfield_ns.selection.selection import Selection
from maskfield_ns.selection.selector import Selector
from maskfield_ns.selection.transform import Similarity, axis_rotation


def make_edit(
    measure: Callable[[Selection], Measurement],
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
        points = measure(selection).cloud.points
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
        from maskfield_ns.selection.ply import read_gaussians

        return read_gaussians(source)["means"].astype(np.float64)
    if selection is None:
        raise EditError(f"say what to take from {source}: a selection made in that run")
    pipeline = open_run(source, update=as_trained).pipeline
    dataset = pipeline.datamanager.train_dataset
    assert dataset is not None
    selector = Selector(pipeline.model, dataset.cameras)
    return Measurement(selection, selector, CaptureCoordinates.of(pipeline.datamanager)).cloud.points


def save_edits(edits: EditList, config: Path, step: int) -> Path:
    """Writes ``edits.json`` and ``config_edited.yml`` beside a run's config; returns the latter's path.

    Args:
        edits: the list.
        config: the run's config.yml.
        step: training step of the checkpoint that the edits were made on.

    Raises:
        MaskfieldError: a file cannot be written.
    """
    folder = config.resolve().parent
    edits.save(folder / FILE_NAME, {"config": config.name, "step": step})
    return write_edited_config(config, folder / FILE_NAME)


def load_edits(config: Path) -> EditList:
    """The edits kept beside a run; an empty list if there are none.

    Raises:
        EditError: the edit file is damaged.
    """
    path = config.resolve().parent / FILE_NAME
    return EditList.load(path) if path.exists() else EditList()
