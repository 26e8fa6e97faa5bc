"""gsplat 1.4.0's C extension on the CPU, below gsplat's own Python: float32, tile by tile, with its contract checked.

Inputs must be contiguous float32 tensors on the device, with a number of channels that has a kernel. What CUDA leaves
uninitialised is NaN here.
"""

import sys
import types
from typing import Any

import torch
from device import COUNTS, Pretended, pretended, site, unwrap

P = Pretended
SUPPORTED = {1, 2, 3, 4, 5, 8, 9, 16, 17, 32, 33, 64, 65, 128, 129, 256, 257, 512, 513}


class CameraModelType:
    PINHOLE, ORTHO, FISHEYE = 0, 1, 2


def inp(*ts, dtype=None):
    out = []
    for t in ts:
        if t is None:
            out.append(None)
            continue
        if not pretended(t):
            raise RuntimeError("must be a CUDA tensor")
        if not t.is_contiguous():
            raise RuntimeError("must be contiguous")
        out.append(t.inner.detach())
    return out


def f32(*ts):
    for t in ts:
        if t is not None and t.dtype != torch.float32:
            raise RuntimeError(f"expected scalar type Float but found {t.dtype}")


def nan(*s):
    return torch.full(s, float("nan"))


def quat_rot(q):
    w, x, y, z = torch.nn.functional.normalize(q, dim=-1).unbind(-1)
    return torch.stack(
        [
            1 - 2 * (y * y + z * z),
            2 * (x * y - w * z),
            2 * (x * z + w * y),
            2 * (x * y + w * z),
            1 - 2 * (x * x + z * z),
            2 * (y * z - w * x),
            2 * (x * z - w * y),
            2 * (y * z + w * x),
            1 - 2 * (x * x + y * y),
        ],
        -1,
    ).reshape(-1, 3, 3)


def project(means, quats, scales, viewmat, K, width, height, eps2d):
    R, t = viewmat[:3, :3], viewmat[:3, 3]
    mc = means @ R.T + t
    M = quat_rot(quats) * scales[:, None, :]
    cov = M @ M.transpose(1, 2)
    cc = R @ cov @ R.T
    x, y, z = mc.unbind(-1)
    fx, fy, cx, cy = K[0, 0], K[1, 1], K[0, 2], K[1, 2]
    rz = 1 / z
    tan_x, tan_y = 0.5 * width / fx, 0.5 * height / fy
    lim_xp, lim_xn = (width - cx) / fx + 0.3 * tan_x, cx / fx + 0.3 * tan_x
    lim_yp, lim_yn = (height - cy) / fy + 0.3 * tan_y, cy / fy + 0.3 * tan_y
    tx = z * torch.minimum(lim_xp, torch.maximum(-lim_xn, x * rz))
    ty = z * torch.minimum(lim_yp, torch.maximum(-lim_yn, y * rz))
    none = torch.zeros_like(z)
    J = torch.stack([fx * rz, none, -fx * tx * rz * rz, none, fy * rz, -fy * ty * rz * rz], -1).reshape(-1, 2, 3)
    c2 = J @ cc @ J.transpose(1, 2)
    m2 = torch.stack([fx * x * rz + cx, fy * y * rz + cy], -1)
    a, b, c = c2[:, 0, 0], c2[:, 0, 1], c2[:, 1, 1]
    det0 = a * c - b * b
    a, c = a + eps2d, c + eps2d
    det = a * c - b * b
    comp = (det0 / det).clamp(min=0).sqrt()
    conic = torch.stack([c / det, -b / det, a / det], -1)
    return m2, z, conic, comp, det, 0.5 * (a + c)


