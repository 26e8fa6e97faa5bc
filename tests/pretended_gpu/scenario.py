"""Trains a GPU preset in miniature on the pretended GPU and uses the run; prints one JSON object per line.

python scenario.py splat|nerf|parity FOLDER, under the variables of :func:`environment.build`.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import environment

environment.believe()
import kernels  # noqa: E402
import numpy as np  # noqa: E402
from device import COUNTS, PretendedGpu  # noqa: E402

kernels.install()


def report(name: str, **more: Any) -> None:
    print(json.dumps({"name": name} | COUNTS.summary() | more), flush=True)
    COUNTS.reset()


def attempt(name: str, run: Callable[[], Any]) -> Any:
    """Runs something and says how it went."""
    COUNTS.reset()
    try:
        found = run()
    except Exception as error:  # reported, and the rest goes on
        report(name, error=f"{type(error).__name__}: {error}", trace=traceback.format_exc()[-1500:])
        return None
    report(name)
    return found


def miniature(kind: str, folder: Path) -> Any:
    """The preset, small in every respect, on a capture of a few small pictures."""
    from runs import make_small_demo

    from maskfield_ns import configs
    from maskfield_ns.foundation.config import RegionsConfig, TinyClipConfig

    config = deepcopy({"splat": configs.maskfield_splat, "nerf": configs.maskfield}[kind].config)
    data, model = config.pipeline.datamanager, config.pipeline.model
    data.data = data.dataparser.data = make_small_demo(folder / "capture", frames=8, held_out=(3, 6), scale=0.2)
    data.proposer = RegionsConfig(scales=(200.0, 600.0, 1800.0), max_side=96, min_region_area=20)
    data.embedder, data.mask_max_side = TinyClipConfig(), 40
    data.mask_start = 30 if kind == "splat" else 8
    config.max_num_iterations, config.steps_per_save = data.mask_start + 10, 1000
    config.machine.device_type, config.vis = "cuda", "tensorboard"
    config.output_dir, config.timestamp = folder / "runs", kind
    model.system.num_queries, model.system.min_views, model.system.group_threshold = 90, 2, 0.08
    model.cell_resolution = 16
    if kind == "splat":
        model.num_random, model.random_scale, model.warmup_length, model.refine_every = 700, 2.0, 5, 8
        model.reset_alpha_every, model.num_downscales, model.resolution_schedule = 30, 1, 15
        model.sh_degree_interval = 8
    else:
        model.hidden_dim = model.hidden_dim_color = model.mask_field.hidden_dim = 16
        model.average_init_density = 5.0
        model.num_levels, model.max_res, model.log2_hashmap_size, model.mask_field.num_levels = 3, 64, 8, 3
        model.mask_field.log2_hashmap_size = 8
        model.num_proposal_samples_per_ray, model.num_nerf_samples_per_ray = (16, 12), 8
        model.proposal_net_args_list = [
            {"hidden_dim": 16, "log2_hashmap_size": 8, "num_levels": 3, "max_res": 32, "use_linear": False}
        ] * 2
        data.train_num_rays_per_batch = data.eval_num_rays_per_batch = 128
    return config


def train(config: Any) -> Path:
    import torch

    config.set_timestamp()
    config.save_config()
    torch.manual_seed(42)
    trainer = config.setup(local_rank=0, world_size=1)
    trainer.setup(test_mode="val")
    report("set up", device=str(trainer.pipeline.model.device))
    if hasattr(trainer.pipeline.model, "gauss_params"):  # so few steps would leave nothing to see
        trainer.pipeline.model.gauss_params["opacities"].data.fill_(3.0)
    surface = trainer.pipeline.model.surface_cells

    def same_cells(view: int, look: Any) -> Any:
        """So short a training has no surfaces: neighboring views are taken to see the same place in each pixel."""
        cells = surface(view, look)
        return torch.where(cells >= -1, torch.arange(len(cells), device=cells.device), cells)

    trainer.pipeline.model.surface_cells = same_cells
    start, views = config.pipeline.datamanager.mask_start, 6
    iteration = trainer.train_iteration

    def counted(step: int) -> Any:
        COUNTS.reset()
        found = iteration(step)
        if step == start - 2:
            report("color step")
        if step == start + views + 1:  # every view has been seen once
            report("mask step", losses=sorted(found[1]))
        return found

    trainer.train_iteration = counted
    trainer.train()
    return config.get_base_dir() / "config.yml"


def use(run: Path, folder: Path) -> None:
    import torch

    from maskfield_ns import Scene
    from maskfield_ns.answers.membership import MembershipRule
    from maskfield_ns.viewer import compose
    from maskfield_ns.viewer.editor import SceneEditor
    from maskfield_ns.viewer.session import Session

    scene = attempt("open", lambda: Scene.load(run))
    model, cameras = scene.model, scene.cameras("test")
    with torch.no_grad():  # whatever so short a training found: all branches are to run
        model.query_head.support[:] = 5.0
        model.query_head.visible[:] = 6.0
    model.config.decision.__dict__["found_threshold"] = 0.05
    picture = np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)
    answers = attempt("query by text", lambda: scene.query(["red mug", "a table"]))
    attempt("query by image", lambda: scene.query(image=picture))
    attempt("query by pixel", lambda: scene.query(pixel=(cameras[0], 20, 30)))
    attempt("render", lambda: scene.render(cameras[0], answers))
    attempt("list of objects", lambda: scene.objects(["mug", "duck", "table"]))
    attempt("ask", lambda: model.ask(["red mug", "duck"]))
    attempt("outputs", lambda: model.get_outputs_for_camera(cameras[0].camera))

    def evaluate() -> Any:
        (folder / "eval").mkdir(exist_ok=True)
        return scene.pipeline.get_average_eval_image_metrics(step=1, output_path=folder / "eval", get_std=True)

    attempt("evaluation", evaluate)
    model.eval()  # as nerfstudio's viewer has it
    said: list[str] = []
    session = Session(model, say=said.append, editor=SceneEditor(model, scene.pipeline.datamanager, folder / "edits"))
    session.worker.later = lambda job: job()  # threads have no pretended GPU
    camera = cameras[0].camera
    attempt("viewer: text model", session.load_text_model)
    attempt("viewer: ask", lambda: session.ask("red mug, duck"))
    for mode in compose.MODES:
        session.set(mode=mode)
        attempt(
            f"viewer: {mode}", lambda: session.outputs(lambda: model.render_view(camera), camera, None)["maskfield"]
        )
    attempt("viewer: click", lambda: session.click(camera, 0.5, 0.5))
    anything = MembershipRule((0, 1), (1.0, 1.0), 1e-6)
    selection = attempt("select", lambda: scene.selector.from_rule(anything, "anything"))
    if selection is None:
        return
    attempt("tint", lambda: scene.edit("tint", selection, colour=(0, 0.4, 1)))
    attempt("move", lambda: scene.edit("move", selection, translation=(0.1, 0, 0), rotation=20))
    attempt("duplicate", lambda: scene.edit("duplicate", selection, translation=(0.1, 0.3, 0), scale=0.5))
    attempt("render edited", lambda: scene.render(cameras[0]))
    attempt("delete", lambda: scene.edit("delete", selection))
    attempt("undo", scene.undo)
    attempt("save edits", scene.save_edits)
    attempt("measure", lambda: scene.measure(selection).to_json())
    attempt("export", lambda: scene.export(folder / "selection.ply", selection))
    if hasattr(model, "gauss_params"):
        attempt("export the scene", lambda: scene.export(folder / "scene.ply"))


def parity() -> None:
    """The first table of scripts/gpu_check.py: our CPU kernels against gsplat's wrappers."""
    import gpu_check
    import torch

    for row in gpu_check.parity(torch.device("cuda")):
        report(f"{row['channels']} channels", **{name: row[name] for name in ("image", "alpha", "gradients", "passed")})


def main(kind: str, folder: Path) -> None:
    with PretendedGpu():
        if kind == "parity":
            return parity()
        use(train(miniature(kind, folder)), folder)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
