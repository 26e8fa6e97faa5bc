"""Points to connected pieces, boxes and plane-free measures; pure numpy, no scene."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from maskfield_ns.selection.coordinates import UP, CaptureCoordinates

Points = Float[np.ndarray, "N 3"]

TRIM = 0.01
"""Share of the points (by weight) that a robust box may leave outside on each side."""
_ENOUGH = 2000
"""Points that an orientation is looked for with; all of them make the box."""
_NEIGHBOURS = 12
"""Links per point when pieces are looked for; bounds memory for millions of points."""
_REACH = 2.0
"""Points are linked up to this many times the distance at which a typical point has eight neighbours."""


@dataclass(frozen=True, eq=False)
class Box:
    """A box in space: ``centre + axes.T @ (u * size / 2)`` for u in [-1, 1]^3."""

    centre: Float[np.ndarray, " 3"]
    size: Float[np.ndarray, " 3"]
    """Edge lengths along the axes."""
    axes: Float[np.ndarray, "3 3"]
    """Unit axes as rows, right-handed."""

    @property
    def center(self) -> Float[np.ndarray, " 3"]:
        """The same as ``centre``, which goes with the next version."""
        return self.centre

    @property
    def corners(self) -> Float[np.ndarray, "8 3"]:
        """The corners; bit k of the index chooses the far side along axis k."""
        signs = np.array([[(i >> k & 1) * 2 - 1 for k in range(3)] for i in range(8)])
        return self.centre + (signs * self.size / 2) @ self.axes

    @property
    def volume(self) -> float:
        """Product of the edges."""
        return float(self.size.prod())

    def holds(self, points: Float[np.ndarray, "*batch 3"], margin: float = 0.0) -> Bool[np.ndarray, "*batch"]:
        """Points inside the box grown by ``margin`` on every side."""
        local = (points - self.centre) @ self.axes.T
        return (np.abs(local) <= self.size / 2 + margin).all(axis=-1)

    def in_capture(self, frame: CaptureCoordinates) -> Box:
        """The same box in the capture's coordinates."""
        axes = frame.directions_to_capture(self.axes)
        if np.linalg.det(axes) < 0:  # a mirrored reconstruction; a box is its own mirror image along any axis
            axes[2] = -axes[2]
        return Box(frame.to_capture(self.centre), self.size / frame.scale, axes)

    def to_json(self) -> dict[str, Any]:
        """Plain numbers."""
        return {
            "center": _rounded(self.centre),
            "centre": _rounded(self.centre),  # the old name, for one version
            "size": _rounded(self.size),
            "axes": _rounded(self.axes),
            "corners": _rounded(self.corners),
        }


def aligned_box(points: Points, weights: Float[np.ndarray, " N"] | None = None, trim: float = TRIM) -> Box:
    """The box along the coordinate axes that holds all points but the outermost ``trim`` (by weight) on each side."""
    return _box_along(points, np.eye(3), weights, trim)


def oriented_box(
    points: Points,
    weights: Float[np.ndarray, " N"] | None = None,
    up: Sequence[float] | None = UP,
    trim: float = TRIM,
) -> Box:
    """A small box around points, robust to outliers.

    Args:
        points: at least one.
        weights: how much each point counts; all alike by default.
        up: one axis is parallel to this direction and the box is the smallest by rotation about it; None: the smallest
            found among principal axes, refined about each axis in turn (a local minimum of the volume).
        trim: share of the weight that may stay outside on each side of each axis.
    """
    if up is not None:
        vertical = np.asarray(up, np.float64) / np.linalg.norm(up)
        axes = _turned_about(points, _frame_around(vertical), 2, weights, trim)
        return _box_along(points, axes, weights, trim)
    mass = np.ones(len(points)) if weights is None else weights
    centred = points - np.average(points, axis=0, weights=mass)
    _, vectors = np.linalg.eigh((centred * mass[:, None]).T @ centred / mass.sum())
    best: Box | None = None
    for start in (vectors.T, _frame_around(np.asarray(UP))):
        axes = start if np.linalg.det(start) > 0 else start * np.array([[1.0], [1.0], [-1.0]])
        for turn in range(9):
            axes = _turned_about(points, axes, turn % 3, weights, trim)
        box = _box_along(points, axes, weights, trim)
        if best is None or box.volume < best.volume:
            best = box
    assert best is not None
    return best


