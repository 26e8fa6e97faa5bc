"""The registered methods and their hyper-parameters, and nothing else.

Every ns-* command imports this module, so it must be cheap and must not fail: no foundation model, no image library
beyond nerfstudio's own (tests/test_import_cost.py).
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from nerfstudio.cameras.camera_optimizers import CameraOptimizerConfig
from nerfstudio.configs.base_config import MachineConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.engine.optimizers import AdamOptimizerConfig
from nerfstudio.engine.schedulers import ExponentialDecaySchedulerConfig
from nerfstudio.engine.trainer import TrainerConfig
from nerfstudio.plugins.types import MethodSpecification

from maskfield_ns import compat
from maskfield_ns.answers.decision import DecisionRule
from maskfield_ns.data.datamanager import MaskfieldDataManagerConfig
from maskfield_ns.data.splat_datamanager import MaskfieldSplatDataManagerConfig
from maskfield_ns.fields.mask_field import MaskFieldConfig
from maskfield_ns.foundation.config import MergedConfig, OpenClipConfig, SamConfig, TinyClipConfig
from maskfield_ns.models.maskfield import MaskfieldModelConfig
from maskfield_ns.models.optimizers import FusedAdamOptimizerConfig
from maskfield_ns.models.splat import MaskfieldSplatModelConfig
from maskfield_ns.ns_commands import open_runs_where_they_are
from maskfield_ns.pipeline import MaskfieldPipelineConfig
from maskfield_ns.systems.base import SystemConfig
from maskfield_ns.systems.dense.system import DenseConfig
from maskfield_ns.systems.mask_field.mask_stage import MaskStageConfig
from maskfield_ns.systems.mask_field.published import STEPS, PublishedConfig
from maskfield_ns.training import MaskfieldTrainer
from maskfield_ns.viewer.guard import guard_viewers

compat.apply()
open_runs_where_they_are()
guard_viewers()

_NEVER = 10**9
"""For steps_per_eval_*: evaluation is ns-eval's work, and an image costs seconds on a CPU."""


def _adam(lr: float, lr_final: float, max_steps: int, start: int = 0) -> dict[str, Any]:
    """Adam with the rate constant up to ``start`` (nerfstudio counts every group's steps from 0), then decaying."""
    schedule = ExponentialDecaySchedulerConfig(
        lr_final=lr_final, max_steps=max_steps, warmup_steps=start, lr_pre_warmup=lr, ramp="linear"
    )
    return {"optimizer": AdamOptimizerConfig(lr=lr, eps=1e-15), "scheduler": schedule}


# Both methods run the viewer, as nerfstudio's own do, but end when training has ended: the command is one step of a
# user's script (train, then query or evaluate), and ns-viewer opens the run again at any time. nerfstudio's default
# would wait for ctrl+c, on a machine without a browser for ever. `--viewer.quit-on-train-completion False` waits.

maskfield = MethodSpecification(
    config=TrainerConfig(
        _target=MaskfieldTrainer,
        method_name="maskfield",
        max_num_iterations=30000,
        steps_per_save=2000,
        steps_per_eval_batch=_NEVER,
        steps_per_eval_image=_NEVER,
        steps_per_eval_all_images=_NEVER,
        mixed_precision=True,
        machine=MachineConfig(device_type=compat.default_device_type()),
        viewer=compat.default_viewer_config(num_rays_per_chunk=1 << 15, quit_on_train_completion=True),
        vis="viewer",
        pipeline=MaskfieldPipelineConfig(
            datamanager=MaskfieldDataManagerConfig(
                dataparser=NerfstudioDataParserConfig(),
                train_num_rays_per_batch=4096,
                eval_num_rays_per_batch=4096,
                proposer=SamConfig(model_type="vit_h"),
                embedder=OpenClipConfig(model="ViT-B-16", pretrained="laion2b_s34b_b88k"),
                mask_start=20000,
                mask_max_side=128,
            ),
            model=MaskfieldModelConfig(
                eval_num_rays_per_chunk=1 << 15,
                average_init_density=0.01,
                camera_optimizer=CameraOptimizerConfig(mode="SO3xR3"),
                implementation=compat.default_implementation(),
                mask_field=MaskFieldConfig(implementation=compat.default_implementation()),
            ),
        ),
        optimizers={
            "proposal_networks": _adam(1e-2, 1e-4, 200000),
            "fields": _adam(1e-2, 1e-4, 200000),
            "camera_opt": _adam(1e-3, 1e-4, 5000),
            "mask_field": _adam(1e-2, 1e-3, 30000, start=20000),
            "queries": _adam(1e-2, 1e-3, 30000, start=20000),
        },
    ),
    description="Open-vocabulary 3D segmentation on nerfacto: SAM ViT-H masks, OpenCLIP ViT-B-16. For a GPU.",
)
"""GPU-sized."""

