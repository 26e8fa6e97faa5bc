"""What all benchmark dataparsers share: split, frame of the scene, image sizes, and what evaluation has to know."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Optional

import numpy as np
import torch
from jaxtyping import Float, UInt8
from nerfstudio.cameras.cameras import CAMERA_MODEL_TO_TYPE, Cameras
from nerfstudio.data.dataparsers.base_dataparser import DataParser, DataParserConfig, DataparserOutputs
from nerfstudio.data.scene_box import SceneBox
from nerfstudio.utils.rich_utils import CONSOLE
from PIL import Image

from maskfield_ns.data import layouts
from maskfield_ns.data.dataparsers.scene_frame import scene_frame
from maskfield_ns.data.seed_points import PRECISE_TRANSFORM, seed_points
from maskfield_ns.errors import BenchmarkError
from maskfield_ns.files import atomic_path

MAX_AUTO_SIDE = 1600
"""Long side up to which images are taken as they are when no downscale factor is given, as nerfstudio does."""
_ASPECT_SLACK = 0.03
"""By how much the two axes may be scaled differently: rounding of small downscaled images."""


@dataclass
class BenchmarkDataParserConfig(DataParserConfig):
    """What the benchmark dataparsers have in common."""

    _target: type = field(default_factory=lambda: BenchmarkDataParser)
    """Target class to instantiate."""
    data: Path = Path()
    """Folder of one scene."""
    labels: Optional[Path] = None  # noqa: UP045 (tyro shows it)
    """Folder of the scene's labels, if it is not at its usual place. Read by evaluation only."""
    split: Literal["protocol", "strict"] = "protocol"
    """protocol: train on what the papers train on, which for 3D-OVS, LERF-OVS and Mip-NeRF360 includes the labelled
    views. strict: labelled views are held out."""
    rule: str = "default"
    """Decision rule and averaging for ns-eval; docs/benchmarks.md lists those of each benchmark."""
    downscale_factor: Optional[int] = None  # noqa: UP045
    """Images come from <folder>_<factor>, made on first use (Lanczos) if it is not there. None: as nerfstudio, the
    smallest power of two with which the long side is at most 1600 pixels."""
    orientation_method: Literal["pca", "up", "vertical", "none"] = "up"
    """How the scene is turned."""
    center_method: Literal["poses", "focus", "none"] = "poses"
    """How the scene is centred."""
    auto_scale_poses: bool = True
    """Scale camera positions into a box of +-1."""
    scale_factor: float = 1.0
    """Further factor on camera positions."""
    scene_scale: float = 1.0
    """Half side of the scene box."""


@dataclass
class Shot:
    """One posed image."""

    image: Path
    pose: Float[np.ndarray, "3 4"]
    """Camera-to-world, OpenGL axes (x right, y up, z back)."""
    focal: tuple[float, float]
    """(fx, fy) in pixels of ``size``."""
    centre: tuple[float, float]
    """(cx, cy), with the middle of the first pixel at 0.5."""
    size: tuple[int, int]
    """(width, height) that the intrinsics are for."""
    distortion: tuple[float, ...] = (0.0,) * 6
    """(k1, k2, k3, k4, p1, p2) as nerfstudio has them."""
    camera_model: str = "OPENCV"


@dataclass
class SceneFiles:
    """A scene as found on disk."""

    shots: list[Shot]
    """All posed images, sorted by name."""
    labelled: dict[str, str]
    """Image stem -> name of the labelled view, in the order of evaluation."""
    labels: Path
    held_out: bool
    """Whether the protocol itself keeps the labelled views out of training."""
    points: tuple[Float[np.ndarray, "P 3"], UInt8[np.ndarray, "P 3"]] | None = None
    """Sparse points and their colours, in the poses' world."""
    untrained: frozenset[str] = frozenset()
    """Stems of further images that never train."""
    notes: list[str] = field(default_factory=list)
    """What a user should know about the scene."""


