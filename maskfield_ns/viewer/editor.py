"""The panel's edit buttons: selections in 3D, edits that every picture shows, files in the run's folder."""

from __future__ import annotations

import secrets
from collections.abc import Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from maskfield_ns.answers.answer import Chosen
from maskfield_ns.editing import edits
from maskfield_ns.editing.build import inserted_points, placement
from maskfield_ns.editing.show import edits_of, set_edits
from maskfield_ns.errors import EditError
from maskfield_ns.models.contract import AnyModel
from maskfield_ns.runs import write_edited_config
from maskfield_ns.selection.coordinates import UP, CaptureCoordinates
from maskfield_ns.selection.export import boxes_json, export_object
from maskfield_ns.selection.measure import Measurement
from maskfield_ns.selection.selection import Selection
from maskfield_ns.selection.selector import Selector
from maskfield_ns.selection.transform import Similarity, axis_rotation
from maskfield_ns.viewer.cache import model_state

CONFIG_NAME = "config.yml"
MOST_BYTES = 500_000_000
"""Of a .ply that somebody uploads."""


class SceneEditor:
    """Edits a scene in 3D for the panel. Every action returns one line for the user.

    Actions run on the panel's worker thread, one at a time, while the viewer renders on others. They raise
    MaskfieldError for what the user can mend.

    Args:
        model: the QueryableModel that is being shown.
        datamanager: of its run: training cameras, and the way back to the capture's coordinates.
        folder: of the run: exports, uploads and saved edits go there.
        lock: held while the model renders for a selection, since training must not go on meanwhile.
    """

    def __init__(
        self, model: AnyModel, datamanager: Any, folder: Path, lock: AbstractContextManager | None = None
    ) -> None:
        self.model, self.datamanager, self.folder = model, datamanager, folder
        self.lock: AbstractContextManager = nullcontext() if lock is None else lock
        self._version = 0
        self._selector: tuple[Hashable, Selector] | None = None

    @property
    def version(self) -> int:
        """Counts edits: views rendered before the last one are out of date."""
        return self._version

    # --- edits --------------------------------------------------------------------------------------------------------

    def tint(self, selection: Chosen, colour: Sequence[int]) -> str:
        """Recolours a selection (sRGB, 0 to 255)."""
        return self._edit(edits.tint(self._chosen(selection), [c / 255 for c in colour]), "tinted")

    def delete(self, selection: Chosen) -> str:
        """Takes a selection out of the scene."""
        return self._edit(edits.delete(self._chosen(selection)), "deleted")

    def extract(self, selection: Chosen) -> str:
        """Takes everything else out of the scene."""
        return self._edit(edits.extract(self._chosen(selection)), "extracted, the rest is hidden")

    def move(self, selection: Chosen, shift: Sequence[float], turn: float, scale: float) -> str:
        """Turns and scales a selection about its own centre, then shifts it.

        Args:
            selection: what.
            shift: scene units.
            turn: degrees about the upward axis.
            scale: 1 keeps the size.
        """
        chosen = self._chosen(selection)
        return self._edit(edits.move(chosen, self._transform(chosen, shift, turn, scale)), "moved")

    def duplicate(self, selection: Chosen, shift: Sequence[float], turn: float, scale: float) -> str:
        """Puts a copy of a selection elsewhere; arguments as for :meth:`move`."""
        chosen = self._chosen(selection)
        return self._edit(edits.duplicate(chosen, self._transform(chosen, shift, turn, scale)), "duplicated")

    def insert(self, content: bytes, shift: Sequence[float], turn: float, scale: float) -> str:
        """Puts the Gaussians of a .ply file into the scene, at their own place turned, scaled and shifted.

        The file is kept in the run's folder, since saved edits refer to it.

        Raises:
            PlyError: it is no .ply of Gaussians. EditError: too large, or the scene is a radiance field.
        """
        if self.model.backbone != "gaussians":
            raise EditError("a radiance field takes no Gaussians: maskfield edit inserts things of other runs")
        if len(content) > MOST_BYTES:
            raise EditError(f"the file has more than {MOST_BYTES // 10**6} MB")
        uploads = self.folder / "maskfield_inserted"
        uploads.mkdir(parents=True, exist_ok=True)
        path = uploads / f"{secrets.token_hex(8)}.ply"
        path.write_bytes(content)
        try:
            place = placement(inserted_points(path, None), shift, axis_rotation(UP, turn), scale, None)
            return self._edit(edits.insert(path, place), "inserted")
        except Exception:
            path.unlink()
            raise

    def undo(self) -> str:
        """Takes the last edit back."""
        shown = edits_of(self.model)
        if not shown:
            return "there is nothing to undo"
        self._show(shown.undone())
        return f"undone, {len(shown) - 1} edits left"

    def save(self) -> str:
        """Writes edits.json and, where the run has been saved, the config that shows it in nerfstudio's commands."""
        shown = edits_of(self.model)
        shown.save(self.folder / edits.FILE_NAME, {"config": CONFIG_NAME})
        if not (self.folder / CONFIG_NAME).exists():
            return f"{len(shown)} edits kept in {self.folder / edits.FILE_NAME}"
        path = write_edited_config(self.folder / CONFIG_NAME, self.folder / edits.FILE_NAME)
        return f"{len(shown)} edits kept: ns-render and ns-viewer show them with --load-config {path}"

    # --- files --------------------------------------------------------------------------------------------------------

    def export(self, selection: Chosen, folder: Path) -> str:
        """Writes object.ply (Gaussians, or points of a field), its measures as boxes.json, and edits if there are."""
        from maskfield_ns.files import write_json

        chosen = self._chosen(selection)
        with self.lock:
            measured = Measurement(chosen, self._select(), CaptureCoordinates.of(self.datamanager))
            folder.mkdir(parents=True)
            count = export_object(measured, folder / "object.ply")
            run = {"config": str(self.folder / CONFIG_NAME)}
            write_json(folder / "boxes.json", boxes_json([measured], measured.frame, run))
        if shown := edits_of(self.model):
            shown.save(folder / edits.FILE_NAME)
        return f"{count} {'Gaussians' if self._select().gaussian else 'points'} written to {folder}"

    # --- selections in 3D ---------------------------------------------------------------------------------------------

    def _chosen(self, selection: Chosen) -> Selection:
        with self.lock:
            return self._select().select_chosen(selection)

    def _transform(self, chosen: Selection, shift: Sequence[float], turn: float, scale: float) -> Similarity:
        if not any(shift) and turn == 0 and scale == 1:
            raise EditError("say where to: a shift, a turn or another size")
        with self.lock:
            points = Measurement(chosen, self._select(), CaptureCoordinates.of(self.datamanager)).cloud.points
        return placement(points, shift, axis_rotation(UP, turn), scale, None)

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