maskfield_lite = MethodSpecification(
    config=TrainerConfig(
        _target=MaskfieldTrainer,
        method_name="maskfield-lite",
        max_num_iterations=1700,
        steps_per_save=850,
        steps_per_eval_batch=_NEVER,
        steps_per_eval_image=_NEVER,
        steps_per_eval_all_images=_NEVER,
        mixed_precision=False,
        machine=MachineConfig(device_type=compat.default_device_type()),
        viewer=compat.default_viewer_config(num_rays_per_chunk=1 << 12, quit_on_train_completion=True),
        vis="viewer",
        pipeline=MaskfieldPipelineConfig(
            datamanager=MaskfieldDataManagerConfig(
                dataparser=NerfstudioDataParserConfig(),
                train_num_rays_per_batch=512,
                eval_num_rays_per_batch=512,
                proposer=MergedConfig(),
                embedder=TinyClipConfig(),
                mask_start=1100,
                mask_max_side=80,
            ),
            # Measured on two cores: more and smaller iterations beat more samples, bigger tables lose at this budget,
            # and the random background, which forces opaque rays, is worth 3 dB.
            model=MaskfieldModelConfig(
                eval_num_rays_per_chunk=1 << 12,
                log2_hashmap_size=15,
                num_levels=8,
                max_res=512,
                hidden_dim=32,
                hidden_dim_color=32,
                num_proposal_iterations=1,
                num_proposal_samples_per_ray=(32,),
                num_nerf_samples_per_ray=16,
                proposal_net_args_list=[
                    {"hidden_dim": 16, "log2_hashmap_size": 13, "num_levels": 4, "max_res": 128, "use_linear": False}
                ],
                background_color="random",
                use_appearance_embedding=False,
                camera_optimizer=CameraOptimizerConfig(mode="off"),
                implementation="torch",
                mask_field=MaskFieldConfig(
                    num_levels=6,
                    features_per_level=4,
                    max_res=256,
                    log2_hashmap_size=14,
                    hidden_dim=32,
                    implementation="torch",
                ),
                system=MaskStageConfig(num_queries=600),
            ),
        ),
        optimizers={
            "proposal_networks": _adam(2e-2, 2e-3, 1100),
            "fields": _adam(2e-2, 2e-3, 1100),
            "camera_opt": _adam(1e-3, 1e-4, 1100),
            "mask_field": _adam(1e-2, 1e-3, 1700, start=1100),
            "queries": _adam(1e-2, 1e-3, 1700, start=1100),
        },
    ),
    description="Open-vocabulary 3D segmentation on a small nerfacto with embedded SAM and CLIP. For a CPU, offline.",
)
"""CPU-sized."""


def _constant(lr: float) -> dict[str, Any]:
    """Adam with a constant rate, for tensors as long as there are Gaussians."""
    return {"optimizer": FusedAdamOptimizerConfig(lr=lr, eps=1e-15), "scheduler": None}


def _fused(lr: float, lr_final: float, max_steps: int, start: int = 0) -> dict[str, Any]:
    """:func:`_adam` for tensors as long as there are Gaussians."""
    return _adam(lr, lr_final, max_steps, start) | {"optimizer": FusedAdamOptimizerConfig(lr=lr, eps=1e-15)}


