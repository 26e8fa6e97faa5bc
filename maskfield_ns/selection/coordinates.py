"""Scene coordinates and the capture's own: nerfstudio re-orients, centres and scales every capture before training."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float

from maskfield_ns.data.seed_points import PRECISE_TRANSFORM

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
