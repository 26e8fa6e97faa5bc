"""How a system of dense features is asked: its features decode to embeddings, and a code book sums up the scene.

Codes are the queries of such a scene: typical features (k-means), each with the embedding it decodes to. A feature
belongs to the codes of a Gaussian mixture by their responsibilities, whose logits are linear in the feature, so that
everything that works on a mask field's queries (lists of objects, clicks, selections in 3D) works on codes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from maskfield_ns.foundation.protocols import LEVELS
from maskfield_ns.systems.query_head import SCHEMA_VERSION, QueryHead, sample_buffer

_SHARPNESS = 40.0
"""Inverse variance of a code's Gaussian, for features whose length is about 1."""
_LEAST = 0.3
"""A decoded feature shorter than this (a pixel is less opaque than this) means nothing."""
_ROUNDS = 25


class CodeBook(QueryHead):
    """Codes over features that decode linearly; one level, as large as objects come.

    Args:
        num_codes: how many.
        feature_dim: D, channels of the rendered feature.
        embedding_dim: C, size of a CLIP vector.
    """

    semantic_basis: Tensor

    def __init__(self, num_codes: int, feature_dim: int, embedding_dim: int) -> None:
        nn.Module.__init__(self)
        self.num_queries, self.feature_dim, self.parametrisation = num_codes, feature_dim, "table"
        self.register_buffer("schema_version", torch.tensor(SCHEMA_VERSION))
        self.register_buffer("support", torch.zeros(num_codes))
        self.register_buffer("visible", torch.zeros(num_codes))
        self.register_buffer("levels", torch.full((num_codes,), len(LEVELS) - 1))
        self.register_buffer("semantic_basis", torch.zeros(feature_dim, embedding_dim))
        self.register_buffer("sample", sample_buffer(feature_dim))
        self.by_level = True
        self._used: dict[int, tuple[object, Tensor]] = {}
        # Found, not learnt: as parameters only because queries of other systems are.
        self.mask_table = nn.Parameter(torch.zeros(num_codes, feature_dim), requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(num_codes), requires_grad=False)
        self.semantic_table = nn.Parameter(torch.zeros(num_codes, embedding_dim), requires_grad=False)

    @property
    def channels(self) -> int:
        return self.feature_dim

    @property
    def feature_vectors(self) -> Float[Tensor, "Q channels"]:
        return self.mask_table

    def level_block(self, features: Float[Tensor, "*batch channels"], level: int) -> Float[Tensor, "*batch D"]:
        return features

    def resize_embeddings(self, state: dict[str, Tensor]) -> None:
        super().resize_embeddings(state)
        if "semantic_basis" in state:
            self.semantic_basis = torch.zeros_like(state["semantic_basis"], device=self.semantic_basis.device)

    def decoded(self, features: Float[Tensor, "*batch channels"]) -> Float[Tensor, "*batch C"]:
        """Embeddings of features; zero where nothing was rendered."""
        embeddings = features.float() @ self.semantic_basis
        return embeddings * (embeddings.norm(dim=-1, keepdim=True) >= _LEAST)

    @torch.no_grad()
    def fill(self, views: Sequence[Float[Tensor, "P channels"]], seed: int = 0) -> None:
        """Finds the codes of a scene, how many views show each, and what each means.

        Args:
            views: features that the views show; empty pixels left out.
            seed: of the first guess.
        """
        every = torch.cat([view.float() for view in views])
        codes = k_means(every, self.num_queries, seed)
        count = len(codes)
        self.support.zero_()
        for view in views:
            shown = nearest(view.float(), codes).unique()
            self.support[shown] += 1
        self.visible.copy_(self.support)
        self.mask_table[:count] = _SHARPNESS * codes
        self.bias[:count] = -0.5 * _SHARPNESS * codes.square().sum(dim=1)
        self.semantic_table[:count] = F.normalize(codes @ self.semantic_basis, dim=-1)


def nearest(points: Float[Tensor, "N D"], codes: Float[Tensor, "K D"]) -> Tensor:
    """int64 [N]: the code nearest to each point."""
    half = 0.5 * codes.square().sum(dim=1)
    return torch.cat([(part @ codes.T - half).argmax(dim=1) for part in points.split(1 << 15)])


def k_means(points: Float[Tensor, "N D"], count: int, seed: int = 0) -> Float[Tensor, "K D"]:
    """At most ``count`` centers of points (Lloyd's algorithm), begun far from each other (k-means++).

    The same for the same points and seed.
    """
    generator = torch.Generator().manual_seed(seed)
    sample = points
    if len(points) > 200 * count:
        sample = points[torch.randperm(len(points), generator=generator)[: 200 * count].to(points.device)]
    if not len(sample):
        return points[:0]
    codes = sample[:1]
    distance = (sample - codes).square().sum(dim=1)
    while len(codes) < min(count, len(sample)) and float(distance.max()) > 1e-6:
        chosen = int(torch.multinomial(distance.cpu().double(), 1, generator=generator))
        codes = torch.cat([codes, sample[chosen : chosen + 1]])
        distance = torch.minimum(distance, (sample - sample[chosen]).square().sum(dim=1))
    for _ in range(_ROUNDS):
        owner = nearest(sample, codes)
        sums = torch.zeros_like(codes).index_add_(0, owner, sample)
        counts = torch.bincount(owner, minlength=len(codes))
        moved = torch.where((counts > 0)[:, None], sums / counts.clamp(min=1)[:, None], codes)
        if torch.equal(moved, codes):
            break
        codes = moved
    return codes