maskfield_splat = MethodSpecification(
    config=TrainerConfig(
        _target=MaskfieldTrainer,
        method_name="maskfield-splat",
        max_num_iterations=30000,
        steps_per_save=2000,
        steps_per_eval_batch=_NEVER,
        steps_per_eval_image=_NEVER,
        steps_per_eval_all_images=_NEVER,
        mixed_precision=False,
        machine=MachineConfig(device_type=compat.default_device_type()),
        viewer=compat.default_viewer_config(num_rays_per_chunk=1 << 15, quit_on_train_completion=True),
        vis="viewer",
        pipeline=MaskfieldPipelineConfig(
            datamanager=MaskfieldSplatDataManagerConfig(
                dataparser=NerfstudioDataParserConfig(load_3D_points=True),
                cache_images_type="uint8",
                proposer=SamConfig(model_type="vit_h"),
                embedder=OpenClipConfig(model="ViT-B-16", pretrained="laion2b_s34b_b88k"),
                mask_start=28000,
                mask_max_side=256,
            ),
            model=MaskfieldSplatModelConfig(),
        ),
        # Colours: the rates of splatfacto.
        optimizers={
            "means": _fused(1.6e-4, 1.6e-6, 30000),
            "features_dc": _constant(2.5e-3),
            "features_rest": _constant(1.25e-4),
            "opacities": _constant(5e-2),
            "scales": _constant(5e-3),
            "quats": _constant(1e-3),
            "camera_opt": _adam(1e-4, 5e-7, 30000),
            "bilateral_grid": _adam(2e-3, 1e-4, 30000),
            "mask_features": _fused(2.5e-2, 2.5e-3, 30000, start=28000),
            "queries": _adam(5e-3, 5e-4, 30000, start=28000),
        },
    ),
    description="Open-vocabulary 3D segmentation on splatfacto: SAM ViT-H masks, OpenCLIP ViT-B-16. For a GPU.",
)
"""GPU-sized."""

_SPLAT_COLOUR, _SPLAT_MASK = 900, 150

maskfield_splat_lite = MethodSpecification(
    config=TrainerConfig(
        _target=MaskfieldTrainer,
        method_name="maskfield-splat-lite",
        max_num_iterations=_SPLAT_COLOUR + _SPLAT_MASK,
        steps_per_save=_SPLAT_COLOUR,
        steps_per_eval_batch=_NEVER,
        steps_per_eval_image=_NEVER,
        steps_per_eval_all_images=_NEVER,
        mixed_precision=False,
        machine=MachineConfig(device_type=compat.default_device_type()),
        viewer=compat.default_viewer_config(num_rays_per_chunk=1 << 15, quit_on_train_completion=True),
        vis="viewer",
        pipeline=MaskfieldPipelineConfig(
            datamanager=MaskfieldSplatDataManagerConfig(
                dataparser=NerfstudioDataParserConfig(load_3D_points=True),
                cache_images_type="uint8",
                proposer=MergedConfig(),
                embedder=TinyClipConfig(),
                mask_start=_SPLAT_COLOUR,
                mask_max_side=80,
            ),
            model=MaskfieldSplatModelConfig(
                sh_degree=1,
                sh_degree_interval=300,
                num_random=10000,
                random_scale=3.0,
                warmup_length=100,
                refine_every=50,
                reset_alpha_every=1000,
                stop_split_at=700,
                stop_screen_size_at=0,
                cull_alpha_thresh=0.02,
                max_gaussians=20000,
                num_downscales=1,
                resolution_schedule=250,
                system=MaskStageConfig(num_queries=600),
            ),
        ),
        optimizers={
            "means": _fused(1.6e-3, 1.6e-4, _SPLAT_COLOUR),
            "features_dc": _constant(1e-2),
            "features_rest": _constant(1e-3),
            "opacities": _constant(5e-2),
            "scales": _constant(2e-2),
            "quats": _constant(5e-3),
            "camera_opt": _adam(1e-4, 1e-5, _SPLAT_COLOUR),
            "bilateral_grid": _adam(2e-3, 1e-4, _SPLAT_COLOUR),
            "mask_features": _fused(2.5e-2, 2.5e-3, _SPLAT_COLOUR + _SPLAT_MASK, start=_SPLAT_COLOUR),
            "queries": _adam(5e-3, 5e-4, _SPLAT_COLOUR + _SPLAT_MASK, start=_SPLAT_COLOUR),
        },
    ),
    description="Open-vocabulary 3D segmentation on few Gaussians with embedded SAM and CLIP. For a CPU, offline.",
)
"""CPU-sized."""


