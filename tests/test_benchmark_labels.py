"""Label loaders and prediction files of the benchmarks: what is read, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from fixtures_on_disk import formats, labels_of, refused
from PIL import Image

from maskfield_ns.data import layouts
from maskfield_ns.errors import BenchmarkError
from maskfield_ns.evaluation.protocols.labels import IndexLabels, IndicatorLabels, MaskLabels, PolygonLabels
from maskfield_ns.evaluation.protocols.predictions import ViewPrediction, read_prediction, write_prediction

pytest_plugins = ("fixtures_on_disk",)

# --- labels -----------------------------------------------------------------------------------------------------------


def test_class_order_is_ascii_and_greys_are_background(scenes: dict[str, Path], capture: formats.Source) -> None:
    labels = IndicatorLabels(scenes["3d-ovs"] / "segmentations")
    assert list(labels.phrases) == sorted(formats.class_spelling(capture))
    assert labels.phrases[0][0].isupper() and labels.phrases[-1][0].islower()
    full = labels.load(labels.views[0])
    assert full.masks is not None and full.size == (8 * capture.size[1] + 3, 8 * capture.size[0] + 5)
    assert full.masks.sum(axis=0).max() == 1, "grey edges would overlap"
    small = labels.load(labels.views[0], (capture.size[1], capture.size[0]))
    assert small.masks is not None and small.masks.shape[1:] == (capture.size[1], capture.size[0])


def test_polygons_are_merged_by_category_and_boxes_kept(scenes: dict[str, Path]) -> None:
    folder = labels_of("lerf-ovs", scenes["lerf-ovs"])
    labels = PolygonLabels(folder)
    view = labels.load(labels.views[0])
    entries = json.loads((folder / f"{view.view}.json").read_text())["objects"]
    assert view.masks is not None
    assert list(view.phrases) == list(dict.fromkeys(entry["category"] for entry in entries))
    assert sum(len(boxes) for boxes in view.boxes) == len(entries)
    for phrase, label in zip(view.phrases, view.masks, strict=True):
        wanted = np.zeros(view.size, np.uint8)
        for entry in entries:
            if entry["category"] == phrase:
                cv2.fillPoly(wanted, [np.array([[int(x), int(y)] for x, y in entry["segmentation"]])], 1)
        assert np.array_equal(label, wanted.astype(bool))


def test_bad_polygon_files(copy: Callable[[str], Path]) -> None:
    folder = labels_of("lerf-ovs", copy("lerf-ovs"))
    path = sorted(folder.glob("*.json"))[1]
    good = json.loads(path.read_text())

    def broken(parts: tuple[str, ...], **changes: Any) -> None:
        data = json.loads(json.dumps(good))
        for key, value in changes.items():
            (data["info"] if key in data["info"] else data["objects"][0])[key] = value
        path.write_text(json.dumps(data))
        refused(lambda: PolygonLabels(folder), path.name, *parts)

    broken(("belongs to 'frame_09999.jpg'",), name="frame_09999.jpg")
    broken((path.with_suffix(".jpg").name, "pixels"), width=good["info"]["width"] + 1)
    broken(("object 0", "flat ring"), segmentation=[[[1, 2], [3, 4], [5, 6]]])
    broken(("object 0", "flat ring"), segmentation=[[1, 2], [float("nan"), 4]])
    broken(("bbox",), bbox=[1, 2, 3])
    broken(("no category",), category="")
    path.write_text(json.dumps({"info": good["info"], "objects": []}))
    refused(lambda: PolygonLabels(folder), str(path), "annotates nothing")
    path.write_text(json.dumps({"shapes": []}))
    refused(lambda: PolygonLabels(folder), str(path), '"info"')
    path.write_text("{")
    refused(lambda: PolygonLabels(folder), str(path), "JSON")
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(good).encode())
    assert PolygonLabels(folder).views
    for each in folder.glob("*.json"):
        each.unlink()
    refused(lambda: PolygonLabels(folder), str(folder), "frame_00001.json")
    shutil.rmtree(folder)
    refused(lambda: PolygonLabels(folder), str(folder), "label/<scene>")


def test_bad_indicator_masks(copy: Callable[[str], Path]) -> None:
    folder = labels_of("3d-ovs", copy("3d-ovs"))
    labels = IndicatorLabels(folder)
    view, name = labels.views[0], labels.phrases[1]
    mask = folder / view / f"{name}.png"
    refused(lambda: labels.load(view, (50, 50)), view, "50x50")
    with Image.open(mask) as picture:
        picture.resize((33, 22)).save(mask)
    refused(lambda: labels.load(view), view, "differ in size", "33x22")
    mask.write_bytes(b"no picture")
    refused(lambda: labels.load(view), str(mask))
    mask.unlink()
    refused(lambda: IndicatorLabels(folder), str(mask), "all-black")
    (folder / "classes.txt").unlink()
    refused(lambda: IndicatorLabels(folder), str(folder / "classes.txt"))


def test_bad_index_labels(copy: Callable[[str], Path]) -> None:
    data = copy("semantic-nerf")
    labels = IndexLabels(data, "replica")
    assert labels.views == ("rgb_2", "rgb_7", "rgb_12")
    path = data / "semantic_class" / "semantic_class_7.png"
    refused(lambda: labels.load("rgb_7", (20, 90)), str(path), "90x20")
    Image.fromarray(np.full((12, 16), 99, np.uint8)).save(path)
    refused(lambda: labels.load("rgb_7"), str(path), "id 99", "entries")
    Image.fromarray(np.zeros((12, 16, 3), np.uint8)).save(path)
    refused(lambda: labels.load("rgb_7"), str(path), "RGB")
    names = (data / "classes.txt").read_text()
    (data / "classes.txt").write_text(names + "\n\nlate\n")
    refused(lambda: IndexLabels(data, "replica"), str(data / "classes.txt"), "empty")
    (data.parent / "other.txt").write_text(names)
    assert IndexLabels(data, "replica", data.parent / "other.txt").phrases == labels.phrases


def test_bad_mask_folders(copy: Callable[[str], Path]) -> None:
    folder = labels_of("lerf-mask", copy("lerf-mask"))
    shutil.rmtree(folder / "2")
    (folder / "2").mkdir()
    refused(lambda: MaskLabels(folder), str(folder / "2"), "no mask")
    (folder / "2").rename(folder / "two")
    refused(lambda: MaskLabels(folder), str(folder), "two")


def test_predictions_follow_the_size_of_lerf_ovs_labels(scenes: dict[str, Path]) -> None:
    labels = PolygonLabels(labels_of("lerf-ovs", scenes["lerf-ovs"]))
    refused(lambda: labels.load(labels.views[0], (30, 40)), labels.views[0], "40x30")


# --- predictions ------------------------------------------------------------------------------------------------------


def test_predictions_survive_the_disk(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    names = ("red mug", "Duck", "a/b")
    maps = rng.random((2, 3, 4, 5), dtype=np.float32)
    for number, (given, kind) in enumerate(
        (
            (ViewPrediction(relevancy=dict(zip(names, maps.swapaxes(0, 1), strict=True))), "relevancy"),
            (ViewPrediction(masks=dict(zip(names, maps[0] > 0.5, strict=True))), "masks"),
            (ViewPrediction(scores=maps[0]), "classes"),
            (ViewPrediction(classes=rng.integers(0, 3, (4, 5))), "classes"),
        )
    ):
        write_prediction(tmp_path, f"view {number}", given, names)
        back = read_prediction(tmp_path, f"view {number}", kind, names)  # type: ignore[arg-type]
        assert back is not None and back.size == (4, 5)
        for field in ("relevancy", "masks"):
            wanted, found = getattr(given, field), getattr(back, field)
            assert (wanted is None) == (found is None)
            assert all(np.array_equal(wanted[name], found[name]) for name in wanted or {})
        for field in ("scores", "classes"):
            wanted, found = getattr(given, field), getattr(back, field)
            assert (wanted is None) == (found is None) and (wanted is None or np.array_equal(wanted, found))
    assert not list(tmp_path.glob("*.tmp"))
    assert read_prediction(tmp_path, "view 9", "classes", names) is None
    # The archive's own order of classes does not matter: they go by name.
    back = read_prediction(tmp_path, "view 3", "classes", ("Duck", "a/b", "red mug"))
    first = read_prediction(tmp_path, "view 3", "classes", names)
    assert back is not None and back.classes is not None and first is not None and first.classes is not None
    assert np.array_equal(np.array([2, 0, 1])[first.classes], back.classes)


def test_plain_files_are_predictions_too(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    grey = np.array([[0, 128], [129, 255]], np.uint8)
    Image.fromarray(grey).save(tmp_path / "a" / "cup.png")
    np.save(tmp_path / "a" / "hat.npy", grey > 0)
    np.save(tmp_path / "a" / "egg.npy", np.array([[0, 1], [1, 1]], np.uint8))
    masks = read_prediction(tmp_path, "a", "masks", ("cup", "hat", "egg", "absent"))
    assert masks is not None and masks.masks is not None and set(masks.masks) == {"cup", "hat", "egg"}
    assert np.array_equal(masks.masks["cup"], grey > 128)
    assert masks.masks["egg"].sum() == 3
    relevancy = read_prediction(tmp_path, "a", "relevancy", ("cup",))
    assert relevancy is not None and relevancy.relevancy is not None
    assert np.array_equal(relevancy.relevancy["cup"], grey[None].astype(np.float32))
    Image.fromarray(np.array([[0, 1], [2, 0]], np.uint8)).save(tmp_path / "b.png")
    classes = read_prediction(tmp_path, "b", "classes", ("x", "y", "z"))
    assert classes is not None and classes.classes is not None and classes.classes.tolist() == [[0, 1], [2, 0]]
    np.save(tmp_path / "c.npy", np.ones((3, 2, 2), np.float32))
    scores = read_prediction(tmp_path, "c", "classes", ("x", "y", "z"))
    assert scores is not None and scores.scores is not None


def test_bad_predictions(tmp_path: Path) -> None:
    names = ("x", "y")
    refused(lambda: read_prediction(tmp_path / "none", "a", "masks", names), "none")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.npy").write_bytes(b"rubbish")
    refused(lambda: read_prediction(tmp_path, "a", "masks", names), "x.npy")
    np.save(tmp_path / "a" / "x.npy", np.array([[np.nan, 1.0]]))
    refused(lambda: read_prediction(tmp_path, "a", "relevancy", names), "x.npy", "NaN")
    refused(lambda: read_prediction(tmp_path, "a", "masks", names), "x.npy", "booleans")
    np.save(tmp_path / "a" / "x.npy", np.ones((2, 2)))
    np.save(tmp_path / "a" / "y.npy", np.ones((3, 2)))
    refused(lambda: read_prediction(tmp_path, "a", "relevancy", names), "view a", "differ in size")
    np.save(tmp_path / "b.npy", np.full((2, 2), 7))
    refused(lambda: read_prediction(tmp_path, "b", "classes", names), "b.npy", "7", "0 to 1")
    np.save(tmp_path / "b.npy", np.ones((3, 2, 2)))
    refused(lambda: read_prediction(tmp_path, "b", "classes", names), "b.npy", "[2, H, W]")
    Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(tmp_path / "c.png")
    refused(lambda: read_prediction(tmp_path, "c", "classes", names), "c.png", "RGB")
    (tmp_path / "d.npz").write_bytes(b"PK rubbish")
    refused(lambda: read_prediction(tmp_path, "d", "classes", names), "d.npz")
    np.savez(tmp_path / "e.npz", other=np.ones(3))
    refused(lambda: read_prediction(tmp_path, "e", "masks", names), "e.npz", "masks", "other")
    np.savez(tmp_path / "e.npz", scores=np.ones((1, 2, 2)), phrases=np.array(["x"]))
    refused(lambda: read_prediction(tmp_path, "e", "classes", names), "e.npz", "no scores for y")
    np.savez(tmp_path / "e.npz", masks=np.ones((1, 2, 2), bool), phrases=np.array(["x", "y"]))
    refused(lambda: read_prediction(tmp_path, "e", "masks", names), "e.npz", "1 maps")
    np.savez(tmp_path / "e.npz", classes=np.ones((2, 2), int), phrases=np.array(["x", "stranger"]))
    refused(lambda: read_prediction(tmp_path, "e", "classes", names), "stranger")


class Pickled:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("run by a pickle",))


def test_pickles_are_not_opened(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "a.npy", np.array([Pickled()], dtype=object), allow_pickle=True)
    refused(lambda: read_prediction(tmp_path, "a", "classes", ("x",)), "a.npy")
    np.savez(tmp_path / "b.npz", classes=np.array([Pickled()], dtype=object))
    refused(lambda: read_prediction(tmp_path, "b", "classes", ("x",)), "b.npz")
    assert "run by a pickle" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("place", "key", "value", "part"),
    [
        ("object", "segmentation", [[0, 0], [1e9, 5], [5, 5]], "far outside"),
        ("object", "segmentation", [[0, 0], [2**31 + 5, 5], [5, 5]], "far outside"),
        ("object", "segmentation", [[0, 0], [1e300, 5], [5, 5]], "far outside"),
        ("object", "segmentation", [["1", "2"], ["3", "4"]], "flat ring"),
        ("object", "bbox", [0, 0, -1e12, 5], "far outside"),
        ("object", "bbox", "abcd", "[x0, y0, x1, y1]"),
        ("object", "category", 5, "no category"),
        ("info", "width", 1e9, "pixels"),
        ("info", "width", 1e30, "pixels"),
        ("info", "width", float("inf"), "whole numbers"),
        ("info", "width", 4.5, "whole numbers"),
        ("info", "height", "120", "whole numbers"),
        ("info", "height", True, "whole numbers"),
        ("info", "name", ["a"], "name of the image"),
    ],
)
def test_polygons_are_bounded(copy: Callable[[str], Path], place: str, key: str, value: object, part: str) -> None:
    """Points beyond int32 would wrap, those far outside take seconds to fill, and sizes ask for any memory."""
    folder = labels_of("lerf-ovs", copy("lerf-ovs"))
    path = sorted(folder.glob("*.json"))[0]
    for picture in folder.glob("*.jpg"):
        picture.unlink()  # nothing else tells the size
    data = json.loads(path.read_text())
    (data["info"] if place == "info" else data["objects"][0])[key] = value
    path.write_text(json.dumps(data))
    refused(lambda: PolygonLabels(folder), path.name, part)


def test_boxes_of_two_corners_and_points_a_little_outside(copy: Callable[[str], Path]) -> None:
    folder = labels_of("lerf-ovs", copy("lerf-ovs"))
    path = sorted(folder.glob("*.json"))[0]
    data = json.loads(path.read_text())
    first = data["objects"][0]
    first["bbox"] = [first["bbox"][:2], first["bbox"][2:]]
    first["segmentation"].append([-20, 5000 if data["info"]["height"] > 600 else 50])
    path.write_text(json.dumps(data))
    labels = PolygonLabels(folder)
    assert labels.load(path.stem).boxes[0].shape[1] == 4


def test_class_lists_with_ids(tmp_path: Path, copy: Callable[[str], Path]) -> None:
    """ScanNet's own lists and Replica's info_semantic.json give ids, with gaps."""
    path = tmp_path / "list.txt"
    for text in (
        "1\twall\n2\tfloor\n14\tdesk\n",
        "1,wall\n2, floor\n14,desk",
        "id\tname\n2\tfloor\n14\tdesk\n1\twall\n",
    ):
        path.write_text(text)
        assert layouts.read_class_list(path) == layouts.ClassList(("", "wall", "floor", "desk"), (0, 1, 2, 14))
    info = {"classes": [{"id": 3, "name": "chair"}, {"id": 0, "name": "undefined"}], "objects": []}
    (tmp_path / "info_semantic.json").write_text(json.dumps(info))
    assert layouts.read_class_list(tmp_path / "info_semantic.json").ids == (0, 3)
    for text, part in (
        ("1\twall\n1\tfloor\n", "the id 1 more than once"),
        ("1\twall\n2\twall\n", "'wall' more than once"),
        ("wall, floor, chair, table\n", "one class a line"),
        ("wall\nred\tchair\n", "line 2"),
        ("1\twall\tnyu\n2\tfloor\tnyu\n", "line 1"),
    ):
        path.write_text(text)
        refused(lambda: layouts.read_class_list(path), str(path), part)
    (tmp_path / "info_semantic.json").write_text('{"classes": [{"id": "1", "name": "a"}]}')
    refused(lambda: layouts.read_class_list(tmp_path / "info_semantic.json"), '"id"')

    data = copy("scannet")
    plain = IndexLabels(data, "scannet")
    view = plain.views[0]
    before = plain.load(view).index
    assert before is not None
    names = [name.strip() for name in plain.phrases]
    spread = [0, *(10 + 3 * i for i in range(len(names) - 1))]
    (data / "classes.txt").write_text("\n".join(f"{i}\t{n}" for i, n in zip(spread[1:], names[1:], strict=True)))
    with pytest.raises(BenchmarkError, match="which the scene's class list does not have"):
        IndexLabels(data, "scannet").load(view)
    picture = np.array(spread, np.uint8)[before]
    for label in (data / "semantic").glob(f"*{view}*.png"):
        Image.fromarray(picture).save(label)
    after = IndexLabels(data, "scannet").load(view)
    np.testing.assert_array_equal(after.index, before)
    assert after.phrases[1:] == plain.phrases[1:]
    Image.fromarray(picture).save(tmp_path / f"{view}.png")
    prediction = read_prediction(tmp_path, view, "classes", after.phrases, IndexLabels(data, "scannet").class_ids)
    assert prediction is not None
    np.testing.assert_array_equal(prediction.classes, before)
