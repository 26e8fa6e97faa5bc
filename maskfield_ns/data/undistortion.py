"""Where the pixels of an undistorted picture lie in the photograph it was made from.

Gaussians are rasterised by pinhole cameras, so nerfstudio's full-image datamanager undistorts every picture, crops the
part that is filled everywhere, and changes the camera. Masks and labels belong to the photograph and have to follow
through the same maps; ids must not be interpolated. Answers that are scored at the photograph's pixels go the way back.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64
from nerfstudio.cameras.cameras import CAMERA_MODEL_TO_TYPE, Cameras, CameraType
from torch import Tensor

from maskfield_ns.errors import CaptureError

_Scalar = TypeVar("_Scalar", bound=np.generic)


_ROUNDS = 100
"""Iterations that OpenCV may take to take the distortion off a point; it stops when nothing changes any more."""
_ALMOST_NOTHING = 1e-12
_NARROWEST = 0.05
"""Share of its own focal length that an undistorted fisheye must keep, or its image is a few pixels of the middle."""
_NERF = "train the NeRF method (maskfield, maskfield-lite)"
_NAMES = {kind.value: name for name, kind in CAMERA_MODEL_TO_TYPE.items()}
"""What transforms.json calls the models."""
_ASTRAY = 1.0
"""Pixels by which there and back may miss. Far outside of the cropped picture distortion need not have an inverse."""


@dataclass(frozen=True)
class Lens:
    """How a photograph was undistorted, in OpenCV's terms: the middle of the first pixel is at 0."""

    matrix: Float64[np.ndarray, "3 3"]
    """Of the photograph's camera."""
    coefficients: Float64[np.ndarray, " K"]
    fisheye: bool
    undistorted: Float64[np.ndarray, "3 3"]
    """Matrix of the undistorted picture, before it was cropped."""
    corner: tuple[int, int]
    """(column, row) where the cropped picture begins."""
    size: tuple[int, int]
    """(width, height) of the photograph."""

    def identity(self) -> list[object]:
        """Everything that the undistorted picture follows from, as JSON can hold it."""
        numbers = [*self.matrix.ravel().tolist(), *self.coefficients.tolist(), *self.undistorted.ravel().tolist()]
        return [numbers, self.fisheye, *map(int, self.corner), *map(int, self.size)]

    def undistort(self, points: Float64[np.ndarray, "N 2"]) -> Float64[np.ndarray, "N 2"]:
        """Pixels of the photograph as pixels of the cropped picture; wrong where distortion has no inverse."""
        import cv2

        given = np.ascontiguousarray(points, np.float64)[:, None]
        criteria = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, _ROUNDS, 1e-9)
        camera = (given, self.matrix, self.coefficients)
        if self.fisheye:
            found = cv2.fisheye.undistortPoints(*camera, R=np.eye(3), P=self.undistorted, criteria=criteria)
        elif hasattr(cv2, "undistortPointsIter"):  # OpenCV 4: the plain function stops after five iterations
            found = cv2.undistortPointsIter(*camera, np.eye(3), self.undistorted, criteria)  # type: ignore[attr-defined]
        else:
            found = cv2.undistortPoints(*camera, R=np.eye(3), P=self.undistorted, criteria=criteria)
        return found[:, 0] - np.array(self.corner, np.float64)