def _with_system(
    base: MethodSpecification,
    name: str,
    system: SystemConfig,
    steps: int,
    what: str,
    decision: DecisionRule | None = None,
) -> Any:
    """A method that differs from another one in what is attached to the radiance field.

    Args:
        base: the method whose radiance field, images and schedule of colors are used.
        name: of the new method.
        system: what is attached.
        steps: of fitting it.
        what: for ``ns-train --help``.
        decision: how relevancies become answers, where it differs from the mask field's.
    """
    config: Any = deepcopy(base.config)
    start = config.pipeline.datamanager.mask_start
    config.method_name, config.max_num_iterations = name, start + steps
    config.pipeline.model.system = system
    if decision is not None:
        config.pipeline.model.decision = decision
    for group in ("mask_field", "mask_features", "queries"):
        if group in config.optimizers:
            config.optimizers[group]["scheduler"].max_steps = start + steps
    return MethodSpecification(config=config, description=what)


_PAPER = "MaskField's published rule at its own 5,000 iterations and 240 queries, on {}."
_DFF = "Dense feature distillation (DFF) on {}."
_DFF_FOUND = DecisionRule(found_threshold=0.1)
"""A pixel's mean over all masks on it answers less surely than a mask. On one rendered scene and the embedded CLIP, 18
phrases for what is there have evidence of 0.19 and more, 10 for what is not there 0.02 and less."""

maskfield_paper = _with_system(
    maskfield, "maskfield-paper", PublishedConfig(), STEPS, _PAPER.format("nerfacto; SAM ViT-H, OpenCLIP; for a GPU")
)
maskfield_paper_lite = _with_system(
    maskfield_lite, "maskfield-paper-lite", PublishedConfig(), STEPS, _PAPER.format("a small nerfacto; for a CPU")
)
maskfield_paper_splat = _with_system(
    maskfield_splat,
    "maskfield-paper-splat",
    PublishedConfig(),
    STEPS,
    _PAPER.format("splatfacto; SAM ViT-H, OpenCLIP; for a GPU"),
)
maskfield_paper_splat_lite = _with_system(
    maskfield_splat_lite,
    "maskfield-paper-splat-lite",
    PublishedConfig(),
    STEPS,
    _PAPER.format("few Gaussians; for a CPU"),
)
dff = _with_system(
    maskfield, "dff", DenseConfig(feature_dim=128), 5000, _DFF.format("nerfacto; OpenCLIP; for a GPU"), _DFF_FOUND
)
dff_lite = _with_system(
    maskfield_lite,
    "dff-lite",
    DenseConfig(teacher="masks"),
    600,
    _DFF.format("a small nerfacto; for a CPU, offline"),
    _DFF_FOUND,
)
dff_splat = _with_system(
    maskfield_splat,
    "dff-splat",
    DenseConfig(feature_dim=128),
    2000,
    _DFF.format("splatfacto; OpenCLIP; for a GPU"),
    _DFF_FOUND,
)
dff_splat_lite = _with_system(
    maskfield_splat_lite,
    "dff-splat-lite",
    DenseConfig(teacher="masks"),
    150,
    _DFF.format("few Gaussians; for a CPU, offline"),
    _DFF_FOUND,
)
