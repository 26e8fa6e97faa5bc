"""Cameras of a capture as its ``transforms.json`` declares them: every value that is used, checked, in plain numbers.

Read are nerfstudio's format and what instant-ngp and Blender's exporters leave out of it. No image is opened here.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

import numpy as np

from maskfield_ns.errors import CaptureError
from maskfield_ns.files import read_json

SPLITS = ("train", "val", "test")
ORIENTATIONS = ("pca", "up", "vertical", "none")
_CAMERA_MODELS = ("OPENCV", "PINHOLE", "SIMPLE_PINHOLE", "OPENCV_FISHEYE")
"""The usual ones, known without importing nerfstudio, which takes seconds."""
DISTORTION = ("k1", "k2", "k3", "k4", "p1", "p2")
"""nerfstudio's order."""
FISHEYE624_PARAMETERS = 12
_MAX_SIDE = 10**6
_MAX_NAME = 255
"""Bytes of one part of a path, as file systems have it."""
_MAX_PATH = 4096
_MAX_POSITION = 1e12
_MAX_COEFFICIENT = 1e6
_FOCAL_RANGE = (1e-2, 1e4)
"""Focal lengths in units of the long side."""
_FAR_CENTER = 100.0
"""Sides of the image by which the principal point may miss it."""
_ROTATION_SLACK = 0.02
"""By how much an entry of R^T R may differ from the identity's: poses are written with few digits at times."""
_FAR_CAMERA = 1e4
"""Times the median distance from the middle; with a camera farther away all others share one place in float32."""
_APPLIED = ((0.0, 1.0, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0), (0.0, 0.0, -1.0, 0.0))
"""What ns-process-data did to COLMAP's coordinates before it wrote down what it did."""
_SHOWN = 3

Pose = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Frame:
    """One posed image, as declared."""

    name: str
    """``file_path`` with forward slashes: the name that labels and users know it by."""
    pose: Pose
    """Camera-to-world [3, 4], OpenGL axes (x right, y up, z back), in the capture's own coordinates."""
    focal: tuple[float, float]
    """(fx, fy) in pixels of ``size``."""
    center: tuple[float, float]
    """(cx, cy) in pixels of ``size``; the middle of the first pixel is at 0.5."""
    size: tuple[int, int]
    """(width, height) that the intrinsics are for."""
    distortion: tuple[float, ...] = (0.0,) * 6
    """(k1, k2, k3, k4, p1, p2); twelve numbers for FISHEYE624."""
    mask: str | None = None
    """File of the pixels that count, relative like ``name``."""


@dataclass(frozen=True)
class Declared:
    """What a file of cameras says of its capture."""

    path: Path
    """The file, or the folder of a COLMAP model."""
    folder: Path
    """Folder that file names are relative to."""
    frames: tuple[Frame, ...]
    camera_model: str = "OPENCV"
    """One of nerfstudio's names."""
    splits: dict[str, tuple[str, ...]] | None = None
    """Names per split, if the file lists any."""
    orientation: str | None = None
    """Overrides the dataparser's ``orientation_method``."""
    applied_transform: Pose | None = None
    """[3, 4]: what brought the original coordinates to those of the poses."""
    applied_scale: float | None = None
    points: Path | None = None
    """File of sparse points (.ply) or folder of a COLMAP model that has them."""
    fisheye_crop_radius: float | None = None
    copies: bool = False
    """Whether smaller copies of the images are made where they are missing, beside the folder of the images."""
    keep_order: bool = False
    """Frames are in the order in which they count, instead of by path."""
    notes: tuple[str, ...] = ()
    """What a user should know: values that were derived."""


