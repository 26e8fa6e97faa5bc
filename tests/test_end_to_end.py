"""The main job in one process, on a small copy of the demo capture: cache, train, resume, query, evaluate, render."""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from runs import OpenedFiles, make_small_demo, resave, small_config, train

from maskfield_ns import cli
from maskfield_ns.errors import CheckpointError
from maskfield_ns.scene import Scene

pytestmark = pytest.mark.slow

COLOUR_STEPS, MASK_STEPS, MORE_STEPS = 300, 50, 20
PHRASES = ("wooden table", "green mug")


@dataclass
class Job:
    """What one training, interrupted and resumed, has left behind."""

    capture: Path
    first: Path
    """config.yml of the training that was interrupted."""
    resumed: Path
    """config.yml of the training that went on from it."""
    opened: list[str]
    """Files opened while the cache was built and the runs were trained."""
    recorder: OpenedFiles


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Job]:
    folder = tmp_path_factory.mktemp("end_to_end")
    capture, recorder = make_small_demo(folder / "capture"), OpenedFiles()
    with recorder.record() as opened:
        config = small_config(capture, folder / "runs", "first", COLOUR_STEPS, MASK_STEPS)
        config.pipeline.model.phrases = PHRASES
        first = train(config)
        config = small_config(capture, folder / "runs", "resumed", COLOUR_STEPS, MASK_STEPS)
        config.pipeline.model.phrases = PHRASES
        config.load_dir = first.parent / "nerfstudio_models"
        config.max_num_iterations = MORE_STEPS  # nerfstudio counts the steps of a resumed training from its start
        resumed = train(config)
    shutil.rmtree(capture / "maskfield_cache")  # from now on the runs stand on their own
    yield Job(capture, first, resumed, opened, recorder)


@pytest.fixture(scope="module")
def scene(job: Job) -> Scene:
    return Scene.load(job.resumed)


def checkpoint(config: Path) -> dict[str, Any]:
    (path,) = (config.parent / "nerfstudio_models").glob("*.ckpt")
    return torch.load(path, map_location="cpu")


# --- training ---------------------------------------------------------------------------------------------------------


def test_a_checkpoint_is_written_and_resuming_counts_on(job: Job) -> None:
    last = COLOUR_STEPS + MASK_STEPS - 1
    assert [p.name for p in (job.first.parent / "nerfstudio_models").glob("*.ckpt")] == [f"step-{last:09d}.ckpt"]
    assert [p.name for p in (job.resumed.parent / "nerfstudio_models").glob("*.ckpt")] == [
        f"step-{last + MORE_STEPS:09d}.ckpt"
    ]
    assert checkpoint(job.resumed)["step"] == last + MORE_STEPS


def test_resuming_moves_masks_and_nothing_else(job: Job) -> None:
    before, after = checkpoint(job.first)["pipeline"], checkpoint(job.resumed)["pipeline"]
    assert set(before) == set(after)
    changed = {name.split(".")[1] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"mask_field", "system"}, "the mask stage must leave the radiance field alone"
    for name in ("support", "levels", "schema_version"):
        assert torch.equal(before[f"_model.system.query_head.{name}"], after[f"_model.system.query_head.{name}"])


def test_things_were_found_in_the_views(job: Job) -> None:
    support = checkpoint(job.first)["pipeline"]["_model.system.query_head.support"]
    assert (support >= 3).sum() >= 3
    assert support.max() <= 11, "no thing can be found in more views than there are"


def test_checkpoints_hold_neither_targets_nor_foundation_models(job: Job) -> None:
    names = checkpoint(job.first)["pipeline"]
    parts = {name.split(".")[1] for name in names if name.startswith("_model.")}
    assert parts <= {
        "field",
        "proposal_networks",
        "mask_field",
        "system",
        "camera_optimizer",
        "device_indicator_param",
    }
    assert not [name for name in names if not name.startswith("_model.") and "datamanager" not in name]


def test_labels_are_never_opened_before_evaluation(job: Job) -> None:
    assert any("frame_" in path for path in job.opened), "the recorder saw nothing"
    assert not [path for path in job.opened if "/gt/" in path]


# --- a run without its cache ------------------------------------------------------------------------------------------


def test_eval_setup_opens_the_run(job: Job) -> None:
    from nerfstudio.utils.eval_utils import eval_setup

    assert not (job.capture / "maskfield_cache").exists()
    _, pipeline, path, step = eval_setup(job.resumed, test_mode="test")
    assert step == COLOUR_STEPS + MASK_STEPS + MORE_STEPS - 1
    assert path.is_file()
    assert not pipeline.training
    assert not (job.capture / "maskfield_cache").exists(), "opening a run must not rebuild the cache"
    stored = checkpoint(job.resumed)["pipeline"]
    for name, tensor in pipeline.model.query_head.state_dict().items():
        assert torch.equal(tensor, stored[f"_model.system.query_head.{name}"])


