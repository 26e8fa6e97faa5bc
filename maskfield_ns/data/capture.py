"""Checks a nerfstudio-format capture before nerfstudio touches it, so that what is wrong is said in one message.

Only headers of images are read (no pixel is decoded): about a tenth of a second for a thousand images.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from maskfield_ns.errors import CaptureError

SPLITS = ("train", "val", "test")
MAX_AUTO_SIDE = 1600
"""Long side up to which nerfstudio takes the images as they are; above it, it looks for ``images_2`` and so on."""
_PIXEL_MODES = ("RGB", "RGBA", "L")
"""PIL modes that nerfstudio reads as colours; it would take a palette's indices for grey values."""
_SHOWN = 3
_FULL_SIZE = 'Add "nerfstudio-data --downscale-factor 1" to the end of the ns-train command'
_USUAL_CAMERAS = ("OPENCV", "PINHOLE", "SIMPLE_PINHOLE", "OPENCV_FISHEYE")


@dataclass(frozen=True)
class CaptureSummary:
    """What a valid capture holds."""

    folder: Path
    """Folder that the file paths in ``transforms_path`` are relative to."""
    transforms_path: Path
    image_paths: tuple[Path, ...]
    """The images in use (those of ``images_<factor>`` when downscaled), in nerfstudio's order: sorted by path."""
    names: tuple[str, ...]
    """The same images as named in the file (``file_path``, POSIX): the name labels and users know them by."""
    sizes: tuple[tuple[int, int], ...]
    """(width, height) of each image in use as found on disk; empty when images were not looked at."""
    downscale_factor: int
    splits: dict[str, tuple[str, ...]] | None
    """Names per split, if the file lists any; otherwise nerfstudio splits by its ``eval_mode``."""

    def __len__(self) -> int:
        return len(self.names)


def check_capture(path: Path, *, downscale_factor: int | None = None, images: bool = True) -> CaptureSummary:
    """Validate a capture and describe it.

    Args:
        path: the capture's folder, or a ``.json`` file with its cameras.
        downscale_factor: images come from ``images_<factor>``; None follows nerfstudio's automatic choice.
        images: also check that images exist and have the declared size (cameras alone are enough to render a path).

    Raises:
        CaptureError: with one message that says what is wrong, where, and what to do.
    """
    path = Path(path)
    transforms = _transforms_file(path)
    meta = _read_transforms(transforms)
    frames = meta["frames"]
    folder = transforms.parent
    _check_names(transforms, frames)
    factor = 1
    if images:
        factor = downscale_factor or _automatic_factor(folder, frames)
    frames = sorted(frames, key=lambda frame: _image_path(folder, frame["file_path"], factor))
    names = tuple(Path(frame["file_path"]).as_posix() for frame in frames)
    splits = _check_splits(transforms, meta, names)
    _check_cameras(transforms, meta, frames, names)
    paths = tuple(_image_path(folder, name, factor) for name in names)
    sizes: tuple[tuple[int, int], ...] = ()
    if images:
        _check_collisions(paths, factor)
        _check_files(transforms, paths, factor, "image")
        sizes = _check_images(transforms, meta, frames, paths, factor)
        _check_masks(transforms, frames, folder, factor, sizes)
    return CaptureSummary(folder, transforms, paths, names, sizes, factor, splits)


# --- the JSON file ----------------------------------------------------------------------------------------------------


def _transforms_file(path: Path) -> Path:
    if not path.exists():
        where = "" if path.is_absolute() else f" (looked in {Path.cwd()})"
        raise CaptureError(f"No such capture: {path}{where}. Give the folder that holds transforms.json as --data.")
    transforms = path if path.suffix == ".json" else path / "transforms.json"
    if not transforms.is_file():
        raise CaptureError(
            f"{path} is not a nerfstudio capture: it has no transforms.json. "
            "ns-process-data makes one from photos or a video."
        )
    return transforms


