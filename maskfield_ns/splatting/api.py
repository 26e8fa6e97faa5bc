"""`rasterize`: Gaussians to images, on whatever device they are.

Argument names, return value and conventions are those of gsplat 1.4's ``rasterization``. CUDA tensors are handed to
gsplat; on a CPU our own kernels run, with the same image and the same gradients.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from maskfield_ns.errors import SplatError
from maskfield_ns.splatting.checks import (
    RENDER_MODES,
    check_cameras,
    check_finite,
    expect,
    expect_gaussians,
    image_size,
    same_device,
)

TILE = 16


def rasterize(
    means: Float[Tensor, "n 3"],
    quats: Float[Tensor, "n 4"],
    scales: Float[Tensor, "n 3"],
    opacities: Float[Tensor, "n"],
    colors: Float[Tensor, "n d"] | Float[Tensor, "c n d"] | Float[Tensor, "n k 3"] | Float[Tensor, "c n k 3"],
    viewmats: Float[Tensor, "c 4 4"],
    Ks: Float[Tensor, "c 3 3"],
    width: int,
    height: int,
    near_plane: float = 0.01,
    far_plane: float = 1e10,
    radius_clip: float = 0.0,
    eps2d: float = 0.3,
    sh_degree: int | None = None,
    packed: bool = False,
    tile_size: int = TILE,
    backgrounds: Float[Tensor, "c d"] | None = None,
    render_mode: str = "RGB",
    sparse_grad: bool = False,
    absgrad: bool = False,
    rasterize_mode: str = "classic",
    channel_chunk: int = 32,
) -> tuple[Float[Tensor, "c h w x"], Float[Tensor, "c h w 1"], dict[str, Any]]:
    """Render N Gaussians into C pinhole cameras.

    Args:
        means: centres, world units.
        quats: rotations (w, x, y, z); need not be normalised.
        scales: standard deviations along the axes, world units, after any activation.
        opacities: in [0, 1], after any activation.
        colors: D channels per Gaussian (any D, optionally per camera), or with `sh_degree` the coefficients of K
            spherical harmonics for three channels; (sh_degree + 1)^2 of them are used.
        viewmats: world to camera; x right, y down, z forward.
        Ks: intrinsics, pixels. Skew is ignored.
        near_plane, far_plane: range of depths drawn.
        radius_clip: Gaussians with a radius of at most this many pixels are left out.
        eps2d: variance in pixels added to every projected Gaussian.
        backgrounds: what shows where the transmittance is left; the depth channel has none.
        render_mode: "RGB" the channels, "D" accumulated depth, "ED" expected depth, or both.
        absgrad: let the backward pass set ``info["means2d"].absgrad``, the sum over pixels of the absolute gradient.
            With CUDA and more than `channel_chunk` channels it is that of one chunk of channels only.
        rasterize_mode: "classic", or "antialiased" (opacity falls as the blur widens a small Gaussian).
        packed, sparse_grad, tile_size, channel_chunk: gsplat's, for CUDA. On a CPU `packed` must stay False and the
            others have no effect.

    Returns:
        Image [C, H, W, X] (depth last), alphas [C, H, W, 1] and `info` as gsplat's strategies read it: means2d
        [C, N, 2] pixels (the tensor the image was made from), radii [C, N] (pixels, 0 = not drawn), depths, conics,
        opacities [C, N], width, height, n_cameras, tile_size, tile_width, tile_height, gaussian_ids and camera_ids
        (None). On a CPU, `conics` carry no gradient and there are no ``isect_*`` entries. Gradients reach everything
        but `Ks`.

    Raises:
        SplatError: shapes, types or devices do not fit, or parameters are NaN or infinite (CPU only).
    """
    given = {"means": means, "quats": quats, "scales": scales, "opacities": opacities, "colors": colors,
             "viewmats": viewmats, "Ks": Ks, "backgrounds": backgrounds}  # fmt: skip
    width, height = image_size(width, height)
    _check(given, sh_degree, render_mode, rasterize_mode)
    device = same_device(given)
    if device.type == "cuda":
        from maskfield_ns.splatting.gsplat_kernels import load_kernels

        load_kernels()
        from gsplat.rendering import rasterization

        modes: dict[str, Any] = {"render_mode": render_mode, "rasterize_mode": rasterize_mode}
        return rasterization(
            means, quats, scales, opacities, colors, viewmats, Ks, width, height, near_plane=near_plane,
            far_plane=far_plane, radius_clip=radius_clip, eps2d=eps2d, sh_degree=sh_degree, packed=packed,
            tile_size=tile_size, backgrounds=backgrounds, sparse_grad=sparse_grad, absgrad=absgrad,
            channel_chunk=channel_chunk, **modes,
        )  # fmt: skip
    if device.type != "cpu":
        raise SplatError(f"Gaussians can be rendered on a CPU or with CUDA, not on {device.type}; move them to the CPU")
    if packed or sparse_grad:
        raise SplatError("packed=True and sparse_grad=True need CUDA; on a CPU leave them False")
    return _rasterize_cpu(
        *(t.float() for t in (means, quats, scales, opacities, colors, viewmats, Ks)),
        size=(width, height),
        limits=(near_plane, far_plane, eps2d, radius_clip),
        sh_degree=sh_degree,
        backgrounds=backgrounds,
        render_mode=render_mode,
        absgrad=absgrad,
        antialiased=rasterize_mode == "antialiased",
    )


def _rasterize_cpu(
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    opacities: Tensor,
    colors: Tensor,
    viewmats: Tensor,
    Ks: Tensor,
    *,
    size: tuple[int, int],
    limits: tuple[float, float, float, float],
    sh_degree: int | None,
    backgrounds: Tensor | None,
    render_mode: str,
    absgrad: bool,
    antialiased: bool,
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    from maskfield_ns.splatting.autograd import Blend, Project
    from maskfield_ns.splatting.sh import sh_colors

    cameras, n = viewmats.shape[0], means.shape[0]
    check_cameras(viewmats, Ks)
    check_finite("opacities", opacities)
    if render_mode not in ("D", "ED"):
        check_finite("colors", colors, axis=colors.dim() - (2 if sh_degree is None else 3))
    means2d, depths, geometry, conics, radii, compensations = Project.apply(  # type: ignore[misc]
        means, quats, scales, viewmats, Ks, size, limits, antialiased
    )
    view_opacities = opacities[None] * compensations if antialiased else opacities[None].expand(cameras, n)
    if render_mode in ("D", "ED"):
        features = depths[..., None]
        backgrounds = None
    else:
        features = colors if sh_degree is None else sh_colors(means, colors, viewmats, radii, sh_degree)
        if backgrounds is not None:
            backgrounds = backgrounds.float()
        if render_mode != "RGB":
            features = torch.cat([features.expand(cameras, n, -1), depths[..., None]], dim=-1)
            if backgrounds is not None:
                backgrounds = torch.cat([backgrounds, backgrounds.new_zeros(cameras, 1)], dim=-1)
    image, alphas = Blend.apply(  # type: ignore[misc]
        means2d, geometry, features, view_opacities, backgrounds, depths.detach(), radii, size, absgrad
    )
    if render_mode in ("ED", "RGB+ED"):
        image = torch.cat([image[..., :-1], image[..., -1:] / alphas.clamp(min=1e-10)], dim=-1)
    info = {
        "camera_ids": None,
        "gaussian_ids": None,
        "means2d": means2d,
        "radii": radii,
        "depths": depths,
        "conics": conics,
        "opacities": view_opacities,
        "width": size[0],
        "height": size[1],
        "n_cameras": cameras,
        "tile_size": TILE,
        "tile_width": -(-size[0] // TILE),
        "tile_height": -(-size[1] // TILE),
    }
    return image, alphas, info


def _check(given: dict[str, Any], sh_degree: int | None, render_mode: str, rasterize_mode: str) -> None:
    if render_mode not in RENDER_MODES:
        raise SplatError(f"render_mode is {render_mode!r}; expected one of {', '.join(RENDER_MODES)}")
    if rasterize_mode not in ("classic", "antialiased"):
        raise SplatError(f"rasterize_mode is {rasterize_mode!r}; expected 'classic' or 'antialiased'")
    n = expect_gaussians(given["means"], given["quats"], given["scales"], given["opacities"])
    expect("viewmats", given["viewmats"], (None, 4, 4))
    cameras = given["viewmats"].shape[0]
    expect("Ks", given["Ks"], (cameras, 3, 3))
    if sh_degree is None:
        expect("colors", given["colors"], (n, None), (cameras, n, None))
        channels = given["colors"].shape[-1]
        if channels == 0:
            raise SplatError("`colors` has no channels; give every Gaussian at least one")
    else:
        expect("colors", given["colors"], (n, None, 3), (cameras, n, None, 3))
        channels = 3
        if not 0 <= sh_degree <= 4 or (sh_degree + 1) ** 2 > given["colors"].shape[-2]:
            raise SplatError(
                f"sh_degree {sh_degree} needs {(sh_degree + 1) ** 2} coefficients per channel (at most degree 4); "
                f"`colors` has {given['colors'].shape[-2]}"
            )
    if given["backgrounds"] is not None:
        expect("backgrounds", given["backgrounds"], (cameras, channels))