def test_scene_answers(job: Job, scene: Scene) -> None:
    with job.recorder.record() as opened:
        answers = {a.phrase: a for a in scene.query(["floor", "table", "green mug", "elephant"])}
        cameras = scene.cameras("test", scale=0.5)
        view = scene.render(cameras[0], list(answers.values()))
    assert not [path for path in opened if "/gt/" in path]
    assert [camera.name for camera in cameras] == json.loads((job.capture / "transforms.json").read_text())[
        "test_filenames"
    ]
    assert all(0 <= a.score <= 1 and a.found == bool(a.queries) for a in answers.values())
    present = max(answers["floor"].score, answers["table"].score)
    assert present > answers["elephant"].score
    assert answers["floor"].found or answers["table"].found
    assert view.rgb.shape == (60, 80, 3) and view.rgb.dtype == np.uint8
    assert view.depth.shape == view.class_map.shape == (60, 80)
    assert np.isfinite(view.depth).all()
    assert set(view.masks) == set(view.relevancy) == set(answers)
    for phrase, answer in answers.items():
        assert view.masks[phrase].shape == (60, 80) and view.masks[phrase].dtype == bool
        assert view.relevancy[phrase].min() >= 0 and view.relevancy[phrase].max() <= 1
        assert answer.found or not view.masks[phrase].any()
    assert set(np.unique(view.class_map)) <= {-1} | {i for i, a in enumerate(answers.values()) if a.found}


def test_negatives_matter(scene: Scene) -> None:
    (usual,) = scene.query("table")
    (against_itself,) = scene.query("table", negatives=["table"])
    assert usual.negatives == ("object", "things", "stuff", "texture")
    assert against_itself.score == pytest.approx(0.5, abs=1e-5)


