"""A small ``segment_anything.modeling.Sam``: 160 px input, patch 8, masks at half the input's resolution."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from maskfield_ns.errors import WeightsError
from maskfield_ns.foundation.tiny import packaged_weights

if TYPE_CHECKING:
    from segment_anything.modeling import Sam

IMAGE_SIZE = 160
PATCH_SIZE = 8
ENCODER = {"embed_dim": 160, "depth": 5, "num_heads": 5, "window_size": 10, "global_attn_indexes": (2, 4)}
STEM_WIDTHS = (32, 64, 128)
DECODER_DIM = 128


class ConvStem(nn.Module):
    """Patch embedding by strided convolutions (Xiao et al., "Early Convolutions Help Transformers See Better", 2021).

    Takes the place of ``ImageEncoderViT.patch_embed``: [B, 3, H, W] -> [B, H / 8, W / 8, C]. A transformer this small,
    trained for hours rather than weeks, does not find edges by itself.
    """

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        a, b, c = STEM_WIDTHS
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(i, o, 3, stride=2, padding=1), nn.GroupNorm(4, o), nn.GELU())
            for i, o in ((3, a), (a, b), (b, c))
        )
        self.refine = nn.ModuleList(
            nn.Sequential(nn.Conv2d(w, w, 3, padding=1), nn.GroupNorm(4, w), nn.GELU()) for w in (b, c)
        )
        self.project = nn.Conv2d(c, embed_dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stages[0](x)
        for stage, refine in zip(self.stages[1:], self.refine, strict=True):
            x = stage(x)
            x = x + refine(x)
        return self.project(x).permute(0, 2, 3, 1)


def build_tiny_sam() -> Sam:
    """The architecture with random weights, on the CPU."""
    from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

    grid = IMAGE_SIZE // PATCH_SIZE
    sam = Sam(
        image_encoder=ImageEncoderViT(
            img_size=IMAGE_SIZE,
            patch_size=PATCH_SIZE,
            mlp_ratio=3.0,
            norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),  # pyright: ignore[reportArgumentType]
            out_chans=DECODER_DIM,
            **ENCODER,
        ),
        prompt_encoder=PromptEncoder(
            embed_dim=DECODER_DIM,
            image_embedding_size=(grid, grid),
            input_image_size=(IMAGE_SIZE, IMAGE_SIZE),
            mask_in_chans=8,
        ),
        mask_decoder=MaskDecoder(
            num_multimask_outputs=3,
            transformer=TwoWayTransformer(depth=2, embedding_dim=DECODER_DIM, mlp_dim=256, num_heads=4),
            transformer_dim=DECODER_DIM,
            iou_head_depth=3,
            iou_head_hidden_dim=128,
        ),
        pixel_mean=[123.675, 116.28, 103.53],
        pixel_std=[58.395, 57.12, 57.375],
    )
    sam.image_encoder.patch_embed = ConvStem(ENCODER["embed_dim"])  # pyright: ignore[reportAttributeAccessIssue]
    return sam


def load_tiny_sam(weights: Path | None = None, device: str | torch.device = "cpu") -> Sam:
    """The embedded SAM with trained weights, in evaluation mode.

    Raises:
        WeightsError: the file is missing or holds another architecture.
    """
    from safetensors.torch import load_file

    path = packaged_weights("tiny_sam", weights)
    model = build_tiny_sam()
    try:
        state = {name: tensor.float() for name, tensor in load_file(path).items()}
        model.load_state_dict(state)
    except Exception as error:
        raise WeightsError(f"{path} does not hold weights of the embedded SAM: {error}") from error
    return model.to(device).eval()
