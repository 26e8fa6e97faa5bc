"""The query head: codes, banks, both parametrisations, and what it says to checkpoints that do not fit."""

from __future__ import annotations

import math

import pytest
import torch

from maskfield_ns.errors import CheckpointError
from maskfield_ns.foundation.protocols import LEVELS
from maskfield_ns.systems.query_head import SCHEMA_VERSION, QueryHead, check_checkpoint, spread_codes

PARAMETRISATIONS = ("table", "index_mlp")


def coherence(codes: torch.Tensor) -> float:
    """Largest cosine between two different codes."""
    cosines = codes @ codes.T
    return (cosines - 2 * torch.eye(len(codes))).max().item()


def small_head(parametrisation: str = "table", embedding_dim: int = 5, **options: object) -> QueryHead:
    return QueryHead(12, 4, embedding_dim, parametrisation=parametrisation, **options)  # type: ignore[arg-type]


# --- codes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "dim", "bound"), [(240, 16, 0.40), (96, 16, 0.30), (20, 8, 0.25)])
def test_codes_are_spread(count: int, dim: int, bound: float) -> None:
    codes = spread_codes(count, dim)
    assert codes.shape == (count, dim)
    torch.testing.assert_close(codes.norm(dim=-1), torch.ones(count))
    random = torch.nn.functional.normalize(torch.randn(count, dim, generator=torch.Generator().manual_seed(0)), dim=-1)
    assert coherence(codes) < bound < coherence(random)


def test_few_codes_reach_the_simplex() -> None:
    """n + 1 unit vectors in n dimensions can have cosine -1/n and no less (the simplex bound)."""
    assert coherence(spread_codes(4, 3)) == pytest.approx(-1 / 3, abs=0.02)


def test_codes_follow_their_seed_only() -> None:
    state = torch.get_rng_state()
    first = spread_codes(6, 4, seed=1, steps=5)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    assert torch.equal(spread_codes(6, 4, seed=1, steps=5), first)
    assert not torch.equal(spread_codes(6, 4, seed=2, steps=5), first)


def test_codes_can_be_made_while_gradients_are_off() -> None:
    with torch.no_grad():
        codes = spread_codes(6, 4, steps=50)
    assert not codes.requires_grad
    assert coherence(codes) < 0.6


def test_one_code() -> None:
    assert spread_codes(1, 4).norm().item() == pytest.approx(1)


# --- logits -----------------------------------------------------------------------------------------------------------


def test_a_query_holds_its_own_code_and_nothing_else() -> None:
    head = QueryHead(96, 16, 8)
    codes = torch.nn.functional.normalize(head.feature_vectors.detach(), dim=-1)
    inside = head.logits(codes).sigmoid() > 0.5
    assert torch.equal(inside, torch.eye(96, dtype=torch.bool))


def test_codes_of_a_bank_have_the_whole_space_to_themselves() -> None:
    head = QueryHead(150, 16, 8)
    for level in range(len(LEVELS)):
        vectors = torch.nn.functional.normalize(head.mask_vectors.detach()[head.bank(level)], dim=-1)
        assert coherence(vectors) == pytest.approx(coherence(spread_codes(50, 16)), abs=1e-6)


def test_nothing_is_held_where_nothing_was_rendered() -> None:
    head = small_head()
    head.support.fill_(5)
    empty = torch.zeros(2, 3, head.channels)
    assert (head.logits(empty).sigmoid() < 0.05).all()
    assert (head.probabilities(empty) < 0.05).all()


@pytest.mark.parametrize("by_level", [True, False])
@pytest.mark.parametrize("parametrisation", PARAMETRISATIONS)
def test_logits_are_dot_products_with_the_block_of_the_level(parametrisation: str, by_level: bool) -> None:
    head = small_head(parametrisation, by_level=by_level)
    assert head.channels == (12 if by_level else 4)
    features = torch.randn(2, 3, head.channels, generator=torch.Generator().manual_seed(0))
    bias = head.bias if parametrisation == "table" else torch.zeros(12)
    logits = head.logits(features)
    assert logits.shape == (2, 3, 12)
    for row in range(2):
        for column in range(3):
            for query in range(12):
                start = 4 * int(head.levels[query]) if by_level else 0
                block = features[row, column, start : start + 4]
                expected = sum(block * head.mask_vectors[query]) + bias[query]
                torch.testing.assert_close(logits[row, column, query], expected)


