"""What a datamanager tells the model and the evaluation about a run's data, handed over in nerfstudio's metadata."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maskfield_ns.data.mask_views import MaskViews
    from maskfield_ns.data.undistortion import Undistortion
    from maskfield_ns.foundation.base import EmbedderConfig, ProposerConfig

_KEY = "maskfield"


@dataclass(frozen=True)
class RunInfo:
    """Facts about the data of a run. nerfstudio hands a model the train dataset's ``metadata``; this is our entry."""

    mask_views: MaskViews | None = None
    """Targets of the training views while training; None in an opened run, which needs neither cache nor proposer."""
    mask_start: int | None = None
    """First step of the mask stage; None: there is none."""
    proposer: ProposerConfig | None = None
    """What proposed the masks."""
    embedder: EmbedderConfig | None = None
    """What embedded masks and embeds phrases; None: the run cannot be asked with words."""
    capture_dir: Path | None = None
    """Folder of the capture, where labels are."""
    train_image_names: tuple[str, ...] = ()
    """Name of each training image as labels know it, by ``image_idx``."""
    eval_image_names: tuple[str, ...] = ()
    """Name of each held-out image as labels know it, by ``image_idx``."""
    eval_undistortions: tuple[Undistortion | None, ...] = ()
    """Per held-out image what was done to its pixels; empty: images are used as they were photographed."""

    @property
    def embedding_dim(self) -> int | None:
        """C of the cached embeddings while training; None in an opened run (a checkpoint knows its own)."""
        return None if self.mask_views is None else self.mask_views.embedding_dim

    @property
    def eval_views(self) -> dict[str, Undistortion | None]:
        """By name of a held-out image, what was done to its pixels."""
        done = self.eval_undistortions or (None,) * len(self.eval_image_names)
        return dict(zip(self.eval_image_names, done, strict=True))

    def publish(self, metadata: dict[str, Any]) -> None:
        """Puts this where nerfstudio hands it over."""
        metadata[_KEY] = self

    @classmethod
    def of(cls, metadata: Mapping[str, Any] | None) -> RunInfo:
        """What a datamanager of ours has published; empty where none has."""
        found = (metadata or {}).get(_KEY)
        return found if isinstance(found, cls) else cls()