def _read_transforms(transforms: Path) -> dict[str, Any]:
    try:
        meta = json.loads(transforms.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise CaptureError(
            f"{transforms} is not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}."
        ) from error
    except UnicodeDecodeError as error:
        raise CaptureError(f"{transforms} is not UTF-8 text (byte {error.start}); save it as UTF-8.") from error
    except OSError as error:
        raise CaptureError(f"{transforms} cannot be read: {error.strerror or error}.") from error
    if not isinstance(meta, dict):
        raise CaptureError(f'{transforms} must hold a JSON object with "frames", not a {type(meta).__name__}.')
    frames = meta.get("frames")
    if not isinstance(frames, list) or not all(isinstance(frame, dict) for frame in frames):
        raise CaptureError(f'{transforms} has no list of "frames" (objects with "file_path" and "transform_matrix").')
    if len(frames) < 2:
        count = "no frames" if not frames else "only one frame"
        raise CaptureError(f"{transforms} names {count}; a scene needs at least two images from different places.")
    return meta


def _check_names(transforms: Path, frames: Sequence[dict[str, Any]]) -> None:
    for number, frame in enumerate(frames):
        if not isinstance(frame.get("file_path"), str) or not frame["file_path"]:
            raise CaptureError(f'{transforms}: frame {number} has no "file_path".')
    counts = Counter(Path(frame["file_path"]).as_posix() for frame in frames)
    repeated = [name for name, count in counts.items() if count > 1]
    if repeated:
        raise CaptureError(f"{transforms} names {_some(repeated, 'image')} more than once; keep one frame of each.")


def _check_splits(transforms: Path, meta: dict[str, Any], names: Sequence[str]) -> dict[str, tuple[str, ...]] | None:
    lists = {split: meta[f"{split}_filenames"] for split in SPLITS if f"{split}_filenames" in meta}
    if not lists:
        return None
    splits: dict[str, tuple[str, ...]] = {}
    for split, listed in lists.items():
        if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
            raise CaptureError(f'{transforms}: "{split}_filenames" must be a list of file names.')
        splits[split] = tuple(Path(name).as_posix() for name in listed)
        unknown = sorted(set(splits[split]) - set(names))
        if unknown:
            raise CaptureError(f'{transforms}: "{split}_filenames" lists {_some(unknown, "file")} that no frame names.')
    absent = [split for split in SPLITS if split not in splits]
    if absent:
        given, needed = next(iter(splits)), " and ".join(f'"{split}_filenames"' for split in absent)
        raise CaptureError(
            f'{transforms} has "{given}_filenames" but no {needed}; nerfstudio needs all three or none '
            '("val_filenames" may repeat "test_filenames").'
        )
    if len(set(splits["train"])) < 2:
        raise CaptureError(f'{transforms}: "train_filenames" lists fewer than two images; a scene needs at least two.')
    return splits


# --- cameras ----------------------------------------------------------------------------------------------------------


def _check_cameras(
    transforms: Path, meta: dict[str, Any], frames: Sequence[dict[str, Any]], names: Sequence[str]
) -> None:
    poses = np.stack([_pose(transforms, frame, name) for frame, name in zip(frames, names, strict=True)])
    if np.ptp(poses[:, :3, 3], axis=0).max() == 0:
        raise CaptureError(
            f"{transforms} puts all {len(poses)} cameras at the same place; depth cannot be learned from that. "
            "Take the images from different places."
        )
    for key in ("fl_x", "fl_y", "cx", "cy", "w", "h"):
        for frame, name in zip(frames, names, strict=True):
            value = meta[key] if key in meta else frame.get(key)
            if value is None:
                raise CaptureError(f'{transforms} gives no "{key}", neither for all frames nor for {name}.')
            if not _is_number(value) or (value <= 0 and key not in ("cx", "cy")):
                where = "" if key in meta else f" of {name}"
                raise CaptureError(f'{transforms}: "{key}"{where} is {value!r}, not a usable number.')
            if key in meta:
                break
    _check_camera_model(transforms, meta)


def _check_camera_model(transforms: Path, meta: dict[str, Any]) -> None:
    model = meta.get("camera_model", "OPENCV")
    if model in _USUAL_CAMERAS:
        return  # without importing nerfstudio, which takes seconds
    from nerfstudio.cameras.cameras import CAMERA_MODEL_TO_TYPE

    if model not in CAMERA_MODEL_TO_TYPE:
        known = ", ".join(CAMERA_MODEL_TO_TYPE)
        raise CaptureError(f'{transforms}: nerfstudio does not know the "camera_model" {model!r}; it knows {known}.')


def _pose(transforms: Path, frame: dict[str, Any], name: str) -> np.ndarray:
    try:
        pose = np.asarray(frame.get("transform_matrix"), dtype=np.float64)
    except (TypeError, ValueError):
        pose = np.empty(0)
    if pose.shape != (4, 4):
        raise CaptureError(f'{transforms}: "transform_matrix" of {name} is not a 4x4 matrix of numbers.')
    if not np.isfinite(pose).all():
        raise CaptureError(f'{transforms}: "transform_matrix" of {name} holds NaN or infinity; remove that frame.')
    return pose


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


# --- images -----------------------------------------------------------------------------------------------------------


def _automatic_factor(folder: Path, frames: Sequence[dict[str, Any]]) -> int:
    """nerfstudio's choice: halve while the first frame is too large and the folder of smaller ones has it."""
    first = folder / frames[0]["file_path"]
    if not first.is_file():
        return 1  # reported with the other missing ones
    side, factor = max(_header(first)[0]), 1
    while side / factor > MAX_AUTO_SIDE and (folder / f"images_{2 * factor}" / first.name).exists():
        factor *= 2
    return factor


def _image_path(folder: Path, name: str, factor: int, prefix: str = "images_") -> Path:
    return folder / name if factor == 1 else folder / f"{prefix}{factor}" / Path(name).name


def _check_collisions(paths: Sequence[Path], factor: int) -> None:
    repeated = [path.name for path, count in Counter(paths).items() if count > 1]
    if repeated:
        raise CaptureError(
            f"Different frames share {_some(repeated, 'file name')}, and nerfstudio looks for downscaled images by "
            f"file name alone (images_{factor}/{repeated[0]}). {_FULL_SIZE}, or give the files different names."
        )


def _check_files(transforms: Path, paths: Sequence[Path], factor: int, kind: str) -> None:
    missing = [path for path in paths if not path.is_file()]
    if not missing:
        return
    if factor > 1 and not missing[0].parent.is_dir():
        raise CaptureError(
            f"Images downscaled by {factor} are wanted, but there is no folder {missing[0].parent}. "
            f"{_FULL_SIZE}, or create them (ns-process-data does)."
        )
    hint = ""
    relatives = [path for path in missing[0].parent.glob(f"{_escape(missing[0].name)}.*") if path.is_file()]
    if relatives and not missing[0].suffix:
        hint = f" {relatives[0].name} exists: write file names with their extension."
    raise CaptureError(
        f"{transforms} names {_some([_relative(path, transforms.parent) for path in missing], kind)} "
        f"that {'does' if len(missing) == 1 else 'do'} not exist ({len(missing)} of {len(paths)}).{hint}"
    )


def _check_images(
    transforms: Path, meta: dict[str, Any], frames: Sequence[dict[str, Any]], paths: Sequence[Path], factor: int
) -> tuple[tuple[int, int], ...]:
    sizes, modes, wrong = [], set(), []
    for frame, path in zip(frames, paths, strict=True):
        size, mode = _header(path)
        if mode not in _PIXEL_MODES:
            raise CaptureError(f"{path} is stored in colour mode {mode}; convert it to RGB (8 bits a channel).")
        modes.add("RGBA" if mode == "RGBA" else "RGB")
        sizes.append(size)
        declared = tuple(int((meta[key] if key in meta else frame[key]) / factor) for key in ("w", "h"))
        # Whoever downscaled may have rounded up where nerfstudio rounds the camera down.
        slack = 0 if factor == 1 else 1
        if any(abs(found - expected) > slack for found, expected in zip(size, declared, strict=True)):
            wrong.append((path, size, declared))
    if wrong:
        path, size, declared = wrong[0]
        more = f" ({len(wrong)} of {len(paths)} images differ)" if len(wrong) > 1 else ""
        scaled = f" after downscaling by {factor}" if factor > 1 else ""
        raise CaptureError(
            f"{path} is {size[0]}x{size[1]}, but {transforms} declares {declared[0]}x{declared[1]}{scaled}{more}. "
            "The intrinsics would not fit: correct w, h, fl_x, fl_y, cx and cy, or use the images they were made for."
        )
    if len(modes) > 1:
        raise CaptureError(f"{transforms}: some images have an alpha channel and some have none; make them all alike.")
    return tuple(sizes)


def _check_masks(
    transforms: Path,
    frames: Sequence[dict[str, Any]],
    folder: Path,
    factor: int,
    sizes: Sequence[tuple[int, int]],
) -> None:
    masked = [frame["mask_path"] for frame in frames if "mask_path" in frame]
    if not masked:
        return
    if len(masked) < len(frames):
        raise CaptureError(
            f'{transforms} gives a "mask_path" for {len(masked)} of {len(frames)} frames; nerfstudio needs it for '
            "every frame or for none."
        )
    paths = [_image_path(folder, name, factor, "masks_") for name in masked]
    _check_files(transforms, paths, factor, "mask")
    for path, size in zip(paths, sizes, strict=True):
        found, _ = _header(path)
        if found != size:
            raise CaptureError(f"Mask {path} is {found[0]}x{found[1]}, but its image is {size[0]}x{size[1]}.")


def _header(path: Path) -> tuple[tuple[int, int], str]:
    """(width, height) and colour mode, without decoding."""
    try:
        with Image.open(path) as image:
            return image.size, image.mode
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise CaptureError(f"{path} cannot be read as an image; replace or remove it ({error}).") from error


# --- wording ----------------------------------------------------------------------------------------------------------


def _some(items: Sequence[str], kind: str) -> str:
    """'2 images (a.png, b.png)', with the first few names only."""
    shown = ", ".join(items[:_SHOWN]) + (", ..." if len(items) > _SHOWN else "")
    return f"{len(items)} {kind}{'' if len(items) == 1 else 's'} ({shown})"


def _relative(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)


def _escape(name: str) -> str:
    return "".join(f"[{character}]" if character in "*?[" else character for character in name)
