"""Rotation, uniform scale and translation in 3D."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from maskfield_ns.errors import EditError
from maskfield_ns.splatting.sh_rotation import rotate_rest

_EXACT = 1e-4
"""How far from orthogonal a rotation may be; float32 matrices written as text stay below it."""


@dataclass(frozen=True, eq=False)
class Similarity:
    """x -> scale * rotation @ x + translation, in double precision."""

    scale: float = 1.0
    rotation: Float[np.ndarray, "3 3"] = field(default_factory=lambda: np.eye(3))
    translation: Float[np.ndarray, " 3"] = field(default_factory=lambda: np.zeros(3))

    def __post_init__(self) -> None:
        """Checks the parts.

        Raises:
            EditError: the scale is not positive, or the matrix no rotation, or a number not finite.
        """
        rotation = np.asarray(self.rotation, np.float64).reshape(3, 3)
        translation = np.asarray(self.translation, np.float64).reshape(3)
        if not (np.isfinite(rotation).all() and np.isfinite(translation).all() and np.isfinite(self.scale)):
            raise EditError("a movement holds NaN or infinity")
        if self.scale <= 0:
            raise EditError(f"a scale must be above 0, not {self.scale}")
        exact = np.abs(rotation).max() <= 1 + _EXACT and np.abs(rotation @ rotation.T - np.eye(3)).max() <= _EXACT
        if not exact or np.linalg.det(rotation) < 0:
            raise EditError("the matrix of a movement is no rotation (its rows must be orthogonal, its determinant 1)")
        object.__setattr__(self, "rotation", rotation)
        object.__setattr__(self, "translation", translation)
        object.__setattr__(self, "scale", float(self.scale))

    def __call__(self, points: Float[np.ndarray, "*batch 3"]) -> Float[np.ndarray, "*batch 3"]:
        """Moves points."""
        return self.scale * np.asarray(points, np.float64) @ self.rotation.T + self.translation

    def __matmul__(self, other: Similarity) -> Similarity:
        """``other`` first, then this one."""
        return Similarity(self.scale * other.scale, self.rotation @ other.rotation, self(other.translation))

    @property
    def inverse(self) -> Similarity:
        """The movement back."""
        rotation = self.rotation.T
        return Similarity(1 / self.scale, rotation, -(rotation @ self.translation) / self.scale)

    @property
    def matrix(self) -> Float[np.ndarray, "4 4"]:
        """Homogeneous matrix."""
        result = np.eye(4)
        result[:3, :3], result[:3, 3] = self.scale * self.rotation, self.translation
        return result

    @property
    def is_identity(self) -> bool:
        """Whether nothing moves."""
        return bool(np.array_equal(self.matrix, np.eye(4)))

    @classmethod
    def about(
        cls,
        centre: Sequence[float] | Float[np.ndarray, " 3"],
        scale: float = 1.0,
        rotation: Float[np.ndarray, "3 3"] | None = None,
        translation: Sequence[float] | Float[np.ndarray, " 3"] = (0.0, 0.0, 0.0),
    ) -> Similarity:
        """Scales and rotates about a point, then translates."""
        rotation = np.eye(3) if rotation is None else np.asarray(rotation, np.float64)
        centre = np.asarray(centre, np.float64)
        return cls(scale, rotation, centre - scale * rotation @ centre + np.asarray(translation, np.float64))

    def to_json(self) -> dict[str, Any]:
        """Plain numbers."""
        return {"scale": self.scale, "rotation": self.rotation.tolist(), "translation": self.translation.tolist()}

    @classmethod
    def from_json(cls, data: Any) -> Similarity:
        """The inverse of :meth:`to_json`.

        Raises:
            EditError: something else.
        """
        try:
            return cls(float(data["scale"]), np.array(data["rotation"], float), np.array(data["translation"], float))
        except (KeyError, TypeError, ValueError) as error:
            raise EditError("a movement needs numbers: scale, rotation (3x3), translation (3)") from error


def axis_rotation(axis: Sequence[float] | Float[np.ndarray, " 3"], degrees: float) -> Float[np.ndarray, "3 3"]:
    """Rotation about an axis through the origin, counter-clockwise seen from the axis' tip (Rodrigues).

    Raises:
        EditError: the axis has no length.
    """
    vector = np.asarray(axis, np.float64)
    length = np.linalg.norm(vector)
    if not np.isfinite(length) or length < 1e-12:
        raise EditError("a rotation needs an axis that is not zero")
    x, y, z = vector / length
    skew = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = np.radians(degrees)
    return np.eye(3) + np.sin(angle) * skew + (1 - np.cos(angle)) * skew @ skew


def quaternion(rotation: Float[np.ndarray, "3 3"]) -> Float[np.ndarray, " 4"]:
    """Unit quaternion (w, x, y, z) of a rotation, w >= 0."""
    m = np.asarray(rotation, np.float64)
    # The eigenvector of Bar-Itzhack's symmetric matrix: stable for every angle, without case distinctions.
    k = np.array(
        [
            [m[0, 0] + m[1, 1] + m[2, 2], m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1]],
            [m[2, 1] - m[1, 2], m[0, 0] - m[1, 1] - m[2, 2], m[0, 1] + m[1, 0], m[0, 2] + m[2, 0]],
            [m[0, 2] - m[2, 0], m[0, 1] + m[1, 0], m[1, 1] - m[0, 0] - m[2, 2], m[1, 2] + m[2, 1]],
            [m[1, 0] - m[0, 1], m[0, 2] + m[2, 0], m[1, 2] + m[2, 1], m[2, 2] - m[0, 0] - m[1, 1]],
        ]
    )
    vector = np.linalg.eigh(k)[1][:, -1]
    return vector if vector[0] >= 0 else -vector


def quaternion_rotations(quats: Float[np.ndarray, "N 4"]) -> Float[np.ndarray, "N 3 3"]:
    """Rotation matrices of quaternions (w, x, y, z), which need not be normalised."""
    w, x, y, z = (quats / np.linalg.norm(quats, axis=1, keepdims=True)).T
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.moveaxis(np.array(rows), -1, 0)


Params = Mapping[str, Tensor]
"""Gaussians before activation, as splatfacto keeps them: means, quats (w first), scales (log), opacities (logit),
features_dc, features_rest, and our mask_features."""


def transformed(params: Params, transform: Similarity) -> dict[str, Tensor]:
    """Gaussians after a similarity; colours turn along, so that they look the same from a camera that turns along."""
    result = dict(params)
    if transform.is_identity:
        return result
    means = result["means"]
    rotation = torch.from_numpy(transform.rotation).to(means)
    shift = torch.from_numpy(transform.translation).to(means)
    result["means"] = transform.scale * means @ rotation.T + shift
    result["scales"] = result["scales"] + float(np.log(transform.scale))
    turn = torch.from_numpy(quaternion(transform.rotation)).to(means)
    result["quats"] = quaternion_product(turn, result["quats"])
    result["features_rest"] = rotate_rest(result["features_rest"], transform.rotation)
    return result


def quaternion_product(a: Tensor, b: Tensor) -> Tensor:
    """The rotation b and then a, as quaternions (w, x, y, z)."""
    aw, ax, ay, az = a.unbind(-1)
    bw, bx, by, bz = b.unbind(-1)
    return torch.stack(
        [
            aw * bw - ax * bx - ay * by - az * bz,
            aw * bx + ax * bw + ay * bz - az * by,
            aw * by - ax * bz + ay * bw + az * bx,
            aw * bz + ax * by - ay * bx + az * bw,
        ],
        dim=-1,
    )