def pieces(points: Points, reach: Float[np.ndarray, " N"] | None = None) -> Int[np.ndarray, " N"]:
    """Connected pieces of a cloud: number of the piece of each point, largest piece first.

    Two points are linked when they are among each other's nearest dozen and closer than the reach of the cloud (twice
    the median distance to the eighth neighbour), or than the sum of their own reaches.

    Args:
        points: the cloud.
        reach: how far each point extends itself (a Gaussian's radius).
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components
    from scipy.spatial import KDTree

    if len(points) < 3:
        return np.zeros(len(points), np.int64)
    count = min(_NEIGHBOURS + 1, len(points))
    distance, index = KDTree(points).query(points, k=count)
    typical = _REACH * float(np.median(distance[:, min(8, count - 1)]))
    limit = np.full(index.shape, typical)
    if reach is not None:
        limit = np.maximum(limit, reach[:, None] + reach[index])
    row, column = np.nonzero(distance <= limit)
    shape = (len(points), len(points))
    links = coo_matrix((np.ones(len(row), bool), (row, np.asarray(index)[row, column])), shape=shape)
    _, label = connected_components(links, directed=False)
    order = np.argsort(-np.bincount(label), kind="stable")
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return rank[label]


def weighted_quantile(values: Float[np.ndarray, " N"], weights: Float[np.ndarray, " N"], q: float) -> float:
    """The value below which a share q of the weight lies, interpolated between points."""
    order = np.argsort(values)
    cumulated = np.cumsum(weights[order])
    at = (cumulated - weights[order] / 2) / cumulated[-1]
    return float(np.interp(q, at, values[order]))


def _box_along(points: Points, axes: np.ndarray, weights: np.ndarray | None, trim: float) -> Box:
    low, high = _extent(np.asarray(points, np.float64) @ axes.T, weights, trim)
    return Box((low + high) / 2 @ axes, high - low, axes)


def _extent(local: np.ndarray, weights: np.ndarray | None, trim: float) -> tuple[np.ndarray, np.ndarray]:
    if trim <= 0:
        return local.min(axis=0), local.max(axis=0)
    if weights is None:
        return np.quantile(local, trim, axis=0), np.quantile(local, 1 - trim, axis=0)
    columns = range(local.shape[1])
    low = [weighted_quantile(local[:, k], weights, trim) for k in columns]
    high = [weighted_quantile(local[:, k], weights, 1 - trim) for k in columns]
    return np.array(low), np.array(high)


def _turned_about(points: Points, axes: np.ndarray, fixed: int, weights: np.ndarray | None, trim: float) -> np.ndarray:
    """The axes turned about one of them so that the rectangle across it is smallest: degree by degree, then finer."""
    across = [k for k in range(3) if k != fixed]
    stride = -(-len(points) // _ENOUGH)  # an angle does not need every point
    local = np.asarray(points, np.float64)[::stride] @ axes[across].T
    weights = None if weights is None else weights[::stride]

    def area(degrees: float) -> float:
        low, high = _extent(local @ _turn(degrees).T, weights, trim)
        return float((high - low).prod())

    centre, step = 0.0, 3.0
    candidates = np.arange(0.0, 90.0, step)
    for _ in range(3):
        centre = float(min(candidates, key=area))
        candidates = centre + np.linspace(-step, step, 9)
        step /= 4
    result = axes.copy()
    result[across] = _turn(centre) @ axes[across]
    return result


def _turn(degrees: float) -> np.ndarray:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[c, s], [-s, c]])


def _frame_around(vertical: np.ndarray) -> np.ndarray:
    """Right-handed axes as rows, the last one given."""
    helper = np.eye(3)[np.abs(vertical).argmin()]
    first = np.cross(helper, vertical)
    first /= np.linalg.norm(first)
    return np.stack([first, np.cross(vertical, first), vertical])


def _rounded(values: np.ndarray) -> Any:
    return np.round(np.asarray(values, np.float64), 6).tolist()
