"""Automatic three-level masks: against segment-anything's own forward pass and a literal reading of the filter rule."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from segment_anything.utils.amg import build_point_grid, generate_crop_boxes, remove_small_regions
from skimage.measure import label

from maskfield_ns.errors import WeightsError
from maskfield_ns.foundation.config import MaskGeneratorConfig
from maskfield_ns.foundation.filtering import distinct_from, keep_distinct, pairwise_intersections, reduced_size
from maskfield_ns.foundation.protocols import MaskProposer, mask_boxes
from maskfield_ns.foundation.sam import SamProposer, cut_by_crop, enlarge_masks, load_sam, remove_specks
from maskfield_ns.foundation.specks import without_specks
from maskfield_ns.foundation.tiny.sam import build_tiny_sam

OPEN = MaskGeneratorConfig(
    points_per_side=3,
    pred_iou_thresh=-1e9,
    stability_thresh=0.0,
    box_nms_thresh=1.0,
    min_region_area=0,
    score_thresh=-1e9,
    overlap_thresh=1.0,
    inner_thresh=1.0,
)
"""Every filter off."""


@pytest.fixture(scope="module")
def sam():
    torch.manual_seed(0)
    model = build_tiny_sam().eval()
    # Random weights give masks that hardly depend on the prompt; larger mask tokens make them differ.
    with torch.no_grad():
        for parameter in model.mask_decoder.parameters():
            parameter.mul_(1.7)
    return model


@pytest.fixture(scope="module")
def image():
    rng = np.random.default_rng(1)
    coarse = rng.integers(0, 256, (6, 8, 3), np.uint8)
    return np.kron(coarse, np.ones((15, 15, 1), np.uint8))  # 90 x 120


def reference_masks(sam, image, points_per_side):
    """Masks and predicted IoU [points, 3, ...] through Sam.forward on one picture of exactly the encoder's size."""
    height, width = image.shape[:2]
    grid = torch.from_numpy(build_point_grid(points_per_side) * [width, height]).float()
    record = {
        "image": torch.from_numpy(image).permute(2, 0, 1).float(),
        "original_size": (height, width),
        "point_coords": grid[:, None],
        "point_labels": torch.ones(len(grid), 1),
    }
    out = sam([record], multimask_output=True)[0]
    return out["masks"].numpy(), out["iou_predictions"].numpy()


def test_masks_and_levels_match_sam_forward(sam):
    rng = np.random.default_rng(2)
    picture = np.kron(rng.integers(0, 256, (12, 16, 3), np.uint8), np.ones((10, 10, 1), np.uint8))  # 120 x 160
    found = SamProposer(sam, OPEN).propose(picture)
    masks, ious = reference_masks(sam, picture, OPEN.points_per_side)
    for level in range(3):
        expected = {masks[p, level].tobytes() for p in range(len(masks)) if masks[p, level].any()}
        assert {m.tobytes() for m in found.masks[found.levels == level]} == expected
        by_mask = {masks[p, level].tobytes(): ious[p, level] for p in range(len(masks))}
        for mask, score in zip(found.masks[found.levels == level], found.scores[found.levels == level], strict=True):
            assert score == pytest.approx(np.clip(by_mask[mask.tobytes()], 0, 1), abs=1e-4)


def test_fields_fit_together(sam, image):
    proposer = SamProposer(sam, OPEN)
    assert isinstance(proposer, MaskProposer)
    found = proposer.propose(image)
    assert len(found) > 0
    assert found.masks.shape == (len(found), 90, 120) and found.masks.dtype == bool
    assert found.levels.dtype == np.int8 and found.boxes.dtype == np.int32
    assert found.scores.dtype == np.float32 and found.stability.dtype == np.float32
    assert np.all((found.scores >= 0) & (found.scores <= 1) & (found.stability >= 0) & (found.stability <= 1))
    np.testing.assert_array_equal(found.boxes, mask_boxes(found.masks))
    assert np.all(np.diff(found.levels) >= 0)
    rank = found.scores * found.stability
    for level in range(3):
        assert np.all(np.diff(rank[found.levels == level]) <= 1e-6)


