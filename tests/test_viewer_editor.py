"""The panel's edit buttons on a scene whose every part is known: what they do must show in the pictures."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from toy_scene import COLOURS, field_scene, gaussian_scene, surface_points

from maskfield_ns.editing.edits import EditList
from maskfield_ns.scene import Scene
from maskfield_ns.selection.ply import read_gaussians
from maskfield_ns.viewer.cache import KeptView
from maskfield_ns.viewer.editor import SceneEditor
from maskfield_ns.viewer.session import PICTURE, Session


class Desk:
    """A session of a scene, its editor, and one view of it."""

    def __init__(self, scene: Scene, folder: Path) -> None:
        self.scene, self.folder, self.said = scene, folder, [""]
        self.editor = SceneEditor(scene.model, scene.pipeline.datamanager, folder, threading.Lock())
        self.session = Session(scene.model, threading.Lock(), say=self.said.append, editor=self.editor)
        self.session.set(mode="Photo")
        self.camera = scene.cameras("test")[2].camera

    @torch.no_grad()
    def seen(self, thing: str) -> np.ndarray:
        """Pixels of the shown picture that have a thing's colour."""
        shown = self.session.outputs(lambda: self.scene.model.render_view(self.camera), self.camera, None)[PICTURE]
        table = np.array([*COLOURS.values(), (0, 0, 0)])
        nearest = np.linalg.norm(shown.numpy()[..., None, :] - table, axis=-1).argmin(-1)
        return nearest == list(COLOURS).index(thing)

    def view(self) -> KeptView:
        """What the viewer keeps of the view."""
        return self.session.view_of(self.camera)

    def select(self, phrase: str) -> None:
        self.session.ask(phrase)
        self.session.worker.settle()
        self.session.select(self.session.found_objects())

    def do(self, action: str, *arguments: object) -> str:
        getattr(self.session, action)(*arguments)
        self.session.worker.settle()
        return self.said[-1]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Scene]:
    folder = tmp_path_factory.mktemp("toy")
    return {"gaussians": gaussian_scene(folder), "field": field_scene(folder)}


@pytest.fixture(params=["gaussians", "field"])
def desk(scenes: dict[str, Scene], request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Desk]:
    yield Desk(scenes[request.param], tmp_path)
    scenes[request.param].edits = None


@pytest.fixture
def splats(scenes: dict[str, Scene], tmp_path: Path) -> Iterator[Desk]:
    yield Desk(scenes["gaussians"], tmp_path)
    scenes["gaussians"].edits = None


def test_delete_shows_and_can_be_undone(desk: Desk) -> None:
    ball, box = desk.seen("ball"), desk.seen("box")
    assert ball.sum() > 100
    assert "Select something" in desk.do("edit", "delete")
    desk.select("ball")
    assert desk.do("edit", "delete") == "ball: deleted"
    assert desk.seen("ball").sum() <= 0.06 * ball.sum()
    assert (desk.seen("box") ^ box).sum() <= 0.03 * box.sum()
    assert not desk.session.selection
    assert desk.do("undo") == "undone, 0 edits left"
    assert np.array_equal(desk.seen("ball"), ball)
    assert "nothing to undo" in desk.do("undo")


