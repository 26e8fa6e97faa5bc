"""From a scene on disk to a report: labels, predictions of a model that knows everything, scores, tables; bad input."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from fixtures_on_disk import formats, scene, source
from PIL import Image
from test_dataparsers import CONFIGS, frame_of, parse
from torch import Tensor

from maskfield_ns import cli
from maskfield_ns.commands.bench import find_results
from maskfield_ns.data.undistortion import undistortion
from maskfield_ns.errors import BenchmarkError
from maskfield_ns.evaluation.protocols.labels import IndexLabels, IndicatorLabels, MaskLabels, PolygonLabels
from maskfield_ns.evaluation.protocols.predictions import ViewPrediction, read_prediction, write_prediction
from maskfield_ns.evaluation.protocols.registry import BENCHMARKS, benchmark, score_folder
from maskfield_ns.evaluation.published import published, published_results
from maskfield_ns.models.benchmark import PREDICTIONS, WORST_SHEET, BenchmarkEvaluator
from maskfield_ns.models.mask_outputs import Outputs
from maskfield_ns.queries.decision import DecisionRule
from maskfield_ns.queries.head import QueryHead

DIM = 24


@pytest.fixture(scope="module")
def capture() -> formats.Source:
    return source(frames=14, labelled=4, scale=0.5)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory, capture: formats.Source) -> dict[str, Path]:
    return {kind: scene(tmp_path_factory.mktemp(kind), kind, capture) for kind in CONFIGS}


def labels_of(kind: str, path: Path) -> Path:
    """Where a scene keeps its labels."""
    places = {"3d-ovs": path / "segmentations", "lerf-mask": path / "test_mask"}
    return places.get(kind, path.parent / "label" / path.name if kind in ("lerf-ovs", "mipnerf360") else path)


def protocol_of(kind: str) -> str:
    return "replica" if kind == "semantic-nerf" else kind


# --- a model that knows everything ------------------------------------------------------------------------------------


class Oracle:
    """Query k of the whole level means label id k + 1; its features are made of the labels."""

    def __init__(self, capture: formats.Source) -> None:
        self.ids = sorted(capture.names)
        self.query_head = QueryHead(3 * DIM, 12, DIM)
        self.first = 2 * DIM
        self.query_head.support[self.first : self.first + len(self.ids)] = 9.0
        with torch.no_grad():
            self.query_head.semantic_table.copy_(torch.eye(DIM).repeat(3, 1))
        rule = DecisionRule(levels_agreeing=1, found_threshold=0.55)
        self.config = type("Config", (), {"decision": rule, "negatives": ("object",)})()
        self.meaning = {name.lower(): k for k, name in enumerate(capture.names[i] for i in self.ids)}
        self.meaning |= {capture.phrases[i]: k for k, i in enumerate(self.ids)}

    def text(self, phrases: Any) -> Tensor:
        return torch.stack([self._vector(phrase.lower()) for phrase in phrases])

    def _vector(self, phrase: str) -> Tensor:
        if phrase == "object":  # the negative, which resembles everything a little
            return torch.full((DIM,), DIM**-0.5)
        return torch.eye(DIM)[self.meaning.get(phrase, DIM - 1)]

    def outputs(self, ids: np.ndarray) -> Outputs:
        """What would be rendered where the labels are ``ids``."""
        table = torch.zeros(256, self.query_head.channels)
        for k, identity in enumerate(self.ids):
            vector = self.query_head.feature_vectors[self.first + k].detach()
            table[identity] = 30 * vector / vector.square().sum()
        outputs = Outputs({"rgb": torch.full((*ids.shape, 3), 0.5)})
        outputs.features = table[torch.from_numpy(ids.astype(np.int64))]
        return outputs


def ids_in(kind: str, capture: formats.Source, image: Path) -> np.ndarray:
    """Label ids as the image of a scene shows them."""
    ids = capture.frames[frame_of(kind, image)].ids
    with Image.open(image) as picture:
        width, height = picture.size
    if kind == "mipnerf360":
        return formats.distorted(ids, capture, (width, height), (-0.04, 0.01, 0.001, -0.001))
    if kind == "semantic-nerf":
        wide = np.zeros((height, width), np.uint8)
        own_height, own_width = ids.shape
        top, left = (height - own_height) // 2, (width - own_width) // 2
        wide[top : top + own_height, left : left + own_width] = ids
        return wide
    return cv2.resize(ids, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)


@dataclass
class Evaluated:
    """What ns-eval would leave behind."""

    figures: dict[str, float]
    details: dict[str, Any]
    folder: Path


@pytest.fixture(scope="module")
def evaluated(
    scenes: dict[str, Path], capture: formats.Source, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Evaluated]:
    done: dict[str, Evaluated] = {}

    def evaluate(kind: str) -> Evaluated:
        if kind not in done:
            options = {"rule": "semantic-nerf"} if kind == "semantic-nerf" else {}
            outputs = parse(kind, scenes[kind], "test", **options)
            folder = tmp_path_factory.mktemp(f"run_{kind}")
            oracle = Oracle(capture)
            evaluator = BenchmarkEvaluator(oracle, outputs.metadata["benchmark"], folder / "eval")
            for path in outputs.image_filenames:
                evaluator.add(f"{path.parent.name}/{path.name}", oracle.outputs(ids_in(kind, capture, path)))
            figures, details = evaluator.summary()
            (folder / "eval").mkdir(exist_ok=True)
            evaluator.write(folder / "eval" / "segmentation.json", details)
            whole = {"method_name": "oracle", "results": figures | {"benchmark": details}}
            (folder / "benchmark.json").write_text(json.dumps(whole))
            done[kind] = Evaluated(figures, details, folder)
        return done[kind]

    return evaluate


@pytest.mark.parametrize("kind", CONFIGS)
def test_who_knows_everything_scores_well(kind: str, evaluated: Callable[[str], Evaluated]) -> None:
    figures = evaluated(kind).figures
    low = {"lerf-ovs": 0.6, "mipnerf360": 0.6, "3d-ovs": 0.85}.get(
        kind, 0.97
    )  # thresholds smooth, absent classes are 0
    assert figures["miou"] > low, figures
    if kind in ("lerf-ovs", "mipnerf360"):
        assert figures["localisation_accuracy"] > 0.9
        assert figures["miou_own_masks"] > 0.95
    elif kind == "lerf-mask":
        assert figures["mbiou"] > 0.97
    else:
        assert figures["accuracy"] > 0.9


@pytest.mark.parametrize("kind", CONFIGS)
def test_saved_predictions_score_the_same(kind: str, evaluated: Callable[[str], Evaluated], scenes: dict[str, Path]):
    run, protocol = evaluated(kind), BENCHMARKS[protocol_of(kind)]
    label_set = protocol.open_labels(labels_of(kind, scenes[kind]), None)
    again = score_folder(protocol, run.folder / "eval" / PREDICTIONS, label_set, run.details["rule"])
    for key, value in again.figures.items():
        assert run.figures[key] == pytest.approx(value, abs=1e-6)
    assert set(again.views) == set(run.details["views"])
    assert json.loads(json.dumps(run.details)) == run.details, "details are plain JSON"
    sheet = run.folder / "eval" / WORST_SHEET
    assert run.details["worst_cases"] == str(sheet)
    with Image.open(sheet) as picture:
        assert picture.width > 900


def test_details_say_what_was_done(evaluated: Callable[[str], Evaluated], capture: formats.Source) -> None:
    details = evaluated("3d-ovs").details
    assert details["scored_sizes"] == [list(capture.size)], "an eighth of the photographs, rounded down"
    assert details["split"] == "protocol" and details["labelled_views_trained"] is True
    assert evaluated("mipnerf360").details["rule"] == "gags"
    assert any("no labelled pixel" in note for note in evaluated("scannet").details["notes"])
    assert list(evaluated("lerf-mask").details["views"]) == ["0", "2", "3"]


def test_views_of_another_size_are_resized_and_said_to_be(scenes: dict[str, Path], capture: formats.Source) -> None:
    outputs, oracle = parse("lerf-ovs", scenes["lerf-ovs"], "test"), Oracle(capture)
    evaluator = BenchmarkEvaluator(oracle, outputs.metadata["benchmark"])
    path = outputs.image_filenames[0]
    ids = ids_in("lerf-ovs", capture, path)
    evaluator.add(path.name, oracle.outputs(ids[::2, ::2]))
    figures, details = evaluator.summary()
    assert any("resized" in note for note in details["notes"])
    assert details["scored_sizes"] == [[ids.shape[1], ids.shape[0]]] and figures["miou_own_masks"] > 0.7


@pytest.mark.parametrize("kind", ["lerf-ovs", "lerf-mask", "replica"])
def test_labels_of_another_shape_than_the_image(kind: str, scenes: dict[str, Path], capture: formats.Source) -> None:
    outputs, oracle = parse(kind, scenes[kind], "test"), Oracle(capture)
    evaluator = BenchmarkEvaluator(oracle, outputs.metadata["benchmark"])
    path = outputs.image_filenames[0]
    upright = ids_in(kind, capture, path).T
    refused(lambda: evaluator.add(path.name, oracle.outputs(upright)), str(scenes[kind].parent), "120x160")


def test_labels_follow_undistorted_pictures(scenes: dict[str, Path], capture: formats.Source) -> None:
    """As with Gaussians: the picture is undistorted and cropped before it is rendered."""
    outputs, oracle = parse("mipnerf360", scenes["mipnerf360"], "test"), Oracle(capture)
    path = outputs.image_filenames[1]
    how = undistortion(outputs.cameras[1].reshape(()))
    assert how is not None
    evaluator = BenchmarkEvaluator(oracle, outputs.metadata["benchmark"], None, {path.name: how})
    evaluator.add(path.name, oracle.outputs(how.apply(ids_in("mipnerf360", capture, path))))
    figures, details = evaluator.summary()
    assert figures["miou_own_masks"] > 0.95 and figures["localisation_accuracy"] > 0.9
    assert details["scored_sizes"] == [list(how.size)]
    assert any("undistorted" in note for note in details["notes"])


def test_averaged_sentences_and_a_silent_blank(scenes: dict[str, Path], capture: formats.Source) -> None:
    outputs = parse("replica", scenes["replica"], "test", templates="imagenet", blank_competes=False)
    oracle = Oracle(capture)
    oracle.text = lambda phrases: torch.stack([Oracle.text(oracle, [_noun(p)])[0] for p in phrases])  # type: ignore
    evaluator = BenchmarkEvaluator(oracle, outputs.metadata["benchmark"])
    features = oracle.outputs(ids_in("replica", capture, outputs.image_filenames[0])).features
    scores = evaluator.class_scores(features)
    assert (scores[0] == -1).all()
    assert scores.shape == (len(evaluator.labels.phrases), *features.shape[:2])


def _noun(sentence: str) -> str:
    """The class a sentence of OpenCLIP's templates is about, or the phrase itself."""
    known = ("duck", "teddy bear", "table", "floor", "mug")
    return next((name for name in known if name in sentence), sentence)


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


