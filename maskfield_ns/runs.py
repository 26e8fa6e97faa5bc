"""Trained runs on disk: finding and opening them.

A run is the folder of its config.yml. Whatever the config says of where it was trained, that folder is the run: its
own checkpoint is opened, and what a command writes goes there, after the run has been copied or moved as well.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from maskfield_ns import checkpoints
from maskfield_ns.errors import CaptureError, CheckpointError, MaskfieldError
from maskfield_ns.files import write_text
from maskfield_ns.run_config import read_config

if TYPE_CHECKING:
    from nerfstudio.engine.trainer import TrainerConfig
    from nerfstudio.pipelines.base_pipeline import Pipeline

CONFIG_NAME = "config.yml"
SAVED_CAPTURE = "capture.json"
"""What a run keeps of its capture; see :mod:`maskfield_ns.data.saved_capture`."""
EDITED_CONFIG = "config_edited.yml"
"""The run's config with its edits, for nerfstudio's commands."""
CHECKPOINTS = "nerfstudio_models"
"""Folder of a run's checkpoints, beside its config.yml."""


class OpenedRun(NamedTuple):
    """A run, ready to render."""

    pipeline: Pipeline
    """In evaluation mode, on CUDA where there is one."""
    config_path: Path
    step: int
    """Training step of the checkpoint."""
    config: TrainerConfig
    """As this machine sees it: folders are where they are now."""
    checkpoint: Path


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


def open_run(
    run: Path,
    *,
    trust: bool = False,
    test_mode: Literal["test", "val", "inference"] = "test",
    rays_per_chunk: int | None = None,
    update: Callable[[TrainerConfig], TrainerConfig] | None = None,
    device: str | None = None,
    without_capture: bool = False,
) -> OpenedRun:
    """Opens a trained run from its own folder, wherever that is now.

    Args:
        run: its config.yml, or a folder that holds exactly one.
        trust: open it even if its config names more than settings, which runs like a program
            (:func:`maskfield_ns.run_config.read_config`).
        test_mode: images that are loaded: "test" the held-out ones, "val" those of the validation split, "inference"
            none.
        rays_per_chunk: rays per network pass; None as trained. Radiance fields only.
        update: changes the config before the pipeline is built.
        device: where the model shall be, as torch names it; by default on CUDA where there is one.
        without_capture: where the capture is gone, open the run from what it saved of it: no images, no labels.

    Raises:
        CheckpointError: there is no run, no good checkpoint, or one of another method or version.
        CaptureError: the capture the run was trained on is gone or broken (its cameras are needed).
    """
    config_path = find_config(run)
    folder = config_path.resolve().parent
    if not checkpoints.newest_first(folder / CHECKPOINTS):
        raise CheckpointError(
            f"no checkpoint in {folder / CHECKPOINTS}: the training was stopped before its first save"
        )
    config = settle(read_config(config_path, trust), folder)
    import torch

    from maskfield_ns import compat

    compat.quiet_known_warnings()
    if rays_per_chunk:
        config.pipeline.model.eval_num_rays_per_chunk = rays_per_chunk
    if update is not None:
        config = update(config)
    config.load_dir = folder / CHECKPOINTS
    try:
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        try:
            pipeline: Any = config.pipeline.setup(device=place, test_mode=test_mode)
        except CaptureError:
            if not (without_capture and (folder / SAVED_CAPTURE).is_file()):
                raise
            from maskfield_ns.data.saved_capture import open_saved

            pipeline = open_saved(config, folder, place)
        pipeline.eval()
    except MaskfieldError:
        raise
    except Exception as error:  # settings of another version, or damaged ones, make constructors raise anything
        reason = str(error).partition("\n")[0]
        raise CheckpointError(f"cannot open {config_path}: {type(error).__name__}: {reason}") from error
    if not hasattr(pipeline.model, "query_head"):
        raise CheckpointError(f"{config_path} is a run of another method: it has no mask field to query")
    compat.allow_numpy_scalars_in_checkpoints()
    checkpoint, step = checkpoints.load_into(pipeline, folder / CHECKPOINTS, config.load_step)
    return OpenedRun(pipeline, config_path, step, config, checkpoint)


def as_trained(config: TrainerConfig) -> TrainerConfig:
    """Takes the edits out of a config (``update`` of :func:`open_run`), for a run that another scene takes things from.

    Edits of that run could insert it into itself, and so on without end.
    """
    model: Any = config.pipeline.model
    if hasattr(model, "edit_file"):
        model.edit_file = None
    return config


