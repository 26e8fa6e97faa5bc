"""Edits and exports of a trained run of Gaussians through the commands that users type."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from runs import make_small_demo, small_splat_config, train

from maskfield_ns import cli
from maskfield_ns.selection.ply import read_gaussians

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """config.yml of a short training: enough Gaussians, and things to ask for."""
    folder = tmp_path_factory.mktemp("edited")
    capture = make_small_demo(folder / "capture", points=True)
    return train(small_splat_config(capture, folder / "runs", "run", 60, 10))


def call(monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", ["maskfield", *(str(word) for word in words)])
    cli.entrypoint()


def test_export_edit_and_nerfstudios_own_commands(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "out"
    call(monkeypatch, "export", "--load-config", run, "--output", out, "--text", "table", "--mesh")
    scene = read_gaussians(out / "scene.ply")
    boxes = json.loads((out / "boxes.json").read_text())
    assert len(boxes["objects"]) == 1 and boxes["objects"][0]["name"] == "table"
    assert len(read_gaussians(out / "table.ply")["means"]) == boxes["objects"][0]["count"] < len(scene["means"])
    assert json.loads((out / "objects.json").read_text())["objects"]

    call(monkeypatch, "edit", "tint", "--load-config", run, "--text", "table", "--color", 0, 1, 0)
    call(monkeypatch, "edit", "insert", "--load-config", run, "--source", out / "table.ply", "--at", 0, 0, 1)
    printed = capsys.readouterr().out
    assert "config_edited.yml" in printed and '2: insert "table.ply"' in printed
    call(monkeypatch, "edit", "undo", "--load-config", run, "--bake", tmp_path / "baked.ply")
    baked = read_gaussians(tmp_path / "baked.ply")
    np.testing.assert_array_equal(baked["means"], scene["means"])
    assert not np.array_equal(baked["features_dc"], scene["features_dc"])
    assert [p.name for p in run.parent.glob("*.tmp")] == []

    from nerfstudio.scripts.exporter import ExportGaussianSplat
    from nerfstudio.scripts.render import DatasetRender

    ExportGaussianSplat(load_config=run, output_dir=tmp_path / "ns").main()
    theirs = read_gaussians(tmp_path / "ns" / "splat.ply")
    for name, values in theirs.items():
        np.testing.assert_array_equal(values, scene[name])
    pictures = {}
    for name in ("config.yml", "config_edited.yml"):
        config = run.parent / name
        DatasetRender(
            load_config=config, output_path=tmp_path / name, rendered_output_names=["rgb"], image_format="png"
        ).main()
        path = sorted((tmp_path / name).rglob("*.png"))[0]
        with Image.open(path) as picture:
            pictures[name] = np.asarray(picture.convert("RGB")).astype(int)
    plain, edited = pictures["config.yml"], pictures["config_edited.yml"]
    greener = (edited[..., 1] - edited[..., 0]) - (plain[..., 1] - plain[..., 0])
    assert (greener > 40).mean() > 0.1
    assert (np.abs(edited - plain).max(-1) <= 2).mean() > 0.1


def test_query_export(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("--text", "table", "--text", "elephant", "--max-views", 1, "--scale", 0.5)
    call(monkeypatch, "query", "--load-config", run, *words, "--output", tmp_path, "--export", "boxes.json,object.ply")
    assert [thing["name"] for thing in json.loads((tmp_path / "boxes.json").read_text())["objects"]] == ["table"]
    assert len(read_gaussians(tmp_path / "object.ply")["means"]) > 50


@pytest.mark.parametrize(
    "words",
    [
        ("edit", "undo"),
        ("edit", "delete"),
        ("edit", "delete", "--text", "elephant"),
        ("edit", "--action", "delete", "--undo", "--text", "table"),
        ("edit", "tint", "--text", "table"),
        ("export", "--text", "elephant"),
        ("query", "--text", "table", "--export", "../boxes.json"),
        ("query", "--text", "table", "--export", "boxes.txt"),
    ],
)
def test_mistakes_end_in_one_line(
    run: Path, words: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    for name in ("edits.json", "config_edited.yml"):
        (run.parent / name).unlink(missing_ok=True)
    command, *rest = words
    output = [] if command == "edit" else ["--output", tmp_path]
    with pytest.raises(SystemExit) as exit_info:
        call(monkeypatch, command, *rest, "--load-config", run, *output)
    unknown = "elephant" in words
    assert exit_info.value.code == (3 if unknown else 1)
    printed = capsys.readouterr()
    last = (printed.out + printed.err).strip().splitlines()[-1]
    assert ("not found: " in printed.out + printed.err) if unknown else last.startswith("error: ")
    assert not (run.parent / "edits.json").exists()
