"""Small runs for tests: the packaged demo capture made smaller, and the lite methods trained on it in this process."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from maskfield_ns.commands.extract import method_config
from maskfield_ns.foundation.base import ProposerConfig
from maskfield_ns.foundation.config import MergedConfig, RegionsConfig, TinySamConfig
from maskfield_ns.foundation.tiny import packaged_weights

DEMO_CAPTURE = Path(packaged_weights("tiny_clip")).parent / "demo_capture"


def make_small_demo(
    folder: Path,
    frames: int = 14,
    held_out: tuple[int, ...] = (3, 8, 12),
    scale: float = 0.5,
    points: bool = False,
) -> Path:
    """The demo capture with fewer and smaller pictures and labels: neighbouring views, which see the same things.

    With ``points`` its sparse points come along.
    """
    meta = json.loads((DEMO_CAPTURE / "transforms.json").read_text(encoding="utf-8"))
    meta["frames"] = meta["frames"][:frames]
    names = [frame["file_path"] for frame in meta["frames"]]
    test = [names[i] for i in held_out]
    meta["train_filenames"] = [name for name in names if name not in test]
    meta["val_filenames"] = meta["test_filenames"] = test
    meta["w"], meta["h"] = size = round(meta["w"] * scale), round(meta["h"] * scale)
    for key in ("fl_x", "fl_y", "cx", "cy"):
        meta[key] *= scale
    if points:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(DEMO_CAPTURE / meta["ply_file_path"], folder / meta["ply_file_path"])
    else:
        meta.pop("ply_file_path", None)
    for name in names:
        label = Path("gt/instance") / (Path(name).stem + ".png")
        for path, resampling in ((name, Image.Resampling.BOX), (label, Image.Resampling.NEAREST)):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            with Image.open(DEMO_CAPTURE / path) as picture:
                picture.resize(size, resampling).save(folder / path)
    shutil.copyfile(DEMO_CAPTURE / "gt" / "labels.json", folder / "gt" / "labels.json")
    (folder / "transforms.json").write_text(json.dumps(meta), encoding="utf-8")
    return folder


def small_config(capture: Path, output: Path, timestamp: str, colour_steps: int, mask_steps: int) -> Any:
    """maskfield-lite with a schedule for tests, one checkpoint at the end, no viewer."""
    config = method_config("maskfield-lite")
    config.data, config.output_dir, config.experiment_name, config.timestamp = capture, output, "test", timestamp
    config.vis = "tensorboard"
    config.max_num_iterations = colour_steps + mask_steps
    config.steps_per_save = 10**9
    config.pipeline.datamanager.mask_start = colour_steps
    config.pipeline.datamanager.mask_max_side = 32
    config.pipeline.model.cell_resolution = 48  # coarse rays of few views must meet in a cell
    config.pipeline.datamanager.proposer = offline_proposer()
    for group, (start, end) in {
        "proposal_networks": (0, colour_steps),
        "fields": (0, colour_steps),
        "mask_field": (colour_steps, colour_steps + mask_steps),
        "queries": (colour_steps, colour_steps + mask_steps),
    }.items():
        scheduler = config.optimizers[group]["scheduler"]
        scheduler.warmup_steps, scheduler.max_steps = start, end
    return config


def small_splat_config(capture: Path, output: Path, timestamp: str, colour_steps: int, mask_steps: int) -> Any:
    """maskfield-splat-lite with a schedule for tests: densification from the 40th step on, no viewer."""
    config = method_config("maskfield-splat-lite")
    config.data, config.output_dir, config.experiment_name, config.timestamp = capture, output, "test", timestamp
    config.vis = "tensorboard"
    config.max_num_iterations = colour_steps + mask_steps
    config.steps_per_save = 10**9
    config.pipeline.datamanager.mask_start = colour_steps
    config.pipeline.datamanager.mask_max_side = 32
    config.pipeline.datamanager.proposer = offline_proposer()
    model = config.pipeline.model
    model.cell_resolution = 48  # coarse rays of few views must meet in a cell
    model.warmup_length, model.refine_every, model.stop_split_at = 30, 20, colour_steps
    model.num_random, model.num_downscales = 1500, 0
    for group, (start, end) in {
        "means": (0, colour_steps),
        "mask_features": (colour_steps, colour_steps + mask_steps),
        "queries": (colour_steps, colour_steps + mask_steps),
    }.items():
        scheduler = config.optimizers[group]["scheduler"]
        scheduler.warmup_steps, scheduler.max_steps = start, end
    return config


def resave(state: dict[str, Any], path: Path) -> None:
    """Writes a checkpoint that was changed, as if it had been saved so: without the checksum of the old one."""
    import torch

    from maskfield_ns.checkpoints import checksum_path

    torch.save(state, path)
    checksum_path(path).unlink(missing_ok=True)


def offline_proposer() -> ProposerConfig:
    """The embedded SAM with few prompts, and graph-based regions, which need nothing but pixels."""
    if (DEMO_CAPTURE.parent / "tiny_sam.safetensors").is_file():
        return MergedConfig(sam=TinySamConfig(points_per_side=8, crop_n_layers=0))
    return RegionsConfig()


def train(config: Any) -> Path:
    """What ns-train does with a config; returns the path of config.yml."""
    from nerfstudio.scripts.train import main

    main(config)
    return Path(config.get_base_dir()) / "config.yml"


class OpenedFiles:
    """Every file that Python opens while recording is on, in any thread (an audit hook; it cannot be removed)."""

    def __init__(self) -> None:
        self._paths: list[str] | None = None
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple) -> None:
        if event == "open" and self._paths is not None and isinstance(arguments[0], (str, bytes)):
            path = arguments[0]
            self._paths.append(path if isinstance(path, str) else path.decode(errors="replace"))

    @contextmanager
    def record(self) -> Iterator[list[str]]:
        """The list fills while the context lasts."""
        self._paths = paths = []
        try:
            yield paths
        finally:
            self._paths = None
