"""The examples of docs/python_api.md run as they stand, on both kinds of scene."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from toy_scene import field_scene, gaussian_scene

from maskfield_ns.scene import Scene

PAGE = Path(__file__).parents[1] / "docs" / "python_api.md"


@pytest.mark.parametrize("make", [gaussian_scene, field_scene])
def test_examples_run(
    make: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    scene = make(tmp_path)  # type: ignore[operator]
    monkeypatch.setattr(Scene, "load", classmethod(lambda cls, run: scene))
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    # The page speaks of the demo's objects; the scenes made here have others.
    blocks = [b.replace("duck", "ball").replace("mug", "box").replace('"table"', '"ground"') for b in blocks]
    assert len(blocks) >= 6
    names: dict = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    printed = capsys.readouterr().out
    assert "elephant" in printed and "ball, box without ball" in printed
    assert {path.name for path in (tmp_path / "exported").iterdir()} >= {"ball.ply", "ball_mesh.ply", "ball.json"}
