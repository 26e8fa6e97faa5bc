"""Labels of benchmark scenes, one loader per on-disk format. For evaluation only: nothing else imports this module."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from PIL import Image

from maskfield_ns.data import layouts
from maskfield_ns.data.transforms import is_number, shown
from maskfield_ns.errors import BenchmarkError
from maskfield_ns.evaluation.protocols.masks import FOREGROUND_ABOVE
from maskfield_ns.files import read_json

Size = tuple[int, int]
"""(height, width) in pixels."""


@dataclass(frozen=True)
class ViewLabels:
    """Labels of one view: masks per phrase, or a class index per pixel."""

    view: str
    phrases: tuple[str, ...]
    """What is asked in this view: the annotated categories, or all classes of the scene."""
    size: Size
    masks: Bool[np.ndarray, "T H W"] | None = None
    """One per phrase."""
    boxes: tuple[Float[np.ndarray, "N 4"], ...] = ()
    """Per phrase the boxes (x0, y0, x1, y1) of its instances, in pixels, corners in any order."""
    index: Int[np.ndarray, "H W"] | None = None
    """Class index per pixel, 0 = void."""


class LabelSet:
    """Labels of a scene; pictures are read when asked for.

    ``fixed_size``: predictions must have the labels' size; otherwise labels are resized to the predictions'.
    """

    views: tuple[str, ...]
    phrases: tuple[str, ...]
    """Every phrase of the scene, in order."""
    fixed_size: bool = True
    class_ids: tuple[int, ...] = ()
    """Per class the id that pictures of labels and of predictions have for it; empty: its position in ``phrases``."""

    def load(self, view: str, size: Size | None = None) -> ViewLabels:
        """Labels of a view, resized (nearest pixel) to ``size`` where the protocol does so.

        Raises:
            BenchmarkError: missing, broken or inconsistent files.
        """
        raise NotImplementedError

    def phrases_of(self, view: str) -> tuple[str, ...]:
        """What to ask in a view; the whole list unless the protocol asks only for what is annotated there."""
        return self.phrases


@dataclass
class PolygonLabels(LabelSet):
    """LERF-OVS and GAGS's Mip-NeRF360: one ISAT-style JSON per frame, in ``label/<scene>/``.

    A polygon is one closed ring of [x, y] points, truncated to integers and filled; equal categories are one mask; the
    box of every instance is kept.
    """

    directory: Path
    views: tuple[str, ...] = field(init=False)
    phrases: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        self._frames = {path.stem: _polygon_frame(path) for path in layouts.polygon_files(self.directory)}
        self.views = tuple(self._frames)
        self.phrases = tuple(dict.fromkeys(o.category for f in self._frames.values() for o in f.objects))

    @property
    def num_objects(self) -> int:
        """Annotated instances of all frames."""
        return sum(len(frame.objects) for frame in self._frames.values())

    def phrases_of(self, view: str) -> tuple[str, ...]:
        return tuple(dict.fromkeys(each.category for each in self._frames[view].objects))

    def load(self, view: str, size: Size | None = None) -> ViewLabels:
        frame = self._frames[view]
        if size is not None and size != frame.size:
            raise BenchmarkError(
                f"{frame.path} is for a picture of {frame.size[1]}x{frame.size[0]} pixels (width x height), not "
                f"{size[1]}x{size[0]}; this protocol compares at the labels' own size."
            )
        phrases = self.phrases_of(view)
        masks = np.zeros((len(phrases), *frame.size), bool)
        boxes: list[list[np.ndarray]] = [[] for _ in phrases]
        for each in frame.objects:
            position = phrases.index(each.category)
            masks[position] |= fill_polygon(each.ring, frame.size)
            boxes[position].append(each.box)
        return ViewLabels(view, phrases, frame.size, masks, tuple(np.stack(group) for group in boxes))


@dataclass
class IndicatorLabels(LabelSet):
    """3D-OVS: ``segmentations/classes.txt`` and ``segmentations/<view>/<class>.png``.

    Values from ``darkest`` on count: only 255 in 3D-OVS's evaluator and its heirs, any grey in that of Occam's LGS.
    Classes are in Python's string order (upper case first), whatever the order of the file.
    """

    directory: Path
    darkest: int = 255
    views: tuple[str, ...] = field(init=False)
    phrases: tuple[str, ...] = field(init=False)
    fixed_size: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self.views = tuple(layouts.ovs3d_labelled(self.directory))
        classes = layouts.read_class_list(self.directory / "classes.txt")
        names = list(classes.names[1:] if classes.ids and not classes.names[0] else classes.names)
        if not names[0]:
            raise BenchmarkError(f"{self.directory / 'classes.txt'}: line 1 is empty.")
        self.phrases = tuple(sorted(names))
        missing = [
            str(path)
            for view in self.views
            for name in self.phrases
            if not (path := self.directory / view / f"{name}.png").is_file()
        ]
        if missing:
            raise BenchmarkError(
                f"{len(missing)} masks are missing: {layouts.some(missing)}. Every labelled view needs one for every "
                "class of classes.txt; a class that is not to be seen has an all-black one."
            )

    def load(self, view: str, size: Size | None = None) -> ViewLabels:
        pictures = [_read_grey(self.directory / view / f"{name}.png") for name in self.phrases]
        own = _one_size(self.directory / view, self.phrases, pictures)
        wanted = size or own
        check_aspect(self.directory / view, own, wanted)
        # Read, resized, then cut: as the reference does.
        masks = np.stack([nearest(picture, wanted) >= self.darkest for picture in pictures])
        return ViewLabels(view, self.phrases, wanted, masks)


@dataclass
class MaskLabels(LabelSet):
    """LERF-Mask: ``test_mask/<k>/<prompt>.png``; values above 128 count."""

    directory: Path
    views: tuple[str, ...] = field(init=False)
    phrases: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        self._files: dict[str, dict[str, Path]] = {}
        for view in layouts.lerf_mask_labelled(self.directory):
            files = {path.stem: path for path in layouts.images_in(self.directory / view, "mask")}
            self._files[view] = files
        self.views = tuple(self._files)
        self.phrases = tuple(sorted({phrase for files in self._files.values() for phrase in files}))

    def phrases_of(self, view: str) -> tuple[str, ...]:
        return tuple(self._files[view])

    def load(self, view: str, size: Size | None = None) -> ViewLabels:
        files = self._files[view]
        pictures = [_read_grey(path) for path in files.values()]
        own = _one_size(self.directory / view, tuple(files), pictures)
        if size is not None:
            check_aspect(self.directory / view, own, size)
        return ViewLabels(view, tuple(files), own, np.stack(pictures) > FOREGROUND_ABOVE)


@dataclass
class IndexLabels(LabelSet):
    """Replica and ScanNet: one class index per pixel, 0 = void, never scaled other than by the nearest pixel."""

    directory: Path
    """The scene's folder."""
    dataset: str
    """``replica`` or ``scannet``: decides whether the class list is sorted."""
    class_file: Path | None = None
    views: tuple[str, ...] = field(init=False)
    phrases: tuple[str, ...] = field(init=False)
    fixed_size: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        scene = layouts.indexed_scene(self.directory)
        self._files = {frame.name: frame.label for frame in scene.frames if frame.test}
        if not self._files:
            raise BenchmarkError(f"{self.directory} has no test frame (OV-NeRF: every 10th, Semantic-NeRF: 2, 7, ...).")
        self.views = tuple(self._files)
        classes = layouts.indexed_classes(scene, self.dataset, self.class_file)
        self.phrases, self.class_ids = classes.names, classes.ids

    def load(self, view: str, size: Size | None = None) -> ViewLabels:
        path = self._files[view]
        index = _read_index(path)
        if self.class_ids:
            index = positions_of(path, index, self.class_ids)
        if index.size and index.max() >= len(self.phrases):
            raise BenchmarkError(
                f"{path} has the class id {index.max()}, but the scene's class list has only "
                f"{len(self.phrases)} entries (0 to {len(self.phrases) - 1})."
            )
        wanted = size or index.shape
        check_aspect(path, index.shape, wanted)
        return ViewLabels(view, self.phrases, wanted, index=nearest(index, wanted).astype(np.int64))


