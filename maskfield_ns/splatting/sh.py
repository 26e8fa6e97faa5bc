"""Colours that change with the viewing direction: real spherical harmonics up to degree 4."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from maskfield_ns.splatting.threads import run


def sh_colors(
    means: Float[Tensor, "n 3"],
    coefficients: Float[Tensor, "n k 3"] | Float[Tensor, "c n k 3"],
    viewmats: Float[Tensor, "c 4 4"],
    radii: Int[Tensor, "c n"],
    degree: int,
) -> Float[Tensor, "c n 3"]:
    """``max(0, 1/2 + harmonics(direction) . coefficients)`` for the direction from each camera to each Gaussian.

    Gaussians with radius 0 get 0. Differentiable in means, coefficients and viewmats.
    """
    if viewmats.requires_grad:
        centres = torch.linalg.inv(viewmats)[:, :3, 3].contiguous()
    else:  # a hundred times as fast for so small a matrix
        centres = torch.from_numpy(np.linalg.inv(viewmats.numpy())[:, :3, 3].copy())
    return _ShColors.apply(means, coefficients, centres, radii, degree)  # type: ignore[return-value]


class _ShColors(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *args: Any) -> Any:
        from maskfield_ns.splatting import kernels_sh as kernels
        from maskfield_ns.splatting.autograd import as_array

        means, coefficients, centres, radii, degree = args
        cameras, n = radii.shape
        colors = torch.zeros(cameras, n, 3)
        points = as_array(means)
        for c in range(cameras):
            table = coefficients if coefficients.dim() == 3 else coefficients[c]
            run(kernels.sh_colors, -(-n // kernels.CHUNK), points, as_array(table),
                centres[c].detach().numpy(), radii[c].numpy(), degree, colors[c].numpy())  # fmt: skip
        ctx.save_for_backward(means, coefficients, centres, radii, colors)
        ctx.degree = degree
        return colors

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:  # type: ignore[override]
        from maskfield_ns.splatting import kernels_sh as kernels
        from maskfield_ns.splatting.autograd import as_array

        means, coefficients, centres, radii, colors = ctx.saved_tensors
        cameras, n = radii.shape
        v_colors = grads[0].contiguous()
        v_means, v_coefficients = torch.zeros(means.shape), torch.zeros(coefficients.shape)
        v_centres = torch.zeros(centres.shape)
        points = as_array(means)
        for c in range(cameras):
            shared = coefficients.dim() == 3
            table, target = (coefficients, v_coefficients) if shared else (coefficients[c], v_coefficients[c])
            pieces = -(-n // kernels.CHUNK)
            sums = np.zeros((pieces, 3), np.float64)
            run(kernels.sh_colors_backward, pieces, points, as_array(table),
                centres[c].detach().numpy(), radii[c].numpy(), ctx.degree, colors[c].numpy(), v_colors[c].numpy(),
                v_means.numpy(), target.numpy(), sums)  # fmt: skip
            v_centres[c] = -torch.from_numpy(sums.sum(0)).float()
        return v_means, v_coefficients, v_centres, None, None
