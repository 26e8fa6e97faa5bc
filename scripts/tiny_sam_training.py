"""Training of the embedded SAM on rendered pictures: one click, three masks (sub-part, part, whole), exact targets."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from tiny_data import PictureSet, jitter_colours, random_view, same_colour_region
from tiny_optimisers import build_optimisers, set_rate
from torch import Tensor, nn

from maskfield_ns.foundation.tiny.sam import DECODER_DIM, IMAGE_SIZE, PATCH_SIZE, build_tiny_sam

LOW_RES = 4 * IMAGE_SIZE // PATCH_SIZE
STRIDE = IMAGE_SIZE // LOW_RES
DENSE_CHANNELS = 24
LEVEL_WEIGHTS = (0.3, 0.4, 0.5, 1.0)
"""Loss weights of SAM's four outputs: single mask (trained as whole), sub-part, part, whole."""


@dataclass
class SamTrainingConfig:
    """Schedule of the embedded SAM."""

    dense_steps: int = 5000
    """Steps of the image encoder alone, before the decoder joins: they cost half as much and teach it most."""
    steps: int = 11000
    """All steps, the first ones included."""
    images_per_step: int = 4
    prompts_per_image: int = 8
    lr: float = 1.2e-3
    muon_lr: float = 2.5e-3
    warmup: int = 300
    weight_decay: float = 0.02
    ema: float = 0.999
    seed: int = 0
    bfloat16: bool = True


def click(ids: np.ndarray, rng: np.random.Generator) -> tuple[int, int]:
    """A pixel (x, y): half the time uniform over instances, else uniform over the picture (as a point grid is)."""
    height, width = ids.shape
    if rng.random() < 0.65:
        present = np.unique(ids)
        rows, columns = np.nonzero(ids == present[rng.integers(len(present))])
        k = rng.integers(len(rows))
        return int(columns[k]), int(rows[k])
    return int(rng.integers(width)), int(rng.integers(height))


