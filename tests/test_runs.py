"""Runs that were copied, moved, or trained on another system: every command opens their own checkpoint."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path, PurePath
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from captures import make_capture
from runs import small_config, small_splat_config

from maskfield_ns import runs
from maskfield_ns.run_config import read_config
from maskfield_ns.runs import open_run, settle, write_edited_config

pytest_plugins = ("untrained",)


def config_of(tmp_path: Path, data: str | Path, output: str | Path) -> Any:
    config = small_splat_config(Path(data), Path(output), "time", colour_steps=1, mask_steps=1)
    config.pipeline.datamanager.data = Path(data)
    return config


def make_folders(root: Path) -> Path:
    """A capture and a run's folder in one place; returns the latter."""
    (root / "capture").mkdir(parents=True)
    folder = root / "runs" / "test" / "maskfield-splat-lite" / "time"
    folder.mkdir(parents=True)
    return folder


# --- where things are now ---------------------------------------------------------------------------------------------


def test_a_run_in_its_place_is_as_it_was(tmp_path: Path) -> None:
    folder = make_folders(tmp_path)
    config = settle(config_of(tmp_path, tmp_path / "capture", tmp_path / "runs"), folder)
    assert config.get_base_dir() == folder
    assert config.get_checkpoint_dir() == folder / "nerfstudio_models"
    assert config.pipeline.datamanager.data == config.data == tmp_path / "capture"


def test_a_copied_run_is_its_own_and_keeps_its_capture(tmp_path: Path) -> None:
    make_folders(tmp_path / "old")
    (tmp_path / "copy").mkdir()
    config = settle(config_of(tmp_path, tmp_path / "old/capture", tmp_path / "old/runs"), tmp_path / "copy")
    assert config.get_base_dir() == tmp_path / "copy"
    assert config.get_checkpoint_dir() == tmp_path / "copy" / "nerfstudio_models"
    assert config.data == tmp_path / "old" / "capture"


def test_a_capture_moved_together_with_its_run_is_found(tmp_path: Path) -> None:
    folder = make_folders(tmp_path / "new")
    config = settle(config_of(tmp_path, tmp_path / "old/capture", tmp_path / "old/runs"), folder)
    assert config.data == config.pipeline.datamanager.data == tmp_path / "new" / "capture"


def test_relative_paths_are_those_of_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_folders(tmp_path)
    (tmp_path / "elsewhere" / "capture").mkdir(parents=True)  # the same name, another capture
    monkeypatch.chdir(tmp_path / "elsewhere")
    config = settle(config_of(tmp_path, "capture", "runs"), folder)
    assert config.data == tmp_path / "capture"


def test_a_capture_that_is_gone_is_named_as_the_user_knows_it(tmp_path: Path) -> None:
    config = settle(config_of(tmp_path, tmp_path / "gone", tmp_path / "runs"), tmp_path)
    assert config.data == tmp_path / "gone"


def test_edits_of_a_copied_run_are_its_own(tmp_path: Path) -> None:
    for name in ("old", "copy"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "edits.json").write_text("{}")
    config = config_of(tmp_path, tmp_path, tmp_path)
    config.pipeline.model.edit_file = str(tmp_path / "old" / "edits.json")
    assert settle(config, tmp_path / "copy").pipeline.model.edit_file == str(tmp_path / "copy" / "edits.json")


def test_what_a_training_notes_down_holds_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "capture").mkdir()
    monkeypatch.chdir(tmp_path)
    config = config_of(tmp_path, "capture", tmp_path / "runs")
    assert runs.note_data(config)
    assert config.data == config.pipeline.datamanager.data == tmp_path / "capture"
    assert not runs.note_data(config)


def test_a_config_saved_during_training_can_be_opened(tmp_path: Path) -> None:
    """nerfstudio leaves a tensor in the config when it builds a pipeline of rays."""
    config = small_config(make_capture(tmp_path / "capture"), tmp_path / "runs", "time", 1, 1)
    config.pipeline.datamanager.data = config.data
    config.pipeline.setup(device="cpu", test_mode="test")
    sampler = config.pipeline.datamanager.pixel_sampler
    assert isinstance(sampler.is_equirectangular, torch.Tensor)
    runs.save_again(config)
    assert read_config(config.get_base_dir() / "config.yml").method_name == "maskfield-lite"
    assert isinstance(sampler.is_equirectangular, torch.Tensor)


# --- other systems ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["pathlib.WindowsPath", "pathlib.PosixPath", "pathlib._local.PosixPath"])
def test_a_run_trained_on_another_system(tmp_path: Path, kind: str) -> None:
    """Windows' paths cannot be made on Linux, and Python 3.13 calls its own otherwise than 3.12."""
    folder = make_folders(tmp_path / "here")
    config = config_of(tmp_path, tmp_path / "there" / "capture", tmp_path / "there" / "runs")
    text = yaml.dump(config)
    own = "pathlib._local.PosixPath" if "pathlib._local.PosixPath" in text else "pathlib.PosixPath"
    (folder / "config.yml").write_text(text.replace(own, kind), encoding="utf-8")
    read = settle(read_config(folder / "config.yml"), folder)
    assert read.data == tmp_path / "here" / "capture"


