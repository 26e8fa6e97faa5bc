"""A dense float64 renderer written from the equations of EWA splatting, for tests only.

Every Gaussian is evaluated at every pixel; no tiles besides the published rule of which 16 x 16 tiles a Gaussian may
draw in (those its square of three standard deviations touches). Autograd gives the gradients.
"""

import math

import torch
from torch import Tensor

TILE = 16


def rotation(quats: Tensor) -> Tensor:
    w, x, y, z = (quats / quats.norm(dim=-1, keepdim=True)).unbind(-1)
    cross = torch.zeros(*quats.shape[:-1], 3, 3, dtype=quats.dtype)
    cross[..., 0, 1], cross[..., 0, 2], cross[..., 1, 2] = -z, y, -x
    cross[..., 1, 0], cross[..., 2, 0], cross[..., 2, 1] = z, -y, x
    eye = torch.eye(3, dtype=quats.dtype)
    return eye + 2 * w[..., None, None] * cross + 2 * cross @ cross  # Rodrigues with q = (cos, sin * axis)


def project(means, quats, scales, view, K, width, height, eps=0.3):
    """One camera: centre [N, 2], depth [N], blurred covariance [N, 2, 2], covariance before the blur."""
    R, t = view[:3, :3], view[:3, 3]
    p = means @ R.T + t
    z = p[:, 2]
    z = torch.where(z.abs() < 1e-9, torch.full_like(z, 1e-9), z)
    fx, fy, cx, cy = K[0, 0], K[1, 1], K[0, 2], K[1, 2]
    slope = p[:, :2] / z[:, None]
    margin = 0.15 * torch.stack([width / fx, height / fy])
    low, high = -torch.stack([cx / fx, cy / fy]) - margin, torch.stack([(width - cx) / fx, (height - cy) / fy]) + margin
    slope = torch.maximum(torch.minimum(slope, high), low)
    zero = torch.zeros_like(z)
    J = torch.stack(
        [
            torch.stack([fx / z, zero, -fx * slope[:, 0] / z], -1),
            torch.stack([zero, fy / z, -fy * slope[:, 1] / z], -1),
        ],
        dim=1,
    )
    L = J @ R @ rotation(quats) @ torch.diag_embed(scales)
    sharp = L @ L.transpose(1, 2)
    centre = torch.stack([fx * p[:, 0] / z + cx, fy * p[:, 1] / z + cy], -1)
    return centre, p[:, 2], sharp + eps * torch.eye(2, dtype=means.dtype), sharp


def render(
    means,
    quats,
    scales,
    opacities,
    features,
    view,
    K,
    width,
    height,
    background=None,
    near=0.01,
    far=1e10,
    antialiased=False,
    add_depth=False,
    centres=None,
):
    """One camera. Returns image [H, W, D], alpha [H, W], extras.

    `centres` replaces the projected centres: pass a leaf to differentiate by it. Give it as [H * W, N, 2] for the
    gradient of every pixel by itself (its absolute sum is absgrad).
    """
    centre, depth, cov, sharp = project(means, quats, scales, view, K, width, height)
    det = torch.linalg.det(cov)
    own = centre.detach()
    half = (cov[:, 0, 0] + cov[:, 1, 1]) / 2
    radius = torch.ceil(3 * torch.sqrt(half + torch.sqrt(torch.clamp(half**2 - det, min=0.01)))).detach()
    seen = (depth >= near) & (depth <= far)
    for axis, length in ((0, width), (1, height)):
        seen = seen & (own[:, axis] + radius > 0) & (own[:, axis] - radius < length)
    opacity = opacities
    if antialiased:
        opacity = opacities * torch.sqrt(torch.clamp(torch.linalg.det(sharp) / det, min=1e-20))
    if add_depth:
        features = torch.cat([features, depth[:, None]], -1)
    if centres is not None:
        centre = centres
    ys, xs = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    pixels = torch.stack([xs, ys], -1).reshape(-1, 2).to(means.dtype) + 0.5  # [P, 2]
    delta = pixels[:, None] - (centre if centre.dim() == 3 else centre[None])
    conic = torch.linalg.inv(cov)
    sigma = 0.5 * torch.einsum("pni,nij,pnj->pn", delta, conic, delta)
    alpha = torch.clamp(opacity * torch.exp(-sigma), max=0.999)
    tile = torch.div(pixels, TILE, rounding_mode="floor")[:, None]
    first = torch.floor((own - radius[:, None]) / TILE)
    last = torch.ceil((own + radius[:, None]) / TILE)
    allowed = ((tile >= first) & (tile < last)).all(-1) & seen
    alpha = torch.where(allowed & (alpha >= 1 / 255), alpha, torch.zeros_like(alpha))
    order = torch.sort(depth.detach(), stable=True).indices
    alpha = alpha[:, order]
    after = torch.cumprod(1 - alpha, dim=1)
    alive = after.detach() > 1e-4  # once false it stays false: `after` only falls
    alpha = torch.where(alive, alpha, torch.zeros_like(alpha))
    after = torch.cumprod(1 - alpha, dim=1)
    before = torch.cat([torch.ones_like(after[:, :1]), after[:, :-1]], 1)
    weights = alpha * before  # [P, N] in depth order
    rest = after[:, -1] if after.shape[1] else torch.ones(len(pixels), dtype=means.dtype)
    image = weights @ features[order]
    if background is not None:
        if add_depth:
            background = torch.cat([background, background.new_zeros(1)])  # depth has none
        image = image + rest[:, None] * background
    table = torch.zeros_like(weights)
    table[:, order] = weights
    extras = {"centre": centre, "depth": depth, "radius": torch.where(seen, radius, 0).int(), "weights": table}
    return image.reshape(height, width, -1), (1 - rest).reshape(height, width), extras


def sh_basis(directions: Tensor, degree: int) -> Tensor:
    """Real spherical harmonics with 3DGS's signs, from associated Legendre polynomials. [N, (degree + 1)^2]."""
    x, y, z = (directions / directions.norm(dim=-1, keepdim=True)).unbind(-1)
    # cos(m phi) sin^m(theta) and sin(m phi) sin^m(theta)
    c, s = [torch.ones_like(x)], [torch.zeros_like(x)]
    for _ in range(degree):
        c, s = [*c, x * c[-1] - y * s[-1]], [*s, x * s[-1] + y * c[-1]]
    values = []
    for level in range(degree + 1):
        for m in range(-level, level + 1):
            k = abs(m)
            # P_l^k(z) / sin^k, without the Condon-Shortley sign
            p_prev, p = torch.zeros_like(z), torch.ones_like(z) * math.prod(range(1, 2 * k, 2))
            for n in range(k + 1, level + 1):
                p_prev, p = p, ((2 * n - 1) * z * p - (n + k - 1) * p_prev) / (n - k)
            norm = math.sqrt((2 * level + 1) / (4 * math.pi) * math.factorial(level - k) / math.factorial(level + k))
            if k:
                norm *= math.sqrt(2) * (-1) ** k
            values.append(norm * p * (c[k] if m >= 0 else s[k]))
    return torch.stack(values, -1)
