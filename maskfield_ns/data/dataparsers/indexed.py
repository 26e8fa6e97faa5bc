"""Replica and ScanNet: text poses and one class-index picture per frame, as OV-NeRF or Semantic-NeRF package them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Optional

import numpy as np
from nerfstudio.plugins.registry_dataparser import DataParserSpecification

from maskfield_ns.data import layouts
from maskfield_ns.data.dataparsers.common import (
    BenchmarkDataParser,
    BenchmarkDataParserConfig,
    SceneFiles,
    Shot,
    fov_focal,
    image_size,
    opencv_to_opengl,
    read_matrix,
)
from maskfield_ns.errors import BenchmarkError


@dataclass
class ReplicaDataParserConfig(BenchmarkDataParserConfig):
    """Replica, as OV-NeRF or Semantic-NeRF package it."""

    _target: type = field(default_factory=lambda: ReplicaDataParser)
    """Target class to instantiate."""
    data: Path = Path()
    """Folder of one scene, in either packaging. OV-NeRF: rgb_300/, pose_300/*.txt (4x4 camera-to-world, OpenCV axes),
    semantic_300/*.png (class index, 0 = void), intrinsics.txt (at 640x480), classes.txt (line 0 is void; sorted by
    name); every 10th frame tests. Semantic-NeRF: rgb/rgb_N.png, semantic_class/semantic_class_N.png, traj_w_c.txt (a
    4x4 matrix per line), and a classes.txt that you provide; frames 0, 5, 10 ... train and 2, 7, 12 ... test."""
    class_file: Optional[Path] = None  # noqa: UP045 (tyro shows it)
    """Class list, if it is not classes.txt in the scene's folder. Read by evaluation only."""
    blank_competes: bool = True
    """Whether the void class, asked as a single space, takes part in the argmax, as in OV-NeRF's code."""
    templates: Literal["none", "imagenet", "ov-nerf"] = "none"
    """Class names as they are, averaged over OpenAI's 80 ImageNet sentences, or over OV-NeRF's 85, which add five like
    "there is a NAME in the scene."."""
    intrinsics_size: Optional[tuple[int, int]] = None  # noqa: UP045
    """(width, height) that intrinsics.txt is for. None: 640x480 for Replica, 1296x968 for ScanNet."""


@dataclass
class ScanNetOvDataParserConfig(ReplicaDataParserConfig):
    """ScanNet as OV-NeRF packages it."""

    _target: type = field(default_factory=lambda: ScanNetOvDataParser)
    """Target class to instantiate."""
    data: Path = Path()
    """Folder of one scene: rgb/, pose/*.txt (4x4 camera-to-world, OpenCV axes; frames with NaN poses are left out),
    semantic/*.png (class index, 0 = void), intrinsics.txt (at 1296x968), classes.txt (line 0 is void; in the order of
    the file). Every 10th frame tests, the others train."""


class ReplicaDataParser(BenchmarkDataParser):
    """See the config."""

    config: ReplicaDataParserConfig
    protocol = "replica"
    native_size = (640, 480)

    def _read_scene(self) -> SceneFiles:
        data = self.config.data
        scene = layouts.indexed_scene(data)
        poses = _poses(scene)
        intrinsics = self._intrinsics(scene)
        shots = [Shot(frame.image, opencv_to_opengl(poses[frame.name]), **intrinsics) for frame in scene.frames]
        return SceneFiles(
            shots,
            {frame.name: frame.name for frame in scene.frames if frame.test},
            self.config.labels or data,
            held_out=True,
        )

    def _intrinsics(self, scene: layouts.IndexedScene) -> dict[str, Any]:
        if scene.packaging == "semantic-nerf":
            # Rendered with 90 degrees across; (W - 1) / 2 there counts from the middle of the first pixel.
            width, height = image_size(scene.frames[0].image)
            focal = fov_focal(width, 90.0)
            return {"focal": (focal, focal), "centre": (width / 2, height / 2), "size": (width, height)}
        path = scene.folder / "intrinsics.txt"
        matrix = read_matrix(path, [(3, 3), (4, 4), (3, 4)])
        focal, centre = (matrix[0, 0], matrix[1, 1]), (matrix[0, 2], matrix[1, 2])
        if not (np.isfinite([*focal, *centre]).all() and min(focal) > 0):
            raise BenchmarkError(f"{path} is no camera matrix: focal length {focal}, centre {centre}.")
        return {"focal": focal, "centre": centre, "size": self.config.intrinsics_size or self.native_size}

    def _options(self) -> dict[str, Any]:
        return {
            "class_file": str(self.config.class_file) if self.config.class_file else None,
            "blank_competes": self.config.blank_competes,
            "templates": self.config.templates,
        }


class ScanNetOvDataParser(ReplicaDataParser):
    """See the config."""

    protocol = "scannet"
    native_size = (1296, 968)


def _poses(scene: layouts.IndexedScene) -> dict[str, np.ndarray]:
    """Camera-to-world [4, 4] per frame, OpenCV axes; NaN where the file has NaN.

    Raises:
        BenchmarkError: missing or malformed matrices.
    """
    if scene.packaging == "ov-nerf":
        return {frame.name: read_matrix(Path(str(frame.pose)), [(4, 4)]) for frame in scene.frames}
    path = scene.folder / "traj_w_c.txt"
    count = sum(1 for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip())
    needed = max(int(frame.pose) for frame in scene.frames if isinstance(frame.pose, int)) + 1
    if count < needed:
        raise BenchmarkError(f"{path} has {count} poses, but the images go up to number {needed - 1}.")
    lines = read_matrix(path, [(count, 16)])
    return {frame.name: lines[frame.pose].reshape(4, 4) for frame in scene.frames if isinstance(frame.pose, int)}


replica_semantic_data = DataParserSpecification(
    config=ReplicaDataParserConfig(), description="Replica scenes (OV-NeRF or Semantic-NeRF packaging)"
)
scannet_semantic_data = DataParserSpecification(
    config=ScanNetOvDataParserConfig(), description="ScanNet scenes in OV-NeRF's packaging"
)
