"""Trained runs on disk: finding, opening and describing them. The one place where a run's config is loaded as code."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING

from maskfield_ns.errors import CheckpointError, MaskfieldError

if TYPE_CHECKING:
    from nerfstudio.engine.trainer import TrainerConfig
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

    # As trusted as the config is by every nerfstudio command: its format names classes by import path.
    loaded = yaml.load(config.read_text(encoding="utf-8"), Loader=yaml.Loader)
    loaded.pipeline.model.edit_file = str(edit_file.resolve())
    path = config.resolve().parent / EDITED_CONFIG
    temporary = path.parent / f".{secrets.token_hex(8)}.tmp"
    try:
        temporary.write_text(yaml.dump(loaded), encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise MaskfieldError(f"cannot write {path}: {error.strerror or error}") from error
    return path


def open_run(run: Path) -> tuple[Pipeline, Path, int]:
    """Opens a trained run from its own folder, wherever that is now.

    The config names classes by import path and loading it runs their constructors (nerfstudio's format): it is trusted
    like a program, as all nerfstudio commands do.

    Args:
        run: its config.yml, or a folder that holds exactly one.

    Returns:
        (pipeline in evaluation mode, path of the config, training step of the checkpoint).

    Raises:
        CheckpointError: there is no run, no checkpoint, or one of another method or version.
        CaptureError: the capture the run was trained on is gone or broken (its cameras are needed).
    """
    from nerfstudio.utils.eval_utils import eval_setup

    config_path = find_config(run)
    checkpoints = config_path.parent / "nerfstudio_models"
    if not list(checkpoints.glob("step-*.ckpt")):
        raise CheckpointError(f"no checkpoint in {checkpoints}: the training was stopped before its first save")

    def beside_its_config(config: TrainerConfig) -> TrainerConfig:
        # nerfstudio looks below the training's working directory; the run may have moved, or we may be elsewhere.
        config.relative_model_dir = checkpoints.resolve()
        return config

    try:
        _, pipeline, _, step = eval_setup(config_path, test_mode="test", update_config_callback=beside_its_config)
    except MaskfieldError:
        raise
    except Exception as error:  # a foreign or damaged file makes yaml, pickle and torch raise anything
        reason = str(error).partition("\n")[0]  # torch goes on with advice that would be unsafe to follow
        raise CheckpointError(f"cannot open {config_path}: {type(error).__name__}: {reason}") from error
    if not hasattr(pipeline.model, "query_head"):
        raise CheckpointError(f"{config_path} is a run of another method: it has no mask field to query")
    return pipeline, config_path, step
