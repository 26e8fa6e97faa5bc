"""nerfstudio datamanager of the Gaussian methods: whole undistorted pictures first, then whole views of masks."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.datamanagers.full_images_datamanager import FullImageDatamanager, FullImageDatamanagerConfig

from maskfield_ns.data.capture_source import CaptureDataset, CaptureSource, CaptureSourceConfig
from maskfield_ns.data.mask_source import MaskSource, MaskSourceConfig, NoHeldOutViews
from maskfield_ns.data.mask_views import MaskViews
from maskfield_ns.data.undistortion import Undistortion, check_cameras, mark_fisheyes, undistortions


@dataclass
class MaskfieldSplatDataManagerConfig(CaptureSourceConfig, MaskSourceConfig, FullImageDatamanagerConfig):
    """Where pictures, masks and embeddings come from, and when each is served."""

    _target: type = field(default_factory=lambda: MaskfieldSplatDataManager)
    """Target class to instantiate."""

    def check_cameras(self, cameras: Cameras) -> None:
        """Raises CaptureError for cameras whose images cannot be undistorted to what Gaussians are rendered by."""
        check_cameras(cameras, self.data or self.dataparser.data)


class MaskfieldSplatDataManager(CaptureSource, MaskSource, FullImageDatamanager[CaptureDataset]):
    """Serves whole pictures up to ``config.mask_start`` and views of the mask grid from there on.

    Cached masks are those of the photographs; they are undistorted and cropped as nerfstudio does to the pictures.

    Raises (on construction):
        CaptureError: the capture is missing or broken, or its cameras cannot be undistorted.
        CacheError: the mask cache cannot be written, read or trusted.
        WeightsError: a foundation model is needed to build the cache and its weights cannot be had.
        SplatError: a GPU is to be used and gsplat's kernels cannot be loaded or compiled.
    """

    config: MaskfieldSplatDataManagerConfig

    def __init__(
        self,
        config: MaskfieldSplatDataManagerConfig,
        device: torch.device | str = "cpu",
        test_mode: Literal["test", "val", "inference"] = "val",
        world_size: int = 1,
        local_rank: int = 0,
        **kwargs: Any,
    ):
        if torch.device(device).type == "cuda":
            from maskfield_ns.splatting.gsplat_kernels import load_kernels

            load_kernels()  # now, rather than when masks have been extracted for half an hour
        config.use_own_parser()
        self.mask_views: MaskViews | None = None
        # The order of views follows ns-train's --machine.seed, which it has handed to torch by now.
        self._seed = torch.initial_seed() % (1 << 32)
        self._undistortions: list[Undistortion | None] = []
        self._looks: dict[int, Cameras] = {}
        if test_mode != "val" and hasattr(config.dataparser, "load_3D_points"):
            # Gaussians of an opened run come from its checkpoint: the points that they began as are not read.
            config.dataparser = replace(config.dataparser, load_3D_points=False)
        super().__init__(config, device, test_mode, world_size, local_rank, **kwargs)
        self.publish_metadata()

    # --- set-up -------------------------------------------------------------------------------------------------------

    def create_train_dataset(self) -> CaptureDataset:
        dataset = super().create_train_dataset()
        mark_fisheyes(dataset.cameras)
        # nerfstudio removes entries from this class-level list, which would reach every dataset of the process.
        dataset.exclude_batch_keys_from_device = list(dataset.exclude_batch_keys_from_device)
        # Loading pictures rewrites the cameras in place.
        self._photographed = deepcopy(dataset.cameras)
        return dataset

    def create_eval_dataset(self) -> CaptureDataset:
        dataset = super().create_eval_dataset()
        mark_fisheyes(dataset.cameras)
        self.eval_undistortions = undistortions(dataset.cameras)
        return dataset

    def setup_train(self) -> None:
        """Loads pictures, and in training also builds (if need be) and reads the mask cache."""
        self.check_views()
        super().setup_train()
        if self.test_mode == "val":
            _ = self.cached_train  # rewrites the cameras that mask grids are rendered with
            cameras = self._photographed
            self._undistortions = undistortions(cameras)
            self.mask_views = self.load_mask_views()

    def served(self, index: int, raster: np.ndarray) -> np.ndarray:
        """Rasters over a photograph, undistorted and cropped; what the photograph does not show is False."""
        how = self._undistortions[index]
        return raster if how is None else how.apply(raster, outside=False)

    def served_identity(self, index: int) -> object:
        how = self._undistortions[index]
        return None if how is None else how.lens.identity()

    def train_undistortion(self, index: int) -> Undistortion | None:
        """What was done to the pixels of a training photograph."""
        return self._undistortions[index]

    def view_size(self, index: int) -> tuple[int, int]:
        """(width, height) of an undistorted training picture."""
        cameras = self.train_dataset.cameras
        return int(cameras.width[index].item()), int(cameras.height[index].item())

    @property
    def fixed_indices_eval_dataloader(self) -> Any:
        """Held-out cameras and pictures; an object that says what is wrong when there are none."""
        if not self.eval_dataset:
            return NoHeldOutViews(self.get_datapath())
        return super().fixed_indices_eval_dataloader

    # --- batches ------------------------------------------------------------------------------------------------------

    def next_train(self, step: int) -> tuple[Cameras, dict]:
        """Camera and targets of one training step.

        Before ``mask_start`` a picture: ``image`` [H, W, 3], ``image_idx``. From it on a camera of a view's mask grid
        with ``mask_view`` (int64 scalar: index into ``RunInfo.mask_views``), and no colours.
        """
        if step >= self.config.mask_start and self.mask_views is not None:
            view = self.mask_view_at(step)
            return self.look(view), {"mask_view": torch.tensor(view)}
        index = self.turn(step, range(len(self.train_dataset)))
        # A copy: what a step does to its batch must not reach the cached pictures (nerfstudio#3335).
        data = dict(self.cached_train[index])
        data["image"] = data["image"].to(self.device)
        camera = self.train_cameras[index : index + 1].to(self.device)
        camera.metadata = {**(camera.metadata or {}), "cam_idx": index}
        return camera, data

    def look(self, view: int) -> Cameras:
        """The camera [1] that sees a training view on its mask grid; made once, and on the device from then on."""
        if view not in self._looks:
            self._looks[view] = self._look(view)
        return self._looks[view]

    def _look(self, view: int) -> Cameras:
        assert self.mask_views is not None
        height, width = self.mask_views[view].grid
        camera = self.train_dataset.cameras[view : view + 1].to(self.device)
        across, down = width / camera.width, height / camera.height
        return Cameras(
            camera_to_worlds=camera.camera_to_worlds,
            fx=camera.fx * across,
            fy=camera.fy * down,
            cx=camera.cx * across,
            cy=camera.cy * down,
            width=width,
            height=height,
            camera_type=camera.camera_type,
            metadata={"cam_idx": view},
        )