class BenchmarkDataParser(DataParser):
    """Base: sub-classes say what is on disk, this class makes cameras, splits and metadata of it."""

    config: BenchmarkDataParserConfig
    protocol: str = ""
    """Name of the benchmark in the registry of protocols."""

    def _read_scene(self) -> SceneFiles:
        raise NotImplementedError

    def _options(self) -> dict[str, Any]:
        """More that evaluation has to know."""
        return {}

    def _generate_dataparser_outputs(self, split: str = "train", **kwargs: Any) -> DataparserOutputs:
        if not self.config.data.is_dir():
            raise BenchmarkError(f"There is no scene at {self.config.data}; give one scene's folder as --data.")
        try:
            scene = self._read_scene()
        except BenchmarkError as error:
            scenes = layouts.scenes_in(self.config.data)
            if not scenes:
                raise
            raise BenchmarkError(
                f"{self.config.data} is no scene but has {layouts.some([each.name for each in scenes])}; give one "
                f"of them, as --data {scenes[0]}."
            ) from error
        kept = drop_broken_poses(scene)
        train_labelled = self.config.split == "protocol" and not scene.held_out
        stems = {shot.image.stem: shot for shot in kept}
        lost = [view for stem, view in scene.labelled.items() if stem not in stems]
        if len(lost) == len(scene.labelled):
            raise BenchmarkError(f"None of the labelled views of {self.config.data} has a usable camera pose.")
        if split == "train":
            hidden = scene.untrained | (frozenset() if train_labelled else frozenset(scene.labelled))
            chosen = [shot for shot in kept if shot.image.stem not in hidden]
            for note in scene.notes:
                CONSOLE.print(f"[yellow]{self.config.data.name}: {note}")
        else:
            chosen = [stems[stem] for stem in scene.labelled if stem in stems]
        if len(chosen) < (2 if split == "train" else 1):
            raise BenchmarkError(f"The {split} split of {self.config.data} has {len(chosen)} images.")
        own_poses = np.stack([shot.pose for shot in kept]).astype(np.float64)
        poses, to_scene, scale = scene_frame(own_poses, self.config, self.config.data, error=BenchmarkError)
        order = {id(shot): index for index, shot in enumerate(kept)}
        paths, cameras = self._cameras(chosen, poses[[order[id(shot)] for shot in chosen]])
        extent = self.config.scene_scale
        return DataparserOutputs(
            image_filenames=paths,
            cameras=cameras,
            scene_box=SceneBox(aabb=torch.tensor([[-extent] * 3, [extent] * 3], dtype=torch.float32)),
            dataparser_scale=scale,
            dataparser_transform=torch.from_numpy(to_scene.astype(np.float32)),
            metadata=self._seed_points(scene, to_scene, scale, quiet=split != "train")
            | {
                PRECISE_TRANSFORM: to_scene,
                "benchmark": {
                    "protocol": self.protocol,
                    "rule": self.config.rule,
                    "scene": self.config.data.resolve().name,
                    "labels": str(scene.labels),
                    "split": self.config.split,
                    "labelled_views_trained": train_labelled,
                    "views": {stem: view for stem, view in scene.labelled.items() if stem in stems},
                    "views_without_camera": lost,
                    "downscale_factor": self._factor(kept),
                    **self._options(),
                },
            },
        )

    def _seed_points(
        self, scene: SceneFiles, to_scene: Float[np.ndarray, "3 4"], scale: float, quiet: bool
    ) -> dict[str, torch.Tensor]:
        def say(line: str) -> None:
            if not quiet:
                CONSOLE.print(f"[yellow]{line}", soft_wrap=True)

        return seed_points(scene.points, to_scene, scale, f"of {self.config.data}", say, BenchmarkError)

    def _factor(self, shots: Sequence[Shot]) -> int:
        if self.config.downscale_factor is not None:
            if self.config.downscale_factor < 1:
                raise BenchmarkError(f"downscale-factor must be 1 or more, not {self.config.downscale_factor}.")
            return self.config.downscale_factor
        side, factor = max(image_size(shots[0].image)), 1
        while side / factor > MAX_AUTO_SIDE:
            factor *= 2
        return factor

    def _cameras(self, shots: Sequence[Shot], poses: Float[torch.Tensor, "N 3 4"]) -> tuple[list[Path], Cameras]:
        factor = self._factor(shots)
        paths = [shot.image for shot in shots]
        missing = [path for path in paths if not path.is_file()]
        if missing:
            raise BenchmarkError(
                f"{len(missing)} of {len(paths)} images that have a camera do not exist: "
                f"{layouts.some([str(path) for path in missing])}. The scene looks half downloaded."
            )
        if factor > 1:
            paths = downscaled(paths, factor)
        rows = []
        for shot, path in zip(shots, paths, strict=True):
            width, height = image_size(path)
            # Per axis: sizes of downscaled images are rounded, and each folder rounds in its own way.
            across, down = width / shot.size[0], height / shot.size[1]
            if abs(across / down - 1) > _ASPECT_SLACK + 1 / min(width, height):
                raise BenchmarkError(
                    f"{path} is {width}x{height} pixels, but its camera is for {shot.size[0]}x{shot.size[1]}: another "
                    "aspect ratio. Use the images that the poses were made for."
                )
            (fx, fy), (cx, cy) = shot.focal, shot.centre
            rows.append((fx * across, fy * down, cx * across, cy * down, width, height))
        models = {shot.camera_model for shot in shots}
        if len(models) > 1:
            raise BenchmarkError(f"{self.config.data} mixes camera models ({', '.join(sorted(models))}).")
        fx, fy, cx, cy, width, height = torch.tensor(rows, dtype=torch.float64).T.to(torch.float32)
        return paths, Cameras(
            fx=fx,
            fy=fy,
            cx=cx,
            cy=cy,
            width=width.to(torch.int32),
            height=height.to(torch.int32),
            distortion_params=torch.tensor([shot.distortion for shot in shots], dtype=torch.float32),
            camera_to_worlds=poses,
            camera_type=CAMERA_MODEL_TO_TYPE[models.pop()],
        )


