"""What a radiance field of any kind needs to be asked questions: query head, mask stage, text, pictures, figures."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.scene_box import OrientedBox
from nerfstudio.utils.rich_utils import CONSOLE
from torch import Tensor

from maskfield_ns import compat
from maskfield_ns.answers.ask import ActiveQuery, ask
from maskfield_ns.answers.decision import DecisionRule
from maskfield_ns.answers.relevancy import CANONICAL_NEGATIVES
from maskfield_ns.answers.render import Outputs, mask_pictures
from maskfield_ns.answers.text import TextEncoder
from maskfield_ns.errors import CheckpointError
from maskfield_ns.systems.mask_field.head import QueryHead, check_checkpoint
from maskfield_ns.systems.mask_field.mask_stage import MaskStage, MaskStageConfig
from maskfield_ns.viewer.control import PanelControl

View = Any
"""What a backbone renders a training view's mask grid from: rays (NeRF) or a camera (Gaussians)."""
Look = Callable[[int], View]
"""A datamanager's way to give the view with an index."""
_HEAD = "query_head."


@dataclass
class QueryableConfig:
    """Masks and queries, for every backbone."""

    mask_stage: MaskStageConfig = field(default_factory=MaskStageConfig)
    """How cached masks become queries."""
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


class QueryableModel:
    """Mixin for a nerfstudio model whose config is a :class:`QueryableConfig`.

    The backbone calls :meth:`populate_queries` from ``populate_modules`` and :meth:`check_queries` before loading a
    checkpoint, and says how a training view's mask features are rendered and where its rays end.
    """

    config: Any
    query_head: QueryHead
    text: TextEncoder
    edits: Any = None
    """What :func:`maskfield_ns.editing.show.set_edits` has put there; read when rendering, never in a checkpoint."""

    base_config: type
    """nerfstudio's config class of the radiance field that masks can be attached to."""

    @abstractmethod
    def load_base(self, tensors: dict[str, Tensor]) -> None:
        """Takes over colours and geometry of a base run.

        Raises:
            CheckpointError: tensors missing or of the wrong shape.
        """

    @abstractmethod
    def mask_features(self, view: int, look: Look) -> Float[Tensor, "P channels"]:
        """Mask features of a training view on its mask grid, row by row; only they and the queries get gradients."""

    @abstractmethod
    def surface_cells(self, view: int, look: Look) -> Int[Tensor, " P"]:
        """The 3D cell in which each ray of a view's mask grid ends; -1: nowhere. There are cell_resolution^3."""

    def stage_prepared(self, stage: MaskStage, look: Look, resuming: bool) -> None:
        """Called once when things have been found, before the first mask step: a chance to start from a good guess."""

    def populate_queries(self, feature_dim: int) -> None:
        """The query head, and plain holders so that neither targets nor text models end up in checkpoints."""
        metadata: dict[str, Any] = self.kwargs.get("metadata") or {}  # type: ignore[attr-defined]
        stage: MaskStageConfig = self.config.mask_stage
        reference = stage.rule == "reference"
        self.query_head = QueryHead(
            stage.num_queries,
            feature_dim,
            # An opened run takes the size from its checkpoint (check_queries).
            metadata.get("embedding_dim") or 1,
            by_level=not reference,
            parametrisation="index_mlp" if reference else "table",
            spread=metadata.get("mask_views") is not None,
        )
        self._metadata = metadata
        self._stage: MaskStage | None = None
        self._active: ActiveQuery | None = None
        self.text = TextEncoder(metadata.get("embedder_config"))
        self.maskfield_panel = PanelControl(self)  # found by nerfstudio's viewer, which opens the panel

    def check_queries(self, state_dict: dict[str, Tensor], needed: Sequence[str]) -> None:
        """Makes room for a checkpoint's queries and checks that the checkpoint is complete.

        Args:
            state_dict: the model's tensors.
            needed: names (prefixes) of this model's tensors that must be there.

        Raises:
            CheckpointError: written by another version, lacking weights, or resumed with another embedder.
        """
        own = {k.removeprefix(_HEAD): v for k, v in state_dict.items() if k.startswith(_HEAD)}
        self.query_head.match_banks(own)
        check_checkpoint(own, self.query_head)
        self.query_head.resize_embeddings(own)
        stored, cached = self.query_head.embeddings.shape[-1], self._metadata.get("embedding_dim")
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

    def open_edit_file(self) -> None:
        """Shows the edits that the config names; called when weights have been loaded.

        Raises:
            EditError: the file cannot be read, or was made in another run.
        """
        if self.config.edit_file and self._metadata.get("mask_views") is None:
            from maskfield_ns.editing.edits import EditList
            from maskfield_ns.editing.show import set_edits

            set_edits(self, EditList.load(Path(self.config.edit_file)))

    # --- queries ------------------------------------------------------------------------------------------------------

    def ask(self, phrases: Sequence[str], negatives: Sequence[str] | None = None) -> ActiveQuery:
        """Makes phrases the ones that outputs answer.

        Raises:
            WeightsError: the text model of the run cannot be loaded.
        """
        against: tuple[str, ...] = tuple(negatives) if negatives else self.config.negatives
        self._active = ask(self.query_head, phrases, self.text(phrases), self.text(against), self.config.decision)
        return self._active

    def add_mask_pictures(self, outputs: Outputs) -> Outputs:
        """Adds the pictures of :func:`mask_pictures` to a view's outputs, whose features are set."""
        if self._active is None and self.config.phrases:
            self.ask(self.config.phrases)
        active = self._active
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

        if self.maskfield_panel.shows_this_thread():
            return self.maskfield_panel.outputs(render, camera, obb_box)
        return self.add_mask_pictures(render())

    # --- the mask stage -----------------------------------------------------------------------------------------------

    def mask_step(self, view: int, look: Look) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, float]]:
        """One step of the mask stage on one training view.

        Args:
            view: index of the training view.
            look: gives the view that a mask grid is rendered from.

        Returns:
            (outputs, losses, metrics) as a pipeline's get_train_loss_dict.
        """
        if self._stage is None:
            self._stage = self._begin_stage(look)
        features = self.mask_features(view, look)
        losses, figures = self._stage.losses(view, features)
        return {"mask_features": features}, losses, figures

    def _begin_stage(self, look: Look) -> MaskStage:
        views = self._metadata["mask_views"]
        stage = MaskStage(
            self.config.mask_stage,
            self.query_head,
            views,
            lambda view: self.surface_cells(view, look),
            self.config.cell_resolution**3,
        )
        resuming, planned = bool((self.query_head.support > 0).any()), self.query_head.num_queries
        CONSOLE.print(f"Mask stage: comparing {views.num_masks} masks across {len(views)} views ...")
        stage.prepare(adopt=not resuming)
        if self.config.mask_stage.rule == "consensus":
            counts = [int((self.query_head.support[self.query_head.bank(k)] > 0).sum()) for k in range(3)]
            CONSOLE.print(f"Mask stage: {sum(counts)} things found (subpart, part, whole: {counts})")
            if self.query_head.num_queries > planned:
                CONSOLE.print(
                    f"Mask stage: more than the {planned} queries planned for; now {self.query_head.num_queries}"
                )
        self.stage_prepared(stage, look, resuming)
        return stage

    # --- evaluation ---------------------------------------------------------------------------------------------------

    def get_image_metrics_and_images(
        self, outputs: dict[str, Tensor], batch: dict[str, Tensor]
    ) -> tuple[dict[str, float], dict[str, Tensor]]:
        """The backbone's figures (LPIPS only when its weights are at hand) and pictures, plus the mask pictures."""
        compute = super().get_image_metrics_and_images  # type: ignore[misc]
        metrics, images = compat.image_metrics(compute, outputs, batch)
        for name, picture in outputs.items():
            if name.startswith(("mask_", "class_map", "relevancy_", "composited_")):
                images[name] = picture.clamp(0, 1)
        metrics = {k: float(v) for k, v in metrics.items() if np.isfinite(float(v))}
        return metrics, images
