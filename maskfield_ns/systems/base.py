"""The contract of a system: what is attached to a radiance field, how it is fitted, and how it answers.

A system never asks which backbone it is on: it is given the features that were rendered on a training view's grid
(:meth:`System.losses`), says what features a view suggests (:meth:`System.start`), and finds out where rays end
(:class:`Space`). Nobody above a system asks which one it is: whatever is attached to the radiance field, the scene's
queries (:class:`~maskfield_ns.systems.query_head.QueryHead`) say what features of pixels or of primitives belong to,
and what that means. A system whose features mean something on their own, without queries, says so in
:meth:`QueryHead.decoded`; answers then come from there.

To write a system: subclass :class:`SystemConfig` and :class:`System` in one file, and add one line to
:data:`maskfield_ns.systems.registry.SYSTEMS`, or from another package an entry point of the group
``maskfield_ns.systems`` that names the config class.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

if TYPE_CHECKING:
    from maskfield_ns.data.mask_views import MaskViews
    from maskfield_ns.systems.query_head import QueryHead

Losses: TypeAlias = tuple[dict[str, Float[Tensor, ""]], dict[str, float]]
"""(losses to be summed, figures to be logged)."""


@dataclass(frozen=True)
class Needs:
    """What a system needs of the 2D models, so that extraction makes and the cache keeps exactly that.

    Masks with a level, a score and an embedding each come with every system: views without any are not served.
    """

    dense: bool = False
    """A map of embeddings over every training image, by the embedder."""


@dataclass
class SystemConfig:
    """Options of a system; each has its own subclass."""

    _target: type = field(default_factory=lambda: System)
    """Target class to instantiate."""
    feature_dim: int = 16
    """Channels attached to space; systems with mask levels attach as many per level."""

    def needs(self) -> Needs:
        """What the system needs of the 2D models."""
        return Needs()

    def setup(self, embedding_dim: int | None) -> System:
        """The system, not fitted yet.

        Args:
            embedding_dim: C of the embedder; None: a run is opened, and sizes and values come with its checkpoint.
        """
        return self._target(self, embedding_dim)


@dataclass(frozen=True)
class Space:
    """What a system may know about the scene; the radiance field does not change any more."""

    surface_cells: Callable[[int], Int[Tensor, " P"]]
    """By training view, the 3D cell in which each ray of its grid ends; -1: nowhere."""
    num_cells: int
    """How many cells there are."""
    render: Callable[[int], Float[Tensor, "P channels"]]
    """By training view, the attached features as they are now, on its grid; without gradients."""


@dataclass(frozen=True)
class Start:
    """What one training view suggests as features of what it shows."""

    values: Float[Tensor, "P channels"]
    """Per pixel of the grid, times its weight."""
    weights: Float[Tensor, "P blocks"]
    """How much each pixel counts, per block of channels / blocks channels."""


class System(nn.Module, ABC):
    """A system in one scene. Its tensors (parameters, buffers) are in checkpoints and cannot grow.

    Order of calls: construction; :meth:`begin` once, when the radiance field is there; :meth:`start` per view and
    :meth:`solve` (backbones of primitives only); :meth:`losses` per step; :meth:`end` once. An opened run only answers.
    """

    query_head: QueryHead
    """How the system answers; set by the constructor."""

    @property
    def channels(self) -> int:
        """How many numbers are attached to every place."""
        return self.query_head.channels

    @property
    def fitted(self) -> bool:
        """Whether queries are in use: a checkpoint of the fitting stage, or later, has been loaded."""
        return bool((self.query_head.support > 0).any())

    def restore(self, state: dict[str, Tensor]) -> None:
        """Makes room for stored tensors (names without prefix) before they are loaded.

        Raises:
            CheckpointError: they do not fit this system.
        """
        from maskfield_ns.systems.query_head import check_checkpoint

        prefix = "query_head."
        own = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
        self.query_head.match_banks(own)
        check_checkpoint(own, self.query_head)
        self.query_head.resize_embeddings(own)

    @abstractmethod
    def begin(self, views: MaskViews, space: Space, resuming: bool) -> str:
        """Takes in what the 2D models said about the training views.

        Args:
            views: masks and embeddings on the grids.
            space: the scene.
            resuming: the tensors come from a checkpoint of this stage: go on, do not start over.

        Returns:
            One line about what was found, for the user.
        """

    def start(self, view: int, device: torch.device) -> Start | None:
        """What a view suggests as a start; None: nothing."""
        return None

    def solve(
        self,
        sums: Float[Tensor, "N channels"],
        weights: Float[Tensor, "N blocks"],
        seen: Float[Tensor, " N"],
    ) -> Float[Tensor, "N channels"]:
        """Features of primitives from what views suggested (:meth:`start`), summed by blending weight.

        Args:
            sums: of the values.
            weights: of the weights.
            seen: of 1: how many pixels each primitive fills.
        """
        from maskfield_ns.systems.mask_field.closed_form import solve_features

        return solve_features(sums, weights, seen)

    @abstractmethod
    def losses(self, view: int, features: Float[Tensor, "P channels"]) -> Losses:
        """One step on the features rendered on a training view's grid, row by row."""

    def end(self, space: Space) -> None:
        """After the last step, before the last checkpoint."""
