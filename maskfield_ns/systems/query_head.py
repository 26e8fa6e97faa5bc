"""The query head: Q scene-level queries, each a mask vector, a CLIP vector and evidence that it means something."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from maskfield_ns.errors import CheckpointError
from maskfield_ns.foundation.protocols import LEVELS

SCHEMA_VERSION = 2
"""Version of the checkpoint layout; raised when a stored tensor changes its meaning."""

_LOGIT_SCALE = 10.0
_LOGIT_OFFSET = -5.0
_GOLDEN = (5**0.5 - 1) / 2
"""Multiples of it, less their whole parts, spread evenly over [0, 1)."""
_SAMPLED_VIEWS, _SAMPLED_PIXELS = 64, 256
"""Pixels whose mask features are remembered: of so many training views so many each."""


def spread_codes(count: int, dim: int, seed: int = 0, steps: int = 300) -> Float[Tensor, "Q D"]:
    """Unit vectors with small mutual cosines, by gradient descent on a soft maximum of the pairwise cosines.

    240 codes in 16 dimensions reach a largest cosine of about 0.35 (random ones: 0.8), so that one 16-channel
    feature can tell hundreds of queries apart.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.enable_grad():
        codes = torch.randn(count, dim, generator=generator).requires_grad_()
        if count > 1 and steps:
            optimiser = torch.optim.Adam([codes], lr=0.05)
            off_diagonal = ~torch.eye(count, dtype=torch.bool)
            for _ in range(steps):
                unit = F.normalize(codes, dim=-1)
                loss = torch.logsumexp(20 * (unit @ unit.T)[off_diagonal], dim=0) / 20
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
    return F.normalize(codes.detach(), dim=-1)


def sample_buffer(channels: int) -> Float[Tensor, "N channels"]:
    """Room for the mask features of a scene's sampled pixels; zero where nothing has been sampled yet."""
    return torch.zeros(_SAMPLED_VIEWS * _SAMPLED_PIXELS, channels, dtype=torch.float16)


