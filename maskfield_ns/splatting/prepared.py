"""Many renders of one camera with fixed geometry, and the transpose of rendering.

For fixed Gaussians and a fixed camera, rendering is linear: image = W features + rest * background, with the blending
weights W [pixels, N]. `prepare_view` does everything that does not depend on the features, `rasterize_features`
multiplies with W, and `accumulate` with its transpose.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from maskfield_ns.errors import SplatError
from maskfield_ns.splatting.checks import check_cameras, check_finite, expect, expect_gaussians, image_size, same_device
from maskfield_ns.splatting.kept import blend_kept
from maskfield_ns.splatting.kept import keep_weights as compute_weights
from maskfield_ns.splatting.tiles import build_tile_lists
from maskfield_ns.splatting.view import PreparedView


@torch.no_grad()
def prepare_view(
    means: Float[Tensor, "n 3"],
    quats: Float[Tensor, "n 4"],
    scales: Float[Tensor, "n 3"],
    opacities: Float[Tensor, "n"],
    viewmat: Float[Tensor, "4 4"],
    K: Float[Tensor, "3 3"],
    width: int,
    height: int,
    near_plane: float = 0.01,
    far_plane: float = 1e10,
    radius_clip: float = 0.0,
    eps2d: float = 0.3,
    rasterize_mode: str = "classic",
    keep_weights: bool = False,
) -> PreparedView:
    """Everything about rendering these Gaussians into this camera that does not depend on their features.

    Arguments and errors are those of `rasterize`, for one camera. Nothing is differentiable by the geometry.

    With `keep_weights` the blending weights themselves are kept, so that few channels render and train up to twice
    as fast; the price is memory (see ``nbytes``; about 20 MB for 20k Gaussians at 320 x 240). No effect with CUDA.
    """
    n = expect_gaussians(means, quats, scales, opacities)
    expect("viewmat", viewmat, (4, 4))
    expect("K", K, (3, 3))
    if rasterize_mode not in ("classic", "antialiased"):
        raise SplatError(f"rasterize_mode is {rasterize_mode!r}; expected 'classic' or 'antialiased'")
    width, height = image_size(width, height)
    named = {"means": means, "quats": quats, "scales": scales, "opacities": opacities, "viewmat": viewmat, "K": K}
    device = same_device(named)
    means, quats, scales, opacities = (t.detach().float() for t in (means, quats, scales, opacities))
    viewmat, K = viewmat.detach().float(), K.detach().float()
    check_cameras(viewmat[None], K[None])
    antialiased = rasterize_mode == "antialiased"
    limits = (near_plane, far_plane, eps2d, radius_clip)
    if device.type == "cuda":
        from maskfield_ns.splatting.cuda import prepare_cuda

        return prepare_cuda(means, quats, scales, opacities, viewmat, K, (width, height), limits, antialiased)
    from maskfield_ns.splatting.autograd import Project, as_array

    check_finite("opacities", opacities)
    means2d, depths, geometry, _, radii, compensations = Project.apply(  # type: ignore[misc]
        means, quats, scales, viewmat[None], K[None], (width, height), limits, antialiased
    )
    shown = opacities * compensations[0] if antialiased else opacities
    arrays = [as_array(t) for t in (means2d[0], geometry[0], shown, depths[0], radii[0])]
    lists = build_tile_lists(*arrays, size=(width, height))
    kept = compute_weights(lists) if keep_weights else None
    return PreparedView(width, height, n, radii[0], depths[0], lists, kept, None)


def rasterize_features(
    view: PreparedView, features: Float[Tensor, "n d"], background: Float[Tensor, "d"] | None = None
) -> tuple[Float[Tensor, "h w d"], Float[Tensor, "h w 1"]]:
    """Render per-Gaussian features into a prepared view: image and alphas. Differentiable in `features` only."""
    expect("features", features, (view.count, None))
    _same_place(view, features, "features")
    if background is not None:
        expect("background", background, (features.shape[1],))
    if view.cuda is not None:
        from maskfield_ns.splatting.cuda import blend_cuda

        return blend_cuda(view, features.float(), background)
    check_finite("features", features)
    features = features.float().contiguous()
    return _FeatureImage.apply(features, view, background)  # type: ignore[return-value]


class _FeatureImage(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *args: Any) -> Any:
        from maskfield_ns.splatting.autograd import as_array, blend

        features, view, background = args
        channels = features.shape[1]
        image = torch.empty(view.height, view.width, channels)
        empty = np.zeros(channels, np.float32) if background is None else as_array(background.float())
        if view.kept is not None:
            rest = torch.from_numpy(view.kept.transmittance).reshape(view.height, view.width)
            blend_kept(view.lists, view.kept, as_array(features), empty, image.numpy())
        else:
            rest = torch.empty(view.height, view.width)
            blend(view.lists, as_array(features), empty, image.numpy(), rest.numpy())
        ctx.view = view
        alphas = (1 - rest)[..., None]
        ctx.mark_non_differentiable(alphas)
        return image, alphas

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:  # type: ignore[override]
        return _transpose(ctx.view, grads[0])[0], None, None


@torch.no_grad()
def accumulate(view: PreparedView, values: Float[Tensor, "h w k"]) -> tuple[Float[Tensor, "n k"], Float[Tensor, "n"]]:
    """Collect pixel values on the Gaussians that drew them: the transpose of `rasterize_features`.

    Returns for each Gaussian the sums over all pixels of weight * value and of the weight itself. Dividing one by the
    other gives the weighted mean of what the Gaussian's pixels say; a weight of 0 means it is not seen in this view.
    """
    expect("values", values, (view.height, view.width, None))
    _same_place(view, values, "values")
    if view.cuda is not None:
        from maskfield_ns.splatting.cuda import transpose_cuda

        return transpose_cuda(view, values.float())
    if not torch.isfinite(values.sum()) and not torch.isfinite(values).all():
        raise SplatError("`values` has NaN or infinite pixels; replace them, for example by 0, before accumulating")
    return _transpose(view, values.float())


def _transpose(view: PreparedView, values: Tensor) -> tuple[Tensor, Tensor]:
    from maskfield_ns.splatting.autograd import as_array, blend_backward

    assert view.lists is not None
    sums, weights = torch.zeros(view.count, values.shape[2]), torch.zeros(view.count)
    unread = np.empty((0, 1), np.float32)
    blend_backward(view.lists, unread, as_array(values), sums.numpy(), weights.numpy(), kept=view.kept)
    return sums, weights


def _same_place(view: PreparedView, tensor: Tensor, name: str) -> None:
    if tensor.device != view.device:
        raise SplatError(f"`{name}` is on {tensor.device} but the view was prepared on {view.device}")
