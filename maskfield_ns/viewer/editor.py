"""What the panel's selection and edit buttons act on: a small interface, and a default that needs pictures only."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from maskfield_ns.queries.decision import DecisionRule
from maskfield_ns.queries.memberships import Memberships

_NOTHING = 0.02
"""Weights below this are left out."""


@dataclass(frozen=True)
class Selection:
    """Things chosen by the user; replaced as a whole, never changed.

    A place is selected where the expected weight of what it belongs to is at least 1 (levels pooled as in
    :func:`maskfield_ns.queries.decision.heat_map`).
    """

    weights: tuple[tuple[int, float], ...] = ()
    """(query of the head, weight), by ascending query; 2 makes a place selected that belongs to it by half."""
    name: str = ""
    """What the user called it, or how it came about."""

    @classmethod
    def of(cls, queries: Iterable[int], name: str = "") -> Selection:
        """Some queries as they are."""
        return cls(tuple((query, 2.0) for query in sorted(set(queries))), name)

    @classmethod
    def answering(cls, scores: Float[Tensor, " Q"], rule: DecisionRule, name: str = "") -> Selection:
        """What is outlined as the answer to a phrase (see :func:`maskfield_ns.queries.decision.phrase_masks`)."""
        best = float(scores.max())
        if best < rule.found_threshold:
            return cls()
        weights = (scores / (rule.mask_share * best)).tolist()
        return cls(tuple((query, weight) for query, weight in enumerate(weights) if weight > _NOTHING), name)

    @property
    def queries(self) -> tuple[int, ...]:
        """Queries that are selected as a whole."""
        return tuple(query for query, weight in self.weights if weight >= 1)

    def __bool__(self) -> bool:
        return bool(self.queries)

    def union(self, other: Selection) -> Selection:
        """Both."""
        weights = dict(self.weights)
        for query, weight in other.weights:
            weights[query] = max(weight, weights.get(query, 0.0))
        names = [name for name in (self.name, other.name) if name]
        return Selection(tuple(sorted(weights.items())), " + ".join(dict.fromkeys(names)))

    def minus(self, other: Selection) -> Selection:
        """This without the other."""
        gone = set(other.queries)
        left = Selection(tuple((query, weight) for query, weight in self.weights if query not in gone), self.name)
        return left if left else Selection()


class SceneEditor(Protocol):
    """What the panel needs to edit a scene. Every action returns one line for the user.

    Actions run on the panel's worker thread, one at a time, while the viewer renders on others. Actions raise
    MaskfieldError for what the user can mend.
    """

    @property
    def version(self) -> int:
        """Changes whenever rendering would: views made before are then rendered again."""
        ...

    def tint(self, selection: Selection, colour: tuple[int, int, int]) -> str:
        """Colours a selection (sRGB, 0 to 255)."""
        ...

    def delete(self, selection: Selection) -> str:
        """Removes a selection from the scene."""
        ...

    def undo(self) -> str:
        """Takes the last edit back."""
        ...

    def export(self, selection: Selection, folder: Path) -> str:
        """Writes a selection into a folder that does not exist yet."""
        ...

    def paint(self, rgb: Float[Tensor, "H W 3"], view: Memberships) -> Float[Tensor, "H W 3"]:
        """Last touch on a rendered picture; editors that change the scene itself return it as it is."""
        ...


def selection_mask(view: Memberships, selection: Selection, model: Any) -> Bool[Tensor, "H W"]:
    """Pixels of a view that belong to a selection; a selection of one level only is a matter of that level."""
    head = model.query_head
    weights = torch.zeros(1, head.num_queries, device=head.levels.device)
    for query, weight in selection.weights:
        weights[0, query] = weight
    levels = set(head.levels[weights[0] > 0].tolist())
    level = next(iter(levels)) if len(levels) == 1 else None
    return view.heat(weights, model.config.decision, None if level == -1 else level)[0] >= 1


class PictureEditor:
    """Edits that live in the viewer's pictures: tints, and dark holes where something was deleted.

    Args:
        model: the model that is being shown.
    """

    HOLE = 0.08

    def __init__(self, model: Any) -> None:
        self.model = model
        self._edits: tuple[tuple[Selection, tuple[int, int, int] | None], ...] = ()

    @property
    def version(self) -> int:
        """Painting comes after rendering, so rendered views stay good."""
        return 0

    def tint(self, selection: Selection, colour: tuple[int, int, int]) -> str:
        """Colours a selection (sRGB, 0 to 255)."""
        self._edits = (*self._edits, (selection, colour))
        return "tinted in the pictures"

    def delete(self, selection: Selection) -> str:
        """Leaves a dark hole."""
        self._edits = (*self._edits, (selection, None))
        return "hidden in the pictures"

    def undo(self) -> str:
        """Takes the last edit back."""
        if not self._edits:
            return "there is nothing to undo"
        self._edits = self._edits[:-1]
        return f"undone, {len(self._edits)} edits left"

    def export(self, selection: Selection, folder: Path) -> str:
        """Writes selection.json: the queries and their embeddings' indices in the checkpoint."""
        folder.mkdir(parents=True)
        levels = self.model.query_head.levels[list(selection.queries)].tolist()
        content = {"name": selection.name, "queries": list(selection.queries), "levels": levels}
        content["weights"] = [list(pair) for pair in selection.weights]
        (folder / "selection.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
        return f"written to {folder / 'selection.json'}"

    def paint(self, rgb: Float[Tensor, "H W 3"], view: Memberships) -> Float[Tensor, "H W 3"]:
        """The picture with all edits."""
        for selection, colour in self._edits:
            mask = selection_mask(view, selection, self.model)[..., None]
            if colour is None:
                rgb = torch.where(mask, self.HOLE, rgb)
            else:
                paint = rgb.new_tensor(colour) / 255
                rgb = torch.where(mask, 0.35 * rgb + 0.65 * paint * (0.4 + rgb.mean(-1, keepdim=True)), rgb)
        return rgb.clamp(0, 1)
