"""What people without a GPU had before: two torch rasterisers to measure ours against.

`ref`: gsplat's torch implementation (its ``_torch_impl`` functions) with the parts that need CUDA or loop in Python
replaced by vectorised torch. `tile`: gsplat's torch projection, then dense alpha blending tile by tile.
"""

from unittest import mock

import gsplat.cuda._torch_impl as gsplat_torch
import nerfacc
import torch
from torch import Tensor

TILE = 16
PAIRS_AT_ONCE = 1 << 20  # small enough for the processor's cache


def project(means, quats, scales, viewmats, Ks, width, height):
    covars, _ = gsplat_torch._quat_scale_to_covar_preci(quats, scales, compute_preci=False)
    return gsplat_torch._fully_fused_projection(means, covars, viewmats, Ks, width, height)[:4]


@torch.no_grad()
def tile_lists(
    means2d: Tensor, radii: Tensor, depths: Tensor, width: int, height: int
) -> tuple[Tensor, Tensor, Tensor]:
    """One camera: tile and Gaussian of every entry, sorted by tile and depth, and the tiles' offsets."""
    columns, bands = -(-width // TILE), -(-height // TILE)
    limit = torch.tensor([columns, bands])
    low = torch.minimum(torch.floor((means2d - radii[:, None]) / TILE).long().clamp(min=0), limit)
    high = torch.minimum(torch.ceil((means2d + radii[:, None]) / TILE).long().clamp(min=0), limit)
    spans = (high - low) * (radii > 0)[:, None]
    counts = spans.prod(-1)
    gaussian = torch.repeat_interleave(torch.arange(len(counts)), counts)
    place = torch.arange(len(gaussian)) - torch.repeat_interleave(torch.cumsum(counts, 0) - counts, counts)
    wide = spans[gaussian, 0]
    tile = (low[gaussian, 1] + place // wide) * columns + low[gaussian, 0] + place % wide
    order = torch.argsort((tile << 32) | depths.float().contiguous().view(torch.int32).long()[gaussian])
    tile, gaussian = tile[order], gaussian[order]
    return tile, gaussian, torch.searchsorted(tile, torch.arange(columns * bands + 1))


@torch.no_grad()
def indices_in_range(means2d, conics, opacities, tile, gaussian, width, height):
    """gsplat's ``rasterize_to_indices_in_range`` for all Gaussians: (Gaussian, pixel) of every contribution."""
    columns = -(-width // TILE)
    inner = torch.arange(TILE)
    found_gaussian, found_pixel, found_alpha = [], [], []
    step = PAIRS_AT_ONCE // TILE**2
    for start in range(0, len(tile), step):
        t, g = tile[start : start + step], gaussian[start : start + step]
        x = ((t % columns) * TILE)[:, None, None] + inner[None, None, :]
        y = ((t // columns) * TILE)[:, None, None] + inner[None, :, None]
        dx = x + 0.5 - means2d[g, 0, None, None]
        dy = y + 0.5 - means2d[g, 1, None, None]
        c = conics[g, :, None, None]
        sigma = 0.5 * (c[:, 0] * dx * dx + c[:, 2] * dy * dy) + c[:, 1] * dx * dy
        alpha = torch.clamp(opacities[g, None, None] * torch.exp(-sigma), max=0.999)
        keep = (sigma >= 0) & (alpha >= 1 / 255) & (x < width) & (y < height)
        entry, row, column = torch.nonzero(keep, as_tuple=True)
        found_gaussian.append(g[entry])
        found_pixel.append(y[entry, row, 0] * width + x[entry, 0, column])
        found_alpha.append(alpha[keep])
    g, pixel, alpha = (torch.cat(parts) for parts in (found_gaussian, found_pixel, found_alpha))
    pixel, order = torch.sort(pixel, stable=True)
    g, alpha = g[order], alpha[order]
    keep = segment_transmittance(alpha, pixel, width * height) * (1 - alpha) > 1e-4
    return g[keep], pixel[keep]


def segment_transmittance(alpha: Tensor, ray: Tensor, rays: int) -> Tensor:
    """Product of (1 - alpha) over the earlier entries of the same ray; rays in order."""
    logs = torch.log1p(-alpha.double())
    before = torch.cumsum(logs, 0) - logs
    first = torch.searchsorted(ray, torch.arange(rays)).clamp(max=max(len(ray) - 1, 0))
    return torch.exp(before - before[first][ray]).to(alpha.dtype)


def weight_from_alpha(alpha, ray_indices=None, n_rays=None, **_):
    transmittance = segment_transmittance(alpha, ray_indices, n_rays)
    return alpha * transmittance, transmittance


def render_ref(means, quats, scales, opacities, colors, viewmats, Ks, width, height):
    radii, means2d, depths, conics = project(means, quats, scales, viewmats, Ks, width, height)
    tile, gaussian, _ = tile_lists(means2d[0].detach(), radii[0], depths[0].detach(), width, height)
    g, pixel = indices_in_range(
        means2d[0].detach(), conics[0].detach(), opacities.detach(), tile, gaussian, width, height
    )
    with mock.patch.object(nerfacc, "render_weight_from_alpha", weight_from_alpha):
        return gsplat_torch.accumulate(
            means2d, conics, opacities[None], colors[None], g, pixel, torch.zeros_like(g), width, height
        )


def render_tile(means, quats, scales, opacities, colors, viewmats, Ks, width, height):
    radii, means2d, depths, conics = project(means, quats, scales, viewmats, Ks, width, height)
    _, gaussian, offsets = tile_lists(means2d[0].detach(), radii[0], depths[0].detach(), width, height)
    columns, bands = -(-width // TILE), -(-height // TILE)
    inner = torch.arange(TILE) + 0.5
    starts = offsets.tolist()
    rows_of_tiles = []
    for band in range(bands):
        row = []
        for column in range(columns):
            tile = band * columns + column
            g = gaussian[starts[tile] : starts[tile + 1]]
            dx = (inner + column * TILE)[None, :, None] - means2d[0, g, 0]
            dy = (inner + band * TILE)[:, None, None] - means2d[0, g, 1]
            c = conics[0, g]
            sigma = 0.5 * (c[:, 0] * dx * dx + c[:, 2] * dy * dy) + c[:, 1] * dx * dy
            alpha = torch.clamp(opacities[g] * torch.exp(-sigma), max=0.999)
            alpha = torch.where((sigma >= 0) & (alpha >= 1 / 255), alpha, 0.0)
            after = torch.cumprod(1 - alpha, dim=-1)
            before = torch.cat([torch.ones_like(after[..., :1]), after[..., :-1]], -1)
            weights = torch.where(after > 1e-4, alpha * before, 0.0)
            image = weights @ colors[g]
            row.append(torch.cat([image, weights.sum(-1, keepdim=True)], -1))
        rows_of_tiles.append(torch.cat(row, 1))
    out = torch.cat(rows_of_tiles, 0)[:height, :width]
    return out[None, ..., :-1], out[None, ..., -1:]