def test_a_moved_run_opens_from_any_folder(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moved = tmp_path / "moved run"
    shutil.copytree(job.resumed.parent, moved)
    monkeypatch.chdir(tmp_path)
    scene = Scene.load("moved run")
    assert scene.step == COLOUR_STEPS + MASK_STEPS + MORE_STEPS - 1


def test_query_command(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    arguments = ["--text", "wooden table", "--text", "rotes Fahrrad 🚲", "--max-views", "2", "--scale", "0.5"]
    command = ["maskfield", "query", "--load-config", str(job.resumed), "--output", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", command + arguments)
    code = 0
    with job.recorder.record() as opened:
        try:
            cli.entrypoint()
        except SystemExit as end:
            code = end.code
    assert not [path for path in opened if "/gt/" in path]
    result = json.loads((tmp_path / "out" / "answers.json").read_text(encoding="utf-8"))
    assert [a["phrase"] for a in result["answers"]] == ["wooden table", "rotes Fahrrad 🚲"]
    assert code == (0 if any(a["found"] for a in result["answers"]) else 3)
    assert len(result["views"]) == 2
    for view in result["views"]:
        for figures in view["phrases"].values():
            for name in figures["files"]:
                with Image.open(tmp_path / "out" / name) as picture:
                    assert picture.size == (80, 60)
    assert (tmp_path / "out" / "contact_sheet.png").is_file()
    out = capsys.readouterr().out
    assert '"wooden table": ' in out
    assert "contact_sheet.png" in out


# --- nerfstudio's own commands ----------------------------------------------------------------------------------------


def test_ns_eval_writes_figures_without_nan(job: Job, tmp_path: Path) -> None:
    from nerfstudio.scripts.eval import ComputePSNR

    with job.recorder.record() as opened:
        ComputePSNR(job.resumed, tmp_path / "metrics.json", tmp_path / "pictures").main()
    assert [path for path in opened if "/gt/" in path], "evaluation reads the labels, and the recorder sees it"

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    text = (tmp_path / "metrics.json").read_text()
    results = json.loads(text, parse_constant=refuse)["results"]
    assert results["psnr"] > 12
    for name in ("ssim", "query_miou", "class_miou", "localisation_accuracy", "pixel_accuracy"):
        assert 0 <= results[name] <= 1, name
    assert all(math.isfinite(value) for value in results.values())
    assert results["num_pairs"] > 0
    details = json.loads((tmp_path / "pictures" / "segmentation.json").read_text(), parse_constant=refuse)
    assert len(details["views"]) == 3
    written = {path.name.removeprefix("eval_").rsplit("_", 1)[0] for path in (tmp_path / "pictures").glob("*.png")}
    assert {"mask_features", "mask_instances", "class_map", "relevancy_0", "composited_1"} <= written


def test_ns_eval_without_labels_measures_agreement(job: Job, tmp_path: Path) -> None:
    from nerfstudio.scripts.eval import ComputePSNR

    (job.capture / "gt").rename(tmp_path / "gt")
    try:
        ComputePSNR(job.resumed, tmp_path / "metrics.json").main()
    finally:
        (tmp_path / "gt").rename(job.capture / "gt")
    results = json.loads((tmp_path / "metrics.json").read_text())["results"]
    assert 0 < results["agreement"] <= 1
    assert "query_miou" not in results


def test_ns_render_dataset(job: Job, tmp_path: Path) -> None:
    from nerfstudio.scripts.render import DatasetRender

    names = ["rgb", "mask_features", "class_map", "relevancy_0"]
    DatasetRender(load_config=job.resumed, output_path=tmp_path, rendered_output_names=names, image_format="png").main()
    for name in names:
        pictures = sorted((tmp_path / "test" / name).rglob("*.png"))
        assert len(pictures) == 3
        with Image.open(pictures[0]) as picture:
            assert picture.size == (160, 120)
    with Image.open(pictures[0].parents[1] / "rgb" / pictures[0].name) as picture:
        assert np.asarray(picture.convert("RGB")).std() > 5


# --- checkpoints that do not fit --------------------------------------------------------------------------------------


def damaged(job: Job, folder: Path, damage: Any) -> Path:
    """A copy of the run whose checkpoint has been through ``damage``."""
    shutil.copytree(job.resumed.parent, folder)
    (path,) = (folder / "nerfstudio_models").glob("*.ckpt")
    state = torch.load(path, map_location="cpu")
    damage(state["pipeline"])
    resave(state, path)
    return folder / "config.yml"


def drop(prefix: str) -> Any:
    def damage(state: dict[str, Any]) -> None:
        for name in [name for name in state if name.startswith(prefix)]:
            del state[name]

    return damage


def test_checkpoint_of_another_schema(job: Job, tmp_path: Path) -> None:
    def damage(state: dict[str, Any]) -> None:
        state["_model.system.query_head.schema_version"] += 1

    with pytest.raises(CheckpointError, match="layout"):
        Scene.load(damaged(job, tmp_path / "run", damage))


@pytest.mark.parametrize("part", ["mask_field.", "field.", "system.query_head.mask_table"])
def test_checkpoint_without_some_weights_is_refused(job: Job, tmp_path: Path, part: str) -> None:
    """nerfstudio itself would go on with random numbers in their place."""
    with pytest.raises(CheckpointError, match="lacks"):
        Scene.load(damaged(job, tmp_path / "run", drop(f"_model.{part}")))


def test_resuming_with_another_embedder_is_refused(job: Job) -> None:
    state = {k.removeprefix("_model."): v for k, v in checkpoint(job.resumed)["pipeline"].items() if "_model." in k}
    model = Scene.load(job.resumed).model
    views = SimpleNamespace(embedding_dim=512)
    model.run_info = replace(model.run_info, mask_views=views)  # what the datamanager says of the cache in training
    with pytest.raises(CheckpointError, match=r"128.*512"):
        model.load_state_dict(state)


# --- details that only show with a radiance field ---------------------------------------------------------------------


def test_mask_rays_follow_corrected_camera_poses(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """With camera optimisation the radiance field fits the corrected poses, so masks must be seen from there too."""
    from nerfstudio.cameras.camera_optimizers import CameraOptimizerConfig

    model, camera = scene.model, scene.cameras("train", scale=0.1)[0].camera
    shift = torch.tensor([0.02, -0.03, 0.01])

    def rays(view: int) -> Any:
        return camera.generate_rays(camera_indices=0).flatten()

    def shifted_rays(view: int) -> Any:
        bundle = rays(view)
        bundle.origins = bundle.origins + shift
        return bundle

    monkeypatch.setattr(model, "_samples", {})
    plain, expected = model._view_samples(0, rays), model._view_samples(1, shifted_rays)
    optimizer = CameraOptimizerConfig(mode="SO3xR3").setup(num_cameras=1, device="cpu")
    with torch.no_grad():
        optimizer.pose_adjustment[0, :3] = shift
    monkeypatch.setattr(model, "camera_optimizer", optimizer)
    corrected = model._view_samples(2, rays)
    torch.testing.assert_close(corrected.positions, expected.positions)
    assert not torch.allclose(corrected.positions, plain.positions)


def test_features_are_rendered_by_the_heaviest_samples(scene: Scene) -> None:
    """The features of a picture, against all samples of its rays blended by hand."""
    from maskfield_ns.fields.mask_field import unit_cube_positions

    model = scene.model
    camera = scene.cameras("test", scale=0.1)[0].camera
    outputs = model.get_outputs_for_camera(camera)
    bundle = model.collider(camera.generate_rays(camera_indices=0).flatten())
    with torch.no_grad():
        samples, weights, _ = model._sample(bundle)
        cube = unit_cube_positions(samples.frustums.get_positions(), model.scene_box.aabb, contract=True)
        values = model.mask_field(cube)
    for ray in range(0, len(bundle), 7):
        order = sorted(range(weights.shape[1]), key=lambda s: -weights[ray, s, 0].item())
        heaviest = order[: model.config.samples_per_ray]
        expected = sum(weights[ray, s, 0] * values[ray, s] for s in heaviest)
        torch.testing.assert_close(outputs.features.flatten(0, 1)[ray], expected, atol=1e-4, rtol=1e-4)
