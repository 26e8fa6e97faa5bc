"""Masks from graph-based segmentation: no weights, any photograph."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float32, Int, UInt8
from PIL import Image
from skimage.color import rgb2lab
from skimage.segmentation import felzenszwalb

from maskfield_ns.foundation.base import describe
from maskfield_ns.foundation.filtering import concatenate, keep_distinct, reduced_size, select
from maskfield_ns.foundation.protocols import LEVELS, MaskProposals, mask_boxes

if TYPE_CHECKING:
    from maskfield_ns.foundation.config import RegionsConfig


class RegionProposer:
    """Felzenszwalb & Huttenlocher, "Efficient Graph-Based Image Segmentation" (IJCV 2004), at several scales.

    Every region of every scale is a proposal; small scales give subparts, large ones wholes. `scores` is how much the
    picture changes across the region's boundary compared with inside it, `stability` how well the region survives at
    a neighbouring scale. Both lie in [0, 1] and rank regions; neither is the predicted IoU of a trained model.

    Args:
        config: scales, smoothing and sizes.
    """

    def __init__(self, config: RegionsConfig) -> None:
        self.config = config
        if not self.config.scales:
            raise ValueError("RegionsConfig.scales must name at least one scale")

    def fingerprint(self) -> dict[str, Any]:
        """JSON-serialisable description that changes when the masks would."""
        return describe({"name": "regions", "revision": 1}, self.config)

    def propose(self, image: UInt8[np.ndarray, "H W 3"]) -> MaskProposals:
        """Regions of one RGB picture at its own resolution; by level, most stable first within it."""
        config = self.config
        height, width = image.shape[:2]
        work_size = reduced_size(height, width, config.max_side)
        work = image
        if work_size != (height, width):
            work = np.asarray(Image.fromarray(image).resize((work_size[1], work_size[0]), Image.Resampling.BILINEAR))
        scales = sorted(config.scales)
        segmentations = [
            felzenszwalb(work, scale=scale, sigma=config.sigma, min_size=max(1, config.min_region_area))
            for scale in scales
        ]
        stability = scale_stability(segmentations)
        lab = rgb2lab(work).astype(np.float32)
        parts = []
        for index, labels in enumerate(segmentations):
            masks = labels[None] == np.arange(labels.max() + 1)[:, None, None]
            level = level_of_scale(index, len(scales))
            parts.append(
                MaskProposals(
                    masks=masks,
                    levels=np.full(len(masks), level, np.int8),
                    scores=boundary_contrast(lab, labels),
                    stability=stability[index],
                    boxes=mask_boxes(masks),
                )
            )
        regions = concatenate(parts)
        regions = select(regions, self._distinct(regions))
        if work_size == (height, width):
            return regions
        # Nearest neighbour keeps regions of one scale a partition of the picture.
        rows = ((np.arange(height) + 0.5) * work_size[0] / height).astype(int)
        columns = ((np.arange(width) + 0.5) * work_size[1] / width).astype(int)
        masks = regions.masks[:, rows][:, :, columns]
        return MaskProposals(masks, regions.levels, regions.scores, regions.stability, mask_boxes(masks))

    def _distinct(self, regions: MaskProposals) -> np.ndarray:
        """Indices of what stays when near-duplicates within a level go: by level, most stable first."""
        kept = []
        for level in range(len(LEVELS)):
            index = np.flatnonzero(regions.levels == level)
            order = np.argsort(-regions.stability[index], kind="stable")
            index = index[order]
            rank = torch.from_numpy(regions.stability[index])
            masks = torch.from_numpy(regions.masks[index])
            kept.append(index[keep_distinct(masks, rank, overlap_thresh=self.config.overlap_thresh).numpy()])
        return np.concatenate(kept)


def level_of_scale(index: int, count: int) -> int:
    """Level of the `index`-th of `count` ascending scales: the smallest is subpart, the largest whole."""
    if count == 1:
        return len(LEVELS) - 1
    return int(np.floor(index * (len(LEVELS) - 1) / (count - 1) + 0.5))


def scale_stability(segmentations: list[Int[np.ndarray, "H W"]]) -> list[Float32[np.ndarray, " R"]]:
    """For each region of each scale, its best IoU with a region of the next finer or coarser scale (1 if alone)."""
    best = [np.zeros(int(labels.max()) + 1, np.float32) for labels in segmentations]
    if len(segmentations) == 1:
        return [np.ones_like(best[0])]
    for fine in range(len(segmentations) - 1):
        a, b = segmentations[fine].ravel(), segmentations[fine + 1].ravel()
        size_a, size_b = np.bincount(a), np.bincount(b)
        pairs, common = np.unique(a.astype(np.int64) * len(size_b) + b, return_counts=True)
        of_a, of_b = pairs // len(size_b), pairs % len(size_b)
        iou = (common / (size_a[of_a] + size_b[of_b] - common)).astype(np.float32)
        np.maximum.at(best[fine], of_a, iou)
        np.maximum.at(best[fine + 1], of_b, iou)
    return best


def boundary_contrast(lab: Float32[np.ndarray, "H W 3"], labels: Int[np.ndarray, "H W"]) -> Float32[np.ndarray, " R"]:
    """Per region, b / (b + i): mean colour difference (CIELAB) of 4-neighbours across its boundary and inside it.

    0.5 means that the boundary is no sharper than the texture inside; a region without boundary gets 0.
    """
    count = int(labels.max()) + 1
    sums, numbers = np.zeros((2, count)), np.zeros((2, count))
    everything, head, tail = slice(None), slice(None, -1), slice(1, None)
    for first, second in (((everything, head), (everything, tail)), ((head, everything), (tail, everything))):
        difference = np.linalg.norm(lab[first] - lab[second], axis=-1).ravel()
        a, b = labels[first].ravel(), labels[second].ravel()
        across = a != b
        for row, region, part in ((0, a, across), (0, b, across), (1, a, ~across)):
            sums[row] += np.bincount(region[part], difference[part], count)
            numbers[row] += np.bincount(region[part], minlength=count)
    boundary, inside = sums / np.maximum(numbers, 1)
    total = boundary + inside
    return np.divide(boundary, total, out=np.zeros(count), where=total > 0).astype(np.float32)
