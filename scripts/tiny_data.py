"""Rendered pictures for training the embedded pair: shards of ``render_scenes.py dataset``, in memory."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np


@dataclass
class Picture:
    """One rendered picture with exact ids."""

    image: np.ndarray
    """uint8 [H, W, 3]"""
    instance: np.ndarray
    """uint8 [H, W]; 0 is the sky"""
    part: np.ndarray
    """uint8 [H, W]; ids of (object, link) pairs"""
    objects: dict[int, dict]
    """instance id -> class, colour, colours, texture"""


class PictureSet:
    """All shards of a folder; safe to open while a renderer is still adding to it."""

    def __init__(self, folder: Path, limit: int | None = None) -> None:
        self.folder, self.limit = Path(folder), limit
        self._seen: set[str] = set()
        self.pictures: list[Picture] = []
        self.refresh()
        if not self.pictures:
            raise SystemExit(f"no shards in {folder}: run scripts/render_scenes.py dataset --output {folder}")

    def refresh(self) -> int:
        """Reads shards that appeared since the last call; returns the number of pictures."""
        for path in sorted(self.folder.glob("shard_*.npz")):
            if path.name in self._seen or (self.limit and len(self.pictures) >= self.limit):
                continue
            self._seen.add(path.name)
            with np.load(path) as shard:
                metas = json.loads(shard["meta"].tobytes())
                arrays = zip(shard["image"], shard["instance"], shard["part"], metas, strict=True)
                for image, instance, part, meta in arrays:
                    objects = {int(k): v for k, v in meta["instances"].items()}
                    self.pictures.append(Picture(image, instance, part, objects))
        return len(self.pictures)


def jitter_colours(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Small changes of exposure, contrast, white balance, sharpness and noise that keep colour names true."""
    out = image.astype(np.float32)
    if rng.random() < 0.7:
        gains = rng.uniform(0.85, 1.15) * rng.uniform(0.95, 1.05, 3)
        out = (out - 128) * rng.uniform(0.8, 1.2) + 128 + rng.uniform(-15, 15)
        out *= gains
    if rng.random() < 0.3:
        out = cv2.GaussianBlur(out, (0, 0), rng.uniform(0.3, 1.0))
    if rng.random() < 0.3:
        out += rng.normal(0, rng.uniform(1, 6), out.shape).astype(np.float32)
    return np.clip(out, 0, 255).astype(np.uint8)


def random_view(picture: Picture, side: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A random crop, zoom and flip whose long side is ``side`` pixels, as SAM's preprocessing would see it.

    Returns:
        image uint8 [h, w, 3], instance uint8 [h, w], part uint8 [h, w], with max(h, w) == side.
    """
    height, width = picture.instance.shape
    aspect = (4 / 3, 4 / 3, 4 / 3, 16 / 9, 1.0, 9 / 16, 3 / 4)[rng.integers(7)]
    zoom = rng.uniform(0.45, 1.0) if rng.random() < 0.6 else 1.0
    crop_w = min(width, height * aspect) * zoom
    crop_h = crop_w / aspect
    x0, y0 = rng.uniform(0, width - crop_w), rng.uniform(0, height - crop_h)
    out_w, out_h = (side, round(side / aspect)) if aspect >= 1 else (round(side * aspect), side)
    scale_x, scale_y = out_w / crop_w, out_h / crop_h
    matrix = np.array([[scale_x, 0, -x0 * scale_x], [0, scale_y, -y0 * scale_y]])
    if rng.random() < 0.5:
        matrix = np.array([[-1, 0, out_w - 1], [0, 1, 0]]) @ np.vstack([matrix, [0, 0, 1]])
    smooth = cv2.INTER_AREA if scale_x < 0.8 else cv2.INTER_LINEAR
    image = cv2.warpAffine(picture.image, matrix, (out_w, out_h), flags=smooth, borderMode=cv2.BORDER_REPLICATE)
    ids = np.dstack([picture.instance, picture.part])
    ids = cv2.warpAffine(ids, matrix, (out_w, out_h), flags=cv2.INTER_NEAREST, borderMode=cv2.BORDER_REPLICATE)
    return image, ids[..., 0], ids[..., 1]


def same_colour_region(image: np.ndarray, inside: np.ndarray, x: int, y: int, tolerance: int = 10) -> np.ndarray:
    """The smoothly coloured region around a pixel, kept inside a mask: our notion of a sub-part (bool [h, w])."""
    flood = np.where(inside, 0, 1).astype(np.uint8)
    flood = cv2.copyMakeBorder(flood, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=1)
    spread = (tolerance,) * 3
    cv2.floodFill(image, flood, (x, y), 0, spread, spread, 4 | (2 << 8) | cv2.FLOODFILL_MASK_ONLY)
    return flood[1:-1, 1:-1] == 2