def sample_batch(data: PictureSet, cfg: SamTrainingConfig, prompts: int, rng: np.random.Generator) -> dict[str, Tensor]:
    """Pictures padded to the square input, clicks, and area-averaged targets on SAM's low-resolution mask grid.

    Returns:
        image [B, 3, S, S] (0..255), points [B, P, 2] in input pixels, masks [B, P, 3, L, L] in {0, 1},
        valid [B, L, L] (False on padding), padding [B, S, S], token_ids [B, T] and pixel_ids [B, L, L] instance
        of each encoder token and of each pixel of the mask grid (-1 on padding).
    """
    b, p = cfg.images_per_step, prompts
    images = np.zeros((b, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    points = np.zeros((b, p, 2), np.float32)
    masks = np.zeros((b, p, 3, LOW_RES, LOW_RES), np.float32)
    valid = np.zeros((b, LOW_RES, LOW_RES), bool)
    padding = np.ones((b, IMAGE_SIZE, IMAGE_SIZE), bool)
    grid = IMAGE_SIZE // PATCH_SIZE
    token_ids = np.full((b, grid, grid), -1, np.int64)
    pixel_ids = np.full((b, LOW_RES, LOW_RES), -1, np.int64)
    for i in range(b):
        picture = data.pictures[rng.integers(len(data.pictures))]
        image, instance, part = random_view(picture, IMAGE_SIZE, rng)
        h, w = instance.shape
        clean = np.ascontiguousarray(image)
        images[i, :h, :w] = jitter_colours(image, rng)
        padding[i, :h, :w] = False
        valid[i, : math.ceil(h * LOW_RES / IMAGE_SIZE), : math.ceil(w * LOW_RES / IMAGE_SIZE)] = True
        centre = instance[PATCH_SIZE // 2 :: PATCH_SIZE, PATCH_SIZE // 2 :: PATCH_SIZE]
        token_ids[i, : centre.shape[0], : centre.shape[1]] = centre
        fine = instance[STRIDE // 2 :: STRIDE, STRIDE // 2 :: STRIDE]
        pixel_ids[i, : fine.shape[0], : fine.shape[1]] = fine
        for j in range(p):
            x, y = click(instance, rng)
            points[i, j] = x + 0.5, y + 0.5
            whole = instance == instance[y, x]
            inner = whole & (part == part[y, x])
            sub = same_colour_region(clean, inner, x, y)
            if sub.sum() < 20:
                sub = inner
            for level, mask in enumerate((sub, inner, whole)):
                padded = np.zeros((IMAGE_SIZE, IMAGE_SIZE), np.float32)
                padded[:h, :w] = mask
                masks[i, j, level] = cv2.resize(padded, (LOW_RES, LOW_RES), interpolation=cv2.INTER_AREA)
    return {
        "image": torch.from_numpy(images).permute(0, 3, 1, 2).float(),
        "points": torch.from_numpy(points),
        "masks": torch.from_numpy(masks),
        "valid": torch.from_numpy(valid),
        "padding": torch.from_numpy(padding),
        "token_ids": torch.from_numpy(token_ids).flatten(1),
        "pixel_ids": torch.from_numpy(pixel_ids),
    }


def encode(sam: torch.nn.Module, image: Tensor, padding: Tensor) -> Tensor:
    """Image embedding [B, D, G, G] of pictures in 0..255, as ``Sam.preprocess`` would prepare them."""
    normalised = ((image - sam.pixel_mean) / sam.pixel_std).masked_fill(padding[:, None], 0.0)
    return sam.image_encoder(normalised.contiguous(memory_format=torch.channels_last))


def decode(sam: torch.nn.Module, embedding: Tensor, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """P one-click prompts in each of B pictures at once.

    The stock decoder takes one picture at a time; this is the same computation over a [B * P] batch.

    Returns:
        mask logits [B, P, 4, L, L], predicted IoU [B, P, 4], features that make the masks [B, P, D / 8, L, L].
    """
    b, p = points.shape[:2]
    decoder, prompts = sam.mask_decoder, sam.prompt_encoder
    clicks = points.reshape(b * p, 1, 2)
    sparse, dense = prompts((clicks, torch.ones(b * p, 1, device=clicks.device)), None, None)
    tokens = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
    tokens = torch.cat([tokens.expand(b * p, -1, -1), sparse], dim=1)
    source = embedding.repeat_interleave(p, dim=0) + dense
    position = prompts.get_dense_pe().expand(b * p, -1, -1, -1)
    out, source = decoder.transformer(source, position, tokens)
    n, d, g, _ = position.shape
    upscaled = decoder.output_upscaling(source.transpose(1, 2).reshape(n, d, g, g))
    hyper = torch.stack([mlp(out[:, 1 + k]) for k, mlp in enumerate(decoder.output_hypernetworks_mlps)], dim=1)
    logits = (hyper @ upscaled.flatten(2)).reshape(b, p, hyper.shape[1], LOW_RES, LOW_RES)
    iou = decoder.iou_prediction_head(out[:, 0]).reshape(b, p, -1)
    return logits.float(), iou.float(), upscaled.unflatten(0, (b, p))


def mask_loss(logits: Tensor, target: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy plus dice per mask and the true IoU of the thresholded prediction; all [B, P, K]."""
    weight = valid[:, None, None].float()
    bce = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    # Small objects would drown in background pixels: average inside and outside separately, then mix with the mean.
    area, total = (target * weight).sum((-1, -2)), weight.sum((-1, -2))
    inside = (bce * target * weight).sum((-1, -2)) / area.clamp(min=1)
    mean = (bce * weight).sum((-1, -2)) / total
    prob = logits.sigmoid() * weight
    dice = 1 - (2 * (prob * target).sum((-1, -2)) + 1) / (prob.sum((-1, -2)) + area + 1)
    with torch.no_grad():
        hard, truth = (logits > 0) & valid[:, None, None], target > 0.5
        union = (hard | truth).sum((-1, -2)).clamp(min=1)
        iou = (hard & truth).sum((-1, -2)) / union
    return 2 * mean + 0.3 * inside + dice, iou


def affinity_loss(embedding: Float[Tensor, "B D G G"], token_ids: Tensor) -> Tensor:
    """Pairs of encoder tokens: similar inside an instance, dissimilar across; makes the encoder learn early."""
    x = F.normalize(embedding.flatten(2).transpose(1, 2), dim=-1)
    known = (token_ids >= 0)[:, :, None] & (token_ids >= 0)[:, None]
    return _pair_loss(8 * (x @ x.transpose(1, 2)) - 4, token_ids[:, :, None] == token_ids[:, None], known)


class DenseHead(nn.Module):
    """Pixel embeddings on the mask grid from the image embedding; trained along and thrown away.

    A click teaches one mask; this teaches the encoder every boundary of the picture at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Conv2d(DECODER_DIM, 16 * DENSE_CHANNELS, 1)

    def forward(self, embedding: Float[Tensor, "B D G G"]) -> Float[Tensor, "B C L L"]:
        return F.pixel_shuffle(self.expand(embedding), 4)


def dense_loss(features: Float[Tensor, "B C L L"], ids: Tensor, generator: torch.Generator, samples: int = 320):
    """Pairs of pixels: far ones sampled at random, near ones at small offsets, same instance or not."""
    x = F.normalize(features.float(), dim=1)
    scale, shift = 8.0, 4.0
    loss = x.new_zeros(())
    offsets = ((0, 1), (1, 0), (0, 2), (2, 0), (1, 1), (3, 3), (0, 5), (5, 0))
    for dy, dx in offsets:
        a, b = x[:, :, : LOW_RES - dy, : LOW_RES - dx], x[:, :, dy:, dx:]
        ia, ib = ids[:, : LOW_RES - dy, : LOW_RES - dx], ids[:, dy:, dx:]
        loss = loss + _pair_loss(scale * (a * b).sum(1) - shift, ia == ib, (ia >= 0) & (ib >= 0)) / len(offsets)
    flat, known = x.flatten(2), ids.flatten(1)
    chosen = torch.randint(0, flat.shape[-1], (len(ids), samples), generator=generator).to(ids.device)
    far = flat.gather(2, chosen[:, None].expand(-1, flat.shape[1], -1))
    i = known.gather(1, chosen)
    far_similarity = scale * far.transpose(1, 2) @ far - shift
    valid = (i >= 0)[:, :, None] & (i >= 0)[:, None]
    return loss + _pair_loss(far_similarity, i[:, :, None] == i[:, None], valid)


def _pair_loss(logits: Tensor, same: Tensor, known: Tensor) -> Tensor:
    """Cross-entropy of pairs, those of one instance and those of two weighing alike."""
    bce = F.binary_cross_entropy_with_logits(logits, same.float(), reduction="none") * known
    positive, negative = (same & known).sum().clamp(min=1), (~same & known).sum().clamp(min=1)
    return (bce * same).sum() / positive + (bce * ~same).sum() / negative


def train(cfg: SamTrainingConfig, data_dir: Path, work_dir: Path, device: str) -> Path:
    """Trains or resumes; checkpoints every 500 steps; returns the path of the newest checkpoint."""
    work_dir.mkdir(parents=True, exist_ok=True)
    path = work_dir / "sam.pt"
    data = PictureSet(data_dir)
    torch.manual_seed(cfg.seed)
    sam = build_tiny_sam().to(device, memory_format=torch.channels_last)
    dense = DenseHead().to(device)
    optimisers = build_optimisers(sam, cfg.lr, cfg.muon_lr, cfg.weight_decay, tuple(dense.parameters()))
    average = {name: tensor.clone() for name, tensor in sam.state_dict().items()}
    start = 0
    if path.exists():
        state = torch.load(path, map_location=device, weights_only=True)
        sam.load_state_dict(state["model"])
        dense.load_state_dict(state["dense"])
        for optimiser, stored in zip(optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(stored)
        average, start = state["ema"], state["step"]
        print(f"resuming at step {start}", flush=True)
    began, running = time.time(), None
    for step in range(start, cfg.steps):
        if step % 500 == 0:
            data.refresh()
        rng = np.random.default_rng((cfg.seed, step))
        alone = step < cfg.dense_steps
        prompts = 0 if alone else cfg.prompts_per_image
        batch = {k: v.to(device) for k, v in sample_batch(data, cfg, prompts, rng).items()}
        progress = (step - cfg.warmup) / max(1, cfg.steps - cfg.warmup)
        factor = step / cfg.warmup if progress < 0 else 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress))
        set_rate(optimisers, factor)
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=cfg.bfloat16):
            embedding = encode(sam, batch["image"], batch["padding"])
            fine = dense(embedding)
            if not alone:
                logits, predicted, features = decode(sam, embedding, batch["points"])
        generator = torch.Generator().manual_seed(step)
        pairs = dense_loss(fine, batch["pixel_ids"], generator)
        loss = (1.0 if alone else 0.3) * pairs + 0.2 * affinity_loss(embedding.float(), batch["token_ids"])
        shown = [pairs.item()]
        if not alone:
            target = torch.cat([batch["masks"][:, :, 2:], batch["masks"]], dim=2)
            per_mask, iou = mask_loss(logits, target, batch["valid"])
            loss = loss + (per_mask * per_mask.new_tensor(LEVEL_WEIGHTS)).sum(-1).mean() + F.mse_loss(predicted, iou)
            # The decoder's own features learn to tell pixels apart from one prompt's view of each picture.
            loss = loss + 0.3 * dense_loss(features[:, 0], batch["pixel_ids"], generator)
            shown += [*iou.mean((0, 1)).tolist(), (predicted - iou).abs().mean().item()]
        for optimiser in optimisers:
            optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(sam.parameters(), 1.0)
        for optimiser in optimisers:
            optimiser.step()
        keep = min(cfg.ema, (step + 1) / (step + 10))
        for name, tensor in sam.state_dict().items():
            average[name].lerp_(tensor, 1 - keep)
        fresh = running is None or len(running) != len(shown)
        running = np.array(shown) if fresh else 0.98 * running + 0.02 * np.array(shown)
        if step % 100 == 99:
            rate = (step + 1 - start) / (time.time() - began)
            names = ("pairs", "IoU single", "subpart", "part", "whole", "IoU-head error")
            figures = " ".join(f"{name} {value:.3f}" for name, value in zip(names, running, strict=False))
            print(
                f"step {step + 1} {figures} {rate:.2f} steps/s ETA {(cfg.steps - step) / rate / 60:.0f} min "
                f"({len(data.pictures)} pictures)",
                flush=True,
            )
        if step % 500 == 499 or step + 1 == cfg.steps:
            state = {"model": sam.state_dict(), "ema": average, "step": step + 1, "dense": dense.state_dict()}
            state["optimisers"] = [optimiser.state_dict() for optimiser in optimisers]
            torch.save(state, path.with_suffix(".tmp"))
            path.with_suffix(".tmp").replace(path)
    return path
