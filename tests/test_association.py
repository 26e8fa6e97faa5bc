"""Grouping masks across views: a synthetic world with known objects, and a literal re-implementation as reference."""

from __future__ import annotations

import tracemalloc
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskfield_ns.systems.mask_field import agglomeration, association
from maskfield_ns.systems.mask_field.association import Group, ViewMasks, mask_cells


def associate(views: list[ViewMasks], num_cells: int, **options: float) -> list[Group]:
    return association.associate(mask_cells(views, num_cells), **options)  # type: ignore[arg-type]


def nested(views: list[ViewMasks], groups: list[Group], num_cells: int, *options: float, **named: float) -> np.ndarray:
    return association.nested(mask_cells(views, num_cells), groups, *options, **named)


GRID = 20
"""The world is GRID x GRID cells; its objects are rectangles on a floor that is an object too."""


def world() -> np.ndarray:
    """Object per cell: 0 is the floor, two objects touch each other."""
    cells = np.zeros((GRID, GRID), int)
    cells[2:8, 2:7], cells[2:8, 7:12] = 1, 2
    cells[11:17, 3:9], cells[12:18, 11:18], cells[3:9, 14:19] = 3, 4, 5
    return cells


def look(rng: np.random.Generator, faults: bool = True) -> tuple[ViewMasks, list[set[int]]]:
    """One view of a window of the world: masks with a proposer's faults, and the objects each mask really shows.

    15 % of the objects are missed, 10 % merged with the floor, 10 % cut in two, and all are shifted by up to a cell.
    """
    size, objects = 16, world()
    top, left = rng.integers(0, GRID - size + 1, 2)
    ids = objects[top : top + size, left : left + size]
    cells = np.arange(GRID * GRID).reshape(GRID, GRID)[top : top + size, left : left + size]
    masks, shown = [], []
    for k in np.unique(ids):
        mask, chance = ids == k, rng.random() if faults else 1.0
        if mask.sum() < 8 or chance < 0.15:
            continue
        if chance < 0.25 and k > 0:
            masks.append(mask | (ids == 0))
            shown.append({0, int(k)})
            continue
        if faults:
            mask = np.roll(mask, rng.integers(-1, 2, 2), (0, 1))
        if chance < 0.35 and k > 0:
            half = mask & (np.cumsum(mask) <= 0.55 * mask.sum()).reshape(mask.shape)
            masks += [half, mask & ~half]
            shown += [{int(k)}, {int(k)}]
            continue
        masks.append(mask)
        shown.append({int(k)})
    flat = np.array(masks, np.float32).reshape(len(masks), -1)
    return ViewMasks(cells.ravel(), flat), shown


def looks(seed: int, count: int = 14, faults: bool = True) -> tuple[list[ViewMasks], list[list[set[int]]]]:
    rng = np.random.default_rng(seed)
    views, shown = zip(*(look(rng, faults) for _ in range(count)), strict=True)
    return list(views), list(shown)


def content(groups: list[Group]) -> set[frozenset[tuple[int, int]]]:
    """Groups without their order."""
    return {frozenset(group.members) for group in groups}


def test_perfect_masks_group_into_the_objects() -> None:
    views, shown = looks(0, faults=False)
    groups = associate(views, GRID * GRID, min_views=1)
    expected: dict[int, set[tuple[int, int]]] = {}
    for view, objects in enumerate(shown):
        for mask, objects_ in enumerate(objects):
            (only,) = objects_
            expected.setdefault(only, set()).add((view, mask))
    assert content(groups) == {frozenset(members) for members in expected.values()}
    assert [g.views for g in groups] == sorted((g.views for g in groups), reverse=True)


@pytest.mark.parametrize("seed", range(8))
def test_faulty_masks_still_group_into_the_objects(seed: int) -> None:
    views, shown = looks(seed)
    groups = associate(views, GRID * GRID, min_views=3)
    of_object: dict[int, list[Group]] = {}
    for group in groups:
        kinds = [shown[view][mask] for view, mask in group.members]
        clean = {next(iter(objects)) for objects in kinds if len(objects) == 1}
        assert len(clean) == 1, f"one group holds masks of the objects {clean}"
        of_object.setdefault(clean.pop(), []).append(group)
    assert set(of_object) == set(range(6)), "an object has no group"
    assert sum(len(group.members) for group in groups) >= 0.85 * sum(len(masks) for masks in shown)
    assert len(groups) <= 8


