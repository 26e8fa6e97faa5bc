"""Sentences that class names are put into before they are embedded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from maskfield_ns.startup import without_wandb

Templates = Literal["none", "imagenet", "ov-nerf"]

OV_NERF_SENTENCES = (
    "there is a {} in the scene.",
    "there is the {} in the scene.",
    "this is a {} in the scene.",
    "this is the {} in the scene.",
    "this is one {} in the scene.",
)
"""What OV-NeRF adds to OpenAI's 80 sentences for ImageNet. Source: pcl3dv/OV-NeRF ``renderer.py``
(``prompt_templates``); MaskCLIP and others use the same five."""


def sentences(templates: Templates) -> list[Callable[[str], str]]:
    """Functions from a class name to the texts whose unit embeddings are averaged; none: as it is."""
    if templates == "none":
        return [lambda name: name]
    with without_wandb():
        from open_clip import OPENAI_IMAGENET_TEMPLATES

    extra = OV_NERF_SENTENCES if templates == "ov-nerf" else ()
    return [*OPENAI_IMAGENET_TEMPLATES, *(sentence.format for sentence in extra)]
