"""Masks must follow pictures through nerfstudio's undistortion and cropping."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.data.datamanagers.full_images_datamanager import _undistort_image

from maskfield_ns.data.undistortion import undistortion
from maskfield_ns.errors import CaptureError

WIDTH, HEIGHT = 96, 64


def make_camera(params: list[float], kind: CameraType = CameraType.PERSPECTIVE) -> Cameras:
    return Cameras(
        camera_to_worlds=torch.eye(4)[None, :3],
        fx=80.0, fy=82.0, cx=47.0, cy=33.5, width=WIDTH, height=HEIGHT,
        distortion_params=torch.tensor([params]),
        camera_type=kind,
    )[0].reshape(())  # fmt: skip


def through_nerfstudio(camera: Cameras, picture: np.ndarray) -> np.ndarray:
    """The same picture as nerfstudio's full-image datamanager would serve it."""
    K: Any = camera.get_intrinsics_matrices().numpy()
    assert camera.distortion_params is not None
    _, picture, _ = _undistort_image(camera, camera.distortion_params.numpy(), {}, picture, K)
    return picture


@pytest.mark.parametrize(
    ("params", "kind"),
    [
        ([0.15, -0.05, 0.01, 0.0, 0.002, -0.003], CameraType.PERSPECTIVE),
        ([-0.2, 0.03, 0.0, 0.0, 0.0, 0.0], CameraType.PERSPECTIVE),
        ([0.05, 0.01, -0.01, 0.0, 0.0, 0.0], CameraType.FISHEYE),
    ],
)
def test_positions_are_those_nerfstudio_interpolates_at(params: list[float], kind: CameraType) -> None:
    """A picture that holds its own pixel positions stays exact under linear interpolation."""
    camera = make_camera(params, kind)
    ys, xs = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32) + 0.5
    expected = through_nerfstudio(camera, np.dstack([xs, ys, np.ones_like(xs)]))
    how = undistortion(camera)
    assert how is not None
    assert how.positions.shape[:2] == expected.shape[:2]
    assert how.size == (expected.shape[1], expected.shape[0])
    ours = how.positions * np.array([WIDTH, HEIGHT])
    inside = expected[..., 2] > 0.999  # nerfstudio fades to black where the photograph ends
    # One pixel in from the border: between the last pixel centre and the edge there is nothing to interpolate.
    inside &= (ours > 1).all(-1) & (ours[..., 0] < WIDTH - 1) & (ours[..., 1] < HEIGHT - 1)
    assert inside.mean() > 0.7
    np.testing.assert_allclose(ours[inside], expected[..., :2][inside], atol=0.05)
    assert np.abs(ours - np.dstack([xs, ys])[: ours.shape[0], : ours.shape[1]]).max() > 0.5, "it does something"


@pytest.mark.parametrize("scale", [1, 2])
def test_ids_follow_at_any_resolution(scale: int) -> None:
    camera = make_camera([0.15, -0.05, 0.01, 0.0, 0.002, -0.003])
    how = undistortion(camera)
    assert how is not None
    ids = np.zeros((HEIGHT * scale, WIDTH * scale), np.uint8)
    ids[20 * scale : 45 * scale, 30 * scale : 70 * scale] = 7
    ids[25 * scale : 30 * scale] = 200
    served = how.apply(ids)
    assert set(np.unique(served)) <= {0, 7, 200}
    smooth = through_nerfstudio(camera, np.repeat((ids[::scale, ::scale] == 200)[..., None], 3, 2).astype(np.float32))
    clear = np.abs(smooth[..., 0] - 0.5) > 0.45  # away from where two ids meet
    assert ((served == 200) == (smooth[..., 0] > 0.5))[clear].all()
    stack = np.stack([ids == 7, ids == 200])
    np.testing.assert_array_equal(how.apply(stack, outside=False), np.stack([served == 7, served == 200]))


def test_undistorted_cameras_need_nothing() -> None:
    assert undistortion(make_camera([0.0] * 6)) is None


def test_a_camera_model_that_cannot_be_undistorted_is_named() -> None:
    with pytest.raises(CaptureError, match="ORTHOPHOTO"):
        undistortion(make_camera([0.1] * 6, CameraType.ORTHOPHOTO))
