"""Mask features without optimisation: what each Gaussian's pixels say, averaged with its blending weights.

Every thing g has a code q_g, and masks say to which thing a pixel belongs. The feature of Gaussian i that explains its
pixels best (row-sum-preconditioned least squares, one step) is the weighted mean of their codes: x_i = sum_p w_ip
u(p) / sum_p w_ip c(p), where c(p) is 1 on pixels that a mask covers. Pixels no mask covers have no say, because the
proposer may have missed the thing there. Ours; the algebra is that of lifting methods such as Occam's LGS and LUDVIG.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def pixel_codes(
    codes: Float[Tensor, "Q channels"],
    queries: Int[Tensor, " K"],
    levels: Int[Tensor, " K"],
    masks: Float[Tensor, "K P"],
    weights: Float[Tensor, " K"],
    num_levels: int,
) -> tuple[Float[Tensor, "P channels"], Float[Tensor, "P L"]]:
    """Code of each pixel of a view, and how much of it masks of each level cover.

    Args:
        codes: q_g, each in the block of channels of its level, zero elsewhere.
        queries: the thing that each of K masks shows.
        levels: its level.
        masks: covered fraction of each pixel.
        weights: how much to believe each mask where several of a level overlap, positive.

    Returns:
        u(p) c(p) and c(p).
    """
    believed = masks * weights[:, None]
    image = masks.new_zeros(masks.shape[1], codes.shape[1])
    covered = masks.new_zeros(masks.shape[1], num_levels)
    for level in range(num_levels):
        own = levels == level
        if not own.any():
            continue
        covered[:, level] = masks[own].amax(0)
        share = believed[own] / believed[own].sum(0).clamp(min=1e-6)
        image += (share * covered[:, level]).T @ codes[queries[own]]
    return image, covered


def solve_features(
    sums: Float[Tensor, "N channels"],
    covered: Float[Tensor, "N L"],
    seen: Float[Tensor, " N"],
    min_share: float = 0.2,
) -> Float[Tensor, "N channels"]:
    """Features from sums of pixel codes over all views.

    Args:
        sums: sum over views and pixels of w_ip u(p) c(p).
        covered: the same sums of w_ip c(p), per level.
        seen: the same sums of w_ip.
        min_share: Gaussians covered by masks of a level on a smaller share of what is seen of them fade towards
            "none of the things", because a stray mask or two is no evidence.
    """
    block = sums.shape[1] // covered.shape[1]
    mean = sums.unflatten(1, (-1, block)) / covered.clamp(min=1e-6)[..., None]
    certainty = (covered / (min_share * seen.clamp(min=1e-6))[:, None]).clamp(max=1)
    return (mean * certainty[..., None]).flatten(1)


def neighbours(
    positions: Float[Tensor, "N 3"], known: Bool[Tensor, " N"], k: int = 8
) -> tuple[Int[Tensor, " M"], Int[Tensor, "M k"]]:
    """For each of the M points that are not known, its k nearest known ones (fewer if there are fewer)."""
    from scipy.spatial import KDTree

    unknown, reference = (~known).nonzero()[:, 0], known.nonzero()[:, 0]
    if not len(unknown) or not len(reference):
        return unknown[:0], reference.new_zeros(0, 1)
    places = positions.detach().cpu().numpy()
    k = min(k, len(reference))
    _, nearest = KDTree(places[known.cpu().numpy()]).query(places[unknown.cpu().numpy()], k=k)
    nearest = torch.from_numpy(nearest).reshape(len(unknown), k).to(reference.device)
    return unknown, reference[nearest]