def test_things_of_one_level_exclude_each_other() -> None:
    """Soft-max per level over the queries in use and "none of them", against a loop."""
    head = small_head()
    head.support[[0, 1, 3, 5, 6, 8]] = 4.0
    features = 3 * torch.randn(10, head.channels, generator=torch.Generator().manual_seed(0))
    logits, probabilities = head.logits(features), head.probabilities(features)
    for pixel in range(10):
        for level in range(len(LEVELS)):
            used = [n for n in range(12) if head.levels[n] == level and head.support[n] > 0]
            total = 1 + sum(math.exp(float(logits[pixel, n])) for n in used)
            for n in range(12):
                if head.levels[n] == level:
                    expected = math.exp(float(logits[pixel, n])) / total if n in used else 0.0
                    assert probabilities[pixel, n].item() == pytest.approx(expected, rel=1e-4, abs=1e-12)
    assert torch.isfinite(probabilities).all()


@pytest.mark.parametrize("by_level", [True, False])
def test_probabilities_of_some_queries_are_those_columns(by_level: bool) -> None:
    head = small_head(by_level=by_level)
    head.support[[0, 1, 3, 5, 6, 8]] = 4.0
    features = torch.randn(2, 5, head.channels, generator=torch.Generator().manual_seed(0))
    queries = torch.tensor([8, 0, 2, 5])  # 2 is not in use
    torch.testing.assert_close(head.probabilities(features, queries), head.probabilities(features)[..., queries])
    assert head.probabilities(features, queries[:0]).shape == (2, 5, 0)


def test_without_any_query_in_use_nothing_is_held() -> None:
    head = small_head()
    assert torch.equal(head.probabilities(torch.randn(5, head.channels)), torch.zeros(5, 12))


def test_without_levels_every_query_decides_alone() -> None:
    head = small_head(by_level=False)
    features = torch.randn(5, head.channels)
    torch.testing.assert_close(head.probabilities(features), head.logits(features).sigmoid())


# --- MaskField's parametrisation --------------------------------------------------------------------------------------


def test_index_code_is_maskfields() -> None:
    """[sin(2^j n), cos(2^j n)], j = 0..9; float32 leaves 3e-2 at the highest frequency of 240 queries."""
    code = QueryHead(240, 4, 5, parametrisation="index_mlp").index_code
    assert code.shape == (240, 20)
    for n in (0, 1, 7, 239):
        expected = [math.sin(2**j * n) for j in range(10)] + [math.cos(2**j * n) for j in range(10)]
        torch.testing.assert_close(code[n], torch.tensor(expected), atol=3e-2, rtol=0)


def test_index_mlp_layers_are_maskfields() -> None:
    head = QueryHead(240, 16, 512, by_level=False, parametrisation="index_mlp")

    def sizes(mlp: torch.nn.Module) -> list[tuple[int, int]]:
        return [(m.in_features, m.out_features) for m in mlp.modules() if isinstance(m, torch.nn.Linear)]

    assert sizes(head.mask_mlp) == [(20, 256), (256, 16)]
    assert sizes(head.semantic_mlp) == [(20, 256), (256, 256), (256, 512)]
    assert head.mask_vectors.shape == (240, 16)
    assert head.embeddings.shape == (240, 512)
    # Queries are no free parameters: everything learnt is in the two networks.
    assert {name.split(".")[0] for name, _ in head.named_parameters()} == {"mask_mlp", "semantic_mlp"}


# --- banks and support ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [3, 12, 13, 96, 240])
def test_banks_divide_the_queries(count: int) -> None:
    head = QueryHead(count, 4, 5)
    banks = [set(head.bank(level).tolist()) for level in range(len(LEVELS))]
    assert set().union(*banks) == set(range(count))
    assert sum(len(bank) for bank in banks) == count
    assert max(len(b) for b in banks) - min(len(b) for b in banks) <= 1