@pytest.mark.parametrize("seed", range(3))
def test_merged_masks_do_not_chain_objects(seed: int) -> None:
    """Connected components over IoU would join the two neighbours in this world through their merged masks."""
    rng = np.random.default_rng(seed)
    ids = np.repeat([0, 1], 10)
    views, shown = [], []
    for view in range(10):
        kinds = [{0, 1}] if view < 2 else [{0}, {1}]
        order = rng.permutation(len(kinds))
        kinds = [kinds[i] for i in order]
        views.append(ViewMasks(np.arange(20), np.array([np.isin(ids, list(k)) for k in kinds], np.float32)))
        shown.append(kinds)
    groups = associate(views, 20)
    for group in groups:
        assert len({next(iter(k)) for v, m in group.members if len(k := shown[v][m]) == 1}) <= 1
    pure = [[(v, m) for v, m in g.members if len(shown[v][m]) == 1] for g in groups]
    assert sorted(len(p) for p in pure)[-2:] == [8, 8]


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 20), shuffle=st.integers(0, 2**16))
def test_order_of_views_and_masks_only_renames(seed: int, shuffle: int) -> None:
    views, _ = looks(seed, count=8, faults=False)
    rng = np.random.default_rng(shuffle)
    view_order = rng.permutation(len(views))
    mask_orders = [rng.permutation(len(views[v].masks)) for v in view_order]
    shuffled = [
        ViewMasks(views[v].cells, views[v].masks[order]) for v, order in zip(view_order, mask_orders, strict=True)
    ]
    groups = associate(shuffled, GRID * GRID, min_views=1)
    renamed = {frozenset((int(view_order[v]), int(mask_orders[v][m])) for v, m in group.members) for group in groups}
    assert renamed == content(associate(views, GRID * GRID, min_views=1))


def test_visible_counts_the_views_that_see_the_place() -> None:
    everything, half = np.ones((1, 20), np.float32), np.repeat([1.0, 0.0], 10)[None].astype(np.float32)
    nothing = np.zeros((0, 20), np.float32)
    cells, elsewhere, barely = np.arange(20), np.arange(100, 120), np.r_[0:4, 200:216]
    views = [ViewMasks(cells, half), ViewMasks(cells, half), ViewMasks(cells, nothing)]
    views += [ViewMasks(elsewhere, everything), ViewMasks(barely, nothing)]
    groups = {group.views: group.visible for group in associate(views, 300, min_views=1)}
    assert groups == {2: 3, 1: 1}


def test_agreement_is_the_overlap_with_what_most_views_say() -> None:
    cells = np.arange(20)
    box, half = np.repeat([1.0, 0.0], 10)[None], np.repeat([1.0, 0.0], [5, 15])[None]
    unseen = np.where(cells < 8, cells, -1)  # this view sees eight of the ten cells
    views = [ViewMasks(cells, box), ViewMasks(cells, box), ViewMasks(unseen, box), ViewMasks(cells, half)]
    (group,) = associate(views, 20)
    assert dict(zip(group.members, group.agreement, strict=True)) == pytest.approx(
        {(0, 0): 1.0, (1, 0): 1.0, (2, 0): 1.0, (3, 0): 0.5}
    )


def test_order_of_rays_does_not_matter() -> None:
    views, _ = looks(3)
    rng = np.random.default_rng(0)
    shuffled = []
    for view in views:
        order = rng.permutation(len(view.cells))
        shuffled.append(ViewMasks(view.cells[order], view.masks[:, order]))
    assert content(associate(shuffled, GRID * GRID)) == content(associate(views, GRID * GRID))


def brute_force(
    views: list[ViewMasks], num_cells: int, threshold: float, min_shared: int
) -> set[frozenset[tuple[int, int]]]:
    """The documented rule with Python sets, every ratio computed afresh in every round."""
    seen = [{int(c) for c in view.cells if c >= 0} for view in views]
    cells: dict[tuple[int, int], set[int]] = {}
    for v, view in enumerate(views):
        for m, mask in enumerate(view.masks):
            inside = {
                c: np.mean([fraction for fraction, cell in zip(mask, view.cells, strict=True) if cell == c])
                for c in seen[v]
            }
            cells[v, m] = {c for c, share in inside.items() if share > 0.5}
    clusters = [frozenset([key]) for key, value in cells.items() if value]

    def pooled(first: frozenset, second: frozenset) -> float:
        shared = joint = 0
        for a in first:
            for b in second:
                if a[0] != b[0]:
                    both = len(cells[a] & cells[b])
                    both = both if both >= min_shared else 0
                    shared += both
                    joint += len(cells[a] & seen[b[0]]) + len(cells[b] & seen[a[0]]) - both
        return shared / joint if joint else 0.0

    while len(clusters) > 1:
        first, second = max(combinations(clusters, 2), key=lambda pair: pooled(*pair))
        if pooled(first, second) < threshold:
            break
        clusters = [c for c in clusters if c not in (first, second)] + [first | second]
    return set(clusters)


