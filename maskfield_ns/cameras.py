"""Pinhole camera geometry: view matrices, projection and back."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def world_to_camera(poses: Float[Tensor, "C 3 4"]) -> Float[Tensor, "C 4 4"]:
    """View matrices (x right, y down, z forward) of nerfstudio's camera-to-world poses (y up, z backward)."""
    rotation = poses[:, :, :3] * poses.new_tensor([1.0, -1.0, -1.0])
    inverse = rotation.transpose(1, 2)
    top = torch.cat([inverse, -inverse @ poses[:, :, 3:]], dim=2)
    bottom = poses.new_tensor([0.0, 0.0, 0.0, 1.0]).expand(len(poses), 1, 4)
    return torch.cat([top, bottom], dim=1)


def unproject(
    depth: Float[Tensor, "H W"], intrinsics: Float[Tensor, "3 3"], pose: Float[Tensor, "3 4"]
) -> Float[Tensor, "H W 3"]:
    """World positions of pixels at some depth along the viewing direction (of nerfstudio's camera-to-world pose)."""
    rows = torch.arange(depth.shape[0], device=depth.device) + 0.5
    columns = torch.arange(depth.shape[1], device=depth.device) + 0.5
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    right = (x - intrinsics[0, 2]) / intrinsics[0, 0] * depth
    down = (y - intrinsics[1, 2]) / intrinsics[1, 1] * depth
    local = torch.stack([right, -down, -depth], dim=-1)
    return local @ pose[:, :3].T + pose[:, 3]
