"""Ground truth of a labelled capture: ``gt/instance/*.png`` and ``gt/labels.json``. For evaluation only.

``gt/labels.json`` maps an id (1 to 255) to ``{"name", "class", "queries"}``; ``gt/instance/<stem>.png`` has one such
id per pixel (8 bit, grey or palette), 0 = nothing. The picture of ``images/<folder>/<stem>.jpg`` is
``gt/instance/<folder>/<stem>.png`` if ``gt/instance`` has that folder, else ``gt/instance/<stem>.png``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from jaxtyping import Int16, UInt8
from PIL import Image

from maskfield_ns.errors import CaptureError
from maskfield_ns.files import read_json

UNLABELLED = -1
"""What :meth:`LabelledCapture.class_map` has where nothing is labelled."""

_LAYOUT = "a labelled capture has gt/labels.json and gt/instance/<image stem>.png; remove gt/ to go without labels"


@dataclass(frozen=True)
class Label:
    """One labelled object."""

    id: int
    """1 to 255, the pixel value in the instance pictures."""
    name: str
    class_name: str
    queries: tuple[str, ...]
    """Phrases that should find it."""


@dataclass(frozen=True)
class LabelledCapture:
    """The labels of a capture; pictures are read when asked for."""

    directory: Path
    """The capture's own folder."""
    labels: tuple[Label, ...]
    """By ascending id."""

    @classmethod
    def load(cls, capture_dir: Path | str) -> LabelledCapture | None:
        """Labels of a capture (its folder or its transforms.json), or None when it has no ``gt`` folder.

        Raises:
            CaptureError: no such capture, or a ``gt`` that is incomplete or broken.
        """
        directory = Path(capture_dir)
        if directory.is_file():
            directory = directory.parent
        if not directory.is_dir():
            raise CaptureError(f"There is no capture at {directory}.")
        gt = directory / "gt"
        if not gt.exists():
            return None
        for place, present in ((gt / "labels.json", Path.is_file), (gt / "instance", Path.is_dir)):
            if not present(place):
                raise CaptureError(f"The labels are incomplete: {place} is missing ({_LAYOUT}).")
        if next((gt / "instance").rglob("*.png"), None) is None:
            raise CaptureError(f"The labels are incomplete: {gt / 'instance'} has no .png picture ({_LAYOUT}).")
        return cls(directory, _read_labels(gt / "labels.json"))

    def phrases(self) -> list[tuple[str, set[int]]]:
        """Every query phrase with the ids it should find, in the order of first mention.

        The same phrase on several labels finds all of them. Case and white space do not distinguish phrases (they
        do not for CLIP's tokeniser either); the first spelling is kept.
        """
        found: dict[str, tuple[str, set[int]]] = {}
        for label in self.labels:
            for query in label.queries:
                found.setdefault(_folded(query), (query, set()))[1].add(label.id)
        return list(found.values())

    def classes(self) -> list[str]:
        """Class names, unique, in the order of first mention; a class index is a position in this list."""
        return list(dict.fromkeys(label.class_name for label in self.labels))

    def instances(self, image_name: str | PurePath, size: tuple[int, int] | None = None) -> UInt8[np.ndarray, "H W"]:
        """Ids of one image, resized to ``size`` = (H, W) by taking the pixel under each new pixel's centre.

        Args:
            image_name: path of the image, absolute or not, with or without the image folder; the suffix is ignored.
            size: (H, W) in pixels; the picture's own size if None.

        Raises:
            CaptureError: no such picture, one that is damaged or not 8 bit, an id that labels.json does not know,
                or another aspect ratio than ``size`` (beyond the rounding of a downscale).
        """
        path = self.instance_path(image_name)
        ids = _read_ids(path)
        unknown = sorted({int(value) for value in np.unique(ids)} - {0} - {label.id for label in self.labels})
        if unknown:
            raise CaptureError(
                f"{path} has pixels of id {', '.join(map(str, unknown))}, which {self.directory / 'gt/labels.json'} "
                "does not list; add the label or set those pixels to 0."
            )
        if size is None or size == ids.shape:
            return ids
        if not _same_aspect(ids.shape, size):
            raise CaptureError(
                f"{path} is {ids.shape[1]}x{ids.shape[0]} (width x height), which is another aspect ratio than "
                f"the {size[1]}x{size[0]} of its image; instance pictures must cover exactly their image."
            )
        rows, columns = (_centres(old, new) for old, new in zip(ids.shape, size, strict=True))
        return ids[rows[:, None], columns[None, :]]

    def class_map(self, image_name: str | PurePath, size: tuple[int, int] | None = None) -> Int16[np.ndarray, "H W"]:
        """Class index per pixel, :data:`UNLABELLED` where the id is 0. Arguments and errors as :meth:`instances`."""
        index = {name: position for position, name in enumerate(self.classes())}
        table = np.full(256, UNLABELLED, np.int16)
        for label in self.labels:
            table[label.id] = index[label.class_name]
        return table[self.instances(image_name, size)]

    def instance_path(self, image_name: str | PurePath) -> Path:
        """Where the instance picture of an image is.

        Raises:
            CaptureError: it is not there.
        """
        name = PurePath(image_name)
        root = self.directory / "gt" / "instance"
        folders = [part for part in name.parts[:-1] if part not in (name.anchor, "..")]
        # The most specific folder that exists decides, so equal stems in different folders are not mixed up.
        places = (root.joinpath(*folders[start:]) for start in range(len(folders) + 1))
        folder = next((place for place in places if place.is_dir()), root)
        path = folder / f"{name.stem}.png"
        if not path.is_file():
            raise CaptureError(f"There is no instance picture for the image {name}: expected {path}.")
        return path

    def check(self, image_names: Iterable[str | PurePath]) -> None:
        """Read the labels of all given images once, so that a mistake shows before hours of work and not after.

        Raises:
            CaptureError: as :meth:`instances`, or two images share one picture because their stems are equal.
        """
        owners: dict[Path, str | PurePath] = {}
        for image_name in image_names:
            path = self.instance_path(image_name)
            if path in owners and PurePath(owners[path]) != PurePath(image_name):
                raise CaptureError(
                    f"The images {owners[path]} and {image_name} would share the instance picture {path}; "
                    "give gt/instance the same sub-folders as the images."
                )
            owners[path] = image_name
            self.instances(image_name)


