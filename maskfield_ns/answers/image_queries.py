"""What looks like an image: the one rule for image queries of viewer, API and commands."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

_SHARPNESS = 10.0
"""Logits of relevancy between any two objects of a scene and the very same."""


def likeness(
    embeddings: Float[Tensor, "Q C"], valid: Bool[Tensor, " Q"], examples: Float[Tensor, "T C"]
) -> Float[Tensor, "T Q"]:
    """How much queries look like examples: 1 the same, 0 as much as any two things of the scene.

    Image embeddings of unrelated things are alike to a degree that depends on the model, so cosines mean little until
    they are compared with those among the scene's own queries (their median). Without labels, for any model.
    """
    unit = F.normalize(embeddings.float(), dim=-1)
    examples = F.normalize(examples.to(unit), dim=-1)
    usual = usual_cosine(embeddings, valid)
    return (examples @ unit.T - usual) / (1 - usual)


def usual_cosine(embeddings: Float[Tensor, "Q C"], valid: Bool[Tensor, " Q"]) -> Float[Tensor, ""]:
    """Cosine of any two objects of the scene: the median over its queries."""
    own = F.normalize(embeddings[valid].float(), dim=-1)
    pairs = (own @ own.T)[~torch.eye(len(own), dtype=torch.bool, device=own.device)]
    return pairs.median().clamp(max=0.9999) if len(pairs) else pairs.new_zeros(())


def image_relevancy(
    embeddings: Float[Tensor, "Q C"],
    valid: Bool[Tensor, " Q"],
    images: Float[Tensor, "T C"],
    nothing: Float[Tensor, "K C"],
) -> Float[Tensor, "T Q"]:
    """Relevancy of every query to images, in [0, 1] on the scale of a phrase's; 0 for queries that do not count.

    Words cannot be an image's negatives (any image is closer to an image than words are), so 0.5 means half way
    between any two objects of the scene and the very same. And as a phrase is measured against canonical phrases, an
    image is against images that show nothing: a query must resemble it more than they do.

    Args:
        embeddings: of the scene's queries.
        valid: queries that count.
        images: embeddings of what is looked for.
        nothing: embeddings of :func:`images_of_nothing`.
    """
    unit, examples = F.normalize(embeddings.float(), dim=-1), F.normalize(images.to(embeddings).float(), dim=-1)
    hardest = (examples @ F.normalize(nothing.to(unit), dim=-1).T).amax(dim=-1, keepdim=True)
    usual = usual_cosine(embeddings, valid)
    margin = torch.minimum(likeness(embeddings, valid, images) - 0.5, (examples @ unit.T - hardest) / (1 - usual))
    return torch.sigmoid(_SHARPNESS * margin) * valid


@lru_cache(maxsize=1)
def images_of_nothing() -> tuple[UInt8[np.ndarray, "64 64 3"], ...]:
    """Plain, noisy, checkered and striped images: what an image query may resemble without showing anything."""
    y, x = np.indices((64, 64))
    generator = np.random.default_rng(0)
    gray = [np.full((64, 64), level) for level in (0, 64, 128, 192, 255)]
    gray += [(y // side + x // side) % 2 * 255 for side in (6, 12)] + [y // 6 % 2 * 255]
    noise = [generator.integers(0, 256, (64, 64, 3)) for _ in range(2)]
    smooth = generator.integers(0, 256, (8, 8, 3)).repeat(8, axis=0).repeat(8, axis=1)
    images = [np.repeat(values[..., None], 3, axis=2) for values in gray] + noise + [smooth]
    return tuple(values.astype(np.uint8) for values in images)