def read_transforms(path: Path, size_of: Any = None) -> Declared:
    """Reads and checks a ``transforms.json``.

    Args:
        path: the file.
        size_of: ``Path -> (width, height)`` of an image file, asked where the file declares no size.

    Raises:
        CaptureError: the first value that cannot be used: where it is, what it is, and what to do.
    """
    meta = _read(path)
    named = [(_file_name(path, frame, "file_path", f"frame {i}"), frame) for i, frame in enumerate(meta["frames"])]
    names = [name for name, _ in named]
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise CaptureError(f"{path} names {some(repeated, 'image')} more than once; keep one frame of each.")
    derived: set[str] = set()
    model = _camera_model(path, meta, named)
    frames = tuple(
        Frame(
            name,
            _pose(path, frame, name),
            **_intrinsics(path, meta, frame, name, size_of, derived),
            distortion=_distortion(path, meta, frame, name, model),
            mask=_file_name(path, frame, "mask_path", name) if "mask_path" in frame else None,
        )
        for name, frame in named
    )
    for name, frame in named:
        if "depth_file_path" in frame:  # not used; still no place for something else
            _file_name(path, frame, "depth_file_path", name)
    _check_places(path, frames)
    masked = [frame for frame in frames if frame.mask is not None]
    if masked and len(masked) < len(frames):
        raise CaptureError(
            f'{path} gives a "mask_path" for {len(masked)} of {len(frames)} frames; nerfstudio needs it for '
            "every frame or for none."
        )
    notes = [f"{path.name}: {', '.join(sorted(derived))} derived, as the file does not give them."] if derived else []
    # Earlier versions of ns-process-data wrote neither points nor the transform that they had applied.
    model_folder = path.parent / "colmap" / "sparse" / "0"
    processed = os.path.isdir(model_folder)
    points = path.parent / _file_name(path, meta, "ply_file_path", "") if "ply_file_path" in meta else None
    return Declared(
        path,
        path.parent,
        frames,
        model,
        _splits(path, meta, names),
        _orientation(path, meta),
        _applied_transform(path, meta) or (_APPLIED if processed else None),
        _positive(path, meta, "applied_scale"),
        points or (model_folder if processed else None),
        _positive(path, meta, "fisheye_crop_radius"),
        notes=tuple(notes),
    )


def _read(path: Path) -> dict[str, Any]:
    meta = read_json(path, "cameras of the capture", CaptureError)
    if not isinstance(meta, dict):
        raise CaptureError(f'{path} must hold a JSON object with "frames", not a {type(meta).__name__}.')
    frames = meta.get("frames")
    if not isinstance(frames, list) or not all(isinstance(frame, dict) for frame in frames):
        raise CaptureError(f'{path} has no list of "frames" (objects with "file_path" and "transform_matrix").')
    if len(frames) < 2:
        count = "no frames" if not frames else "only one frame"
        raise CaptureError(f"{path} names {count}; a scene needs at least two images from different places.")
    return meta


def _file_name(path: Path, place: Mapping[str, Any], key: str, where: str) -> str:
    """A file name with forward slashes: files written on Windows have backslashes."""
    value = place.get(key)
    of = f" of {where}" if where else ""
    if key == "file_path" and (not isinstance(value, str) or not value):
        raise CaptureError(f'{path}: {where} has no "file_path" (the name of its image file).')
    if not isinstance(value, str) or not value:
        raise CaptureError(f'{path}: "{key}"{of} is {shown(value)}, not a file name; give one or remove the key.')
    name = PurePosixPath(value.replace("\\", "/")).as_posix()
    parts = [part.encode("utf-8", "surrogatepass") for part in name.split("/")]
    if len(name) > _MAX_PATH or any(len(part) > _MAX_NAME for part in parts):
        raise CaptureError(f'{path}: "{key}"{of} is longer than any file name ({shown(value)}); correct it.')
    if any(ord(character) < 32 for character in name):
        raise CaptureError(f'{path}: "{key}"{of} has control characters ({shown(value)}); correct it.')
    return name


# --- cameras ----------------------------------------------------------------------------------------------------------


