"""Cameras and sparse points of a COLMAP model, read by nerfstudio's own utilities."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from nerfstudio.data.utils import colmap_parsing_utils as colmap
from nerfstudio.process_data.colmap_utils import parse_colmap_camera_params

from maskfield_ns.data.dataparsers.common import Shot, opencv_to_opengl
from maskfield_ns.errors import BenchmarkError

_MAX_SIDE = 10**6
_UNIT_SLACK = 0.01
"""By how much the length of a quaternion may differ from 1."""
_DAMAGE = (
    struct.error,
    ValueError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    OSError,
    AssertionError,
    MemoryError,
)
"""What readers raise on files that are not what they should be."""


def read_shots(model: Path, images: Path, by_name: bool = True) -> list[Shot]:
    """Registered images of a COLMAP model (``sparse/0``, binary or text), sorted by name or by COLMAP's id.

    Raises:
        BenchmarkError: no such model, damaged or incomplete files, or a camera that nerfstudio cannot render.
    """
    cameras = _read(model, "cameras", colmap.read_cameras_binary, colmap.read_cameras_text)
    views = _read(model, "images", _images, colmap.read_images_text)
    if not views:
        raise BenchmarkError(f"{model} has no registered image.")
    sides = [side for camera in cameras.values() for side in (camera.width, camera.height)]
    if not all(0 < side <= _MAX_SIDE for side in sides):
        raise BenchmarkError(f"{model}: a camera is for images of {min(sides)} or {max(sides)} pixels; it is damaged.")
    intrinsics = {identity: _intrinsics(model, camera) for identity, camera in cameras.items()}
    shots = []
    for view in sorted(views.values(), key=lambda each: each.name if by_name else each.id):
        if view.camera_id not in intrinsics:
            raise BenchmarkError(f"{model}: the image {view.name} has camera {view.camera_id}, which is not there.")
        with np.errstate(invalid="ignore", over="ignore"):
            world_to_camera = np.eye(4)
            world_to_camera[:3, :3], world_to_camera[:3, 3] = colmap.qvec2rotmat(view.qvec), view.tvec
            unit = abs(np.linalg.norm(view.qvec) - 1) < _UNIT_SLACK  # no quaternion at all would be the identity
            usable = unit and np.isfinite(world_to_camera).all()
            pose = np.linalg.inv(world_to_camera) if usable else np.full((4, 4), np.nan)
        shots.append(Shot(image=images / view.name, pose=opencv_to_opengl(pose), **intrinsics[view.camera_id]))
    return shots


def read_points(model: Path) -> tuple[np.ndarray, np.ndarray] | None:
    """Sparse points [P, 3] and colours [P, 3], or None when the model has no file of them.

    Raises:
        BenchmarkError: a damaged file.
    """
    if not any((model / f"points3D.{suffix}").exists() for suffix in ("bin", "txt")):
        return None
    points = _read(model, "points3D", _points, colmap.read_points3D_text)
    if not points:
        return None
    return np.stack([p.xyz for p in points.values()]), np.stack([p.rgb for p in points.values()])


class _View(NamedTuple):
    """What is needed of a registered image, with the names of nerfstudio's reader."""

    id: int
    qvec: np.ndarray
    tvec: np.ndarray
    camera_id: int
    name: str


class _Point(NamedTuple):
    xyz: np.ndarray
    rgb: np.ndarray


def _images(path: Path) -> dict[int, _View]:
    """``images.bin`` without its keypoints, of which nerfstudio's reader would allocate as many as a file announces."""
    data, views, at = path.read_bytes(), {}, 8
    (count,) = struct.unpack_from("<Q", data, 0)
    for _ in range(count):
        identity, *numbers, camera = struct.unpack_from("<i7di", data, at)
        end = data.index(b"\0", at + 64)
        (keypoints,) = struct.unpack_from("<Q", data, end + 1)
        views[identity] = _View(
            identity, np.array(numbers[:4]), np.array(numbers[4:]), camera, data[at + 64 : end].decode("utf-8")
        )
        at = end + 9 + 24 * keypoints
        if at > len(data):
            raise ValueError("it ends before its last image does")
    return views


def _points(path: Path) -> dict[int, _Point]:
    """``points3D.bin`` without its tracks."""
    data, points, at = path.read_bytes(), {}, 8
    (count,) = struct.unpack_from("<Q", data, 0)
    for _ in range(count):
        identity, x, y, z, red, green, blue, _, track = struct.unpack_from("<Q3d3BdQ", data, at)
        points[identity] = _Point(np.array((x, y, z)), np.array((red, green, blue), np.uint8))
        at += 51 + 8 * track
        if at > len(data):
            raise ValueError("it ends before its last point does")
    return points


def _read(
    model: Path, name: str, binary: Callable[[Path], dict[Any, Any]], text: Callable[[Path], dict[Any, Any]]
) -> dict[Any, Any]:
    for suffix, reader in (("bin", binary), ("txt", text)):
        path = model / f"{name}.{suffix}"
        if not path.exists():
            continue
        try:
            return reader(path)
        except _DAMAGE as error:
            raise BenchmarkError(
                f"{path} is damaged or cut short ({error}); make or download the COLMAP model again."
            ) from error
    raise BenchmarkError(
        f"There is no COLMAP model at {model}: expected {model / name}.bin (or .txt). "
        "The benchmarks keep theirs at sparse/0 in the scene's folder."
    )


def _intrinsics(model: Path, camera: Any) -> dict[str, Any]:
    try:
        parameters = parse_colmap_camera_params(camera)
    except (NotImplementedError, ValueError, IndexError) as error:
        raise BenchmarkError(f"{model}: the camera model {camera.model} is not supported ({error}).") from error
    # COLMAP's k4 to k6 of this model divide; nerfstudio's k4 is the next power of the radius.
    if camera.model == "FULL_OPENCV" and any(float(parameters.get(key, 0.0)) for key in ("k4", "k5", "k6")):
        raise BenchmarkError(f"{model}: the camera model {camera.model} has distortion that nerfstudio does not know.")
    return {
        "focal": (float(parameters["fl_x"]), float(parameters["fl_y"])),
        "centre": (float(parameters["cx"]), float(parameters["cy"])),
        "size": (int(parameters["w"]), int(parameters["h"])),
        "distortion": tuple(float(parameters.get(key, 0.0)) for key in ("k1", "k2", "k3", "k4", "p1", "p2")),
        "camera_model": parameters["camera_model"],
    }
