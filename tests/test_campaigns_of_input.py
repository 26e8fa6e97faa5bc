"""A short run of the campaigns over captures and labels, and that they notice what is wrong."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts" / "campaigns"))

from campaign import Campaign

from maskfield_ns.data.dataparsers import captures as parser
from maskfield_ns.data.dataparsers.scene_frame import SceneFrame, scene_frame


def _campaign(name: str) -> ModuleType:
    """A campaign's module, under a name that no module of the tests has."""
    path = Path(__file__).resolve().parents[1] / "scripts" / "campaigns" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"campaign_{name}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


captures_campaign, labels_campaign = _campaign("captures"), _campaign("labels")


def test_captures_are_refused_in_a_line_or_read_right(tmp_path: Path) -> None:
    campaign = captures_campaign.in_process(Campaign("captures", 80, 20, seed=11), tmp_path / "capture")
    assert campaign.failed == 0, campaign.failures
    assert campaign.tried >= 10 and campaign.refused and campaign.accepted


def test_label_files_are_refused_in_a_line_or_read_right(tmp_path: Path) -> None:
    campaign = labels_campaign.run(Campaign("labels", 100, 10, seed=11), tmp_path / "labels")
    assert campaign.failed == 0, campaign.failures
    assert campaign.tried >= 20 and campaign.refused and campaign.accepted


@pytest.mark.skipif(not hasattr(captures_campaign.os, "fork"), reason="commands are run in forked processes")
def test_a_command_is_tried_from_end_to_end(tmp_path: Path) -> None:
    """A capture that is refused, through the console script's own door."""
    campaign = Campaign("commands", 1, case_seconds=120)
    capture = tmp_path / "case" / "capture"
    meta = captures_campaign.sound(capture)
    meta["k1"] = "abc"
    (capture / "transforms.json").write_text(captures_campaign.json.dumps(meta))
    assert campaign.attempt("k1", lambda: captures_campaign.through_command(capture, "extract")), campaign.failures
    assert campaign.refused == 1


def test_a_wrong_scene_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that centers in float32 loses map coordinates, which is what the campaign is there to notice."""

    def coarse(poses: np.ndarray, *args: object, **more: object) -> SceneFrame:
        return scene_frame(poses.astype(np.float32).astype(np.float64), *args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(parser, "scene_frame", coarse)
    capture = tmp_path / "capture"
    meta = captures_campaign.sound(capture)
    for frame in meta["frames"]:
        for axis, offset in enumerate((552340.0, 4182711.0, 0.0)):
            frame["transform_matrix"][axis][3] += offset
    del meta["ply_file_path"]
    (capture / "transforms.json").write_text(captures_campaign.json.dumps(meta))
    campaign = Campaign("captures", 1)
    assert not campaign.attempt("far", lambda: captures_campaign.check(capture, "maskfield_splat_lite"))
    assert "distances between cameras" in campaign.failures[0]
    monkeypatch.undo()
    assert campaign.attempt("far", lambda: captures_campaign.check(capture, "maskfield_splat_lite")), campaign.failures
    assert torch.get_default_dtype() == torch.float32


def test_colmap_folders_are_refused_in_a_line_or_read_right(tmp_path: Path) -> None:
    campaign = captures_campaign.colmap_folders(Campaign("COLMAP", 40, 10, seed=11), tmp_path / "capture")
    assert campaign.failed == 0, campaign.failures
    assert campaign.tried >= 10 and campaign.refused and campaign.accepted
