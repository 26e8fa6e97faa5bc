"""Selections, measures and edits of a scene whose every part is known, as Gaussians and as a radiance field."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from toy_scene import (
    BALL_CENTRE,
    BALL_RADIUS,
    BOX_CENTRE,
    BOX_SIZE,
    BOX_YAW,
    COLOURS,
    NOTHING_LIKE_IT,
    SCALE,
    TRANSFORM,
    cameras,
    field_scene,
    gaussian_scene,
    look_at,
    surface_points,
)

from maskfield_ns.editing import build, field
from maskfield_ns.errors import EditError, MaskfieldError, QuestionError, SelectionError
from maskfield_ns.runs import OpenedRun
from maskfield_ns.scene import Scene
from maskfield_ns.selection.geometry import Box
from maskfield_ns.selection.ply import read_gaussians, read_ply
from maskfield_ns.selection.selection import GaussianSelection
from maskfield_ns.selection.transform import Similarity, axis_rotation

BALL_VOLUME, BOX_VOLUME = 4 / 3 * np.pi * BALL_RADIUS**3, BOX_SIZE.prod()


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Scene]:
    folder = tmp_path_factory.mktemp("toy")
    return {"gaussians": gaussian_scene(folder), "field": field_scene(folder)}


@pytest.fixture(params=["gaussians", "field"])
def scene(scenes: dict[str, Scene], request: pytest.FixtureRequest) -> Iterator[Scene]:
    chosen = scenes[request.param]
    yield chosen
    chosen.edits = None


@pytest.fixture
def splats(scenes: dict[str, Scene]) -> Iterator[Scene]:
    yield scenes["gaussians"]
    scenes["gaussians"].edits = None


def is_colour(rgb: np.ndarray, name: str) -> np.ndarray:
    """Pixels whose nearest colour (or black) is a thing's."""
    table = np.array([*COLOURS.values(), (0, 0, 0)])
    nearest = np.linalg.norm(rgb[..., None, :] / 255 - table, axis=-1).argmin(-1)
    return nearest == list(COLOURS).index(name)


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return (a & b).sum() / max((a | b).sum(), 1)


# --- selecting --------------------------------------------------------------------------------------------------------


def test_gaussians_of_a_phrase_are_the_things_own(splats: Scene) -> None:
    _, things, _ = surface_points(np.random.default_rng(0))
    for name in ("ball", "box", "ground"):
        selection = splats.select(name)
        assert isinstance(selection, GaussianSelection)
        assert iou(selection.mask, things == name) > 0.98
        assert len(selection.fringe) < 0.05 * selection.mask.sum()


def test_masks_of_a_selection_are_where_the_thing_is(scene: Scene) -> None:
    for name in ("ball", "box"):
        thing = scene.measure(scene.select(name))
        for camera in scene.cameras("test")[1:3]:
            seen = is_colour(scene.render(camera).rgb, name)
            assert iou(thing.mask(camera.camera), seen) > 0.85


def test_crumbs_elsewhere_are_left_out(splats: Scene) -> None:
    """A few Gaussians of the ground with the ball's features, far from it."""
    features = splats.model.gauss_params["mask_features"]
    before = features.detach().clone()
    _, things, _ = surface_points(np.random.default_rng(0))
    wrong = (things == "ground").nonzero()[0][:12]
    try:
        with torch.no_grad():
            features[wrong] = before[0]
        selection = splats.select("ball")
        assert isinstance(selection, GaussianSelection)
        assert not set(wrong) & set(selection.members) and len(selection.members) >= 690
    finally:
        with torch.no_grad():
            features.copy_(before)


def test_pixels_pictures_queries_and_answers_select_the_same(scene: Scene) -> None:
    camera = scene.cameras("test")[2]
    seen = is_colour(scene.render(camera).rgb, "ball")
    row, column = (int(values.mean()) for values in seen.nonzero())
    red = np.full((20, 20, 3), [220, 30, 30], np.uint8)
    (phrase,), (pixel,), (picture,) = (
        scene.query("a ball"),
        scene.query(pixel=(camera, row, column)),
        scene.query(image=red),
    )
    assert phrase.found and pixel.found and picture.found
    assert set(pixel.queries) == set(picture.queries) == set(phrase.queries) == {0, 4, 8}
    masks = [scene.measure(x).mask(camera.camera) for x in (phrase, pixel, picture, scene.select([8]))]
    assert all(iou(mask, masks[0]) > 0.9 for mask in masks)
    view = scene.render(camera, [phrase, pixel])
    assert iou(view.masks["a ball"], seen) > 0.85 and iou(view.masks[pixel.phrase], seen) > 0.85
    assert scene.query(pixel=(camera, row, column), level="part")[0].queries == (4,)


