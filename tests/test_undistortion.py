"""Masks must follow pictures through nerfstudio's undistortion and cropping."""

from __future__ import annotations

from typing import Any

import cv2
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


LENSES = [
    ([0.15, -0.05, 0.01, 0.0, 0.002, -0.003], CameraType.PERSPECTIVE),
    ([-0.2, 0.03, 0.0, 0.0, 0.0, 0.0], CameraType.PERSPECTIVE),
    ([0.05, 0.01, -0.01, 0.0, 0.0, 0.0], CameraType.FISHEYE),
]


@pytest.mark.parametrize(("params", "kind"), LENSES)
def test_back_leads_to_where_opencvs_map_came_from(params: list[float], kind: CameraType) -> None:
    """The map of an undistorted picture holds photograph positions; brought back, each must be its own pixel's."""
    how = undistortion(make_camera(params, kind))
    assert how is not None
    positions = torch.from_numpy(how.positions).permute(2, 0, 1)
    for scale in (1, 3):
        size = (HEIGHT * scale, WIDTH * scale)
        returned, seen = how.back(positions, size)
        ys, xs = np.mgrid[: size[0], : size[1]] + 0.5
        own = np.stack([xs / size[1], ys / size[0]])
        # Half a pixel in from the border of the picture there is nothing to interpolate.
        inner = cv2.erode(seen.numpy().astype(np.uint8), np.ones((5, 5)), borderValue=0) > 0
        assert inner.mean() > 0.6
        off = np.abs(returned.numpy() - own)[:, inner] * np.array([[WIDTH], [HEIGHT]])
        assert off.max() < 0.02, "pixels of the photograph"


@pytest.mark.parametrize(("params", "kind"), LENSES)
def test_there_and_back_is_the_same_picture(params: list[float], kind: CameraType) -> None:
    camera = make_camera(params, kind)
    how = undistortion(camera)
    assert how is not None
    ys, xs = np.mgrid[:HEIGHT, :WIDTH]
    smooth = (np.sin(xs / 9.0) * np.cos(ys / 7.0)).astype(np.float32)
    there = through_nerfstudio(camera, np.repeat(smooth[..., None], 3, 2))[..., 0]
    back, seen = how.back(torch.from_numpy(there)[None], (HEIGHT, WIDTH))
    inner = cv2.erode(seen.numpy().astype(np.uint8), np.ones((7, 7)), borderValue=0) > 0
    assert inner.mean() > 0.6 and np.abs(back[0].numpy() - smooth)[inner].max() < 0.02
    assert np.abs(there[: HEIGHT // 2, : WIDTH // 2] - smooth[: HEIGHT // 2, : WIDTH // 2]).max() > 0.1, "it moved"


def test_what_was_cropped_away_is_not_seen() -> None:
    """Barrel distortion: the corners of the photograph lie outside of the cropped picture."""
    how = undistortion(make_camera([-0.2, 0.03, 0.0, 0.0, 0.0, 0.0]))
    assert how is not None
    values = torch.arange(how.size[0], dtype=torch.float32).expand(1, how.size[1], -1)
    back, seen = how.back(values, (HEIGHT, WIDTH))
    assert not bool(seen[0, 0]) and not bool(seen[-1, -1]) and bool(seen[HEIGHT // 2, WIDTH // 2])
    assert back[0, 0, 0] == 0 and back[0, -1, -1] == how.size[0] - 1, "the nearest pixel that was rendered"
    assert how.photograph == (HEIGHT, WIDTH)


def test_a_lens_without_an_inverse_shows_nothing_there() -> None:
    """Strong distortion folds the plane: a solver may find a place that is not the pixel's."""
    how = undistortion(make_camera([-0.6, 0.0, 0.0, 0.0, 0.0, 0.0]))
    assert how is not None
    positions = torch.from_numpy(how.positions).permute(2, 0, 1)
    returned, seen = how.back(positions, (HEIGHT, WIDTH))
    ys, xs = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    off = np.abs(returned.numpy() - np.stack([xs / WIDTH, ys / HEIGHT])) * np.array([WIDTH, HEIGHT])[:, None, None]
    assert off[:, seen.numpy()].max() < 1.01
