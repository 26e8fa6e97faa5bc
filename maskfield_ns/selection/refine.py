"""From what mask features claim to what makes sense in 3D: one thing is one piece, or a few alike."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from maskfield_ns.selection.geometry import Points, pieces

MIN_SHARE = 0.2
"""Pieces smaller than this share of the largest one (by mass) are crumbs of other things."""
MIN_LIKENESS = 0.7
"""Pieces less relevant than this share of the most relevant large one are other things that resemble it."""
_OVERSIZE = 6.0
"""Gaussians this many times as wide as the thing's typical ones belong to what is behind it."""
_OVERSIZE_EXTENT = 0.2
"""The same as a share of the thing's diagonal: a floor has wide ones among thousands of narrow ones."""
_NEIGHBOURS = 8
_SOLID = 0.55
"""A piece is filled when this share of what lies within its hull belongs to it already."""
_VERY_SOLID = 0.7
"""The same for taking in smaller things that lie within the hull."""
_ENCLOSED = 0.85
"""A thing lies within another one when this share of it does."""
_HULL_POINTS = 8
_MAX_HULLS = 20
"""Pieces that are filled; crumbs beyond are not worth a hull each."""


def keep_large_components(
    points: Points,
    mass: Float[np.ndarray, " N"],
    relevancy: Float[np.ndarray, " N"],
    reach: Float[np.ndarray, " N"] | None = None,
    near: Float[np.ndarray, " 3"] | None = None,
) -> Bool[np.ndarray, " N"]:
    """Which of the claimed points to keep.

    Args:
        points: all that are claimed for the thing.
        mass: what each stands for.
        relevancy: how sure the claim is; any unit.
        reach: how far each point extends itself.
        near: keep only the piece that comes closest to this point (a click).
    """
    if not len(points):
        return np.zeros(0, bool)
    piece = pieces(points, reach)
    if near is not None:
        return piece == piece[np.linalg.norm(points - near, axis=1).argmin()]
    total = np.bincount(piece, mass)
    mean = np.bincount(piece, mass * relevancy) / np.maximum(total, 1e-12)
    large = total >= MIN_SHARE * total.max()
    return (large & (mean >= MIN_LIKENESS * mean[large].max()))[piece]


def not_oversize(points: Points, width: Float[np.ndarray, " N"]) -> Bool[np.ndarray, " N"]:
    """Gaussians that are not far wider than the typical one of the thing, nor than the thing itself allows."""
    if not len(points):
        return np.zeros(0, bool)
    extent = np.linalg.norm(np.subtract(*np.quantile(points, (0.95, 0.05), axis=0)))
    return width <= max(_OVERSIZE * np.median(width), _OVERSIZE_EXTENT * extent)


def filled(
    points: Points,
    chosen: Bool[np.ndarray, " N"],
    relevancy: Float[np.ndarray, " N"],
    width: Float[np.ndarray, " N"],
    least: float,
) -> Bool[np.ndarray, " N"]:
    """Adds what lies within a piece's convex hull and is claimed at least a little: the dark patches of a ball.

    Args:
        points: of the whole scene.
        chosen: what is selected so far.
        relevancy: in units of the threshold.
        width: how far each point extends.
        least: relevancy needed.
    """
    result = chosen.copy()
    limit = _OVERSIZE * float(np.median(width[chosen])) if chosen.any() else 0.0
    for _, within in _hulls(points, chosen, width):
        if chosen[within].mean() >= _SOLID:  # not a floor, or a room: other things stand within its hull
            result[within[(relevancy[within] >= least) & (width[within] <= limit)]] = True
    return result


def enclosed(
    points: Points, chosen: Bool[np.ndarray, " N"], width: Float[np.ndarray, " N"], owners: Int[np.ndarray, "N L"]
) -> Bool[np.ndarray, " N"]:
    """Adds smaller things that lie entirely within a solid piece: the dark patches of a ball, the eyes of a bear.

    Args:
        points: of the whole scene.
        chosen: what is selected so far.
        width: how far each point extends.
        owners: the thing that each point belongs to for sure, at each mask level from fine to coarse; -1: none.
    """
    result = chosen.copy()
    limit = _OVERSIZE * float(np.median(width[chosen])) if chosen.any() else 0.0
    for _, within in _hulls(points, chosen, width):
        if chosen[within].mean() < _VERY_SOLID:
            continue
        for level in range(owners.shape[1]):
            own = owners[:, level]
            here, everywhere = (
                np.bincount(own[index][own[index] >= 0], minlength=int(own.max()) + 2)
                for index in (within, np.arange(len(points)))
            )
            inner = (here >= _ENCLOSED * everywhere) & (here > 0)
            result[within[inner[own[within]] & (own[within] >= 0) & (width[within] <= limit)]] = True
    return result


