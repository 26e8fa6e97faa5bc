"""Predictions of any method, on disk: one file or one folder per view (docs/benchmarks.md describes the formats)."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int
from PIL import Image

from maskfield_ns.data import layouts
from maskfield_ns.errors import BenchmarkError
from maskfield_ns.evaluation.protocols.labels import positions_of
from maskfield_ns.evaluation.protocols.masks import FOREGROUND_ABOVE, SILHOUETTE_ABOVE
from maskfield_ns.files import atomic_path, explained

Kind = Literal["relevancy", "masks", "silhouettes", "classes"]
"""``silhouettes`` are masks for OpenGaussian's evaluator: grey values above 10 count, and files may be called as its
renderer calls them, ``<view>_<phrase>.png``."""
_MASKS = {"masks": FOREGROUND_ABOVE, "silhouettes": SILHOUETTE_ABOVE}
_READ_ERRORS = (
    *(OSError, ValueError, EOFError, SyntaxError, MemoryError, zipfile.BadZipFile),
    Image.DecompressionBombError,
)


@dataclass(frozen=True)
class ViewPrediction:
    """What a method says about one view. One of the four is given; relevancy may come with the method's own masks."""

    relevancy: dict[str, Float[np.ndarray, "L H W"]] | None = None
    """Per phrase one relevancy map per level."""
    masks: dict[str, Bool[np.ndarray, "H W"]] | None = None
    scores: Float[np.ndarray, "C H W"] | None = None
    """Per class of the scene, in the order of the label set."""
    classes: Int[np.ndarray, "H W"] | None = None
    """Index into the classes of the label set."""

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width); None when there is no map."""
        maps = [*(self.relevancy or {}).values(), *(self.masks or {}).values(), self.scores, self.classes]
        sizes = {(each.shape[-2], each.shape[-1]) for each in maps if each is not None}
        if len(sizes) > 1:
            raise ValueError(f"the maps of a view differ in size: {sorted(sizes)}")
        return next(iter(sizes), None)


def read_prediction(
    directory: Path, view: str, kind: Kind, phrases: Sequence[str], ids: Sequence[int] = ()
) -> ViewPrediction | None:
    """The prediction for a view; None when there is none at all. Phrases without a map are left out.

    Args:
        directory: folder of the predictions of a scene.
        view: name of the labelled view.
        kind: what the protocol takes.
        phrases: asked in this view, or the classes of the scene in the order of the label set.
        ids: per class the id that class maps have for it; empty: its position in ``phrases``.

    Raises:
        BenchmarkError: no such folder, or files that cannot be read or do not fit.
    """
    if not directory.is_dir():
        raise BenchmarkError(f"There is no folder of predictions at {directory}.")
    packed = directory / f"{view}.npz"
    try:
        if packed.is_file():
            prediction = _from_npz(packed, kind, phrases)
        elif kind == "classes":
            prediction = _class_map(directory, view, len(phrases), ids)
        else:
            prediction = _from_folder(directory, view, kind, phrases)
        if prediction is not None:
            _ = prediction.size
    except ValueError as error:
        raise BenchmarkError(f"The prediction for the view {view} in {directory} does not fit: {error}.") from error
    return prediction


def write_prediction(directory: Path, view: str, prediction: ViewPrediction, phrases: Sequence[str]) -> Path:
    """Saves a prediction as ``<view>.npz`` so that :func:`read_prediction` gives it back; never half a file.

    Raises:
        BenchmarkError: the file cannot be written.
    """
    arrays: dict[str, np.ndarray] = {}
    asked = prediction.relevancy if prediction.relevancy is not None else prediction.masks
    if asked is not None:
        arrays["phrases"] = np.array(list(asked), dtype=str)
        if prediction.relevancy is not None:
            arrays["relevancy"] = np.stack(list(prediction.relevancy.values())).astype(np.float32)
        if prediction.masks is not None:
            arrays["masks"] = np.stack([prediction.masks[phrase] for phrase in asked])
    elif prediction.scores is not None:
        arrays["phrases"], arrays["scores"] = np.array(list(phrases), dtype=str), prediction.scores.astype(np.float32)
    elif prediction.classes is not None:
        arrays["phrases"], arrays["classes"] = np.array(list(phrases), dtype=str), prediction.classes.astype(np.int32)
    path = directory / f"{view}.npz"
    with explained(path, BenchmarkError), atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)  # pyright: ignore[reportArgumentType]
    return path


def _from_npz(path: Path, kind: Kind, phrases: Sequence[str]) -> ViewPrediction:
    names = {"relevancy": ("relevancy",), "classes": ("classes", "scores")}.get(kind, ("masks",))
    try:
        with np.load(path, allow_pickle=False) as archive:
            found = next((name for name in names if name in archive.files), None)
            if found is None:
                raise BenchmarkError(
                    f"{path} has no array called {' or '.join(names)}; it holds {layouts.some(sorted(archive.files))}."
                )
            values = archive[found]
            given = [str(name) for name in archive["phrases"]] if "phrases" in archive.files else None
    except _READ_ERRORS as error:
        raise BenchmarkError(f"{path} cannot be read as a NumPy archive: {error}.") from error
    if found == "classes":
        if given is not None:
            values = _reordered_ids(path, values, given, phrases)
        return ViewPrediction(classes=_as_classes(path, values, len(phrases)))
    if given is None:
        given = list(phrases)
    if len(given) != len(values) or len(set(given)) != len(given):
        raise BenchmarkError(f"{path}: {found} has {len(values)} maps, but {len(set(given))} different phrases.")
    maps = dict(zip(given, values, strict=True))
    if found == "scores":
        missing = [phrase for phrase in phrases if phrase not in maps]
        if missing:
            raise BenchmarkError(f"{path} has no scores for {layouts.some(missing)}; every class needs a map.")
        return ViewPrediction(scores=_floats(path, np.stack([maps[phrase] for phrase in phrases]), 3))
    chosen = {phrase: maps[phrase] for phrase in phrases if phrase in maps}
    if found == "masks":
        return ViewPrediction(masks={phrase: _as_mask(path, each, kind) for phrase, each in chosen.items()})
    return ViewPrediction(relevancy={phrase: _levels(path, each) for phrase, each in chosen.items()})


def _from_folder(directory: Path, view: str, kind: Kind, phrases: Sequence[str]) -> ViewPrediction | None:
    flat = kind == "silhouettes"
    maps: dict[str, np.ndarray] = {}
    for phrase in phrases:
        array, picture = directory / view / f"{phrase}.npy", directory / view / f"{phrase}.png"
        if flat and not picture.is_file():
            picture = directory / f"{view}_{phrase}.png"
        if array.is_file():
            loaded = _load_npy(array)
            maps[phrase] = _as_mask(array, loaded, kind) if kind in _MASKS else _levels(array, loaded)
        elif picture.is_file():
            grey = _load_picture(picture, to_grey=flat)
            maps[phrase] = grey > _MASKS[kind] if kind in _MASKS else grey[None].astype(np.float32)
    if not maps and not (directory / view).is_dir():
        return None
    return ViewPrediction(masks=maps) if kind in _MASKS else ViewPrediction(relevancy=maps)


def _class_map(directory: Path, view: str, count: int, ids: Sequence[int]) -> ViewPrediction | None:
    picture, array = directory / f"{view}.png", directory / f"{view}.npy"
    if picture.is_file():
        return ViewPrediction(classes=_as_classes(picture, _load_picture(picture), count, ids))
    if not array.is_file():
        return None
    values = _load_npy(array)
    if values.ndim == 2:
        return ViewPrediction(classes=_as_classes(array, values, count, ids))
    if values.ndim != 3 or len(values) != count:
        raise BenchmarkError(f"{array} must be class ids [H, W] or scores [{count}, H, W], not {list(values.shape)}.")
    return ViewPrediction(scores=_floats(array, values, 3))


def _reordered_ids(path: Path, values: np.ndarray, given: list[str], phrases: Sequence[str]) -> np.ndarray:
    """Ids that count the names of the file as ids that count the label set's."""
    unknown = [name for name in given if name not in phrases]
    if unknown:
        raise BenchmarkError(f"{path} has classes that the labels do not have: {layouts.some(unknown)}.")
    table = np.array([list(phrases).index(name) for name in given], np.int64)
    return table[_as_classes(path, values, len(given))]