class QueryHead(nn.Module):
    """Scene-level queries over a rendered mask feature (MaskField, sec. 3).

    Query n turns a rendered feature F(p) into the logit ``mask_vectors[n] . F(p) + bias[n]``; where nothing was
    rendered F is 0 and the negative bias keeps the pixel outside. Queries are split into banks, one per mask level,
    so that nested masks never compete for one query.

    Args:
        num_queries: Q, over all banks.
        feature_dim: D, channels of the mask feature (per level, with level banks).
        embedding_dim: C, size of a CLIP vector.
        by_level: one bank per level; otherwise a single bank takes masks of every level.
        parametrisation: "table" learns free vectors; "index_mlp" derives them from the encoded query index through
            two shared MLPs, as MaskField's released code does.
        spread: start from mask vectors that are far apart (:func:`spread_codes`, seconds of work); False: random
            ones, where a checkpoint replaces them.
    """

    schema_version: Tensor
    sample: Tensor
    support: Tensor
    visible: Tensor
    levels: Tensor

    def __init__(
        self,
        num_queries: int,
        feature_dim: int,
        embedding_dim: int,
        by_level: bool = True,
        parametrisation: Literal["table", "index_mlp"] = "table",
        spread: bool = True,
    ) -> None:
        super().__init__()
        self.num_queries, self.feature_dim, self.parametrisation = num_queries, feature_dim, parametrisation
        self.register_buffer("schema_version", torch.tensor(SCHEMA_VERSION))
        channels = feature_dim * (len(LEVELS) if by_level else 1)
        self.register_buffer("sample", sample_buffer(channels))
        self.register_buffer("support", torch.zeros(num_queries))
        self.register_buffer("visible", torch.zeros(num_queries))
        of_level = torch.arange(num_queries) * len(LEVELS) // num_queries
        self.register_buffer("levels", of_level if by_level else torch.full((num_queries,), -1))
        self.by_level = by_level
        """Whether there is a bank (and a block of feature channels) per level."""
        self._used: dict[int, tuple[object, Tensor]] = {}
        if parametrisation == "table":
            sizes = self.bank_sizes() if by_level else [num_queries]
            self.mask_table = nn.Parameter(_bank_codes(sizes, feature_dim, spread))
            self.bias = nn.Parameter(torch.full((num_queries,), _LOGIT_OFFSET))
            self.semantic_table = nn.Parameter(F.normalize(torch.randn(num_queries, embedding_dim), dim=-1))
        else:
            index = torch.arange(num_queries, dtype=torch.float32)[:, None] * 2.0 ** torch.arange(10)
            self.register_buffer("index_code", torch.cat([index.sin(), index.cos()], dim=-1))
            self.mask_mlp = nn.Sequential(nn.Linear(20, 256), nn.ReLU(), nn.Linear(256, feature_dim))
            self.semantic_mlp = nn.Sequential(
                nn.Linear(20, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, embedding_dim)
            )

    @property
    def mask_vectors(self) -> Float[Tensor, "Q D"]:
        """q_n."""
        return self.mask_table if self.parametrisation == "table" else self.mask_mlp(self.index_code)

    @property
    def embeddings(self) -> Float[Tensor, "Q C"]:
        """e_n, not normalised."""
        return self.semantic_table if self.parametrisation == "table" else self.semantic_mlp(self.index_code)

    @property
    def channels(self) -> int:
        """Channels of the rendered feature: D, or one block of D per level."""
        return self.feature_dim * (len(LEVELS) if self.by_level else 1)

    @property
    def feature_vectors(self) -> Float[Tensor, "Q channels"]:
        """q_n laid out as rendered features are: in the block of its level, zero in the others."""
        vectors = self.mask_vectors
        if not self.by_level:
            return vectors
        wide = vectors.new_zeros(self.num_queries, len(LEVELS), self.feature_dim)
        wide[torch.arange(self.num_queries, device=vectors.device), self.levels] = vectors
        return wide.flatten(1)

    def logits(self, features: Float[Tensor, "*batch channels"]) -> Float[Tensor, "*batch Q"]:
        """Mask logits of all queries for rendered features."""
        logits = features @ self.feature_vectors.T
        return logits + self.bias if self.parametrisation == "table" else logits

    def used(self, level: int) -> Int64[Tensor, " N"]:
        """Indices of the queries of a level's bank that stand for something.

        Found again only when the evidence has changed, because a GPU has to be waited for.
        """
        state = _state_of(self.support, self.levels)
        known = self._used.get(level)
        if known is None or state is None or known[0] != state:
            bank = self.bank(level)
            known = self._used[level] = (state, bank[self.support[bank] > 0])
        return known[1]

    def level_block(self, features: Float[Tensor, "*batch channels"], level: int) -> Float[Tensor, "*batch D"]:
        """The channels of rendered features that tell the things of a level apart."""
        return features[..., level * self.feature_dim : (level + 1) * self.feature_dim] if self.by_level else features

    def level_parameters(self, queries: Int64[Tensor, " N"]) -> tuple[Float[Tensor, "N D"], Float[Tensor, " N"]]:
        """Mask vectors and biases of some queries."""
        vectors = self.mask_vectors[queries]
        return vectors, self.bias[queries] if self.parametrisation == "table" else vectors.new_zeros(len(queries))

    def _level_logits(
        self, features: Float[Tensor, "*batch channels"], level: int, queries: Int64[Tensor, " N"]
    ) -> Float[Tensor, "*batch N+1"]:
        """Logits of some queries of one level and, last, of "none of them"."""
        vectors, bias = self.level_parameters(queries)
        return F.pad(self.level_block(features, level) @ vectors.T + bias, (0, 1))

    def probabilities(
        self, features: Float[Tensor, "*batch channels"], queries: Int64[Tensor, " N"] | None = None
    ) -> Float[Tensor, "*batch N"]:
        """How much each pixel belongs to each of some queries (all Q by default), in [0, 1].

        With level banks the things of one level exclude each other, so this is a soft-max within each bank; a head
        without banks (MaskField's rule) takes every query on its own (sigmoid).
        """
        if queries is None:
            queries = torch.arange(self.num_queries, device=self.levels.device)
        if not self.by_level:
            return self.logits(features)[..., queries].sigmoid()
        result = features.new_zeros(*features.shape[:-1], len(queries))
        for level in range(len(LEVELS)):
            used = self.used(level)
            wanted, found = (queries[:, None] == used).nonzero(as_tuple=True)
            if len(wanted):
                result[..., wanted] = self._level_logits(features, level, used).softmax(dim=-1)[..., found]
        return result

    def decoded(self, features: Float[Tensor, "*batch channels"]) -> Float[Tensor, "*batch C"] | None:
        """What features mean on their own, zero where nothing is; None: only queries mean anything."""
        return None

    @torch.no_grad()
    def remember(self, view: int, features: Float[Tensor, "P channels"]) -> None:
        """Keeps the mask features of some of a training view's pixels, in the place of what it kept before.

        The scene's pixels, a few thousand of them: enough to know how much of it answers a phrase without rendering.
        """
        # Spread over the image by the golden ratio, on the device: a step neither waits for nor copies anything.
        order = torch.arange(1, _SAMPLED_PIXELS + 1, device=features.device, dtype=torch.float64)
        pixels = ((order * _GOLDEN + view * _GOLDEN**2) % 1 * len(features)).long().clamp(max=len(features) - 1)
        start = view % _SAMPLED_VIEWS * _SAMPLED_PIXELS
        self.sample[start : start + _SAMPLED_PIXELS] = features.detach()[pixels].to(self.sample)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        if f"{prefix}support" in state_dict:  # a run from before there was a sample; nerfstudio also loads nothing here
            state_dict.setdefault(f"{prefix}sample", torch.zeros_like(self.sample))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def resize_embeddings(self, state: dict[str, Tensor]) -> None:
        """Gives the CLIP vectors the size a checkpoint has, so that it can be opened without its text model."""
        if self.parametrisation == "table" and "semantic_table" in state:
            self.semantic_table.data = torch.zeros_like(state["semantic_table"], device=self.semantic_table.device)
        elif "semantic_mlp.4.weight" in state:
            last = self.semantic_mlp[4]
            assert isinstance(last, nn.Linear)
            last.weight.data = torch.zeros_like(state["semantic_mlp.4.weight"], device=last.weight.device)
            last.bias.data = torch.zeros_like(state["semantic_mlp.4.bias"], device=last.bias.device)
            last.out_features = len(last.bias)

    def bank(self, level: int) -> Tensor:
        """Indices of the queries that may explain masks of a level."""
        if not self.by_level:
            return torch.arange(self.num_queries, device=self.levels.device)
        return (self.levels == level).nonzero()[:, 0]

    def bank_sizes(self) -> list[int]:
        """Number of queries per level."""
        return torch.bincount(self.levels.cpu(), minlength=len(LEVELS)).tolist()

    @torch.no_grad()
    def resize_banks(self, sizes: Sequence[int], spread: bool = True) -> None:
        """Starts again with other numbers of queries per level; parameters stay the same objects.

        Args:
            sizes: queries per level.
            spread: as for the head itself.
        """
        device = self.levels.device
        self.num_queries = sum(sizes)
        self.levels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes)).to(device)
        self.support, self.visible = (torch.zeros(self.num_queries, device=device) for _ in range(2))
        self.mask_table.data = _bank_codes(sizes, self.feature_dim, spread).to(self.mask_table)
        self.bias.data = torch.full((self.num_queries,), _LOGIT_OFFSET).to(self.bias)
        embeddings = torch.randn(self.num_queries, self.semantic_table.shape[1])
        self.semantic_table.data = F.normalize(embeddings, dim=-1).to(self.semantic_table)

    def match_banks(self, state: dict[str, Tensor]) -> None:
        """Makes room for a checkpoint in which more objects were found than the config asks queries for."""
        levels = state.get("levels")
        if levels is None or not self.by_level or self.parametrisation != "table":
            return
        if len(levels) != self.num_queries and len(levels) and bool(((levels >= 0) & (levels < len(LEVELS))).all()):
            self.resize_banks(torch.bincount(levels.cpu(), minlength=len(LEVELS)).tolist(), spread=False)

    def valid(self, min_support: float, min_share: float = 0.0) -> Tensor:
        """[Q] bool: queries that stand for something.

        Those matched in at least ``min_support`` training views, and in at least ``min_share`` of the views that see
        the place (of the query matched most often, where visibility is not known): what was proposed in three views
        of the sixty that look at it is a slip of the proposer.
        """
        chances = torch.where(self.visible > 0, self.visible, self.support.max())
        return self.support >= torch.clamp(min_share * chances, min=min_support)

    @torch.no_grad()
    def adopt(self, index: int, embedding: Float[Tensor, " C"], support: float, visible: float) -> None:
        """Makes a query stand for a group of masks found before training.

        Args:
            index: the query.
            embedding: its CLIP vector, of any length.
            support: views in which it was found.
            visible: views that see its place.
        """
        self.semantic_table[index] = F.normalize(embedding, dim=-1)
        self.support[index], self.visible[index] = support, visible


