"""Masks that somebody brings: instance-id images or COCO JSON, from any segmenter, tracker or annotation tool.

A folder holds, per image of the capture, an id image of the same stem (PNG or TIFF, integers, 0 for no mask), directly
(taken for wholes) or in subfolders named after levels (``subpart``, ``part``, ``whole``); or one COCO JSON file whose
``images`` have ``file_name`` and whose ``annotations`` have a ``segmentation`` (run lengths or polygons), with an
optional ``level``. Ids need not agree between images: what is one object is found by comparing masks in 3D.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from maskfield_ns.errors import CaptureError, WeightsError
from maskfield_ns.files import read_json
from maskfield_ns.foundation.base import ProposerConfig, describe
from maskfield_ns.foundation.filtering import empty_proposals
from maskfield_ns.foundation.protocols import LEVELS, MaskProposals, mask_boxes

SUFFIXES = (".png", ".tif", ".tiff")
"""Endings of id images."""
WHOLE = LEVELS.index("whole")


@dataclass(frozen=True)
class GivenMasksConfig(ProposerConfig):
    """Masks read from files instead of being proposed by a model."""

    path: Path | None = None
    """Folder of id images, or a COCO JSON file."""

    def setup(self, device: Any) -> GivenMasks:
        """Reads the index of the masks; the device does not matter."""
        return GivenMasks(self)

    def fingerprint(self) -> dict[str, Any]:
        """Changes when any of the files does.

        Raises:
            WeightsError: there are no masks at the path.
        """
        digest = hashlib.sha256()
        for file in mask_files(self.path):
            digest.update(file.name.encode() + b"\0" + file.parent.name.encode() + b"\0" + file.read_bytes())
        return describe({"name": "given", "revision": 1, "sha256": digest.hexdigest()}, GivenMasksConfig())


def mask_files(path: Path | None) -> list[Path]:
    """The files that hold the masks: one JSON, or id images.

    Raises:
        WeightsError: there are none.
    """
    if path is None:
        raise WeightsError("given masks need a folder of id images or a COCO JSON file: --proposer given:PATH")
    if path.is_file() and path.suffix == ".json":
        return [path]
    places = [path, *(path / level for level in LEVELS)]
    files = [f for place in places if place.is_dir() for f in sorted(place.iterdir()) if f.suffix.lower() in SUFFIXES]
    if not files:
        raise WeightsError(
            f"there are no masks at {path}: a folder of id images ({', '.join(SUFFIXES)}) or a COCO JSON"
        )
    return files


class GivenMasks:
    """A proposer of the masks in files. They belong to named images, so it wants the name of each.

    Args:
        config: where the files are.

    Raises:
        WeightsError: there are none.
    """

    def __init__(self, config: GivenMasksConfig) -> None:
        self.config, self.files = config, mask_files(config.path)

    def fingerprint(self) -> dict[str, Any]:
        """JSON-serializable description that changes when the masks would."""
        return self.config.fingerprint()

    def propose(self, image: UInt8[np.ndarray, "H W 3"]) -> MaskProposals:
        """No masks: an image without a name has none."""
        return empty_proposals(*image.shape[:2])

    def propose_named(self, image: UInt8[np.ndarray, "H W 3"], name: str) -> MaskProposals:
        """The masks of an image, brought to its size in pixels by taking the nearest id; none where no file has any.

        Args:
            image: RGB.
            name: as the capture gives it; its stem counts.

        Raises:
            CaptureError: a file cannot be read, holds no ids, or is of another shape than the image.
        """
        height, width = image.shape[:2]
        stem = PurePosixPath(name).stem
        masks, levels = [], []
        for level, mask in self._coco(stem) if self.files[0].suffix == ".json" else self._ids(stem):
            masks.append(_resized(mask, height, width, name))
            levels.append(level)
        if not masks:
            return empty_proposals(height, width)
        stack = np.stack(masks)
        there = stack.any(axis=(1, 2))
        stack, order = stack[there], np.array(levels, np.int8)[there]
        ones = np.ones(len(stack), np.float32)
        return MaskProposals(stack, order, ones, ones, mask_boxes(stack))

    def _ids(self, stem: str) -> list[tuple[int, Bool[np.ndarray, "h w"]]]:
        found = []
        for file in self._by_stem.get(stem, []):
            try:
                with Image.open(file) as opened:
                    ids = np.asarray(opened)
            except (OSError, SyntaxError, ValueError) as error:
                raise CaptureError(f"cannot read the masks {file} ({error})") from error
            if ids.ndim != 2 or not np.issubdtype(ids.dtype, np.integer):
                raise CaptureError(f"{file} is no image of ids: one channel of integers is needed, not {opened.mode}")
            level = LEVELS.index(file.parent.name) if file.parent.name in LEVELS else WHOLE
            found += [(level, ids == number) for number in np.unique(ids) if number != 0]
        return found

    @cached_property
    def _by_stem(self) -> dict[str, list[Path]]:
        by_stem: dict[str, list[Path]] = {}
        for file in self.files:
            by_stem.setdefault(file.stem, []).append(file)
        return by_stem

    @cached_property
    def _annotations(self) -> dict[str, tuple[int, int, list[dict[str, Any]]]]:
        """By stem of an image: its height and width in pixels, and its annotations."""
        path = self.files[0]
        data = read_json(path, "masks as COCO JSON", CaptureError)
        try:
            images = {
                image["id"]: (PurePosixPath(image["file_name"]).stem, int(image["height"]), int(image["width"]))
                for image in data["images"]
            }
            by_stem = {stem: (height, width, []) for stem, height, width in images.values()}
            for annotation in data["annotations"]:
                by_stem[images[annotation["image_id"]][0]][2].append(annotation)
        except (KeyError, TypeError, ValueError) as error:
            raise CaptureError(f"{path} is no COCO JSON with images and annotations ({error!r})") from error
        return by_stem

    def _coco(self, stem: str) -> list[tuple[int, Bool[np.ndarray, "h w"]]]:
        from pycocotools import mask as coco

        height, width, annotations = self._annotations.get(stem, (0, 0, []))
        found = []
        for annotation in annotations:
            try:
                shape, level = annotation["segmentation"], annotation.get("level", "whole")
                if isinstance(shape, list):
                    lengths = coco.merge(coco.frPyObjects(shape, height, width))
                elif isinstance(shape["counts"], list):
                    lengths = coco.frPyObjects(shape, height, width)
                else:
                    lengths = shape
                if tuple(lengths["size"]) != (height, width):
                    raise ValueError(f"run lengths of size {lengths['size']} for an image of {[height, width]}")
                found.append((LEVELS.index(level), coco.decode(lengths).astype(bool)))
            except Exception as error:  # pycocotools raises anything
                what = annotation.get("id", "?") if isinstance(annotation, dict) else annotation
                raise CaptureError(
                    f"{self.files[0]}: annotation {what} has no mask that can be read ({error})"
                ) from error
        return found


def _resized(mask: Bool[np.ndarray, "h w"], height: int, width: int, name: str) -> Bool[np.ndarray, "H W"]:
    if mask.shape == (height, width):
        return mask
    rows, columns = mask.shape
    if abs(rows * width - columns * height) > max(width, height, rows, columns):
        raise CaptureError(
            f"the masks of {name} have {columns}x{rows} pixels, the image {width}x{height}: another shape"
        )
    return np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))
