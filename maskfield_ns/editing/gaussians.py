"""Edits of scenes made of Gaussians: rows are left out, recoloured, moved and added, and rendered as any others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from nerfstudio.utils.rich_utils import CONSOLE
from torch import Tensor

from maskfield_ns.editing.edits import Change, EditList, Layer, tint_matrix
from maskfield_ns.errors import EditError
from maskfield_ns.models.contract import GaussianModel
from maskfield_ns.selection.selection import GaussianSelection
from maskfield_ns.selection.transform import Params, transformed
from maskfield_ns.splatting.sh_rotation import C0

_PAINT_LIMIT = 1e-3
"""Colours stay this far from 0 and 1 where they are kept as logits."""


class EditedGaussians:
    """What a model renders instead of its Gaussians: ``model.edits``. A plain holder, in no checkpoint.

    Args:
        edits: the list.
        model: a maskfield-splat model.

    Raises:
        EditError: the edits do not fit the model. PlyError: an inserted .ply cannot be read.
    """

    def __init__(self, edits: EditList, model: GaussianModel) -> None:
        edits.check(model)
        self.list, self.layers = edits, edits.layers
        self._plain = model.config.sh_degree == 0
        self._inserted = {
            layer.source: _from_ply(Path(layer.source), model) for layer in edits.layers if layer.source is not None
        }
        self._count, self._told = len(model.gauss_params["means"]), False
        self._key: Any = None
        self._result: dict[str, Tensor] = {}
        self._sources: Tensor | None = None

    def params(self, own: Params) -> Params:
        """The edited Gaussians; kept until the scene's own change.

        While a training adds and removes Gaussians, edits made before say nothing about them: the scene is then shown
        as it is (an error would end the viewer's render thread).
        """
        if len(own["means"]) != self._count:
            if not self._told:
                CONSOLE.print("Edits are not shown any more: the training has changed the number of Gaussians since.")
            self._told = True
            return own
        key = tuple((tensor.data_ptr(), tensor._version, len(tensor)) for tensor in own.values())
        if key != self._key:
            self._result, self._sources = self._apply(own)
            self._key = key
        return self._result

    def sources(self, own: Params) -> Tensor:
        """Per edited Gaussian the index it has in the scene, or -1 for one that was inserted."""
        shown = self.params(own)
        if shown is own or self._sources is None:
            return torch.arange(len(own["means"]), device=own["means"].device)
        return self._sources

    @torch.no_grad()
    def _apply(self, own: Params) -> tuple[dict[str, Tensor], Tensor]:
        parts, sources = [], []
        for layer in self.layers:
            base = own if layer.source is None else self._inserted[layer.source]
            part, rows = layered(base, layer, self._plain)
            parts.append(part)
            sources.append(rows if layer.source is None else torch.full_like(rows, -1))
        device = own["means"].device
        if not parts:
            return {name: tensor[:0] for name, tensor in own.items()}, torch.zeros(0, dtype=torch.long, device=device)
        joined = {name: torch.cat([part[name].to(device) for part in parts]) for name in own}
        return joined, torch.cat([s.to(device) for s in sources])


@torch.no_grad()
def layered(base: Params, layer: Layer, plain: bool) -> tuple[dict[str, Tensor], Tensor]:
    """The Gaussians of one layer, and the row of ``base`` that each comes from.

    Args:
        base: Gaussians of the layer's source.
        layer: what is done to them.
        plain: colours are logits (``sh_degree`` 0), not spherical harmonics.
    """
    count = len(base["means"])
    shown = np.ones(count, bool)
    tints: list[tuple[np.ndarray, Change]] = []
    for change in layer.changes:
        selection = change.selection
        if not isinstance(selection, GaussianSelection) or selection.count != count:
            raise EditError(f'"{selection.name}" was selected in another scene, or its training has gone on since')
        if change.kind == "keep":
            shown &= selection.mask
        elif change.kind == "remove":
            shown &= ~selection.mask
            shown[selection.fringe] = False
        else:
            tints.append((selection.mask, change))
    rows = torch.from_numpy(shown.nonzero()[0]).to(base["means"].device)
    result = {name: tensor.detach()[rows] for name, tensor in base.items()}
    for mask, change in tints:
        chosen = torch.from_numpy(mask[shown]).to(rows.device)
        _tint(result, chosen, tint_matrix(change.colour, change.strength), plain)
    return transformed(result, layer.transform), rows


def _tint(params: dict[str, Tensor], chosen: Tensor, matrix: np.ndarray, plain: bool) -> None:
    dc, rest = params["features_dc"], params["features_rest"]
    paint = torch.from_numpy(matrix).to(dc)
    if plain:
        colours = (torch.sigmoid(dc[chosen]) @ paint.T).clamp(_PAINT_LIMIT, 1 - _PAINT_LIMIT)
        dc[chosen] = torch.logit(colours)
        return
    offset = (paint.sum(dim=1) - 1) * 0.5 / C0  # harmonics are relative to mid grey, and the tint acts on colours
    dc[chosen] = dc[chosen] @ paint.T + offset
    rest[chosen] = rest[chosen] @ paint.T


def _from_ply(path: Path, model: GaussianModel) -> dict[str, Tensor]:
    """Gaussians of a file in the form of a model's own."""
    from maskfield_ns.selection.ply import read_gaussians

    read = read_gaussians(path)
    own = model.gauss_params
    device, count = own["means"].device, len(read["means"])
    wanted = own["features_rest"].shape[1]
    rest = read["features_rest"][:, :wanted]
    rest = np.concatenate([rest, np.zeros((count, wanted - rest.shape[1], 3), np.float32)], axis=1)
    dc = read["features_dc"]
    if model.config.sh_degree == 0:
        colours = np.clip(0.5 + C0 * dc, _PAINT_LIMIT, 1 - _PAINT_LIMIT)
        dc = np.log(colours / (1 - colours))
    arrays = {**read, "features_dc": dc, "features_rest": rest}
    tensors = {k: torch.from_numpy(np.ascontiguousarray(arrays[k])).float() for k in arrays if k in own}
    # Things of another scene mean nothing to this scene's queries.
    tensors["mask_features"] = torch.zeros(count, own["mask_features"].shape[1])
    return {name: tensors[name].to(device) for name in own}
