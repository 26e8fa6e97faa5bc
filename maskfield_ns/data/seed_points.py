"""The sparse points that Gaussians start from: into scene coordinates, without what no Gaussian can start from."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, UInt8

from maskfield_ns.data.points import MIN_POINTS
from maskfield_ns.errors import CaptureError, MaskfieldError

PRECISE_TRANSFORM = "dataparser_transform_float64"
"""Key in a dataparser's metadata: ``dataparser_transform`` [3, 4] in float64, for captures far from their origin."""
Points = tuple[Float[np.ndarray, "P 3"], UInt8[np.ndarray, "P 3"]]
"""Positions and colors."""
_FARTHEST = 1e6
"""Scene units (cameras lie within 1): beyond it float32 has no detail, and a product of two such is infinite."""


def seed_points(
    points: Points | None,
    to_scene: Float[np.ndarray, "3 4"],
    scale: float,
    name: str,
    say: Callable[[str], object],
    error: type[MaskfieldError] = CaptureError,
) -> dict[str, torch.Tensor]:
    """What nerfstudio's models find their sparse points by: ``points3D_xyz`` and ``points3D_rgb`` in scene coordinates.

    Points that are not finite or absurdly far are left out; points at one place are one (their Gaussians would have no
    size). Both are counted in a line.

    Args:
        points: in the capture's coordinates, float64; None: there are none.
        to_scene: capture to scene, before scaling, float64.
        scale: scene units per capture unit.
        name: of the file, for messages.
        say: takes a line for the user.
        error: class of errors.

    Raises:
        MaskfieldError: fewer than MIN_POINTS are left.
    """
    if points is None or not len(points[0]):
        return {}
    xyz, rgb = np.asarray(points[0], np.float64), np.asarray(points[1], np.uint8)
    with np.errstate(invalid="ignore", over="ignore"):
        moved = (xyz @ to_scene[:, :3].T + to_scene[:, 3]) * scale
        usable = np.isfinite(moved).all(axis=1) & (np.abs(moved) < _FARTHEST).all(axis=1)
    places = moved[usable].astype(np.float32)
    _, first = np.unique(places, axis=0, return_index=True)
    first.sort()
    lost, merged = int((~usable).sum()), len(places) - len(first)
    if lost or merged:
        parts = [f"{lost} that are not finite or far outside are left out"] if lost else []
        parts += [f"{merged} at the place of another are merged"] if merged else []
        say(f"{name}: of {len(xyz)} sparse points {' and '.join(parts)}; {len(first)} remain.")
    if len(first) < MIN_POINTS:
        raise error(
            f"the sparse points {name} have {len(first)} usable places, at least {MIN_POINTS} are needed; mend the "
            'file, or remove "ply_file_path" from transforms.json to start from random points'
        )
    return {
        "points3D_xyz": torch.from_numpy(places[first].copy()),
        "points3D_rgb": torch.from_numpy(rgb[usable][first].copy()),
    }