def test_adding_and_removing(scene: Scene) -> None:
    ball, box = scene.select("ball"), scene.select("box")
    camera = scene.cameras("test")[3]
    both = scene.measure(ball | box).mask(camera.camera)
    alone = [scene.measure(s).mask(camera.camera) for s in (ball, box)]
    assert iou(both, alone[0] | alone[1]) > 0.95
    assert iou(scene.measure((ball | box) - ball).mask(camera.camera), alone[1]) > 0.95
    assert len(scene.measure(ball | box).instances()) == 2


def test_what_is_not_there_is_not_found(scene: Scene) -> None:
    (answer,) = scene.query(NOTHING_LIKE_IT)
    assert not answer.found and answer.queries == () and answer.score < 0.1
    with pytest.raises(SelectionError, match=NOTHING_LIKE_IT):
        _ = answer.selection
    (sky,) = scene.query(pixel=(look_sideways(), 0, 0))
    assert not sky.found
    with pytest.raises(SelectionError, match="nothing is there"):
        _ = sky.selection
    for wrong in ({"pixel": (scene.cameras()[0], 48, 0)}, {"pixel": (scene.cameras()[0], 0, -1)}):
        with pytest.raises(SelectionError, match="outside"):
            scene.query(**wrong)
    for ask in (
        lambda: scene.select([99]),
        lambda: scene.select([]),
        lambda: scene.query("ball", level="atom"),  # type: ignore[arg-type]
    ):
        with pytest.raises(SelectionError):
            ask()
    for questions in (
        {},
        {"phrases": "ball", "image": np.zeros((9, 9, 3), np.uint8)},
        {"phrases": []},
        {"phrases": 7},
        {"phrases": ["ball", None]},
        {"phrases": "ball", "negatives": [" "]},
        {"image": np.zeros((2, 2, 3), np.uint8)},
        {"image": np.zeros((20, 20), np.uint8)},
        {"image": np.zeros((20, 20, 3))},
        {"image": "ball.png"},
        {"pixel": (3, 4)},
        {"pixel": ("camera", 3, 4)},
        {"pixel": (scene.cameras()[0], 0.5, 4)},
        {"pixel": (cameras(), 3, 4)},
    ):
        with pytest.raises(QuestionError):
            scene.query(**questions)  # type: ignore[arg-type]


def look_sideways() -> object:
    camera = cameras()[0:1]
    camera.camera_to_worlds[0, :, :3] = torch.eye(3)  # up is along its picture's rows, it looks down: turn it up
    camera.camera_to_worlds[0, :, 1:3] *= -1
    return camera


def test_a_moved_thing_can_be_clicked(scene: Scene) -> None:
    scene.edit("move", scene.select("ball"), translation=(0.0, 0.45, 0.1))
    camera = scene.cameras("test")[2]
    seen = is_colour(scene.render(camera).rgb, "ball")
    (answer,) = scene.query(pixel=(camera, *(int(v.mean()) for v in seen.nonzero())))
    assert set(answer.queries) == {0, 4, 8}
    scene.edit("delete", answer)
    assert is_colour(scene.render(camera).rgb, "ball").sum() <= 0.06 * seen.sum()


def test_objects_are_named(scene: Scene) -> None:
    things = scene.objects(["ball", "box", "ground", NOTHING_LIKE_IT])
    assert [thing.name for thing in things] == ["ground", "box", "ball"]
    assert all(thing.level == "whole" and thing.confidence > 0.9 for thing in things)
    assert [thing.level for thing in scene.objects(["ball", "box"], level="part")].count("part") >= 2
    assert 0.3 < sum(thing.size for thing in things) < 1.2, "shares of images"
    assert scene.measure(scene.select(things[2])).selection.name == "ball"
    with pytest.raises(ValueError, match="vocabulary"):
        scene.objects([])


# --- measuring --------------------------------------------------------------------------------------------------------


