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
from torch import Tensor

from maskfield_ns.foundation.tiny.sam import IMAGE_SIZE, PATCH_SIZE, build_tiny_sam

LOW_RES = 4 * IMAGE_SIZE // PATCH_SIZE
LEVEL_WEIGHTS = (0.3, 0.4, 0.5, 1.0)
"""Loss weights of SAM's four outputs: single mask (trained as whole), sub-part, part, whole."""


@dataclass
class SamTrainingConfig:
    """Schedule of the embedded SAM."""

    steps: int = 20000
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


def sample_batch(data: PictureSet, cfg: SamTrainingConfig, rng: np.random.Generator) -> dict[str, Tensor]:
    """Pictures padded to the square input, clicks, and area-averaged targets on SAM's low-resolution mask grid.

    Returns:
        image [B, 3, S, S] (0..255), points [B, P, 2] in input pixels, masks [B, P, 3, L, L] in {0, 1},
        valid [B, L, L] (False on padding), padding [B, S, S], token_ids [B, T] instance of
        each encoder token (-1 on padding).
    """
    b, p = cfg.images_per_step, cfg.prompts_per_image
    images = np.zeros((b, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    points = np.zeros((b, p, 2), np.float32)
    masks = np.zeros((b, p, 3, LOW_RES, LOW_RES), np.float32)
    valid = np.zeros((b, LOW_RES, LOW_RES), bool)
    padding = np.ones((b, IMAGE_SIZE, IMAGE_SIZE), bool)
    grid = IMAGE_SIZE // PATCH_SIZE
    token_ids = np.full((b, grid, grid), -1, np.int64)
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
    }


def predict(sam: torch.nn.Module, image: Tensor, points: Tensor, padding: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """SAM's forward pass for P one-click prompts in each of B pictures at once.

    The stock decoder takes one picture at a time; this is the same computation over a [B * P] batch.

    Returns:
        mask logits [B, P, 4, L, L], predicted IoU [B, P, 4], image embedding [B, D, G, G].
    """
    b, p = points.shape[:2]
    decoder, prompts = sam.mask_decoder, sam.prompt_encoder
    normalised = ((image - sam.pixel_mean) / sam.pixel_std).masked_fill(padding[:, None], 0.0)
    embedding = sam.image_encoder(normalised)
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
    return logits.float(), iou.float(), embedding.float()


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
    similarity = 8 * (x @ x.transpose(1, 2)) - 4
    same = (token_ids[:, :, None] == token_ids[:, None]).float()
    known = ((token_ids >= 0)[:, :, None] & (token_ids >= 0)[:, None]).float()
    bce = F.binary_cross_entropy_with_logits(similarity, same, reduction="none") * known
    positive, negative = (same * known).sum().clamp(min=1), ((1 - same) * known).sum().clamp(min=1)
    return (bce * same).sum() / positive + (bce * (1 - same)).sum() / negative


def train(cfg: SamTrainingConfig, data_dir: Path, work_dir: Path, device: str) -> Path:
    """Trains or resumes; checkpoints every 500 steps; returns the path of the newest checkpoint."""
    work_dir.mkdir(parents=True, exist_ok=True)
    path = work_dir / "sam.pt"
    data = PictureSet(data_dir)
    torch.manual_seed(cfg.seed)
    sam = build_tiny_sam().to(device)
    optimisers = build_optimisers(sam, cfg.lr, cfg.muon_lr, cfg.weight_decay)
    average = {name: tensor.clone() for name, tensor in sam.state_dict().items()}
    start = 0
    if path.exists():
        state = torch.load(path, map_location=device, weights_only=True)
        sam.load_state_dict(state["model"])
        for optimiser, stored in zip(optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(stored)
        average, start = state["ema"], state["step"]
        print(f"resuming at step {start}", flush=True)
    began, running = time.time(), np.zeros(6)
    for step in range(start, cfg.steps):
        if step % 500 == 0:
            data.refresh()
        rng = np.random.default_rng((cfg.seed, step))
        batch = {k: v.to(device) for k, v in sample_batch(data, cfg, rng).items()}
        progress = (step - cfg.warmup) / max(1, cfg.steps - cfg.warmup)
        factor = step / cfg.warmup if progress < 0 else 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress))
        set_rate(optimisers, factor)
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=cfg.bfloat16):
            logits, predicted, embedding = predict(sam, batch["image"], batch["points"], batch["padding"])
        target = torch.cat([batch["masks"][:, :, 2:], batch["masks"]], dim=2)
        per_mask, iou = mask_loss(logits, target, batch["valid"])
        weights = per_mask.new_tensor(LEVEL_WEIGHTS)
        loss = (per_mask * weights).sum(-1).mean() + F.mse_loss(predicted, iou)
        loss = loss + 0.2 * affinity_loss(embedding, batch["token_ids"])
        sam.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(sam.parameters(), 1.0)
        for optimiser in optimisers:
            optimiser.step()
        keep = min(cfg.ema, (step + 1) / (step + 10))
        for name, tensor in sam.state_dict().items():
            average[name].lerp_(tensor, 1 - keep)
        errors = (predicted - iou).abs().mean()
        running = 0.98 * running + 0.02 * np.array([loss.item(), *iou.mean((0, 1)).tolist(), errors.item()])
        if step % 100 == 99:
            rate = (step + 1 - start) / (time.time() - began)
            shown = running / (1 - 0.98 ** min(step + 1 - start, 10000))
            eta = (cfg.steps - step) / rate / 60
            print(
                f"step {step + 1} loss {shown[0]:.3f} IoU single {shown[1]:.3f} subpart {shown[2]:.3f} "
                f"part {shown[3]:.3f} whole {shown[4]:.3f} IoU-head error {shown[5]:.3f} "
                f"{rate:.2f} steps/s ETA {eta:.0f} min ({len(data.pictures)} pictures)",
                flush=True,
            )
        if step % 500 == 499 or step + 1 == cfg.steps:
            state = {"model": sam.state_dict(), "ema": average, "step": step + 1}
            state["optimisers"] = [optimiser.state_dict() for optimiser in optimisers]
            torch.save(state, path.with_suffix(".tmp"))
            path.with_suffix(".tmp").replace(path)
    return path