def fully_fused_projection_fwd(
    means, covars, quats, scales, viewmats, Ks, width, height, eps2d, near, far, radius_clip, calc, model
):
    assert covars is None
    f32(means, quats, scales, viewmats, Ks)
    means, quats, scales, viewmats, Ks = inp(means, quats, scales, viewmats, Ks)
    C, N = viewmats.shape[0], means.shape[0]
    radii = torch.full((C, N), -77, dtype=torch.int32)
    m2 = nan(C, N, 2)
    dep = nan(C, N)
    con = nan(C, N, 3)
    comp = torch.zeros(C, N) if calc else torch.empty(0)
    for c in range(C):
        p2, z, conic, cp, det, b = project(means, quats, scales, viewmats[c], Ks[c], width, height, eps2d)
        v1 = b + (b * b - det).clamp(min=0.01).sqrt()
        r = (3 * v1.sqrt()).ceil()
        ok = (z >= near) & (z <= far) & (det > 0) & (r > radius_clip)
        ok &= ~((p2[:, 0] + r <= 0) | (p2[:, 0] - r >= width) | (p2[:, 1] + r <= 0) | (p2[:, 1] - r >= height))
        radii[c] = torch.where(ok, r, 0).int()
        m2[c][ok], dep[c][ok], con[c][ok] = p2[ok], z[ok], conic[ok]
        if calc:
            comp[c][ok] = cp[ok]
    return P(radii), P(m2), P(dep), P(con), P(comp)


def fully_fused_projection_bwd(
    means,
    covars,
    quats,
    scales,
    viewmats,
    Ks,
    width,
    height,
    eps2d,
    model,
    radii,
    conics,
    compensations,
    v_means2d,
    v_depths,
    v_conics,
    v_comp,
    want_view,
):
    means, quats, scales, viewmats, Ks, radii, v_means2d, v_depths, v_conics = inp(
        means, quats, scales, viewmats, Ks, radii, v_means2d, v_depths, v_conics
    )
    v_comp = unwrap(v_comp)
    with torch.enable_grad():
        leaves = [t.clone().requires_grad_() for t in (means, quats, scales, viewmats)]
        total = 0
        for c in range(viewmats.shape[0]):
            ok = radii[c] > 0
            m2, z, conic, cp, _, _ = project(
                leaves[0][ok], leaves[1][ok], leaves[2][ok], leaves[3][c], Ks[c], width, height, eps2d
            )
            total = (
                total + (m2 * v_means2d[c][ok]).sum() + (z * v_depths[c][ok]).sum() + (conic * v_conics[c][ok]).sum()
            )
            if v_comp is not None:
                total = total + (cp * v_comp[c][ok]).sum()
        g = torch.autograd.grad(total, leaves, allow_unused=True)
    g = [torch.zeros_like(leaf) if x is None else x for x, leaf in zip(g, leaves, strict=True)]
    return P(g[0].detach()), None, P(g[1].detach()), P(g[2].detach()), P(g[3].detach())


