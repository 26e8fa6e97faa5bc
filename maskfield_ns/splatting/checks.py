"""Shapes, types and values of what is to be rendered, checked before any kernel runs."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from maskfield_ns.errors import SplatError

RENDER_MODES = ("RGB", "D", "ED", "RGB+D", "RGB+ED")


def expect(name: str, tensor: Any, *shapes: tuple[Any, ...]) -> None:
    """Raise SplatError unless `tensor` is a floating-point tensor of one of `shapes` (None: any length)."""
    wanted = " or ".join(str(list("any" if n is None else n for n in shape)).replace("'", "") for shape in shapes)
    if not isinstance(tensor, Tensor):
        raise SplatError(f"`{name}` must be a tensor of shape {wanted}, not {type(tensor).__name__}")
    for shape in shapes:
        if tensor.dim() == len(shape) and all(n in (None, m) for n, m in zip(shape, tensor.shape, strict=True)):
            break
    else:
        raise SplatError(f"`{name}` has shape {list(tensor.shape)}; expected {wanted}")
    if not tensor.is_floating_point():
        raise SplatError(f"`{name}` holds {tensor.dtype}; expected floating-point numbers")


def expect_gaussians(means: Any, quats: Any, scales: Any, opacities: Any) -> int:
    """Number N of Gaussians with centres [N, 3], rotations [N, 4], scales [N, 3] and opacities [N], else SplatError."""
    expect("means", means, (None, 3))
    n = means.shape[0]
    expect("quats", quats, (n, 4))
    expect("scales", scales, (n, 3))
    expect("opacities", opacities, (n,))
    return n


def same_device(tensors: Mapping[str, Tensor | None]) -> torch.device:
    """The one device of all tensors, else SplatError."""
    devices = {name: tensor.device for name, tensor in tensors.items() if tensor is not None}
    if len(set(devices.values())) > 1:
        listed = ", ".join(f"{name} on {device}" for name, device in devices.items())
        raise SplatError(f"tensors to render must be on one device, but {listed}; move them with .to(device)")
    return next(iter(devices.values()))


def image_size(width: Any, height: Any) -> tuple[int, int]:
    width, height = int(width), int(height)
    if width < 1 or height < 1:
        raise SplatError(f"cannot render an image of {width} x {height} pixels; width and height must be positive")
    return width, height


def not_finite(name: str, count: int, n: int) -> SplatError:
    return SplatError(
        f"{count} of {n} Gaussians have a NaN or infinite value in `{name}`: the training diverged or the file is "
        "damaged; lower the learning rate, or remove these Gaussians before rendering"
    )


def check_finite(name: str, values: Tensor, axis: int = 0) -> None:
    """Raise SplatError if a tensor has values that are not finite; its Gaussians run along `axis`."""
    if not values.numel() or torch.isfinite(values.detach().sum()):
        return
    broken = ~torch.isfinite(values.detach())  # finite values may have overflown in the sum
    count = int(broken.movedim(axis, 0).flatten(1).any(1).sum()) if values.dim() > 1 else int(broken.sum())
    if count:
        raise not_finite(name, count, values.shape[axis])


def check_cameras(viewmats: Tensor, intrinsics: Tensor) -> None:
    for name, values in (("viewmats", viewmats), ("Ks", intrinsics)):
        if not torch.isfinite(values).all():
            raise SplatError(f"`{name}` has NaN or infinite values: check the capture's camera poses and intrinsics")
    if not (intrinsics[:, [0, 1], [0, 1]] > 0).all():
        raise SplatError("`Ks` has a focal length that is not positive; expected pixels, [[fx, 0, cx], [0, fy, cy]]")
