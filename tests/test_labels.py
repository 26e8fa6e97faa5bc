"""Reading ground truth: look-up, resizing, and one clear error per kind of damage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from maskfield_ns.errors import CaptureError
from maskfield_ns.evaluation.labels import UNLABELLED, LabelledCapture

LABELS: dict[str, Any] = {
    "7": {"name": "mug a", "class": "mug", "queries": ["red mug", "cup"]},
    "2": {"name": "table", "class": "table", "queries": ["table"]},
    "9": {"name": "mug b", "class": "mug", "queries": ["Cup", "blue  mug"]},
}
IDS = np.array([[0, 2, 2, 2], [7, 7, 9, 2]], np.uint8)


def make_capture(root: Path, pictures: dict[str, np.ndarray] | None = None, labels: Any = LABELS) -> Path:
    (root / "gt" / "instance").mkdir(parents=True)
    text = labels if isinstance(labels, str) else json.dumps(labels)
    (root / "gt" / "labels.json").write_text(text, encoding="utf-8")
    for name, ids in (pictures if pictures is not None else {"a": IDS}).items():
        path = root / "gt" / "instance" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(ids).save(path)
    return root


def load(root: Path) -> LabelledCapture:
    capture = LabelledCapture.load(root)
    assert capture is not None
    return capture


def test_phrases_classes_and_class_map(tmp_path: Path) -> None:
    capture = load(make_capture(tmp_path))
    assert [label.id for label in capture.labels] == [2, 7, 9]
    assert capture.phrases() == [("table", {2}), ("red mug", {7}), ("cup", {7, 9}), ("blue mug", {9})]
    assert capture.classes() == ["table", "mug"]
    assert capture.class_map("images/a.jpg").tolist() == [[UNLABELLED, 0, 0, 0], [1, 1, 1, 0]]
    assert np.array_equal(capture.instances("images/a.jpg"), IDS)


def test_no_gt_folder_means_no_labels_but_no_capture_is_an_error(tmp_path: Path) -> None:
    assert LabelledCapture.load(tmp_path) is None
    with pytest.raises(CaptureError, match=r"no capture at .*nowhere"):
        LabelledCapture.load(tmp_path / "nowhere")


def test_transforms_file_stands_for_its_folder(tmp_path: Path) -> None:
    make_capture(tmp_path)
    (tmp_path / "transforms.json").write_text("{}")
    assert load(tmp_path / "transforms.json").directory == tmp_path


@pytest.mark.parametrize("missing", ["labels.json", "instance", "instance/a.png"])
def test_half_there(tmp_path: Path, missing: str) -> None:
    root = make_capture(tmp_path)
    (root / "gt/instance/a.png").unlink()
    if missing == "labels.json":
        (root / "gt/labels.json").unlink()
    elif missing == "instance":
        (root / "gt/instance").rmdir()
    place = missing.removesuffix("/a.png")
    with pytest.raises(CaptureError, match=f"incomplete: .*gt/{place}"):
        LabelledCapture.load(root)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("{", "is not valid JSON"),
        ("[]", "must be an object"),
        ("{}", "must be an object"),
        ('{"1": {"name": "a", "class": "a", "queries": []}, "1": 3}', "'1' occurs twice"),
        ({"1": LABELS["2"], "01": LABELS["2"]}, "lists the id 1 twice"),
        ({"0": LABELS["2"]}, "'0' is not a number from 1 to 255"),
        ({"256": LABELS["2"]}, "'256' is not"),
        ({"duck": LABELS["2"]}, "'duck' is not"),
        ({"²": LABELS["2"]}, "'²' is not"),
        ({"1": "duck"}, "label 1 must be an object"),
        ({"1": {"name": "a", "queries": []}}, 'label 1 needs a non-empty text for "class"'),
        ({"1": {"name": " ", "class": "a", "queries": []}}, 'for "name"'),
        ({"1": {"name": "a", "class": "a", "queries": "duck"}}, 'for "queries"'),
        ({"1": {"name": "a", "class": "a", "queries": ["duck", ""]}}, 'for "queries"'),
        ({"1": {"name": "a", "class": "a"}}, 'for "queries"'),
    ],
)
def test_broken_labels_json(tmp_path: Path, labels: Any, message: str) -> None:
    root = make_capture(tmp_path, labels=labels)
    with pytest.raises(CaptureError, match=message) as error:
        LabelledCapture.load(root)
    assert str(root / "gt/labels.json") in str(error.value)


def test_bytes_that_are_not_utf8(tmp_path: Path) -> None:
    root = make_capture(tmp_path)
    (root / "gt/labels.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(CaptureError, match="not UTF-8"):
        LabelledCapture.load(root)


def test_look_up_by_stem_and_by_sub_folder(tmp_path: Path) -> None:
    pictures = {name: np.full((2, 2), value, np.uint8) for name, value in [("x", 2), ("left/x", 7), ("ü v.1", 9)]}
    capture = load(make_capture(tmp_path, pictures))
    for name, expected in [
        ("x.png", 2),
        ("x.jpg", 2),
        ("images/x.jpg", 2),
        ("images_4/x.jpg", 2),
        ("./images/../images/x.jpg", 2),
        ("images/left/x.jpg", 7),
        (str(tmp_path / "images/left/x.jpg"), 7),
        ("left/x.jpg", 7),
        ("images/right/x.jpg", 2),  # gt has no such folder
        ("images/ü v.1.jpg", 9),
        (Path("images") / "ü v.1.JPEG", 9),
    ]:
        assert (capture.instances(name) == expected).all(), name


def test_missing_picture_names_where_it_should_be(tmp_path: Path) -> None:
    pictures = {"x": IDS, "y": IDS, "left/x": IDS}
    capture = load(make_capture(tmp_path, pictures))
    with pytest.raises(CaptureError, match=r"gt/instance/b\.png"):
        capture.instances("images/b.jpg")
    # left/ exists, so the y.png of the other folder must not stand in for left/y.png
    with pytest.raises(CaptureError, match=r"gt/instance/left/y\.png"):
        capture.instances("images/left/y.jpg")


def test_check_finds_mistakes_in_advance(tmp_path: Path) -> None:
    capture = load(make_capture(tmp_path, {"a": IDS, "b": np.full((2, 2), 5, np.uint8)}))
    capture.check(["images/a.jpg", Path("images/a.jpg")])
    with pytest.raises(CaptureError, match="share the instance picture"):
        capture.check(["images/left/a.jpg", "images/right/a.jpg"])
    with pytest.raises(CaptureError, match="id 5"):
        capture.check(["images/a.jpg", "images/b.jpg"])
    with pytest.raises(CaptureError, match="no instance picture"):
        capture.check(["images/c.jpg"])


@pytest.mark.parametrize("size", [(2, 4), (4, 8), (6, 12), (1, 2), (3, 6), (5, 10)])
def test_resize_takes_the_pixel_under_the_new_centre(tmp_path: Path, size: tuple[int, int]) -> None:
    capture = load(make_capture(tmp_path))
    resized = capture.instances("a.jpg", size)
    assert resized.shape == size
    for y in range(size[0]):
        for x in range(size[1]):
            assert resized[y, x] == IDS[int((y + 0.5) * 2 / size[0]), int((x + 0.5) * 4 / size[1])]
    assert capture.class_map("a.jpg", size).shape == size


@pytest.mark.parametrize(
    ("size", "fits"),
    [
        *(((h, w), True) for h, w in [(360, 480), (180, 240), (90, 120), (51, 68), (51, 69), (720, 960)]),
        *(((h, w), False) for h, w in [(480, 360), (360, 470), (180, 250), (100, 120)]),
    ],
)
def test_aspect_ratio(tmp_path: Path, size: tuple[int, int], fits: bool) -> None:
    capture = load(make_capture(tmp_path, {"a": np.zeros((360, 480), np.uint8)}))
    if fits:
        assert capture.instances("a.jpg", size).shape == size
    else:
        with pytest.raises(CaptureError, match="aspect ratio"):
            capture.instances("a.jpg", size)


def test_unknown_id_in_a_picture(tmp_path: Path) -> None:
    capture = load(make_capture(tmp_path, {"a": np.array([[0, 3, 200, 2]], np.uint8)}))
    with pytest.raises(CaptureError, match=r"a\.png has pixels of id 3, 200"):
        capture.instances("a.jpg")


def test_palette_pictures_are_ids_and_others_are_refused(tmp_path: Path) -> None:
    capture = load(make_capture(tmp_path))
    place = tmp_path / "gt/instance"
    palette = Image.fromarray(IDS)
    palette.putpalette([255 - i // 3 for i in range(768)])
    palette.save(place / "p.png")
    assert Image.open(place / "p.png").mode == "P"
    assert np.array_equal(capture.instances("p.jpg"), IDS)
    Image.fromarray(IDS).convert("RGB").save(place / "rgb.png")
    Image.fromarray(IDS.astype(np.uint16)).save(place / "deep.png")
    for name in ("rgb", "deep"):
        with pytest.raises(CaptureError, match=f"{name}.png must be an 8-bit"):
            capture.instances(f"{name}.jpg")


@pytest.mark.parametrize("keep", [0, 20, 60])
def test_damaged_picture(tmp_path: Path, keep: int) -> None:
    capture = load(make_capture(tmp_path, {"a": np.tile(IDS, (40, 40))}))
    path = tmp_path / "gt/instance/a.png"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CaptureError, match=r"a\.png cannot be read"):
        capture.instances("a.jpg")
