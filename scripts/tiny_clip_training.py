"""Training of the embedded CLIP: masked crops of rendered objects against phrases of the caption grammar."""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from tiny_data import Picture, PictureSet, jitter_colours, same_colour_region
from tiny_optimisers import build_optimisers, set_rate
from tiny_phrases import GENERIC, Phrase, phrase_for, random_phrase, truth, vocabulary_texts
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from maskfield_ns.foundation.crops import masked_crops
from maskfield_ns.foundation.tiny.clip import IMAGE_SIZE, MEAN, STD, CompactTokenizer, build_tiny_clip

TEMPERATURE = 10.0
"""LERF's relevancy temperature: training calibrates the very number that queries use."""


@dataclass
class ClipTrainingConfig:
    """Schedule of the embedded CLIP."""

    steps: int = 8500
    regions_per_step: int = 128
    random_phrases: int = 128
    lr: float = 1e-3
    muon_lr: float = 2e-3
    warmup: int = 300
    weight_decay: float = 0.05
    ema: float = 0.998
    seed: int = 0
    bfloat16: bool = True


def imperfect_mask(picture: Picture, target: int, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """A mask as a proposer might give it, and its IoU with the whole object: clean, ragged, partial or merged."""
    whole = picture.instance == target
    kind = rng.random()
    mask = whole
    if kind < 0.25:
        kernel = np.ones((rng.integers(2, 4),) * 2, np.uint8)
        change = cv2.dilate if rng.random() < 0.5 else cv2.erode
        mask = change(whole.astype(np.uint8), kernel).astype(bool)
    elif kind < 0.32:
        rows, columns = np.nonzero(whole)
        angle, k = rng.uniform(0, 2 * np.pi), rng.integers(len(rows))
        ys, xs = np.mgrid[: whole.shape[0], : whole.shape[1]]
        mask = whole & ((xs - columns[k]) * np.cos(angle) + (ys - rows[k]) * np.sin(angle) > 0)
    elif kind < 0.4:
        rows, columns = np.nonzero(whole)
        k = rng.integers(len(rows))
        mask = whole & (picture.part == picture.part[rows[k], columns[k]])
        if rng.random() < 0.6:
            mask = same_colour_region(picture.image, mask, int(columns[k]), int(rows[k]))
    elif kind < 0.45:
        near = cv2.dilate(whole.astype(np.uint8), np.ones((9, 9), np.uint8)).astype(bool)
        others = np.unique(picture.instance[near & ~whole])
        others = others[others > 0]
        if len(others):
            mask = whole | ((picture.instance == others[rng.integers(len(others))]) & near)
    if mask.sum() < 12:
        mask = whole
    return mask, float((mask & whole).sum() / (mask | whole).sum())


def sample_regions(
    data: PictureSet, cfg: ClipTrainingConfig, rng: np.random.Generator
) -> tuple[Tensor, list[dict], np.ndarray]:
    """Crops [N, 3, S, S] in 0..1, the objects they show and how well each mask fits its object [N]."""
    crops, things, fits = [], [], []
    while len(crops) < cfg.regions_per_step:
        picture = data.pictures[rng.integers(len(data.pictures))]
        image = jitter_colours(picture.image, rng)
        ids, areas = np.unique(picture.instance, return_counts=True)
        ids = [i for i, area in zip(ids, areas, strict=True) if i in picture.objects and area >= 40]
        rng.shuffle(ids)
        for target in ids[:4]:
            thing = picture.objects[int(target)]
            if thing["class"] in ("floor", "table", "wall", "object") and rng.random() < 0.4:
                continue
            mask, fit = imperfect_mask(picture, int(target), rng)
            crop = masked_crops(image, mask[None], IMAGE_SIZE, MEAN)[0]
            crops.append(crop.flip(-1) if rng.random() < 0.5 else crop)
            things.append(thing)
            fits.append(fit)
    n = cfg.regions_per_step
    return torch.stack(crops[:n]), things[:n], np.array(fits[:n], np.float32)


def sample_phrases(things: list[dict], cfg: ClipTrainingConfig, rng: np.random.Generator) -> list[Phrase]:
    """True phrases of the objects at hand, then random ones, without repeats."""
    phrases = [phrase_for(rng, thing) for thing in things]
    phrases += [random_phrase(rng) for _ in range(cfg.random_phrases)]
    return list({p.text: p for p in phrases if p.noun or p.colour or p.absent}.values())


def targets_of(phrases: list[Phrase], things: list[dict], fits: np.ndarray) -> tuple[Tensor, Tensor]:
    """Target and weight [N, T]; a badly fitting mask earns less of its object's name, but keeps its colour."""
    table = np.array([[truth(phrase, thing) for phrase in phrases] for thing in things], np.float32)
    fit = np.clip((fits - 0.25) / 0.5, 0, 1)[:, None]
    named = np.array([p.noun is not None for p in phrases])[None]
    target = np.where(named, table[..., 0] * fit, table[..., 0])
    return torch.from_numpy(target), torch.from_numpy(table[..., 1])


def clip_loss(
    image: Tensor, text: Tensor, generic: Tensor, target: Tensor, weight: Tensor, scale: Tensor, bias: Tensor
):
    """Sigmoid contrast over all pairs plus cross-entropy of the LERF relevancy against the generic phrases.

    Args: image [N, C], text [T, C], generic [K, C] all unit; target and weight [N, T].
    """
    similarity = image @ text.T
    balance = torch.where(target > 0.3, 1.0, 0.25) * weight
    contrast = F.binary_cross_entropy_with_logits(scale.exp() * similarity + bias, target, weight=balance)
    margin = similarity[..., None] - (image @ generic.T)[:, None]
    hardest = margin.min(-1).values if torch.rand(()) < 0.5 else margin.mean(-1)
    relevancy = F.binary_cross_entropy_with_logits(TEMPERATURE * hardest, target, weight=balance)
    # Ranking within the phrases of a picture: the soft-max that picks the best phrase must pick a true one.
    true = target * weight
    log_p = F.log_softmax(scale.exp() * similarity, dim=-1)
    rank = -(true * log_p).sum(-1) / true.sum(-1).clamp(min=1e-3)
    ranked = (true.sum(-1) > 0.5).float()
    return 8 * contrast + 8 * relevancy + (rank * ranked).sum() / ranked.sum().clamp(min=1), similarity


def train(cfg: ClipTrainingConfig, data_dir: Path, work_dir: Path, device: str) -> Path:
    """Trains or resumes; checkpoints every 250 steps; returns the path of the newest checkpoint."""
    work_dir.mkdir(parents=True, exist_ok=True)
    path = work_dir / "clip.pt"
    data = PictureSet(data_dir)
    torch.manual_seed(cfg.seed)
    tokenizer = CompactTokenizer(CompactTokenizer.ids_of(vocabulary_texts()))
    model = build_tiny_clip(tokenizer.vocab_size).to(device, memory_format=torch.channels_last)
    bias = torch.nn.Parameter(torch.tensor(-3.0, device=device))
    scale = torch.nn.Parameter(torch.tensor(math.log(8.0), device=device))
    optimisers = build_optimisers(model, cfg.lr, cfg.muon_lr, cfg.weight_decay, (bias, scale))
    average = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    start = 0
    if path.exists():
        state = torch.load(path, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        for optimiser, stored in zip(optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(stored)
        bias.data, scale.data = state["bias"], state["scale"]
        average, start = state["ema"], state["step"]
        print(f"resuming at step {start}", flush=True)
    mean, std = (torch.tensor(v, device=device)[:, None, None] for v in (MEAN, STD))
    generic_tokens = tokenizer(list(GENERIC[:4])).to(device)
    began, running = time.time(), np.zeros(3)
    for step in range(start, cfg.steps):
        if step % 250 == 0:
            data.refresh()
        rng = np.random.default_rng((cfg.seed, 1, step))
        torch.manual_seed(hash((cfg.seed, step)) % 2**31)
        crops, things, fits = sample_regions(data, cfg, rng)
        phrases = sample_phrases(things, cfg, rng)
        target, weight = (t.to(device) for t in targets_of(phrases, things, fits))
        tokens = torch.cat([generic_tokens, tokenizer([p.text for p in phrases]).to(device)])
        progress = (step - cfg.warmup) / max(1, cfg.steps - cfg.warmup)
        factor = step / cfg.warmup if progress < 0 else 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress))
        set_rate(optimisers, factor)
        # The fused attention's backward pass takes half of a step on a CPU; the plain one is twice as fast there.
        plain = sdpa_kernel(SDPBackend.MATH) if torch.device(device).type == "cpu" else nullcontext()
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=cfg.bfloat16), plain:
            pixels = ((crops.to(device) - mean) / std).contiguous(memory_format=torch.channels_last)
            image = model.encode_image(pixels)
            text = model.encode_text(tokens)
        image, text = F.normalize(image.float(), dim=-1), F.normalize(text.float(), dim=-1)
        k = len(generic_tokens)
        loss, similarity = clip_loss(image, text[k:], text[:k], target, weight, scale, bias)
        for optimiser in optimisers:
            optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser in optimisers:
            optimiser.step()
        keep = min(cfg.ema, (step + 1) / (step + 10))
        for name, tensor in model.state_dict().items():
            average[name].lerp_(tensor, 1 - keep) if tensor.is_floating_point() else average[name].copy_(tensor)
        with torch.no_grad():
            fitting = torch.from_numpy(fits > 0.8).to(device) & (target * weight).gt(0.5).any(-1)
            best = similarity.argmax(-1, keepdim=True)
            hit = (target.gather(1, best)[:, 0] > 0.5)[fitting].float().mean()
            decided = ((similarity - (image @ text[:k].T).max(-1, keepdim=True).values) > 0) == (target > 0.5)
            right = decided[weight > 0.5].float().mean()
        running = 0.98 * running + 0.02 * np.array([loss.item(), hit.item(), right.item()])
        if step % 50 == 49:
            rate = (step + 1 - start) / (time.time() - began)
            shown = running / (1 - 0.98 ** min(step + 1 - start, 10000))
            print(
                f"step {step + 1} loss {shown[0]:.3f} best phrase true {shown[1]:.3f} relevancy side {shown[2]:.3f} "
                f"{rate:.2f} steps/s ETA {(cfg.steps - step) / rate / 60:.0f} min ({len(data.pictures)} pictures)",
                flush=True,
            )
        if step % 250 == 249 or step + 1 == cfg.steps:
            state = {"model": model.state_dict(), "ema": average, "step": step + 1}
            state["optimisers"] = [optimiser.state_dict() for optimiser in optimisers]
            torch.save(state | {"bias": bias.data, "scale": scale.data}, path.with_suffix(".tmp"))
            path.with_suffix(".tmp").replace(path)
    return path
