"""Graph-based regions and the merger of two proposers."""

import numpy as np
import pytest

from maskfield_ns.foundation.config import RegionsConfig
from maskfield_ns.foundation.filtering import empty_proposals
from maskfield_ns.foundation.merged import MergedProposer
from maskfield_ns.foundation.protocols import MaskProposals, MaskProposer, mask_boxes
from maskfield_ns.foundation.regions import RegionProposer, boundary_contrast, level_of_scale, scale_stability


def two_boxes(height=60, width=80):
    rng = np.random.default_rng(0)
    image = np.full((height, width, 3), 120, np.uint8)
    image[height // 6 : height // 2, width // 8 : width // 2] = (200, 30, 30)
    image[height // 2 : -5, width // 2 + 8 : -6] = (20, 40, 210)
    return (image + rng.integers(-4, 5, image.shape)).clip(0, 255).astype(np.uint8)


def best_iou(found, target):
    union = (found.masks | target).sum((1, 2))
    return ((found.masks & target).sum((1, 2)) / union).max()


@pytest.mark.parametrize("max_side", [480, 40])
def test_flat_objects_are_found(max_side):
    image = two_boxes()
    proposer = RegionProposer(RegionsConfig(max_side=max_side, min_region_area=20, sigma=0.5))
    assert isinstance(proposer, MaskProposer)
    found = proposer.propose(image)
    assert found.masks.shape[1:] == image.shape[:2]
    target = np.zeros(image.shape[:2], bool)
    target[10:30, 10:40] = True
    assert best_iou(found, target) > (0.9 if max_side == 480 else 0.75)
    np.testing.assert_array_equal(found.boxes, mask_boxes(found.masks))
    assert found.masks.any((1, 2)).all()
    assert set(found.levels) == {0, 1, 2}
    for values in (found.scores, found.stability):
        assert values.dtype == np.float32 and np.all((values >= 0) & (values <= 1))


def test_one_scale_is_a_partition():
    found = RegionProposer(RegionsConfig(scales=(300.0,), max_side=50)).propose(two_boxes())
    np.testing.assert_array_equal(found.masks.sum(0), 1)
    assert set(found.levels) == {2}


def test_scales_spread_over_levels():
    assert [level_of_scale(i, 4) for i in range(4)] == [0, 1, 1, 2]
    assert [level_of_scale(i, 3) for i in range(3)] == [0, 1, 2]
    assert [level_of_scale(i, 2) for i in range(2)] == [0, 2]


def test_no_duplicates_within_a_level():
    found = RegionProposer(RegionsConfig(min_region_area=20)).propose(two_boxes())
    for level in range(3):
        masks = found.masks[found.levels == level]
        for a in range(len(masks)):
            for b in range(a):
                assert (masks[a] & masks[b]).sum() <= 0.8 * (masks[a] | masks[b]).sum()


def test_stability_is_best_iou_with_a_neighbouring_scale():
    rng = np.random.default_rng(1)
    segmentations = [rng.integers(0, count, (12, 9)) for count in (5, 4, 3)]
    for labels, count in zip(segmentations, (5, 4, 3), strict=True):
        labels.ravel()[:count] = np.arange(count)
    found = scale_stability(segmentations)
    for index, labels in enumerate(segmentations):
        for region in range(labels.max() + 1):
            expected = 0.0
            for other in {index - 1, index + 1} & {0, 1, 2}:
                for partner in range(segmentations[other].max() + 1):
                    a, b = labels == region, segmentations[other] == partner
                    expected = max(expected, (a & b).sum() / (a | b).sum())
            assert found[index][region] == pytest.approx(expected)


def test_contrast_counts_neighbours_across_and_inside():
    labels = np.array([[0, 0, 1], [0, 0, 1]])
    lab = np.zeros((2, 3, 3), np.float32)
    lab[:, 1, 0], lab[:, 2, 0] = 2.0, 10.0
    # Region 0: inside, two horizontal differences of 2 and two vertical of 0 -> 1; boundary: 8. Region 1: inside 0.
    np.testing.assert_allclose(boundary_contrast(lab, labels), [8 / 9, 1.0])
    np.testing.assert_allclose(boundary_contrast(lab, np.zeros_like(labels)), [0.0])


def test_same_picture_same_regions():
    image = two_boxes()
    first, second = (RegionProposer(RegionsConfig()).propose(image) for _ in range(2))
    np.testing.assert_array_equal(first.masks, second.masks)


class Fixed:
    """A proposer that always says the same."""

    def __init__(self, name, masks, levels):
        self.name, self.masks, self.levels = name, np.asarray(masks, bool), np.asarray(levels, np.int8)

    def fingerprint(self):
        return {"name": self.name}

    def propose(self, image):
        count = len(self.masks)
        ones = np.ones(count, np.float32)
        return MaskProposals(self.masks, self.levels, ones, ones, mask_boxes(self.masks))


def test_merging_keeps_the_first_source_and_what_is_new_per_level():
    masks = np.zeros((3, 10, 10), bool)
    masks[0, :5], masks[1, :5, :9], masks[2, 6:] = True, True, True
    first = Fixed("a", masks[:1], [1])
    second = Fixed("b", [masks[1], masks[1], masks[2]], [1, 2, 1])
    merged = MergedProposer([first, second], 0.8)
    found = merged.propose(np.zeros((10, 10, 3), np.uint8))
    assert found.levels.tolist() == [1, 2, 1]
    np.testing.assert_array_equal(found.masks, masks)
    assert merged.fingerprint()["sources"] == [{"name": "a"}, {"name": "b"}]


def test_merging_with_a_source_that_finds_nothing():
    class Nothing(Fixed):
        def propose(self, image):
            return empty_proposals(10, 10)

    some = Fixed("a", np.ones((1, 10, 10), bool), [0])
    none = Nothing("b", np.zeros((0, 10, 10)), [])
    for order in ([some, none], [none, some]):
        assert len(MergedProposer(order).propose(np.zeros((10, 10, 3), np.uint8))) == 1
