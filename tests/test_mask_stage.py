"""The mask stage on a world with known things: what it learns, what it must not unlearn, and MaskField's own rule."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from mask_scene import (
    COLUMNS,
    CORNERS,
    HEIGHT,
    PART,
    WHOLE,
    WIDTH,
    MaskScene,
    best_iou,
    faulty_scene,
    feature_table,
    make_scene,
    make_stage,
    meaning,
    redraw,
    things,
    train,
)
from scipy.optimize import linear_sum_assignment
from test_losses import loop_dice, loop_focal
from test_matching import maskfield_cost
from torch import Tensor

from maskfield_ns.systems.mask_field.mask_stage import MaskStage


def explained(stage: MaskStage, scene: MaskScene, view: int) -> dict[str, int]:
    """Thing -> query, as the stage remembers it for a view."""
    state = stage.states[view]
    return {
        scene.names[view][mask]: query for query, mask in zip(state.queries.tolist(), state.masks.tolist(), strict=True)
    }


def logit_gradients(stage: MaskStage, scene: MaskScene, view: int, table: Tensor) -> Tensor:
    """Derivative of a step's loss with respect to every logit alone, [P, Q]; 0 for queries without support.

    Found by moving features along the dual of the query vectors in use, which must be linearly independent.
    """
    features = table[torch.from_numpy(scene.cells[view])].detach().requires_grad_()
    losses, _ = stage.losses(view, features)
    (gradient,) = torch.autograd.grad(sum(losses.values()), features)
    vectors = stage.head.feature_vectors.detach()
    used = stage.head.support > 0 if stage.head.by_level else torch.ones(len(vectors), dtype=torch.bool)
    dual = torch.linalg.pinv(vectors[used])
    torch.testing.assert_close(vectors[used] @ dual, torch.eye(int(used.sum())), atol=1e-4, rtol=0)
    result = torch.zeros(len(gradient), len(vectors))
    result[:, used] = gradient @ dual
    return result


# --- consensus --------------------------------------------------------------------------------------------------------


def test_every_thing_starts_with_one_query_of_its_level_and_meaning() -> None:
    scene = faulty_scene()
    stage = make_stage(scene)
    stage.prepare(adopt=True)
    of_thing: dict[str, set[int]] = {}
    for view in range(len(scene.views)):
        for name, query in explained(stage, scene, view).items():
            of_thing.setdefault(name, set()).add(query)
    assert set(of_thing) == set(things())
    used = [query for queries in of_thing.values() for query in queries]
    assert len(used) == len(set(used)) == len(things()), of_thing
    for name, (query,) in of_thing.items():
        assert stage.head.levels[query] == things()[name][0]
        torch.testing.assert_close(stage.head.embeddings[query].detach(), torch.from_numpy(meaning(name)))
        assert stage.head.support[query] == sum(name in names for names in scene.names)
    assert (stage.head.support > 0).sum() == len(things())


def test_parts_ranked_as_wholes_go_a_level_down() -> None:
    """Where the red box was missed, a proposer takes its lid for a whole."""
    missed = {view: {"red"} for view in (1, 3, 5, 7)}
    for share, lids in ((2.0, {("red lid", PART), ("red lid", WHOLE)}), (0.7, {("red lid", PART)})):
        scene = make_scene(CORNERS, missed)
        for view, names in enumerate(scene.names):
            masks = scene.views[view].dense()
            lid = masks[names.index("red lid")]
            lid *= np.isin(scene.cells[view], 5 * COLUMNS + np.arange(6, 10)).reshape(lid.shape)  # a fifth of the box
            redraw(scene, view, masks)
            if view in missed:
                scene.views[view].levels[names.index("red lid")] = WHOLE
        stage = make_stage(scene, nested_share=share)
        stage.prepare(adopt=True)
        found = {
            (name, int(stage.head.levels[query]))
            for view in range(len(CORNERS))
            for name, query in explained(stage, scene, view).items()
        }
        assert {item for item in found if item[0] == "red lid"} == lids
        assert found - lids == {(name, level) for name, (level, _) in things().items()} - lids


def test_masks_that_disagree_with_their_group_say_nothing() -> None:
    """One view's mask of the red box holds the floor too: its pixels are not red's."""
    scene = make_scene(CORNERS)
    names, masks = scene.names[2], scene.views[2].dense()
    masks[names.index("red"), :2] = 1
    redraw(scene, 2, masks)
    for least, told in ((0.0, True), (0.5, False)):
        stage = make_stage(scene, min_agreement=least)
        stage.prepare(adopt=True)
        assert ("red" in explained(stage, scene, 2)) == told
        assert "red" in explained(stage, scene, 3)


def test_consensus_learns_things_that_views_miss() -> None:
    scene = faulty_scene()
    stage = make_stage(scene)
    stage.prepare(adopt=True)
    table = train(stage, scene)
    ious = {name: best_iou(stage, scene, table, name) for name in things()}
    assert min(ious.values()) > 0.9, ious


def test_consensus_does_not_give_up_things_missed_in_most_views() -> None:
    """The reference rule pushes a query down in every view without its mask, and loses the thing; ours must not."""
    missed = {view: {"green"} for view in (0, 2, 4, 6, 7)}
    scene = make_scene(CORNERS, missed)
    ious: dict[str, dict[str, float]] = {}
    for rule in ("consensus", "published"):
        stage = make_stage(scene, rule=rule)
        stage.prepare(adopt=True)
        table = train(stage, scene, lr=0.01)
        ious[rule] = {name: best_iou(stage, scene, table, name) for name in things()}
    assert min(ious["consensus"].values()) > 0.9, ious
    assert ious["published"].pop("green") < 0.5, ious
    assert min(ious["published"].values()) > 0.9, ious


def test_missed_thing_is_not_pushed_down_where_nothing_else_is_shown() -> None:
    scene = make_scene([(2, 4)] * 3 + [(2, 3), (3, 4)], missed={0: {"blue"}})
    inside = torch.from_numpy(things()["blue"][1].ravel()[scene.cells[0]])
    stage = make_stage(scene)
    stage.prepare(adopt=True)
    assert "blue" not in explained(stage, scene, 0)
    query = explained(stage, scene, 1)["blue"]
    table = train(stage, scene)
    gradient = logit_gradients(stage, scene, 0, table)[:, query]
    pixels = HEIGHT * WIDTH
    assert gradient[inside].max() <= stage.config.absent_weight / pixels + 1e-7
    stage.config.absent_weight = 0.0
    assert logit_gradients(stage, scene, 0, table)[inside, query].abs().max() < 1e-8
    # Where the view's masks show something else, a query that is too strong is pushed down.
    floor = torch.from_numpy(things()["floor"][1].ravel()[scene.cells[0]])
    everywhere = table[scene.cells[0][inside.numpy()][0]].expand_as(table)
    assert logit_gradients(stage, scene, 0, everywhere)[floor, query].min() > 0.1 / pixels


def test_reference_pushes_a_missed_thing_down() -> None:
    scene = make_scene([(2, 4)] * 4, missed={0: {"blue"}})
    inside = torch.from_numpy(things()["blue"][1].ravel()[scene.cells[0]])
    stage = make_stage(scene, num_queries=8, rule="published")
    stage.prepare(adopt=True)
    table = feature_table(stage)
    rows, _ = reference_pairs(stage, scene, 0, table)
    unmatched = [n for n in range(8) if n not in rows]
    assert len(unmatched) == 2
    gradient = logit_gradients(stage, scene, 0, table)
    assert (gradient[inside][:, unmatched] > 0.1 / (2 * HEIGHT * WIDTH)).all()


def test_levels_do_not_fight() -> None:
    """A lid inside a box: both are held at the lid's cells."""
    scene = faulty_scene()
    stage = make_stage(scene)
    stage.prepare(adopt=True)
    table = train(stage, scene)
    lid, box = (explained(stage, scene, 5)[name] for name in ("yellow lid", "yellow"))
    probabilities = stage.head.probabilities(table)[scene.truth("yellow lid") & scene.seen()]
    assert (probabilities[:, [lid, box]] > 0.5).float().mean() > 0.95


