"""The main job on Gaussians, on a small copy of the demo capture: cache, train, resume, query, evaluate, attach."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from runs import OpenedFiles, make_small_demo, resave, small_config, small_splat_config, train

from maskfield_ns.errors import CheckpointError
from maskfield_ns.models.base_run import open_base_run
from maskfield_ns.scene import Scene

pytestmark = pytest.mark.slow

COLOUR_STEPS, MASK_STEPS = 160, 30
INTERRUPTED = 70
"""Step at which the first training ends: in the middle of densification."""


@dataclass
class Job:
    capture: Path
    first: Path
    """config.yml of the training that was interrupted."""
    resumed: Path
    """config.yml of the training that went on from it, to the end."""
    opened: list[str]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Job]:
    folder = tmp_path_factory.mktemp("splat")
    capture, recorder = make_small_demo(folder / "capture", points=True), OpenedFiles()
    with recorder.record() as opened:
        config = small_splat_config(capture, folder / "runs", "first", COLOUR_STEPS, MASK_STEPS)
        config.max_num_iterations = INTERRUPTED
        first = train(config)
        config = small_splat_config(capture, folder / "runs", "resumed", COLOUR_STEPS, MASK_STEPS)
        config.load_dir = first.parent / "nerfstudio_models"
        config.max_num_iterations -= INTERRUPTED
        config.pipeline.model.phrases = ("wooden table",)
        resumed = train(config)
    yield Job(capture, first, resumed, opened)


@pytest.fixture(scope="module")
def scene(job: Job) -> Scene:
    return Scene.load(job.resumed)


def checkpoint(config: Path) -> dict[str, Any]:
    (path,) = (config.parent / "nerfstudio_models").glob("*.ckpt")
    return torch.load(path, map_location="cpu")


def gaussians(config: Path) -> dict[str, torch.Tensor]:
    prefix = "_model.gauss_params."
    tensors = checkpoint(config)["pipeline"]
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def metrics(config: Path, folder: Path) -> dict[str, float]:
    from nerfstudio.scripts.eval import ComputePSNR

    ComputePSNR(config, folder / "metrics.json").main()
    return json.loads((folder / "metrics.json").read_text())["results"]


def test_training_reads_no_labels(job: Job) -> None:
    assert not [path for path in job.opened if "/gt/" in path]
    assert [path for path in job.opened if path.endswith(".jpg")]


def test_resumed_training_moves_and_densifies(job: Job) -> None:
    """Stock splatfacto optimises parameters that nothing renders (nerfstudio#3554)."""
    before, after = gaussians(job.first), gaussians(job.resumed)
    assert len(after["means"]) > len(before["means"]) > 0
    assert checkpoint(job.resumed)["step"] == COLOUR_STEPS + MASK_STEPS - 1
    assert (after["means"][: len(before["means"])] - before["means"]).abs().max() > 1e-3
    for name, tensor in after.items():
        assert len(tensor) == len(after["means"]), name
        assert torch.isfinite(tensor).all(), name
    optimisers = checkpoint(job.resumed)["optimizers"]
    moments = optimisers["mask_features"]["state"][0]["exp_avg"]
    assert moments.shape == after["mask_features"].shape and moments.abs().sum() > 0


def test_evaluation(job: Job, tmp_path: Path) -> None:
    results = metrics(job.resumed, tmp_path)
    assert results["psnr"] > 17
    assert results["pixel_accuracy"] > 0.5
    assert all(math.isfinite(value) for value in results.values())


def test_answers(scene: Scene) -> None:
    answers = scene.query(["wooden table", "elephant"])
    assert answers[0].score > answers[1].score
    camera = scene.cameras("test")[0]
    view = scene.render(camera, answers)
    assert view.rgb.shape == (120, 160, 3) and view.depth.shape == (120, 160)
    assert np.isfinite(view.depth).all()
    assert view.masks["wooden table"].mean() > 0.1


def test_features_are_what_the_rasteriser_renders(scene: Scene) -> None:
    """Against the reference rasteriser of the tests, one pixel column of channels at a time."""
    model, camera = scene.model, scene.cameras("test", scale=0.2)[0].camera
    outputs = model.get_outputs_for_camera(camera)
    features = model.gauss_params["mask_features"]
    assert outputs.features.shape == (*outputs["rgb"].shape[:2], features.shape[1])
    # With one feature for all Gaussians the picture of features is the accumulation times it.
    before = features.data.clone()
    try:
        features.data[:] = torch.arange(features.shape[1], dtype=torch.float32)
        constant = model.get_outputs_for_camera(camera)
    finally:
        features.data[:] = before
    expected = constant["accumulation"] * torch.arange(features.shape[1], dtype=torch.float32)
    torch.testing.assert_close(constant.features, expected, atol=1e-3, rtol=1e-4)
    assert not torch.allclose(outputs.features, constant.features)


def test_a_crop_box_cuts_features_too(scene: Scene) -> None:
    from nerfstudio.data.scene_box import OrientedBox

    camera = scene.cameras("test", scale=0.3)[0].camera
    whole = scene.model.get_outputs_for_camera(camera)
    nothing = OrientedBox(R=torch.eye(3), T=torch.tensor([100.0, 0, 0]), S=torch.ones(3) * 0.1)
    empty = scene.model.get_outputs_for_camera(camera, nothing)
    assert set(empty) == set(whole)
    assert not empty.features.any() and not empty["accumulation"].any()
    assert {k: v.shape for k, v in empty.items()} == {k: v.shape for k, v in whole.items()}
    assert all(torch.isfinite(v).all() for v in empty.values())


# --- attaching to a run -----------------------------------------------------------------------------------------------


def stock_run(job: Job, folder: Path) -> Path:
    """The Gaussians as plain splatfacto would have saved them: its config, its tensors, nothing of ours."""
    from nerfstudio.configs.method_configs import all_methods

    shutil.copytree(job.resumed.parent, folder)
    ours = yaml.load((folder / "config.yml").read_text(), Loader=yaml.Loader)
    config = all_methods["splatfacto"]
    config.pipeline.datamanager.dataparser = ours.pipeline.datamanager.dataparser
    config.pipeline.datamanager.data = ours.pipeline.datamanager.data
    config.pipeline.model.sh_degree = ours.pipeline.model.sh_degree
    (folder / "config.yml").write_text(yaml.dump(config))
    (path,) = (folder / "nerfstudio_models").glob("*.ckpt")
    state = torch.load(path, map_location="cpu")
    state["pipeline"] = {k: v for k, v in state["pipeline"].items() if ".system." not in k and "mask_features" not in k}
    resave(state, path)
    return folder / "config.yml"


def attached(job: Job, base: Path, folder: Path) -> Any:
    config = small_splat_config(job.capture, folder, "attached", COLOUR_STEPS, MASK_STEPS)
    config.pipeline.model.base_run = base
    config.pipeline.model.sh_degree = 0  # the base run's settings must win
    return config


def test_masks_are_attached_to_a_splatfacto_run(job: Job, tmp_path: Path) -> None:
    base = stock_run(job, tmp_path / "base")
    config = train(attached(job, base, tmp_path / "runs"))
    before, after = gaussians(job.resumed), gaussians(config)
    for name in ("means", "quats", "scales", "opacities", "features_dc", "features_rest"):
        assert torch.equal(before[name], after[name]), name
    assert after["mask_features"].abs().sum() > 0
    shutil.rmtree(base.parent)  # from here on the run stands on its own
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first, second = metrics(job.resumed, tmp_path / "a"), metrics(config, tmp_path / "b")
    assert second["psnr"] == pytest.approx(first["psnr"], abs=1e-4)
    assert second["query_miou"] == pytest.approx(first["query_miou"], abs=0.2)
    assert checkpoint(config)["step"] == COLOUR_STEPS + MASK_STEPS - 1, "only the mask stage was trained"


def test_masks_are_attached_to_a_nerfacto_run(job: Job, tmp_path: Path) -> None:
    from maskfield_ns.commands.extract import method_config

    del method_config  # nerfstudio's own method, with the small field of ours to be quick
    from nerfstudio.configs.method_configs import all_methods

    config = small_config(job.capture, tmp_path / "runs", "attached", 40, 10)
    plain = all_methods["nerfacto"]
    plain.data, plain.output_dir, plain.experiment_name = job.capture, tmp_path / "base", "base"
    plain.timestamp, plain.vis, plain.max_num_iterations = "base", "tensorboard", 30
    plain.mixed_precision, plain.machine.device_type = False, "cpu"
    plain.steps_per_eval_batch = plain.steps_per_eval_image = plain.steps_per_save = 10**9
    plain.pipeline.datamanager.train_num_rays_per_batch = plain.pipeline.datamanager.eval_num_rays_per_batch = 64
    small = config.pipeline.model
    for name in ("log2_hashmap_size", "num_levels", "max_res", "hidden_dim", "hidden_dim_color"):
        setattr(plain.pipeline.model, name, getattr(small, name))
    for name in ("num_nerf_samples_per_ray", "num_proposal_samples_per_ray", "proposal_net_args_list"):
        setattr(plain.pipeline.model, name, getattr(small, name))
    plain.pipeline.model.num_proposal_iterations, plain.pipeline.model.implementation = 1, "torch"
    plain.pipeline.model.camera_optimizer.mode = "SO3xR3"
    plain.pipeline.model.log2_hashmap_size = 12  # not ours: the base run's settings must win
    import maskfield_ns.compat as compat

    with compat.lazy_lpips():
        base = train(plain)
    config.pipeline.model.base_run = base
    result = train(config)
    before, after = checkpoint(base)["pipeline"], checkpoint(result)["pipeline"]
    for name, tensor in before.items():
        if name.startswith(("_model.field.", "_model.proposal_networks.", "_model.camera_optimizer.")):
            assert torch.equal(tensor, after[name]), name
    assert Scene.load(result).query("table")


def test_base_runs_that_do_not_fit(job: Job, tmp_path: Path) -> None:
    from nerfstudio.models.nerfacto import NerfactoModelConfig
    from nerfstudio.models.splatfacto import SplatfactoModelConfig

    with pytest.raises(CheckpointError, match="nerfacto"):
        open_base_run(job.resumed, NerfactoModelConfig)
    with pytest.raises(CheckpointError, match="no such run"):
        open_base_run(tmp_path / "nowhere", SplatfactoModelConfig)
    (path,) = (job.resumed.parent / "nerfstudio_models").glob("*.ckpt")
    assert open_base_run(path, SplatfactoModelConfig).config_path == job.resumed
    broken = tmp_path / "broken"
    shutil.copytree(job.resumed.parent, broken)
    (path,) = (broken / "nerfstudio_models").glob("*.ckpt")
    state = torch.load(path, map_location="cpu")
    scales = state["pipeline"].pop("_model.gauss_params.scales")
    resave(state, path)
    with pytest.raises(CheckpointError, match="no scales"):
        train(attached(job, broken, tmp_path / "runs"))
    state["pipeline"]["_model.gauss_params.scales"] = scales[:, :2]
    resave(state, path)
    with pytest.raises(CheckpointError, match=r"scales is \(\d+, 2\)"):
        train(attached(job, broken, tmp_path / "runs"))
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(CheckpointError, match="no usable checkpoint"):
        train(attached(job, broken, tmp_path / "runs"))
    path.unlink()
    with pytest.raises(CheckpointError, match="no checkpoint"):
        train(attached(job, broken, tmp_path / "runs"))


# --- checkpoints that do not fit --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda s: s.pop("_model.gauss_params.mask_features"), "lacks"),
        (lambda s: s.update({"_model.gauss_params.quats": s["_model.gauss_params.quats"][:-1]}), "quats is"),
        (lambda s: s["_model.system.query_head.schema_version"].add_(1), "layout"),
    ],
)
def test_damaged_checkpoints_are_refused(job: Job, tmp_path: Path, damage: Any, message: str) -> None:
    shutil.copytree(job.resumed.parent, tmp_path / "run")
    (path,) = (tmp_path / "run" / "nerfstudio_models").glob("*.ckpt")
    state = torch.load(path, map_location="cpu")
    damage(state["pipeline"])
    resave(state, path)
    with pytest.raises(CheckpointError, match=message):
        Scene.load(tmp_path / "run" / "config.yml")
