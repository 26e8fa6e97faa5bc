"""Figures of the embedded pair on layouts that training never saw: mask quality and zero-shot accuracy."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
from tiny_data import Picture, PictureSet

from maskfield_ns.evaluation.metrics import pairwise_iou
from maskfield_ns.foundation.config import MergedConfig, RegionsConfig, TinyClipConfig, TinySamConfig
from maskfield_ns.foundation.protocols import MaskProposer, RegionEmbedder

SURROUNDINGS = {"floor", "table", "wall"}
MIN_SHARE = 0.002
"""Objects covering less of the picture (about 10 x 10 pixels of 256 x 192) are not counted."""
CLASS_PHRASES = (
    "duck", "teddy bear", "soccer ball", "mug", "toy brick", "tray", "cube", "robot", "toy car", "ball", "bunny",
    "ring", "cylinder", "cone", "bottle", "bowl", "table", "floor",
)  # fmt: skip


def objects_of(picture: Picture, surroundings: bool = False) -> dict[int, dict]:
    """Instances large enough to count, by id."""
    area = MIN_SHARE * picture.instance.size
    return {
        i: thing
        for i, thing in picture.objects.items()
        if (surroundings or thing["class"] not in SURROUNDINGS) and (picture.instance == i).sum() >= area
    }


def best_ious(proposer: MaskProposer, pictures: list[Picture]) -> tuple[np.ndarray, float, float]:
    """(best IoU of any automatic mask per object, seconds per picture, masks per picture)."""
    values, began, count = [], time.time(), 0
    for picture in pictures:
        ids = list(objects_of(picture))
        if not ids:
            continue
        truth = np.stack([picture.instance == i for i in ids])
        proposals = proposer.propose(picture.image)
        count += len(proposals)
        iou = pairwise_iou(truth, proposals.masks) if len(proposals) else np.zeros((len(ids), 1))
        values.extend(iou.max(axis=1))
    return np.array(values), (time.time() - began) / len(pictures), count / len(pictures)


def zero_shot(embedder: RegionEmbedder, pictures: list[Picture]) -> dict[str, float]:
    """Share of exact object masks whose best phrase is a true one: over classes, over colours, and both together."""
    from tiny_phrases import nouns_of

    texts = list(CLASS_PHRASES)
    text = embedder.embed_texts(texts)
    hits, coloured = [], []
    for picture in pictures:
        things = objects_of(picture, surroundings=True)
        things = {i: t for i, t in things.items() if set(nouns_of(t)) & set(texts)}
        if not things:
            continue
        embeddings = embedder.embed_regions(picture.image, np.stack([picture.instance == i for i in things]))
        for embedding, thing in zip(embeddings, things.values(), strict=True):
            best = texts[int((text @ embedding).argmax())]
            hits.append(best in nouns_of(thing))
            if thing.get("colour") and thing["class"] not in SURROUNDINGS:
                noun = nouns_of(thing)[0]
                colours = ["red", "green", "blue", "yellow", "white", "black", "purple", "pink", "orange", "brown"]
                if thing["colour"] in colours:
                    options = embedder.embed_texts([f"{c} {noun}" for c in colours])
                    coloured.append(colours[int((options @ embedding).argmax())] == thing["colour"])
    return {
        "phrases": len(texts),
        "class_accuracy": float(np.mean(hits)),
        "colour_accuracy": float(np.mean(coloured)),
        "regions": len(hits),
    }


def report(data: Path, images: int, output: Path | None, weights: Path | None = None) -> dict:
    """Prints and returns the figures; both ways of embedding regions are compared."""
    pictures = PictureSet(data).pictures[:: max(1, 400 // images)][:images]
    figures: dict = {"pictures": len(pictures), "min_share": MIN_SHARE}
    sam = weights / "tiny_sam.safetensors" if weights else None
    clip = weights / "tiny_clip.safetensors" if weights else None
    proposers = {
        "embedded SAM": TinySamConfig(weights=sam),
        "graph-based regions": RegionsConfig(),
        "both merged": MergedConfig(sam=TinySamConfig(weights=sam)) if sam else MergedConfig(),
    }
    for name, config in proposers.items():
        values, seconds, masks = best_ious(config.setup("cpu"), pictures)
        figures[name] = {
            "mean_best_iou": float(values.mean()),
            "share_above_0.5": float((values > 0.5).mean()),
            "share_above_0.75": float((values > 0.75).mean()),
            "objects": len(values),
            "masks_per_picture": masks,
            "seconds_per_picture": seconds,
        }
        print(name, json.dumps(figures[name]), flush=True)
    for mode in ("masked_crops", "dense"):
        embedder = TinyClipConfig(weights=clip, region_mode=mode).setup("cpu")
        figures[f"embedded CLIP, {mode}"] = zero_shot(embedder, pictures)
        print("embedded CLIP", mode, json.dumps(figures[f"embedded CLIP, {mode}"]), flush=True)
    if output is not None:
        output.write_text(json.dumps(figures, indent=1))
    return figures
