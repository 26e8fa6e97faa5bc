"""What a radiance field of any kind needs to be asked questions: query head, mask stage, text, pictures, figures."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeAlias, TypeVar, cast

import numpy as np
import torch
from jaxtyping import Float, Int
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.scene_box import OrientedBox
from nerfstudio.utils.rich_utils import CONSOLE
from torch import Tensor

from maskfield_ns import compat
from maskfield_ns.answers.ask import ActiveQuery, ask
from maskfield_ns.answers.decision import DecisionRule
from maskfield_ns.answers.relevancy import CANONICAL_NEGATIVES
from maskfield_ns.answers.render import Outputs, mask_pictures
from maskfield_ns.answers.text import TextEncoder
from maskfield_ns.data.mask_views import MaskViews
from maskfield_ns.data.run_info import RunInfo
from maskfield_ns.errors import CheckpointError
from maskfield_ns.foundation.vocabulary import calibration_bank
from maskfield_ns.models.contract import Presenter, ViewListener
from maskfield_ns.systems.base import Space, System, SystemConfig
from maskfield_ns.systems.mask_field.mask_stage import MaskStageConfig
from maskfield_ns.systems.old_configs import modern
from maskfield_ns.systems.query_head import QueryHead

View = TypeVar("View", RayBundle, Cameras)
"""What a backbone renders a training view's mask grid from: rays (NeRF) or a camera (Gaussians)."""
Look: TypeAlias = Callable[[int], View]
"""A datamanager's way to give the view with an index."""
_SYSTEM = "system."


@dataclass
class QueryableConfig:
    """Masks and queries, for every backbone."""

    system: SystemConfig = field(default_factory=MaskStageConfig)
    """What is attached to the radiance field, how it is fitted and how it answers."""
    decision: DecisionRule = field(default_factory=DecisionRule)
    """How relevancies become answers."""
    cell_resolution: int = 256
    """Cells along each axis of the contracted scene in which masks of different views are compared."""
    phrases: tuple[str, ...] = ()
    """Phrases shown as relevancy_i and composited_i by ns-viewer, ns-render and ns-eval."""
    negatives: tuple[str, ...] = CANONICAL_NEGATIVES
    """Phrases that relevancy is measured against."""
    edit_file: str | None = None
    """Edits (edits.json of ``maskfield edit``) shown when the run is opened; training ignores them."""
    base_run: Path | None = None
    """config.yml (or run folder, or checkpoint) of a trained nerfacto or splatfacto run to attach masks to: its colours
    and geometry are taken over and stay as they are; only the mask stage is trained."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Takes in what a config.yml says, of an earlier version too."""
        self.__dict__.update(modern(state))


