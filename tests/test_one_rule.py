"""Viewer and API give the same answers on one scene: a made run with the embedded CLIP, opened as users open it."""

from __future__ import annotations

import io
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from made_run import make_run
from nerfstudio.cameras.cameras import Cameras
from PIL import Image
from runs import DEMO_CAPTURE

from maskfield_ns.answers.answer import Chosen
from maskfield_ns.answers.ask import ask
from maskfield_ns.answers.objects import overview_cameras
from maskfield_ns.answers.render import answer_view
from maskfield_ns.data.saved_capture import save_capture
from maskfield_ns.errors import CaptureError, CheckpointError, QuestionError
from maskfield_ns.foundation.vocabulary import calibration_bank
from maskfield_ns.runs import SAVED_CAPTURE
from maskfield_ns.scene import Scene
from maskfield_ns.selection.selection import GaussianSelection
from maskfield_ns.viewer.editor import SceneEditor
from maskfield_ns.viewer.session import Session

PRESENT, ABSENT = {"duck": "yellow rubber duck", "mug": "green mug"}, ("robot", "teddy", "lego")


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return Scene.load(make_run(tmp_path_factory.mktemp("one_rule")))


@pytest.fixture
def session(scene: Scene, tmp_path: Path) -> Session:
    session = Session(scene.model, editor=SceneEditor(scene.model, scene.pipeline.datamanager, tmp_path))
    session.ready = True
    return session


def crop(name: str) -> np.ndarray:
    """The demo capture's photograph that shows most of a label, cut to it."""
    labels = json.loads((DEMO_CAPTURE / "gt" / "labels.json").read_text(encoding="utf-8"))
    number = next(int(key) for key, label in labels.items() if label["name"] == name)
    masks = {path: np.asarray(Image.open(path)) == number for path in sorted((DEMO_CAPTURE / "gt/instance").glob("*"))}
    best = max(masks, key=lambda path: masks[path].sum())
    rows, columns = masks[best].nonzero()
    photograph = next((DEMO_CAPTURE / "images").glob(best.stem + ".*"))
    pixels = np.asarray(Image.open(photograph).convert("RGB"))
    return pixels[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]


def looking() -> Cameras:
    """A camera [1] that sees the table and what is on it."""
    eye = np.array([0.0, -0.9, 0.6])
    back = eye / np.linalg.norm(eye)
    pose = np.stack([(1.0, 0.0, 0.0), np.cross(back, (1.0, 0.0, 0.0)), back, eye], axis=1)
    return Cameras(torch.from_numpy(pose)[None].float(), 150.0, 150.0, 80.0, 60.0, 160, 120)


def members(selection: object) -> np.ndarray:
    assert isinstance(selection, GaussianSelection)
    return selection.members


def test_phrases(scene: Scene, session: Session) -> None:
    phrases = [*PRESENT.values(), "harp", "wooden table"]
    for phrase in phrases:
        (answer,) = scene.query(phrase)
        session.ask(phrase)
        session.worker.settle()
        (shown,) = session.answers()
        assert shown == answer and answer.found == (phrase != "harp")
        (finding,) = session.findings()
        assert (finding.score, finding.found) == (answer.score, answer.found)


@pytest.mark.parametrize("level", [None, 1])
def test_clicks(scene: Scene, session: Session, level: int | None) -> None:
    camera = looking()
    session.set(level=level)
    view = session.view_of(camera)
    height, width = view.assignments.size
    shown = scene.render(camera, scene.query(list(PRESENT.values()))).masks
    for mask in shown.values():
        assert mask.any()
        row, column = (int(np.median(values)) for values in mask.nonzero())
        clicked = session.object_under(view, (column + 0.5) / width, (row + 0.5) / height)
        (answer,) = scene.query(pixel=(camera, row, column), level="auto" if level is None else "part")
        assert answer.found and clicked.queries == answer.queries and clicked.rule == answer.rule
        np.testing.assert_allclose(clicked.places, answer.places, atol=1e-4)
        own = scene.render(camera, [answer]).masks[answer.phrase]
        assert own[row, column], "the clicked pixel is in its mask"
        in_viewer = Chosen.of(clicked).mask(scene.model.query_head, view.assignments).numpy()
        assert (in_viewer != own).mean() < 0.005
        assert session.editor is not None
        np.testing.assert_array_equal(members(session.editor._chosen(Chosen.of(clicked))), members(answer.selection))


