"""What every pixel of one view belongs to, kept so that further questions about the view cost almost nothing.

A pixel belongs to very few of a scene's queries: what is left of a [pixels, Q] matrix after dropping negligible shares
is about a hundred times smaller, and a phrase is answered by a sum over the rest.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from maskfield_ns.answers.decision import DecisionRule, pool_opinions
from maskfield_ns.foundation.protocols import LEVELS
from maskfield_ns.systems.query_head import QueryHead

NEGLIGIBLE = 5e-3
"""Shares below this are dropped; heat maps are then off by at most the sum of a pixel's dropped ones (about 0.01)."""
_CHUNK = 1 << 12
"""Pixels worked on at once on a CPU, so that intermediate results stay in its cache."""
_GPU_CHUNK = 1 << 18
"""The same on a GPU, where every chunk costs its launches."""


@dataclass(frozen=True)
class LevelAssignments:
    """One mask level's opinion on the pixels of a view, as a sparse matrix."""

    level: int
    """Index into LEVELS; -1 for a head without levels."""
    pixels: Int[Tensor, " N"]
    """Row of each entry, ascending."""
    queries: Int[Tensor, " N"]
    """Column of each entry: index of a query of the head."""
    shares: Float[Tensor, " N"]
    """How much the pixel belongs to the query."""
    best: Int[Tensor, " P"]
    """The query that a pixel belongs to most."""
    best_share: Float[Tensor, " P"]

    def expectation(self, scores: Float[Tensor, "T Q"], num_pixels: int) -> Float[Tensor, "T P"]:
        """Per pixel the expected score of what it belongs to; without levels the best share times score."""
        result = self.shares.new_zeros(len(scores), num_pixels)
        for row, of_query in zip(result, scores.to(self.shares), strict=True):
            said = of_query[self.queries] * self.shares
            if self.level >= 0:
                row.index_add_(0, self.pixels, said)
            else:
                row.scatter_reduce_(0, self.pixels.long(), said, "amax")
        return result

    @property
    def nbytes(self) -> int:
        """Memory in bytes."""
        tensors = (self.pixels, self.queries, self.shares, self.best, self.best_share)
        return sum(t.numel() * t.element_size() for t in tensors)


@dataclass(frozen=True)
class PixelAssignments:
    """All levels' opinions on the pixels of a view."""

    size: tuple[int, int]
    """Height and width in pixels."""
    by_level: tuple[LevelAssignments, ...]

    @property
    def nbytes(self) -> int:
        """Memory in bytes."""
        return sum(part.nbytes for part in self.by_level)

    def of(self, level: int | Collection[int] | None) -> tuple[LevelAssignments, ...]:
        """The opinions that count: of one level or some, or (None, or a head without levels) all."""
        levels = (level,) if isinstance(level, int) else level
        return tuple(part for part in self.by_level if levels is None or part.level in levels or part.level == -1)

    def heat(
        self, scores: Float[Tensor, "T Q"], rule: DecisionRule, level: int | Collection[int] | None = None
    ) -> Float[Tensor, "T H W"]:
        """Relevancy per pixel, as :func:`maskfield_ns.answers.decision.heat_map` up to negligible shares.

        Args:
            scores: relevancy of all queries of the head to each phrase.
            rule: how many levels must agree.
            level: ask only this level, or these.
        """
        pixels = self.size[0] * self.size[1]
        parts = self.of(level)
        if not parts:
            return scores.new_zeros(len(scores), *self.size)
        opinions = torch.stack([part.expectation(scores, pixels) for part in parts])
        return pool_opinions(opinions, rule.levels_agreeing).unflatten(-1, self.size)

    def shares_at(self, row: int, column: int, num_queries: int) -> Float[Tensor, " Q"]:
        """How much a pixel belongs to each query of the head."""
        pixel = row * self.size[1] + column
        result = torch.zeros(num_queries, device=self.by_level[0].shares.device if self.by_level else None)
        for part in self.by_level:
            entries = slice(*torch.searchsorted(part.pixels, part.pixels.new_tensor([pixel, pixel + 1])).tolist())
            result[part.queries[entries].long()] = part.shares[entries]
        return result

    def areas(self, num_queries: int, region: Bool[Tensor, "H W"] | None = None) -> Float[Tensor, " Q"]:
        """Pixels of a view, or of a region of it, that belong to each query by more than half."""
        result = torch.zeros(num_queries)
        for part in self.by_level:
            sure = part.best_share > 0.5
            inside = sure if region is None else sure & region.flatten()
            result += torch.bincount(part.best[inside].long(), minlength=num_queries).cpu()
        return result

    def instances(self, valid: Bool[Tensor, " Q"], level: int | None = None) -> Int[Tensor, "H W"]:
        """The query a pixel belongs to by more than half, coarsest level first; -1 where none holds it."""
        result = torch.full((self.size[0] * self.size[1],), -1, dtype=torch.long, device=valid.device)
        for part in self.of(level):
            best = part.best.long()
            result = torch.where((part.best_share > 0.5) & valid[best], best, result)
        return result.unflatten(0, self.size)


