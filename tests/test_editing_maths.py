"""Movements, harmonics, frames, boxes, pieces and packed indices, each against something independent."""

from __future__ import annotations

import base64
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from maskfield_ns.errors import EditError
from maskfield_ns.selection.coordinates import CaptureCoordinates
from maskfield_ns.selection.geometry import Box, aligned_box, oriented_box, pieces, weighted_quantile
from maskfield_ns.selection.index_codec import pack_indices, unpack_indices
from maskfield_ns.selection.transform import (
    Similarity,
    axis_rotation,
    quaternion,
    quaternion_product,
    quaternion_rotations,
)
from maskfield_ns.splatting.sh_rotation import band, rotate_rest

RNG = np.random.default_rng(4)


def some_similarity(seed: int) -> Similarity:
    rng = np.random.default_rng(seed)
    return Similarity(rng.uniform(0.3, 3), Rotation.random(random_state=seed).as_matrix(), rng.normal(size=3))


def homogeneous(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    return (np.concatenate([points, np.ones((len(points), 1))], axis=1) @ matrix.T)[:, :3]


# --- movements --------------------------------------------------------------------------------------------------------


def test_similarities_compose_and_invert_as_their_matrices_do() -> None:
    points = RNG.normal(size=(20, 3))
    first, second = some_similarity(1), some_similarity(2)
    np.testing.assert_allclose((second @ first)(points), homogeneous(second.matrix @ first.matrix, points))
    np.testing.assert_allclose(first.inverse.matrix, np.linalg.inv(first.matrix))
    np.testing.assert_allclose(first.inverse(first(points)), points)
    again = Similarity.from_json(first.to_json())
    np.testing.assert_array_equal(again.matrix, first.matrix)


def test_scaling_about_a_point_leaves_it_in_place() -> None:
    centre = np.array([1.0, 2, 3])
    moved = Similarity.about(centre, 2.0, axis_rotation((1, 1, 0), 50), (0, 0, 4))
    np.testing.assert_allclose(moved(centre), [1, 2, 7])


@pytest.mark.parametrize("axis", [(0, 0, 1), (1, -2, 0.5)])
def test_axis_rotation_is_scipys(axis: tuple) -> None:
    unit = np.asarray(axis) / np.linalg.norm(axis)
    expected = Rotation.from_rotvec(np.radians(37) * unit).as_matrix()
    np.testing.assert_allclose(axis_rotation(axis, 37), expected, atol=1e-12)


def test_quaternions_are_scipys() -> None:
    for rotation in [*Rotation.random(20, random_state=0), Rotation.from_euler("x", 180, degrees=True)]:
        ours = quaternion(rotation.as_matrix())
        np.testing.assert_allclose(np.abs(ours @ np.roll(rotation.as_quat(), 1)), 1, atol=1e-9)
        np.testing.assert_allclose(quaternion_rotations(3 * ours[None])[0], rotation.as_matrix(), atol=1e-9)
    a, b = Rotation.random(random_state=1), Rotation.random(random_state=2)
    wxyz = [torch.from_numpy(np.roll(r.as_quat(), 1)) for r in (a, b)]
    product = quaternion_product(wxyz[0], wxyz[1]).numpy()
    np.testing.assert_allclose(quaternion_rotations(product[None])[0], (a * b).as_matrix(), atol=1e-9)


@pytest.mark.parametrize(
    "arguments",
    [
        (0.0,),
        (-1.0,),
        (float("nan"),),
        (1.0, np.diag([1, 1, -1])),
        (1.0, np.eye(3) * 2),
        (1.0, np.eye(3), [0, 0, np.inf]),
    ],
)
def test_what_is_no_movement_is_refused(arguments: tuple) -> None:
    with pytest.raises(EditError):
        Similarity(*arguments)


def test_an_axis_needs_a_length_and_json_its_parts() -> None:
    with pytest.raises(EditError, match="axis"):
        axis_rotation((0, 0, 0), 10)
    for damaged in (None, {}, {"scale": "x"}, {"scale": 1, "rotation": [1], "translation": [0, 0, 0]}):
        with pytest.raises(EditError):
            Similarity.from_json(damaged)


# --- spherical harmonics ----------------------------------------------------------------------------------------------


def test_harmonics_are_those_of_the_rasteriser() -> None:
    from maskfield_ns.splatting.sh import sh_colors

    directions = RNG.normal(size=(30, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    coefficients = 0.1 * RNG.normal(size=(30, 25, 3))
    basis = np.concatenate([band(degree, directions) for degree in range(5)], axis=1)
    expected = np.maximum(0.5 + np.einsum("nk,nkc->nc", basis, coefficients), 0)
    given_tensors = [torch.from_numpy(a).float() for a in (directions, coefficients)]
    colours = sh_colors(*given_tensors, torch.eye(4)[None], torch.ones(1, 30, dtype=torch.int32), 4)
    np.testing.assert_allclose(colours[0].numpy(), expected, atol=1e-5)


def test_rotated_harmonics_look_the_same_from_a_direction_that_turns_along() -> None:
    rotation = Rotation.random(random_state=5).as_matrix()
    directions = RNG.normal(size=(40, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    coefficients = RNG.normal(size=(40, 24, 3))
    turned = rotate_rest(torch.from_numpy(coefficients), rotation).numpy()
    before = np.concatenate([band(degree, directions) for degree in range(1, 5)], axis=1)
    after = np.concatenate([band(degree, directions @ rotation.T) for degree in range(1, 5)], axis=1)
    np.testing.assert_allclose(
        np.einsum("nk,nkc->nc", after, turned), np.einsum("nk,nkc->nc", before, coefficients), atol=1e-9
    )
    with pytest.raises(ValueError, match="complete"):
        rotate_rest(torch.from_numpy(coefficients[:, :5]), rotation)


# --- frames -----------------------------------------------------------------------------------------------------------


def test_capture_frame_undoes_nerfstudios_transform() -> None:
    """Against nerfstudio's own way back for poses."""
    from nerfstudio.data.dataparsers.base_dataparser import transform_poses_to_original_space

    transform = np.concatenate([Rotation.random(random_state=3).as_matrix(), [[0.5], [-1], [2]]], axis=1)
    frame = CaptureCoordinates(transform, 0.4)
    points = RNG.normal(size=(6, 3))
    poses = torch.cat([torch.eye(3).expand(6, 3, 3), torch.from_numpy(points).float()[..., None]], dim=2)
    expected = transform_poses_to_original_space(poses, torch.from_numpy(transform).float(), 0.4, "opengl")[:, :, 3]
    np.testing.assert_allclose(frame.to_capture(points), expected.numpy(), atol=1e-5)
    np.testing.assert_allclose(frame.to_scene(frame.to_capture(points)), points, atol=1e-12)
    np.testing.assert_allclose(homogeneous(frame.scene_to_capture, points), frame.to_capture(points))


def test_boxes_go_with_the_frame_even_a_mirrored_one() -> None:
    box = Box(np.array([1.0, 2, 3]), np.array([1.0, 2, 4]), axis_rotation((1, 2, 3), 40))
    for mirror in (1, -1):
        transform = np.concatenate([axis_rotation((0, 1, 0), 70) @ np.diag([1, 1, mirror]), [[1], [0], [0]]], axis=1)
        frame = CaptureCoordinates(transform, 0.5)
        there = box.in_capture(frame)
        np.testing.assert_allclose(there.size, box.size * 2)
        corners = frame.to_capture(box.corners)
        assert there.holds(corners, 1e-9).all() and np.linalg.det(there.axes) > 0
        distance = np.linalg.norm(corners[:, None] - there.corners[None], axis=2).min(axis=1)
        assert distance.max() < 1e-9


# --- boxes and pieces -------------------------------------------------------------------------------------------------


def brick(count: int = 4000, yaw: float = 25, tilt: float = 0) -> tuple[np.ndarray, np.ndarray]:
    axes = axis_rotation((0, 0, 1), yaw) @ axis_rotation((1, 0, 0), tilt)
    local = RNG.uniform(-1, 1, (count, 3)) * [0.5, 0.2, 0.1]
    return local @ axes.T + [1, 2, 3], axes


def test_oriented_box_finds_a_turned_brick_among_outliers() -> None:
    points, _ = brick()
    outliers = RNG.uniform(-10, 10, (20, 3))
    box = oriented_box(np.concatenate([points, outliers]))
    np.testing.assert_allclose(np.sort(box.size), [0.2, 0.4, 1.0], rtol=0.06)
    np.testing.assert_allclose(box.centre, [1, 2, 3], atol=0.02)
    np.testing.assert_allclose(np.abs(box.axes[2]), [0, 0, 1], atol=1e-12)
    longest = box.axes[box.size.argmax()]
    assert abs(longest @ axis_rotation((0, 0, 1), 25)[:, 0]) > np.cos(np.radians(2))


def test_a_tilted_brick_needs_a_box_that_may_tilt() -> None:
    points, axes = brick(tilt=35)
    upright, free = oriented_box(points), oriented_box(points, up=None)
    assert free.volume < 0.7 * upright.volume
    np.testing.assert_allclose(np.sort(free.size), [0.2, 0.4, 1.0], rtol=0.08)
    assert np.abs(free.axes @ axes).max(axis=1).min() > np.cos(np.radians(5))


def test_weights_decide_what_an_outlier_is() -> None:
    points = np.concatenate([np.linspace(0, 1, 101)[:, None].repeat(3, 1), np.full((30, 3), 9.0)])
    light = np.concatenate([np.ones(101), np.full(30, 1e-3)])
    assert aligned_box(points, light).corners.max() < 1.01
    assert aligned_box(points).corners.max() == 9
    assert aligned_box(points, trim=0).size.max() == 9


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=30), st.floats(0.05, 0.95))
@settings(deadline=None, max_examples=50)
def test_weighted_quantile_is_repetition(values: list[float], q: float) -> None:
    """A point of weight 2 counts as two points."""
    array = np.array(values)
    weights = np.where(np.arange(len(array)) % 2, 2.0, 1.0)
    result = weighted_quantile(array, weights, q)
    below, above = (weights * (array < result - 1e-9)).sum(), (weights * (array > result + 1e-9)).sum()
    assert below <= q * weights.sum() + 2 and above <= (1 - q) * weights.sum() + 2


def test_pieces_are_told_apart_and_ordered_by_size() -> None:
    small, large = RNG.normal(size=(60, 3)) * 0.1, RNG.normal(size=(300, 3)) * 0.1 + 5
    points = np.concatenate([small, large, [[20, 20, 20]]])
    label = pieces(points)
    assert set(label[60:360]) >= {0} and (label[60:360] == 0).mean() > 0.9
    assert not set(label[:60]) & set(label[60:360])
    assert (label == label[-1]).sum() == 1
    bridged = pieces(points, np.full(len(points), 9.0))
    assert len(set(bridged[:-1])) < len(set(label[:-1]))


# --- packed indices ---------------------------------------------------------------------------------------------------


@given(st.sets(st.integers(0, 5000), max_size=200))
@settings(deadline=None, max_examples=60)
def test_indices_survive_packing(indices: set[int]) -> None:
    array = np.array(sorted(indices), np.int64)
    np.testing.assert_array_equal(unpack_indices(pack_indices(array), 5001), array)


def packed(steps: np.ndarray) -> str:
    return base64.b64encode(zlib.compress(steps.astype("<u4").tobytes())).decode()


@pytest.mark.parametrize(
    "text",
    [None, 3, "", "no base64!", base64.b64encode(b"not deflated").decode(), pack_indices(np.array([5]))[:-8]]
    + [packed(np.array(steps)) for steps in ([100], [1, 0], [2**32 - 1, 1], [1] * 101)]
    + [packed(np.zeros(1 << 20))],
)
def test_damaged_indices_are_refused(text: object) -> None:
    with pytest.raises(EditError):
        unpack_indices(text, 100)
