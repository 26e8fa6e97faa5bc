"""SSIM of a rendered picture: the loss that costs more than rasterising when a CPU convolves for it."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from maskfield_ns.splatting.threads import run

_SIGMA = 1.5


def ssim(image: Float[Tensor, "h w c"], target: Float[Tensor, "h w c"]) -> Float[Tensor, ""]:
    """Mean structural similarity (Wang et al. 2004) of two pictures in [0, 1]; differentiable in one of them.

    Gaussian window of 11 pixels with a standard deviation of 1.5, only where it fits inside, as pytorch_msssim's
    ``ssim(..., data_range=1)``. CPU tensors; on other devices that function is called.

    Raises:
        ValueError: sizes differ, a side is shorter than the window, or both pictures want a gradient.
    """
    if image.shape != target.shape or image.dim() != 3 or min(image.shape[:2]) < 11:
        raise ValueError(
            f"SSIM needs two pictures [H, W, C] of one size and at least 11 pixels a side, not {tuple(image.shape)} "
            f"and {tuple(target.shape)}"
        )
    if image.device.type != "cpu":
        from pytorch_msssim import ssim as reference

        return reference(image.permute(2, 0, 1)[None], target.permute(2, 0, 1)[None], data_range=1.0)
    if target.requires_grad:  # the same number either way
        if image.requires_grad:
            raise ValueError("on a CPU, SSIM is differentiable in one of the two pictures: detach the other")
        image, target = target, image
    return _Ssim.apply(image.float(), target.float())  # type: ignore[return-value]


def _window() -> np.ndarray:
    offsets = np.arange(11) - 5.0
    weights = np.exp(-(offsets**2) / (2 * _SIGMA**2))
    return (weights / weights.sum()).astype(np.float32)


class _Ssim(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *args: Any) -> Any:
        from maskfield_ns.splatting import kernels_ssim as kernels

        height, width, channels = args[0].shape
        length = kernels.padded(width * channels, channels)
        x, y = (np.zeros((height, length), np.float32) for _ in args)
        for rows, tensor in zip((x, y), args, strict=True):
            rows[:, : width * channels] = tensor.detach().reshape(height, width * channels).numpy()
        rows, columns = height - kernels.TAPS + 1, (width - kernels.TAPS + 1) * channels
        parts = [np.empty((rows, -(-columns // kernels.WIDTH) * kernels.WIDTH), np.float32) for _ in range(3)]
        pieces = -(-rows // kernels.ROWS)
        sums = np.zeros(pieces, np.float64)
        run(kernels.ssim_rows, pieces, x, y, _window(), channels, columns, rows, sums, *parts)
        ctx.kept = (x, y, (height, width, channels), rows, rows * columns, parts)
        return torch.tensor(sums.sum() / (rows * columns), dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:  # type: ignore[override]
        from maskfield_ns.splatting import kernels_ssim as kernels

        x, y, (height, width, channels), rows, count, parts = ctx.kept
        out = np.empty_like(x)
        scale = np.float32(float(grads[0]) / count)
        pieces = -(-height // kernels.ROWS)
        run(kernels.ssim_rows_backward, pieces, x, y, _window(), channels, rows, scale, *parts, out)
        return torch.from_numpy(out[:, : width * channels].reshape(height, width, channels)), None
