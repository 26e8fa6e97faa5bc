"""Which masks of different views show the same thing: agglomeration by pooled overlap of the 3D cells they cover.

Two masks are compared only on cells both views see, and a cluster is compared with the *sum* of its members'
overlaps, so a single merged or split proposal cannot chain two objects together (docs/architecture.md; the pooled
ratio is ours, the cells stand in for the Gaussians of lifting methods such as Gaga or LUDVIG).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
from jaxtyping import Bool, Float, Int

from maskfield_ns.systems.mask_field.agglomeration import Pairs, agglomerate

_MUCH_LARGER = 1.5
"""Ratio of sizes from which one group can be a part of the other, rather than another opinion of the same thing."""
_MASKS_AT_ONCE = 2000
"""Masks whose overlaps with all others are looked for at once: bounds what is in memory before it is filtered."""


@dataclass(frozen=True)
class ViewMasks:
    """Masks of one view, on its ray grid, with the 3D cell that each ray ends in."""

    cells: Int[np.ndarray, " P"]
    """Cell index per ray; -1 where the ray ends nowhere."""
    masks: Float[np.ndarray, "M P"] | sp.csr_matrix
    """Area fraction of each mask per ray, in [0, 1]; sparse where there are many."""


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


class MaskCells(NamedTuple):
    """Incidence of masks and views with cells."""

    members: sp.csr_matrix
    """[K, cells]: 1 where more than half of a mask's view of a cell lies inside the mask."""
    seen: sp.csr_matrix
    """[V, cells]: 1 where a view sees a cell."""
    view_of: Int[np.ndarray, " K"]
    """The view of each mask, ascending."""

    @property
    def places(self) -> Int[np.ndarray, " K"]:
        """Number of each mask within its view."""
        return np.arange(len(self.view_of)) - np.searchsorted(self.view_of, self.view_of)

    def compact(self) -> MaskCells:
        """Without the cells that no mask covers, which matter to nothing; the others are numbered anew."""
        used = np.unique(self.members.indices)
        return MaskCells(_compact(self.members, used), _compact(self.seen, used), self.view_of)


def mask_cells(views: Iterable[ViewMasks], num_cells: int) -> MaskCells:
    """Which cells the masks of some views cover; the views may come one by one, nothing of them is kept."""
    members, seen, view_of = [sp.csr_matrix((0, num_cells), dtype=np.float32)], [], []
    for view, item in enumerate(views):
        rays = np.flatnonzero(item.cells >= 0)
        # A scene has millions of cells and a view sees thousands: tables span the view's own cells only.
        own, place, count = np.unique(item.cells[rays], return_inverse=True, return_counts=True)
        incidence = sp.csr_matrix((np.ones(len(place)), (rays, place)), shape=(len(item.cells), len(own)))
        masks = sp.csr_matrix(item.masks)
        total = len(masks.indptr) - 1
        inside = sp.coo_matrix(masks @ incidence)
        most = inside.data > 0.5 * count[inside.col]
        members.append(_ones(inside.row[most], own[inside.col[most]], (total, num_cells)))
        seen.append(_ones(np.zeros_like(own), own, (1, num_cells)))
        view_of += [view] * total
    none = sp.csr_matrix((0, num_cells), dtype=np.float32)
    return MaskCells(
        sp.csr_matrix(sp.vstack(members)), sp.csr_matrix(sp.vstack(seen or [none])), np.array(view_of, dtype=int)
    )


def _compact(matrix: sp.csr_matrix, columns: Int[np.ndarray, " C"]) -> sp.csr_matrix:
    """Some columns (ascending) of a matrix of ones, without a table over all columns."""
    entries = matrix.tocoo()
    place = np.searchsorted(columns, entries.col)
    kept = columns[np.minimum(place, len(columns) - 1)] == entries.col if len(columns) else np.zeros(0, bool)
    return _ones(entries.row[kept], place[kept], (len(matrix.indptr) - 1, len(columns)))