def drop_broken_poses(scene: SceneFiles) -> list[Shot]:
    """The shots with finite poses; a note says which are left out.

    Raises:
        BenchmarkError: fewer than two are left.
    """
    kept = [shot for shot in scene.shots if np.isfinite(shot.pose).all()]
    broken = [shot.image.name for shot in scene.shots if not np.isfinite(shot.pose).all()]
    if broken:
        text = f"{len(broken)} of {len(scene.shots)} frames are left out, their poses are NaN or infinite: "
        scene.notes.append(text + layouts.some(broken))
    if len(kept) < 2:
        raise BenchmarkError("fewer than two images have a usable camera pose")
    return kept


def image_size(path: Path) -> tuple[int, int]:
    """(width, height) from the file's header.

    Raises:
        BenchmarkError: missing or no picture.
    """
    try:
        with Image.open(path) as picture:
            return picture.size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise BenchmarkError(f"{path} cannot be read as an image: {error}.") from error


def downscaled(paths: Sequence[Path], factor: int) -> list[Path]:
    """Copies smaller by ``factor`` in ``<folder>_<factor>``; those that are not there are made (Lanczos, PNG).

    Raises:
        BenchmarkError: a copy cannot be read or written.
    """
    result, made = [], 0
    existing: dict[Path, dict[str, Path]] = {}
    for path in paths:
        folder = path.parent.with_name(f"{path.parent.name}_{factor}")
        if folder not in existing:
            files = sorted(folder.iterdir()) if folder.is_dir() else []
            existing[folder] = {each.stem: each for each in files if each.suffix.lower() in layouts.IMAGE_SUFFIXES}
        if path.stem not in existing[folder]:
            if not made:
                CONSOLE.print(f"Making images smaller by {factor} in {folder} ...")
            existing[folder][path.stem] = _shrink(path, folder / f"{path.stem}.png", factor)
            made += 1
        result.append(existing[folder][path.stem])
    return result


def _shrink(path: Path, target: Path, factor: int) -> Path:
    try:
        with atomic_path(target) as temporary, Image.open(path) as picture:
            size = int(picture.width / factor), int(picture.height / factor)
            if min(size) < 1:
                raise BenchmarkError(f"{path} is too small to be made smaller by {factor}.")
            picture.convert("RGB").resize(size, Image.Resampling.LANCZOS).save(temporary, format="PNG")
    except (OSError, SyntaxError, ValueError) as error:
        raise BenchmarkError(
            f"Cannot write {target}, the copy of {path} made smaller by {factor} ({error}). Make the folder writable, "
            "or set --downscale-factor 1."
        ) from error
    return target


def read_matrix(path: Path, shapes: Sequence[tuple[int, int]]) -> Float[np.ndarray, "R C"]:
    """A matrix from a text file; NaN and infinity are values like others here.

    Raises:
        BenchmarkError: missing, not numbers, or another shape than those allowed.
    """
    try:
        values = np.array(path.read_text(encoding="utf-8-sig").replace(",", " ").split(), dtype=np.float64)
    except FileNotFoundError as error:
        raise BenchmarkError(f"There is no {path}.") from error
    except (OSError, ValueError) as error:
        raise BenchmarkError(f"{path} cannot be read as a matrix of numbers: {error}.") from error
    for rows, columns in shapes:
        if values.size == rows * columns:
            return values.reshape(rows, columns)
    wanted = " or ".join(f"{rows}x{columns}" for rows, columns in shapes)
    raise BenchmarkError(f"{path} must hold a matrix of {wanted} numbers, but it holds {values.size}.")


def opencv_to_opengl(pose: Float[np.ndarray, "_ 4"]) -> Float[np.ndarray, "3 4"]:
    """Camera-to-world with y down and z forward, as nerfstudio wants it (y up, z back)."""
    result = np.array(pose[:3], dtype=np.float64)
    result[:, 1:3] *= -1
    return result


def fov_focal(width: int, degrees: float) -> float:
    """Focal length in pixels of a horizontal field of view."""
    return width / (2 * math.tan(math.radians(degrees) / 2))