def positions_of(path: Path, ids: Int[np.ndarray, "H W"], known: Sequence[int]) -> Int[np.ndarray, "H W"]:
    """Positions in a class list of the ids in a picture.

    Raises:
        BenchmarkError: an id that the list does not have.
    """
    found, where = np.unique(ids, return_inverse=True)
    position = {identity: place for place, identity in enumerate(known)}
    unknown = [int(identity) for identity in found if int(identity) not in position]
    if unknown:
        raise BenchmarkError(f"{path} has the class id {unknown[0]}, which the scene's class list does not have.")
    return np.array([position[int(identity)] for identity in found], np.int64)[where].reshape(ids.shape)


# --- polygons ---------------------------------------------------------------------------------------------------------

MAX_LABEL_SIDE = 1 << 15
"""Pixels; beyond it OpenCV's fixed-point polygons overflow."""
MAX_LABEL_PIXELS = 10**8
_FAR_OUTSIDE = 10
"""Sides of the picture by which a point may miss it: points far away wrap around, or take seconds to draw."""


@dataclass(frozen=True)
class _Object:
    category: str
    ring: Float[np.ndarray, "N 2"]
    box: Float[np.ndarray, " 4"]


@dataclass(frozen=True)
class _Frame:
    path: Path
    size: Size
    objects: tuple[_Object, ...]