def _bank_codes(sizes: Sequence[int], dim: int, spread: bool) -> Float[Tensor, "Q D"]:
    """Mask vectors to start with. Only queries of one bank are told apart: each bank has the whole space to itself."""
    of_size = {size: spread_codes(size, dim, steps=300 if spread else 0) for size in set(sizes)}
    return _LOGIT_SCALE * torch.cat([of_size[size] for size in sizes])


def _state_of(*tensors: Tensor) -> object | None:
    """Something that changes when one of some tensors does; None: cannot be told."""
    if any(tensor.is_inference() for tensor in tensors):
        return None
    return tuple((id(tensor), tensor._version) for tensor in tensors)


def check_checkpoint(state: dict[str, Tensor], head: QueryHead) -> None:
    """Whether stored query-head tensors (names without prefix) fit this version and this head.

    Raises:
        CheckpointError: they do not; nerfstudio alone would fall back to a partial load without a word.
    """
    if "schema_version" not in state:
        raise CheckpointError("the checkpoint holds no query head: it was not written by a maskfield method")
    version = int(state["schema_version"])
    if version != SCHEMA_VERSION:
        raise CheckpointError(
            f"the checkpoint has layout {version}, this version of maskfield-ns reads layout {SCHEMA_VERSION}: "
            "open it with the version that wrote it, or train again"
        )
    expected = head.state_dict()
    missing = sorted(set(expected) - set(state) - {"sample"})
    if missing:
        raise CheckpointError(f"the checkpoint lacks {', '.join(missing)}: it is incomplete or of another rule")
    for name, tensor in expected.items():
        if not name.startswith("semantic") and name in state and tensor.shape != state[name].shape:
            raise CheckpointError(
                f"{name} is {tuple(state[name].shape)} in the checkpoint and {tuple(tensor.shape)} in the config: "
                "config.yml and checkpoint belong to different runs"
            )
