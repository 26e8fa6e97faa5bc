"""Scenes of all formats evaluated with a model that knows everything: what ns-eval makes of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures_on_disk import CONFIGS, formats, labels_of, parse, protocol_of, refused
from oracle import Evaluated, Oracle, ids_in
from PIL import Image

from maskfield_ns.data.undistortion import undistortion
from maskfield_ns.evaluation.benchmark import PREDICTIONS, WORST_SHEET, BenchmarkEvaluator
from maskfield_ns.evaluation.protocols.predictions import read_prediction
from maskfield_ns.evaluation.protocols.registry import BENCHMARKS, score_folder
from maskfield_ns.evaluation.protocols.sentences import OV_NERF_SENTENCES, sentences

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


def test_answers_from_undistorted_pictures_are_scored_at_the_photographs_pixels(
    scenes: dict[str, Path], capture: formats.Source, tmp_path: Path
) -> None:
    """As with Gaussians: the picture is undistorted and cropped before it is rendered."""
    outputs, oracle = parse("mipnerf360", scenes["mipnerf360"], "test"), Oracle(capture)
    path = outputs.image_filenames[1]
    how = undistortion(outputs.cameras[1].reshape(()))
    assert how is not None and how.size != (how.photograph[1], how.photograph[0])
    ids = ids_in("mipnerf360", capture, path)
    figures = {}
    for name, undistortions, seen in (("bent", {path.name: how}, how.apply(ids)), ("plain", {}, ids)):
        evaluator = BenchmarkEvaluator(oracle, outputs.metadata["benchmark"], tmp_path / name, undistortions)
        evaluator.add(path.name, oracle.outputs(seen))
        figures[name], details = evaluator.summary()
        assert details["scored_sizes"] == [[ids.shape[1], ids.shape[0]]]
        assert any("lens distortion" in note for note in details["notes"]) == (name == "bent")
        protocol = BENCHMARKS["mipnerf360"]
        label_set = protocol.open_labels(labels_of("mipnerf360", scenes["mipnerf360"]), None)
        view = evaluator.labels.load(outputs.metadata["benchmark"]["views"][path.stem])
        saved = read_prediction(tmp_path / name / PREDICTIONS, view.view, "relevancy", label_set.phrases_of(view.view))
        assert saved is not None and saved.size == view.size
    assert figures["bent"]["miou_own_masks"] > 0.93, figures
    assert figures["bent"]["miou"] == pytest.approx(figures["plain"]["miou"], abs=0.05)
    assert figures["bent"]["localisation_accuracy"] == figures["plain"]["localisation_accuracy"]


@pytest.mark.parametrize(
    ("kind", "rule", "figure"),
    [("lerf-mask", "default", "miou"), ("lerf-ovs", "opengaussian", "acc_50"), ("replica", "default", "accuracy")],
)
def test_every_kind_of_answer_goes_back_through_a_lens(
    kind: str, rule: str, figure: str, scenes: dict[str, Path], capture: formats.Source, tmp_path: Path
) -> None:
    """Whatever the lens: features as an undistorted picture shows them, labels as the photograph does."""
    outputs, oracle = parse(kind, scenes[kind], "test", rule=rule), Oracle(capture)
    path, camera = outputs.image_filenames[1], outputs.cameras[1].reshape(())
    camera.distortion_params = torch.tensor([-0.25, 0.05, 0.0, 0.0, 0.002, 0.001])
    how = undistortion(camera)
    assert how is not None
    evaluator = BenchmarkEvaluator(oracle, outputs.metadata["benchmark"], tmp_path, {path.name: how})
    ids = ids_in(kind, capture, path)
    evaluator.add(path.name, oracle.outputs(how.apply(ids)))
    figures, details = evaluator.summary()
    assert figures[figure] > 0.9, figures
    assert details["scored_sizes"] == [[ids.shape[1], ids.shape[0]]]
    assert any("was not rendered" in note for note in details["notes"])


@pytest.mark.parametrize(("kind", "rule", "least"), [("3d-ovs", "occam", 0.8), ("lerf-ovs", "opengaussian", 0.85)])
def test_rules_that_take_other_predictions(
    kind: str,
    rule: str,
    least: float,
    scenes: dict[str, Path],
    capture: formats.Source,
    evaluated: Callable[[str], Evaluated],
    tmp_path: Path,
) -> None:
    outputs, oracle = parse(kind, scenes[kind], "test", rule=rule), Oracle(capture)
    evaluator = BenchmarkEvaluator(oracle, outputs.metadata["benchmark"], tmp_path)
    for path in outputs.image_filenames:
        evaluator.add(path.name, oracle.outputs(ids_in(kind, capture, path)))
    figures, details = evaluator.summary()
    assert details["rule"] == rule and figures["miou"] > least, figures
    protocol = BENCHMARKS[kind].under(rule)
    assert set(protocol.metrics) <= set(figures) and "localisation_accuracy" not in figures
    label_set = protocol.open_labels(labels_of(kind, scenes[kind]), None)
    again = score_folder(protocol, tmp_path / PREDICTIONS, label_set, rule)
    for key, value in again.figures.items():
        assert figures[key] == pytest.approx(value, abs=1e-6)
    if rule == "opengaussian":  # what the default rule's evaluation saves can be scored by this one too
        other = score_folder(protocol, evaluated(kind).folder / "eval" / PREDICTIONS, label_set, rule)
        assert other.figures == again.figures
        assert other.figures["miou"] == pytest.approx(evaluated(kind).figures["miou_own_masks"], abs=1e-6)


def test_averaged_sentences_and_a_silent_blank(scenes: dict[str, Path], capture: formats.Source) -> None:
    outputs = parse("replica", scenes["replica"], "test", templates="imagenet", blank_competes=False)
    oracle = Oracle(capture)
    oracle.text = lambda phrases: torch.stack([Oracle.text(oracle, [_noun(p)])[0] for p in phrases])  # type: ignore
    evaluator = BenchmarkEvaluator(oracle, outputs.metadata["benchmark"])
    features = oracle.outputs(ids_in("replica", capture, outputs.image_filenames[0])).features
    scores = evaluator.class_scores(features)
    assert (scores[0] == -1).all()
    assert scores.shape == (len(evaluator.labels.phrases), *features.shape[:2])


def test_ov_nerf_averages_85_sentences(scenes: dict[str, Path], capture: formats.Source) -> None:
    made = {kind: [make("mug") for make in sentences(kind)] for kind in ("none", "imagenet", "ov-nerf")}
    assert made["none"] == ["mug"] and len(made["imagenet"]) == 80 and len(set(made["ov-nerf"])) == 85
    assert made["ov-nerf"][80:] == [sentence.replace("{}", "mug") for sentence in OV_NERF_SENTENCES]
    outputs = parse("replica", scenes["replica"], "test", templates="ov-nerf")
    oracle, asked = Oracle(capture), []

    def text(phrases: Any) -> torch.Tensor:
        """A unit vector of its own for each sentence that is not of ImageNet's list."""
        asked.extend(phrases)
        blank = [phrase.replace("mug", "{}") for phrase in phrases]
        return torch.stack([torch.eye(24)[OV_NERF_SENTENCES.index(p) if p in OV_NERF_SENTENCES else 9] for p in blank])

    oracle.text = text  # type: ignore[method-assign]
    evaluator = BenchmarkEvaluator(oracle, outputs.metadata["benchmark"])
    features = oracle.outputs(ids_in("replica", capture, outputs.image_filenames[0])).features
    evaluator.class_scores(features)
    vector = evaluator._class_embeddings()[evaluator.labels.phrases.index("mug")]
    wanted = torch.zeros(24)
    wanted[:5], wanted[9] = 1 / 85, 80 / 85
    assert torch.allclose(vector, wanted / wanted.norm(), atol=1e-6)
    assert "this is one mug in the scene." in asked


def _noun(sentence: str) -> str:
    """The class a sentence of OpenCLIP's templates is about, or the phrase itself."""
    known = ("duck", "teddy bear", "table", "floor", "mug")
    return next((name for name in known if name in sentence), sentence)
