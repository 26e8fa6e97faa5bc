"""Dense CLIP features, MaskCLIP style: a text-aligned vector per patch without any training."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from maskfield_ns.startup import without_wandb

with without_wandb():
    from open_clip.modified_resnet import ModifiedResNet
    from open_clip.transformer import VisionTransformer

POOL_SIDE = 128
"""Masks and features are brought to this longer side, in pixels, before pooling."""


def supports_dense(visual: nn.Module) -> bool:
    """Whether an image tower has what :func:`dense_features` takes apart."""
    if isinstance(visual, ModifiedResNet):
        return visual.attnpool is not None
    return (
        isinstance(visual, VisionTransformer)
        and visual.attn_pool is None
        and isinstance(getattr(visual.transformer.resblocks[-1], "attn", None), nn.MultiheadAttention)
    )


def dense_input(visual: Any, image_size: int) -> tuple[int, tuple[int, int]]:
    """(shorter side of the picture in pixels, stride of the features in rows and columns).

    A residual network reduces its input 32-fold and has no positions before its pooling, so that it may see a larger
    picture than it was trained on; a vision transformer stays at its own size.
    """
    if isinstance(visual, ModifiedResNet):
        return 4 * image_size, (32, 32)
    return image_size, visual.patch_size


def dense_features(visual: Any, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B C h w"]:
    """Unit-length patch features in the joint image-text space.

    Args:
        visual: an image tower for which :func:`supports_dense` holds, in evaluation mode.
        pixels: normalised pictures; H and W are multiples of the stride (:func:`dense_input`), in any aspect ratio.
    """
    if isinstance(visual, ModifiedResNet):
        return _resnet_features(visual, pixels)
    return _transformer_features(visual, pixels)


def _resnet_features(visual: Any, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B C h w"]:
    """The value path of the attention pooling at every place, as 1x1 convolutions (Zhou et al., ECCV 2022, sec. 3)."""
    maps = visual.stem(pixels)
    for layer in (visual.layer1, visual.layer2, visual.layer3, visual.layer4):
        maps = layer(maps)
    pool = visual.attnpool
    features = pool.c_proj(pool.v_proj(maps.permute(0, 2, 3, 1)))
    return F.normalize(features.float(), dim=-1).permute(0, 3, 1, 2)


def _transformer_features(visual: VisionTransformer, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B C h w"]:
    """The value path of the last block alone.

    The last block's attention is replaced by its value path alone (Zhou et al., "Extract Free Dense Labels from
    CLIP", ECCV 2022, in the form without residual that F3RM and FeatUp use), so that a patch describes itself rather
    than the whole picture. Positions are interpolated to the input's grid.
    """
    tokens = visual.conv1(pixels)
    batch, width, rows, columns = tokens.shape
    tokens = tokens.flatten(2).transpose(1, 2)
    class_token = visual.class_embedding.to(tokens.dtype).expand(batch, 1, width)
    tokens = torch.cat([class_token, tokens], dim=1) + _positions(visual, rows, columns).to(tokens.dtype)
    tokens = visual.ln_pre(visual.patch_dropout(tokens))
    transformer = visual.transformer
    if not transformer.batch_first:
        tokens = tokens.transpose(0, 1)
    for block in transformer.resblocks[:-1]:
        tokens = block(tokens)
    if not transformer.batch_first:
        tokens = tokens.transpose(0, 1)

    last: Any = transformer.resblocks[-1]
    attention = last.attn
    bias = attention.in_proj_bias
    value = F.linear(
        last.ln_1(tokens[:, 1:]), attention.in_proj_weight[-width:], None if bias is None else bias[-width:]
    )
    features = visual.ln_post(last.ls_1(attention.out_proj(value)))
    if visual.proj is not None:
        features = features @ visual.proj
    features = F.normalize(features.float(), dim=-1)
    return features.transpose(1, 2).reshape(batch, -1, rows, columns)


def _positions(visual: VisionTransformer, rows: int, columns: int) -> Float[Tensor, "N D"]:
    """Positional embeddings (class token first) for another patch grid."""
    positions = visual.positional_embedding
    if (rows, columns) == tuple(visual.grid_size):
        return positions
    grid = positions[1:].reshape(*visual.grid_size, -1).permute(2, 0, 1)[None].float()
    grid = F.interpolate(grid, (rows, columns), mode="bicubic", align_corners=False)
    return torch.cat([positions[:1], grid[0].flatten(1).T.to(positions.dtype)])


def pool_features(features: Float[Tensor, "C h w"], masks: Bool[Tensor, "M H W"]) -> Float[Tensor, "M C"]:
    """Unit-length mean of the upsampled feature map over each mask.

    Masks are reduced by area, so a mask smaller than a pooling cell still weighs in where it lies.
    """
    height, width = masks.shape[1:]
    scale = min(1.0, POOL_SIDE / max(height, width))
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    weights = torch.cat([F.interpolate(part[:, None].float(), size, mode="area")[:, 0] for part in masks.split(32)])
    upsampled = F.interpolate(features[None], size, mode="bilinear", align_corners=False)[0]
    return F.normalize(weights.flatten(1) @ upsampled.flatten(1).T, dim=-1)