@dataclass(frozen=True)
class Undistortion:
    """From an undistorted, cropped picture back to the photograph."""

    positions: Float32[np.ndarray, "h w 2"]
    """(x, y) of each pixel's centre in the photograph, as a share of its width and height."""
    lens: Lens
    _sources: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @property
    def photograph(self) -> tuple[int, int]:
        """(height, width) of the photograph."""
        return self.lens.size[1], self.lens.size[0]

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the undistorted picture."""
        return self.positions.shape[1], self.positions.shape[0]

    def apply(self, raster: np.ndarray, outside: int | bool = 0) -> np.ndarray:
        """Nearest values of rasters [..., H, W] over the photograph, at any resolution, as [..., h, w].

        Args:
            raster: masks or ids.
            outside: value of pixels that the photograph does not show.
        """
        source, inside = self._source((raster.shape[-2], raster.shape[-1]))
        values = np.take(raster.reshape(*raster.shape[:-2], -1), source, axis=-1)
        return np.where(inside, values, np.asarray(outside, raster.dtype))

    def _source(self, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Of each pixel the flat index of its pixel in a raster (height, width), and whether that shows it."""
        if size not in self._sources:
            height, width = size
            column = np.floor(self.positions[..., 0] * width).astype(np.int64)
            row = np.floor(self.positions[..., 1] * height).astype(np.int64)
            inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            self._sources.clear()  # rasters of one size come one after the other
            self._sources[size] = row.clip(0, height - 1) * width + column.clip(0, width - 1), inside
        return self._sources[size]

    def forth(self, maps: Float[Tensor, "N h w"], size: tuple[int, int]) -> Float[Tensor, "N H W"]:
        """Maps over the photograph as the undistorted picture shows them, interpolated linearly.

        Args:
            maps: at any resolution.
            size: (height, width) over the undistorted picture.
        """
        positions = torch.from_numpy(self.positions).permute(2, 0, 1)
        positions = torch.nn.functional.interpolate(positions[None], size, mode="area")[0]
        return _sample(maps, 2 * positions.permute(1, 2, 0)[None] - 1)

    def back(
        self, maps: Float[Tensor, "N h w"], size: tuple[int, int]
    ) -> tuple[Float[Tensor, "N H W"], Bool[Tensor, "H W"]]:
        """Maps over the undistorted picture as the photograph would show them, at any resolution.

        Args:
            maps: at any resolution; interpolated linearly.
            size: (height, width) over the photograph.

        Returns:
            Maps, and which pixels the undistorted picture shows; the others have the value of its nearest pixel.
        """
        height, width = size
        columns = (np.arange(width) + 0.5) / width * self.lens.size[0] - 0.5
        rows = (np.arange(height) + 0.5) / height * self.lens.size[1] - 0.5
        points = np.stack(np.meshgrid(columns, rows), axis=-1)
        found = self.lens.undistort(points.reshape(-1, 2)).reshape(points.shape)
        # Beyond a few pictures' widths the numbers mean nothing, and float32 should not have to hold them.
        shares = np.nan_to_num((found + 0.5) / self.size, nan=-9.0).clip(-9, 9).astype(np.float32)
        grid = torch.from_numpy(2 * shares - 1)[None]
        returned = _sample(torch.from_numpy(self.positions).permute(2, 0, 1), grid).permute(1, 2, 0).numpy()
        astray = np.abs(returned * self.lens.size - 0.5 - points).max(axis=-1)
        inside = (shares >= 0).all(axis=-1) & (shares <= 1).all(axis=-1) & (astray < _ASTRAY)
        return _sample(maps, grid), torch.from_numpy(inside)


def check_cameras(cameras: Cameras, where: object = "the capture") -> None:
    """Gaussians are rendered by pinhole cameras: other cameras' images must be such that they can be undistorted.

    Args:
        cameras: one or more.
        where: what they belong to, for the message.

    Raises:
        CaptureError: panoramas and the like, or a distortion that nerfstudio cannot take off.
    """
    kinds = set(cameras.camera_type.flatten().tolist())
    foreign = sorted(kinds - {CameraType.PERSPECTIVE.value, CameraType.FISHEYE.value})
    if foreign:
        raise CaptureError(
            f'{where}: the "camera_model" {_NAMES.get(foreign[0], CameraType(foreign[0]).name)} cannot be used with '
            f"Gaussians, which are rendered by pinhole cameras: undistort the images first, or {_NERF}"
        )
    params = cameras.distortion_params
    if params is None:
        return
    pinhole = cameras.camera_type[..., 0] == CameraType.PERSPECTIVE.value
    if bool((pinhole & (params[..., 3] != 0)).any()):
        raise CaptureError(
            f'{where}: the distortion coefficient "k4" cannot be taken off the images, which Gaussians need: '
            f"calibrate with k1 to k3, undistort the images first, or {_NERF}"
        )
    if CameraType.FISHEYE.value in kinds:
        _check_fisheyes(cameras, where)


def _check_fisheyes(cameras: Cameras, where: object) -> None:
    """A pinhole image of half the world would have no end: a fisheye must see clearly less than 180 degrees."""
    params = cameras.distortion_params
    assert params is not None
    rows = torch.cat([cameras.fx, cameras.fy, cameras.cx, cameras.cy, cameras.width, cameras.height, params], -1)
    for fx, fy, cx, cy, width, height, *d in torch.unique(rows.reshape(-1, rows.shape[-1]), dim=0).double().tolist():
        matrix = np.array([[fx, 0, cx - 0.5], [0, fy, cy - 0.5], [0, 0, 1]])
        new = _pinhole_of_fisheye(matrix, np.array(d[:4]), (int(width), int(height)))
        middle = 0 <= new[0, 2] <= width and 0 <= new[1, 2] <= height
        if not (np.isfinite(new).all() and middle and min(new[0, 0] / fx, new[1, 1] / fy) > _NARROWEST):
            raise CaptureError(
                f"{where}: the fisheye sees too much for a pinhole image (180 degrees or nearly so), which Gaussians "
                f"need: crop the images, or {_NERF}"
            )


