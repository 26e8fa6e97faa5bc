"""The mask side of every datamanager: names, the mask cache, and mask targets of the training views."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from jaxtyping import Bool
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.dataparsers.base_dataparser import DataParserConfig
from nerfstudio.data.datasets.base_dataset import InputDataset
from nerfstudio.data.utils.data_utils import get_image_mask_tensor_from_path
from nerfstudio.utils.rich_utils import CONSOLE
from PIL import Image
from torch import Tensor

from maskfield_ns.cache.schema import CACHE_FOLDER
from maskfield_ns.data.capture import CaptureSummary
from maskfield_ns.data.capture_source import named_errors
from maskfield_ns.data.mask_views import MaskTargets, MaskViews, grid_size, reduce_masks
from maskfield_ns.data.random_state import kept_random_state
from maskfield_ns.data.run_info import RunInfo
from maskfield_ns.data.target_files import kept_targets
from maskfield_ns.errors import CacheError, CaptureError
from maskfield_ns.foundation.base import EmbedderConfig, ProposerConfig
from maskfield_ns.foundation.config import TinyClipConfig, TinySamConfig
from maskfield_ns.foundation.registry import PRESET, embedder_config, proposer_config

if TYPE_CHECKING:
    from maskfield_ns.cache.builder import BuildReport
    from maskfield_ns.cache.schema import CacheEntry
    from maskfield_ns.data.dense_maps import DenseMaps
    from maskfield_ns.data.undistortion import Undistortion

_TINY_SAM, _TINY_CLIP = TinySamConfig(), TinyClipConfig()


@dataclass
class MaskSourceConfig:
    """Where masks and embeddings come from, and when they are served."""

    proposer: ProposerConfig = _TINY_SAM
    """What proposes masks."""
    proposer_kind: str = PRESET
    """Another kind of proposer than the method's own, with its default settings: sam, tiny-sam, regions, merged,
    given:PATH (id images or COCO JSON of your own), or one that an installed package adds; preset: the one described
    above."""
    embedder: EmbedderConfig = _TINY_CLIP
    """What embeds masks and phrases."""
    embedder_kind: str = PRESET
    """Another kind of embedder than the method's own, with its default settings: open-clip, tiny-clip, or one that an
    installed package adds; preset: the one described above."""
    cache_dir: Path | None = None
    """Folder of the mask cache, built on first use. None: maskfield_cache inside the capture."""
    mask_start: int = 1100
    """Step from which batches are whole views with mask targets; before it, batches are random pixels with colours."""
    mask_max_side: int = 80
    """Rays along the long side of a view in a mask batch; masks are averaged down to this grid."""
    min_mask_cells: float = 1.0
    """Masks covering less than this many cells of the grid are left out."""
    dense_maps: bool = False
    """Also make a map of embeddings over each training image; switched on for systems that need one."""

    def get_proposer(self) -> ProposerConfig:
        """The proposer in use."""
        return proposer_config(self.proposer_kind, self.proposer)

    def get_embedder(self) -> EmbedderConfig:
        """The embedder in use."""
        return embedder_config(self.embedder_kind, self.embedder)

    def get_cache_dir(self, capture_dir: Path) -> Path:
        """Where the mask cache of a capture is or will be."""
        return self.cache_dir or capture_dir / CACHE_FOLDER

    def cache_fingerprint(self) -> str:
        """What the entries of these models and parameters are filed under."""
        from maskfield_ns.cache.schema import extraction_fingerprint

        return extraction_fingerprint(self.get_proposer().fingerprint(), self.get_embedder().fingerprint())


class MaskDataConfig(Protocol):
    """A datamanager config of nerfstudio that is a :class:`MaskSourceConfig`, too."""

    dataparser: DataParserConfig
    data: Path | None
    camera_res_scale_factor: float
    mask_start: int
    mask_max_side: int
    min_mask_cells: float
    dense_maps: bool

    def get_proposer(self) -> ProposerConfig: ...
    def get_embedder(self) -> EmbedderConfig: ...
    def get_cache_dir(self, capture_dir: Path) -> Path: ...
    def cache_fingerprint(self) -> str: ...
    def use_own_parser(self) -> None: ...
    def check_cameras(self, cameras: Cameras) -> None: ...


class MaskSource:
    """Mixin for a nerfstudio datamanager whose config is a :class:`MaskSourceConfig`.

    Model and evaluation find a :class:`RunInfo` in the train dataset's metadata.
    """

    config: MaskDataConfig
    train_dataset: InputDataset
    eval_dataset: InputDataset
    device: torch.device | str
    info: RunInfo
    eval_undistortions: Sequence[Undistortion | None] = ()
    capture: CaptureSummary | None
    mask_views: MaskViews | None
    _seed: int

    def publish_metadata(self) -> None:
        """Puts what a model needs where nerfstudio hands it over."""
        self.info = RunInfo(
            mask_views=self.mask_views,
            mask_start=self.config.mask_start,
            proposer=self.config.get_proposer(),
            embedder=self.config.get_embedder(),
            capture_dir=self.capture_dir,
            train_image_names=tuple(self.train_view_names),
            eval_image_names=tuple(self._names(self.eval_dataset)),
            eval_undistortions=tuple(self.eval_undistortions),
        )
        self.info.publish(self.train_dataset.metadata)

    def check_views(self) -> None:
        """Raises CaptureError when there is nothing to learn a scene from."""
        if len(self.train_dataset) < 2:
            raise CaptureError(
                f"The training split of {self.capture_dir} has {len(self.train_dataset)} images; a scene needs two."
            )

    # --- names and places ---------------------------------------------------------------------------------------------

    @property
    def capture_dir(self) -> Path:
        """The capture's folder."""
        if self.capture is not None:
            return self.capture.folder
        path = Path(self.get_datapath())  # type: ignore[attr-defined]
        return path.parent if path.is_file() else path

    @property
    def cache_dir(self) -> Path:
        """Where the mask cache is or will be."""
        return self.config.get_cache_dir(self.capture_dir)

    @property
    def train_view_names(self) -> list[str]:
        """Name of each training view, by its index in the train dataset."""
        return self._names(self.train_dataset)

    def eval_image_name(self, image_idx: int) -> str:
        """Name of a held-out image as the capture gives it (``file_path``), also when a downscaled copy is in use."""
        return self._names(self.eval_dataset)[image_idx]

    def _names(self, dataset: InputDataset) -> list[str]:
        given = {} if self.capture is None else dict(zip(self.capture.image_paths, self.capture.names, strict=True))
        return [given.get(path) or cache_name(path, self.capture_dir) for path in dataset.image_filenames]

    def load_mask_views(self) -> MaskViews:
        paths = list(self.train_dataset.image_filenames)
        self._view_sizes = [self.view_size(index) for index in range(len(paths))]
        targets: list[MaskTargets | None] = [None] * len(paths)
        folder = self.cache_dir / self.config.cache_fingerprint()[:12]

        def reduce(index: int, entry: CacheEntry) -> None:
            targets[index] = self._view_targets(index, entry, folder)

        _build_cache(self.config, self.capture_dir, paths, self.device, visit=reduce)
        found = [of_view for of_view in targets if of_view is not None]
        dense = self._dense_maps(paths) if self.config.dense_maps else None
        views = MaskViews(self.train_view_names, found, found[0].embeddings.shape[1], dense)
        if not views.supervised:
            raise CacheError(
                f"No masks were proposed in any of the {len(views)} training images; there is nothing to train a mask "
                "field on. Check the images, or try another proposer (--pipeline.datamanager.proposer-kind)."
            )
        CONSOLE.print(
            f"Mask targets: {views.num_masks} masks in {len(views.supervised)} of {len(views)} views, "
            f"{views.nbytes / 2**20:.0f} MiB."
        )
        return views

    def _dense_maps(self, paths: list[Path]) -> Callable[[int], Tensor]:
        from maskfield_ns.data.dense_maps import on_grid

        maps = _build_dense(self.config, self.capture_dir, paths, self.device)

        def of_view(view: int) -> Tensor:
            grid = grid_size(*self._view_sizes[view], self.config.mask_max_side)
            return on_grid(maps.read(paths[view]), grid, self.train_undistortion(view))

        return of_view

    def train_undistortion(self, index: int) -> Undistortion | None:
        """What was done to the pixels of a training photograph."""
        return None

    def _view_targets(self, index: int, entry: CacheEntry, folder: Path) -> MaskTargets:
        grid, valid = grid_size(*self._view_sizes[index], self.config.mask_max_side), self.valid_pixels(index)
        depends_on = {
            "grid": grid,
            "min_cells": self.config.min_mask_cells,
            "served": self.served_identity(index),
            "valid": None if valid is None else hashlib.sha256(np.packbits(valid).tobytes()).hexdigest(),
        }

        def reduce() -> MaskTargets:
            parts = (self.served(index, mask) for mask in entry.each_mask())
            scores = entry.scores * entry.stability
            return reduce_masks(
                parts, entry.levels, scores, entry.embeddings,
                grid=grid, valid=valid, min_cells=self.config.min_mask_cells,
            )  # fmt: skip

        return kept_targets(folder, entry, depends_on, reduce)

    def served(self, index: int, raster: Bool[np.ndarray, "*n H W"]) -> Bool[np.ndarray, "*n h w"]:
        """Rasters over a training photograph, as the picture that is trained on shows them."""
        return raster

    def served_identity(self, index: int) -> object:
        """What :meth:`served` does to a photograph, as JSON can hold it; None: nothing."""
        return None

    def valid_pixels(self, index: int) -> np.ndarray | None:
        """The capture's own mask of a training image (``mask_path``), bool [H, W]."""
        files = self.train_dataset._dataparser_outputs.mask_filenames
        if files is None:
            return None
        return self.served(index, get_image_mask_tensor_from_path(files[index])[..., 0].numpy())

    def view_size(self, index: int) -> tuple[int, int]:
        """(width, height) of a training picture in camera pixels.

        Taken from the file: with downscaled copies the camera may have been rounded down by a pixel.
        """
        with Image.open(self.train_dataset.image_filenames[index]) as image:
            width, height = image.size
        scale = self.config.camera_res_scale_factor
        return int(width * scale), int(height * scale)

    def mask_view_at(self, step: int) -> int:
        """The view served at a step: shuffled epochs over the views with masks, a function of seed and step alone.

        So a resumed training goes on with the views an uninterrupted one would have seen.
        """
        assert self.mask_views is not None
        return self.turn(step - self.config.mask_start, self.mask_views.supervised)

    def turn(self, step: int, views: Sequence[int]) -> int:
        """Which of some views is up at a step of shuffled epochs: a function of seed and step alone."""
        epoch, position = divmod(step, len(views))
        return views[np.random.default_rng([self._seed, epoch]).permutation(len(views))[position]]