@pytest.mark.parametrize("shape", [(40, 300), (301, 50), (17, 17), (200, 200)])
def test_any_picture_shape(sam, shape):
    picture = np.random.default_rng(3).integers(0, 256, (*shape, 3), np.uint8)
    found = SamProposer(sam, OPEN).propose(picture)
    assert found.masks.shape[1:] == shape


def test_batch_size_changes_nothing(sam, image):
    one = SamProposer(sam, MaskGeneratorConfig(**{**vars(OPEN), "points_per_batch": 2})).propose(image)
    all_at_once = SamProposer(sam, MaskGeneratorConfig(**{**vars(OPEN), "points_per_batch": 100})).propose(image)
    assert len(one) == len(all_at_once)
    assert np.mean(one.masks != all_at_once.masks) < 1e-3
    np.testing.assert_allclose(one.scores, all_at_once.scores, atol=1e-4)


def test_thresholds_remove_masks(sam, image):
    everything = SamProposer(sam, OPEN).propose(image)
    middle = float(np.median(everything.stability))
    stable = SamProposer(sam, MaskGeneratorConfig(**{**vars(OPEN), "stability_thresh": middle})).propose(image)
    assert 0 < len(stable) < len(everything)
    assert np.all(stable.stability >= middle)
    nothing = SamProposer(sam, MaskGeneratorConfig(**{**vars(OPEN), "pred_iou_thresh": 1e9})).propose(image)
    assert len(nothing) == 0
    assert nothing.masks.shape == (0, 90, 120) and nothing.boxes.shape == (0, 4)


def test_large_pictures_are_worked_on_reduced_and_come_back_whole(sam, image):
    small = SamProposer(sam, MaskGeneratorConfig(**{**vars(OPEN), "max_side": 60})).propose(image)
    full = SamProposer(sam, OPEN).propose(image)
    assert small.masks.shape[1:] == image.shape[:2]
    assert len(small) == len(full)
    overlap = (small.masks & full.masks).sum((1, 2)) / (small.masks | full.masks).sum((1, 2)).clip(1)
    # Random weights draw ragged masks; unrelated ones of these sizes would overlap by about a third.
    assert np.median(overlap) > 0.6
    np.testing.assert_allclose(small.masks.mean((1, 2)), full.masks.mean((1, 2)), atol=0.1)


def test_fingerprint_follows_parameters_but_not_speed(sam):
    base = SamProposer(sam, OPEN, {"name": "x"}).fingerprint()
    slow = SamProposer(sam, MaskGeneratorConfig(**{**vars(OPEN), "points_per_batch": 1}), {"name": "x"}).fingerprint()
    other = SamProposer(sam, MaskGeneratorConfig(**{**vars(OPEN), "overlap_thresh": 0.5}), {"name": "x"}).fingerprint()
    assert base == slow != other


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_finds_what_the_cpu_finds(sam, image):
    on_cpu = SamProposer(sam, OPEN).propose(image)
    on_cuda = SamProposer(copy.deepcopy(sam).cuda(), OPEN).propose(image)
    assert len(on_cuda) == len(on_cpu)
    np.testing.assert_allclose(np.sort(on_cuda.scores), np.sort(on_cpu.scores), atol=1e-2)
    np.testing.assert_allclose(on_cuda.masks.mean((1, 2)).sum(), on_cpu.masks.mean((1, 2)).sum(), rtol=0.02)


# --- filters ------------------------------------------------------------------------------------------------------


