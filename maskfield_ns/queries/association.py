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
from jaxtyping import Float, Int

Members = dict[int, float]


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
    rows: list[sp.csr_matrix] = []
    seen_rows: list[sp.csr_matrix] = []
    view_of: list[int] = []
    for view, item in enumerate(views):
        hit = item.cells >= 0
        columns = item.cells[hit]
        count = len(columns)
        incidence = sp.csr_matrix((np.ones(count), (np.arange(count), columns)), shape=(count, num_cells))
        total = np.asarray(incidence.sum(0)).ravel()
        seen_rows.append(sp.csr_matrix((total > 0).astype(np.float32)))
        if len(item.masks):
            inside = np.asarray(item.masks[:, hit] @ incidence)
            share = np.divide(inside, total, out=np.zeros_like(inside), where=total > 0)
            rows.append(sp.csr_matrix((share > 0.5).astype(np.float32)))
            view_of.extend([view] * len(item.masks))
    members = sp.vstack(rows).tocsr() if rows else sp.csr_matrix((0, num_cells), dtype=np.float32)
    return members, sp.vstack(seen_rows).tocsr(), np.array(view_of, dtype=int)


def associate(
    views: list[ViewMasks], num_cells: int, threshold: float = 0.25, min_shared: int = 3, min_views: int = 2
) -> list[Group]:
    """Greedy agglomeration of one level's masks into things.

    Args:
        views: masks and cells per view.
        num_cells: size of the cell index space.
        threshold: smallest pooled IoU at which two clusters are merged.
        min_shared: masks of a pair must each have this many cells visible in the other's view to count.
        min_views: groups seen in fewer views are dropped.

    Returns:
        Groups, most views first. The result does not depend on the order of masks within a view up to ties.
    """
    members, seen, view_of = mask_cells(views, num_cells)
    k = members.shape[0]
    first = np.searchsorted(view_of, np.arange(len(views)))
    label = [(int(v), int(i - first[v])) for i, v in enumerate(view_of)]
    sizes = np.asarray(members.sum(1)).ravel()
    visible = np.asarray((members @ seen.T).todense())
    shared = (members @ members.T).tocoo()
    overlap: list[Members] = [{} for _ in range(k)]
    union: list[Members] = [{} for _ in range(k)]
    # Pairs without common cells matter too: their union is the evidence against merging, so it is kept for every
    # pair of masks whose clusters could ever meet, i.e. that see enough of each other.
    for a, b, value in zip(shared.row, shared.col, shared.data, strict=True):
        if a < b and view_of[a] != view_of[b]:
            overlap[a][b] = overlap[b][a] = float(value)
    for a in range(k):
        seen_in = visible[a, view_of]
        mutual = np.minimum(seen_in, visible[:, view_of[a]])
        for b in np.nonzero((mutual >= min_shared) & (view_of != view_of[a]))[0]:
            union[a][int(b)] = float(seen_in[b] + visible[b, view_of[a]] - overlap[a].get(int(b), 0.0))
    clusters: list[list[int] | None] = [[i] if sizes[i] > 0 else None for i in range(k)]
    heap = [
        (-value / union[a][b], a, b)
        for a in range(k)
        for b, value in overlap[a].items()
        if a < b and union[a].get(b, 0.0) > 0
    ]
    heapq.heapify(heap)
    while heap:
        negative, a, b = heapq.heappop(heap)
        if -negative < threshold:
            break
        first_cluster, second_cluster = clusters[a], clusters[b]
        if first_cluster is None or second_cluster is None:
            continue
        merged = len(clusters)
        clusters.append(first_cluster + second_cluster)
        clusters[a] = clusters[b] = None
        for table in (overlap, union):
            row = dict(table[a])
            for other, value in table[b].items():
                row[other] = row.get(other, 0.0) + value
            row = {other: value for other, value in row.items() if clusters[other] is not None}
            table.append(row)
            for other, value in row.items():
                table[other].pop(a, None)
                table[other].pop(b, None)
                table[other][merged] = value
            table[a], table[b] = {}, {}
        for other, value in overlap[merged].items():
            if union[merged].get(other, 0.0) > 0:
                heapq.heappush(heap, (-value / union[merged][other], other, merged))
    groups = [Group([label[i] for i in cluster]) for cluster in clusters if cluster is not None]
    return sorted((g for g in groups if g.views >= min_views), key=lambda g: (-g.views, g.members))