def isect_tiles(means2d, radii, depths, camera_ids, gaussian_ids, C, tile, tw, th, sort, double):
    COUNTS.waits[f"isect_tiles {site()}"] += 1
    means2d, radii, depths = inp(means2d, radii, depths)
    C, N = radii.shape
    assert C == 1
    r = radii[0].float() / tile
    x, y = means2d[0, :, 0] / tile, means2d[0, :, 1] / tile
    vis = radii[0] > 0
    x, y = x.nan_to_num(0), y.nan_to_num(0)
    x0 = (x - r).floor().clamp(0, tw).long()
    x1 = (x + r).ceil().clamp(0, tw).long()
    y0 = (y - r).floor().clamp(0, th).long()
    y1 = (y + r).ceil().clamp(0, th).long()
    count = torch.where(vis, (x1 - x0) * (y1 - y0), 0)
    idx = torch.repeat_interleave(torch.arange(N), count)
    within = torch.arange(len(idx)) - torch.repeat_interleave(count.cumsum(0) - count, count)
    w = (x1 - x0)[idx].clamp(min=1)
    tile_id = (y0[idx] + within // w) * tw + x0[idx] + within % w
    bits = depths[0][idx].contiguous().view(torch.int32).long()
    ids = (tile_id << 32) | bits
    order = ids.argsort(stable=True)
    return P(count.int()[None]), P(ids[order]), P(idx[order].int())


def isect_offset_encode(ids, C, tw, th):
    (ids,) = inp(ids)
    tiles = ids >> 32
    return P(torch.searchsorted(tiles, torch.arange(tw * th)).int().reshape(1, th, tw))


def tiles_of(means2d, conics, opacities, W, H, tile, offsets, flat):
    offs = [*offsets.reshape(-1).tolist(), len(flat)]
    th, tw = offsets.shape[1:]
    m, q, o = means2d.reshape(-1, 2), conics.reshape(-1, 3), opacities.reshape(-1)
    for t in range(tw * th):
        g = flat[offs[t] : offs[t + 1]].long()
        y0, x0 = (t // tw) * tile, (t % tw) * tile
        ys, xs = torch.arange(y0, min(y0 + tile, H)), torch.arange(x0, min(x0 + tile, W))
        py, px = torch.meshgrid(ys + 0.5, xs + 0.5, indexing="ij")
        rows, cols = torch.meshgrid(ys, xs, indexing="ij")
        if not len(g):
            yield rows.reshape(-1), cols.reshape(-1), g, None, None, None, None, None, None
            continue
        dx, dy = m[g, 0:1] - px.reshape(1, -1), m[g, 1:2] - py.reshape(1, -1)
        sigma = 0.5 * (q[g, 0:1] * dx * dx + q[g, 2:3] * dy * dy) + q[g, 1:2] * dx * dy
        vis = torch.exp(-sigma)
        raw = o[g][:, None] * vis
        alpha = raw.clamp(max=0.999)
        alpha = torch.where((sigma < 0) | (alpha < 1 / 255), 0.0, alpha)
        T = torch.cumprod(1 - alpha, 0)
        done = (alpha > 0) & (T <= 1e-4)
        stop = done.int().cummax(0).values.bool()
        alpha = torch.where(stop, 0.0, alpha)
        T = torch.cumprod(1 - alpha, 0)
        before = torch.cat([torch.ones_like(T[:1]), T[:-1]])
        yield rows.reshape(-1), cols.reshape(-1), g, alpha, before, T[-1], (dx, dy), raw, vis


def rasterize_to_pixels_fwd(means2d, conics, colors, opacities, backgrounds, masks, W, H, tile, offsets, flat):
    f32(means2d, conics, colors, opacities, backgrounds)
    means2d, conics, colors, opacities, backgrounds, offsets, flat = inp(
        means2d, conics, colors, opacities, backgrounds, offsets, flat
    )
    D = colors.shape[-1]
    if D not in SUPPORTED:
        raise RuntimeError(f"Unsupported number of channels: {D}")
    out = torch.zeros(1, H, W, D)
    al = torch.zeros(1, H, W, 1)
    last = torch.zeros(1, H, W, dtype=torch.int32)
    c = colors.reshape(-1, D)
    for rows, cols, g, alpha, before, T, *_ in tiles_of(means2d, conics, opacities, W, H, tile, offsets, flat):
        if alpha is None:
            v = torch.zeros(len(rows), D)
            T = torch.ones(len(rows))
        else:
            v = (alpha * before).T @ c[g]
        if backgrounds is not None:
            v = v + T[:, None] * backgrounds[0]
        out[0, rows, cols] = v
        al[0, rows, cols, 0] = 1 - T
    return P(out), P(al), P(last)


def rasterize_to_pixels_bwd(
    means2d, conics, colors, opacities, backgrounds, masks, W, H, tile, offsets, flat, alphas, last, v_c, v_a, absgrad
):
    v_c, v_a = (v if pretended(v) else P(v) for v in (v_c, v_a))
    means2d, conics, colors, opacities, backgrounds, offsets, flat, v_c, v_a = inp(
        means2d, conics, colors, opacities, backgrounds, offsets, flat, v_c, v_a
    )
    D = colors.shape[-1]
    c = colors.reshape(-1, D)
    vm, vq, vcol, vo = (torch.zeros_like(t) for t in (means2d, conics, colors, opacities))
    vabs = torch.zeros_like(means2d)
    q = conics.reshape(-1, 3)
    for rows, cols, g, alpha, before, T, d, raw, vis in tiles_of(means2d, conics, opacities, W, H, tile, offsets, flat):
        if alpha is None:
            continue
        dx, dy = d
        v, va = v_c[0, rows, cols], v_a[0, rows, cols, 0]
        w = alpha * before
        vcol.reshape(-1, D).index_add_(0, g, w @ v)
        cv = c[g] @ v.T
        behind = (w * cv).flip(0).cumsum(0).flip(0) - w * cv
        ra = 1 / (1 - alpha)
        valpha = before * cv - behind * ra + T * ra * va
        if backgrounds is not None:
            valpha = valpha - T * ra * (v @ backgrounds[0])
        live = (alpha > 0) & (raw <= 0.999)
        vs = torch.where(live, -raw * valpha, 0.0)
        A, B, Cc = q[g, 0:1], q[g, 1:2], q[g, 2:3]
        gx, gy = vs * (A * dx + B * dy), vs * (B * dx + Cc * dy)
        vm.reshape(-1, 2).index_add_(0, g, torch.stack([gx.sum(1), gy.sum(1)], -1))
        vabs.reshape(-1, 2).index_add_(0, g, torch.stack([gx.abs().sum(1), gy.abs().sum(1)], -1))
        vq.reshape(-1, 3).index_add_(
            0, g, torch.stack([(0.5 * vs * dx * dx).sum(1), (vs * dx * dy).sum(1), (0.5 * vs * dy * dy).sum(1)], -1)
        )
        vo.reshape(-1).index_add_(0, g, torch.where(live, vis * valpha, 0.0).sum(1))
    return P(vabs) if absgrad else None, P(vm), P(vq), P(vcol), P(vo)


def _sh(degree, dirs, coeffs):
    from gsplat.cuda._torch_impl import _spherical_harmonics

    return _spherical_harmonics(degree, dirs, coeffs)


def compute_sh_fwd(degree, dirs, coeffs, masks):
    dirs, coeffs, masks = inp(dirs, coeffs, masks)
    out = nan(*dirs.shape)
    out[masks] = _sh(degree, dirs[masks], coeffs[masks])
    return P(out)


def compute_sh_bwd(bases, degree, dirs, coeffs, masks, v, want):
    dirs, coeffs, masks, v = inp(dirs, coeffs, masks, v)
    with torch.enable_grad():
        d, k = dirs[masks].clone().requires_grad_(), coeffs[masks].clone().requires_grad_()
        gd, gk = torch.autograd.grad((_sh(degree, d, k) * v[masks]).sum(), [d, k], allow_unused=True)
    vc, vd = torch.zeros_like(coeffs), torch.zeros_like(dirs)
    if gk is not None:
        vc[masks] = gk
    if gd is not None:
        vd[masks] = gd
    return P(vc), P(vd)


def install() -> None:
    """Puts the kernels where gsplat looks for its compiled extension."""
    extension = types.SimpleNamespace(CameraModelType=CameraModelType, PINHOLE=CameraModelType.PINHOLE)
    for name in KERNELS:
        setattr(extension, name, _outside(globals()[name]))
    backend: Any = types.ModuleType("gsplat.cuda._backend")
    backend._C = extension
    sys.modules["gsplat.cuda._backend"] = backend


def _outside(kernel: Any) -> Any:
    """A kernel sees neither modes nor autograd."""

    def call(*args: Any, **kwargs: Any) -> Any:
        with torch.utils._python_dispatch._disable_current_modes(), torch.no_grad():
            return kernel(*args, **kwargs)

    return call


KERNELS = (
    "fully_fused_projection_fwd",
    "fully_fused_projection_bwd",
    "isect_tiles",
    "isect_offset_encode",
    "rasterize_to_pixels_fwd",
    "rasterize_to_pixels_bwd",
    "compute_sh_fwd",
    "compute_sh_bwd",
)