def keep_by_the_rule(masks, scores, overlap, inner):
    """The rule read literally, mask by mask; a mask that went as a duplicate removes nothing nested in it."""
    rank = sorted(range(len(masks)), key=lambda k: (-scores[k], k))
    stays = []
    for position, k in enumerate(rank):
        better = rank[:position]
        ious = [(masks[k] & masks[j]).sum() / max((masks[k] | masks[j]).sum(), 1) for j in better]
        if all(iou <= overlap for iou in ious):
            stays.append(k)
    final = set(stays)
    for k in stays:
        for j in stays:
            common, own, other = (masks[k] & masks[j]).sum(), masks[k].sum(), masks[j].sum()
            if k != j and own and common / own >= 0.85 and common / other < 0.5:
                value = 1 - (common / own) * (common / other)
                if value > inner:
                    final.discard(k)
    return [k in final for k in range(len(masks))]


@settings(max_examples=60, deadline=None)
@given(
    boxes=st.lists(st.tuples(*[st.integers(0, 7)] * 4), max_size=9),
    scores=st.lists(st.sampled_from([0.1, 0.5, 0.9]), min_size=9, max_size=9),
    overlap=st.sampled_from([0.3, 0.62, 0.8]),
    inner=st.sampled_from([0.5, 0.71, 1.0]),
)
def test_keep_distinct_follows_the_rule(boxes, scores, overlap, inner):
    masks = np.zeros((len(boxes), 8, 8), bool)
    for mask, (x, y, w, h) in zip(masks, boxes, strict=True):
        mask[y : y + h, x : x + w] = True
    values = torch.tensor(scores[: len(boxes)])
    kept = keep_distinct(torch.from_numpy(masks), values, overlap_thresh=overlap, inner_thresh=inner)
    assert kept.tolist() == keep_by_the_rule(masks, scores, overlap, inner)


def test_intersections_count_pixels():
    masks = torch.from_numpy(np.random.default_rng(0).random((4, 9, 11)) > 0.5)
    inter, area = pairwise_intersections(masks)
    for a in range(4):
        assert area[a] == masks[a].sum()
        for b in range(4):
            assert inter[a, b] == (masks[a] & masks[b]).sum()


def test_large_masks_are_compared_on_a_grid():
    masks = torch.zeros(2, 1100, 700, dtype=torch.bool)
    masks[0, 100:700, 50:650] = True
    masks[1, 400:1000, 50:650] = True
    inter, area = pairwise_intersections(masks)
    assert (inter[0, 1] / area[0]).item() == pytest.approx(0.5, abs=0.01)


def test_distinct_from_keeps_what_is_new():
    masks = torch.zeros(3, 10, 10, dtype=torch.bool)
    masks[0, :5], masks[1, 5:], masks[2, :5, :9] = True, True, True
    assert distinct_from(masks, masks[:1], 0.8).tolist() == [False, True, False]
    assert distinct_from(masks, masks[:0], 0.8).tolist() == [True] * 3
    assert distinct_from(masks[:0], masks, 0.8).tolist() == []


def test_specks_and_holes_go_the_largest_island_stays():
    mask = np.zeros((30, 30), bool)
    mask[5:20, 5:20] = True
    mask[10, 10] = False  # hole of 1
    mask[28, 28] = True  # island of 1
    cleaned = remove_specks(torch.from_numpy(mask)[None], 9)[0].numpy()
    expected = np.zeros((30, 30), bool)
    expected[5:20, 5:20] = True
    np.testing.assert_array_equal(cleaned, expected)
    tiny = torch.zeros(1, 30, 30, dtype=torch.bool)
    tiny[0, 3:5, 3:5] = True
    assert remove_specks(tiny, 9).sum() == 4


