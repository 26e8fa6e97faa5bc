"""The picture of each view mode, on whatever device the view is."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from maskfield_ns.pictures.colors import palette

MODES = ("Outline and tint", "Relevancy heat map", "Class map", "Instances", "Object alone", "Photo")
"""What the panel offers, as it is written there."""

_DARK = 0.14
_TINT = 0.42


@lru_cache(maxsize=1)
def _turbo() -> Float[Tensor, "256 3"]:
    import matplotlib

    return torch.from_numpy(matplotlib.colormaps["turbo"](np.arange(256))[:, :3].astype(np.float32))


def heat_picture(rgb: Float[Tensor, "H W 3"], heat: Float[Tensor, "H W"]) -> Float[Tensor, "H W 3"]:
    """Relevancy (0 to 1) in turbo colours over a grey picture."""
    colours = _turbo().to(rgb.device)[(heat.clamp(0, 1) * 255).long()]
    grey = rgb.mean(-1, keepdim=True)
    return 0.3 * grey + 0.7 * colours


def tinted(
    rgb: Float[Tensor, "H W 3"], owner: Int[Tensor, "H W"], colours: Float[Tensor, "N 3"], strength: float = _TINT
) -> Float[Tensor, "H W 3"]:
    """A picture with areas tinted and outlined: a bright line inside, a dark one outside, seen on any ground.

    Args:
        rgb: in 0..1.
        owner: which colour a pixel has, -1 for none.
        colours: in 0..1.
        strength: of the tint, 0 to 1.
    """
    inside = owner >= 0
    if not inside.any():
        return rgb
    paint = colours[owner.clamp(min=0)]
    result = torch.where(inside[..., None], (1 - strength) * rgb + strength * paint, rgb)
    width = max(1, round(min(owner.shape) / 240))
    border = torch.zeros_like(inside)
    for step in range(1, width + 1):
        for dim in (0, 1):
            for shift in (step, -step):
                moved = owner.roll(shift, dim)
                # What rolls over the picture's edge is no neighbour.
                edge = (slice(0, step) if shift > 0 else slice(-step, None),)
                place = edge if dim == 0 else (slice(None), *edge)
                moved[place] = owner[place]
                border |= moved != owner
    result = torch.where((border & ~inside)[..., None], 0.08, result)
    return torch.where((border & inside)[..., None], paint, result)


def class_picture(owner: Int[Tensor, "H W"], colours: Float[Tensor, "N 3"]) -> Float[Tensor, "H W 3"]:
    """Flat colours, dark where nothing is."""
    return torch.where(owner[..., None] >= 0, colours[owner.clamp(min=0)], _DARK)


def alone(rgb: Float[Tensor, "H W 3"], mask: Bool[Tensor, "H W"]) -> Float[Tensor, "H W 3"]:
    """Only what is in the mask, on a plain ground."""
    return torch.where(mask[..., None], rgb, _DARK)


def phrase_colours(count: int, device: torch.device) -> Float[Tensor, "N 3"]:
    """Colours of phrases, the same in pictures and legend."""
    return palette(count, device)


def hex_colour(colour: Float[Tensor, " 3"]) -> str:
    """``#rrggbb``."""
    return "#" + "".join(f"{round(float(c) * 255):02x}" for c in colour)


SELECTED = (1.0, 1.0, 1.0)
"""The selection's colour: white, which no phrase has."""