def fill_polygon(ring: Float[np.ndarray, "N 2"], size: Size) -> Bool[np.ndarray, "H W"]:
    """A ring of (x, y) points, truncated to integers, filled with its edge (OpenCV's ``fillPoly``)."""
    import cv2

    mask = np.zeros(size, np.uint8)
    cv2.fillPoly(mask, [ring.astype(np.int32)], 1)  # pyright: ignore[reportCallIssue, reportArgumentType]
    return mask.astype(bool)


def _polygon_frame(path: Path) -> _Frame:
    data = read_json(path, "annotation of a frame", BenchmarkError)
    info, entries = (data.get("info"), data.get("objects")) if isinstance(data, dict) else (None, None)
    if not isinstance(info, dict) or not isinstance(entries, list):
        raise BenchmarkError(
            f'{path} is not an annotation of LERF-OVS: it needs "info" with name, height and width, and a list of '
            '"objects".'
        )
    name: object = info.get("name")
    sides: list[Any] = [info.get("height"), info.get("width")]
    if not isinstance(name, str) or not all(is_number(side) and side == int(side) for side in sides):
        raise BenchmarkError(
            f'{path}: "info" needs the name of the image, and height and width as whole numbers, not {shown(info)}.'
        )
    size = int(sides[0]), int(sides[1])
    if PurePosixPath(name.replace("\\", "/")).stem != path.stem:
        raise BenchmarkError(f"{path} says that it belongs to {shown(name)}; the file must have the name of its image.")
    if min(size) < 2 or max(size) > MAX_LABEL_SIDE or size[0] * size[1] > MAX_LABEL_PIXELS:
        raise BenchmarkError(f'{path}: "info" gives a picture of {shown(size[1])}x{shown(size[0])} pixels.')
    for suffix in layouts.IMAGE_SUFFIXES:
        picture = path.with_suffix(suffix)
        if picture.is_file() and (found := _picture_size(picture)) != size:
            raise BenchmarkError(
                f"{picture} is {found[1]}x{found[0]} pixels (width x height), but {path.name} declares "
                f"{size[1]}x{size[0]}; the polygons would not fit."
            )
    if not entries:
        raise BenchmarkError(f"{path} annotates nothing; remove it or finish it.")
    return _Frame(path, size, tuple(_polygon(path, number, entry, size) for number, entry in enumerate(entries)))


