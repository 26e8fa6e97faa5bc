"""Greedy agglomeration by a pooled ratio, exactly, without looking at all pairs of a large scene at once.

The best pair of clusters is merged until no pair reaches a threshold. Numerator and denominator of the ratio are sums
over pairs of members, so the ratio of a merged cluster lies between those of its parts, never above the larger. Two
things follow. Clusters that are not connected by pairs above the threshold never meet, so connected components are
independent of each other; and stopping at a higher threshold first, then going on from there, is the same as going
down at once. So components are worked on one by one as small dense tables, from a threshold high enough to keep them
small.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float, Int
from scipy.sparse.csgraph import connected_components

_DENSE = 250
"""Clusters that are worked on as one dense table, if a higher threshold keeps them to so few."""
_STEPS = (0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
_PAIRS_AT_ONCE = 1 << 15


class Pairs(NamedTuple):
    """Pairs of clusters that overlap; each pair once."""

    first: Int[np.ndarray, " E"]
    second: Int[np.ndarray, " E"]
    shared: Float[np.ndarray, " E"]
    """What they have in common."""


def agglomerate(
    pairs: Pairs, visible: Float[np.ndarray, "K V"], view_of: Int[np.ndarray, " K"], threshold: float
) -> Int[np.ndarray, " K"]:
    """The cluster of each of K masks.

    Args:
        pairs: of masks of different views.
        visible: how much of each mask each view sees, 0 for its own.
        view_of: the view of each mask.
        threshold: smallest ratio at which clusters are merged, positive.
    """
    count = len(view_of)
    cluster, labels = np.arange(count), np.arange(count)
    # Per cluster and view: what the view sees of its masks, and how many of them are the view's.
    seen, own = visible.astype(np.float64), np.zeros(visible.shape)
    own[np.arange(count), view_of] = 1
    unions = _unions(pairs, seen, own)
    at = 1.0
    while len(pairs.first) and at > threshold:
        ratios = pairs.shared / np.maximum(unions, 1e-9)
        at, parts = _fitting(pairs, ratios, len(labels), [threshold, *(s for s in _STEPS if threshold < s < at)])
        parts = _merge_parts(pairs, seen, own, labels, parts, at)
        merged = int(parts.max()) + 1
        if merged < len(labels):
            cluster = parts[cluster]
            sums = sp.csr_matrix((np.ones(len(parts)), (parts, np.arange(len(parts)))), shape=(merged, len(parts)))
            sizes = np.bincount(parts, minlength=merged)
            seen, own = sums @ seen, sums @ own
            # Ties are resolved by age: what was merged is younger than what was not.
            oldest = np.full(merged, -1, dtype=np.int64)
            oldest[parts] = labels
            labels = np.where(sizes == 1, oldest, labels.max() + 1 + np.arange(merged))
            pairs = _contract(pairs, parts, merged)
            unions = _unions(pairs, seen, own)
    return cluster


def _unions(pairs: Pairs, seen: Float[np.ndarray, "N V"], own: Float[np.ndarray, "N V"]) -> Float[np.ndarray, " E"]:
    result = np.empty(len(pairs.first))
    for start in range(0, len(result), _PAIRS_AT_ONCE):
        a, b = (side[start : start + _PAIRS_AT_ONCE] for side in pairs[:2])
        both = np.einsum("ev,ev->e", seen[a], own[b]) + np.einsum("ev,ev->e", seen[b], own[a])
        result[start : start + _PAIRS_AT_ONCE] = both
    return result - pairs.shared


def _fitting(
    pairs: Pairs, ratios: Float[np.ndarray, " E"], count: int, thresholds: list[float]
) -> tuple[float, Int[np.ndarray, " N"]]:
    """The lowest threshold at which connected components are small (else the highest), and each cluster's component."""
    at, parts = thresholds[0], np.zeros(count, np.int64)
    for at in thresholds:
        kept = ratios >= at
        edges = (np.ones(kept.sum()), (pairs.first[kept], pairs.second[kept]))
        _, parts = connected_components(sp.coo_matrix(edges, shape=(count, count)), directed=False)
        if np.bincount(parts).max() <= _DENSE:
            break
    return at, parts


