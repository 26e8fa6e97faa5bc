"""Regions as questions, and answers made larger, smaller or repeated, on tables whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
from toy_scene import gaussian_scene

from maskfield_ns.answers.prompts import larger, smaller
from maskfield_ns.errors import NothingFoundError, QuestionError
from maskfield_ns.scene import Scene

# Ten points: a table top of six with a mug of four on it; the mug has a handle (query 1) and a body (query 2).
OWNERS = np.array([[1, 3, 5]] + [[2, 3, 5]] * 3 + [[-1, 4, 5]] * 6)
MASS = np.array([1.0, 1, 1, 1, 1, 1, 1, 1, 1, 1])


def test_growing_goes_up_one_step_at_a_time() -> None:
    assert larger(OWNERS, MASS, (1,)) == (3,)
    assert larger(OWNERS, MASS, (2,)) == (3,)
    assert larger(OWNERS, MASS, (3,)) == (5,)
    assert larger(OWNERS, MASS, (5,)) == (5,)


def test_growing_skips_levels_that_add_nothing() -> None:
    owners = np.array([[1, 3, 5]] * 4 + [[-1, -1, 5]] * 3)
    assert larger(owners, np.ones(7), (1,)) == (5,)


def test_shrinking_goes_to_what_was_pointed_at() -> None:
    assert smaller(OWNERS, MASS, (5,)) == (4,), "the largest part"
    assert smaller(OWNERS, MASS, (3,)) == (2,)
    from_handle = np.arange(10.0)
    assert smaller(OWNERS, MASS, (5,), from_handle) == (3,)
    assert smaller(OWNERS, MASS, (3,), from_handle) == (1,)
    assert smaller(OWNERS, MASS, (1,), from_handle) == (1,)


def test_points_of_nothing_do_not_matter() -> None:
    heavy = np.where(np.arange(10) < 4, 1.0, 0.01)
    assert smaller(OWNERS, heavy, (5,)) == (4,), "the table top, though light, is a part; the mug is nearly all of it"
    assert larger(OWNERS, heavy, (3,)) == (3,), "a whole that is hardly larger is the same"


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return gaussian_scene(tmp_path_factory.mktemp("prompts"))


def test_a_mask_and_a_box_find_what_they_show(scene: Scene) -> None:
    camera = scene.cameras("test")[2]
    view = scene.render(camera, scene.query(["ball", "box"]))
    for name, mask in view.masks.items():
        answer = scene.region(camera, mask)
        assert answer.found and answer.score > 0.85
        found = scene.render(camera, [answer]).masks["region"]
        assert (found & mask).sum() > 0.85 * (found | mask).sum(), name
        rows, columns = mask.nonzero()
        box = (rows.min(), columns.min(), rows.max() + 1, columns.max() + 1)
        boxed = scene.render(camera, [scene.region(camera, box)]).masks["region"]
        assert (boxed & mask).sum() > 0.85 * (boxed | mask).sum(), name
    both = view.masks["ball"] | view.masks["box"]
    together = scene.render(camera, [scene.region(camera, both)]).masks["region"]
    assert (together & both).sum() > 0.85 * (together | both).sum()
    for wrong in (np.zeros((48, 64), bool), np.ones((4, 4), bool), (5, 5, 5, 5), "box", np.ones((48, 64))):
        with pytest.raises(QuestionError):
            scene.region(camera, wrong)  # type: ignore[arg-type]


def test_alike_adds_what_means_the_same_and_nothing_else(scene: Scene) -> None:
    alike = scene.alike(scene.query("ball", level="whole")[0])
    assert set(alike.queries) == {0, 4, 8} and not alike.places
    (absent,) = scene.query("elephant")
    for act in (scene.alike, scene.grow, scene.shrink):
        with pytest.raises(NothingFoundError):
            act(absent)


def test_an_object_that_has_no_parts_stays_what_it_is(scene: Scene) -> None:
    (ball,) = scene.query("ball", level="whole")
    assert scene.grow(ball) == ball and scene.shrink(ball) == ball