def test_images_and_what_no_image_of_the_scene_is(scene: Scene, session: Session) -> None:
    def both(image: np.ndarray) -> bool:
        (answer,) = scene.query(image=image)
        session.ask_patch(image, answer.phrase)
        session.worker.settle()
        assert session.answers() == [answer]
        return answer.found

    camera = looking()
    for name, phrase in PRESENT.items():
        assert both(crop(name)), name
        (answer,) = scene.query(image=crop(name))
        view = scene.render(camera, [answer, *scene.query(phrase)])
        image, text = view.masks[answer.phrase], view.masks[phrase]
        assert (image & text).sum() > 0.8 * (image | text).sum()
    y, x = np.indices((64, 64))
    nothing = {
        "noise": np.random.default_rng(0).integers(0, 256, (64, 64, 3)),
        "gray": np.full((64, 64, 3), 150),
        "dark": np.full((64, 64, 3), 30),
        "checkerboard": np.repeat(((y // 8 + x // 8) % 2 * 255)[..., None], 3, axis=2),
        **{name: crop(name) for name in ABSENT},
    }
    found = [name for name, image in nothing.items() if both(image.astype(np.uint8))]
    assert not found


def test_the_list_of_objects(scene: Scene, session: Session) -> None:
    cameras = overview_cameras(scene.pipeline.datamanager.train_dataset.cameras)
    session.list_objects(cameras)
    session.worker.settle()
    assert list(session.objects) == scene.objects()
    assert {"duck", "desk"} == {listed.name.split()[-1] for listed in session.objects}, "no training view sees the mug"
    session.select_object(session.objects[0])
    assert session.selection.queries == (session.objects[0].query,)


def test_a_question_changes_nothing_that_is_shown(scene: Scene) -> None:
    camera = looking()
    before = scene.model.get_outputs_for_camera(camera)
    scene.query(["duck", "mug"])
    after = scene.model.get_outputs_for_camera(camera)
    assert set(before) == set(after)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_masks_are_those_of_evaluation(scene: Scene) -> None:
    model, phrases = scene.model, [*PRESENT.values(), "harp"]
    camera = looking()
    view = scene.render(camera, scene.query(phrases))
    texts, negatives = model.text(phrases), model.text(model.config.negatives)
    bank = model.text(calibration_bank())
    active = ask(model.query_head, phrases, texts, negatives, model.config.decision, bank)
    features = model.render_view(camera).features
    expected = answer_view(features, model.query_head, active, None, model.config.decision)
    for row, phrase in enumerate(phrases):
        np.testing.assert_array_equal(view.masks[phrase], expected.masks[row])
        np.testing.assert_allclose(view.relevancy[phrase], expected.relevancy[row], atol=1e-5)
    np.testing.assert_array_equal(view.class_map, expected.classes)


def test_a_run_opens_without_its_photographs(scene: Scene, tmp_path: Path) -> None:
    """From what a training saves beside config.yml."""
    run = tmp_path / "run"
    shutil.copytree(scene.config_path.parent, run)
    save_capture(scene.pipeline.datamanager, run / SAVED_CAPTURE)
    text = (run / "config.yml").read_text(encoding="utf-8")
    capture = str(scene.pipeline.datamanager.info.capture_dir)
    assert Path(capture).name in text
    (run / "config.yml").write_text(text.replace(Path(capture).name, "gone"), encoding="utf-8")
    opened = Scene.load(run, device="cpu")
    assert not hasattr(opened.pipeline.datamanager, "train_dataparser_config"), "no datamanager of nerfstudio's"
    assert [c.name for c in opened.cameras("train")] == [c.name for c in scene.cameras("train")]
    np.testing.assert_allclose(opened.frame.scene_to_capture, scene.frame.scene_to_capture, atol=1e-6)
    for split in ("train", "test"):
        for ours, theirs in zip(opened.cameras(split), scene.cameras(split), strict=True):
            assert torch.equal(ours.camera.camera_to_worlds, theirs.camera.camera_to_worlds)
            assert torch.equal(ours.camera.fx, theirs.camera.fx) and torch.equal(ours.camera.width, theirs.camera.width)
    assert opened.query("green mug") == scene.query("green mug")
    np.testing.assert_array_equal(opened.render(looking()).rgb, scene.render(looking()).rgb)
    (run / SAVED_CAPTURE).write_text("{}", encoding="utf-8")
    with pytest.raises(CheckpointError, match="cannot be used"):
        Scene.load(run)
    (run / SAVED_CAPTURE).unlink()
    with pytest.raises(CaptureError):
        Scene.load(run)


def test_a_camera_of_ones_own(scene: Scene) -> None:
    """The same view from a matrix in the capture's coordinates, by COLMAP's axes."""
    expected = looking()
    pose = np.eye(4)
    pose[:3] = expected.camera_to_worlds[0].numpy()
    K = expected.get_intrinsics_matrices()[0].numpy()
    same = scene.camera(K, pose, (160, 120), convention="opengl", frame="scene")
    np.testing.assert_array_equal(scene.render(same).rgb, scene.render(expected).rgb)
    there = np.eye(4)
    there[:3, :3] = scene.frame.directions_to_capture(pose[:3, :3].T).T @ np.diag([1, -1, -1])
    there[:3, 3] = scene.frame.to_capture(pose[:3, 3])
    robot = scene.camera(K, there, (160, 120))
    np.testing.assert_allclose(robot.camera.camera_to_worlds, expected.camera_to_worlds, atol=1e-5)
    for wrong in ((K, there, (160,)), (K[:2], there, (160, 120)), (K, 2 * there, (160, 120)), ("K", there, (160, 120))):
        with pytest.raises(QuestionError):
            scene.camera(*wrong)  # type: ignore[arg-type]
    with pytest.raises(QuestionError, match="convention"):
        scene.camera(K, there, (160, 120), convention="ros")  # type: ignore[arg-type]


def test_what_is_shown_of_them(scene: Scene) -> None:
    (answer,) = scene.query("green mug")
    view = scene.render(looking(), [answer])
    assert "queries" in repr(scene) and "green mug" in repr(answer) and len(repr(answer)) < 300
    assert "Gaussians" in repr(answer.selection) and "160x120" in repr(view)
    assert Image.open(io.BytesIO(view._repr_png_())).size == (320, 120)
    assert "found" in answer._repr_html_() and "<code>" in scene._repr_html_()


def test_answers_can_be_stored(scene: Scene) -> None:
    (answer,) = scene.query("green mug")
    loaded = pickle.loads(pickle.dumps(answer))
    assert loaded == answer
    assert json.loads(json.dumps(answer.to_json()))["phrase"] == "green mug"
    np.testing.assert_array_equal(members(scene.select(loaded)), members(answer.selection))
    np.testing.assert_array_equal(members(pickle.loads(pickle.dumps(answer.selection))), members(answer.selection))
