"""``maskfield``: a mask-feature field and a query head on nerfacto."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float, Int
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle, RaySamples
from nerfstudio.data.scene_box import OrientedBox
from nerfstudio.field_components.field_heads import FieldHeadNames
from nerfstudio.models.nerfacto import NerfactoModel, NerfactoModelConfig
from torch import Tensor

from maskfield_ns import compat
from maskfield_ns.answers.render import Outputs
from maskfield_ns.fields.cells import cell_index
from maskfield_ns.fields.mask_field import MaskField, MaskFieldConfig, render_features, unit_cube_positions
from maskfield_ns.models.base_run import copy_tensors
from maskfield_ns.models.queryable import Look, QueryableConfig, QueryableMixin

if TYPE_CHECKING:
    from torch.nn import Parameter


@dataclass
class MaskfieldModelConfig(QueryableConfig, NerfactoModelConfig):
    """nerfacto, plus everything about masks and queries."""

    _target: type = field(default_factory=lambda: MaskfieldModel)
    """Target class to instantiate."""
    mask_field: MaskFieldConfig = field(default_factory=MaskFieldConfig)
    """The mask feature field."""
    samples_per_ray: int = 4
    """Heaviest samples of a ray that carry mask features, in training and rendering."""


@dataclass
class _ViewSamples:
    """The heaviest samples of one view's ray grid; constant once the radiance field is frozen."""

    weights: Float[Tensor, "R K"]
    positions: Float[Tensor, "R K 3"]
    cells: Int[Tensor, " R"]


class MaskfieldModel(QueryableMixin[RayBundle], NerfactoModel):
    """The radiance field is nerfacto's and learns from colours alone; mask features never move density or colour."""

    config: MaskfieldModelConfig
    base_config = NerfactoModelConfig
    backbone: Literal["field"] = "field"

    def populate_modules(self) -> None:
        """Nerfacto's modules, the mask feature field and the query head."""
        with compat.metrics_when_needed():
            super().populate_modules()
        self.populate_system()
        self.mask_field = MaskField(self.config.mask_field, self.system.channels)
        self._samples: dict[int, _ViewSamples] = {}

    def get_param_groups(self) -> dict[str, list[Parameter]]:
        """Nerfacto's groups plus ``mask_field`` and ``queries``."""
        groups = super().get_param_groups()
        groups["mask_field"] = list(self.mask_field.parameters())
        groups["queries"] = list(self.system.parameters())
        return groups

    def load_state_dict(self, state_dict: dict, strict: bool = True, **kwargs: Any) -> Any:  # type: ignore[override]
        """Loads a checkpoint, taking the embedding size from it.

        Raises:
            CheckpointError: written by another version, lacking weights, or resumed with another embedder.
        """
        state_dict = self.check_system(state_dict, ("mask_field.", "field.", "proposal_networks."))
        result = super().load_state_dict(state_dict, strict=strict, **kwargs)
        return result

    def load_base(self, tensors: dict[str, Tensor]) -> None:
        """Takes over the radiance field of a base run, its proposal networks and camera corrections.

        Raises:
            CheckpointError: tensors missing or of the wrong shape.
        """
        prefixes = ("field.", "proposal_networks.", "camera_optimizer.")
        copy_tensors(self, tensors, [name for name in self.state_dict() if name.startswith(prefixes)])

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
        if self.edits is not None:
            return self.edits.outputs(self, ray_bundle)
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
    def render_view(self, camera: Cameras, obb_box: OrientedBox | None = None) -> Outputs:
        """Nerfacto's outputs of one view, with its mask features, edits applied."""
        outputs = Outputs(NerfactoModel.get_outputs_for_camera(self, camera, obb_box))
        outputs.features = outputs.pop("features")
        return outputs

    @torch.no_grad()
    def surface_points(self, camera: Cameras, outputs: Mapping[str, Tensor]) -> Float[Tensor, "H W 3"]:
        """Where the rays of a rendered view end, scene coordinates."""
        depth = outputs["depth"][..., 0]
        rays = camera.generate_rays(camera_indices=0)
        return rays.origins.to(depth) + rays.directions.to(depth) * depth[..., None]

    # --- the mask stage -----------------------------------------------------------------------------------------------

    def mask_features(self, view: int, look: Look[RayBundle]) -> Float[Tensor, "P channels"]:
        """Mask features of a training view on its mask grid."""
        samples = self._view_samples(view, look)
        return render_features(samples.weights, self.mask_field(samples.positions))

    def surface_cells(self, view: int, look: Look[RayBundle]) -> Int[Tensor, " P"]:
        """The cell of the sample in which each ray becomes half opaque."""
        return self._view_samples(view, look).cells

    @torch.no_grad()
    def _view_samples(self, view: int, rays_of_view: Look[RayBundle]) -> _ViewSamples:
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
        cells = cell_index(cube, self.config.cell_resolution)
        return top, positions, torch.where(opacity[:, -1] >= 0.5, cells, torch.full_like(cells, -1))
