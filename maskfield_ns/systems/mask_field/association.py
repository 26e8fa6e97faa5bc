"""Which masks of different views show the same thing: agglomeration by pooled overlap of the 3D cells they cover.

Two masks are compared only on cells both views see, and a cluster is compared with the *sum* of its members'
overlaps, so a single merged or split proposal cannot chain two objects together (docs/architecture.md; the pooled
ratio is ours, the cells stand in for the Gaussians of lifting methods such as Gaga or LUDVIG).
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from jaxtyping import Bool, Float, Int

_MUCH_LARGER = 1.5
"""Ratio of sizes from which one group can be a part of the other, rather than another opinion of the same thing."""


@dataclass(frozen=True)
class ViewMasks:
    """Masks of one level in one view, on its ray grid, with the 3D cell that each ray ends in."""

    cells: Int[np.ndarray, " P"]
    """Cell index per ray; -1 where the ray ends nowhere."""
    masks: Float[np.ndarray, "M P"]
    """Area fraction of each mask per ray, in [0, 1]."""


@dataclass(frozen=True)
class Group:
    """Masks that show one thing."""

    members: list[tuple[int, int]]
    """(view, mask) pairs."""
    visible: int
    """How many views see at least half of what one of its masks covers, whether a mask was proposed there or not."""
    agreement: tuple[float, ...]
    """Per member the IoU with what most of the group's views say, on the cells its view sees; in [0, 1]."""

    @property
    def views(self) -> int:
        """In how many views the thing was found."""
        return len({view for view, _ in self.members})


def mask_cells(views: list[ViewMasks], num_cells: int) -> tuple[sp.csr_matrix, sp.csr_matrix, np.ndarray]:
    """Incidence of masks and views with cells.

    Returns:
        members [K, cells] 1 where more than half of a mask's view of a cell lies inside the mask, seen [V, cells] 1
        where a view sees a cell, and view_of [K].
    """
    members, seen, view_of = [sp.csr_matrix((0, num_cells), dtype=np.float32)], [], []
    for view, item in enumerate(views):
        hit = item.cells >= 0
        # A scene has millions of cells and a view sees thousands: dense tables span the view's own cells only.
        own, place, rays = np.unique(item.cells[hit], return_inverse=True, return_counts=True)
        incidence = sp.csr_matrix((np.ones(len(place)), (np.arange(len(place)), place)), shape=(len(place), len(own)))
        mask, cell = np.nonzero(np.asarray(item.masks[:, hit] @ incidence) > 0.5 * rays)
        members.append(_ones(mask, own[cell], (len(item.masks), num_cells)))
        seen.append(_ones(np.zeros_like(own), own, (1, num_cells)))
        view_of += [view] * len(item.masks)
    return sp.csr_matrix(sp.vstack(members)), sp.csr_matrix(sp.vstack(seen)), np.array(view_of, dtype=int)


def _compact(matrix: sp.csr_matrix, columns: Int[np.ndarray, " C"]) -> sp.csr_matrix:
    """Some columns (ascending) of a matrix of ones, without a table over all columns."""
    entries = matrix.tocoo()
    kept = np.isin(entries.col, columns)
    shape = (len(matrix.indptr) - 1, len(columns))
    return _ones(entries.row[kept], np.searchsorted(columns, entries.col[kept]), shape)


def consensus_iou(masks: sp.csr_matrix, seen: sp.csr_matrix) -> Float[np.ndarray, " K"]:
    """IoU of each of K masks [K, cells] with the cells that most of them cover, where they are seen [K, cells]."""
    votes, chances = np.asarray(masks.sum(0)).ravel(), np.asarray(seen.sum(0)).ravel()
    consensus = (votes > 0.5 * chances).astype(np.float64)
    common = masks @ consensus
    union = np.asarray(masks.sum(1)).ravel() + seen @ consensus - common
    return np.divide(common, union, out=np.zeros(len(common)), where=union > 0)


def nested(
    views: list[ViewMasks], groups: list[Group], num_cells: int, share: float = 0.7, min_agreement: float = 0.5
) -> Bool[np.ndarray, " G"]:
    """Which of one level's groups are parts of a larger one of the same level.

    A proposer ranks the masks of each view by what contains what, so a patch of a ball counts as a whole wherever the
    ball itself was missed. Over all views it shows: of the cells of the patch, the ball's masks cover most wherever
    they see them. Things on a table are told from parts of it by the holes that its masks have there in most views.

    Args:
        views: masks and cells per view.
        groups: what :func:`associate` made of them.
        num_cells: size of the cell index space.
        share: of a group's cells, counted in every view that has masks of the larger group, those masks cover at least
            this much.
        min_agreement: masks that agree less with their own group do not count.
    """
    members, seen, view_of = mask_cells(views, num_cells)
    used = np.unique(members.indices)
    members, seen = _compact(members, used), _compact(seen, used)
    first = np.searchsorted(view_of, np.arange(len(views)))
    covered, sees = [sp.csr_matrix((0, len(used)))], [sp.csr_matrix((0, len(used)))]
    for group in groups:
        chosen = [m for m, a in zip(group.members, group.agreement, strict=True) if a >= min_agreement]
        by_view = [first[v] + [k for w, k in chosen if w == v] for v in sorted({v for v, _ in chosen})]
        # Several masks of a view are one answer of it.
        hit = [np.unique(members[rows].indices) for rows in by_view]
        unions = [_ones(np.zeros_like(cells), cells, (1, len(used))) for cells in hit]
        covered.append(sp.csr_matrix(sp.vstack(unions).sum(0)) if unions else sp.csr_matrix((1, len(used))))
        sees.append(sp.csr_matrix(seen[sorted({v for v, _ in chosen})].sum(0)))
    votes, chances = sp.csr_matrix(sp.vstack(covered)), sp.csr_matrix(sp.vstack(sees))
    core = (votes > 0.5 * chances).astype(np.float64)
    sizes = np.asarray(core.sum(1)).ravel()
    inside, possible = (core @ votes.T).toarray(), (core @ chances.T).toarray()
    parent = (inside >= share * possible) & (possible > 0) & (sizes[None] >= _MUCH_LARGER * sizes[:, None])
    return (parent & (sizes[:, None] > 0)).any(axis=1)


