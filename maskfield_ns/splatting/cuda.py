"""Prepared views with CUDA: gsplat's own steps, called one by one."""

import torch
from torch import Tensor

from maskfield_ns.splatting.gsplat_kernels import load_kernels
from maskfield_ns.splatting.view import PreparedView

TILE = 16
CHANNELS_AT_ONCE = 32


def prepare_cuda(
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    opacities: Tensor,
    viewmat: Tensor,
    K: Tensor,
    size: tuple[int, int],
    limits: tuple[float, float, float, float],
    antialiased: bool,
) -> PreparedView:
    load_kernels()
    from gsplat.cuda._wrapper import fully_fused_projection, isect_offset_encode, isect_tiles

    width, height = size
    near, far, eps2d, radius_clip = limits
    radii, means2d, depths, conics, compensations = fully_fused_projection(
        means.contiguous(), None, quats.contiguous(), scales.contiguous(), viewmat[None].contiguous(),
        K[None].contiguous(), width, height, eps2d=eps2d, near_plane=near, far_plane=far, radius_clip=radius_clip,
        calc_compensations=antialiased,
    )  # fmt: skip
    shown = opacities[None] * compensations if antialiased else opacities[None]
    columns, bands = -(-width // TILE), -(-height // TILE)
    _, ids, order = isect_tiles(means2d, radii, depths, TILE, columns, bands)
    parts = {
        "means2d": means2d,
        "conics": conics,
        "opacities": shown.contiguous(),
        "offsets": isect_offset_encode(ids, 1, columns, bands),
        "order": order,
    }
    return PreparedView(width, height, means.shape[0], radii[0], depths[0], None, None, parts)


def blend_cuda(view: PreparedView, features: Tensor, background: Tensor | None) -> tuple[Tensor, Tensor]:
    from gsplat.cuda._wrapper import rasterize_to_pixels

    assert view.cuda is not None
    images, alphas = [], None
    for first in range(0, features.shape[1], CHANNELS_AT_ONCE):
        part = slice(first, first + CHANNELS_AT_ONCE)
        image, alphas = rasterize_to_pixels(
            view.cuda["means2d"], view.cuda["conics"], features[None, :, part].contiguous(), view.cuda["opacities"],
            view.width, view.height, TILE, view.cuda["offsets"], view.cuda["order"],
            backgrounds=None if background is None else background[None, part].float().contiguous(),
        )  # fmt: skip
        images.append(image[0])
    assert alphas is not None
    return torch.cat(images, dim=-1), alphas[0].detach()


def transpose_cuda(view: PreparedView, values: Tensor) -> tuple[Tensor, Tensor]:
    """The vector-Jacobian product of a render: linear in the features, so any features will do."""
    values = torch.cat([values, torch.ones_like(values[..., :1])], dim=-1)
    with torch.enable_grad():
        features = torch.zeros(view.count, values.shape[-1], device=values.device, requires_grad=True)
        image, _ = blend_cuda(view, features, None)
        (sums,) = torch.autograd.grad(image, features, values)
    return sums[:, :-1], sums[:, -1]
