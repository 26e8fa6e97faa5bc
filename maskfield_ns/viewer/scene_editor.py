"""The panel's edit buttons on the scene itself: selections in 3D, edits that every picture shows, real exports."""

from __future__ import annotations

from collections.abc import Hashable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from maskfield_ns.editing import edits
from maskfield_ns.editing.answers import Measured
from maskfield_ns.editing.apply import edits_of, set_edits
from maskfield_ns.editing.exporting import export_object
from maskfield_ns.editing.frames import CaptureFrame
from maskfield_ns.editing.selection import Membership
from maskfield_ns.editing.selection import Selection as SceneSelection
from maskfield_ns.editing.selector import Selector
from maskfield_ns.queries.memberships import Memberships
from maskfield_ns.viewer.cache import model_state
from maskfield_ns.viewer.editor import Selection


class ModelEditor:
    """A :class:`~maskfield_ns.viewer.editor.SceneEditor` that edits the scene in 3D.

    Args:
        model: the QueryableModel that is being shown.
        datamanager: of its run: training cameras, and the way back to the capture's coordinates.
        lock: held while the model renders for a selection, since training must not go on meanwhile.
    """

    def __init__(self, model: Any, datamanager: Any, lock: AbstractContextManager | None = None) -> None:
        self.model, self.datamanager = model, datamanager
        self.lock: AbstractContextManager = nullcontext() if lock is None else lock
        self._version = 0
        self._selector: tuple[Hashable, Selector] | None = None

    @property
    def version(self) -> int:
        """Counts edits: views rendered before the last one are out of date."""
        return self._version

    def tint(self, selection: Selection, colour: tuple[int, int, int]) -> str:
        """Recolours a selection (sRGB, 0 to 255)."""
        return self._edit(edits.tint(self._chosen(selection), [c / 255 for c in colour]), "tinted")

    def delete(self, selection: Selection) -> str:
        """Takes a selection out of the scene."""
        return self._edit(edits.delete(self._chosen(selection)), "deleted")

    def undo(self) -> str:
        """Takes the last edit back."""
        shown = edits_of(self.model)
        if not shown:
            return "there is nothing to undo"
        self._show(shown.undone())
        return f"undone, {len(shown) - 1} edits left"

    def export(self, selection: Selection, folder: Path) -> str:
        """Writes object.ply (Gaussians, or points of a field), its measures as boxes.json, and edits if there are."""
        from maskfield_ns.cli import write_json

        chosen = self._chosen(selection)
        with self.lock:
            measured = Measured(chosen, self._select(), CaptureFrame.of(self.datamanager))
            folder.mkdir(parents=True)
            count = export_object(measured, folder / "object.ply")
            write_json(folder / "boxes.json", measured.to_json())
        if shown := edits_of(self.model):
            shown.save(folder / "edits.json")
        return f"{count} {'Gaussians' if self._select().gaussian else 'points'} written to {folder}"

    def paint(self, rgb: Float[Tensor, "H W 3"], view: Memberships) -> Float[Tensor, "H W 3"]:
        """The picture as it is: the scene has been edited."""
        return rgb

    def _chosen(self, selection: Selection) -> SceneSelection:
        with self.lock:
            return self._select().belonging(membership(selection, self.model), selection.name or "selection")

    def _select(self) -> Selector:
        """Looks around in the scene once per state of the model, since training moves things."""
        state = model_state(self.model)
        if self._selector is None or self._selector[0] != state:
            self._selector = state, Selector(self.model, self.datamanager.train_dataset.cameras)
        return self._selector[1]

    def _edit(self, edit: edits.Edit, what: str) -> str:
        self._show(edits_of(self.model).then(edit))
        return what

    def _show(self, shown: edits.EditList) -> None:
        with self.lock:
            set_edits(self.model, shown)
        self._version += 1


def membership(selection: Selection, model: Any) -> Membership:
    """The rule in 3D that outlines in a picture follow (:func:`maskfield_ns.viewer.editor.selection_mask`)."""
    head, rule = model.query_head, model.config.decision
    weights = dict(selection.weights)
    levels = {int(head.levels[query]) for query in weights}
    if len(levels) == 1:
        return Membership(tuple(weights), tuple(weights.values()), 1.0)
    # Levels that have nothing to say for the selection speak against it.
    used = head.valid(rule.min_support, rule.min_share).nonzero()[:, 0].tolist()
    everything = sorted({*used, *weights})
    agreeing = min(rule.levels_agreeing, len(head.levels[everything].unique()))
    return Membership(tuple(everything), tuple(weights.get(query, 0.0) for query in everything), 1.0, agreeing)
