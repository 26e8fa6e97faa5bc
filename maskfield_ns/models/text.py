"""Text embeddings for a model: loaded on first use, remembered per phrase, outside the module tree."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from maskfield_ns.errors import CheckpointError
from maskfield_ns.foundation.config import EmbedderConfig
from maskfield_ns.foundation.protocols import TextEmbedder


class TextEncoder:
    """Phrases to unit vectors with the text model a run was trained with.

    Args:
        config: the run's embedder; None for runs that cannot be queried by text.
    """

    def __init__(self, config: EmbedderConfig | None) -> None:
        self.config = config
        self._embedder: TextEmbedder | None = None
        self._known: dict[str, np.ndarray] = {}

    def __call__(self, phrases: Sequence[str]) -> Float[Tensor, "T C"]:
        """Unit embeddings of phrases, taken verbatim.

        Raises:
            CheckpointError: the run has no text model. WeightsError: its weights cannot be had.
        """
        missing = [p for p in dict.fromkeys(phrases) if p not in self._known]
        if missing or self._embedder is None:
            if self._embedder is None:
                if self.config is None:
                    raise CheckpointError("this run does not say which text model it was trained with")
                self._embedder = self.config.setup("cpu")
            if missing:
                self._known.update(zip(missing, self._embedder.embed_texts(missing), strict=True))
        if not phrases:
            return torch.zeros(0, self._embedder.dim)
        return torch.from_numpy(np.stack([self._known[p] for p in phrases]))
