"""Several mask proposers as one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8

from maskfield_ns.foundation.filtering import concatenate, distinct_from, select
from maskfield_ns.foundation.protocols import LEVELS, MaskProposals, MaskProposer


class MergedProposer:
    """The masks of all sources; of near-duplicates on one level the earlier source's mask stays.

    Scores of different sources are not comparable (a predicted IoU, a contrast), so the order of the sources decides
    between them, never the scores.

    Args:
        sources: proposers, the most trusted first.
        overlap_thresh: IoU with a mask of an earlier source and the same level above which a mask is a duplicate.
    """

    def __init__(self, sources: Sequence[MaskProposer], overlap_thresh: float = 0.8) -> None:
        self.sources = tuple(sources)
        self.overlap_thresh = overlap_thresh

    def fingerprint(self) -> dict[str, Any]:
        """JSON-serialisable description that changes when the masks would."""
        return {
            "name": "merged",
            "revision": 1,
            "sources": [source.fingerprint() for source in self.sources],
            "parameters": {"overlap_thresh": self.overlap_thresh},
        }

    def propose(self, image: UInt8[np.ndarray, "H W 3"]) -> MaskProposals:
        """Masks of one RGB picture at its own resolution, source by source."""
        merged = self.sources[0].propose(image)
        for source in self.sources[1:]:
            more = source.propose(image)
            keep = np.zeros(len(more), bool)
            for level in range(len(LEVELS)):
                ours, theirs = more.levels == level, merged.levels == level
                keep[ours] = distinct_from(
                    torch.from_numpy(more.masks[ours]), torch.from_numpy(merged.masks[theirs]), self.overlap_thresh
                ).numpy()
            merged = concatenate([merged, select(more, keep)])
        return merged