def test_boxes_centroids_and_volumes(scene: Scene) -> None:
    ball, box = scene.measure(scene.select("ball")), scene.measure(scene.select("box"))
    np.testing.assert_allclose(box.oriented_box().centre, BOX_CENTRE, atol=0.02)
    np.testing.assert_allclose(np.sort(box.oriented_box().size), np.sort(BOX_SIZE), atol=0.035)
    longest = box.oriented_box().axes[np.argsort(box.oriented_box().size)[1]]
    assert abs(longest @ axis_rotation((0, 0, 1), BOX_YAW)[:, 0]) > np.cos(np.radians(8))
    assert box.oriented_box(upright=False).volume < 1.1 * box.oriented_box().volume
    np.testing.assert_allclose(ball.aligned_box().centre[:2], BALL_CENTRE[:2], atol=0.015)
    np.testing.assert_allclose(ball.aligned_box().size[:2], 2 * BALL_RADIUS, atol=0.03)
    for thing, centre, volume in ((ball, BALL_CENTRE, BALL_VOLUME), (box, BOX_CENTRE, BOX_VOLUME)):
        np.testing.assert_allclose(thing.centroid, centre, atol=0.05)
        # Gaussians on 60-pixel pictures look fatter than they are; a field's depth is exact.
        assert 0.75 < thing.volume / volume < (2.0 if scene.selector.gaussian else 1.25)


def test_measures_in_the_captures_coordinates(scene: Scene) -> None:
    data = scene.measure(scene.select("box")).to_json()
    there = np.linalg.inv(TRANSFORM[:, :3]) @ (BOX_CENTRE / SCALE - TRANSFORM[:, 3])
    np.testing.assert_allclose(data["capture"]["oriented_box"]["centre"], there, atol=0.04)
    np.testing.assert_allclose(np.sort(data["capture"]["oriented_box"]["size"]), np.sort(BOX_SIZE) / SCALE, atol=0.07)
    assert data["capture"]["volume"] == pytest.approx(data["scene"]["volume"] / SCALE**3)
    assert len(data["instances"]) == 1 and data["name"] == "box"


def test_a_mesh_is_closed_and_as_large_as_the_thing(scene: Scene, tmp_path: Path) -> None:
    trimesh = pytest.importorskip("trimesh")
    thing = scene.measure(scene.select("ball"))
    assert scene.export(tmp_path / "ball_mesh.ply", thing.selection) > 100
    mesh = trimesh.load(tmp_path / "ball_mesh.ply")
    assert mesh.is_watertight and mesh.volume == pytest.approx(thing.volume, rel=0.25)
    assert np.median(mesh.visual.vertex_colors[:, 0]) > 2 * np.median(mesh.visual.vertex_colors[:, 2])


# --- editing ----------------------------------------------------------------------------------------------------------


def pictures(scene: Scene, views: tuple[int, ...] = (1, 2)) -> list[np.ndarray]:
    return [scene.render(scene.cameras("test")[view]).rgb for view in views]


def test_deleting_extracting_and_undoing(scene: Scene) -> None:
    before = pictures(scene)
    ball = scene.select("ball")
    scene.edit("delete", ball)
    for was, now in zip(before, pictures(scene), strict=True):
        gone = is_colour(was, "ball")
        assert is_colour(now, "ball").sum() <= 0.06 * gone.sum()
        assert np.abs(now.astype(int) - was)[is_colour(was, "box")].mean() < 3
    scene.undo()
    scene.edit("extract", ball)
    for was, now in zip(before, pictures(scene), strict=True):
        assert iou(is_colour(now, "ball"), is_colour(was, "ball")) > 0.8
        assert not is_colour(now, "box").any() and is_colour(now, "ground").mean() < 0.03
    scene.undo()
    assert scene.model.edits is None
    for was, now in zip(before, pictures(scene), strict=True):
        np.testing.assert_array_equal(was, now)


def test_tinting_changes_only_the_thing(scene: Scene) -> None:
    before = pictures(scene)
    scene.edit("tint", scene.select("ball"), colour=(0, 1, 0), strength=1.0)
    for was, now in zip(before, pictures(scene), strict=True):
        ball, box = is_colour(was, "ball"), is_colour(was, "box")
        assert (now[ball][:, 1] > now[ball][:, 0] + 20).mean() > 0.9
        assert np.abs(now.astype(int) - was)[box].mean() < 3


def extracted_from(scene: Scene, eye: np.ndarray) -> np.ndarray:
    return scene.render(look_at(eye[None])).rgb.astype(int)


def test_a_moved_thing_looks_as_from_a_camera_moved_back(scene: Scene) -> None:
    """Rotating the extracted box about the scene's axis is the same as walking around it, colours included."""
    box, eye, turn = scene.select("box"), np.array([0.9, -0.5, 0.8]), axis_rotation((0, 0, 1), 35)
    scene.edit("extract", box)
    expected = extracted_from(scene, turn.T @ eye)
    scene.edit("move", box, transform=Similarity(1.0, turn))
    got = extracted_from(scene, eye)
    assert is_colour(expected.astype(np.uint8), "box").sum() > 100
    assert np.abs(got - expected).mean() < 1.0
    scene.undo()
    far = extracted_from(scene, 2 * eye)
    scene.edit("move", box, transform=Similarity(0.5))
    assert np.abs(extracted_from(scene, eye) - far).mean() < 2.5, "half as large is twice as far"


