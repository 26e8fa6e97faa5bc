"""``maskfield-splat``: mask features on the Gaussians of splatfacto, and a query head."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.scene_box import OrientedBox
from nerfstudio.models.splatfacto import SplatfactoModel, SplatfactoModelConfig
from torch import Tensor
from torch.nn import Parameter

from maskfield_ns import compat
from maskfield_ns.answers.render import Outputs
from maskfield_ns.cameras import unproject, world_to_camera
from maskfield_ns.data.run_info import RunInfo
from maskfield_ns.errors import CheckpointError
from maskfield_ns.fields.cells import cell_index
from maskfield_ns.fields.mask_field import unit_cube_positions
from maskfield_ns.models.base_run import copy_tensors
from maskfield_ns.models.queryable import Look, QueryableConfig, QueryableMixin
from maskfield_ns.splatting import PreparedView, accumulate, prepare_view, rasterize, rasterize_features
from maskfield_ns.splatting.ssim import ssim
from maskfield_ns.systems.mask_field.closed_form import neighbours

if TYPE_CHECKING:
    from maskfield_ns.data.mask_views import MaskViews

_KEPT_BYTES = 1 << 30
"""Memory for views prepared once and used in every later step; views beyond it are prepared each time."""
_REFILL_EVERY = 50
"""Mask steps between looks at what unseen Gaussians should copy from their neighbours."""
_PLACEHOLDERS = 4
"""Gaussians of a model whose checkpoint has not been read yet; each needs three neighbors."""
_SEEN = 0.5
"""Gaussians whose blending weights over all mask grids sum to less than this (in pixels) count as unseen."""


@dataclass
class MaskfieldSplatModelConfig(QueryableConfig, SplatfactoModelConfig):
    """splatfacto, plus everything about masks and queries."""

    _target: type = field(default_factory=lambda: MaskfieldSplatModel)
    """Target class to instantiate."""
    closed_form: bool = True
    """Start the attached features from weighted means of what the views suggest, instead of zeros."""
    max_gaussians: int = 0
    """Densification stops at this many Gaussians; 0: no limit."""


class MaskfieldSplatModel(QueryableMixin[Cameras], SplatfactoModel):
    """Gaussians are splatfacto's and learn from colours alone; mask features never move them.

    Renders through :func:`maskfield_ns.splatting.rasterize`: gsplat on CUDA, our kernels on a CPU.
    """

    config: MaskfieldSplatModelConfig
    base_config = SplatfactoModelConfig
    backbone: Literal["gaussians"] = "gaussians"

    def populate_modules(self) -> None:
        """Splatfacto's modules, mask features per Gaussian (``gauss_params["mask_features"]``) and the query head."""
        if RunInfo.of(self.kwargs.get("metadata")).mask_views is None:
            # Opened, not trained: the checkpoint brings the Gaussians, whose neighbors nobody has to look for now.
            self.seed_points = (torch.rand(_PLACEHOLDERS, 3), torch.zeros(_PLACEHOLDERS, 3))
        with compat.metrics_when_needed(), compat.tolerant_cuda_calls():
            super().populate_modules()
        self.populate_system()
        self.strategy.verbose = False
        # A third of a step on a CPU otherwise; the same figure.
        del self.ssim
        self.ssim = batch_ssim
        # Among the Gaussians' parameters, so that splitting, duplicating and culling take them along.
        self.gauss_params["mask_features"] = Parameter(torch.zeros(self.num_points, self.system.channels))
        self._prepared: dict[int, PreparedView] = {}
        self._refill: tuple[Tensor, Tensor] | None = None
        self._mask_steps = 0

    def k_nearest_sklearn(self, x: Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Splatfacto's search, spared where there are only placeholders."""
        if len(x) <= _PLACEHOLDERS:
            return np.ones((len(x), k), np.float32), np.zeros((len(x), k), np.int64)
        return super().k_nearest_sklearn(x, k)

    def get_gaussian_param_groups(self) -> dict[str, list[Parameter]]:
        """Splatfacto's groups plus ``mask_features``."""
        return super().get_gaussian_param_groups() | {"mask_features": [self.gauss_params["mask_features"]]}

    def get_param_groups(self) -> dict[str, list[Parameter]]:
        """Splatfacto's groups plus ``mask_features`` and ``queries``."""
        return super().get_param_groups() | {"queries": list(self.system.parameters())}

    def load_state_dict(self, state_dict: dict, strict: bool = True, **kwargs: Any) -> Any:  # type: ignore[override]
        """Loads a checkpoint, taking the number of Gaussians and the embedding size from it.

        Parameters keep their identity, so that a resumed training optimises what it renders (nerfstudio#3554).

        Raises:
            CheckpointError: written by another method or version, or tensors missing or of the wrong shape.
        """
        state_dict = self.check_system(state_dict, ("gauss_params.",))
        self.load_gaussians({k.removeprefix("gauss_params."): v for k, v in state_dict.items() if "gauss_params." in k})
        result = torch.nn.Module.load_state_dict(self, state_dict, strict=strict, **kwargs)
        return result

    def load_gaussians(self, tensors: dict[str, Tensor]) -> None:
        """Takes Gaussians over; ``mask_features`` may be missing (they become 0).

        Raises:
            CheckpointError: tensors missing or of the wrong shape.
        """
        check_gaussians(tensors, {name: tuple(p.shape[1:]) for name, p in self.gauss_params.items()})
        count = len(tensors["means"])
        for name, parameter in self.gauss_params.items():
            value = tensors.get(name)
            if value is None:
                value = torch.zeros(count, *parameter.shape[1:])
            parameter.data = value.to(parameter.device, parameter.dtype).clone()
        self.step = 10**6  # all spherical harmonics are in use; a resumed training sets the step again

    def load_base(self, tensors: dict[str, Tensor]) -> None:
        """Takes over the Gaussians of a base run, and its camera corrections if there are any.

        Raises:
            CheckpointError: tensors missing or of the wrong shape.
        """
        prefix = "gauss_params."
        gaussians = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        gaussians.pop("mask_features", None)  # of another mask stage, with other queries
        self.load_gaussians(gaussians)
        rest = tuple(
            name for name, _ in self.named_parameters() if name.startswith(("camera_optimizer.", "bil_grids."))
        )
        copy_tensors(self, tensors, rest)

    # --- colour training ----------------------------------------------------------------------------------------------

    def step_post_backward(self, step: int) -> None:
        """Densification, while colours are learnt."""
        start = self.run_info.mask_start
        if start is not None and step >= start:
            return
        if self.config.max_gaussians and self.num_points >= self.config.max_gaussians:
            self.strategy.grow_grad2d = math.inf
        super().step_post_backward(step)

    # --- rendering ----------------------------------------------------------------------------------------------------

    def shown_gaussians(self) -> Any:
        """What is rendered: the Gaussians, or in evaluation what the edits make of them; as ``gauss_params``."""
        return self.gauss_params if self.training or self.edits is None else self.edits.params(self.gauss_params)

    def _activated(self, chosen: Tensor | None = None, shown: Any = None) -> dict[str, Any]:
        """What the rasteriser wants, of all or some Gaussians."""
        shown = self.gauss_params if shown is None else shown
        raw = {name: shown[name] for name in ("means", "quats", "scales", "opacities")}
        if chosen is not None:
            raw = {name: tensor[chosen] for name, tensor in raw.items()}
        opacities = torch.sigmoid(raw["opacities"]).squeeze(-1)
        return {
            "means": raw["means"],
            "quats": raw["quats"],
            "scales": torch.exp(raw["scales"]),
            "opacities": opacities,
        }

    def _colours(self, chosen: Tensor | None, shown: Any) -> tuple[Tensor, int | None]:
        """Colours or coefficients, and the degree of spherical harmonics to use (None: plain colours)."""
        dc, rest = shown["features_dc"], shown["features_rest"]
        if chosen is not None:
            dc, rest = dc[chosen], rest[chosen]
        if self.config.sh_degree == 0:
            return torch.sigmoid(dc), None
        degree = min(self.step // self.config.sh_degree_interval, self.config.sh_degree)
        used = (degree + 1) ** 2 - 1
        return torch.cat([dc[:, None], rest[:, :used]], dim=1), degree

    def get_outputs(self, camera: Cameras) -> dict[str, Any]:
        """One view of a camera [1]; in evaluation with ``features`` [H, W, channels]."""
        training = self.training
        pose = self.camera_optimizer.apply_to_camera(camera) if training else camera.camera_to_worlds
        shown, chosen = self.shown_gaussians(), None
        if self.crop_box is not None and not training:
            chosen = self.crop_box.within(shown["means"]).squeeze(-1).nonzero()[:, 0]
        factor = self._get_downscale_factor()
        camera.rescale_output_resolution(1 / factor)
        width, height = int(camera.width.item()), int(camera.height.item())
        intrinsics = camera.get_intrinsics_matrices().to(self.device)
        camera.rescale_output_resolution(factor)
        viewmat = world_to_camera(pose)
        self.last_size = (height, width)
        gaussians = self._activated(chosen, shown)
        colours, degree = self._colours(chosen, shown)
        depth_wanted = self.config.output_depth_during_training or not training
        image, alpha, self.info = rasterize(
            **gaussians,
            colors=colours,
            viewmats=viewmat,
            Ks=intrinsics,
            width=width,
            height=height,
            sh_degree=degree,
            render_mode="RGB+ED" if depth_wanted else "RGB",
            absgrad=self.strategy.absgrad,
            rasterize_mode=self.config.rasterize_mode,
        )
        if training:
            self.strategy.step_pre_backward(
                self.gauss_params, self.optimizers, self.strategy_state, self.step, self.info
            )
        background = self._get_background_color().to(image.device)
        rgb = (image[0, ..., :3] + (1 - alpha[0]) * background).clamp(0, 1)
        metadata = camera.metadata or {}
        if self.config.use_bilateral_grid and training and "cam_idx" in metadata:
            rgb = self._apply_bilateral_grid(rgb[None], metadata["cam_idx"], height, width)[0]
        outputs: dict[str, Any] = {"rgb": rgb, "depth": None, "accumulation": alpha[0], "background": background}
        if depth_wanted:
            depth = image[0, ..., 3:4]
            # Where nothing is, what is furthest away; viewers draw other things in front of it.
            outputs["depth"] = torch.where(alpha[0] > 0, depth, depth.detach().amax().clamp(min=1e-3))
        if not training:
            outputs["background"] = background.expand(height, width, 3)
            features = shown["mask_features"] if chosen is None else shown["mask_features"][chosen]
            view = prepare_view(
                **gaussians, viewmat=viewmat[0], K=intrinsics[0], width=width, height=height,
                rasterize_mode=self.config.rasterize_mode,
            )  # fmt: skip
            outputs["features"] = rasterize_features(view, features.detach())[0]
        return outputs

    @torch.no_grad()
    def render_view(self, camera: Cameras, obb_box: OrientedBox | None = None) -> Outputs:
        """Splatfacto's outputs of one view, with its mask features, edits applied."""
        self.set_crop(obb_box)
        was_training = self.training
        self.eval()
        try:
            outputs = Outputs(self.get_outputs(camera.to(self.device)))
        finally:
            self.train(was_training)
        outputs.features = outputs.pop("features")
        return outputs

    @torch.no_grad()
    def surface_points(self, camera: Cameras, outputs: Mapping[str, Tensor]) -> Float[Tensor, "H W 3"]:
        """Where the rays of a rendered view end, scene coordinates."""
        depth = outputs["depth"][..., 0]
        intrinsics = camera.get_intrinsics_matrices()[0].to(depth)
        return unproject(depth, intrinsics, camera.camera_to_worlds[0].to(depth))

    # --- the mask stage -----------------------------------------------------------------------------------------------

    def mask_features(self, view: int, look: Look[Cameras]) -> Float[Tensor, "P channels"]:
        """Mask features of a training view on its mask grid; the Gaussians do not move."""
        if self._refill is not None and torch.is_grad_enabled():
            if self._mask_steps % _REFILL_EVERY == 0:
                self._copy_from_neighbours()
            self._mask_steps += 1
        image, _ = rasterize_features(self._view(view, look), self.gauss_params["mask_features"])
        return image.flatten(0, 1)

    def surface_cells(self, view: int, look: Look[Cameras]) -> Int[Tensor, " P"]:
        """The cell at the expected depth of each pixel that is at least half opaque."""
        prepared, camera = self._view(view, look), look(view)
        depth, alpha = rasterize_features(prepared, prepared.depths[:, None])
        depth = (depth / alpha.clamp(min=1e-6))[..., 0]
        points = unproject(depth, camera.get_intrinsics_matrices()[0].to(depth), self._pose(camera)[0].to(depth))
        cube = unit_cube_positions(points, self.scene_box.aabb.to(points), contract=True)
        cells = cell_index(cube, self.config.cell_resolution)
        return torch.where(alpha[..., 0] >= 0.5, cells, torch.full_like(cells, -1)).flatten()

    def _pose(self, camera: Cameras) -> Float[Tensor, "1 3 4"]:
        """The pose that the Gaussians have learnt with."""
        was_training = self.training
        self.train()
        try:
            return self.camera_optimizer.apply_to_camera(camera).detach()
        finally:
            self.train(was_training)

    @torch.no_grad()
    def prepared_view(self, camera: Cameras) -> PreparedView:
        """The Gaussians as trained (no edits), as a camera [1] sees them."""
        return prepare_view(
            **self._activated(),
            viewmat=world_to_camera(camera.camera_to_worlds.to(self.device))[0],
            K=camera.get_intrinsics_matrices()[0].to(self.device),
            width=int(camera.width.item()),
            height=int(camera.height.item()),
            rasterize_mode=self.config.rasterize_mode,
        )

    @torch.no_grad()
    def _view(self, view: int, look: Look[Cameras]) -> PreparedView:
        """A training view's mask grid, ready to render features into."""
        if view in self._prepared:
            return self._prepared[view]
        camera = look(view)
        prepared = prepare_view(
            **self._activated(),
            viewmat=world_to_camera(self._pose(camera))[0],
            K=camera.get_intrinsics_matrices()[0].to(self.device),
            width=int(camera.width.item()),
            height=int(camera.height.item()),
            rasterize_mode=self.config.rasterize_mode,
            keep_weights=True,
        )
        if sum(p.nbytes for p in self._prepared.values()) + prepared.nbytes <= _KEPT_BYTES:
            self._prepared[view] = prepared
        return prepared

    @torch.no_grad()
    def system_ready(self, views: MaskViews, look: Look[Cameras], resuming: bool) -> None:
        """Starts the features from what the views suggest, and finds out which Gaussians no view tells anything of."""
        features = self.gauss_params["mask_features"]
        seen = features.new_zeros(len(features))
        sums: Tensor | None = None
        for view in views.supervised:
            suggested = self.system.start(view, features.device)
            pixels = features.new_ones(views[view].valid.size, 1)
            if suggested is not None:
                pixels = torch.cat([suggested.values, suggested.weights], dim=1)
            more, weights = accumulate(self._view(view, look), pixels.unflatten(0, views[view].grid))
            seen += weights
            if suggested is not None:
                sums = more if sums is None else sums + more
        if self.config.closed_form and not resuming and sums is not None:
            features.copy_(self.system.solve(sums[:, : features.shape[1]], sums[:, features.shape[1] :], seen))
        self._refill = neighbours(self.means, seen > _SEEN)
        self._copy_from_neighbours()

    @torch.no_grad()
    def _copy_from_neighbours(self) -> None:
        """Gaussians that no view supervises take the mean feature of those around them."""
        assert self._refill is not None
        unseen, nearest = self._refill
        features = self.gauss_params["mask_features"]
        if len(unseen):
            features[unseen] = features[nearest].mean(1)


def batch_ssim(image: Float[Tensor, "1 C H W"], target: Float[Tensor, "1 C H W"]) -> Float[Tensor, ""]:
    """Mean SSIM of two pictures in [0, 1], as splatfacto asks for it."""
    return ssim(image[0].permute(1, 2, 0), target[0].permute(1, 2, 0))


def check_gaussians(tensors: dict[str, Tensor], shapes: dict[str, tuple[int, ...]]) -> None:
    """Whether stored tensors describe Gaussians of this config.

    Raises:
        CheckpointError: one is missing or has the wrong shape; says which.
    """
    for name, shape in shapes.items():
        if name not in tensors:
            if name == "mask_features":
                continue
            raise CheckpointError(f"the checkpoint has no {name}: it does not hold the Gaussians of splatfacto")
        expected = (len(tensors["means"]), *shape)
        if tuple(tensors[name].shape) != expected:
            hint = ": another --pipeline.model.sh-degree?" if name == "features_rest" else ""
            raise CheckpointError(f"{name} is {tuple(tensors[name].shape)} in the checkpoint, not {expected}{hint}")
