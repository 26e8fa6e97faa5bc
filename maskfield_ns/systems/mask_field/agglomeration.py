"""Greedy agglomeration by a pooled ratio, without a loop over pairs or merges.

The best pair of clusters is merged until no pair reaches a threshold. Numerator and denominator of the ratio are sums
over pairs of members, so the ratio of a merged cluster to a third lies between those of its parts, never above the
larger: the linkage is reducible. For such linkages two clusters that are each other's best partner stay so until they
are merged (Bruynooghe; Murtagh's nearest-neighbor chains), so all such pairs can be merged at once, round by round, and
the clusters are those of the greedy rule up to ties.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
from jaxtyping import Bool, Float, Int

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
    count, num_views = visible.shape
    cluster, seen = np.arange(count), visible
    # Per cluster how many of its masks each view has.
    own = sp.csr_matrix((np.ones(count), (np.arange(count), view_of)), shape=(count, num_views))
    unions = _unions(pairs, seen, own)
    while len(pairs.first):
        ratios = pairs.shared / np.maximum(unions, 1e-9)
        merging = _each_others_best(pairs, ratios, count) & (ratios >= threshold)
        if not merging.any():
            break
        parts, merged = _merged(pairs, merging, count)
        sums = sp.csr_matrix((np.ones(count), (parts, np.arange(count))), shape=(merged, count))
        cluster, seen, own = parts[cluster], sums @ seen, sp.csr_matrix(sums @ own)
        changed = np.bincount(parts, minlength=merged) > 1
        pairs, unions = _contract(pairs, unions, parts, merged)
        stale = np.flatnonzero(changed[pairs.first] | changed[pairs.second])
        unions[stale] = _unions(Pairs(*(column[stale] for column in pairs)), seen, own)
        count = merged
    return cluster


def _unions(pairs: Pairs, seen: Float[np.ndarray, "N V"], own: sp.csr_matrix) -> Float[np.ndarray, " E"]:
    """The denominators: what the views of the one see of the other and the other way round, less what is shared."""
    result = -np.asarray(pairs.shared, np.float64)
    for start in range(0, len(result), _PAIRS_AT_ONCE):
        part = slice(start, start + _PAIRS_AT_ONCE)
        for one, other in ((pairs.first[part], pairs.second[part]), (pairs.second[part], pairs.first[part])):
            # Few of the views have masks of a cluster: only those are looked up.
            masks = sp.csr_matrix(own[other])
            entries = np.repeat(np.arange(len(one)), np.diff(masks.indptr))
            looks = seen[one[entries], masks.indices] * np.asarray(masks.data)
            result[part] += np.bincount(entries, looks, minlength=len(one))
    return result


def _each_others_best(pairs: Pairs, ratios: Float[np.ndarray, " E"], count: int) -> Bool[np.ndarray, " E"]:
    """Which pairs are the best one of both their clusters; of equal ones the first."""
    order = np.lexsort((pairs.second, pairs.first, -ratios))
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    best = np.full(count, len(order), np.int64)
    np.minimum.at(best, pairs.first, rank)
    np.minimum.at(best, pairs.second, rank)
    return (best[pairs.first] == rank) & (best[pairs.second] == rank)


def _merged(pairs: Pairs, merging: Bool[np.ndarray, " E"], count: int) -> tuple[Int[np.ndarray, " N"], int]:
    """The new number of each cluster, and how many there are; what was merged comes last, in the order of its parts."""
    first, second = pairs.first[merging], pairs.second[merging]
    kept = np.ones(count, bool)
    kept[first] = kept[second] = False
    parts = np.cumsum(kept) - 1
    parts[first] = parts[second] = kept.sum() + np.arange(len(first))
    return parts, int(kept.sum()) + len(first)


def _contract(
    pairs: Pairs, unions: Float[np.ndarray, " E"], parts: Int[np.ndarray, " N"], count: int
) -> tuple[Pairs, Float[np.ndarray, " E"]]:
    """Overlaps of the merged clusters; the denominators are right for pairs in which nothing was merged."""
    a, b = parts[pairs.first].astype(np.int64), parts[pairs.second].astype(np.int64)
    apart = a != b
    low, high = np.minimum(a, b)[apart], np.maximum(a, b)[apart]
    keys, example, place = np.unique(low * count + high, return_index=True, return_inverse=True)
    first, second = np.divmod(keys, count)
    shared = np.bincount(place, pairs.shared[apart], minlength=len(keys))
    return Pairs(first, second, shared), unions[apart][example]
