"""Makes a model show edits."""

from __future__ import annotations

from maskfield_ns.editing.edits import EditList
from maskfield_ns.models.contract import AnyModel


def set_edits(model: AnyModel, edits: EditList | None) -> None:
    """Lets a model render its scene with edits, from the next picture on; training is not touched.

    One assignment of a finished object: a render thread sees either the old edits or the new ones.

    Args:
        model: a maskfield model of either kind.
        edits: the list; None or an empty one shows the scene as trained.

    Raises:
        EditError: the edits were made in another run. PlyError, CheckpointError: something inserted cannot be opened.
    """
    if not edits:
        model.edits = None
        return
    if model.backbone == "gaussians":
        from maskfield_ns.editing.gaussians import EditedGaussians

        model.edits = EditedGaussians(edits, model)
    else:
        from maskfield_ns.editing.field import EditedField

        model.edits = EditedField(edits, model)


def edits_of(model: AnyModel) -> EditList:
    """The edits a model shows."""
    holder = model.edits
    return EditList() if holder is None else holder.list