def _pinhole_of_fisheye(
    matrix: Float64[np.ndarray, "3 3"], coefficients: Float64[np.ndarray, " K"], size: tuple[int, int]
) -> Float64[np.ndarray, "3 3"]:
    """The camera that nerfstudio undistorts a fisheye's images to."""
    import cv2

    new = cv2.fisheye.estimateNewCameraMatrixForUndistortRectify(matrix, coefficients, size, np.eye(3), balance=0)
    return np.asarray(new, np.float64)


def mark_fisheyes(cameras: Cameras) -> None:
    """Lets nerfstudio undistort fisheyes without coefficients, too: it passes by cameras whose coefficients are all 0.

    An ideal fisheye is none the less no pinhole camera. What is written is far below what float32 resolves of a pixel.
    """
    params = cameras.distortion_params
    if params is not None:
        ideal = (cameras.camera_type[..., 0] == CameraType.FISHEYE.value) & (params == 0).all(dim=-1)
        params[..., 0] = torch.where(ideal, _ALMOST_NOTHING, params[..., 0])


def undistortion(camera: Cameras) -> Undistortion | None:
    """What nerfstudio 1.1.5's full-image datamanager does to the pictures of one camera; None: nothing.

    Args:
        camera: one camera (shape []), before the datamanager has rewritten it.

    Raises:
        CaptureError: a camera model that is not supported for Gaussians.
    """
    check_cameras(camera)
    params = camera.distortion_params
    if params is None or bool(torch.all(params == 0)):
        return None
    import cv2

    width, height = int(camera.width.item()), int(camera.height.item())
    matrix = camera.get_intrinsics_matrices().numpy().astype(np.float64)
    # OpenCV's pixel centres are whole numbers, nerfstudio's lie half a pixel further.
    matrix[:2, 2] -= 0.5
    d = params.numpy().astype(np.float64)
    kind = int(camera.camera_type.item())
    left, top = 0, 0
    coefficients = d[:4]
    if kind == CameraType.PERSPECTIVE.value:
        k1, k2, k3, _, p1, p2 = d
        coefficients = np.array([k1, k2, p1, p2, k3, 0, 0, 0])
        new, (left, top, w, h) = cv2.getOptimalNewCameraMatrix(matrix, coefficients, (width, height), 0)
        maps = cv2.initUndistortRectifyMap(matrix, coefficients, None, new, (width, height), cv2.CV_32FC1)  # type: ignore[call-overload]
    else:
        w, h = width, height
        new = _pinhole_of_fisheye(matrix, d[:4], (width, height))
        maps = cv2.fisheye.initUndistortRectifyMap(matrix, d[:4], np.eye(3), new, (width, height), cv2.CV_32FC1)
    x, y = (m[top : top + h, left : left + w] for m in maps)
    positions = np.stack([(x + 0.5) / width, (y + 0.5) / height], axis=-1)
    fisheye, undistorted = kind == CameraType.FISHEYE.value, np.asarray(new, np.float64)
    lens = Lens(matrix, coefficients, fisheye, undistorted, (left, top), (width, height))
    return Undistortion(positions.astype(np.float32), lens)


def undistortions(cameras: Cameras) -> list[Undistortion | None]:
    """:func:`undistortion` of each of some cameras; those with one lens share what is made of it.

    Raises:
        CaptureError: a camera model that is not supported for Gaussians.
    """
    made: dict[tuple[float, ...], Undistortion | None] = {}
    result = []
    for index in range(len(cameras)):
        camera = cameras[index].reshape(())
        lens = [camera.fx, camera.fy, camera.cx, camera.cy, camera.width, camera.height, camera.camera_type]
        distortion = [] if camera.distortion_params is None else camera.distortion_params.tolist()
        key = (*(float(value.item()) for value in lens), *distortion)
        if key not in made:
            made[key] = undistortion(camera)
        result.append(made[key])
    return result


def _sample(maps: Float[Tensor, "N h w"], grid: Float[Tensor, "1 H W 2"]) -> Float[Tensor, "N H W"]:
    """Linear interpolation at positions in -1..1 from edge to edge; beyond the outermost centres their values."""
    sampled = torch.nn.functional.grid_sample(
        maps[None].float(), grid, mode="bilinear", padding_mode="border", align_corners=False
    )
    return sampled[0]