def consensus_iou(masks: sp.csr_matrix, seen: sp.csr_matrix) -> Float[np.ndarray, " K"]:
    """IoU of each of K masks [K, cells] with the cells that most of them cover, where they are seen [K, cells]."""
    votes, chances = np.asarray(masks.sum(0)).ravel(), np.asarray(seen.sum(0)).ravel()
    consensus = (votes > 0.5 * chances).astype(np.float64)
    common = masks @ consensus
    union = np.asarray(masks.sum(1)).ravel() + seen @ consensus - common
    return np.divide(common, union, out=np.zeros(len(common)), where=union > 0)


def nested(
    cells: MaskCells, groups: list[Group], share: float = 0.7, min_agreement: float = 0.5
) -> Bool[np.ndarray, " G"]:
    """Which of one level's groups are parts of a larger one of the same level.

    A proposer ranks the masks of each view by what contains what, so a patch of a ball counts as a whole wherever the
    ball itself was missed. Over all views it shows: of the cells of the patch, the ball's masks cover most wherever
    they see them. Things on a table are told from parts of it by the holes that its masks have there in most views.

    Args:
        cells: of all masks.
        groups: what :func:`associate` made of the level's masks.
        share: of a group's cells, counted in every view that has masks of the larger group, those masks cover at least
            this much.
        min_agreement: masks that agree less with their own group do not count.
    """
    members, seen, view_of = cells.compact()
    num_views, num_cells = len(seen.indptr) - 1, _columns(members)
    first = np.searchsorted(view_of, np.arange(num_views))
    chosen = [
        (g, first[view] + place, view)
        for g, group in enumerate(groups)
        for (view, place), agreement in zip(group.members, group.agreement, strict=True)
        if agreement >= min_agreement
    ]
    of_group, rows, views = np.array(chosen, dtype=int).reshape(-1, 3).T
    # Several masks of a view are one answer of it.
    answers, answer = np.unique(of_group * num_views + views, return_inverse=True)
    hit = sp.csr_matrix(_ones(answer, np.arange(len(rows)), (len(answers), len(rows))) @ members[rows])
    hit.data[:] = 1
    by_group, by_view = np.divmod(answers, max(1, num_views))
    votes = sp.csr_matrix(_ones(by_group, np.arange(len(answers)), (len(groups), len(answers))) @ hit)
    looks = _ones(by_group, by_view, (len(groups), num_views))
    by_cell, cores = seen.tocsc(), [sp.csr_matrix((0, num_cells))]
    for group in range(len(groups)):
        of_votes = slice(votes.indptr[group], votes.indptr[group + 1])
        own, looking = votes.indices[of_votes], looks.indices[looks.indptr[group] : looks.indptr[group + 1]]
        chances = np.asarray(by_cell[:, own][looking].sum(0)).ravel()
        core = own[np.asarray(votes.data)[of_votes] > 0.5 * chances]
        cores.append(_ones(np.zeros_like(core), core, (1, num_cells)))
    core = sp.csr_matrix(sp.vstack(cores))
    sizes = np.asarray(core.sum(1)).ravel()
    inside, possible = (core @ votes.T).toarray(), (core @ seen.T @ looks.T).toarray()
    parent = (inside >= share * possible) & (possible > 0) & (sizes[None] >= _MUCH_LARGER * sizes[:, None])
    return (parent & (sizes[:, None] > 0)).any(axis=1)


def _columns(matrix: sp.csr_matrix) -> int:
    return matrix.shape[1]  # type: ignore[index]


def _ones(rows: Int[np.ndarray, " N"], columns: Int[np.ndarray, " N"], shape: tuple[int, int]) -> sp.csr_matrix:
    return sp.csr_matrix((np.ones(len(rows), np.float32), (rows, columns)), shape=shape)