@settings(max_examples=150, deadline=None)
@given(
    size=st.tuples(st.integers(1, 24), st.integers(1, 24)),
    area=st.integers(1, 60),
    box=st.tuples(*[st.integers(0, 23)] * 4),
    share=st.sampled_from([0.05, 0.3, 0.5, 0.7, 0.95, 1.0]),
    seed=st.integers(0, 10**6),
)
def test_specks_are_those_of_the_whole_picture(size, area, box, share, seed):
    """Wherever the mask's box lies, the result is that of the library's function on the whole picture."""
    mask = np.zeros(size, bool)
    rows, columns = slice(*sorted(box[:2])), slice(*sorted(box[2:]))
    mask[rows, columns] = np.random.default_rng(seed).random(mask[rows, columns].shape) < share
    expected, _ = remove_small_regions(mask, area, mode="holes")
    filled, (expected, _) = expected, remove_small_regions(expected, area, mode="islands")
    found = without_specks(mask.copy(), area)
    sizes = np.sort(np.bincount(label(filled, connectivity=2).ravel())[1:])[::-1]
    if len(sizes) > 1 and sizes[0] == sizes[1] < area:
        # Which of two largest islands stays follows from the order of labels: either is right.
        assert found.sum() == expected.sum() and not (found & ~filled).any()
    else:
        np.testing.assert_array_equal(found, expected)


def test_enlarged_masks_keep_their_share_of_the_picture():
    masks = torch.zeros(1, 20, 30, dtype=torch.bool)
    masks[0, 5:15, 10:20] = True
    large = enlarge_masks(masks, (80, 120))
    assert large[0, 20:60, 40:80].float().mean() > 0.97
    assert large.float().mean() == pytest.approx(float(masks.float().mean()), abs=0.01)


def test_reduced_size_never_enlarges():
    assert reduced_size(360, 480, 1024) == (360, 480)
    assert reduced_size(1080, 1920, 960) == (540, 960)
    assert reduced_size(1, 4000, 100) == (1, 100)


# --- checkpoints --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "no checkpoint"),
        (b"<html>404</html>", "cannot read"),
        ({"weight": torch.zeros(2)}, "tensors are missing"),
        ([1, 2], "no plain state dict"),
    ],
)
def test_wrong_checkpoint_is_explained(tmp_path, content, says):
    path = tmp_path / "sam.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(WeightsError, match=says) as error:
        load_sam("vit_b", path)
    assert str(path) in str(error.value) and "vit_b" in str(error.value)


def test_truncated_checkpoint_is_explained(tmp_path):
    path = tmp_path / "sam.pth"
    torch.save({"weight": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(WeightsError, match="cannot read"):
        load_sam("vit_b", path)


def test_crops_are_looked_at_as_pictures_of_their_own(sam, image):
    """Masks with crops: those of the whole picture and of each crop by itself, but for masks that the crop cuts."""
    config = replace(OPEN, crop_n_layers=1, crop_overlap_ratio=0.4, points_per_side=2)
    proposals = SamProposer(sam, config).propose(image)
    boxes, layers = generate_crop_boxes(image.shape[:2], 1, 0.4)
    assert layers == [0, 1, 1, 1, 1]
    expected = []
    for x0, y0, x1, y1 in boxes:
        alone = SamProposer(sam, replace(config, crop_n_layers=0)).propose(image[y0:y1, x0:x1].copy())
        for mask in alone.masks:
            whole = np.zeros(image.shape[:2], bool)
            whole[y0:y1, x0:x1] = mask
            expected.append(whole)
    assert len(proposals) < len(expected)
    ious = np.array([[(a & b).sum() / max(1, (a | b).sum()) for b in expected] for a in proposals.masks])
    assert (ious.max(axis=1) > 0.9).all(), "nothing else comes out"
    assert (ious[:, : int((np.array(layers) == 0).sum())].max(axis=1) < 0.9).any(), "and some of it from the crops"


def test_masks_that_a_crop_cuts_are_left_out():
    boxes = torch.tensor([[10.0, 10, 30, 30], [40, 10, 60, 30], [0, 10, 20, 30], [5, 20, 12, 40], [5, 20, 12, 39]])
    cut = cut_by_crop(boxes, [0, 0, 60, 40], (80, 100), tolerance=0.5)
    # The right and the lower edge are the crop's, the left and the upper one the picture's own.
    assert cut.tolist() == [False, True, False, True, False]
