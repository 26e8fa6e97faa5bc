"""Reduction of masks to ray grids, against scipy-free references computed another way."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maskfield_ns.data.mask_views import (
    FULL,
    MaskTargets,
    MaskViews,
    area_average,
    grid_centres,
    grid_size,
    pack_targets,
    reduce_masks,
)


def reduce(masks: np.ndarray, grid: tuple[int, int], **options: object) -> MaskTargets:
    """reduce_masks with attributes that say which mask they belong to."""
    count = len(masks)
    return reduce_masks(
        masks,
        np.arange(count, dtype=np.int8) % 3,
        np.linspace(0.5, 1, count, dtype=np.float32),
        np.eye(count, 4, dtype=np.float16),
        grid=grid,
        **options,  # type: ignore[arg-type]
    )


@settings(max_examples=30, deadline=None)
@given(
    height=st.integers(1, 23),
    width=st.integers(1, 23),
    grid=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    seed=st.integers(0, 99),
)
def test_area_average_equals_supersampling(height: int, width: int, grid: tuple[int, int], seed: int) -> None:
    """Blowing pixels up until cells are whole blocks of them makes the average an ordinary mean."""
    masks = np.random.default_rng(seed).random((2, height, width)) < 0.4
    fine = masks.repeat(grid[0], axis=1).repeat(grid[1], axis=2)
    expected = fine.reshape(2, grid[0], height, grid[1], width).mean(axis=(2, 4))
    np.testing.assert_allclose(area_average(masks, grid), expected, atol=1e-5)


def test_a_line_thinner_than_a_cell_is_not_lost() -> None:
    masks = np.zeros((1, 360, 480), bool)
    masks[0, :, 101] = True
    view = reduce(masks, (60, 80))
    np.testing.assert_allclose(view.dense()[0, :, 101 // 6], 1 / 6, atol=0.5 / FULL + 1e-6)
    assert np.count_nonzero(view.dense()) == 60 == view.crops.size
    assert view.areas == pytest.approx(1 / 480, rel=1e-2)


def test_small_masks_go_with_all_their_attributes() -> None:
    masks = np.zeros((4, 40, 40), bool)  # 4x4 pixels a cell
    masks[0, :4, :3] = True  # 0.75 cells
    masks[1, :4, :5] = True  # 1.25 cells
    masks[3, 10:30, 10:30] = True  # 25 cells; mask 2 is empty
    view = reduce(masks, (10, 10), min_cells=1.0)
    assert view.levels.tolist() == [1, 0]
    np.testing.assert_allclose(view.scores, np.linspace(0.5, 1, 4)[[1, 3]], rtol=1e-6)
    assert view.embeddings.dtype == np.float32
    np.testing.assert_array_equal(view.embeddings, np.eye(4)[[1, 3]])
    np.testing.assert_allclose(view.areas, [0.0125, 0.25], rtol=2e-3)
    assert len(reduce(masks, (10, 10), min_cells=0.0)) == 3


def test_excluded_pixels_count_nowhere() -> None:
    masks = np.zeros((2, 20, 20), bool)
    masks[0, :, 4:] = True
    masks[1, :, :4] = True
    valid = np.zeros((40, 40), bool)  # at another resolution than the masks
    valid[:, 20:] = True
    view = reduce(masks, (10, 10), valid=valid)
    np.testing.assert_array_equal(view.valid, np.arange(10)[None] >= np.full((10, 1), 5))
    assert view.levels.tolist() == [0]  # mask 1 lies where nothing is valid
    assert view.areas == pytest.approx([1.0])


def test_no_masks_at_all() -> None:
    view = reduce(np.zeros((0, 30, 40), bool), (6, 8))
    assert len(view) == 0
    assert view.grid == (6, 8)
    assert view.embeddings.shape == (0, 4)


@settings(max_examples=40, deadline=None)
@given(
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    grid=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    seed=st.integers(0, 99),
)
def test_crops_are_the_whole_masks(size: tuple[int, int], grid: tuple[int, int], seed: int) -> None:
    """Boxes in pixels and in cells leave nothing out; dense, sparse and on a device they are the same masks."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((4, *size), bool)
    for mask in masks[:3]:  # the last one is empty
        y, x = rng.integers(0, size[0]), rng.integers(0, size[1])
        mask[y : y + rng.integers(1, 20), x : x + rng.integers(1, 20)] = rng.random() < 0.8 or rng.random(1) < 0.5
    whole = area_average(masks, grid)
    view = reduce(masks, grid, min_cells=0.0)
    np.testing.assert_allclose(view.dense(), whole[view.places], atol=0.5 / FULL + 1e-5)
    np.testing.assert_array_equal(view.sparse().toarray().reshape(-1, *grid), view.dense())
    tensors = MaskViews(["a"], [view], 4).tensors(0, "cpu")
    np.testing.assert_array_equal(tensors.masks().numpy().reshape(-1, *grid), view.dense())
    some = torch.arange(len(view)).flip(0)[:2]
    np.testing.assert_array_equal(tensors.masks(some).numpy(), tensors.masks()[some].numpy())
    packed = pack_targets(whole, *np.zeros((2, 4)), np.eye(4), np.ones(grid, bool))
    assert len(packed) == 4
    np.testing.assert_allclose(packed.dense(), whole, atol=0.5 / FULL + 1e-5)


def test_halves_are_exact() -> None:
    masks = np.zeros((1, 4, 4), bool)
    masks[0, :2] = True
    assert reduce(masks, (1, 1), min_cells=0.0).dense().tolist() == [[[0.5]]]


@pytest.mark.parametrize(
    ("size", "side", "expected"),
    [((480, 360), 80, (60, 80)), ((360, 640), 80, (80, 45)), ((40, 30), 80, (30, 40)), ((1000, 2), 100, (1, 100))],
)
def test_grid_keeps_the_shape(size: tuple[int, int], side: int, expected: tuple[int, int]) -> None:
    assert grid_size(*size, side) == expected


def test_grid_centres_are_pixel_centres_at_full_resolution() -> None:
    from nerfstudio.cameras.cameras import Cameras

    camera = Cameras(torch.eye(4)[None, :3], 10.0, 10.0, 4.0, 3.0, width=8, height=6)
    torch.testing.assert_close(grid_centres((6, 8), 8, 6), camera.get_image_coords())
    coarse = grid_centres((3, 2), 8, 6)
    torch.testing.assert_close(coarse[0, 0], torch.tensor([1.0, 2.0]))
    torch.testing.assert_close(coarse[2, 1], torch.tensor([5.0, 6.0]))


def test_views_as_tensors() -> None:
    masks = np.zeros((2, 12, 8), bool)
    masks[0, :4], masks[1, 4:] = True, True
    full, empty = reduce(masks, (3, 2)), reduce(masks[:0], (3, 2))
    views = MaskViews(["a", "b", "c"], [empty, full, empty], 4)
    assert (len(views), views.num_masks, views.supervised) == (3, 2, (1,))
    assert views.nbytes == sum(view.nbytes for view in (full, empty, empty)) > 0
    tensors = views.tensors(1, "cpu")
    assert tensors.masks().tolist() == [[1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 1, 1]]
    assert (tensors.masks().dtype, tensors.levels.dtype) == (torch.float32, torch.int64)
    assert tensors.valid.shape == (6,)
    assert views.tensors(0, "cpu").masks().shape == (0, 6)
    with pytest.raises(ValueError, match="2 names for 1 views"):
        MaskViews(["a", "b"], [full], 4)