class NoHeldOutViews:
    """Stands where the held-out images would be; says what is wrong when something wants to evaluate on them."""

    def __init__(self, capture: Path):
        self.capture = capture

    def _fail(self) -> CaptureError:
        return CaptureError(
            f"{self.capture} has no held-out images to evaluate on: with fewer than ten images nerfstudio's default "
            'split keeps none. Name some in "val_filenames" and "test_filenames" of transforms.json '
            '(with the rest in "train_filenames") and train again.'
        )

    def __iter__(self) -> Any:
        raise self._fail()

    def __len__(self) -> int:
        raise self._fail()


def extract(config: MaskDataConfig, device: torch.device | str, *, progress: bool = True) -> BuildReport:
    """Build the mask cache that a training with this config will read, ahead of it: training images only.

    Raises:
        CaptureError, CacheError, WeightsError: as the datamanagers.
    """
    config.use_own_parser()
    if config.data is not None:
        config.dataparser.data = Path(config.data)
    outputs = named_errors(config.dataparser.setup()).get_dataparser_outputs(split="train")
    config.check_cameras(outputs.cameras)
    paths = list(outputs.image_filenames)
    data = Path(config.dataparser.data)
    folder = data.parent if data.is_file() else data
    report = _build_cache(config, folder, paths, device, progress)
    if config.dense_maps:
        _build_dense(config, folder, paths, device)
    return report


def cache_name(path: Path, capture_dir: Path) -> str:
    """Name of an image file in the cache: its path in the capture, so that downscaled copies have their own entries."""
    return Path(os.path.relpath(path, capture_dir)).as_posix()


def _build_cache(
    config: MaskDataConfig,
    capture_dir: Path,
    paths: list[Path],
    device: torch.device | str,
    progress: bool = True,
    visit: Callable[[int, CacheEntry], None] | None = None,
) -> BuildReport:
    from maskfield_ns.cache.builder import build_cache

    # A training draws the same random numbers whether the masks were there or had to be made.
    with kept_random_state():
        return build_cache(
            paths,
            [cache_name(path, capture_dir) for path in paths],
            config.get_cache_dir(capture_dir),
            config.get_proposer().deferred(device),
            config.get_embedder().deferred(device),
            progress=progress,
            visit=visit,
        )


def _build_dense(config: MaskDataConfig, capture_dir: Path, paths: list[Path], device: torch.device | str) -> DenseMaps:
    from maskfield_ns.data.dense_maps import DenseMaps

    maps = DenseMaps(config.get_cache_dir(capture_dir), config.get_embedder())
    maps.build(paths, device)
    return maps