def _ones(rows: Int[np.ndarray, " N"], columns: Int[np.ndarray, " N"], shape: tuple[int, int]) -> sp.csr_matrix:
    return sp.csr_matrix((np.ones(len(rows), np.float32), (rows, columns)), shape=shape)


def associate(
    views: list[ViewMasks], num_cells: int, threshold: float = 0.25, min_shared: int = 3, min_views: int = 2
) -> list[Group]:
    """Greedy agglomeration of one level's masks into things.

    The pooled IoU of clusters a and b is the sum of |S_k & S_l| over pairs of masks from different views, divided by
    the sum of |S_k & seen(view of l)| + |S_l & seen(view of k)| - |S_k & S_l|: pairs that do not overlap count in the
    denominator. Both sums follow from per-view totals of the clusters, so a merge costs O(neighbours x views).

    Args:
        views: masks and cells per view.
        num_cells: size of the cell index space.
        threshold: smallest pooled IoU at which two clusters are merged.
        min_shared: pairs of masks sharing fewer cells than this give no reason to merge.
        min_views: groups seen in fewer views are dropped.

    Returns:
        Groups, most views first. The result does not depend on the order of masks within a view up to ties.
    """
    if not views:
        return []
    members, seen, view_of = mask_cells(views, num_cells)
    # Only cells that some mask covers matter from here on; dense vectors over all millions of them would be slow.
    used = np.unique(members.indices)
    members, seen = _compact(members, used), _compact(seen, used)
    k, v = len(view_of), len(views)
    first = np.searchsorted(view_of, np.arange(v))
    label = [(int(view), int(i - first[view])) for i, view in enumerate(view_of)]
    sizes = np.asarray(members.sum(1)).ravel()
    one_hot = np.zeros((k, v))
    one_hot[np.arange(k), view_of] = 1
    # Per cluster and view: cells of its masks that the view sees (other views only), and number of its masks there.
    # Twice as many rows as masks, because every merge adds a cluster.
    visible = np.zeros((2 * k, v))
    visible[:k] = np.asarray((members @ seen.T).todense()) * (1 - one_hot)
    count = np.zeros((2 * k, v))
    count[:k] = one_hot
    shared = (members @ members.T).tocoo()
    different = (view_of[shared.row] != view_of[shared.col]) & (shared.data >= min_shared)
    overlap: list[dict[int, float]] = [{} for _ in range(2 * k)]
    for a, b, value in zip(shared.row[different], shared.col[different], shared.data[different], strict=True):
        overlap[int(a)][int(b)] = float(value)
    alive = np.zeros(2 * k, bool)
    alive[:k] = sizes > 0
    clusters: list[list[int]] = [[i] for i in range(k)]

    def pooled(a: int, others: np.ndarray, values: np.ndarray) -> np.ndarray:
        union = visible[others] @ count[a] + count[others] @ visible[a] - values
        return np.divide(values, union, out=np.zeros_like(values), where=union > 0)

    heap: list[tuple[float, int, int]] = []

    def push(a: int, only_larger: bool) -> None:
        others = np.array([b for b in overlap[a] if alive[b] and (b > a or not only_larger)], dtype=int)
        if not len(others):
            return
        ratios = pooled(a, others, np.array([overlap[a][b] for b in others]))
        for b, ratio in zip(others[ratios >= threshold].tolist(), ratios[ratios >= threshold].tolist(), strict=True):
            heapq.heappush(heap, (-ratio, min(a, b), max(a, b)))

    for a in range(k):
        push(a, only_larger=True)
    while heap:
        _, a, b = heapq.heappop(heap)
        if not (alive[a] and alive[b]):
            continue
        merged = len(clusters)
        clusters.append(clusters[a] + clusters[b])
        alive[a] = alive[b] = False
        alive[merged] = True
        visible[merged], count[merged] = visible[a] + visible[b], count[a] + count[b]
        row = overlap[a]
        for other, value in overlap[b].items():
            row[other] = row.get(other, 0.0) + value
        overlap[merged] = {other: value for other, value in row.items() if alive[other]}
        overlap[a], overlap[b] = {}, {}
        for other, value in overlap[merged].items():
            overlap[other][merged] = value
        push(merged, only_larger=False)
    groups = []
    for c in np.nonzero(alive[: len(clusters)])[0]:
        own = count[c] > 0
        if own.sum() < min_views:
            continue
        # visible[c] sums over masks: divided by their number it is the share of an average mask that a view sees.
        sees = visible[c] / count[c].sum() >= 0.5 * sizes[clusters[c]].mean()
        chosen = np.sort(clusters[c])  # masks are numbered by view, then place: the order of their labels
        agreement = consensus_iou(sp.csr_matrix(members[chosen]), sp.csr_matrix(seen[view_of[chosen]]))
        groups.append(Group([label[i] for i in chosen], int((own | sees).sum()), tuple(agreement.tolist())))
    return sorted(groups, key=lambda g: (-g.views, g.members))