@torch.no_grad()
def assign_pixels(features: Float[Tensor, "H W channels"], head: QueryHead) -> PixelAssignments:
    """What the pixels of a view belong to, from its rendered mask features."""
    flat = features.flatten(0, 1).float()
    levels = range(len(LEVELS)) if head.by_level else (-1,)
    parts = [_level_assignments(flat, head, level) for level in levels]
    return PixelAssignments((features.shape[0], features.shape[1]), tuple(part for part in parts if part is not None))


def _level_assignments(flat: Float[Tensor, "P channels"], head: QueryHead, level: int) -> LevelAssignments | None:
    used = head.bank(level)
    if level >= 0:
        used = used[head.support[used] > 0]
        if not len(used):
            return None
        flat = head.level_block(flat, level)
    vectors = head.mask_vectors.detach()[used].float()
    has_bias = head.parametrisation == "table"
    bias = head.bias.detach()[used].float() if has_bias else vectors.new_zeros(len(used))
    if level >= 0:  # "none of them" competes with a logit of 0
        vectors = torch.cat([vectors, vectors.new_zeros(1, vectors.shape[1])])
        bias = torch.cat([bias, bias.new_zeros(1)])
    vectors = vectors.T.contiguous()
    columns = len(bias)
    pixels, queries, shares = [], [], []
    size = _CHUNK if flat.device.type == "cpu" else _GPU_CHUNK
    for start, chunk in enumerate(flat.split(size)):
        logits = torch.addmm(bias, chunk, vectors)
        inside = (logits.softmax(dim=-1) if level >= 0 else logits.sigmoid()).flatten()
        kept = (inside > NEGLIGIBLE).nonzero()[:, 0]
        shares.append(inside[kept])
        rows = kept.div(columns, rounding_mode="floor")
        pixels.append((rows + start * size).int())
        queries.append((kept - rows * columns).int())
    return _sorted_out(level, used.int(), torch.cat(pixels), torch.cat(queries), torch.cat(shares), len(flat))


def _sorted_out(
    level: int, names: Tensor, pixels: Tensor, columns: Tensor, shares: Tensor, count: int
) -> LevelAssignments:
    """Drops the column of "none of them", and finds out what each pixel belongs to most."""
    real = columns < len(names)
    pixels, columns, shares = pixels[real], columns[real], shares[real]
    best_share = shares.new_zeros(count).scatter_reduce_(0, pixels.long(), shares, "amax")
    winners = (shares == best_share[pixels]).nonzero()[:, 0]
    queries = names[columns]
    best = names[:1].expand(count).clone()  # anything, where nothing is: the share there is 0
    best[pixels[winners].long()] = queries[winners]
    return LevelAssignments(level, pixels, queries, shares, best, best_share)