def test_duplicates_stand_where_they_are_put(scene: Scene) -> None:
    ball, place = scene.select("ball"), np.array([-0.2, 0.5, -0.1])
    scene.edit("duplicate", ball, at=place, scale=0.8)
    scene.edit("tint", ball, colour=(0, 1, 0), strength=1.0, copy=1)
    camera = scene.cameras("test")[2]
    rgb = scene.render(camera).rgb.astype(int)
    green = rgb[..., 1] > rgb[..., [0, 2]].max(-1) + 30
    assert green.sum() > 30 and is_colour(rgb.astype(np.uint8), "ball").sum() > 30
    from maskfield_ns.selection.surface_views import project

    middle = torch.tensor([[*place[:2], place[2] + 0.8 * BALL_RADIUS]]).float()
    row, column, _ = (float(v[0]) for v in project(camera.camera, middle))
    assert np.hypot(*(np.mean(green.nonzero(), axis=1) - [row, column])) < 3


def test_depth_and_features_follow_edits(scene: Scene) -> None:
    camera = scene.cameras("test")[2]
    was = scene.render(camera, scene.query("ball"))
    inside = was.masks["ball"]
    scene.edit("delete", scene.select("ball"))
    now = scene.render(camera, scene.query("ball"))
    assert (now.depth[inside] > was.depth[inside] + 0.02).mean() > 0.9
    assert now.masks["ball"].sum() < 0.1 * inside.sum()


def test_training_is_not_touched(scene: Scene) -> None:
    before = {name: tensor.clone() for name, tensor in scene.model.state_dict().items()}
    scene.edit("delete", scene.select("ball"))
    scene.render(scene.cameras("test")[0])
    after = scene.model.state_dict()
    assert set(before) == set(after)
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("explode",), "explode"),
        (("delete",), "selection is missing"),
        (("tint", "ball"), "colour"),
        (("move", "ball"), "where to"),
        (("insert",), "source"),
    ],
)
def test_incomplete_edits_are_refused(scene: Scene, arguments: tuple, says: str) -> None:
    kind, *rest = arguments
    with pytest.raises(EditError, match=says):
        scene.edit(kind, *[scene.select(name) for name in rest])
    assert not scene.edits


def test_a_place_and_a_translation_exclude_each_other(scene: Scene) -> None:
    with pytest.raises(EditError, match="not both"):
        scene.edit("move", scene.select("ball"), at=(0, 0, 0), translation=(0, 0, 1))


def test_edits_of_another_kind_of_scene_are_refused(scenes: dict[str, Scene]) -> None:
    gaussians, field = scenes["gaussians"], scenes["field"]
    for there, here in ((gaussians, field), (field, gaussians)):
        with pytest.raises(EditError, match="other kind"):
            here.edit("delete", there.select("ball"))
    with pytest.raises(EditError, match="can only take"):
        field.edit("insert", source="a.ply")
    stale = GaussianSelection("old", np.array([1]), np.zeros(0, np.int64), 5)
    with pytest.raises(EditError, match="5 Gaussians"):
        gaussians.edit("delete", stale)


def test_edits_end_when_a_training_changes_the_gaussians(splats: Scene) -> None:
    """Not with an error: that would end the viewer's render thread."""
    scene = gaussian_scene(splats.config_path.parent)
    before = scene.render(scene.cameras("test")[1]).rgb
    scene.edit("delete", scene.select("ball"))
    fewer = {name: tensor.detach()[:-5] for name, tensor in scene.model.gauss_params.items()}
    scene.model.load_gaussians(fewer)
    assert np.abs(scene.render(scene.cameras("test")[1]).rgb.astype(int) - before).mean() < 3


# --- exporting and composing ------------------------------------------------------------------------------------------


def test_exported_gaussians_carry_their_query(splats: Scene, tmp_path: Path) -> None:
    _, things, _ = surface_points(np.random.default_rng(0))
    assert splats.export(tmp_path / "scene.ply") == len(things)
    read = read_gaussians(tmp_path / "scene.ply")
    expected = np.select([things == "ball", things == "box"], [8, 9], 10)
    np.testing.assert_array_equal(read["instance"], expected)
    np.testing.assert_allclose(read["means"], splats.model.gauss_params["means"].detach().numpy())
    ball = splats.select("ball")
    assert splats.export(tmp_path / "ball.ply", ball, frame="capture") == len(ball.members)
    there = np.linalg.inv(TRANSFORM[:, :3]) @ (BALL_CENTRE / SCALE - TRANSFORM[:, 3])
    means = read_gaussians(tmp_path / "ball.ply")["means"]
    np.testing.assert_allclose((means.min(0) + means.max(0)) / 2, there, atol=0.02)
    np.testing.assert_allclose(np.ptp(means, axis=0), 2 * BALL_RADIUS / SCALE, atol=0.05)


