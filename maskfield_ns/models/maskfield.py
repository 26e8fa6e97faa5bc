"""``maskfield``: a mask-feature field and a query head on nerfacto."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle, RaySamples
from nerfstudio.data.scene_box import OrientedBox
from nerfstudio.field_components.field_heads import FieldHeadNames
from nerfstudio.models.nerfacto import NerfactoModel, NerfactoModelConfig
from nerfstudio.utils.rich_utils import CONSOLE
from torch import Tensor

from maskfield_ns import compat
from maskfield_ns.errors import CheckpointError
from maskfield_ns.fields.mask_field import MaskField, MaskFieldConfig, render_features, unit_cube_positions
from maskfield_ns.models.mask_outputs import ActiveQuery, Outputs, ask, mask_pictures
from maskfield_ns.models.mask_stage import MaskStage, MaskStageConfig
from maskfield_ns.models.text import TextEncoder
from maskfield_ns.queries.decision import DecisionRule
from maskfield_ns.queries.head import QueryHead, check_checkpoint
from maskfield_ns.queries.relevancy import CANONICAL_NEGATIVES

if TYPE_CHECKING:
    from torch.nn import Parameter


@dataclass
class MaskfieldModelConfig(NerfactoModelConfig):
    """nerfacto, plus everything about masks and queries."""

    _target: type = field(default_factory=lambda: MaskfieldModel)
    """Target class to instantiate."""
    mask_field: MaskFieldConfig = field(default_factory=MaskFieldConfig)
    """The mask feature field."""
    mask_stage: MaskStageConfig = field(default_factory=MaskStageConfig)
    """How cached masks become queries."""
    decision: DecisionRule = field(default_factory=DecisionRule)
    """How relevancies become answers."""
    samples_per_ray: int = 4
    """Heaviest samples of a ray that carry mask features, in training and rendering."""
    cell_resolution: int = 256
    """Cells along each axis of the contracted scene in which masks of different views are compared."""
    phrases: tuple[str, ...] = ()
    """Phrases shown as relevancy_i and composited_i by ns-viewer, ns-render and ns-eval."""
    negatives: tuple[str, ...] = CANONICAL_NEGATIVES
    """Phrases that relevancy is measured against."""


@dataclass
class _ViewSamples:
    """The heaviest samples of one view's ray grid; constant once the radiance field is frozen."""

    weights: Float[Tensor, "R K"]
    positions: Float[Tensor, "R K 3"]
    cells: Int[Tensor, " R"]


