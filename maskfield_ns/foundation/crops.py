"""Cut masked regions out of a picture, the way CLIP wants to see them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float32, UInt8
from torch import Tensor
from torch.nn import functional as F

from maskfield_ns.foundation.protocols import mask_boxes


def masked_crops(
    image: UInt8[np.ndarray, "H W 3"],
    masks: Bool[np.ndarray, "M H W"],
    size: int,
    fill: Sequence[float],
    margin: float = 0.1,
    device: str | torch.device = "cpu",
) -> Float32[Tensor, "M 3 S S"]:
    """One square crop per mask, everything outside the mask replaced by one colour.

    Args:
        image: RGB picture.
        masks: regions of it; an empty one gives a crop of `fill` only.
        size: S, side of a crop in pixels.
        fill: RGB in [0, 1] for what is outside the mask or outside the picture.
        margin: distance kept around the mask's box on each side, as a share of the box's longer side.
        device: where to resize, and where the crops end up.

    Returns:
        RGB in [0, 1], not normalised.
    """
    colour = torch.tensor(fill, dtype=torch.float32, device=device).view(3, 1, 1)
    crops = colour.expand(len(masks), 3, size, size).clone()
    for crop, mask, box in zip(crops, masks, mask_boxes(masks).tolist(), strict=True):
        x0, y0, x1, y1 = box
        if x0 == x1:
            continue
        pixels = torch.from_numpy(image[y0:y1, x0:x1].copy()).to(device).permute(2, 0, 1).float() / 255
        inside = torch.from_numpy(mask[y0:y1, x0:x1].copy()).to(device)
        pixels = torch.where(inside, pixels, colour)
        longer = max(x1 - x0, y1 - y0)
        side = longer + 2 * round(margin * longer)
        square = colour.expand(3, side, side).clone()
        top, left = (side - (y1 - y0)) // 2, (side - (x1 - x0)) // 2
        square[:, top : top + y1 - y0, left : left + x1 - x0] = pixels
        crop[:] = F.interpolate(square[None], (size, size), mode="bilinear", antialias=True, align_corners=False)[0]
    return crops.clamp_(0, 1)