def test_fields_are_exported_as_points(scenes: dict[str, Scene], tmp_path: Path) -> None:
    scene = scenes["field"]
    assert scene.export(tmp_path / "ball.ply", scene.select("ball")) > 500
    vertex = read_ply(tmp_path / "ball.ply")["vertex"]
    points = np.stack([vertex[k] for k in "xyz"], axis=1)
    assert np.abs(np.linalg.norm(points - BALL_CENTRE, axis=1) - BALL_RADIUS).mean() < 0.02
    with pytest.raises(MaskfieldError, match="cannot be written as Gaussians"):
        scene.export(tmp_path / "scene.ply")
    for name in ("thing.obj", "mesh.ply", "boxes.json"):
        with pytest.raises(MaskfieldError):
            scene.export(tmp_path / name)


def test_baked_edits_look_as_edits_do(splats: Scene, tmp_path: Path) -> None:
    """The baked file, loaded as a scene of its own, against the live edits."""
    ball = splats.select("ball")
    splats.edit("tint", ball, colour=(0, 0.5, 1))
    splats.edit("move", ball, translation=(0, 0.4, 0.1), rotation=50, axis=(1, 0, 0))
    live = pictures(splats)
    count = splats.export(tmp_path / "baked.ply")
    baked = read_gaussians(tmp_path / "baked.ply")
    assert count == len(baked["means"]) == len(splats.model.gauss_params["means"]) - len(ball.fringe)
    assert set(np.unique(baked["instance"])) == {8, 9, 10}
    other = gaussian_scene(tmp_path)
    tensors = {k: torch.from_numpy(v) for k, v in baked.items() if k != "instance"}
    other.model.load_gaussians(tensors)
    for was, now in zip(live, pictures(other), strict=True):
        assert np.abs(was.astype(int) - now).max() <= 1


@pytest.mark.parametrize("degree", [0, 1, 2])
def test_a_thing_of_another_scene_is_put_in(splats: Scene, tmp_path: Path, degree: int) -> None:
    """Export from a scene with other harmonics, insert: as in that scene, extracted and moved."""
    other = gaussian_scene(tmp_path, degree=degree)
    other.export(tmp_path / "box.ply", other.select("box"))
    splats.edit("delete", splats.select("box"))
    splats.edit("insert", source=tmp_path / "box.ply", translation=(-0.1, 0.2, 0))
    assert splats.edits.edits[1].transform is not None
    for view in (1, 2):
        now = splats.render(splats.cameras("test")[view])
        assert is_colour(now.rgb, "box").sum() > 40
    splats.edit("extract", splats.select("ball"))
    assert not is_colour(splats.render(splats.cameras("test")[1]).rgb, "box").any()


def test_a_field_is_put_into_another_one(
    scenes: dict[str, Scene], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    scene = scenes["field"]
    other = field_scene(tmp_path)
    for module in (build, field):
        opened = OpenedRun(other.pipeline, other.config_path, 7, None, other.config_path)  # type: ignore[arg-type]
        monkeypatch.setattr(module, "open_run", lambda run, opened=opened, **_: opened)
    before = is_colour(scene.render(scene.cameras("test")[2]).rgb, "ball").sum()
    scene.edit("insert", other.select("ball"), source=tmp_path / "config.yml", translation=(0.0, 0.5, 0.0))
    try:
        after = is_colour(scene.render(scene.cameras("test")[2]).rgb, "ball").sum()
        assert after > 1.6 * before
    finally:
        scene.edits = None


def test_a_wrong_file_is_not_put_in(splats: Scene, tmp_path: Path) -> None:
    (tmp_path / "a.ply").write_text("ply\n")
    with pytest.raises(MaskfieldError, match=r"a\.ply"):
        splats.edit("insert", source=tmp_path / "a.ply")
    assert not splats.edits


def test_a_box_knows_what_it_holds() -> None:
    box = Box(np.zeros(3), np.array([2.0, 1, 1]), np.eye(3))
    check: Callable = box.holds
    assert check(np.array([[0.9, 0, 0], [1.1, 0, 0]])).tolist() == [True, False]
    assert check(np.array([1.1, 0, 0]), margin=0.2)
