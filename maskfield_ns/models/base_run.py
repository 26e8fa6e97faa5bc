"""Attaching masks to a radiance field that has been trained already, by us or by plain nerfacto or splatfacto."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskfield_ns import checkpoints
from maskfield_ns.errors import CheckpointError
from maskfield_ns.models.queryable import QueryableConfig
from maskfield_ns.run_config import read_config
from maskfield_ns.runs import CHECKPOINTS, find_config, settle

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class BaseRun:
    """A finished training."""

    config_path: Path
    config: Any
    """nerfstudio's TrainerConfig."""
    checkpoint: Path

    def tensors(self) -> dict[str, Tensor]:
        """The model's tensors, on the CPU.

        Raises:
            CheckpointError: the file cannot be read, or is no checkpoint of nerfstudio.
        """
        try:
            state = checkpoints.read(self.checkpoint)["pipeline"]
        except CheckpointError as error:
            raise CheckpointError(f"cannot use the base run's checkpoint {self.checkpoint}: {error}") from error
        prefix = "_model."
        names = {k.removeprefix("module."): v for k, v in state.items()}
        return {k.removeprefix(prefix): v for k, v in names.items() if k.startswith(prefix)}


def open_base_run(path: Path, family: type) -> BaseRun:
    """A run given by its config.yml, its folder, or one of its checkpoints.

    Its config may name nothing but settings (:func:`maskfield_ns.run_config.read_config`).

    Args:
        path: file or folder.
        family: nerfstudio's model config class that the run's must be or derive from.

    Raises:
        CheckpointError: no such run, no checkpoint in it, or of another method.
    """
    checkpoint = path if path.suffix == ".ckpt" else None
    config_path = find_config(path.parent.parent / "config.yml" if checkpoint else path)
    config = settle(read_config(config_path), config_path.resolve().parent)
    model, folder = config.pipeline.model, config_path.parent / CHECKPOINTS
    if not isinstance(model, family):
        wanted = family.__name__.removesuffix("ModelConfig").lower()
        raise CheckpointError(
            f"the base run {config_path} was trained with {config.method_name}; masks of this method can be attached "
            f"to {wanted} and methods derived from it"
        )
    if checkpoint is None:
        if not checkpoints.newest_first(folder):
            raise CheckpointError(f"the base run {config_path} has no checkpoint in {folder}: train it first")
        checkpoint = next(checkpoints.good(folder))
    elif reason := checkpoints.problem(checkpoint):
        raise CheckpointError(f"cannot use the base run's checkpoint {checkpoint}: {reason}")
    return BaseRun(config_path, config, checkpoint)


def adopt_config(pipeline: Any, base: BaseRun) -> None:
    """Makes a pipeline config build the base run's radiance field and see its scene in the same coordinates.

    Everything about masks and queries stays as it is.
    """
    ours, theirs = pipeline.model, base.config.pipeline.model
    own = {f.name for f in fields(QueryableConfig)} | {"_target", "mask_field", "feature_dim", "samples_per_ray"}
    names = {f.name for f in fields(ours)} - own
    for field in fields(theirs):
        if field.name in names:
            setattr(ours, field.name, deepcopy(getattr(theirs, field.name)))
    manager, base_manager = pipeline.datamanager, base.config.pipeline.datamanager
    data = manager.data or base_manager.data or base_manager.dataparser.data
    # Poses are centred and scaled by the dataparser: other settings would put the cameras elsewhere.
    manager.dataparser = deepcopy(base_manager.dataparser)
    manager.data = manager.dataparser.data = Path(data)
    manager.camera_res_scale_factor = base_manager.camera_res_scale_factor


def start_at_mask_stage(trainer: Any, mask_start: int) -> None:
    """Lets a fresh training begin where the colour stage would have ended: the base run stands for it.

    Learning rates of the mask stage are scheduled from there, too.
    """
    if trainer._start_step > 0 or mask_start <= 0:
        return  # resumed: the checkpoint knows where it was
    trainer._start_step = mask_start
    trainer.config.max_num_iterations = max(1, trainer.config.max_num_iterations - mask_start)
    for scheduler in trainer.optimizers.schedulers.values():
        scheduler.last_epoch = mask_start


def copy_tensors(model: Any, tensors: Mapping[str, Tensor], names: Sequence[str]) -> None:
    """Copy some tensors of another run's model into a model, all or none.

    torch's non-strict loading, which nerfstudio falls back to, would pass over missing names without a word.

    Raises:
        CheckpointError: tensors missing or of the wrong shape.
    """
    own = model.state_dict()
    for name in names:
        if name not in tensors:
            raise CheckpointError(
                f"the base run's checkpoint has no {name}: another kind of field, or only one of the two runs was "
                "trained with tiny-cuda-nn (--pipeline.model.implementation)"
            )
        if tensors[name].shape != own[name].shape:
            raise CheckpointError(
                f"{name} is {tuple(tensors[name].shape)} in the base run's checkpoint, not {tuple(own[name].shape)}: "
                "was the run trained on other pictures, or on another split of them?"
            )
    for name in names:
        own[name].copy_(tensors[name])