def is_ours(config_path: Path) -> bool:
    """Whether a config.yml is of a run of this package's methods; nothing of it is loaded.

    Raises:
        CheckpointError: the file cannot be read.
    """
    try:
        return "maskfield_ns." in config_path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise CheckpointError(f"cannot read {config_path}: {error.strerror or error}") from error


# --- where things are now --------------------------------------------------------------------------------------------


def settle(config: TrainerConfig, folder: Path) -> TrainerConfig:
    """Makes a config speak of the folder it lies in now, and find its data from there.

    Data is looked for where the config says it is; then where it lay in relation to the run, as when both were moved
    together, or when paths are relative and this is another working directory.

    Args:
        config: as loaded; changed in place.
        folder: of its config.yml, absolute.
    """
    trained = PurePath(str(config.output_dir), str(config.experiment_name), str(config.method_name), config.timestamp)
    for owner, name in _data_paths(config):
        setattr(owner, name, _found(Path(getattr(owner, name)), trained, folder))
    model: Any = config.pipeline.model
    edits = getattr(model, "edit_file", None)
    if edits and (folder / PurePath(edits).name).is_file():
        model.edit_file = str(folder / PurePath(edits).name)
    config.relative_model_dir = Path(CHECKPOINTS)
    # nerfstudio puts this together from the folder and the names that the training was started with.
    object.__setattr__(config, "get_base_dir", lambda: folder)
    return config


def note_data(config: Any) -> bool:
    """Makes a config name the files of its capture by absolute paths; returns whether any was relative."""
    changed = False
    for owner, name in _data_paths(config):
        path = Path(getattr(owner, name))
        if not path.is_absolute():
            setattr(owner, name, path.resolve())
            changed = True
    return changed


def save_again(config: Any) -> None:
    """Saves the config of a training whose pipeline has been built.

    nerfstudio puts a tensor into it then (which cameras are panoramas), which does not belong into a file of settings
    and is set anew whenever a pipeline is built.
    """
    sampler: Any = getattr(config.pipeline.datamanager, "pixel_sampler", None)
    held = getattr(sampler, "is_equirectangular", None)
    if held is None:
        config.save_config()
        return
    sampler.is_equirectangular = False
    try:
        config.save_config()
    finally:
        sampler.is_equirectangular = held


def _data_paths(config: Any) -> Iterator[tuple[Any, str]]:
    """The places in a config that name files of the capture, where they are set."""
    manager = config.pipeline.datamanager
    parser = getattr(manager, "dataparser", None)
    for owner, name in ((config, "data"), (manager, "data"), (manager, "cache_dir"), (parser, "data")):
        value = getattr(owner, name, None)
        if value is not None and str(value) not in ("", "."):
            yield owner, name


def _found(path: Path, trained: PurePath, folder: Path) -> Path:
    """Where data is now; as it was if it is nowhere, so that errors name what the user knows.

    Args:
        path: as the config has it.
        trained: the run's folder as the config has it.
        folder: the run's folder now.
    """
    candidates = [path]
    if path.is_absolute() == trained.is_absolute():
        beside = Path(os.path.normpath(folder / os.path.relpath(path, trained)))
        candidates.insert(1 if path.is_absolute() else 0, beside)
    return next((candidate.resolve() for candidate in candidates if candidate.exists()), path)


def write_edited_config(config: Path, edit_file: Path) -> Path:
    """A run's config whose model shows an edit file; nerfstudio's commands read configs and nothing else.

    One entry of the document is replaced; nothing in it is constructed.

    Raises:
        CheckpointError: the config is none of ours. MaskfieldError: it cannot be written.
    """
    import yaml

    try:
        document = yaml.compose(config.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        entry = _entry(_entry(_entry(document, "pipeline"), "model"), "edit_file")
    except (OSError, yaml.YAMLError, KeyError) as error:
        raise CheckpointError(f"cannot read {config}: it is no config of a maskfield run ({error})") from error
    entry.tag, entry.value, entry.style = "tag:yaml.org,2002:str", str(edit_file.resolve()), None
    path = config.resolve().parent / EDITED_CONFIG
    write_text(path, yaml.serialize(document))
    return path


def _entry(mapping: Any, name: str) -> Any:
    """The value of a key of a yaml mapping.

    Raises:
        KeyError: there is none.
    """
    pairs = mapping.value if hasattr(mapping, "value") and isinstance(mapping.value, list) else []
    for key, value in pairs:
        if getattr(key, "value", None) == name:
            return value
    raise KeyError(name)