def _merge_parts(
    pairs: Pairs,
    seen: Float[np.ndarray, "N V"],
    own: Float[np.ndarray, "N V"],
    labels: Int[np.ndarray, " N"],
    parts: Int[np.ndarray, " N"],
    threshold: float,
) -> Int[np.ndarray, " N"]:
    """The new cluster of each old one, component by component."""
    result = np.arange(len(parts))
    inside = np.flatnonzero(parts[pairs.first] == parts[pairs.second])
    inside = inside[np.argsort(parts[pairs.first[inside]], kind="stable")]
    of_part = parts[pairs.first[inside]]
    order = np.argsort(parts, kind="stable")
    first = np.searchsorted(parts[order], np.arange(int(parts.max()) + 2))
    place = np.empty(len(parts), dtype=np.int64)
    place[order] = np.arange(len(parts)) - first[parts[order]]
    for part in np.unique(of_part):
        nodes = order[first[part] : first[part + 1]]
        edges = inside[np.searchsorted(of_part, part) : np.searchsorted(of_part, part, side="right")]
        a, b, value = place[pairs.first[edges]], place[pairs.second[edges]], pairs.shared[edges]
        shared = np.zeros((len(nodes), len(nodes)))
        shared[a, b] = shared[b, a] = value
        total = seen[nodes] @ own[nodes].T
        result[nodes] = nodes[_merge_dense(shared, total + total.T, labels[nodes], threshold)]
    return np.unique(result, return_inverse=True)[1]


def _merge_dense(
    shared: Float[np.ndarray, "n n"], total: Float[np.ndarray, "n n"], labels: Int[np.ndarray, " n"], threshold: float
) -> Int[np.ndarray, " n"]:
    """For each cluster the place of the one it ends up in. `shared` and `total` are used up."""
    count, labels = len(labels), labels.copy()
    into, alive = np.arange(count), np.ones(count, bool)

    def ratios(row: int) -> Float[np.ndarray, " n"]:
        union = total[row] - shared[row]
        usable = alive & (union > 0) & (shared[row] > 0)
        usable[row] = False
        return np.divide(shared[row], union, out=np.full(count, -1.0), where=usable)

    table = np.stack([ratios(row) for row in range(count)])
    best, youngest = table.max(1), int(labels.max())
    while True:
        ratio = best.max()
        if ratio < threshold or ratio <= 0:
            break
        tied = np.flatnonzero(best == ratio)
        a = int(tied[labels[tied].argmin()])
        tied = np.flatnonzero(table[a] == ratio)
        b = int(tied[labels[tied].argmin()])
        # What had one of the two as its best partner has to look again.
        stale = np.flatnonzero((table[a] == best) | (table[b] == best))
        for sums in (shared, total):
            sums[a] += sums[b]
            sums[:, a] = sums[a]
        into[into == b] = a
        alive[b], youngest = False, youngest + 1
        labels[a] = youngest
        table[b] = table[:, b] = -1.0
        table[a] = table[:, a] = ratios(a)
        best[b], best[a] = -1.0, table[a].max()
        best[stale] = table[stale].max(1)
    return into


def _contract(pairs: Pairs, parts: Int[np.ndarray, " N"], count: int) -> Pairs:
    """Overlaps of the merged clusters."""
    a, b = parts[pairs.first], parts[pairs.second]
    apart = a != b
    a, b = np.minimum(a, b)[apart].astype(np.int64), np.maximum(a, b)[apart].astype(np.int64)
    keys, place = np.unique(a * count + b, return_inverse=True)
    first, second = np.divmod(keys, count)
    return Pairs(first, second, np.bincount(place, pairs.shared[apart], minlength=len(keys)))