@pytest.mark.parametrize("min_shared", [1, 3])
@pytest.mark.parametrize("seed", range(6))
def test_groups_equal_a_literal_implementation(seed: int, min_shared: int) -> None:
    """Random fractions, several rays per cell, rays that hit nothing: ratios are all different, so nothing is tied."""
    rng = np.random.default_rng(seed)
    views = []
    for _ in range(5):
        centre = rng.integers(0, 15)
        cells = rng.integers(centre, centre + 25, 70)
        cells[rng.random(70) < 0.1] = -1
        bounds = np.sort(rng.integers(centre, centre + 25, 3))
        masks = np.stack([(cells < bounds[0]), (cells >= bounds[0]) & (cells < bounds[1]), cells >= bounds[2]])
        views.append(ViewMasks(cells, np.clip(masks + rng.normal(0, 0.2, masks.shape), 0, 1).astype(np.float32)))
    groups = associate(views, 40, threshold=0.3, min_shared=min_shared, min_views=1)
    assert content(groups) == brute_force(views, 40, 0.3, min_shared)


def test_masks_are_compared_only_where_both_views_look() -> None:
    """Two halves of a long object seen from either end overlap in a fifth of their union, and in all both see."""
    left = ViewMasks(np.arange(0, 12), np.ones((1, 12), np.float32))
    right = ViewMasks(np.arange(8, 20), np.ones((1, 12), np.float32))
    assert content(associate([left, right], 20, threshold=0.9)) == {frozenset({(0, 0), (1, 0)})}
    # With hardly anything in common there is no reason to merge.
    assert associate([left, right], 20, threshold=0.9, min_shared=5) == []


def test_mask_cells_take_the_majority_of_a_cells_rays() -> None:
    cells = np.array([4, 4, 4, 7, -1, 9])
    masks = np.array([[1, 1, 0, 0.5, 1, 0.6], [0, 0, 1, 0, 1, 0]], np.float32)
    members, seen, view_of = mask_cells([ViewMasks(cells, masks)], 12)
    assert [set(row.indices) for row in members] == [{4, 9}, set()]
    assert set(seen.indices) == {4, 7, 9}
    assert view_of.tolist() == [0, 0]


def test_views_without_masks_rays_or_anything() -> None:
    nothing = np.zeros((0, 4), np.float32)
    square = ViewMasks(np.arange(4), np.ones((1, 4), np.float32))
    empty = ViewMasks(np.arange(4), nothing)
    blind = ViewMasks(np.full(4, -1), np.ones((2, 4), np.float32))
    assert associate([], 4) == []
    assert associate([empty, empty], 4) == []
    assert associate([blind, blind], 4) == []
    groups = associate([empty, square, blind, square, empty], 4)
    assert content(groups) == {frozenset({(1, 0), (3, 0)})}


def test_things_seen_in_few_views_are_left_out() -> None:
    square = ViewMasks(np.arange(4), np.ones((1, 4), np.float32))
    other = ViewMasks(np.arange(4, 8), np.ones((1, 4), np.float32))
    assert content(associate([square, square, other], 8, min_views=2)) == {frozenset({(0, 0), (1, 0)})}
    assert len(associate([square, square, other], 8, min_views=1)) == 2
    assert associate([square, square, other], 8, min_views=3) == []


def test_memory_follows_what_is_seen_not_the_size_of_the_scene() -> None:
    """256 cells to a side: tables over all cells would be gigabytes."""
    rng = np.random.default_rng(0)
    cells = rng.integers(0, 256**3, 2000)
    masks = (rng.integers(0, 20, 2000) == np.arange(20)[:, None]).astype(np.float32)
    views = [ViewMasks(cells, masks)] * 3
    tracemalloc.start()
    groups = associate(views, 256**3)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(groups) == 20
    assert peak < 600e6


def ball_world() -> list[ViewMasks]:
    """Cells 0..39 are a table, 10..19 of them under a ball whose patch 13..14 is proposed where the ball is missed."""

    def mask(*cells: range) -> np.ndarray:
        return np.isin(np.arange(40), np.concatenate(cells)).astype(np.float32)

    ball, patch = mask(range(10, 20)), mask(range(13, 15))
    table, all_over = mask(range(10), range(20, 40)), mask(range(40))
    looks = [[table, ball]] * 6 + [[table, patch]] * 4 + [[all_over]] * 3
    return [ViewMasks(np.arange(40), np.array(masks)) for masks in looks]


def test_a_patch_is_part_of_the_ball_but_the_ball_is_not_part_of_the_table() -> None:
    views = ball_world()
    groups = associate(views, 40, min_shared=2)
    kinds = [{float(views[v].masks[k].sum()) for v, k in group.members} for group in groups]
    assert kinds == [{30.0, 40.0}, {10.0}, {2.0}]
    assert nested(views, groups, 40).tolist() == [False, False, True]
    # The ball's own masks cover all of its patch, wherever they are; those of the table 3 in 13 of the ball.
    assert nested(views, groups, 40, share=1.0).tolist() == [False, False, True]
    assert nested(views, groups, 40, share=0.2).tolist() == [False, True, True]