@pytest.fixture
def copy(scenes: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    def make(kind: str) -> Path:
        top = scenes[kind] if kind != "semantic-nerf" else scenes[kind].parent
        shutil.copytree(top.parent, tmp_path / "copies" / kind, ignore=shutil.ignore_patterns("images*", "rgb*.jpg"))
        return tmp_path / "copies" / kind / scenes[kind].relative_to(top.parent)

    return make


def refused(action: Callable[[], Any], *parts: str) -> None:
    with pytest.raises(BenchmarkError) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message


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

    broken(("belongs to frame_09999.jpg",), name="frame_09999.jpg")
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


# --- commands ---------------------------------------------------------------------------------------------------------


Command = Callable[..., str]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs ``maskfield`` in this process; returns what it printed, or its one line of error with ``code`` 1."""

    def call(*arguments: str | Path, code: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["maskfield", *map(str, arguments)])
        capsys.readouterr()
        if code == 0:
            cli.entrypoint()
            return capsys.readouterr().out
        with pytest.raises(SystemExit) as exit_:
            cli.entrypoint()
        assert exit_.value.code == code
        err = capsys.readouterr().err
        assert err.startswith("error: ") and err.count("\n") == 1, err
        return err

    return call


def test_score_command(
    command: Command, evaluated: Callable[[str], Evaluated], scenes: dict[str, Path], tmp_path: Path
) -> None:
    run = evaluated("lerf-mask")
    arguments = ["score", "lerf-mask", "--predictions", run.folder / "eval" / PREDICTIONS]
    arguments += ["--labels", labels_of("lerf-mask", scenes["lerf-mask"]), "--output", tmp_path / "figures.json"]
    arguments += ["--pictures", tmp_path / "worst.png", "--method", "somebody"]
    printed = command(*arguments)
    assert f"mIoU: {100 * run.figures['miou']:.2f} %" in printed
    data = json.loads((tmp_path / "figures.json").read_text())
    assert data["method_name"] == "somebody" and data["benchmark"]["scene"] == "tabletop"
    assert data["benchmark"]["figures"]["mbiou"] == pytest.approx(run.figures["mbiou"], abs=1e-9)
    with Image.open(tmp_path / "worst.png") as picture:
        assert picture.height > 100


def test_score_command_says_what_is_missing(
    command: Command, evaluated: Callable[[str], Evaluated], scenes: dict[str, Path], tmp_path: Path
) -> None:
    labels = labels_of("replica", scenes["replica"])
    predictions = tmp_path / "predictions"
    shutil.copytree(evaluated("replica").folder / "eval" / PREDICTIONS, predictions)
    next(iter(sorted(predictions.iterdir()))).unlink()
    given = ["--predictions", predictions, "--labels", labels]
    assert "rgb_0000" in command("score", "replica", *given, code=1)
    assert "no rule 'langsplat'" in command("score", "replica", *given, "--rule", "langsplat", code=1)
    wrong = ["--predictions", tmp_path / "absent", "--labels", labels]
    assert "absent" in command("score", "replica", *wrong, code=1)
    polygons = labels_of("lerf-ovs", scenes["lerf-ovs"])
    (tmp_path / "empty").mkdir()
    message = command("score", "lerf-ovs", "--predictions", tmp_path / "empty", "--labels", polygons, code=1)
    assert "no prediction for any" in message


def test_report(command: Command, evaluated: Callable[[str], Evaluated], tmp_path: Path) -> None:
    runs = [evaluated(kind).folder for kind in ("lerf-ovs", "scannet", "semantic-nerf")]
    command("bench", "report", *runs, runs[0], "--output", tmp_path / "report")
    text = (tmp_path / "report" / "report.md").read_text()
    own = f"**{100 * evaluated('lerf-ovs').figures['miou']:.1f}**"
    assert own in text
    assert "labelled views trained on" in text and "labelled views held out" in text
    assert "run 2" in text, "the same scene twice is two rows"
    assert "| LangSplatV2 | 51.8 | 72.2 | 59.1 | 56.4 |" in text and "[secondary]" in text
    assert "3D-OVS" not in [line[3:] for line in text.splitlines() if line.startswith("## ")]
    for name in sorted(path.name for path in (tmp_path / "report" / "pictures").iterdir()):
        assert f"(pictures/{name})" in text
    with (tmp_path / "report" / "report.csv").open() as file:
        rows = list(csv.DictReader(file))
    mine = [row for row in rows if row["ours"] == "1" and row["protocol"] == "scannet" and row["scene"] != "mean"]
    assert {row["scene"] for row in mine} == {"scene0004"}, "printed without the suffix"
    latex = (tmp_path / "report" / "report.tex").read_text()
    assert latex.count(r"\begin{tabular}") == latex.count(r"\end{tabular}") == 6
    assert r"waldo\_kitchen" in latex


def test_report_without_results(command: Command, tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text('{"results": {"psnr": 3}}')
    assert "ns-eval" in command("bench", "report", tmp_path, code=1)
    assert "ns-eval" in command("bench", "report", tmp_path / "other.json", code=1)
    assert "no run at" in command("bench", "report", tmp_path / "absent", code=1)
    assert "at least one run" in command("bench", "report", code=1)


def test_a_run_is_read_once(evaluated: Callable[[str], Evaluated]) -> None:
    (result,) = find_results(evaluated("3d-ovs").folder)
    assert result.method == "oracle" and result.place.endswith("benchmark.json")


def test_listing(command: Command) -> None:
    printed = command("bench", "list")
    assert all(name in printed for name in BENCHMARKS)
    with pytest.raises(BenchmarkError, match="there are 3d-ovs"):
        benchmark("coco")


def test_a_released_scene_with_other_counts_is_noticed(
    command: Command, scenes: dict[str, Path], evaluated: Callable[[str], Evaluated]
) -> None:
    labels = labels_of("lerf-mask", scenes["lerf-mask"])
    given = ["--predictions", evaluated("lerf-mask").folder / "eval" / PREDICTIONS, "--labels", labels]
    assert "published evaluations have 7: is the download complete?" in command(
        "score", "lerf-mask", *given, "--scene", "figurines"
    )
    assert "download complete" not in command("score", "lerf-mask", *given)


# --- published figures ------------------------------------------------------------------------------------------------


def test_published_figures_are_numbers_with_sources() -> None:
    rows = published_results()
    assert len(rows) > 600
    for row in rows:
        assert 0 < float(row.value) <= 100
        assert row.source and row.evidence in ("paper", "secondary", "unverified", "issue thread")
        assert row.metric in BENCHMARKS[row.protocol].metrics
    keys = [(row.protocol, row.metric, row.method, row.scene, row.source) for row in rows]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize(
    ("protocol", "metric", "method", "source"),
    [
        ("lerf-ovs", "miou", "LangSplatV2", "LangSplatV2 Table 2"),
        ("lerf-ovs", "localisation_accuracy", "GAGS", "GAGS Table 1"),
        ("3d-ovs", "miou", "LangSplatV2", "LangSplatV2 Table 3"),
        ("replica", "miou", "OV-NeRF CLIP", "OV-NeRF Tables I and II"),
        ("scannet", "accuracy", "OV-NeRF (FC-CLIP)", "OV-NeRF Tables III and IV"),
        ("mipnerf360", "miou", "GAGS", "GAGS Tables 1-2"),
    ],
)
def test_published_means_are_means(protocol: str, metric: str, method: str, source: str) -> None:
    rows = [row for row in published(protocol, metric) if (row.method, row.source) == (method, source)]
    cells = [float(row.value) for row in rows if not row.scene.startswith("mean")]
    (mean,) = [row for row in rows if row.scene.startswith("mean")]
    assert int(mean.scene.split()[-1]) == len(cells)
    assert float(mean.value) == pytest.approx(np.mean(cells), abs=0.06)


def test_the_documentation_shows_what_the_command_prints(command: Command) -> None:
    text = (Path(__file__).resolve().parents[1] / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    shown = text.split("<!-- published:begin -->")[1].split("<!-- published:end -->")[0].strip()
    assert shown == command("bench", "published").strip()


def test_localisation_percentages_are_counts_of_pairs() -> None:
    """The numbers of pairs that the labels must have show in every published percentage."""
    pairs = {"ramen": 71, "teatime": 59, "waldo_kitchen": 22, "figurines": 56}
    off = []
    for row in published("lerf-ovs", "localisation_accuracy"):
        if row.scene in pairs:
            hits = float(row.value) / 100 * pairs[row.scene]
            off.append(abs(hits - round(hits)) / pairs[row.scene] * 100)
    assert np.median(off) < 0.06