def _read_labels(path: Path) -> tuple[Label, ...]:
    entries = read_json(path, "labels of the capture", CaptureError, unique_keys=True)
    if not isinstance(entries, dict) or not entries:
        raise CaptureError(f'{path} must be an object with one entry per label, like {{"1": {{"name": ...}}}}.')
    labels: dict[int, Label] = {}
    for key, entry in entries.items():
        label = _label(path, key, entry)
        if label.id in labels:
            raise CaptureError(f"{path} lists the id {label.id} twice.")
        labels[label.id] = label
    return tuple(labels[identity] for identity in sorted(labels))


def _label(path: Path, key: str, entry: Any) -> Label:
    if not (key.isascii() and key.isdigit() and len(key) <= 3 and 1 <= int(key) <= 255):
        raise CaptureError(f"{path}: the label id {key[:20]!r} is not a number from 1 to 255 (0 means nothing).")
    if not isinstance(entry, dict):
        raise CaptureError(f"{path}: label {key} must be an object with name, class and queries.")
    texts = []
    for field in ("name", "class"):
        text = entry.get(field)
        if not isinstance(text, str) or not text.strip():
            raise CaptureError(f'{path}: label {key} needs a non-empty text for "{field}".')
        texts.append(" ".join(text.split()))
    queries = entry.get("queries")
    if not isinstance(queries, list) or not all(isinstance(query, str) and query.strip() for query in queries):
        raise CaptureError(f'{path}: label {key} needs a list of non-empty phrases for "queries" (it may be []).')
    return Label(int(key), texts[0], texts[1], tuple(" ".join(query.split()) for query in queries))


def _read_ids(path: Path) -> UInt8[np.ndarray, "H W"]:
    try:
        with Image.open(path) as picture:
            mode, ids = picture.mode, np.array(picture)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # PIL raises all of these
        raise CaptureError(f"{path} cannot be read as a picture: {error}") from error
    if mode not in ("L", "P"):
        raise CaptureError(f"{path} must be an 8-bit grey or palette picture of ids, not one of mode {mode}.")
    return ids


def _same_aspect(old: tuple[int, ...], new: tuple[int, int]) -> bool:
    """Whether one size is a scaled version of the other, each side rounded up or down."""

    def scales(source: tuple[int, ...], target: tuple[int, ...]) -> bool:
        low = max((wanted - 1) / side for side, wanted in zip(source, target, strict=True))
        high = min((wanted + 1) / side for side, wanted in zip(source, target, strict=True))
        return low < high

    return scales(old, new) or scales(new, old)


def _centres(old: int, new: int) -> np.ndarray:
    return ((2 * np.arange(new) + 1) * old) // (2 * new)


def _folded(phrase: str) -> str:
    return " ".join(phrase.split()).casefold()
