"""Whether declared lenses can be what they say: a distortion must not fold the image over itself."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from maskfield_ns.data.transforms import Declared, Frame
from maskfield_ns.errors import CaptureError

_GRID = 48
"""Positions per side at which a lens is looked at."""
_FARTHEST = 20.0
"""Radius (tangent of the angle to the axis, 87 degrees) up to which a distortion is followed."""
_REFUSED = {"OPENCV": 0.25, "OPENCV_FISHEYE": 0.6}
"""Share of the image that no ray may reach. Corners are lost by wide lenses whose calibration saw no point there;
of a fisheye the corners are often black."""
_SAID = 0.01
"""Share from which a user is told."""


def check_lenses(declared: Declared) -> list[str]:
    """Notes on lenses whose outermost pixels no ray reaches.

    Raises:
        CaptureError: the distortion folds inside the image, so that it cannot be undone.
    """
    if declared.camera_model not in _REFUSED:
        return []
    lenses: dict[tuple, Frame] = {}
    for frame in declared.frames:
        if any(frame.distortion):
            lenses.setdefault((frame.focal, frame.center, frame.size, frame.distortion), frame)
    worst, lost = None, 0.0
    for frame in lenses.values():
        share = folded_share(frame, declared.camera_model == "OPENCV_FISHEYE")
        if share > lost:
            worst, lost = frame, share
    if worst is None or lost < _SAID:
        return []
    coefficients = ", ".join(
        f"{name}={value:g}" for name, value in zip(("k1", "k2", "k3", "k4"), worst.distortion, strict=False) if value
    )
    if lost > _REFUSED[declared.camera_model]:
        raise CaptureError(
            f"{declared.path}: the distortion of {worst.name} ({coefficients}) folds inside the image: no ray reaches "
            f"{100 * lost:.0f} % of its pixels, so it cannot be undone. Correct the coefficients, or undistort the "
            "images first (colmap image_undistorter)."
        )
    return [
        f"{declared.path.name}: the distortion ({coefficients}) folds near the border: no ray reaches "
        f"{100 * lost:.0f} % of the pixels of {worst.name}."
    ]


def folded_share(frame: Frame, fisheye: bool) -> float:
    """Share of an image's pixels that lie beyond the radius at which the distortion turns back."""
    radii = np.linspace(0, np.pi if fisheye else _FARTHEST, 4001)
    reached = radii * _polynomial(radii, frame.distortion)
    falling = np.flatnonzero(np.diff(reached) <= 0)
    if not len(falling):
        return 0.0
    (fx, fy), (cx, cy), (width, height) = frame.focal, frame.center, frame.size
    x = ((np.arange(_GRID) + 0.5) / _GRID * width - cx) / fx
    y = ((np.arange(_GRID) + 0.5) / _GRID * height - cy) / fy
    return float((np.hypot(x[None, :], y[:, None]) > reached[falling[0]]).mean())


def _polynomial(radii: np.ndarray, distortion: Sequence[float]) -> np.ndarray:
    k1, k2, k3, k4 = distortion[:4]
    square = radii**2
    return 1 + square * (k1 + square * (k2 + square * (k3 + square * k4)))
