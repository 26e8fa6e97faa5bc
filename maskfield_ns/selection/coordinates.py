"""Scene coordinates and the capture's own: nerfstudio re-orients, centres and scales every capture before training."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from maskfield_ns.data.seed_points import PRECISE_TRANSFORM
from maskfield_ns.errors import QuestionError

if TYPE_CHECKING:
    from nerfstudio.cameras.cameras import Cameras

UP = (0.0, 0.0, 1.0)
"""Up in scene coordinates, as nerfstudio's dataparser turns captures by default (``orientation_method="up"``)."""


class CaptureCoordinates:
    """Scene coordinates (what models are trained in) to the capture's, and back.

    The capture's coordinates are those of the camera poses before nerfstudio touched them: of ``transforms.json``, or,
    where that has an ``applied_transform``, of the reconstruction (COLMAP, Metashape) that it was made from. Lengths
    are in the capture's unit: metres only if the capture's are.

    Args:
        transform: ``dataparser_transform``: capture to scene before scaling.
        scale: ``dataparser_scale``: scene units per capture unit.
    """

    def __init__(self, transform: Float[np.ndarray, "3 4"], scale: float) -> None:
        transform = np.asarray(transform, np.float64)
        # A reconstruction may come with its axes swapped (a reflection): kept as a matrix, not as a similarity.
        self._matrix = np.eye(4)
        self._matrix[:3] = scale * transform
        self._inverse = np.linalg.inv(self._matrix)
        self.scale = float(scale) * abs(np.linalg.det(transform[:, :3])) ** (1 / 3)

    @classmethod
    def of(cls, datamanager: Any) -> CaptureCoordinates:
        """The frame of a run's capture."""
        outputs = getattr(datamanager, "train_dataparser_outputs", None)
        if outputs is None:
            outputs = datamanager.train_dataset._dataparser_outputs
        precise = outputs.metadata.get(PRECISE_TRANSFORM)
        transform = outputs.dataparser_transform.cpu().numpy() if precise is None else precise
        return cls(transform, float(outputs.dataparser_scale))

    def to_capture(self, points: Float[np.ndarray, "*batch 3"]) -> Float[np.ndarray, "*batch 3"]:
        """Scene points in the capture's coordinates."""
        return np.asarray(points, np.float64) @ self._inverse[:3, :3].T + self._inverse[:3, 3]

    def to_scene(self, points: Float[np.ndarray, "*batch 3"]) -> Float[np.ndarray, "*batch 3"]:
        """Capture points in scene coordinates."""
        return np.asarray(points, np.float64) @ self._matrix[:3, :3].T + self._matrix[:3, 3]

    def directions_to_capture(self, vectors: Float[np.ndarray, "*batch 3"]) -> Float[np.ndarray, "*batch 3"]:
        """Unit directions in the capture's coordinates."""
        return np.asarray(vectors, np.float64) @ self._inverse[:3, :3].T * self.scale

    @property
    def scene_to_capture(self) -> Float[np.ndarray, "4 4"]:
        """Homogeneous matrix from scene to capture coordinates."""
        return self._inverse

    def directions_to_scene(self, vectors: Float[np.ndarray, "*batch 3"]) -> Float[np.ndarray, "*batch 3"]:
        """Unit directions in scene coordinates."""
        return np.asarray(vectors, np.float64) @ self._matrix[:3, :3].T / self.scale


def camera_of(
    intrinsics: Float[np.ndarray, "3 3"],
    pose: Float[np.ndarray, "4 4"],
    size: tuple[int, int],
    convention: str,
    coordinates: CaptureCoordinates | None,
) -> Cameras:
    """A camera [1] in scene coordinates.

    Args:
        intrinsics: K in pixels.
        pose: camera to world, [4, 4] or [3, 4].
        size: (width, height) in pixels.
        convention: "opencv" (x right, y down, z forward) or "opengl" (x right, y up, z backward).
        coordinates: of the capture that the pose is in; None: the pose is in scene coordinates.

    Raises:
        QuestionError: something of this does not make a camera.
    """
    import torch
    from nerfstudio.cameras.cameras import Cameras

    try:
        matrix, place = np.asarray(intrinsics, np.float64), np.asarray(pose, np.float64)
        width, height = (operator.index(side) for side in size)
    except (TypeError, ValueError) as error:
        raise QuestionError("a camera needs a 3x3 matrix K, a 4x4 pose and a size (width, height)") from error
    if matrix.shape != (3, 3) or place.shape not in ((3, 4), (4, 4)) or min(width, height) < 1:
        raise QuestionError(
            f"a camera needs K [3, 3], a pose [4, 4] and a size, not {list(matrix.shape)}, {list(place.shape)}, {size}"
        )
    if convention not in ("opencv", "opengl"):
        raise QuestionError(f"a convention is opencv or opengl, not {convention}")
    axes, position = place[:3, :3], place[:3, 3]
    if (
        not np.allclose(axes.T @ axes, np.eye(3), atol=1e-3)
        or np.linalg.det(axes) < 0
        or not np.isfinite(position).all()
    ):
        raise QuestionError("the first three columns of a pose must be a rotation")
    if convention == "opencv":
        axes = axes * np.array([1.0, -1.0, -1.0])
    if coordinates is not None:
        axes, position = coordinates.directions_to_scene(axes.T).T, coordinates.to_scene(position)
    fx, fy, cx, cy = (float(value) for value in (matrix[0, 0], matrix[1, 1], matrix[0, 2], matrix[1, 2]))
    poses = torch.from_numpy(np.concatenate([axes, position[:, None]], axis=1))[None].float()
    return Cameras(poses, fx, fy, cx, cy, width, height)
