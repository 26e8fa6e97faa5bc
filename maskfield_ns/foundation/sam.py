"""Masks of a whole picture from Segment Anything, on three levels."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from PIL import Image
from segment_anything import sam_model_registry
from segment_anything.modeling import Sam
from segment_anything.utils.amg import (
    batched_mask_to_box,
    build_point_grid,
    calculate_stability_score,
    generate_crop_boxes,
)
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import batched_nms

from maskfield_ns.errors import WeightsError
from maskfield_ns.foundation.base import describe
from maskfield_ns.foundation.filtering import empty_proposals, keep_distinct, reduced_size
from maskfield_ns.foundation.protocols import LEVELS, MaskProposals, mask_boxes
from maskfield_ns.foundation.specks import without_specks

if TYPE_CHECKING:
    from maskfield_ns.foundation.config import MaskGeneratorConfig

UPSAMPLE_BATCH = 16
"""Masks brought to the encoder's input size at once; bounds memory with 1024-pixel models."""


@dataclass(frozen=True)
class _Candidates:
    """Masks of a part of the picture, at the decoder's resolution."""

    FIGURES: ClassVar[tuple[str, ...]] = ("ious", "stability", "levels")

    crop: list[int]
    """x0, y0, x1, y1 in pixels of the picture."""
    input_size: tuple[int, int]
    """(height, width) in pixels that the part has inside the encoder's square input."""
    logits: Float[Tensor, "M 1 h w"]
    boxes: Float[Tensor, "M 4"]
    """In pixels of the picture."""
    ious: Float[Tensor, " M"]
    stability: Float[Tensor, " M"]
    levels: Int64[Tensor, " M"]