def associate(
    cells: MaskCells,
    chosen: Bool[np.ndarray, " K"] | None = None,
    threshold: float = 0.25,
    min_shared: int = 3,
    min_views: int = 2,
) -> list[Group]:
    """Greedy agglomeration of one level's masks into things.

    The pooled IoU of clusters a and b is the sum of |S_k & S_l| over pairs of masks from different views, divided by
    the sum of |S_k & seen(view of l)| + |S_l & seen(view of k)| - |S_k & S_l|: pairs that do not overlap count in the
    denominator. Both sums are additive, so a merge adds two rows of a table.

    Args:
        cells: of all masks.
        chosen: the masks of the level; None: all.
        threshold: smallest pooled IoU at which two clusters are merged.
        min_shared: pairs of masks sharing fewer cells than this give no reason to merge.
        min_views: groups seen in fewer views are dropped.

    Returns:
        Groups, most views first. The result does not depend on the order of masks within a view up to ties.
    """
    rows = np.arange(len(cells.view_of)) if chosen is None else np.flatnonzero(chosen)
    members, view_of, places = cells.members[rows], cells.view_of[rows], cells.places[rows]
    # Only cells that some mask covers matter from here on; dense vectors over all millions of them would be slow.
    used = np.unique(members.indices)
    members, seen = _compact(members, used), _compact(cells.seen, used)
    sizes = np.asarray(members.sum(1)).ravel()
    visible = _visible(members, seen, view_of)
    cluster = agglomerate(_overlaps(members, view_of, min_shared), visible, view_of, threshold)
    by_cell, groups = seen.tocsc(), []
    order = np.argsort(cluster, kind="stable")
    for own in np.split(order, np.flatnonzero(np.diff(cluster[order])) + 1):
        own = own[sizes[own] > 0]
        views = np.unique(view_of[own])
        if not len(own) or len(views) < min_views:
            continue
        # What a view sees of all masks, divided by their number, is what it sees of an average one.
        sees = np.flatnonzero(visible[own].sum(0, dtype=np.float64) / len(own) >= 0.5 * sizes[own].mean())
        of_group = np.unique(members[own].indices)
        places_of_group = by_cell[:, of_group].tocsr()
        agreement = consensus_iou(members[own][:, of_group], places_of_group[view_of[own]])
        named = list(zip(view_of[own].tolist(), places[own].tolist(), strict=True))
        groups.append(Group(named, len(np.union1d(views, sees)), tuple(agreement.tolist())))
    return sorted(groups, key=lambda g: (-g.views, g.members))


def _visible(members: sp.csr_matrix, seen: sp.csr_matrix, view_of: Int[np.ndarray, " K"]) -> Float[np.ndarray, "K V"]:
    """How many cells of each mask each other view sees; 0 for the mask's own view."""
    by_cell = seen.T.tocsr()
    result = np.zeros((len(members.indptr) - 1, len(seen.indptr) - 1), np.float32)
    for start in range(0, len(result), _MASKS_AT_ONCE):
        rows = slice(start, start + _MASKS_AT_ONCE)
        result[rows] = (members[rows] @ by_cell).toarray()
    result[np.arange(len(result)), view_of] = 0
    return result


def _overlaps(members: sp.csr_matrix, view_of: Int[np.ndarray, " K"], min_shared: int) -> Pairs:
    """Pairs of masks from different views that share cells, and how many; the first mask is of the earlier view."""
    parts: list[tuple[np.ndarray, ...]] = [(np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(0, np.float32))]
    for start in range(0, len(view_of), _MASKS_AT_ONCE):
        shared = sp.coo_matrix(members[start : start + _MASKS_AT_ONCE] @ members[start:].T.tocsr())
        row, column = shared.row + start, shared.col + start
        kept = (view_of[row] < view_of[column]) & (shared.data >= min_shared)
        parts.append((row[kept].astype(np.int32), column[kept].astype(np.int32), np.asarray(shared.data)[kept]))
    return Pairs(*(np.concatenate(column) for column in zip(*parts, strict=True)))