def loop_nested(views: list[ViewMasks], groups: list[Group], share: float, least: float) -> list[bool]:
    """The definition, cell by cell."""
    covered, visible, cores = [], [], []
    for group in groups:
        counts, chances = np.zeros(GRID * GRID), np.zeros(GRID * GRID)
        chosen = [m for m, a in zip(group.members, group.agreement, strict=True) if a >= least]
        for view in {v for v, _ in chosen}:
            hit = set()
            for cell in np.unique(views[view].cells):
                rays = views[view].cells == cell
                chances[cell] += 1
                if any(views[v].masks[k][rays].sum() > 0.5 * rays.sum() for v, k in chosen if v == view):
                    hit.add(cell)
            counts[list(hit)] += 1
        covered.append(counts)
        visible.append(chances)
        cores.append(counts > 0.5 * chances)
    result = []
    for child, core in enumerate(cores):
        parents = [
            p
            for p in range(len(groups))
            if cores[p].sum() >= 1.5 * core.sum() > 0
            and visible[p][core].sum() > 0
            and covered[p][core].sum() >= share * visible[p][core].sum()
        ]
        result.append(bool(parents))
        assert child not in parents
    return result


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 50), share=st.sampled_from([0.1, 0.25, 0.5]), least=st.sampled_from([0.0, 0.5, 0.9]))
def test_nesting_follows_its_definition(seed: int, share: float, least: float) -> None:
    views, _ = looks(seed, count=8)
    groups = associate(views, GRID * GRID, min_views=1)
    assert nested(views, groups, GRID * GRID, share, least).tolist() == loop_nested(views, groups, share, least)


def random_world(seed: int) -> tuple[list[ViewMasks], int]:
    """Many views of random stretches of a strip, cut, merged and full of holes."""
    rng = np.random.default_rng(seed)
    bounds = np.sort(rng.choice(np.arange(5, 395), 40, replace=False))
    views = []
    for _ in range(40):
        start = rng.integers(0, 250)
        cells = np.arange(start, start + 150)
        ids = np.searchsorted(np.delete(bounds, rng.integers(0, 40, 5)), cells + rng.integers(-3, 4))
        masks = [(ids == k) & (rng.random(150) < 0.9) for k in np.unique(ids) if rng.random() < 0.85]
        views.append(ViewMasks(cells, np.array(masks, np.float32)))
    return views, 400


def one_by_one(
    pairs: agglomeration.Pairs, visible: np.ndarray, view_of: np.ndarray, threshold: float
) -> list[set[int]]:
    """The greedy rule with dense tables, a merge at a time."""
    count = len(view_of)
    own = np.zeros(visible.shape)
    own[np.arange(count), view_of] = 1
    shared = np.zeros((count, count))
    shared[pairs.first, pairs.second] = shared[pairs.second, pairs.first] = pairs.shared
    total = visible @ own.T
    total = total + total.T
    clusters = {k: {k} for k in range(count)}
    while True:
        union = total - shared
        ratios = np.divide(shared, union, out=np.zeros_like(shared), where=(union > 0) & (shared > 0))
        np.fill_diagonal(ratios, 0)
        a, b = (int(k) for k in np.unravel_index(ratios.argmax(), ratios.shape))
        if ratios[a, b] < threshold:
            return list(clusters.values())
        clusters[a] |= clusters.pop(b)
        for table in (shared, total):
            table[a] += table[b]
            table[:, a] = table[a]
            table[b] = table[:, b] = 0


@pytest.mark.parametrize("seed", range(4))
def test_all_best_pairs_at_once_are_the_greedy_rule(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against one merge at a time; a little noise, so that no two ratios are tied."""
    members, seen, view_of = mask_cells(*random_world(seed))
    visible = association._visible(members, seen, view_of)
    visible = visible * np.random.default_rng(seed).uniform(1, 1.001, visible.shape)
    expected = one_by_one(association._overlaps(members, view_of, 3), visible, view_of, 0.25)
    monkeypatch.setattr(agglomeration, "_PAIRS_AT_ONCE", 11)
    monkeypatch.setattr(association, "_MASKS_AT_ONCE", 7)
    clusters = agglomeration.agglomerate(association._overlaps(members, view_of, 3), visible, view_of, 0.25)
    found = {frozenset(np.flatnonzero(clusters == k).tolist()) for k in np.unique(clusters)}
    assert found == {frozenset(cluster) for cluster in expected}
    assert 20 < len(found) < len(clusters) / 3
