"""Reads captures of nerfstudio's own formats (transforms.json, COLMAP) in place of nerfstudio's readers.

The result is that of nerfstudio's dataparsers, with the differences that users need: everything is checked first, what
is large is subtracted in float64 before anything becomes float32 (georeferenced captures), nothing is asked at a
prompt, and sparse points are read without open3d.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from nerfstudio.cameras.cameras import CAMERA_MODEL_TO_TYPE, Cameras, CameraType
from nerfstudio.data.dataparsers.base_dataparser import DataParser, DataparserOutputs
from nerfstudio.data.dataparsers.colmap_dataparser import ColmapDataParserConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.data.scene_box import SceneBox
from nerfstudio.data.utils import dataparsers_utils as splits
from nerfstudio.utils.rich_utils import CONSOLE

from maskfield_ns import compat
from maskfield_ns.data import colmap
from maskfield_ns.data.capture import CaptureSummary, check_declared, declare
from maskfield_ns.data.dataparsers.scene_frame import scene_frame
from maskfield_ns.data.points import check_points, read_points
from maskfield_ns.data.seed_points import PRECISE_TRANSFORM, Points, seed_points
from maskfield_ns.data.transforms import Declared
from maskfield_ns.errors import BenchmarkError, CaptureError

CaptureConfig = NerfstudioDataParserConfig | ColmapDataParserConfig


def own_parser(config: Any, skip_missing: bool = False) -> Any:
    """A dataparser's config that reads nerfstudio's own formats by :class:`CaptureDataParser`; others as they are."""
    if type(config) not in (NerfstudioDataParserConfig, ColmapDataParserConfig):
        return config
    return replace(config, _target=SkippingParser if skip_missing else CaptureDataParser)


class CaptureDataParser(DataParser):
    """See the module; configured like nerfstudio's ``nerfstudio-data`` or ``colmap``."""

    config: CaptureConfig
    skip_missing = False
    """Whether frames without an image are left out."""
    downscale_factor: int | None = None
    """Set to 1 by nerfstudio's datamanagers where images must not be opened."""
    _capture: CaptureSummary | None = None

    @property
    def capture(self) -> CaptureSummary:
        """The capture, checked once.

        Raises:
            CaptureError: it cannot be used.
        """
        if self._capture is None:
            factor = compat.whole_downscale_factor(self.config.downscale_factor)
            images = self.downscale_factor is None
            self._capture = check_declared(self._declared(), factor, images, self.skip_missing)
        return self._capture

    def _declared(self) -> Declared:
        config = self.config
        if not isinstance(config, ColmapDataParserConfig):
            return declare(Path(config.data))
        data = Path(config.data)
        model = data / config.colmap_path
        if not model.exists():
            found = [place for place in ("sparse/0", "colmap/sparse/0", "sparse") if (data / place).exists()]
            remedy = f"--colmap-path {found[0]}" if found else "--colmap-path for another place"
            raise CaptureError(f"There is no COLMAP model at {model}; set {remedy}.")
        return colmap.declare(
            data,
            model,
            config.images_path.as_posix(),
            config.masks_path.as_posix() if config.masks_path is not None else None,
            config.assume_colmap_world_coordinate_convention,
            keep_order=True,
        )

    def _generate_dataparser_outputs(self, split: str = "train", **kwargs: Any) -> DataparserOutputs:
        capture, config = self.capture, self.config
        if split == "train":
            for note in capture.notes:
                CONSOLE.print(f"[yellow]{note}", soft_wrap=True)
        chosen = self._split(split)
        declared = capture.declared
        own_poses = np.array([frame.pose for frame in capture.frames], np.float64)
        poses, to_scene, scale = scene_frame(own_poses, config, capture.transforms_path, declared.orientation)
        transform = to_scene
        if declared.applied_transform is not None:
            transform = to_scene @ np.vstack([declared.applied_transform, (0, 0, 0, 1)])
        points_scale = scale * (declared.applied_scale or 1.0)  # of points and of the outputs, as in nerfstudio
        metadata: dict[str, Any] = {
            "depth_filenames": None,
            "depth_unit_scale_factor": config.depth_unit_scale_factor,
            PRECISE_TRANSFORM: transform,
        }
        if isinstance(config, NerfstudioDataParserConfig):
            metadata["mask_color"] = config.mask_color
        if config.load_3D_points:
            metadata |= self._points(to_scene, points_scale, quiet=split != "train")
        side = config.scene_scale
        return DataparserOutputs(
            image_filenames=[capture.image_paths[i] for i in chosen],
            cameras=self._cameras(chosen, poses),
            scene_box=SceneBox(aabb=torch.tensor([[-side] * 3, [side] * 3], dtype=torch.float32)),
            mask_filenames=[capture.mask_paths[i] for i in chosen] if capture.mask_paths else None,
            dataparser_scale=points_scale,
            dataparser_transform=torch.from_numpy(transform.astype(np.float32)),
            metadata=metadata,
        )

    # --- cameras ------------------------------------------------------------------------------------------------------

    def _cameras(self, chosen: Int[np.ndarray, " M"], poses: Float[torch.Tensor, "N 3 4"]) -> Cameras:
        capture = self.capture
        rows = []
        for i in chosen:
            frame = capture.frames[i]
            width, height = capture.sizes[i] if capture.sizes else frame.size
            across, down = width / frame.size[0], height / frame.size[1]
            (fx, fy), (cx, cy) = frame.focal, frame.center
            rows.append((fx * across, fy * down, cx * across, cy * down, width, height))
        fx, fy, cx, cy, width, height = torch.tensor(rows, dtype=torch.float64).reshape(-1, 6).T.to(torch.float32)
        model = CAMERA_MODEL_TO_TYPE[capture.declared.camera_model]
        radius = capture.declared.fisheye_crop_radius
        fisheye = model in (CameraType.FISHEYE, CameraType.FISHEYE624) and radius is not None
        distortion = np.array([frame.distortion for frame in capture.frames], np.float32)[chosen]
        return Cameras(
            camera_to_worlds=poses[torch.from_numpy(chosen)],
            fx=fx,
            fy=fy,
            cx=cx,
            cy=cy,
            width=width.to(torch.int32),
            height=height.to(torch.int32),
            distortion_params=torch.from_numpy(distortion),
            camera_type=model,
            metadata={"fisheye_crop_radius": radius} if fisheye else {},
        )

    # --- splits -------------------------------------------------------------------------------------------------------

    def _split(self, split: str) -> Int[np.ndarray, " M"]:
        capture, config = self.capture, self.config
        paths = list(capture.image_paths)
        if capture.splits is not None:
            wanted = set(capture.splits[split])
            return np.array([i for i, name in enumerate(capture.names) if name in wanted], np.int64)
        if config.eval_mode == "fraction":
            if not 0 < config.train_split_fraction <= 1:
                raise CaptureError(f"--train-split-fraction is {config.train_split_fraction}, not in (0, 1].")
            train, held_out = splits.get_train_eval_split_fraction(paths, config.train_split_fraction)
        elif config.eval_mode == "filename":
            train, held_out = self._split_by_name(paths)
        elif config.eval_mode == "interval":
            if config.eval_interval < 1:
                raise CaptureError(f"--eval-interval is {config.eval_interval}, not 1 or more.")
            train, held_out = splits.get_train_eval_split_interval(paths, config.eval_interval)
        else:
            train, held_out = splits.get_train_eval_split_all(paths)
        return np.asarray(train if split == "train" else held_out, np.int64)

    def _split_by_name(self, paths: list[Path]) -> tuple[Any, Any]:
        neither = [path.name for path in paths if "train" not in path.name and "eval" not in path.name]
        if neither:
            raise CaptureError(
                f'With "--eval-mode filename" every image has "train" or "eval" in its file name, but {len(neither)} '
                f"of {len(paths)} have neither ({neither[0]}); rename them, or use another --eval-mode."
            )
        return splits.get_train_eval_split_filename(paths)

    # --- points -------------------------------------------------------------------------------------------------------

    def _points(self, to_scene: Float[np.ndarray, "3 4"], scale: float, quiet: bool) -> dict[str, torch.Tensor]:
        declared = self.capture.declared
        say = (lambda line: None) if quiet else (lambda line: CONSOLE.print(f"[yellow]{line}", soft_wrap=True))
        path = declared.points
        if path is None:
            say("The capture has no sparse points: Gaussians start from random ones.")
            return {}
        if path.suffix == ".ply":
            check_points(path)
            return seed_points(read_points(path), to_scene, scale, str(path), say)
        from maskfield_ns.data.dataparsers import colmap as colmap_model

        try:
            points = colmap_model.read_points(path)
        except BenchmarkError as error:
            raise CaptureError(str(error)) from error
        if points is None:
            say(f"{path} has no sparse points: Gaussians start from random ones.")
            return {}
        return seed_points(_applied(points, declared), to_scene, scale, str(path), say)


class SkippingParser(CaptureDataParser):
    """Leaves out frames whose image does not exist."""

    skip_missing = True


def _applied(points: Points, declared: Declared) -> Points:
    """Points of a COLMAP model in the coordinates of the poses."""
    if declared.applied_transform is None:
        return points
    transform = np.array(declared.applied_transform)
    return points[0] @ transform[:, :3].T + transform[:, 3], points[1]
