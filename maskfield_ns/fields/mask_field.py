"""The mask feature field of the NeRF backbone: position -> D numbers, rendered with the radiance field's weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn


@dataclass
class MaskFieldConfig:
    """Size of the mask feature field."""

    num_levels: int = 12
    """Levels of the hash grid."""
    features_per_level: int = 4
    """Numbers per hash grid entry."""
    base_res: int = 16
    """Coarsest grid resolution."""
    max_res: int = 512
    """Finest grid resolution."""
    log2_hashmap_size: int = 19
    """Entries per level, as a power of two."""
    hidden_dim: int = 64
    """Width of the MLP's hidden layer."""
    num_layers: int = 2
    """Linear layers of the MLP."""
    implementation: Literal["tcnn", "torch"] = "tcnn"
    """Hash grid backend; falls back to torch when tiny-cuda-nn is not installed."""


class MaskField(nn.Module):
    """Hash grid and MLP of its own: the frozen geometry features do not tell objects apart.

    Args:
        config: sizes.
        channels: numbers per point: D, or one block of D per level.
    """

    def __init__(self, config: MaskFieldConfig, channels: int) -> None:
        super().__init__()
        # Here, not at the top: tensors-only users (splats, kernels, scripts on a GPU box) have no nerfstudio.
        from nerfstudio.field_components.encodings import HashEncoding
        from nerfstudio.field_components.mlp import MLP

        self.encoding = HashEncoding(
            num_levels=config.num_levels,
            min_res=config.base_res,
            max_res=config.max_res,
            log2_hashmap_size=config.log2_hashmap_size,
            features_per_level=config.features_per_level,
            implementation=config.implementation,
        )
        self.mlp = MLP(
            in_dim=self.encoding.get_out_dim(),
            num_layers=config.num_layers,
            layer_width=config.hidden_dim,
            out_dim=channels,
            implementation=config.implementation,
        )

    def forward(self, positions: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch D"]:
        """Features of points given in [0, 1]^3 (contracted scene coordinates)."""
        shape = positions.shape[:-1]
        features = self.mlp(self.encoding(positions.reshape(-1, 3)))
        return features.float().reshape(*shape, -1)


def render_features(weights: Float[Tensor, "R S"], features: Float[Tensor, "R S D"]) -> Float[Tensor, "R D"]:
    """Blends sample features with volume-rendering weights: F(p) = sum_i w_ip x_i, no background term."""
    return torch.einsum("rs,rsd->rd", weights, features)


def unit_cube_positions(
    positions: Float[Tensor, "*batch 3"], aabb: Float[Tensor, "2 3"], contract: bool
) -> Float[Tensor, "*batch 3"]:
    """World positions in [0, 1]^3: the L-infinity contraction of Mip-NeRF 360, as nerfacto's own, or the scene box.

    Raises nothing; points outside the scene box are clamped when there is no contraction.
    """
    if contract:
        from nerfstudio.field_components.spatial_distortions import SceneContraction

        return (SceneContraction(order=float("inf"))(positions) + 2.0) / 4.0
    return ((positions - aabb[0]) / (aabb[1] - aabb[0])).clamp(0, 1)
