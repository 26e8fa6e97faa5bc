"""The differentiable pieces of the CPU rasteriser as torch functions."""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from maskfield_ns.splatting.checks import not_finite
from maskfield_ns.splatting.kept import KeptWeights, gather_kept
from maskfield_ns.splatting.threads import run
from maskfield_ns.splatting.tiles import TileLists, build_tile_lists


def as_array(tensor: Tensor) -> np.ndarray:
    """The tensor's memory as a contiguous float32 (or int32) numpy array; copies only what is laid out otherwise."""
    return tensor.detach().contiguous().numpy()


class Project(torch.autograd.Function):
    """Gaussians to image-plane centres, depths and ellipses, for all cameras.

    Returns means2d [C, N, 2], depths [C, N], geometry [C, N, 3] (see kernels_project), conics [C, N, 3] (without
    gradient), radii [C, N] and compensations [C, N]. Gradients reach means, quats, scales and viewmats.
    """

    @staticmethod
    def forward(ctx: Any, *args: Any) -> Any:
        means, quats, scales, viewmats, intrinsics, size, limits, antialiased = args
        from maskfield_ns.splatting import kernels_project as kernels

        cameras, n = viewmats.shape[0], means.shape[0]
        means2d, geometry = means.new_empty(cameras, n, 2), means.new_empty(cameras, n, 3)
        conics, depths = means.new_empty(cameras, n, 3), means.new_empty(cameras, n)
        compensations = means.new_empty(cameras, n)
        radii = torch.empty(cameras, n, dtype=torch.int32)
        inputs = [as_array(t) for t in (means, quats, scales)]
        views = as_array(viewmats)
        lenses = np.ascontiguousarray(as_array(intrinsics)[:, [0, 1, 0, 1], [0, 1, 2, 2]])
        sizes, bounds = np.array(size, np.float32), np.array(limits, np.float32)
        pieces = -(-n // kernels.CHUNK)
        for c in range(cameras):
            bad = np.zeros((pieces, 3), np.int64)
            outputs = [t[c].numpy() for t in (means2d, depths, geometry, conics, radii, compensations)]
            run(kernels.project, pieces, *inputs, views[c], lenses[c], sizes, bounds, *outputs, bad)
            for name, count in zip(("means", "quats", "scales"), bad.sum(0), strict=True):
                if count:
                    raise not_finite(name, int(count), n)
        ctx.save_for_backward(means, quats, scales, viewmats, radii)
        ctx.kept = (lenses, sizes, bounds, antialiased)
        ctx.mark_non_differentiable(conics, radii)
        return means2d, depths, geometry, conics, radii, compensations

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:  # type: ignore[override]
        from maskfield_ns.splatting import kernels_project as kernels

        means, quats, scales, viewmats, radii = ctx.saved_tensors
        lenses, sizes, bounds, antialiased = ctx.kept
        v_means2d, v_depths, v_geometry, _, _, v_compensations = grads
        n = means.shape[0]
        v_means, v_quats, v_scales = (torch.zeros(t.shape) for t in (means, quats, scales))
        v_viewmats = torch.zeros(viewmats.shape) if ctx.needs_input_grad[3] else None
        pieces = -(-n // kernels.CHUNK)
        inputs = [as_array(t) for t in (means, quats, scales)]
        for c in range(viewmats.shape[0]):
            v_view = np.zeros((pieces if v_viewmats is not None else 0, 3, 4), np.float32)
            incoming = [as_array(g[c]) for g in (v_means2d, v_depths, v_geometry, v_compensations)]
            outgoing = [t.numpy() for t in (v_means, v_quats, v_scales)]
            run(kernels.project_backward, pieces, *inputs, as_array(viewmats[c]), lenses[c], sizes, bounds,
                as_array(radii[c]), antialiased, *incoming, *outgoing, v_view)  # fmt: skip
            if v_viewmats is not None:
                v_viewmats[c, :3] = torch.from_numpy(v_view.sum(0, dtype=np.float64).astype(np.float32))
        return v_means, v_quats, v_scales, v_viewmats, None, None, None, None


class Blend(torch.autograd.Function):
    """Projected Gaussians to images [C, H, W, D] and alphas [C, H, W, 1].

    Gradients reach means2d, geometry, features ([N, D] or [C, N, D]), opacities and backgrounds. With `absgrad` the
    backward pass sets ``means2d.absgrad`` on the very tensor passed in.
    """

    @staticmethod
    def forward(ctx: Any, *args: Any) -> Any:
        means2d, geometry, features, opacities, backgrounds, depths, radii, size, absgrad = args
        width, height = size
        cameras, channels = means2d.shape[0], features.shape[-1]
        image = torch.empty(cameras, height, width, channels)
        transmittance = torch.empty(cameras, height, width)
        lists = []
        for c in range(cameras):
            arrays = [as_array(t[c]) for t in (means2d, geometry, opacities, depths, radii)]
            lists.append(build_tile_lists(*arrays, size=size))
            background = as_array(backgrounds[c]) if backgrounds is not None else np.zeros(channels, np.float32)
            own = features if features.dim() == 2 else features[c]
            blend(lists[c], as_array(own), background, image[c].numpy(), transmittance[c].numpy())
        ctx.save_for_backward(means2d, geometry, features, opacities, image, transmittance)
        ctx.lists, ctx.absgrad = lists, absgrad
        return image, (1 - transmittance)[..., None]

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:  # type: ignore[override]
        means2d, geometry, features, opacities, image, transmittance = ctx.saved_tensors
        v_image, v_alpha = grads
        wants = ctx.needs_input_grad
        full = wants[0] or wants[1] or wants[3]  # else only the features are trained: less to do
        v_means2d, v_geometry = torch.zeros(means2d.shape), torch.zeros(geometry.shape)
        v_opacities, v_features = torch.zeros(opacities.shape), torch.zeros(features.shape)
        absolute = torch.zeros(means2d.shape)
        for c, lists in enumerate(ctx.lists):
            own, v_own = (features, v_features) if features.dim() == 2 else (features[c], v_features[c])
            inputs = [as_array(t[c]) for t in (geometry, opacities, image, transmittance, v_alpha)]
            outputs = [t[c].numpy() for t in (v_means2d, v_geometry, absolute)]
            rest = GeometryGradient(*inputs, *outputs) if full else None
            blend_backward(lists, as_array(own), as_array(v_image[c]), v_own.numpy(), v_opacities[c].numpy(), rest)
        if ctx.absgrad:
            means2d.absgrad = absolute
        v_backgrounds = torch.einsum("chw,chwd->cd", transmittance, v_image) if wants[4] else None
        if not full:
            return None, None, v_features, None, v_backgrounds, None, None, None, None
        return v_means2d, v_geometry, v_features, v_opacities, v_backgrounds, None, None, None, None


class GeometryGradient(NamedTuple):
    """One camera's arrays that only the gradient of the geometry needs; the last three are filled."""

    geometry: np.ndarray  # [N, 3]
    opacities: np.ndarray  # [N]
    image: np.ndarray  # [H, W, D]
    transmittance: np.ndarray  # [H, W]
    v_alpha: np.ndarray  # [H, W, 1]
    v_means2d: np.ndarray  # [N, 2]
    v_geometry: np.ndarray  # [N, 3]
    absolute: np.ndarray  # [N, 2]


def _no_geometry() -> GeometryGradient:
    one, two, three = (np.empty(shape, np.float32) for shape in ((0,), (0, 2), (0, 3)))
    return GeometryGradient(three, one, one, one, one, two, three, two)


def blend(lists: TileLists, features: np.ndarray, background: np.ndarray, image: np.ndarray, rest: np.ndarray) -> None:
    """Fill image [H, W, D] and rest (transmittance) [H, W] of one camera from features [N, D]."""
    from maskfield_ns.splatting import kernels_forward as kernels

    run(kernels.blend, lists.bands, lists.size, lists.tiles, lists.order, lists.records, lists.slot_owner,
        lists.entry_slot, lists.entry_rows, lists.tile_start, features.reshape(-1), features.shape[1], background,
        image.reshape(-1), rest.reshape(-1))  # fmt: skip


def blend_backward(
    lists: TileLists,
    features: np.ndarray,
    v_image: np.ndarray,
    v_features: np.ndarray,
    v_opacities: np.ndarray,
    rest: GeometryGradient | None = None,
    kept: KeptWeights | None = None,
) -> None:
    """Gradients of one camera, added to v_features [N, D].

    Without `rest` there is nothing but that, `features` are not read, and v_opacities [N] receives the sum of each
    Gaussian's blending weights instead of its gradient; `kept` weights are used then.
    """
    from maskfield_ns.splatting import kernels_backward as kernels

    full = rest is not None
    rest = rest or _no_geometry()
    channels = v_image.shape[-1]
    if kept is not None and not full:
        slot_grads = gather_kept(lists, kept, v_image)
    else:
        slot_grads = np.empty(int(lists.band_start[-1]) * (kernels.MOMENTS + channels), np.float32)
        run(kernels.blend_backward, lists.bands, lists.size, lists.tiles, lists.order, lists.records, lists.band_start,
            lists.slot_owner, lists.entry_slot, lists.entry_rows, lists.tile_start, features.reshape(-1), channels,
            rest.image.reshape(-1), rest.transmittance.reshape(-1), v_image.reshape(-1), rest.v_alpha.reshape(-1),
            full, slot_grads)  # fmt: skip
    pieces = -(-lists.order.shape[0] // kernels.CHUNK)
    run(kernels.collect, pieces, lists.order, lists.records, rest.geometry, rest.opacities, lists.slots, lists.slots_of,
        channels, full, slot_grads, rest.v_means2d, rest.v_geometry, v_opacities, rest.absolute,
        v_features.reshape(-1))  # fmt: skip