class QueryableMixin(Generic[View]):
    """Mixin for a nerfstudio model whose config is a :class:`QueryableConfig`.

    The backbone calls :meth:`populate_queries` from ``populate_modules`` and :meth:`check_queries` before loading a
    checkpoint, and says how a training view's mask features are rendered and where its rays end.
    """

    config: Any
    system: System
    text: TextEncoder
    run_info: RunInfo
    edits: Any = None
    """What :func:`maskfield_ns.editing.show.set_edits` has put there; read when rendering, never in a checkpoint."""
    presenter: Presenter | None = None
    """Shows views in a browser; the pipeline attaches the viewer's panel here, where nerfstudio's viewer finds it."""
    _images = True
    listener: ViewListener | None = None
    """Told of every view that nerfstudio's evaluation renders; see :meth:`listening`."""

    base_config: type
    """nerfstudio's config class of the radiance field that masks can be attached to."""

    @abstractmethod
    def load_base(self, tensors: dict[str, Tensor]) -> None:
        """Takes over colours and geometry of a base run.

        Raises:
            CheckpointError: tensors missing or of the wrong shape.
        """

    @property
    def query_head(self) -> QueryHead:
        """The scene's queries: what pixels and primitives may belong to."""
        return self.system.query_head

    @abstractmethod
    def mask_features(self, view: int, look: Look[View]) -> Float[Tensor, "P channels"]:
        """Mask features of a training view on its mask grid, row by row; only they and the queries get gradients."""

    @abstractmethod
    def surface_cells(self, view: int, look: Look[View]) -> Int[Tensor, " P"]:
        """The 3D cell in which each ray of a view's mask grid ends; -1: nowhere. There are cell_resolution^3."""

    def system_ready(self, views: MaskViews, look: Look[View], resuming: bool) -> None:
        """Called once when the system has begun, before the first mask step: a chance to start from a good guess."""

    def populate_system(self) -> None:
        """The system, and plain holders so that neither targets nor text models end up in checkpoints."""
        self.run_info = RunInfo.of(self.kwargs.get("metadata"))  # type: ignore[attr-defined]
        # An opened run takes the size from its checkpoint (check_system).
        self.system = self.config.system.setup(self.run_info.embedding_dim)
        self._begun = False
        self.text = TextEncoder(self.run_info.embedder)

    def check_system(self, state_dict: dict[str, Tensor], needed: Sequence[str]) -> dict[str, Tensor]:
        """Makes room for a checkpoint's system and checks that the checkpoint is complete.

        Args:
            state_dict: the model's tensors.
            needed: names (prefixes) of this model's tensors that must be there.

        Returns:
            The tensors under their present names.

        Raises:
            CheckpointError: written by another version, lacking weights, or resumed with another embedder.
        """
        state_dict = {f"{_SYSTEM}{k}" if k.startswith("query_head.") else k: v for k, v in state_dict.items()}
        self.system.restore({k.removeprefix(_SYSTEM): v for k, v in state_dict.items() if k.startswith(_SYSTEM)})
        stored, cached = self.query_head.embeddings.shape[-1], self.run_info.embedding_dim
        if cached is not None and cached != stored:
            raise CheckpointError(
                f"the checkpoint's embeddings have {stored} channels, those of the mask cache {cached}: "
                "resume with the embedder that the run was started with"
            )
        # nerfstudio loads what is there and leaves the rest random, without a word.
        names = self.state_dict()  # type: ignore[attr-defined]
        lacking = [name for name in names if name.startswith(tuple(needed)) and name not in state_dict]
        if lacking:
            raise CheckpointError(
                f"the checkpoint lacks {lacking[0]} and {len(lacking) - 1} more: it is incomplete, or only one of "
                "training and this machine had tiny-cuda-nn (train with the torch implementation to be independent)"
            )
        return state_dict

    # --- queries ------------------------------------------------------------------------------------------------------

    def ask(self, phrases: Sequence[str], negatives: Sequence[str] | None = None) -> ActiveQuery:
        """Scores phrases against the scene's queries; changes nothing. What a model shows is ``config.phrases``.

        Raises:
            WeightsError: the text model of the run cannot be loaded.
        """
        against: tuple[str, ...] = tuple(negatives) if negatives else self.config.negatives
        bank = self.text(calibration_bank())
        return ask(self.query_head, phrases, self.text(phrases), self.text(against), self.config.decision, bank)

    def add_mask_pictures(self, outputs: Outputs) -> Outputs:
        """Adds the pictures of :func:`mask_pictures` to a view's outputs, whose features are set."""
        if not self._images:
            return outputs
        active = self.ask(self.config.phrases) if self.config.phrases else None
        outputs.update(mask_pictures(outputs.features, outputs["rgb"], self.query_head, active, self.config.decision))
        return outputs

    @abstractmethod
    def render_view(self, camera: Cameras, obb_box: OrientedBox | None = None) -> Outputs:
        """The backbone's outputs of one view, with its mask features."""

    @torch.no_grad()
    def get_outputs_for_camera(self, camera: Cameras, obb_box: OrientedBox | None = None) -> Outputs:
        """One view: the backbone's outputs and the mask pictures, or in a viewer the panel's picture."""

        def render() -> Outputs:
            return self.render_view(camera, obb_box)

        if self.presenter is not None and self.presenter.shows_this_thread():
            return self.presenter.outputs(render, camera, obb_box)
        return self.add_mask_pictures(render())

    # --- the mask stage -----------------------------------------------------------------------------------------------

    def mask_step(self, view: int, look: Look[View]) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, float]]:
        """One step of the mask stage on one training view.

        Args:
            view: index of the training view.
            look: gives the view that a mask grid is rendered from.

        Returns:
            (outputs, losses, metrics) as a pipeline's get_train_loss_dict.
        """
        if not self._begun:
            self._begin(look)
        features = self.mask_features(view, look)
        self.query_head.remember(view, features)
        losses, figures = self.system.losses(view, features)
        return {"mask_features": features}, losses, figures

    def _begin(self, look: Look[View]) -> None:
        views = self.run_info.mask_views
        assert views is not None, "mask steps come from a datamanager that has mask targets"
        resuming = self.system.fitted
        CONSOLE.print(f"Mask stage: comparing {views.num_masks} masks across {len(views)} views ...")
        found = self.system.begin(views, self._space(look), resuming)
        CONSOLE.print(f"Mask stage: {found}")
        self.system_ready(views, look, resuming)
        self._begun = True

    def end_mask_stage(self, look: Look[View]) -> None:
        """After the last mask step: the system's last word."""
        if self._begun:
            self.system.end(self._space(look))

    def _space(self, look: Look[View]) -> Space:
        @torch.no_grad()
        def render(view: int) -> Tensor:
            return self.mask_features(view, look).float()

        return Space(lambda view: self.surface_cells(view, look), self.config.cell_resolution**3, render)

    # --- evaluation ---------------------------------------------------------------------------------------------------

    @contextmanager
    def listening(self, listener: ViewListener, images: bool = True) -> Iterator[None]:
        """Lets a listener hear of every view that nerfstudio's evaluation renders meanwhile.

        Args:
            listener: is told.
            images: whether images of masks and phrases are made, too.
        """
        self.listener, self._images = listener, images
        try:
            yield
        finally:
            self.listener, self._images = None, True

    def get_image_metrics_and_images(
        self, outputs: dict[str, Tensor], batch: dict[str, Tensor]
    ) -> tuple[dict[str, float], dict[str, Tensor]]:
        """The backbone's figures (LPIPS only when its weights are at hand) and pictures, plus the mask pictures."""
        if self.listener is not None:
            self.listener(cast(Outputs, outputs), batch)
        compute = super().get_image_metrics_and_images  # type: ignore[misc]
        metrics, images = compat.image_metrics(compute, outputs, batch)
        for name, picture in outputs.items():
            if name.startswith(("mask_", "class_map", "relevancy_", "composited_")):
                images[name] = picture.clamp(0, 1)
        metrics = {k: float(v) for k, v in metrics.items() if np.isfinite(float(v))}
        return metrics, images