class SamProposer:
    """Automatic mask generation that keeps the level of each mask.

    Segment Anything answers a point with three masks: subpart, part, whole. Its own automatic generator pools them;
    here each level is filtered on its own (predicted IoU, stability, box NMS, clean-up, duplicates, containment).
    Whatever can be decided on the decoder's low-resolution logits is decided there, before a mask is enlarged.

    Args:
        sam: any `segment_anything` model, on the device to use, in evaluation mode.
        config: prompt grid and thresholds.
        identity: name and weights, for the fingerprint.
    """

    def __init__(self, sam: Sam, config: MaskGeneratorConfig, identity: Mapping[str, Any] | None = None) -> None:
        self.sam = sam.eval()
        self.config = config
        self.identity = {"name": "sam"} if identity is None else dict(identity)

    def fingerprint(self) -> dict[str, Any]:
        """JSON-serialisable description that changes when the masks would."""
        return describe(self.identity, self.config)

    @torch.inference_mode()
    def propose(self, image: UInt8[np.ndarray, "H W 3"]) -> MaskProposals:
        """Masks of one RGB picture at its own resolution; by level, best (stability x predicted IoU) first."""
        config = self.config
        height, width = image.shape[:2]
        work_size = reduced_size(height, width, config.max_side)
        boxes, layers = generate_crop_boxes((height, width), config.crop_n_layers, config.crop_overlap_ratio)
        found = [
            self._of_crop(image, box, max(1, config.points_per_side // config.crop_n_points_downscale_factor**layer))
            for box, layer in zip(boxes, layers, strict=True)
        ]
        ious, stability, levels = (torch.cat([getattr(f, name) for f in found]) for name in _Candidates.FIGURES)
        if len(ious) == 0:
            return empty_proposals(height, width)
        # A thing inside a crop is mostly found in the whole picture, too, less sharply.
        rank = torch.cat([f.ious + layer for f, layer in zip(found, layers, strict=True)])
        best = batched_nms(torch.cat([f.boxes for f in found]), rank, levels, config.box_nms_thresh)
        chosen = torch.zeros(len(ious), dtype=torch.bool, device=ious.device)
        chosen[best] = True
        parts = chosen.split([len(f.ious) for f in found])
        masks = torch.cat(
            [self._enlarged(f, wanted, (height, width), work_size) for f, wanted in zip(found, parts, strict=True)]
        )
        ious, stability, levels = ious[chosen], stability[chosen], levels[chosen]
        masks = remove_specks(masks, config.min_region_area)
        scores = stability * ious
        keep = torch.zeros(len(masks), dtype=torch.bool, device=masks.device)
        candidates = masks.flatten(1).any(1) & (scores > config.score_thresh)
        for level in range(len(LEVELS)):
            index = (candidates & (levels == level)).nonzero()[:, 0]
            distinct = keep_distinct(
                masks[index], scores[index], overlap_thresh=config.overlap_thresh, inner_thresh=config.inner_thresh
            )
            keep[index[distinct]] = True

        order = keep.nonzero()[:, 0]
        order = order[scores[order].argsort(descending=True, stable=True)]
        order = order[levels[order].argsort(stable=True)]
        final = enlarge_masks(masks[order], (height, width)).cpu().numpy()
        return MaskProposals(
            masks=final,
            levels=levels[order].cpu().numpy().astype(np.int8),
            scores=ious[order].cpu().numpy(),
            stability=stability[order].cpu().numpy(),
            boxes=mask_boxes(final),
        )

    def _of_crop(self, image: UInt8[np.ndarray, "H W 3"], crop: list[int], points_per_side: int) -> _Candidates:
        """What survives the filters on low-resolution logits, of a part (x0, y0, x1, y1) of the picture."""
        config, sam = self.config, self.sam
        x0, y0, x1, y1 = crop
        side = sam.image_encoder.img_size
        height, width = y1 - y0, x1 - x0
        scale = side / max(height, width)
        input_size = (max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5)))
        part = Image.fromarray(image[y0:y1, x0:x1])
        resized = part.resize((input_size[1], input_size[0]), Image.Resampling.BILINEAR)
        pixels = torch.from_numpy(np.array(resized)).to(sam.device).permute(2, 0, 1).float()
        embedding = sam.image_encoder(sam.preprocess(pixels)[None])
        position = sam.prompt_encoder.get_dense_pe()

        grid = build_point_grid(points_per_side) * np.array(input_size[::-1])
        points = torch.from_numpy(grid).float().to(sam.device)
        parts: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        for batch in points.split(config.points_per_batch):
            labels = torch.ones(len(batch), 1, dtype=torch.int, device=batch.device)
            sparse, dense = sam.prompt_encoder(points=(batch[:, None], labels), boxes=None, masks=None)
            logits, ious = sam.mask_decoder(
                image_embeddings=embedding,
                image_pe=position,
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=True,
            )
            levels = torch.arange(len(LEVELS), device=ious.device).expand_as(ious)
            wanted = ious > config.pred_iou_thresh
            logits, ious, levels = logits[wanted], ious[wanted], levels[wanted]
            inside = self._inside(logits, input_size)
            # An empty mask has stability 0 / 0 where both cut-offs leave nothing; it is dropped either way.
            stability = calculate_stability_score(inside, 0.0, config.stability_offset).nan_to_num(0.0)
            wanted = (stability >= config.stability_thresh) & (inside > 0).flatten(1).any(1)
            parts.append((logits[wanted], ious[wanted], stability[wanted], levels[wanted]))

        logits, ious, stability, levels = (torch.cat(column) for column in zip(*parts, strict=True))
        boxes = batched_mask_to_box(self._inside(logits, input_size) > 0).float()
        boxes[:, 2:] += 1  # ends exclusive: a one-pixel box must have an area
        best = batched_nms(boxes, ious, levels, config.box_nms_thresh).sort().values
        # Low-resolution pixels to pixels of the picture.
        boxes = boxes[best] * (side / logits.shape[-1] / scale) + boxes.new_tensor([x0, y0, x0, y0])
        whole = torch.ones(len(best), dtype=torch.bool, device=boxes.device)
        if crop != [0, 0, image.shape[1], image.shape[0]]:
            whole = ~cut_by_crop(boxes, crop, image.shape[:2], 1.5 * side / logits.shape[-1] / scale)
        best, boxes = best[whole], boxes[whole]
        # The head is not bounded; a predicted IoU slightly above 1 is no better than 1.
        figures = (ious[best].clamp(0, 1), stability[best], levels[best])
        return _Candidates(crop, input_size, logits[best][:, None], boxes, *figures)

    def _enlarged(
        self, found: _Candidates, wanted: Bool[Tensor, " M"], size: tuple[int, int], work_size: tuple[int, int]
    ) -> Bool[Tensor, "N h w"]:
        """Some candidates of a crop as masks of the whole picture of ``size``, reduced to ``work_size``."""
        logits = found.logits[wanted]
        down, across = work_size[0] / size[0], work_size[1] / size[1]
        x0, y0, x1, y1 = (round(v * s) for v, s in zip(found.crop, (across, down, across, down), strict=True))
        masks = torch.zeros((len(logits), *work_size), dtype=torch.bool, device=logits.device)
        for start in range(0, len(logits), UPSAMPLE_BATCH):
            part = logits[start : start + UPSAMPLE_BATCH]
            part = self.sam.postprocess_masks(part, found.input_size, (y1 - y0, x1 - x0)) > 0
            masks[start : start + UPSAMPLE_BATCH, y0:y1, x0:x1] = part[:, 0]
        return masks

    def _inside(self, logits: Float[Tensor, "M h w"], input_size: tuple[int, int]) -> Float[Tensor, "M hi wi"]:
        """The part of low-resolution logits that shows the picture, without the square input's padding."""
        side = self.sam.image_encoder.img_size
        rows, columns = (-(-size * low // side) for size, low in zip(input_size, logits.shape[-2:], strict=True))
        return logits[:, :rows, :columns]


def cut_by_crop(
    boxes: Float[Tensor, "M 4"], crop: list[int], size: tuple[int, ...], tolerance: float
) -> Bool[Tensor, " M"]:
    """Which boxes end at an edge of a crop that is not an edge of the picture: their masks are cut off there.

    Args:
        boxes: x0, y0, x1, y1 in pixels of the picture.
        crop: x0, y0, x1, y1.
        size: (height, width) of the picture.
        tolerance: in pixels.
    """
    edges = boxes.new_tensor(crop)
    near_crop = (boxes - edges).abs() <= tolerance
    inner = edges != boxes.new_tensor([0, 0, size[1], size[0]])
    return (near_crop & inner).any(1)


def remove_specks(masks: Bool[Tensor, "M H W"], area: int) -> Bool[Tensor, "M H W"]:
    """Fill holes and remove islands of fewer than `area` pixels (the largest island always stays)."""
    if area <= 0 or len(masks) == 0:
        return masks
    cleaned = np.stack([without_specks(mask, area) for mask in masks.cpu().numpy()])
    return torch.from_numpy(cleaned).to(masks.device)


def enlarge_masks(masks: Bool[Tensor, "M h w"], size: tuple[int, int]) -> Bool[Tensor, "M H W"]:
    """Masks at another size (height, width) in pixels, edges interpolated linearly."""
    if masks.shape[1:] == size:
        return masks
    out = torch.zeros((len(masks), *size), dtype=torch.bool, device=masks.device)
    for start in range(0, len(masks), UPSAMPLE_BATCH):
        part = masks[start : start + UPSAMPLE_BATCH, None].float()
        out[start : start + UPSAMPLE_BATCH] = (
            F.interpolate(part, size, mode="bilinear", align_corners=False)[:, 0] > 0.5
        )
    return out


def load_sam(model_type: str, checkpoint: Path) -> Sam:
    """A full-size Segment Anything model from a checkpoint in the official layout (a plain state dict), on the CPU.

    Args:
        model_type: ``vit_h``, ``vit_l`` or ``vit_b``.
        checkpoint: the ``.pth`` file.

    Raises:
        WeightsError: the file is missing, damaged, or holds something else.
    """
    expected = f"expected an official {model_type} checkpoint of Segment Anything (a state dict saved with torch.save)"
    try:
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise WeightsError(f"no checkpoint at {checkpoint}: {expected}") from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        raise WeightsError(f"cannot read {checkpoint}: {expected} ({_first_line(error)})") from error

    # On the meta device nothing is allocated or initialised; the checkpoint's tensors then become the parameters.
    with torch.device("meta"):
        sam = sam_model_registry[model_type](checkpoint=None)
    if problem := _mismatch(sam, state):
        raise WeightsError(f"{checkpoint} is not a {model_type} model: {problem}; {expected}")
    sam.load_state_dict({name: tensor.float() for name, tensor in state.items()}, assign=True)
    # The only tensors outside the state dict; the values are those of every official model.
    sam.pixel_mean = torch.tensor([123.675, 116.28, 103.53]).view(-1, 1, 1)
    sam.pixel_std = torch.tensor([58.395, 57.12, 57.375]).view(-1, 1, 1)
    return sam.requires_grad_(False).eval()


def _mismatch(sam: Sam, state: Any) -> str | None:
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        return "it holds no plain state dict"
    wanted = sam.state_dict()
    if missing := [name for name in wanted if name not in state]:
        return f"{len(missing)} of {len(wanted)} tensors are missing (first: {missing[0]})"
    if surplus := [name for name in state if name not in wanted]:
        return f"{len(surplus)} unknown tensors (first: {surplus[0]})"
    for name, tensor in wanted.items():
        if state[name].shape != tensor.shape:
            return f"{name} has shape {tuple(state[name].shape)} instead of {tuple(tensor.shape)}"
    return None


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
