"""nerfstudio datamanager: colour batches first, then whole views with their cached mask targets."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManager, VanillaDataManagerConfig

from maskfield_ns.data.capture_source import CaptureDataset, CaptureSource, CaptureSourceConfig
from maskfield_ns.data.mask_source import MaskSource, MaskSourceConfig, NoHeldOutViews
from maskfield_ns.data.mask_views import MaskViews, grid_centres


@dataclass
class MaskfieldDataManagerConfig(CaptureSourceConfig, MaskSourceConfig, VanillaDataManagerConfig):
    """Where colours, masks and embeddings come from, and when each is served."""

    _target: type = field(default_factory=lambda: MaskfieldDataManager)
    """Target class to instantiate."""


class MaskfieldDataManager(CaptureSource, MaskSource, VanillaDataManager[CaptureDataset]):
    """Serves random colour pixels up to ``config.mask_start`` and whole views on a coarse ray grid from there on.

    Raises (on construction):
        CaptureError: the capture is missing or broken.
        CacheError: the mask cache cannot be written, read or trusted.
        WeightsError: a foundation model is needed to build the cache and its weights cannot be had.
    """

    config: MaskfieldDataManagerConfig

    def __init__(
        self,
        config: MaskfieldDataManagerConfig,
        device: torch.device | str = "cpu",
        test_mode: Literal["test", "val", "inference"] = "val",
        world_size: int = 1,
        local_rank: int = 0,
        **kwargs: Any,
    ):
        config.use_own_parser()
        self.mask_views: MaskViews | None = None
        # The order of views follows ns-train's --machine.seed, which it has handed to torch by now.
        self._seed = torch.initial_seed() % (1 << 32)
        super().__init__(config, device, test_mode, world_size, local_rank, **kwargs)
        if not self.eval_dataset:
            self.fixed_indices_eval_dataloader = NoHeldOutViews(self.get_datapath())
        self.publish_metadata()

    # --- set-up -------------------------------------------------------------------------------------------------------

    def create_train_dataset(self) -> CaptureDataset:
        dataset = super().create_train_dataset()
        # nerfstudio removes entries from this class-level list, which would reach every dataset of the process.
        dataset.exclude_batch_keys_from_device = list(dataset.exclude_batch_keys_from_device)
        return dataset

    def setup_train(self) -> None:
        """Loads colours, and in training also builds (if need be) and reads the mask cache."""
        self.check_views()
        super().setup_train()
        if self.test_mode == "val":
            self.mask_views = self.load_mask_views()

    # --- batches ------------------------------------------------------------------------------------------------------

    def next_train(self, step: int) -> tuple[RayBundle, dict]:
        """Rays and targets of one training step.

        Before ``mask_start`` nerfstudio's: ``image`` [R, 3], ``indices`` [R, 3]. From it on, the rays of one view's
        grid, row by row, with ``mask_view`` (int64 scalar: index into ``RunInfo.mask_views``) and ``indices``
        [h*w, 3] (view, row, column of the pixel the ray goes through), and no colours.
        """
        if step < self.config.mask_start or self.mask_views is None:
            return super().next_train(step)
        self.train_count += 1
        view = self.mask_view_at(step)
        height, width = self.mask_views[view].grid
        pixels = self._centres(view).to(torch.int64).reshape(height * width, 2)
        indices = torch.cat([torch.full_like(pixels[:, :1], view), pixels], dim=1)
        return self.look(view), {"mask_view": torch.tensor(view), "indices": indices}

    def look(self, view: int) -> RayBundle:
        """Rays through the centres of a training view's grid cells, [h*w] row by row, lens distortion included."""
        cameras = self.train_ray_generator.cameras
        coords = self._centres(view).reshape(-1, 2).to(cameras.device)
        camera_indices = torch.full((len(coords), 1), view, dtype=torch.int64, device=cameras.device)
        return cameras.generate_rays(camera_indices=camera_indices, coords=coords)

    def _centres(self, view: int) -> torch.Tensor:
        assert self.mask_views is not None
        return grid_centres(self.mask_views[view].grid, *self._view_sizes[view])