def test_an_edit_after_a_click_keeps_the_piece_that_was_clicked(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ball and box as instances of one query, as two mugs of a set are; a phrase means both, a click one of them."""
    alike(desk.scene, monkeypatch)
    ball, box = desk.seen("ball"), desk.seen("box")
    row, column = (float(values.mean() + 0.5) / size for values, size in zip(ball.nonzero(), ball.shape, strict=True))
    desk.session.click(desk.camera, column, row)
    outlined = desk.session.selection.mask(desk.scene.model.query_head, desk.view().assignments).numpy()
    assert outlined[ball].mean() > 0.9
    desk.do("edit", "delete")
    assert desk.seen("ball").sum() <= 0.06 * ball.sum()
    assert desk.seen("box").sum() >= 0.9 * box.sum(), "the other one stays"
    desk.do("undo")
    desk.select("ball")
    desk.do("edit", "delete")
    assert desk.seen("ball").sum() <= 0.06 * ball.sum() and desk.seen("box").sum() <= 0.15 * box.sum()


def alike(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the box have the ball's mask features."""
    model = scene.model
    if scene.selector.gaussian:
        features = model.gauss_params["mask_features"].detach().clone()
        _, things, _ = surface_points(np.random.default_rng(0))
        features[things == "box"] = features[0].clone()
        monkeypatch.setitem(model.gauss_params, "mask_features", torch.nn.Parameter(features))
    else:
        codes = model.query_head.feature_vectors.detach() / 10
        ball, box = (codes[list(queries)].sum(0) for queries in ((0, 4, 8), (1, 5, 9)))
        forward = model.mask_field.forward

        def same(cube: torch.Tensor) -> torch.Tensor:
            result = forward(cube)
            result[(result == box).all(-1)] = ball
            return result

        monkeypatch.setattr(model.mask_field, "forward", same)


def test_tint_and_extract(desk: Desk) -> None:
    box = desk.seen("box")
    desk.select("box")
    desk.do("edit", "tint", (230, 20, 20))
    assert desk.seen("ball")[box].mean() > 0.8, "the box is red now"
    assert desk.do("edit", "extract").startswith("box: extracted")
    assert desk.seen("ground").sum() <= 0.05 * box.sum()
    assert desk.seen("ball")[box].mean() > 0.8


def test_move_and_duplicate(desk: Desk) -> None:
    ball = desk.seen("ball")
    desk.select("ball")
    assert "say where to" in desk.do("edit", "move", (0.0, 0.0, 0.0), 0.0, 1.0)
    desk.do("edit", "duplicate", (0.0, 0.4, 0.0), 0.0, 1.0)
    assert desk.seen("ball")[ball].mean() > 0.9
    assert 1.5 * ball.sum() < desk.seen("ball").sum() < 3 * ball.sum()
    desk.do("undo")
    desk.do("edit", "move", (0.0, 0.4, 0.0), 90.0, 0.5)
    moved = desk.seen("ball")
    assert moved[ball].mean() < 0.1
    assert 0.1 * ball.sum() < moved.sum() < 0.5 * ball.sum()


def test_saved_edits_are_those_shown(desk: Desk) -> None:
    desk.select("ball")
    desk.do("edit", "move", (0.0, 0.4, 0.0), 0.0, 1.0)
    moved = desk.seen("ball")
    assert str(desk.folder / "edits.json") in desk.do("save_edits")
    desk.scene.edits = None
    desk.scene.edits = EditList.load(desk.folder / "edits.json")
    desk.editor._version += 1  # the scene was changed behind the editor's back
    assert np.array_equal(desk.seen("ball"), moved)


def test_exports_hold_the_selection(desk: Desk) -> None:
    desk.select("ball")
    said = desk.do("export", desk.folder / "out")
    assert str(desk.folder / "out") in said
    content = json.loads((desk.folder / "out" / "boxes.json").read_text())
    assert content["format"] == "maskfield boxes" and content["schema_version"] == 1 and "frames" in content
    (measures,) = content["objects"]
    assert measures["name"] == "ball"
    assert np.allclose(measures["scene"]["centroid"], (-0.25, 0, 0), atol=0.05), measures["scene"]["centroid"]
    assert (desk.folder / "out" / "object.ply").stat().st_size > 1000


def test_uploaded_gaussians_are_inserted(splats: Desk) -> None:
    ball = splats.seen("ball")
    splats.select("ball")
    splats.do("export", splats.folder / "out")
    content = (splats.folder / "out" / "object.ply").read_bytes()
    assert splats.do("insert", content, (0.0, 0.4, 0.0), 0.0, 1.0) == "inserted"
    assert splats.seen("ball").sum() > 1.5 * ball.sum()
    (kept,) = (splats.folder / "maskfield_inserted").iterdir()
    assert len(read_gaussians(kept)["means"]) > 600
    splats.do("save_edits")
    splats.do("undo")
    assert np.array_equal(splats.seen("ball"), ball)


@pytest.mark.parametrize("content", [b"", b"ply\nformat ascii 1.0\nend_header\n", b"\x00" * 100])
def test_what_is_no_ply_is_refused_and_not_kept(splats: Desk, content: bytes) -> None:
    splats.do("insert", content, (0.0, 0.0, 0.0), 0.0, 1.0)
    assert "That did not work" not in splats.said[-1]
    assert splats.said[-1] != "inserted"
    assert not list((splats.folder / "maskfield_inserted").iterdir())
    assert not splats.scene.edits


def test_a_field_takes_no_gaussians(scenes: dict[str, Scene], tmp_path: Path) -> None:
    desk = Desk(scenes["field"], tmp_path)
    assert "takes no Gaussians" in desk.do("insert", b"ply", (0.0, 0.0, 0.0), 0.0, 1.0)
