"""The trainer: what a failed save does to a training, and what a training is resumed from."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from maskfield_ns import checkpoints, configs
from maskfield_ns.errors import CheckpointError
from maskfield_ns.training import MaskfieldTrainer


def config(folder: Path, **options: Any) -> Any:
    base = SimpleNamespace(device_type="cpu", num_devices=1)
    given: dict[str, Any] = dict.fromkeys(("load_dir", "load_step", "load_checkpoint"))
    given |= {"machine": base, "mixed_precision": False, "use_grad_scaler": False, "start_paused": False}
    given |= {"gradient_accumulation_steps": {}, "save_only_latest_checkpoint": True}
    given |= {"get_base_dir": lambda: folder, "get_checkpoint_dir": lambda: folder / "nerfstudio_models"}
    return SimpleNamespace(**(given | options))


def trainer(folder: Path, **options: Any) -> MaskfieldTrainer:
    made = MaskfieldTrainer(config(folder, **options))
    pipeline: Any = torch.nn.Linear(2, 2)
    pipeline.datamanager = SimpleNamespace()
    optimizers: Any = SimpleNamespace(optimizers={}, schedulers={})
    made.pipeline, made.optimizers = pipeline, optimizers
    return made


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "nerfstudio_models").iterdir())


def test_every_method_trains_with_it() -> None:
    for method in (configs.maskfield, configs.maskfield_lite, configs.maskfield_splat, configs.maskfield_splat_lite):
        assert method.config._target is MaskfieldTrainer


def test_a_save_is_nerfstudios_checkpoint_with_a_checksum(tmp_path: Path) -> None:
    made = trainer(tmp_path)
    for step in (10, 20):
        made.save_checkpoint(step)
        made.save_checkpoint(step)  # as after a last step that was saved already
    assert names(tmp_path) == ["step-000000020.ckpt", "step-000000020.ckpt.sha256"]
    assert set(checkpoints.read(made.checkpoint_dir / "step-000000020.ckpt")) == {
        "step", "pipeline", "optimizers", "schedulers", "scalers"
    }  # fmt: skip


def test_all_checkpoints_stay_if_the_config_says_so(tmp_path: Path) -> None:
    made = trainer(tmp_path, save_only_latest_checkpoint=False)
    for step in (10, 20):
        made.save_checkpoint(step)
    assert [name for name in names(tmp_path) if name.endswith(".ckpt")] == [
        "step-000000010.ckpt",
        "step-000000020.ckpt",
    ]


def test_a_full_disk_ends_no_training_but_the_last_save_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = trainer(tmp_path)
    made.save_checkpoint(10)

    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "flush", full)
    made.save_checkpoint(20)
    said = " ".join(capsys.readouterr().out.split())
    assert "the disk is full; the training goes on, the last checkpoint is" in said and "step-000000010.ckpt" in said
    made.training_state = "completed"
    with pytest.raises(CheckpointError, match=r"disk is full; the last checkpoint is .*010\.ckpt; make room") as caught:
        made.save_checkpoint(30)
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == ["step-000000010.ckpt", "step-000000010.ckpt.sha256"]
    monkeypatch.undo()
    made.save_checkpoint(30)
    assert names(tmp_path) == ["step-000000030.ckpt", "step-000000030.ckpt.sha256"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"load_dir": "nowhere"}, "no folder"),
        ({"load_dir": "nerfstudio_models", "load_step": 7}, "no checkpoint of step 7 .* there are: 10"),
        ({"load_checkpoint": "step-000000011.ckpt"}, "cannot resume from .* no such file"),
        ({"load_checkpoint": "cut.ckpt"}, "cannot resume from .* cut short"),
    ],
)
def test_nothing_to_resume_from_is_said_before_anything_else(tmp_path: Path, options: dict, says: str) -> None:
    trainer(tmp_path).save_checkpoint(10)
    (tmp_path / "cut.ckpt").write_bytes((tmp_path / "nerfstudio_models/step-000000010.ckpt").read_bytes()[:-9])
    paths = {key: tmp_path / value if isinstance(value, str) else value for key, value in options.items()}
    with pytest.raises(CheckpointError, match=says):
        MaskfieldTrainer(config(tmp_path, **paths))


def test_a_training_is_resumed_from_the_newest_good_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = trainer(tmp_path, save_only_latest_checkpoint=False)
    for step in (10, 20):
        with torch.no_grad():
            next(first.pipeline.parameters()).fill_(step)
        first.save_checkpoint(step)
    folder = first.checkpoint_dir
    (folder / "step-000000020.ckpt").write_bytes(b"")
    (folder / "notes").write_text("")
    made = trainer(tmp_path / "second", load_dir=folder)
    made.pipeline.load_pipeline = lambda tensors, step: made.pipeline.load_state_dict(tensors)  # type: ignore
    made.optimizers.load_optimizers = lambda loaded: None  # type: ignore[method-assign]
    made.config.load_scheduler = False
    made._load_checkpoint()
    assert made._start_step == 11 and float(next(made.pipeline.parameters()).detach()[0, 0]) == 10
    assert made.config.load_dir == folder and made.config.load_checkpoint is None
    assert "step-000000020.ckpt is not used" in " ".join(capsys.readouterr().err.split())