def _load_npy(path: Path) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)
    except _READ_ERRORS as error:
        raise BenchmarkError(f"{path} cannot be read as a NumPy array: {error}.") from error


def _load_picture(path: Path, to_grey: bool = False) -> np.ndarray:
    try:
        with Image.open(path) as picture:
            mode, values = picture.mode, np.asarray(picture.convert("L") if to_grey else picture)
    except _READ_ERRORS as error:
        raise BenchmarkError(f"{path} cannot be read as a picture: {error}.") from error
    if mode == "1" and not to_grey:
        return values.astype(np.uint8) * 255
    if values.ndim != 2:
        raise BenchmarkError(f"{path} must be grey or palette, but its mode is {mode}.")
    return values


def _floats(path: Path, values: np.ndarray, dimensions: int) -> np.ndarray:
    if values.dtype.kind not in "fiub" or values.ndim != dimensions:
        raise BenchmarkError(
            f"{path}: numbers in {dimensions} dimensions are needed, not {values.dtype}{values.shape}."
        )
    values = values.astype(np.float32)
    if not np.isfinite(values).all():
        raise BenchmarkError(f"{path} has NaN or infinity; every pixel needs a number.")
    return values


def _levels(path: Path, values: np.ndarray) -> np.ndarray:
    return _floats(path, values[None] if values.ndim == 2 else values, 3)


def _as_mask(path: Path, values: np.ndarray, kind: Kind) -> np.ndarray:
    if values.ndim != 2 or values.dtype.kind not in "biu":
        raise BenchmarkError(f"{path}: a mask is [H, W] of booleans or integers, not {values.dtype}{values.shape}.")
    if values.dtype == bool:
        return values
    # 0/1 and 0/255 are both in use.
    return values > (_MASKS[kind] if values.size and values.max() > 1 else 0)


def _as_classes(path: Path, values: np.ndarray, count: int, ids: Sequence[int] = ()) -> np.ndarray:
    if values.ndim != 2 or values.dtype.kind not in "iu":
        raise BenchmarkError(f"{path}: a class map is [H, W] of integers, not {values.dtype}{values.shape}.")
    if ids:
        return positions_of(path, values, ids)
    if values.size and (values.min() < 0 or values.max() >= count):
        raise BenchmarkError(
            f"{path} has the class ids {values.min()} to {values.max()}, but the classes are 0 to {count - 1}."
        )
    return values.astype(np.int64)
