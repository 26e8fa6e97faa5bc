"""Trained runs on disk: finding and opening them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from maskfield_ns import checkpoints
from maskfield_ns.errors import CheckpointError, MaskfieldError
from maskfield_ns.files import write_text
from maskfield_ns.run_config import read_config

if TYPE_CHECKING:
    from nerfstudio.pipelines.base_pipeline import Pipeline

CONFIG_NAME = "config.yml"


def find_config(run: Path) -> Path:
    """The config.yml of a run given by file or folder.

    Raises:
        CheckpointError: there is none, or several.
    """
    if run.is_file():
        if run.suffix not in (".yml", ".yaml"):
            raise CheckpointError(f"{run} is no {CONFIG_NAME}: pass the one that ns-train wrote")
        return run
    if not run.exists():
        raise CheckpointError(f"no such run: {run}. Pass the config.yml that ns-train wrote")
    found = sorted(run.rglob(CONFIG_NAME))
    if len(found) != 1:
        what = "no" if not found else f"{len(found)}"
        raise CheckpointError(f"{run} holds {what} {CONFIG_NAME}: pass the path of one run's {CONFIG_NAME}")
    return found[0]


EDITED_CONFIG = "config_edited.yml"
"""The run's config with its edits, for nerfstudio's commands."""


def write_edited_config(config: Path, edit_file: Path) -> Path:
    """A run's config whose model shows an edit file; nerfstudio's commands read configs and nothing else.

    Raises:
        MaskfieldError: it cannot be written.
    """
    import yaml

    loaded = read_config(config)
    loaded.pipeline.model.edit_file = str(edit_file.resolve())  # pyright: ignore[reportAttributeAccessIssue]
    path = config.resolve().parent / EDITED_CONFIG
    write_text(path, yaml.dump(loaded))
    return path


def open_run(run: Path, trust: bool = False) -> tuple[Pipeline, Path, int]:
    """Opens a trained run from its own folder, wherever that is now.

    Args:
        run: its config.yml, or a folder that holds exactly one.
        trust: open it even if its config names more than settings, which runs like a program
            (:func:`maskfield_ns.run_config.read_config`).

    Returns:
        (pipeline in evaluation mode, path of the config, training step of the checkpoint).

    Raises:
        CheckpointError: there is no run, no good checkpoint, or one of another method or version.
        CaptureError: the capture the run was trained on is gone or broken (its cameras are needed).
    """
    import torch
    from nerfstudio.configs.method_configs import all_methods

    config_path = find_config(run)
    # nerfstudio looks below the training's working directory; the run may have moved, or we may be elsewhere.
    folder = config_path.parent.resolve() / "nerfstudio_models"
    if not checkpoints.newest_first(folder):
        raise CheckpointError(f"no checkpoint in {folder}: the training was stopped before its first save")
    config = read_config(config_path, trust)
    if config.method_name not in all_methods:
        raise CheckpointError(f"{config_path} is a run of {config.method_name}, which is not installed")
    try:
        config.pipeline.datamanager._target = all_methods[config.method_name].pipeline.datamanager._target
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        pipeline = config.pipeline.setup(device=device, test_mode="test")
        pipeline.eval()
    except MaskfieldError:
        raise
    except Exception as error:  # settings of another version, or damaged ones, make constructors raise anything
        reason = str(error).partition("\n")[0]
        raise CheckpointError(f"cannot open {config_path}: {type(error).__name__}: {reason}") from error
    if not hasattr(pipeline.model, "query_head"):
        raise CheckpointError(f"{config_path} is a run of another method: it has no mask field to query")
    _, step = checkpoints.load_into(pipeline, folder, config.load_step)
    return pipeline, config_path, step
