"""Where the pixels of an undistorted picture lie in the photograph it was made from.

Gaussians are rasterised by pinhole cameras, so nerfstudio's full-image datamanager undistorts every picture, crops the
part that is filled everywhere, and changes the camera. Masks and labels belong to the photograph and have to follow
through the same maps; ids must not be interpolated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float32
from nerfstudio.cameras.cameras import Cameras, CameraType

from maskfield_ns.errors import CaptureError

_Scalar = TypeVar("_Scalar", bound=np.generic)


@dataclass(frozen=True)
class Undistortion:
    """From an undistorted, cropped picture back to the photograph."""

    positions: Float32[np.ndarray, "h w 2"]
    """(x, y) of each pixel's centre in the photograph, as a share of its width and height."""

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
        height, width = raster.shape[-2:]
        column = np.floor(self.positions[..., 0] * width).astype(np.int64)
        row = np.floor(self.positions[..., 1] * height).astype(np.int64)
        inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
        values = raster[..., row.clip(0, height - 1), column.clip(0, width - 1)]
        return np.where(inside, values, np.asarray(outside, raster.dtype))


def undistortion(camera: Cameras) -> Undistortion | None:
    """What nerfstudio 1.1.5's full-image datamanager does to the pictures of one camera; None: nothing.

    Args:
        camera: one camera (shape []), before the datamanager has rewritten it.

    Raises:
        CaptureError: a camera model that is not supported for Gaussians.
    """
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
    if kind == CameraType.PERSPECTIVE.value:
        k1, k2, k3, _, p1, p2 = d
        coefficients = np.array([k1, k2, p1, p2, k3, 0, 0, 0])
        new, (left, top, w, h) = cv2.getOptimalNewCameraMatrix(matrix, coefficients, (width, height), 0)
        maps = cv2.initUndistortRectifyMap(matrix, coefficients, None, new, (width, height), cv2.CV_32FC1)  # type: ignore[call-overload]
    elif kind == CameraType.FISHEYE.value:
        w, h = width, height
        identity = np.eye(3)
        new = cv2.fisheye.estimateNewCameraMatrixForUndistortRectify(
            matrix, d[:4], (width, height), identity, balance=0
        )
        maps = cv2.fisheye.initUndistortRectifyMap(matrix, d[:4], identity, new, (width, height), cv2.CV_32FC1)
    else:
        raise CaptureError(
            f"cameras of type {CameraType(kind).name} cannot be used with Gaussians: undistort the pictures first, or "
            "train the NeRF method (maskfield, maskfield-lite)"
        )
    x, y = (m[top : top + h, left : left + w] for m in maps)
    positions = np.stack([(x + 0.5) / width, (y + 0.5) / height], axis=-1)
    return Undistortion(positions.astype(np.float32))