def test_split_proposals_are_shown_their_union() -> None:
    """In one view the proposer cuts a box in two; the query that explains both halves holds the box."""
    scene = make_scene(CORNERS)
    view = 5
    target = scene.views[view]
    whole = scene.names[view].index("yellow")
    masks = target.dense()
    halves = np.stack([masks[whole]] * 2)
    column = np.flatnonzero(masks[whole].any(0))
    halves[0][:, column[len(column) // 2] :] = 0
    halves[1][:, : column[len(column) // 2]] = 0
    stage = make_stage(scene)
    stage.prepare(adopt=True)
    query = explained(stage, scene, view)["yellow"]
    table = feature_table(stage)
    features = table[torch.from_numpy(scene.cells[view])]
    expected, _ = stage.losses(view, features)

    keep = [k for k in range(len(target)) if k != whole]
    redraw(
        scene,
        view,
        np.concatenate([masks[keep], halves]),
        levels=np.append(target.levels[keep], [target.levels[whole]] * 2).astype(np.int8),
        scores=np.ones(len(keep) + 2, np.float32),
        embeddings=np.concatenate([target.embeddings[keep], [meaning("yellow")] * 2]).astype(np.float32),
    )
    state = stage.states[view]
    order = [state.masks.tolist().index(k) for k in keep]
    state.masks = torch.arange(len(keep) + 2)
    state.queries = torch.cat([state.queries[order], torch.tensor([query, query])])
    state.trust, state.embeddings = torch.ones(len(state.queries)), None
    actual, _ = stage.losses(view, features)
    for name in expected:
        if name != "mask_clip":
            torch.testing.assert_close(actual[name], expected[name])


def test_matching_again_mends_a_wrong_grouping() -> None:
    scene = make_scene(CORNERS)
    stage = make_stage(scene, rematch_every=1, rematch_after=160)
    stage.prepare(adopt=True)
    table = train(stage, scene, steps=160)
    right = explained(stage, scene, 3)
    state = stage.states[3]
    red, green = (scene.names[3].index(name) for name in ("red", "green"))
    state.masks = torch.tensor([{red: green, green: red}.get(m, m) for m in state.masks.tolist()])
    assert explained(stage, scene, 3) != right
    stage.losses(3, table[torch.from_numpy(scene.cells[3])])
    assert explained(stage, scene, 3) == right


def test_resuming_keeps_the_queries_and_finds_the_same_groups() -> None:
    scene = faulty_scene()
    stage = make_stage(scene)
    stage.prepare(adopt=True)
    train(stage, scene, steps=40)
    before = {name: tensor.clone() for name, tensor in stage.head.state_dict().items()}
    resumed = MaskStage(stage.config, stage.head, stage.views, stage.surface_cells, stage.num_cells)
    resumed.prepare(adopt=False)
    for name, tensor in stage.head.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    for view in range(len(scene.views)):
        assert explained(resumed, scene, view) == explained(stage, scene, view)


def test_resuming_leaves_out_queries_that_were_not_in_use() -> None:
    """A query without support has probability 0: a mask assigned to it would cost infinitely much."""
    scene = faulty_scene()
    stage = make_stage(scene)
    stage.prepare(adopt=True)
    query = explained(stage, scene, 5)["yellow"]
    stage.head.support[query] = 0
    stage.prepare(adopt=False)
    assert "yellow" not in explained(stage, scene, 5)
    losses, _ = stage.losses(5, feature_table(stage)[torch.from_numpy(scene.cells[5])])
    assert all(torch.isfinite(loss) for loss in losses.values())


def test_there_are_as_many_queries_as_things() -> None:
    """Banks that are too small grow before anything is learnt; parameters stay what optimisers hold."""
    scene = faulty_scene()
    stage, roomy = make_stage(scene, num_queries=9), make_stage(scene)  # three per level, five wholes
    held = list(stage.head.parameters())
    for each in (stage, roomy):
        each.prepare(adopt=True)
    assert stage.head.bank_sizes() == [3, 3, 5] and stage.head.num_queries == 11
    assert all(a is b for a, b in zip(held, stage.head.parameters(), strict=True))
    support, expected = ([head.support[head.used(k)].tolist() for k in range(3)] for head in (stage.head, roomy.head))
    assert support == expected
    again = make_stage(scene, num_queries=9).head
    again.match_banks(stage.head.state_dict())
    again.load_state_dict(stage.head.state_dict())
    assert again.bank_sizes() == [3, 3, 5]
    assert again.used(2).tolist() == stage.head.used(2).tolist()


# --- rays that do not count, views without anything -------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["consensus", "published"])
def test_excluded_rays_have_no_say(rule: str) -> None:
    excluded = np.zeros((HEIGHT, WIDTH), bool)
    excluded[:, :5] = True
    scene = make_scene(CORNERS, excluded=dict.fromkeys(range(len(CORNERS)), excluded))
    stage = make_stage(scene, rule=rule)
    stage.prepare(adopt=True)
    features = feature_table(stage)[torch.from_numpy(scene.cells[3])].detach()
    other = features.clone()
    other[torch.from_numpy(excluded.ravel())] += 5.0
    features.requires_grad_()
    first, second = stage.losses(3, features)[0], stage.losses(3, other)[0]
    torch.testing.assert_close(first, second)
    sum(first.values()).backward()
    assert (features.grad[torch.from_numpy(excluded.ravel())] == 0).all()
    assert features.grad.abs().sum() > 0


def test_grouping_ignores_excluded_rays() -> None:
    """Where all views exclude a box, no query may stand for it."""
    excluded = {}
    for view, (row, column) in enumerate(CORNERS):
        window = things()["blue"][1][row : row + HEIGHT, column : column + WIDTH]
        excluded[view] = window
    scene = make_scene(CORNERS, excluded=excluded)
    stage = make_stage(scene)
    stage.prepare(adopt=True)
    assert all("blue" not in explained(stage, scene, view) for view in range(len(CORNERS)))
    assert (stage.head.support > 0).sum() == len(things()) - 1


@pytest.mark.parametrize("rule", ["consensus", "published"])
def test_view_without_masks(rule: str) -> None:
    scene = make_scene(CORNERS, missed={2: set(things())})
    stage = make_stage(scene, rule=rule)
    stage.prepare(adopt=True)
    assert_finite_step(stage, scene, 2)


def test_view_in_which_nothing_is_explained() -> None:
    scene = make_scene([(0, 0)] * 3 + [(0, 0)], missed={v: {"red"} for v in range(3)} | {3: set(things()) - {"red"}})
    stage = make_stage(scene)
    stage.prepare(adopt=True)
    assert explained(stage, scene, 3) == {}
    assert_finite_step(stage, scene, 3)


def test_no_thing_at_all_is_common_to_the_views() -> None:
    scene = make_scene([(0, 0), (4, 8)])
    stage = make_stage(scene)  # three views are needed
    stage.prepare(adopt=True)
    assert (stage.head.support == 0).all()
    for view in range(2):
        assert_finite_step(stage, scene, view)


@pytest.mark.parametrize("queries", [1, 3, 7])
def test_reference_with_at_least_as_many_masks_as_queries(queries: int) -> None:
    scene = make_scene([(2, 4)] * 3)
    assert len(scene.views[0]) == 7
    stage = make_stage(scene, num_queries=queries, rule="published")
    stage.prepare(adopt=True)
    assert "mask_absent" not in assert_finite_step(stage, scene, 0)


def assert_finite_step(stage: MaskStage, scene: MaskScene, view: int) -> dict[str, Tensor]:
    """The losses of a step can be summed and have finite gradients, as nerfstudio's trainer needs."""
    table = feature_table(stage)
    losses, figures = stage.losses(view, table[torch.from_numpy(scene.cells[view])])
    assert all(math.isfinite(value) for value in figures.values()), figures
    total = sum(losses.values())
    assert torch.isfinite(total)
    total.backward()
    assert torch.isfinite(table.grad).all()
    return losses


@pytest.mark.parametrize("rule", ["consensus", "published"])
def test_half_precision_around_the_stage_changes_nothing(rule: str) -> None:
    """nerfstudio trains under autocast on a GPU; sums over a view's pixels then exceed what float16 can hold."""
    scene = faulty_scene()
    settings = {"rematch_every": 1, "rematch_after": 0} if rule == "consensus" else {}
    stage = make_stage(scene, rule=rule, **settings)
    stage.prepare(adopt=True)
    features = 300 * feature_table(stage)[torch.from_numpy(scene.cells[5])].detach()
    expected, _ = stage.losses(5, features)
    with torch.autocast("cpu", dtype=torch.float16):
        actual, _ = stage.losses(5, features)
    assert all(torch.isfinite(loss) for loss in actual.values())
    torch.testing.assert_close(actual, expected)


# --- MaskField's rule -------------------------------------------------------------------------------------------------


def reference_pairs(stage: MaskStage, scene: MaskScene, view: int, table: Tensor) -> tuple[list[int], list[int]]:
    """Pairs (query, mask) by MaskField's cost, in double precision loops."""
    masks = torch.from_numpy(scene.views[view].dense().reshape(-1, HEIGHT * WIDTH)).double()
    embeddings = torch.from_numpy(scene.views[view].embeddings).double()
    head = stage.head
    with torch.no_grad():
        logits = (table[torch.from_numpy(scene.cells[view])] @ head.mask_vectors.T).T.double()
        cost = maskfield_cost(logits, head.embeddings.double(), masks, embeddings)
    rows, columns = linear_sum_assignment(cost)
    return rows.tolist(), columns.tolist()


def test_reference_loss_is_maskfields() -> None:
    """L = focal / M + 0.05 dice / M + mean (1 - cos) + mean over unmatched queries and pixels of sigmoid^2."""
    scene = faulty_scene()
    stage = make_stage(scene, num_queries=11, rule="published")
    stage.prepare(adopt=True)
    table = feature_table(stage)
    with torch.no_grad():
        table.mul_(30)
    for view in (0, 3):
        rows, columns = reference_pairs(stage, scene, view, table)
        target = scene.views[view]
        masks = torch.from_numpy(target.dense().reshape(len(target), -1)).double()
        with torch.no_grad():
            logits = (table[torch.from_numpy(scene.cells[view])] @ stage.head.mask_vectors.T).T.double()
            vectors = stage.head.embeddings.double()
        ones = torch.ones(HEIGHT * WIDTH, dtype=torch.float64)
        focal = sum(loop_focal(logits[n], masks[k], ones) for n, k in zip(rows, columns, strict=True)) / len(masks)
        dice = sum(loop_dice(logits[n], masks[k], ones) for n, k in zip(rows, columns, strict=True)) / len(masks)
        cosines = []
        for n, k in zip(rows, columns, strict=True):
            e, c = vectors[n].numpy(), target.embeddings[k].astype(np.float64)
            cosines.append(1 - e @ c / np.linalg.norm(e) / np.linalg.norm(c))
        silent = [1 / (1 + math.exp(-x)) for n in range(11) if n not in rows for x in logits[n].tolist()]
        expected = focal + 0.05 * dice + np.mean(cosines) + np.mean(np.square(silent))
        losses, _ = stage.losses(view, table[torch.from_numpy(scene.cells[view])])
        assert sum(losses.values()).item() == pytest.approx(expected, rel=1e-4)


def test_reference_learns_complete_masks() -> None:
    """When no view misses anything, MaskField's rule works: the comparison is with a working implementation."""
    scene = make_scene([(2, 4)] * 3)
    stage = make_stage(scene, num_queries=12, rule="published")
    stage.prepare(adopt=True)
    table = train(stage, scene, steps=400, lr=0.005)
    ious = {name: best_iou(stage, scene, table, name) for name in things()}
    assert min(ious.values()) > 0.9, ious


def test_masks_that_disagree_with_their_group_say_little_about_its_meaning() -> None:
    """In two views the proposer takes a box for half of itself, and CLIP calls that half something else."""
    scene = make_scene(CORNERS)
    for view in (2, 6):
        target = scene.views[view]
        k = scene.names[view].index("yellow")
        masks, embeddings = target.dense(), target.embeddings.copy()
        column = np.flatnonzero(masks[k].any(0))
        masks[k][:, column[len(column) // 2] :] = 0
        embeddings[k] = meaning("blue")
        redraw(scene, view, masks, embeddings=embeddings)
    cosines = {}
    for power in (0.0, 4.0):
        stage = make_stage(scene, trust_power=power)
        stage.prepare(adopt=True)
        query = explained(stage, scene, 0)["yellow"]
        wanted = torch.from_numpy(meaning("yellow").astype(np.float32))
        cosines[power] = float(torch.cosine_similarity(stage.head.embeddings[query], wanted, dim=0))
    assert cosines[4.0] > 0.99 > cosines[0.0]
