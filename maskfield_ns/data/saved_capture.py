"""Cameras and coordinates of a capture, saved with a run, so that the run opens where the capture is not."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.scene_box import SceneBox
from torch import Tensor, nn

from maskfield_ns.data.run_info import RunInfo
from maskfield_ns.data.seed_points import PRECISE_TRANSFORM
from maskfield_ns.errors import CheckpointError, MaskfieldError
from maskfield_ns.files import read_json, write_json

if TYPE_CHECKING:
    from nerfstudio.engine.trainer import TrainerConfig

FILE_NAME = "capture.json"
"""Beside config.yml."""
VERSION = 1
_CAMERA = ("camera_to_worlds", "fx", "fy", "cx", "cy", "width", "height", "distortion_params", "camera_type")


@dataclass(frozen=True)
class Dataset:
    """What of a nerfstudio dataset is left without its images."""

    cameras: Cameras
    scene_box: SceneBox
    metadata: dict[str, Any]


@dataclass(frozen=True)
class Coordinates:
    """What of a dataparser's outputs is left: capture to scene coordinates."""

    dataparser_transform: Tensor
    dataparser_scale: float
    metadata: dict[str, Any]


@dataclass(frozen=True)
class SavedData:
    """Stands in for a datamanager; there are no images."""

    train_dataset: Dataset
    eval_dataset: Dataset
    train_dataparser_outputs: Coordinates
    info: RunInfo


class SavedPipeline(nn.Module):
    """Stands in for a pipeline: a model that renders and answers, and cannot be trained or evaluated."""

    def __init__(self, model: nn.Module, datamanager: SavedData) -> None:
        super().__init__()
        self._model = model
        self.datamanager = datamanager

    @property
    def model(self) -> Any:
        """The model."""
        return self._model

    def load_pipeline(self, loaded_state: dict[str, Tensor], step: int) -> None:
        """Loads the model's part of a checkpoint; a datamanager's (poses that were refined) is not needed to render."""
        self.model.update_to_step(step)
        prefix, names = "_model.", {name.removeprefix("module."): name for name in loaded_state}
        own = {name[len(prefix) :]: loaded_state[full] for name, full in names.items() if name.startswith(prefix)}
        self.model.load_state_dict(own, strict=True)


def save_capture(datamanager: Any, path: Path) -> None:
    """Writes what a run needs of its capture when it is opened.

    Raises:
        MaskfieldError: the file cannot be written.
    """
    info: RunInfo = datamanager.info
    outputs = getattr(datamanager, "train_dataparser_outputs", None)
    if outputs is None:
        outputs = datamanager.train_dataset._dataparser_outputs
    precise = outputs.metadata.get(PRECISE_TRANSFORM)
    write_json(
        path,
        {
            "format": "maskfield capture",
            "schema_version": VERSION,
            "capture_dir": str(info.capture_dir),
            "transform": outputs.dataparser_transform.tolist(),
            "precise_transform": None if precise is None else [[float(v) for v in row] for row in precise],
            "scale": float(outputs.dataparser_scale),
            "scene_box": datamanager.train_dataset.scene_box.aabb.tolist(),
            "train": {"names": info.train_image_names, **_plain(datamanager.train_dataset.cameras)},
            "eval": {"names": info.eval_image_names, **_plain(datamanager.eval_dataset.cameras)},
        },
    )


def open_saved(config: TrainerConfig, folder: Path, device: torch.device) -> SavedPipeline:
    """A run's pipeline without its capture; the checkpoint is still to be loaded.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    manager: Any = config.pipeline.datamanager
    try:
        data = read_json(folder / FILE_NAME, "what the run saved of its capture")
        if data["schema_version"] != VERSION:
            raise CheckpointError(f"{folder / FILE_NAME} is of another version")
        box = SceneBox(aabb=torch.tensor(data["scene_box"]))
        info = RunInfo(
            embedder=manager.get_embedder(),
            capture_dir=Path(data["capture_dir"]),
            train_image_names=tuple(map(str, data["train"]["names"])),
            eval_image_names=tuple(map(str, data["eval"]["names"])),
        )
        metadata: dict[str, Any] = {}
        info.publish(metadata)
        precise = data["precise_transform"]
        place = {} if precise is None else {PRECISE_TRANSFORM: torch.tensor(precise, dtype=torch.float64).numpy()}
        saved = SavedData(
            Dataset(_cameras(data["train"]), box, metadata),
            Dataset(_cameras(data["eval"]), box, metadata),
            Coordinates(torch.tensor(data["transform"]), float(data["scale"]), place),
            info,
        )
    except CheckpointError:
        raise
    except (KeyError, TypeError, ValueError, RuntimeError, MaskfieldError) as error:
        raise CheckpointError(f"{folder / FILE_NAME} cannot be used: {error}") from error
    model = config.pipeline.model.setup(
        scene_box=box,
        num_train_data=len(saved.train_dataset.cameras),
        metadata=metadata,
        device=device,
        seed_points=None,
    )
    return SavedPipeline(model.to(device), saved)


def _plain(cameras: Cameras) -> dict[str, Any]:
    values = {name: getattr(cameras, name) for name in _CAMERA}
    return {name: None if value is None else value.tolist() for name, value in values.items()}


def _cameras(data: dict[str, Any]) -> Cameras:
    whole = ("width", "height", "camera_type")
    values: dict[str, Any] = {
        name: None if data[name] is None else torch.tensor(data[name], dtype=torch.int64 if name in whole else None)
        for name in _CAMERA
    }
    return Cameras(**values)