def test_drives_of_windows_are_no_obstacle(tmp_path: Path) -> None:
    folder = make_folders(tmp_path)
    text = yaml.dump(config_of(tmp_path, "DATA", "OUTPUT"))
    own = "pathlib._local.PosixPath" if "pathlib._local.PosixPath" in text else "pathlib.PosixPath"
    for name, path in (("DATA", ["C:\\", "Users", "me", "capture"]), ("OUTPUT", ["C:\\", "Users", "me", "runs"])):
        text = text.replace(f"{own}\n- {name}\n", "pathlib.WindowsPath\n" + "".join(f"- {part}\n" for part in path))
    assert "C:\\" in text
    (folder / "config.yml").write_text(text, encoding="utf-8")
    assert settle(read_config(folder / "config.yml"), folder).data == tmp_path / "capture"


# --- opening ----------------------------------------------------------------------------------------------------------


def test_a_copy_opens_its_own_checkpoint(untrained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(untrained_run, tmp_path / "copy")
    monkeypatch.chdir(tmp_path)
    opened = open_run(Path("copy"))
    assert opened.checkpoint.resolve() == tmp_path / "copy" / "nerfstudio_models" / "step-000000001.ckpt"
    assert opened.config.get_base_dir() == tmp_path / "copy"
    assert opened.step == 1


NS_COMMAND = """
import sys
from pathlib import Path
{first}
from nerfstudio.utils.eval_utils import eval_setup
config, pipeline, checkpoint, step = eval_setup(Path(sys.argv[1]), 64, "test", lambda config: config)
print("opened", checkpoint, config.get_base_dir(), config.pipeline.model.eval_num_rays_per_chunk, step)
"""


@pytest.mark.parametrize("first", ["", "import maskfield_ns.configs"])
def test_nerfstudios_commands_open_a_copy_as_ours_do(untrained_run: Path, tmp_path: Path, first: str) -> None:
    """They import eval_setup from a module that imports this plugin; scripts may import the plugin first."""
    shutil.copytree(untrained_run, tmp_path / "copy")
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", NS_COMMAND.format(first=first), "copy/config.yml"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    checkpoint = tmp_path / "copy" / "nerfstudio_models" / "step-000000001.ckpt"
    assert f"opened {checkpoint} {tmp_path / 'copy'} 64 1" in result.stdout


def test_other_methods_are_opened_by_nerfstudio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from maskfield_ns.ns_commands import _EvalUtils

    module = _EvalUtils("module")
    module.__dict__["eval_setup"] = lambda *arguments: ("theirs", *arguments)
    (tmp_path / "config.yml").write_text("!!python/object:nerfstudio.engine.trainer.TrainerConfig\n")
    assert module.eval_setup(tmp_path / "config.yml")[:2] == ("theirs", tmp_path / "config.yml")
    monkeypatch.setattr(runs, "open_run", lambda *_, **__: SimpleNamespace(config=1, pipeline=2, checkpoint=3, step=4))
    (tmp_path / "config.yml").write_text("_target: !!python/name:maskfield_ns.pipeline.MaskfieldPipeline ''\n")
    assert module.eval_setup(tmp_path / "config.yml") == (1, 2, 3, 4)


# --- the edited config ------------------------------------------------------------------------------------------------


def test_the_edited_config_differs_in_one_entry(untrained_run: Path, tmp_path: Path) -> None:
    shutil.copyfile(untrained_run / "config.yml", tmp_path / "config.yml")
    (tmp_path / "edits.json").write_text("{}")
    path = write_edited_config(tmp_path / "config.yml", tmp_path / "edits.json")
    before, after = read_config(tmp_path / "config.yml"), read_config(path)
    assert after.pipeline.model.edit_file == str(tmp_path / "edits.json")  # type: ignore[attr-defined]
    after.pipeline.model.edit_file = None  # type: ignore[attr-defined]
    assert yaml.dump(after) == yaml.dump(before)


def test_the_edited_config_is_written_without_running_the_config(tmp_path: Path) -> None:
    evil = "pipeline:\n  model:\n    edit_file: null\nother: !!python/object/apply:os.mkdir [made]\n"
    (tmp_path / "config.yml").write_text(evil)
    write_edited_config(tmp_path / "config.yml", tmp_path / "edits.json")
    assert "edits.json" in (tmp_path / "config_edited.yml").read_text()
    assert not os.path.exists("made")


def test_found_prefers_what_the_config_says(tmp_path: Path) -> None:
    folder = make_folders(tmp_path / "new")
    (tmp_path / "old" / "capture").mkdir(parents=True)
    trained = PurePath(tmp_path / "old/runs/test/maskfield-splat-lite/time")
    assert runs._found(tmp_path / "old/capture", trained, folder) == tmp_path / "old" / "capture"
