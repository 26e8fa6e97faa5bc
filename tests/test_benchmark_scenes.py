"""Scenes of all formats evaluated with a model that knows everything: what ns-eval makes of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fixtures_on_disk import CONFIGS, formats, labels_of, parse, protocol_of, refused
from oracle import Evaluated, Oracle, ids_in
from PIL import Image

from maskfield_ns.data.undistortion import undistortion
from maskfield_ns.evaluation.protocols.registry import BENCHMARKS, score_folder
from maskfield_ns.models.benchmark import PREDICTIONS, WORST_SHEET, BenchmarkEvaluator

pytest_plugins = ("fixtures_on_disk", "oracle")


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
