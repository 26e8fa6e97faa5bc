"""Text embeddings for a model: loaded on first use, remembered per phrase, outside the module tree."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from maskfield_ns.errors import CheckpointError
from maskfield_ns.foundation.base import EmbedderConfig
from maskfield_ns.foundation.protocols import RegionEmbedder

MAX_CHARACTERS = 2000
"""Of a phrase; text models see 16 to 77 tokens, none of them longer than 25 characters."""
_MOST_IMAGES = 256
"""Embeddings of images that are remembered."""


class TextEncoder:
    """Phrases to unit vectors with the text model a run was trained with; any thread may ask.

    Args:
        config: the run's embedder; None for runs that cannot be queried by text.
    """

    def __init__(self, config: EmbedderConfig | None) -> None:
        self.config = config
        self._embedder: RegionEmbedder | None = None
        self._known: dict[str, np.ndarray] = {}
        self._images: dict[str, np.ndarray] = {}
        self._lock = threading.Lock()

    def __call__(self, phrases: Sequence[str]) -> Float[Tensor, "T C"]:
        """Unit embeddings of phrases, taken verbatim.

        Raises:
            CheckpointError: the run has no text model. WeightsError: its weights cannot be had.
        """
        with self._lock:
            missing = [p for p in dict.fromkeys(phrases) if p not in self._known]
            embedder = self._loaded() if missing or not phrases else None
            if missing and embedder is not None:
                # Tokenizers take time that grows with the square of a word's length; the models see its beginning.
                short = [p if len(p) <= MAX_CHARACTERS else " ".join(p.split())[:MAX_CHARACTERS] for p in missing]
                self._known.update(zip(missing, embedder.embed_texts(short), strict=True))
            if embedder is not None and not phrases:
                return torch.zeros(0, embedder.dim)
            return torch.from_numpy(np.stack([self._known[p] for p in phrases]))

    def image(self, image: UInt8[np.ndarray, "H W 3"]) -> Float[Tensor, " C"]:
        """Unit embedding of an image, in the space of the run's queries.

        Raises:
            CheckpointError: the run has no text model, or one for text only. WeightsError: its weights cannot be had.
        """
        key = hashlib.sha256(repr(image.shape).encode() + image.tobytes()).hexdigest()
        with self._lock:
            if key not in self._images:
                embedder = self._loaded()
                if not hasattr(embedder, "embed_image"):
                    raise CheckpointError("this run's model embeds text only: ask with words")
                if len(self._images) >= _MOST_IMAGES:
                    self._images.pop(next(iter(self._images)))
                self._images[key] = embedder.embed_image(image)  # type: ignore[attr-defined]
            return torch.from_numpy(self._images[key])

    def _loaded(self) -> RegionEmbedder:
        if self._embedder is None:
            if self.config is None:
                raise CheckpointError("this run does not say which text model it was trained with")
            self._embedder = self.config.setup("cpu")
        return self._embedder