def _camera_model(path: Path, meta: Mapping[str, Any], named: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    if "camera_model" in meta:
        return _known_model(path, meta["camera_model"])
    given = {name: frame["camera_model"] for name, frame in named if "camera_model" in frame}
    models = [_known_model(path, model) for model in given.values()]
    if len(set(models)) > 1 or (models and len(models) < len(named)):
        raise CaptureError(
            f"{path} mixes camera models ({', '.join(sorted(set(models)))} and {len(named) - len(models)} frames "
            'without one); nerfstudio has one "camera_model" for all frames: make a capture of each.'
        )
    if models:
        return models[0]
    return "OPENCV_FISHEYE" if meta.get("is_fisheye") is True else "OPENCV"  # instant-ngp's switch


def _known_model(path: Path, model: object) -> str:
    if isinstance(model, str) and model in _CAMERA_MODELS:
        return model
    from nerfstudio.cameras.cameras import CAMERA_MODEL_TO_TYPE

    if not isinstance(model, str) or model not in CAMERA_MODEL_TO_TYPE:
        known = ", ".join(CAMERA_MODEL_TO_TYPE)
        raise CaptureError(f'{path}: nerfstudio does not know the "camera_model" {shown(model)}; it knows {known}.')
    return model


def _intrinsics(
    path: Path, meta: Mapping[str, Any], frame: Mapping[str, Any], name: str, size_of: Any, derived: set[str]
) -> dict[str, Any]:
    """Focal lengths, principal point and size: the file's own for all frames, or the frame's."""

    def given(key: str) -> float | None:
        where = "" if key in meta else f" of {name}"
        return _number(path, meta if key in meta else frame, key, where)

    def needed(key: str) -> float:
        value = given(key)
        if value is None:
            raise CaptureError(f'{path} gives no "{key}", neither for all frames nor for {name}.')
        return value

    angle_x, angle_y = given("camera_angle_x"), given("camera_angle_y")
    by_angle = given("fl_x") is None and angle_x is not None
    if by_angle and size_of is not None and given("w") is None and given("h") is None:
        derived |= {"w", "h"}
        width, height = size_of(path.parent / name)
    else:
        width, height = needed("w"), needed("h")
    for key, side in (("w", width), ("h", height)):
        if not 1 <= side <= _MAX_SIDE:
            raise CaptureError(f'{path}: "{key}" of {name} is {shown(side)}, not a size in pixels.')
    size = int(width), int(height)
    if by_angle:
        focal_x = _angle_focal(path, "camera_angle_x", angle_x, size[0])
        focal_y = given("fl_y") or (
            focal_x if angle_y is None else _angle_focal(path, "camera_angle_y", angle_y, size[1])
        )
        derived |= {"fl_x", "fl_y"} | {key for key in ("cx", "cy") if given(key) is None}
        cx, cy = given("cx"), given("cy")
        center = size[0] / 2 if cx is None else cx, size[1] / 2 if cy is None else cy
    else:
        focal_x, focal_y = needed("fl_x"), needed("fl_y")
        center = needed("cx"), needed("cy")
    check_intrinsics(path, name, (focal_x, focal_y), center, size)
    return {"focal": (focal_x, focal_y), "center": center, "size": size}


def check_intrinsics(
    path: Path, name: str, focal: tuple[float, float], center: tuple[float, float], size: tuple[int, int]
) -> None:
    """Focal lengths and principal point must be possible for an image of that size.

    Raises:
        CaptureError: they are not.
    """
    low, high = (limit * max(size) for limit in _FOCAL_RANGE)
    for key, value in zip(("fl_x", "fl_y"), focal, strict=True):
        if not low <= value <= high:
            raise CaptureError(
                f'{path}: "{key}" of {name} is {shown(value)} pixels, no focal length for an image of '
                f"{size[0]}x{size[1]}; correct it."
            )
    for key, value, side in zip(("cx", "cy"), center, size, strict=True):
        if not abs(value) <= _FAR_CENTER * side:
            raise CaptureError(f'{path}: "{key}" of {name} is {shown(value)}, far outside of the image; correct it.')


def _angle_focal(path: Path, key: str, angle: Any, side: int) -> float:
    """Focal length in pixels of a field of view in radians."""
    if not 1e-4 < angle < math.pi - 1e-3:
        raise CaptureError(f'{path}: "{key}" is {shown(angle)}, not a field of view in radians.')
    return side / (2 * math.tan(angle / 2))


def _distortion(
    path: Path, meta: Mapping[str, Any], frame: Mapping[str, Any], name: str, model: str
) -> tuple[float, ...]:
    keys = (*DISTORTION, "distortion_params")
    of_all = any(key in meta for key in keys)
    place, where = (meta, "") if of_all else (frame, f" of {name}")
    wanted = FISHEYE624_PARAMETERS if model == "FISHEYE624" else len(DISTORTION)
    if "distortion_params" in place:
        values = place["distortion_params"]
        if not isinstance(values, list) or len(values) != wanted or not all(is_number(value) for value in values):
            raise CaptureError(
                f'{path}: "distortion_params"{where} is {shown(values)}, not a list of {wanted} numbers for a camera '
                f"of the model {model}."
            )
        result = tuple(float(value) for value in values)
    else:
        result = tuple(_number(path, place, key, where) or 0.0 for key in DISTORTION)
        if wanted != len(result):
            raise CaptureError(f'{path}: cameras of the model {model} need "distortion_params" ({wanted} numbers).')
    for name, value in zip(DISTORTION, result, strict=False):
        if abs(value) > _MAX_COEFFICIENT:
            raise CaptureError(
                f'{path}: the distortion coefficient "{name}"{where} is {shown(value)}; no lens has that, correct it.'
            )
    return result


def _pose(path: Path, frame: Mapping[str, Any], name: str) -> Pose:
    rows = frame.get("transform_matrix")
    if not (
        isinstance(rows, list)
        and len(rows) == 4
        and all(isinstance(row, list) and len(row) == 4 for row in rows)
        and all(isinstance(v, (int, float)) and not isinstance(v, bool) for row in rows for v in row)
    ):
        raise CaptureError(f'{path}: "transform_matrix" of {name} is not a 4x4 matrix of numbers.')
    if not all(is_number(value) for row in rows for value in row):
        raise CaptureError(f'{path}: "transform_matrix" of {name} holds NaN or infinity; remove that frame.')
    pose = np.array(rows, np.float64)
    check_pose(path, name, pose)
    return tuple(tuple(row) for row in pose[:3].tolist())


def check_pose(path: Path, name: str, pose: np.ndarray) -> None:
    """A camera-to-world matrix [4, 4] of finite numbers must be a rotation with a position.

    Raises:
        CaptureError: it is none, or mirrors the scene.
    """
    if np.abs(pose[:3, 3]).max() > _MAX_POSITION:
        raise CaptureError(f'{path}: "transform_matrix" of {name} puts the camera at {shown(pose[:3, 3].tolist())}.')
    rotation = pose[:3, :3]
    usable = bool(np.abs(rotation).max() < 2) and bool(
        (np.abs(rotation.T @ rotation - np.eye(3)) < _ROTATION_SLACK).all()
    )
    if not usable or np.linalg.det(rotation) < 0 or np.abs(pose[3] - (0, 0, 0, 1)).max() > 1e-6:
        mirrored = usable and np.linalg.det(rotation) < 0
        what = "mirrors the scene (its determinant is negative)" if mirrored else "is no rotation with a position"
        raise CaptureError(
            f'{path}: "transform_matrix" of {name} {what}; a camera-to-world matrix has three orthogonal columns of '
            "length 1, a position, and the last row 0, 0, 0, 1."
        )


def _check_places(path: Path, frames: Sequence[Frame]) -> None:
    check_places(path, [frame.name for frame in frames], np.array([frame.pose for frame in frames])[:, :, 3])


def check_places(path: Path, names: Sequence[str], positions: np.ndarray) -> None:
    """Camera positions [N, 3] must differ, and none may be so far away that the others become one place.

    Raises:
        CaptureError: they do not.
    """
    spread, size = np.ptp(positions, axis=0).max(), np.abs(positions).max()
    if not spread > 1e-12 * size:
        raise CaptureError(
            f"{path} puts all {len(positions)} cameras at the same place; depth cannot be learned from that. "
            "Take the images from different places."
        )
    distances = np.linalg.norm(positions - np.median(positions, axis=0), axis=1)
    middle = float(np.median(distances))
    if middle > 0 and distances.max() > _FAR_CAMERA * middle:
        raise CaptureError(
            f"{path} puts {names[int(distances.argmax())]} {distances.max() / middle:.0f} times farther away than the "
            "median camera; its pose is wrong: remove that frame."
        )


# --- the rest of the file ---------------------------------------------------------------------------------------------


def _splits(path: Path, meta: Mapping[str, Any], names: Sequence[str]) -> dict[str, tuple[str, ...]] | None:
    lists = {split: meta[f"{split}_filenames"] for split in SPLITS if f"{split}_filenames" in meta}
    if not lists:
        return None
    known = set(names)
    splits: dict[str, tuple[str, ...]] = {}
    for split, listed in lists.items():
        if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
            raise CaptureError(f'{path}: "{split}_filenames" must be a list of file names.')
        splits[split] = tuple(PurePosixPath(name.replace("\\", "/")).as_posix() for name in listed)
        unknown = sorted(set(splits[split]) - known)
        if unknown:
            raise CaptureError(f'{path}: "{split}_filenames" lists {some(unknown, "file")} that no frame names.')
    absent = [split for split in SPLITS if split not in splits]
    if absent:
        given, needed = next(iter(splits)), " and ".join(f'"{split}_filenames"' for split in absent)
        raise CaptureError(
            f'{path} has "{given}_filenames" but no {needed}; nerfstudio needs all three or none '
            '("val_filenames" may repeat "test_filenames").'
        )
    if len(set(splits["train"])) < 2:
        raise CaptureError(f'{path}: "train_filenames" lists fewer than two images; a scene needs at least two.')
    return splits


def _orientation(path: Path, meta: Mapping[str, Any]) -> str | None:
    if "orientation_override" not in meta:
        return None
    value = meta["orientation_override"]
    if not isinstance(value, str) or value not in ORIENTATIONS:
        _not_usable(path, "orientation_override", value, f"one of {', '.join(ORIENTATIONS)}")
    return value


def _applied_transform(path: Path, meta: Mapping[str, Any]) -> Pose | None:
    if "applied_transform" not in meta:
        return None
    rows = meta["applied_transform"]
    if not (
        isinstance(rows, list)
        and len(rows) == 3
        and all(isinstance(row, list) and len(row) == 4 and all(is_number(v) for v in row) for row in rows)
        and abs(np.linalg.det(np.array(rows, np.float64)[:, :3])) > 1e-12
        and np.abs(np.array(rows, np.float64)).max() < _MAX_POSITION
    ):
        _not_usable(path, "applied_transform", rows, "an invertible matrix of 3 rows and 4 columns")
    return tuple(tuple(float(value) for value in row) for row in rows)


def _positive(path: Path, meta: Mapping[str, Any], key: str) -> float | None:
    if key not in meta:
        return None
    value = meta[key]
    if not is_number(value) or not 1e-12 < value < 1e12:
        _not_usable(path, key, value, "a positive number")
    return float(value)


def _number(path: Path, place: Mapping[str, Any], key: str, where: str) -> float | None:
    """A finite number, or None when there is none; sizes and focal lengths are positive."""
    if key not in place:
        return None
    value = place[key]
    if not is_number(value) or (value <= 0 and key in ("fl_x", "fl_y", "w", "h")):
        raise CaptureError(f'{path}: "{key}"{where} is {shown(value)}, not a usable number; correct it.')
    return float(value)


def _not_usable(path: Path, key: str, value: object, wanted: str) -> NoReturn:
    raise CaptureError(f'{path}: "{key}" is {shown(value)}, not {wanted}; correct it or remove the key.')


def is_number(value: object) -> bool:
    """Whether a value of a JSON file is a number that fits a float."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    return math.isfinite(value) if isinstance(value, float) else abs(value) < 1e300


# --- wording ----------------------------------------------------------------------------------------------------------


def some(items: Sequence[str], kind: str) -> str:
    """'2 images (a.png, b.png)', with the first few names only."""
    listed = ", ".join(items[:_SHOWN]) + (", ..." if len(items) > _SHOWN else "")
    return f"{len(items)} {kind}{'' if len(items) == 1 else 's'} ({listed})"


def shown(value: object) -> str:
    """A value for a message: short, on one line."""
    text = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    text = " ".join(text.split())
    return text if len(text) <= 60 else f"{text[:57]}..."