def _outside(hull: Any, points: Points) -> Float[np.ndarray, " N"]:
    """Distance outside a convex hull (to its planes); negative inside."""
    parts = [
        (part @ hull.equations[:, :3].T + hull.equations[:, 3]).max(axis=1)
        for part in np.array_split(points, len(points) // 4096 + 1)
    ]
    return np.concatenate(parts)


def smoothed(
    points: Points, chosen: Bool[np.ndarray, " N"], relevancy: Float[np.ndarray, " N"]
) -> Bool[np.ndarray, " N"]:
    """Lets doubtful points go with their neighbours.

    Args:
        points: of the whole scene.
        chosen: what is selected so far.
        relevancy: in units of the threshold; from 0.4 to 1.25 counts as doubtful.
    """
    from scipy.spatial import KDTree

    if chosen.sum() < 3 or len(points) <= _NEIGHBOURS:
        return chosen
    low, high = points[chosen].min(axis=0), points[chosen].max(axis=0)
    margin = 0.1 * (high - low)
    around = ((points >= low - margin) & (points <= high + margin)).all(axis=1).nonzero()[0]
    doubtful = around[(relevancy[around] > 0.4) & (relevancy[around] < 1.25)]
    if not len(doubtful) or len(around) <= _NEIGHBOURS:
        return chosen
    _, index = KDTree(points[around]).query(points[doubtful], k=_NEIGHBOURS + 1)
    share = chosen[around][np.asarray(index)[:, 1:]].mean(axis=1)
    result = chosen.copy()
    result[doubtful[share >= 0.75]] = True
    result[doubtful[share <= 0.25]] = False
    return result


def adjacent(points: Points, members: Bool[np.ndarray, " N"], width: Float[np.ndarray, " N"]) -> Bool[np.ndarray, " N"]:
    """What is not selected, not much wider than the thing's own Gaussians, and within reach of one of them."""
    from scipy.spatial import KDTree

    result = np.zeros(len(points), bool)
    if not members.any():
        return result
    typical = float(np.median(width[members]))
    low, high = points[members].min(axis=0) - 3 * typical, points[members].max(axis=0) + 3 * typical
    around = ((points >= low) & (points <= high)).all(axis=1) & ~members & (width <= _OVERSIZE * typical)
    candidates = around.nonzero()[0]
    if len(candidates):
        distance, _ = KDTree(points[members]).query(points[candidates], distance_upper_bound=3 * typical)
        result[candidates[np.isfinite(distance)]] = True
    return result


def within_hulls(
    points: Points, members: Bool[np.ndarray, " N"], width: Float[np.ndarray, " N"]
) -> Bool[np.ndarray, " N"]:
    """What is not selected, within the convex hull of one of the selection's pieces (and a Gaussian's width)."""
    result = np.zeros(len(points), bool)
    for _, within in _hulls(points, members, width):
        result[within] = True
    return result & ~members


def _hulls(
    points: Points, members: Bool[np.ndarray, " N"], width: Float[np.ndarray, " N"]
) -> Iterator[tuple[Int[np.ndarray, " M"], Int[np.ndarray, " K"]]]:
    """Per larger piece: its members, and all points of the scene within its hull."""
    from scipy.spatial import ConvexHull, QhullError

    index = members.nonzero()[0]
    if len(index) < _HULL_POINTS:
        return
    piece = pieces(points[index])
    margin = float(np.median(width[index]))
    for number in range(min(int(piece.max()) + 1, _MAX_HULLS)):
        of_piece = index[piece == number]
        if len(of_piece) < _HULL_POINTS:
            continue
        try:
            hull = ConvexHull(points[of_piece])
        except QhullError:  # flat
            continue
        low, high = points[of_piece].min(axis=0) - margin, points[of_piece].max(axis=0) + margin
        around = ((points >= low) & (points <= high)).all(axis=1).nonzero()[0]
        yield of_piece, around[_outside(hull, points[around]) <= margin]
