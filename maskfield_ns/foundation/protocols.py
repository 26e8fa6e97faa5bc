"""What the rest of the package needs from foundation models: propose masks, embed regions and text.

The two protocols below are all that extraction, training and queries know about SAM, OpenCLIP or anything
else that could take their place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float32, Int8, Int32, UInt8
from torch import Tensor

LEVELS = ("subpart", "part", "whole")
"""Mask granularities, in the order of SAM's three outputs per prompt; a level is stored as an index into this."""


@dataclass(frozen=True)
class MaskProposals:
    """The masks found in one image; M may be 0. Levels overlap each other, and masks of one level may too."""

    masks: Bool[np.ndarray, "M H W"]
    levels: Int8[np.ndarray, " M"]
    """Index into :data:`LEVELS`."""
    scores: Float32[np.ndarray, " M"]
    """Predicted IoU in [0, 1]."""
    stability: Float32[np.ndarray, " M"]
    """SAM's stability score in [0, 1]."""
    boxes: Int32[np.ndarray, "M 4"]
    """Pixel boxes (x0, y0, x1, y1); x1 and y1 are exclusive."""

    def __len__(self) -> int:
        return len(self.masks)


@runtime_checkable
class MaskProposer(Protocol):
    """Finds class-agnostic masks in a picture."""

    def fingerprint(self) -> dict[str, Any]:
        """JSON-serialisable description (name, parameters, checkpoint hash) that changes when the masks would."""
        ...

    def propose(self, image: UInt8[np.ndarray, "H W 3"]) -> MaskProposals:
        """Masks of one RGB picture, at the picture's own resolution."""
        ...


@runtime_checkable
class NamedMaskProposer(MaskProposer, Protocol):
    """A proposer whose masks belong to named images: they come from files, not from pixels."""

    def propose_named(self, image: UInt8[np.ndarray, "H W 3"], name: str) -> MaskProposals:
        """Masks of one RGB image, which the capture gives this name."""
        ...


def propose(proposer: MaskProposer, image: UInt8[np.ndarray, "H W 3"], name: str) -> MaskProposals:
    """Masks of an image from either kind of proposer."""
    if isinstance(proposer, NamedMaskProposer):
        return proposer.propose_named(image, name)
    return proposer.propose(image)


@runtime_checkable
class TextEmbedder(Protocol):
    """Maps phrases into the joint image-text space; the only model a trained run needs for a query."""

    @property
    def dim(self) -> int:
        """C, the size of an embedding."""
        ...

    def fingerprint(self) -> dict[str, Any]:
        """JSON-serialisable description (name, parameters, checkpoint hash) that changes when embeddings would."""
        ...

    def embed_texts(self, texts: list[str]) -> Float32[np.ndarray, "T C"]:
        """Unit-length embeddings of phrases, taken verbatim (no prompt template)."""
        ...


@runtime_checkable
class RegionEmbedder(TextEmbedder, Protocol):
    """Maps image regions into the same space as phrases."""

    def embed_regions(
        self, image: UInt8[np.ndarray, "H W 3"], masks: Bool[np.ndarray, "M H W"]
    ) -> Float32[np.ndarray, "M C"]:
        """Unit-length embeddings of the masked regions of one RGB picture."""
        ...


@runtime_checkable
class DenseEmbedder(TextEmbedder, Protocol):
    """Maps every place of a picture into the same space as phrases."""

    def dense_map(self, image: UInt8[np.ndarray, "H W 3"]) -> Float32[Tensor, "C h w"]:
        """Unit-length features of one RGB picture, at a resolution of the model's own."""
        ...


def mask_boxes(masks: Bool[np.ndarray, "M H W"]) -> Int32[np.ndarray, "M 4"]:
    """Tight boxes (x0, y0, x1, y1), ends exclusive; an empty mask gets (0, 0, 0, 0)."""
    if len(masks) == 0:
        return np.zeros((0, 4), np.int32)
    _, height, width = masks.shape
    rows, columns = np.any(masks, axis=2), np.any(masks, axis=1)
    boxes = np.stack(
        [
            columns.argmax(1),
            rows.argmax(1),
            width - columns[:, ::-1].argmax(1),
            height - rows[:, ::-1].argmax(1),
        ],
        axis=1,
    ).astype(np.int32)
    boxes[~np.any(rows, axis=1)] = 0
    return boxes
