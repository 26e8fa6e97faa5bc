"""Makes small nerfstudio captures for tests: a camera on a circle around a red square on a blue ground."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def pose(index: int, count: int) -> list[list[float]]:
    """Camera-to-world matrix on a circle of radius 2, looking at the origin."""
    angle = 2 * np.pi * index / count
    position = np.array([2 * np.cos(angle), 2 * np.sin(angle), 0.5])
    back = position / np.linalg.norm(position)
    right = np.cross([0, 0, 1], back)
    right /= np.linalg.norm(right)
    matrix = np.eye(4)
    matrix[:3] = np.stack([right, np.cross(back, right), back, position], axis=1)
    return matrix.tolist()


def write_image(path: Path, width: int, height: int, mode: str = "RGB") -> None:
    """Blue with a red square in the middle half."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 2] = 200
    pixels[height // 4 : 3 * height // 4, width // 4 : 3 * width // 4] = (220, 30, 30)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).convert(mode).save(path)


def make_capture(
    folder: Path,
    names: Sequence[str] = tuple(f"images/frame_{i:02d}.png" for i in range(8)),
    size: tuple[int, int] = (40, 30),
    *,
    held_out: Sequence[int] | None = (2, 5),
    per_frame: bool = False,
    **extra: Any,
) -> Path:
    """Write a capture; ``held_out`` None leaves the split to nerfstudio, ``extra`` goes into transforms.json."""
    width, height = size
    camera = {"w": width, "h": height, "fl_x": 40.0, "fl_y": 41.0, "cx": width / 2, "cy": height / 2}
    frames: list[dict[str, Any]] = []
    for index, name in enumerate(names):
        write_image(folder / name, width, height)
        frames.append({"file_path": name, "transform_matrix": pose(index, len(names))} | (camera if per_frame else {}))
    meta: dict[str, Any] = {"camera_model": "OPENCV", "frames": frames} | ({} if per_frame else camera)
    if held_out is not None:
        test = [names[i] for i in held_out]
        meta |= {"train_filenames": [name for name in names if name not in test]}
        meta |= {"val_filenames": test, "test_filenames": test}
    write_transforms(folder, meta | extra)
    return folder


def read_transforms(folder: Path) -> dict[str, Any]:
    """The capture's transforms.json."""
    return json.loads((folder / "transforms.json").read_text(encoding="utf-8"))


def write_transforms(folder: Path, meta: dict[str, Any]) -> None:
    """Replace the capture's transforms.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "transforms.json").write_text(json.dumps(meta), encoding="utf-8")
