"""What is computed once per camera: projected, sorted Gaussians in tiles."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from maskfield_ns.splatting.kept import KeptWeights
from maskfield_ns.splatting.tiles import TileLists


@dataclass(frozen=True)
class PreparedView:
    """N Gaussians as one camera sees them: projected, sorted and assigned to tiles. Made by `prepare_view`.

    `radii` [N] are in pixels, 0 for Gaussians that are not drawn; `depths` [N] along the viewing direction.
    """

    width: int
    height: int
    count: int
    radii: Tensor
    depths: Tensor
    lists: TileLists | None  # on a CPU
    kept: KeptWeights | None
    cuda: dict[str, Tensor] | None  # what gsplat's blending wants

    @property
    def device(self) -> torch.device:
        return self.radii.device

    @property
    def nbytes(self) -> int:
        """Memory the prepared view holds, in bytes."""
        parts = [self.radii, self.depths, *(self.cuda or {}).values()]
        return sum(t.nbytes for t in parts) + sum(p.nbytes for p in (self.lists, self.kept) if p)
