"""From a capture's own coordinates to the scene's: turned, centered and scaled as nerfstudio does, but precisely."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from nerfstudio.cameras import camera_utils

from maskfield_ns.errors import CaptureError, MaskfieldError

_COARSE = 1e-3
"""Rounding of positions, relative to the cameras' extent, above which coordinates must be centered."""


class SceneFrame(NamedTuple):
    """Scene coordinates of all images of a capture."""

    poses: Float[torch.Tensor, "N 3 4"]
    """Camera-to-world in scene coordinates."""
    to_scene: Float[np.ndarray, "3 4"]
    """Capture to scene, before scaling; float64."""
    scale: float
    """Scene units per unit of the capture."""


def scene_frame(
    poses: Float[np.ndarray, "N 3 4"],
    config: Any,
    where: Path,
    orientation: str | None = None,
    error: type[MaskfieldError] = CaptureError,
) -> SceneFrame:
    """What nerfstudio's ``auto_orient_and_center_poses`` makes of poses, with what is large subtracted in float64.

    float32 has steps of half a meter at the coordinates of a map projection.

    Args:
        poses: camera-to-world, float64, OpenGL axes.
        config: of the dataparser: orientation_method, center_method, auto_scale_poses and scale_factor.
        where: file of the cameras, for messages.
        orientation: overrides the config's.
        error: class of errors.

    Raises:
        MaskfieldError: the scene cannot be turned upright, or is too far from the origin to be used uncentered.
    """
    positions = poses[:, :, 3]
    extent = float(np.ptp(positions, axis=0).max())
    if not extent > 0:
        raise error(f"All cameras of {where} are at the same place.")
    middle = positions.mean(axis=0)
    if config.center_method == "none":
        if np.abs(positions).max() * 2.0**-24 > _COARSE * extent:
            raise error(
                f"{where} has cameras around ({', '.join(f'{v:.0f}' for v in middle)}): too far from the origin to be "
                'used uncentered. Leave out "--center-method none".'
            )
        middle = np.zeros(3)
    full = np.tile(np.eye(4), (len(poses), 1, 1))
    full[:, :3] = poses
    full[:, :3, 3] -= middle
    oriented, turned = camera_utils.auto_orient_and_center_poses(
        torch.from_numpy(full.astype(np.float32)),
        method=orientation or config.orientation_method,  # pyright: ignore[reportArgumentType]
        center_method=config.center_method,
    )
    if not bool(torch.isfinite(oriented).all()):
        raise error(
            f"{where}: the cameras' up vectors cancel out, so the scene cannot be turned upright; set "
            '"--orientation-method none".'
        )
    to_scene = turned.double().numpy()
    to_scene[:, 3] -= to_scene[:, :3] @ middle
    scale = float(config.scale_factor)
    if not 1e-6 < scale < 1e6:
        raise error(f"--scale-factor is {config.scale_factor}, not a usable positive number.")
    if config.auto_scale_poses:
        scale /= float(oriented[:, :3, 3].abs().max())
    oriented[:, :3, 3] *= scale
    return SceneFrame(oriented[:, :3, :4], to_scene, scale)
