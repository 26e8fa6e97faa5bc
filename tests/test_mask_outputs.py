"""Pictures and answers of one view: names, ranges and meaning, for any features."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from maskfield_ns.answers import render
from maskfield_ns.answers.ask import ActiveQuery, ask
from maskfield_ns.answers.decision import DecisionRule
from maskfield_ns.answers.render import answer_view, feature_colours, mask_pictures, query_masks
from maskfield_ns.pictures.colors import palette
from maskfield_ns.systems.query_head import QueryHead

RULE = DecisionRule(found_threshold=0.6, window=0.1, levels_agreeing=1, min_support=3.0)
EMBEDDING_DIM = 6
HEIGHT, WIDTH = 5, 8
ALWAYS = {"mask_features", "mask_instances", "class_map"}
USED = (0, 1, 4, 8, 9)
"""Queries that stand for something; 0 and 1 are subparts, 4 a part, 8 and 9 wholes."""


@pytest.fixture(scope="module", params=["consensus", "reference"])
def head(request: pytest.FixtureRequest) -> QueryHead:
    """A head of either rule, in which query n means axis n of the embedding space."""
    torch.manual_seed(0)
    reference = request.param == "reference"
    head = QueryHead(
        12,
        8,
        EMBEDDING_DIM,
        by_level=not reference,
        parametrisation="index_mlp" if reference else "table",
    )
    head.support[list(USED)] = 5.0
    if not reference:
        with torch.no_grad():
            head.semantic_table.copy_(torch.eye(EMBEDDING_DIM)[torch.arange(12) % EMBEDDING_DIM])
    return head.requires_grad_()


def phrase(axis: int) -> Tensor:
    return torch.eye(EMBEDDING_DIM)[axis : axis + 1]


NEGATIVES = torch.nn.functional.normalize(torch.ones(1, EMBEDDING_DIM), dim=-1)


def pixel_of(head: QueryHead, query: int) -> Tensor:
    """A feature that one query holds for sure."""
    vector = head.feature_vectors[query].detach()
    return 30 * vector / vector.square().sum()


def halves(head: QueryHead, left: int, right: int) -> Tensor:
    """A view whose left half shows one query's thing and whose right half another's."""
    features = torch.empty(HEIGHT, WIDTH, head.channels)
    features[:, : WIDTH // 2], features[:, WIDTH // 2 :] = pixel_of(head, left), pixel_of(head, right)
    return features


def some_rgb() -> Tensor:
    return torch.rand(HEIGHT, WIDTH, 3, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("kind", ["zero", "random", "huge"])
@pytest.mark.parametrize("asked", [None, (), ("found",), ("found", "absent")])
def test_outputs_have_the_same_names_and_ranges_for_all_features(
    head: QueryHead, kind: str, asked: tuple[str, ...] | None
) -> None:
    scale = {"zero": 0.0, "random": 1.0, "huge": 1e4}[kind]
    features = scale * torch.randn(HEIGHT, WIDTH, head.channels, generator=torch.Generator().manual_seed(0))
    active = None
    if asked is not None:
        text = torch.cat([phrase(2 if name == "found" else 3) for name in asked]) if asked else torch.zeros(0, 6)
        active = ask(head, asked, text, NEGATIVES, RULE)
    pictures = mask_pictures(features, some_rgb(), head, active, RULE)
    expected = {f"{name}_{i}" for i in range(len(asked or ())) for name in ("relevancy", "composited")}
    assert set(pictures) == ALWAYS | expected
    for name, picture in pictures.items():
        assert picture.shape == (HEIGHT, WIDTH, 1 if name.startswith("relevancy") else 3)
        assert picture.dtype == torch.float32
        assert torch.isfinite(picture).all(), name
        assert picture.min() >= 0 and picture.max() <= 1, name
        assert not picture.requires_grad


def test_mask_features_keep_their_colours_from_view_to_view(head: QueryHead) -> None:
    first = feature_colours(halves(head, 0, 4), head)
    second = feature_colours(halves(head, 0, 9), head)
    torch.testing.assert_close(first[0, 0], second[0, 0])
    single = feature_colours(pixel_of(head, 0)[None, None], head)
    torch.testing.assert_close(single[0, 0], first[0, 0])


def test_mask_features_of_different_things_look_different() -> None:
    head = QueryHead(12, 8, EMBEDDING_DIM)
    head.support[list(USED)] = 5.0
    colours = feature_colours(torch.stack([pixel_of(head, n) for n in USED])[None], head)[0]
    distance = torch.cdist(colours, colours) + 10 * torch.eye(len(USED))
    assert distance.min() > 0.15


def test_instances_are_coloured_by_query() -> None:
    head = QueryHead(12, 8, EMBEDDING_DIM)
    head.support[list(USED)] = 5.0
    features = halves(head, 8, 4)
    features[0, 0] = 0  # nothing rendered
    features[0, 1] = pixel_of(head, 10)  # a query that stands for nothing
    features[0, 2] = pixel_of(head, 4) + pixel_of(head, 8)  # a part of a whole: the whole is shown
    picture = mask_pictures(features, some_rgb(), head, None, RULE)["mask_instances"]
    table = palette(12, torch.device("cpu"))
    dark = torch.full((3,), 0.18)
    for (row, column), colour in {
        (0, 0): dark,
        (0, 1): dark,
        (0, 2): table[8],
        (1, 1): table[8],
        (1, WIDTH - 1): table[4],
    }.items():
        torch.testing.assert_close(picture[row, column], colour)
    assert ((table - dark).abs().sum(-1) > 0.2).all()


@pytest.fixture
def table_head() -> QueryHead:
    torch.manual_seed(0)
    head = QueryHead(12, 8, EMBEDDING_DIM)
    head.support[list(USED)] = 5.0
    with torch.no_grad():
        head.semantic_table.copy_(torch.eye(EMBEDDING_DIM)[torch.arange(12) % EMBEDDING_DIM])
    return head


def test_found_phrase_is_shown_where_its_thing_is(table_head: QueryHead) -> None:
    # Query 8 means axis 2, query 9 axis 3; query 5 would mean axis 5 but stands for nothing.
    active = ask(
        table_head, ["left", "right", "nowhere"], torch.cat([phrase(2), phrase(3), phrase(5)]), NEGATIVES, RULE
    )
    assert active.verdict.found.tolist() == [True, True, False]
    rgb, features = some_rgb(), halves(table_head, 8, 9)
    pictures = mask_pictures(features, rgb, table_head, active, RULE)
    left, right = (slice(None), slice(0, WIDTH // 2)), (slice(None), slice(WIDTH // 2, None))
    table = palette(3, torch.device("cpu"))
    torch.testing.assert_close(pictures["class_map"][left], table[0].expand(HEIGHT, WIDTH // 2, 3))
    torch.testing.assert_close(pictures["class_map"][right], table[1].expand(HEIGHT, WIDTH // 2, 3))
    torch.testing.assert_close(pictures["composited_0"][left], rgb[left])
    for shown, side in (("composited_0", right), ("composited_1", left), ("composited_2", left)):
        grey = pictures[shown][side]
        assert (grey == grey[..., :1]).all() and (grey <= 0.35).all()
    assert pictures["relevancy_0"][left].min() > 0.6 > pictures["relevancy_0"][right].max()


def test_nothing_found_shows_nothing(table_head: QueryHead) -> None:
    active = ask(table_head, ["nowhere"], phrase(5), NEGATIVES, RULE)
    pictures = mask_pictures(halves(table_head, 8, 9), some_rgb(), table_head, active, RULE)
    assert torch.equal(pictures["class_map"], torch.full((HEIGHT, WIDTH, 3), 0.18))
    assert (pictures["relevancy_0"] < RULE.found_threshold).all()


def test_queries_without_support_answer_nothing(table_head: QueryHead) -> None:
    table_head.support.zero_()
    active = ask(table_head, ["a"], phrase(2), NEGATIVES, RULE)
    assert (active.scores == 0).all()
    answer = answer_view(halves(table_head, 8, 9), table_head, active, phrase(2), RULE)
    assert not answer.masks.any()
    assert (answer.relevancy == 0).all()
    assert (answer.classes == -1).all()


def test_answers_are_arrays_of_the_view(table_head: QueryHead) -> None:
    text = torch.cat([phrase(2), phrase(5)])
    active = ask(table_head, ["left", "nowhere"], text, NEGATIVES, RULE)
    features = halves(table_head, 8, 9)
    answer = answer_view(features, table_head, active, torch.cat([phrase(3), phrase(2)]), RULE)
    left = np.zeros((HEIGHT, WIDTH), bool)
    left[:, : WIDTH // 2] = True
    assert answer.masks.dtype == bool and answer.masks.shape == (2, HEIGHT, WIDTH)
    np.testing.assert_array_equal(answer.masks[0], left)
    assert not answer.masks[1].any()
    assert answer.relevancy.dtype == np.float32 and answer.relevancy.shape == (2, HEIGHT, WIDTH)
    assert answer.classes.dtype.kind == "i"
    np.testing.assert_array_equal(answer.classes, np.where(left, 1, 0))
    np.testing.assert_array_equal(answer_view(features, table_head, active, None, RULE).classes, np.where(left, 0, -1))
    no_classes = answer_view(features, table_head, active, torch.zeros(0, EMBEDDING_DIM), RULE)
    np.testing.assert_array_equal(no_classes.classes, np.where(left, 0, -1))


def test_pictures_and_answers_agree(table_head: QueryHead) -> None:
    active = ask(table_head, ["left", "right"], torch.cat([phrase(2), phrase(3)]), NEGATIVES, RULE)
    features = torch.randn(HEIGHT, WIDTH, table_head.channels, generator=torch.Generator().manual_seed(0))
    rgb = 0.5 + 0.5 * some_rgb()  # never as dark as what is left out
    pictures = mask_pictures(features, rgb, table_head, active, RULE)
    answer = answer_view(features, table_head, active, None, RULE)
    for i in range(2):
        np.testing.assert_array_equal(pictures[f"relevancy_{i}"][..., 0].numpy(), answer.relevancy[i])
        kept = (pictures[f"composited_{i}"] == rgb).all(-1).numpy()
        np.testing.assert_array_equal(kept, answer.masks[i])


def test_asking_does_not_keep_a_graph(head: QueryHead) -> None:
    active = ask(head, ["a"], phrase(2), NEGATIVES, RULE)
    assert isinstance(active, ActiveQuery)
    assert not active.scores.requires_grad


@pytest.mark.parametrize("pixels", [1, WIDTH, 2 * WIDTH + 3])
def test_large_views_are_answered_in_parts(table_head: QueryHead, pixels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    active = ask(table_head, ["left", "right"], torch.cat([phrase(2), phrase(3)]), NEGATIVES, RULE)
    features, rgb = halves(table_head, 8, 9), some_rgb()
    features[1] = torch.randn(WIDTH, table_head.channels, generator=torch.Generator().manual_seed(0))
    queries = torch.tensor([8, 0])

    def answers() -> tuple:
        answer = answer_view(features, table_head, active, phrase(2), RULE)
        arrays = (answer.masks, answer.relevancy, answer.classes, query_masks(features, table_head, queries))
        return mask_pictures(features, rgb, table_head, active, RULE), arrays

    pictures, arrays = answers()
    assert arrays[3].shape == (2, HEIGHT, WIDTH) and arrays[3][0, 0].sum() == WIDTH // 2
    monkeypatch.setattr(render, "_CHUNK_PIXELS", pixels)
    pictures_in_parts, arrays_in_parts = answers()
    torch.testing.assert_close(pictures_in_parts, pictures)
    for part, whole in zip(arrays_in_parts, arrays, strict=True):
        np.testing.assert_allclose(part, whole, atol=1e-6)