def test_without_levels_every_query_takes_every_mask() -> None:
    head = small_head(by_level=False)
    for level in range(len(LEVELS)):
        assert head.bank(level).tolist() == list(range(12))


def test_valid_queries_have_enough_support_and_a_share_of_the_most() -> None:
    head = small_head()
    head.support[:5] = torch.tensor([60.0, 9.0, 8.0, 3.0, 2.0])
    assert head.valid(3.0).nonzero().ravel().tolist() == [0, 1, 2, 3]
    assert head.valid(3.0, min_share=0.15).nonzero().ravel().tolist() == [0, 1]
    assert head.valid(100.0, min_share=0.15).sum() == 0


def test_a_thing_few_views_see_needs_fewer_matches() -> None:
    head = small_head()
    head.support[:4] = torch.tensor([60.0, 4.0, 4.0, 2.0])
    head.visible[:4] = torch.tensor([60.0, 5.0, 60.0, 2.0])
    assert head.valid(3.0, min_share=0.15).nonzero().ravel().tolist() == [0, 1]


def test_adopted_queries_have_direction_and_support() -> None:
    head = small_head()
    assert not head.valid(1.0).any()
    head.adopt(3, torch.tensor([0.0, 0.0, 3.0, 4.0, 0.0]), 5, 7)
    torch.testing.assert_close(head.embeddings[3].detach(), torch.tensor([0.0, 0.0, 0.6, 0.8, 0.0]))
    assert head.valid(5.0).nonzero().ravel().tolist() == [3]
    assert not head.valid(5.5).any()
    assert head.semantic_table.requires_grad


# --- checkpoints ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parametrisation", PARAMETRISATIONS)
def test_state_dict_round_trip_with_another_embedding_size(parametrisation: str) -> None:
    """An opened run does not know the size of its embeddings; the optimiser's parameters stay the same objects."""
    torch.manual_seed(0)
    trained = small_head(parametrisation, embedding_dim=7)
    if parametrisation == "table":
        trained.adopt(2, torch.ones(7), 4, 4)
    state = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    opened = small_head(parametrisation, embedding_dim=1)
    parameters = dict(opened.named_parameters())
    check_checkpoint(state, opened)
    opened.resize_embeddings(state)
    opened.load_state_dict(state, strict=True)
    assert all(dict(opened.named_parameters())[name] is parameter for name, parameter in parameters.items())
    torch.testing.assert_close(opened.embeddings, trained.embeddings)
    features = torch.randn(6, trained.channels)
    torch.testing.assert_close(opened.logits(features), trained.logits(features))
    assert torch.equal(opened.support, trained.support)
    assert opened.embeddings.shape == (12, 7)


def test_checkpoint_of_another_schema_is_refused() -> None:
    head = small_head()
    state = head.state_dict() | {"schema_version": torch.tensor(SCHEMA_VERSION + 1)}
    with pytest.raises(CheckpointError, match=rf"layout {SCHEMA_VERSION + 1}.* reads layout {SCHEMA_VERSION}"):
        check_checkpoint(state, head)


def test_checkpoint_without_a_query_head_is_refused() -> None:
    with pytest.raises(CheckpointError, match="no query head"):
        check_checkpoint({}, small_head())


@pytest.mark.parametrize("name", ["mask_table", "bias", "semantic_table", "support", "levels"])
def test_incomplete_checkpoint_is_refused(name: str) -> None:
    head = small_head()
    state = head.state_dict()
    del state[name]
    with pytest.raises(CheckpointError, match=name):
        check_checkpoint(state, head)


def test_checkpoint_of_the_other_rule_is_refused() -> None:
    with pytest.raises(CheckpointError, match="mask_mlp"):
        check_checkpoint(small_head("table").state_dict(), small_head("index_mlp"))


@pytest.mark.parametrize("other", [QueryHead(15, 4, 5), QueryHead(12, 6, 5)])
def test_checkpoint_of_another_size_is_refused(other: QueryHead) -> None:
    with pytest.raises(CheckpointError, match="different runs"):
        check_checkpoint(other.state_dict(), small_head())