class MaskfieldModel(NerfactoModel):
    """The radiance field is nerfacto's and learns from colours alone; mask features never move density or colour."""

    config: MaskfieldModelConfig

    def populate_modules(self) -> None:
        """Nerfacto's modules, the mask feature field and the query head."""
        with compat.lazy_lpips():
            super().populate_modules()
        metadata: dict[str, Any] = self.kwargs.get("metadata") or {}
        cfg = self.config
        reference = cfg.mask_stage.rule == "reference"
        self.query_head = QueryHead(
            cfg.mask_stage.num_queries,
            cfg.mask_field.feature_dim,
            # An opened run takes the size from its checkpoint (load_state_dict).
            metadata.get("embedding_dim") or 1,
            by_level=not reference,
            parametrisation="index_mlp" if reference else "table",
        )
        self.mask_field = MaskField(cfg.mask_field, self.query_head.channels)
        # Plain holders, so that neither targets nor text models end up in checkpoints.
        self._metadata = metadata
        self._stage: MaskStage | None = None
        self._samples: dict[int, _ViewSamples] = {}
        self._active: ActiveQuery | None = None
        self.text = TextEncoder(metadata.get("embedder_config"))

    def get_param_groups(self) -> dict[str, list[Parameter]]:
        """Nerfacto's groups plus ``mask_field`` and ``queries``."""
        groups = super().get_param_groups()
        groups["mask_field"] = list(self.mask_field.parameters())
        groups["queries"] = list(self.query_head.parameters())
        return groups

    def load_state_dict(self, state_dict: dict, strict: bool = True, **kwargs: Any) -> Any:  # type: ignore[override]
        """Loads a checkpoint, taking the embedding size from it.

        Raises:
            CheckpointError: written by another version, lacking weights, or resumed with another embedder.
        """
        prefix = "query_head."
        own = {k.removeprefix(prefix): v for k, v in state_dict.items() if k.startswith(prefix)}
        check_checkpoint(own, self.query_head)
        self.query_head.resize_embeddings(own)
        stored, cached = self.query_head.embeddings.shape[-1], self._metadata.get("embedding_dim")
        if cached is not None and cached != stored:
            raise CheckpointError(
                f"the checkpoint's embeddings have {stored} channels, those of the mask cache {cached}: "
                "resume with the embedder that the run was started with"
            )
        # nerfstudio loads what is there and leaves the rest random, without a word.
        fields = ("mask_field.", "field.", "proposal_networks.")
        lacking = [name for name in self.state_dict() if name.startswith(fields) and name not in state_dict]
        if lacking:
            raise CheckpointError(
                f"the checkpoint lacks {lacking[0]} and {len(lacking) - 1} more: it is incomplete, or only one of "
                "training and this machine had tiny-cuda-nn (train with the torch implementation to be independent)"
            )
        return super().load_state_dict(state_dict, strict=strict, **kwargs)

    # --- rendering ----------------------------------------------------------------------------------------------------

    def _heaviest(self, ray_samples: RaySamples, weights: Float[Tensor, "R S 1"]) -> tuple[Tensor, Tensor]:
        """Weights [R, K] and unit-cube positions [R, K, 3] of the K heaviest samples of each ray, detached."""
        flat = weights[..., 0].detach()
        k = min(self.config.samples_per_ray, flat.shape[1])
        top = flat.topk(k, dim=1)
        positions = ray_samples.frustums.get_positions().detach()
        chosen = positions.gather(1, top.indices[..., None].expand(-1, -1, 3))
        aabb = self.scene_box.aabb.to(chosen.device)
        return top.values, unit_cube_positions(chosen, aabb, not self.config.disable_scene_contraction)

    def _sample(self, ray_bundle: RayBundle) -> tuple[RaySamples, Tensor, dict]:
        ray_samples, weights_list, samples_list = self.proposal_sampler(ray_bundle, density_fns=self.density_fns)
        field_outputs = self.field.forward(ray_samples)
        weights = ray_samples.get_weights(field_outputs[FieldHeadNames.DENSITY])
        return ray_samples, weights, {"field": field_outputs, "weights": weights_list, "samples": samples_list}

    def get_outputs(self, ray_bundle: RayBundle) -> dict[str, Any]:
        """Colours while training; in evaluation also ``features`` [R, D], the rendered mask features."""
        if self.training:
            return super().get_outputs(ray_bundle)
        ray_samples, weights, parts = self._sample(ray_bundle)
        top, positions = self._heaviest(ray_samples, weights)
        outputs = {
            "rgb": self.renderer_rgb(rgb=parts["field"][FieldHeadNames.RGB], weights=weights),
            "accumulation": self.renderer_accumulation(weights=weights),
            "depth": self.renderer_depth(weights=weights, ray_samples=ray_samples),
            "expected_depth": self.renderer_expected_depth(weights=weights, ray_samples=ray_samples),
            "features": render_features(top, self.mask_field(positions)),
        }
        for i, (w, samples) in enumerate(zip(parts["weights"], parts["samples"], strict=True)):
            outputs[f"prop_depth_{i}"] = self.renderer_depth(weights=w, ray_samples=samples)
        return outputs

    @torch.no_grad()
    def get_outputs_for_camera(self, camera: Cameras, obb_box: OrientedBox | None = None) -> Outputs:
        """One view: nerfacto's outputs and the mask pictures of :func:`mask_pictures`."""
        outputs = Outputs(super().get_outputs_for_camera(camera, obb_box))
        outputs.features = outputs.pop("features")
        if self._active is None and self.config.phrases:
            self.ask(self.config.phrases)
        active = self._active
        outputs.update(mask_pictures(outputs.features, outputs["rgb"], self.query_head, active, self.config.decision))
        return outputs

    # --- queries ------------------------------------------------------------------------------------------------------

    def ask(self, phrases: Sequence[str], negatives: Sequence[str] | None = None) -> ActiveQuery:
        """Makes phrases the ones that outputs answer.

        Raises:
            WeightsError: the text model of the run cannot be loaded.
        """
        negatives = tuple(negatives) if negatives else self.config.negatives
        self._active = ask(self.query_head, phrases, self.text(phrases), self.text(negatives), self.config.decision)
        return self._active

    # --- the mask stage -----------------------------------------------------------------------------------------------

    def mask_step(
        self, view: int, rays_of_view: Callable[[int], RayBundle]
    ) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, float]]:
        """One step of the mask stage on one training view.

        Args:
            view: index of the training view.
            rays_of_view: rays [h * w] of a view's mask grid.

        Returns:
            (outputs, losses, metrics) as a pipeline's get_train_loss_dict.
        """
        if self._stage is None:
            self._stage = self._begin_stage(rays_of_view)
        samples = self._view_samples(view, rays_of_view)
        features = render_features(samples.weights, self.mask_field(samples.positions))
        losses, figures = self._stage.losses(view, features)
        return {"mask_features": features}, losses, figures

    def _begin_stage(self, rays_of_view: Callable[[int], RayBundle]) -> MaskStage:
        views = self._metadata["mask_views"]
        stage = MaskStage(
            self.config.mask_stage,
            self.query_head,
            views,
            lambda view: self._view_samples(view, rays_of_view).cells,
            self.config.cell_resolution**3,
        )
        resuming = bool((self.query_head.support > 0).any())
        CONSOLE.print(f"Mask stage: comparing {views.num_masks} masks across {len(views)} views ...")
        stage.prepare(adopt=not resuming)
        if self.config.mask_stage.rule == "consensus":
            counts = [int((self.query_head.support[self.query_head.bank(k)] > 0).sum()) for k in range(3)]
            CONSOLE.print(f"Mask stage: {sum(counts)} things found (subpart, part, whole: {counts})")
        return stage

    @torch.no_grad()
    def _view_samples(self, view: int, rays_of_view: Callable[[int], RayBundle]) -> _ViewSamples:
        """Samples of a view; computed once, since the radiance field does not change any more."""
        if view not in self._samples:
            was_training = self.training
            self.eval()
            bundle = rays_of_view(view).to(self.device)
            # The radiance field has learnt from poses corrected like this; detached, since poses are not moved here.
            self.camera_optimizer.apply_to_raybundle(bundle)
            chunk = self.config.eval_num_rays_per_chunk
            parts = [self._surface(bundle[i : i + chunk]) for i in range(0, len(bundle), chunk)]
            self._samples[view] = _ViewSamples(*(torch.cat(column) for column in zip(*parts, strict=True)))
            self.train(was_training)
        return self._samples[view]

    def _surface(self, bundle: RayBundle) -> tuple[Tensor, Tensor, Tensor]:
        """Heaviest samples of some rays, and the cell of the sample in which each ray becomes half opaque."""
        if self.collider is not None:
            bundle = self.collider(bundle)
        ray_samples, weights, _ = self._sample(bundle)
        top, positions = self._heaviest(ray_samples, weights)
        opacity = weights[..., 0].cumsum(dim=1)
        median = (opacity < 0.5).sum(dim=1).clamp(max=opacity.shape[1] - 1)
        surface = ray_samples.frustums.get_positions()[torch.arange(len(median), device=median.device), median]
        aabb = self.scene_box.aabb.to(surface.device)
        cube = unit_cube_positions(surface, aabb, not self.config.disable_scene_contraction)
        n = self.config.cell_resolution
        index = (cube * n).long().clamp(0, n - 1)
        cells = (index[:, 0] * n + index[:, 1]) * n + index[:, 2]
        return top, positions, torch.where(opacity[:, -1] >= 0.5, cells, torch.full_like(cells, -1))

    # --- evaluation ---------------------------------------------------------------------------------------------------

    def get_image_metrics_and_images(
        self, outputs: dict[str, Tensor], batch: dict[str, Tensor]
    ) -> tuple[dict[str, float], dict[str, Tensor]]:
        """Nerfacto's figures (LPIPS only when its weights are at hand) and pictures, plus the mask pictures."""
        metrics, images = compat.image_metrics(super().get_image_metrics_and_images, outputs, batch)
        for name, picture in outputs.items():
            if name.startswith(("mask_", "class_map", "relevancy_", "composited_")):
                images[name] = picture.clamp(0, 1)
        metrics = {k: float(v) for k, v in metrics.items() if np.isfinite(float(v))}
        return metrics, images