def _polygon(path: Path, number: int, entry: Any, size: Size) -> _Object:
    if not isinstance(entry, dict) or not {"category", "segmentation", "bbox"} <= entry.keys():
        raise BenchmarkError(
            f"{path}: object {number} needs category, segmentation (one flat ring of [x, y]) and bbox."
        )
    category, ring, box = entry["category"], entry["segmentation"], entry["bbox"]
    if not isinstance(category, str) or not category.strip():
        raise BenchmarkError(f"{path}: object {number} has no category.")
    what = f"object {number} ({shown(category)})"
    if not (
        isinstance(ring, list)
        and ring
        and all(isinstance(point, list) and len(point) == 2 and all(is_number(v) for v in point) for point in ring)
    ):
        raise BenchmarkError(
            f"{path}: the segmentation of {what} must be one flat ring of [x, y] points, not {shown(ring)}."
        )
    if isinstance(box, list) and len(box) == 2 and all(isinstance(corner, list) for corner in box):
        box = [*box[0], *box[1]]
    if not (isinstance(box, list) and len(box) == 4 and all(is_number(value) for value in box)):
        raise BenchmarkError(f"{path}: the bbox of {what} must be [x0, y0, x1, y1], not {shown(box)}.")
    points, corners = np.array(ring, np.float64), np.array(box, np.float64)
    for name, values in (("segmentation", points), ("bbox", corners)):
        if np.abs(values).max() > _FAR_OUTSIDE * max(size):
            raise BenchmarkError(
                f"{path}: the {name} of {what} goes to {np.abs(values).max():.3g}, far outside of its picture of "
                f"{size[1]}x{size[0]} pixels (width x height); correct it."
            )
    return _Object(category, points, corners)


# --- pictures ---------------------------------------------------------------------------------------------------------

_PICTURE_ERRORS = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


def _picture_size(path: Path) -> Size:
    try:
        with Image.open(path) as picture:
            return picture.height, picture.width
    except _PICTURE_ERRORS as error:
        raise BenchmarkError(f"{path} cannot be read as a picture: {error}.") from error


def _read_grey(path: Path) -> Int[np.ndarray, "H W"]:
    try:
        with Image.open(path) as picture:
            return np.asarray(picture.convert("L"))
    except _PICTURE_ERRORS as error:
        raise BenchmarkError(f"{path} cannot be read as a picture: {error}.") from error


def _read_index(path: Path) -> Int[np.ndarray, "H W"]:
    try:
        with Image.open(path) as picture:
            mode, index = picture.mode, np.asarray(picture)
    except _PICTURE_ERRORS as error:
        raise BenchmarkError(f"{path} cannot be read as a picture: {error}.") from error
    if mode not in ("L", "P", "I", "I;16") or index.ndim != 2 or (index.size and int(index.min()) < 0):
        raise BenchmarkError(f"{path} must have one class index per pixel (grey or palette), but its mode is {mode}.")
    return index


def nearest(picture: np.ndarray, size: Size) -> np.ndarray:
    """PIL's nearest neighbour: the pixel under the centre of each new one."""
    if picture.shape == size:
        return picture
    kind = np.uint8 if picture.dtype == np.uint8 else np.int32
    resized = Image.fromarray(picture.astype(kind)).resize((size[1], size[0]), Image.Resampling.NEAREST)
    return np.asarray(resized).astype(picture.dtype)


def _one_size(folder: Path, names: Sequence[str], pictures: Sequence[np.ndarray]) -> Size:
    sizes = {picture.shape for picture in pictures}
    if len(sizes) > 1:
        odd = next(i for i, picture in enumerate(pictures) if picture.shape != pictures[0].shape)
        first, other = pictures[0].shape, pictures[odd].shape
        raise BenchmarkError(
            f"The masks of {folder} differ in size: {names[0]} is {first[1]}x{first[0]}, {names[odd]} is "
            f"{other[1]}x{other[0]} (width x height)."
        )
    return pictures[0].shape[0], pictures[0].shape[1]


def check_aspect(where: Path | str, own: Sequence[int], wanted: Size) -> None:
    """Sizes (height, width) may differ by a factor that both sides share, and by the rounding of a downscale.

    Raises:
        BenchmarkError: labels of another shape than their image.
    """
    ratios = [new / old for old, new in zip(own, wanted, strict=True)]
    slack = max(1 / min(old, new) for old, new in zip(own, wanted, strict=True))
    if abs(ratios[0] / ratios[1] - 1) > 2 * slack:
        raise BenchmarkError(
            f"{where}: labels of {own[1]}x{own[0]} pixels (width x height) do not fit an image of "
            f"{wanted[1]}x{wanted[0]}; they must cover exactly their image."
        )
