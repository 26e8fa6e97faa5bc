"""Dense feature distillation: a low-dimensional feature that decodes linearly to what a teacher says of every pixel.

Source of the idea: Kobayashi et al., "Decomposing NeRF for Editing via Feature Field Distillation" (DFF), NeurIPS 2022:
the feature is rendered like a color and regressed to the teacher's, geometry is not touched, and labels are answered by
a soft-max over cosines (eq. 5). Ours: the decoder is the teacher's principal directions, the best a linear one of this
width can be, so that decoding and rendering commute and the same features can sit on Gaussians and in a field.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from maskfield_ns.systems.base import Losses, Needs, Space, Start, System, SystemConfig
from maskfield_ns.systems.dense.code_book import CodeBook

if TYPE_CHECKING:
    from maskfield_ns.data.mask_views import MaskViews, TargetTensors

_SAMPLE = 512
"""Pixels of each view that the decoder is made from."""
_KEPT_BYTES = 1 << 29
"""Memory for what is taught; beyond it, that is worked out anew in every step."""


@dataclass
class DenseConfig(SystemConfig):
    """Dense feature distillation (DFF)."""

    _target: type = field(default_factory=lambda: DenseSystem)
    """Target class to instantiate."""
    feature_dim: int = 64
    """Channels of the feature; as many as an embedding has keep everything."""
    teacher: Literal["dense", "masks"] = "dense"
    """What is distilled: "dense", the embedder's own map of each image; "masks", per pixel the mean embedding of the
    masks that cover it, for embedders whose maps are poor."""
    num_codes: int = 240
    """Codes that sum up the scene for lists of objects, clicks and selections in 3D."""

    def needs(self) -> Needs:
        return Needs(dense=self.teacher == "dense")


class DenseSystem(System):
    """Dense features in one scene."""

    query_head: CodeBook

    def __init__(self, config: DenseConfig, embedding_dim: int | None) -> None:
        super().__init__()
        self.config = config
        self.query_head = CodeBook(config.num_codes, config.feature_dim, embedding_dim or 1)
        self._views: MaskViews | None = None
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}

    def training_views(self) -> MaskViews:
        """The training views. (No property: nerfstudio's viewer reads every property of a model's parts.)"""
        assert self._views is not None, "begin() comes first"
        return self._views

    def begin(self, views: MaskViews, space: Space, resuming: bool) -> str:
        self._views = views
        head, device = self.query_head, self.query_head.support.device
        if not resuming:
            generator = torch.Generator().manual_seed(0)
            parts = []
            for view in views.supervised:
                taught, known = self.teacher(view, device)
                taught = taught[known > 0]
                parts.append(taught[torch.randperm(len(taught), generator=generator)[:_SAMPLE].to(device)])
            head.semantic_basis = principal_directions(torch.cat(parts), self.config.feature_dim)
            head.fill([part @ head.semantic_basis.T for part in parts])
        return f"dense features of {self.config.feature_dim} channels, {int((head.support > 0).sum())} codes"

    @torch.no_grad()
    def teacher(self, view: int, device: torch.device) -> tuple[Float[Tensor, "P C"], Float[Tensor, " P"]]:
        """What the teacher says of a view's pixels, unit length, and how much of each pixel it speaks of."""
        targets = self.training_views().tensors(view, device)
        if self.config.teacher == "dense":
            return F.normalize(self.training_views().dense(view, device), dim=-1), targets.valid.float()
        return masks_as_maps(targets)

    @torch.no_grad()
    def targets(self, view: int, device: torch.device) -> tuple[Float[Tensor, "P channels"], Float[Tensor, " P"]]:
        """Features that decode to what the teacher says of a view, and how much of each pixel it speaks of."""
        if view in self._kept:
            return self._kept[view]
        taught, known = self.teacher(view, device)
        result = (taught @ self.query_head.semantic_basis.T, known)
        if sum(features.nbytes for features, _ in self._kept.values()) < _KEPT_BYTES:
            self._kept[view] = result
        return result

    def start(self, view: int, device: torch.device) -> Start:
        wanted, known = self.targets(view, device)
        return Start(wanted * known[:, None], known[:, None])

    def losses(self, view: int, features: Float[Tensor, "P channels"]) -> Losses:
        wanted, known = self.targets(view, features.device)
        with torch.autocast(features.device.type, enabled=False):
            # The basis is orthonormal: distances between features are those between what they decode to.
            apart = (features.float() - wanted).square().sum(dim=-1)
            loss = (apart * known).sum() / known.sum().clamp(min=1e-6)
        return {"feature_loss": loss}, {"feature_distance": float(loss.detach().sqrt())}

    def end(self, space: Space) -> None:
        """Codes of what the scene shows now, which agrees across views as the teacher does not."""
        device = self.query_head.support.device
        shown = [space.render(view).to(device) for view in self.training_views().supervised]
        lengths = [(view @ self.query_head.semantic_basis).norm(dim=-1) for view in shown]
        solid = [view[length > 0.5] for view, length in zip(shown, lengths, strict=True)]
        if any(len(view) for view in solid):  # else the scene is fog, and what the teacher said stays
            self.query_head.fill(solid)


def principal_directions(vectors: Float[Tensor, "N C"], count: int) -> Float[Tensor, "D C"]:
    """Orthonormal rows that keep as much of the vectors as so many can; zero rows beyond the number of channels.

    Not centered: what is not there has to decode to nothing.
    """
    _, directions = torch.linalg.eigh(vectors.double().T @ vectors.double())
    basis = directions.T.flip(0)[:count].to(vectors)
    return F.pad(basis, (0, 0, 0, count - len(basis)))


def masks_as_maps(targets: TargetTensors) -> tuple[Float[Tensor, "P C"], Float[Tensor, " P"]]:
    """Per pixel the mean embedding of the masks over it, by their scores, and how much of the pixel any covers."""
    masks = targets.masks()
    weights = masks * targets.scores[:, None]
    known = masks.amax(dim=0) * targets.valid if len(masks) else targets.valid.float() * 0
    return F.normalize(weights.T @ targets.embeddings, dim=-1), known
