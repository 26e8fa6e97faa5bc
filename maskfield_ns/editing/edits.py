"""An immutable list of edits, what it makes of a scene, and the file it is kept in."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from maskfield_ns.errors import EditError, SelectionError
from maskfield_ns.files import read_json, write_json
from maskfield_ns.models.contract import AnyModel
from maskfield_ns.selection.index_codec import Unpacker
from maskfield_ns.selection.selection import FieldSelection, GaussianSelection, Selection, selection_from_json
from maskfield_ns.selection.transform import Similarity

SCHEMA_VERSION = 1
"""Version of the edit file."""
FILE_NAME = "edits.json"
"""The edit file's usual name, beside a run's config.yml."""
MOST_EDITS = 1000
"""In a list."""
MOST_LAYERS, MOST_CHANGES = 1000, 10_000
"""What a list may make of a scene: each duplication of all copies doubles them."""
_LEAST_INDICES, _INDICES_PER_BYTE = 1 << 21, 4
"""A file's selections hold so many Gaussians or cells, or so many per byte, whichever is more: neighbouring indices
pack a thousandfold, scattered ones to a byte each."""

Kind = Literal["tint", "delete", "extract", "move", "duplicate", "insert"]
KINDS: tuple[Kind, ...] = ("tint", "delete", "extract", "move", "duplicate", "insert")


@dataclass(frozen=True, eq=False)
class Edit:
    """One operation. Made by the functions below, which check it."""

    kind: Kind
    selection: Selection | None = None
    """What it applies to; None for an insertion."""
    transform: Similarity | None = None
    """Where a move, duplicate or insertion puts things: scene coordinates to scene coordinates."""
    colour: tuple[float, float, float] | None = None
    """Of a tint, sRGB in 0..1."""
    strength: float = 1.0
    """Of a tint: 0 nothing, 1 the object's hue and saturation are all the tint's."""
    copy: int | None = None
    """Only this copy of the selected things: 0 the originals, k those that edit number k (from 1) made; None: all."""
    source: str | None = None
    """Of an insertion: a .ply of Gaussians, or the config.yml of a field's run."""
    source_selection: Selection | None = None
    """Of an insertion from a run: what is taken from it."""

    def describe(self) -> str:
        """One line for people."""
        name = self.selection.name if self.selection is not None else Path(self.source or "").name
        detail = ""
        if self.kind == "tint" and self.colour is not None:
            detail = f" with ({', '.join(f'{c:.2f}' for c in self.colour)}), strength {self.strength:.2f}"
        if self.transform is not None:
            shift = ", ".join(f"{v:.3f}" for v in self.transform.translation)
            detail = f" by scale {self.transform.scale:.3f}, rotation and translation ({shift})"
        which = "" if self.copy is None else f", copy {self.copy} only"
        return f'{self.kind} "{name}"{detail}{which}'

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        data: dict[str, Any] = {"kind": self.kind, "copy": self.copy}
        if self.selection is not None:
            data["selection"] = self.selection.to_json()
        if self.transform is not None:
            data["transform"] = self.transform.to_json()
        if self.colour is not None:
            data |= {"colour": list(self.colour), "strength": self.strength}
        if self.source is not None:
            data["source"] = self.source
        if self.source_selection is not None:
            data["source_selection"] = self.source_selection.to_json()
        return data

    @classmethod
    def from_json(cls, data: Any, unpack: Unpacker | None = None) -> Edit:
        """The inverse of :meth:`to_json`, checked.

        Args:
            data: plain data.
            unpack: see :func:`maskfield_ns.selection.selection.selection_from_json`.

        Raises:
            EditError: something else.
        """
        if not isinstance(data, dict) or data.get("kind") not in KINDS:
            raise EditError(f"an edit is one of {', '.join(KINDS)}")
        try:
            colour, copy, source = data.get("colour"), data.get("copy"), data.get("source")
            if not (copy is None or type(copy) is int) or not (source is None or isinstance(source, str)):
                raise TypeError("its copy is no whole number, or its source no text")
            edit = cls(
                data["kind"],
                selection_from_json(data["selection"], unpack) if "selection" in data else None,
                Similarity.from_json(data["transform"]) if "transform" in data else None,
                None if colour is None else (float(colour[0]), float(colour[1]), float(colour[2])),
                float(data.get("strength", 1.0)),
                copy,
                source,
                selection_from_json(data["source_selection"], unpack) if "source_selection" in data else None,
            )
        except (TypeError, ValueError, IndexError, KeyError, OverflowError) as error:
            raise EditError(f"an edit of kind {data['kind']} is damaged: {error}") from error
        return _checked(edit)


def tint(selection: Selection, colour: Sequence[float], strength: float = 0.8, copy: int | None = None) -> Edit:
    """Recolours things, keeping their light and dark.

    Args:
        selection: what.
        colour: sRGB in 0..1.
        strength: 0 leaves them as they are, 1 leaves nothing of their own hue.
        copy: see :class:`Edit`; likewise for the others.

    Raises:
        EditError: not a colour, or nothing is selected; likewise for the others.
    """
    if len(colour) != 3:
        raise EditError("a colour has three parts: red, green, blue")
    red, green, blue = (float(c) for c in colour)
    return _checked(Edit("tint", selection, colour=(red, green, blue), strength=float(strength), copy=copy))


def delete(selection: Selection, copy: int | None = None) -> Edit:
    """Takes things out of the scene; what is behind them was never seen and may be a hole."""
    return _checked(Edit("delete", selection, copy=copy))


def extract(selection: Selection, copy: int | None = None) -> Edit:
    """Takes everything else out of the scene."""
    return _checked(Edit("extract", selection, copy=copy))


def move(selection: Selection, transform: Similarity, copy: int | None = None) -> Edit:
    """Moves, rotates and scales things."""
    return _checked(Edit("move", selection, transform, copy=copy))


def duplicate(selection: Selection, transform: Similarity, copy: int | None = None) -> Edit:
    """Puts a copy of things elsewhere."""
    return _checked(Edit("duplicate", selection, transform, copy=copy))


def insert(source: Path | str, transform: Similarity | None = None, selection: Selection | None = None) -> Edit:
    """Puts things of another scene into this one.

    Args:
        source: a .ply of Gaussians (``maskfield export`` writes one per phrase), or a field's run (its config.yml).
        transform: from the other scene's coordinates to this one's.
        selection: what to take from the other run; a .ply is taken whole.
    """
    place = Similarity() if transform is None else transform
    return _checked(Edit("insert", transform=place, source=str(Path(source).resolve()), source_selection=selection))


def _checked(edit: Edit) -> Edit:
    if edit.kind == "insert":
        if not edit.source or edit.transform is None:
            raise EditError("an insertion needs a source and a place")
        if not edit.source.endswith(".ply") and edit.source_selection is None:
            raise EditError(f"say what to take from {edit.source}: a selection made in that run")
        return edit
    if edit.selection is None or edit.selection.empty:
        raise EditError(f"nothing is selected to {edit.kind}")
    if edit.kind in ("move", "duplicate") and edit.transform is None:
        raise EditError(f"a {edit.kind} needs to know where to")
    if edit.kind == "tint":
        numbers = (*(edit.colour or ()), edit.strength)
        if len(numbers) != 4 or not all(math.isfinite(v) and 0 <= v <= 1 for v in numbers):
            raise EditError("a tint needs a colour and a strength, all between 0 and 1")
    if edit.copy is not None and edit.copy < 0:
        raise EditError(f"there is no copy {edit.copy}")
    return edit


# --- what edits make of a scene ---------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Change:
    """One thing done to the matter of a layer."""

    kind: Literal["keep", "remove", "tint"]
    selection: Selection
    colour: tuple[float, float, float] = (0.0, 0.0, 0.0)
    strength: float = 0.0


@dataclass(frozen=True, eq=False)
class Layer:
    """Matter of one source, changed, and put somewhere. A scene as trained is one layer without changes."""

    origin: int
    """0: this scene's own; k: made by edit number k."""
    source: str | None = None
    """Where the matter comes from; None: this scene."""
    changes: tuple[Change, ...] = ()
    """In source coordinates, in order."""
    transform: Similarity = field(default_factory=Similarity)
    """Source to scene coordinates."""


def layers_of(edits: Sequence[Edit]) -> tuple[Layer, ...]:
    """What a list of edits makes of a scene, backbone by backbone the same.

    An edit applies to everything that stems from its selection (or to one copy of it), wherever it is by now.
    """
    layers: list[Layer] = [Layer(0)]
    for number, edit in enumerate(edits, 1):
        if edit.kind == "insert":
            taken = () if edit.source_selection is None else (Change("keep", edit.source_selection),)
            layers.append(Layer(number, edit.source, taken, edit.transform or Similarity()))
            continue
        selection = edit.selection
        assert selection is not None
        result: list[Layer] = []
        for layer in layers:
            if layer.source is not None or (edit.copy is not None and edit.copy != layer.origin):
                # Extraction leaves nothing else; other edits do not reach what is not meant.
                if edit.kind != "extract":
                    result.append(layer)
                continue
            result += _applied(layer, edit, selection, number)
        layers = result
        if len(layers) > MOST_LAYERS or sum(len(layer.changes) for layer in layers) > MOST_CHANGES:
            raise EditError(
                f"edit {number} makes more than {MOST_LAYERS} copies of things, or {MOST_CHANGES} changes to them: "
                "edit one copy (--copy) instead of all"
            )
    return tuple(layers)


def _applied(layer: Layer, edit: Edit, selection: Selection, number: int) -> list[Layer]:
    whole = any(c.kind == "keep" and c.selection is selection for c in layer.changes)
    gone = any(c.kind == "remove" and c.selection is selection for c in layer.changes)
    if gone:
        return [] if edit.kind == "extract" else [layer]
    if edit.kind == "tint":
        assert edit.colour is not None
        change = Change("tint", selection, edit.colour, edit.strength)
        return [replace(layer, changes=(*layer.changes, change))]
    kept = replace(layer, changes=layer.changes if whole else (*layer.changes, Change("keep", selection)))
    if edit.kind == "extract":
        return [kept]
    rest = [] if whole else [replace(layer, changes=(*layer.changes, Change("remove", selection)))]
    if edit.kind == "delete":
        return rest
    assert edit.transform is not None
    moved = replace(kept, transform=edit.transform @ layer.transform)
    if edit.kind == "move":
        return [*rest, moved]
    return [layer, replace(moved, origin=number)]


# --- the list and its file --------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class EditList:
    """Edits of one scene, in order. Immutable: every method returns a new list."""

    edits: tuple[Edit, ...] = ()

    def __post_init__(self) -> None:
        """Joins equal selections, so that what was moved twice is moved as one thing, after reading a file too."""
        known: dict[str, Selection] = {}
        joined = []
        if len(self.edits) > MOST_EDITS:
            raise EditError(f"a list holds {MOST_EDITS} edits at most: bake them into a .ply, or take some back")
        for edit in self.edits:
            if edit.selection is not None:
                key = json.dumps({**edit.selection.to_json(), "name": ""}, sort_keys=True)
                edit = replace(edit, selection=known.setdefault(key, edit.selection))
            joined.append(edit)
        object.__setattr__(self, "edits", tuple(joined))
        object.__setattr__(self, "_layers", layers_of(self.edits))

    def __len__(self) -> int:
        return len(self.edits)

    def __bool__(self) -> bool:
        return bool(self.edits)

    @property
    def layers(self) -> tuple[Layer, ...]:
        """What to render."""
        return self._layers  # type: ignore[attr-defined]

    def then(self, *edits: Edit) -> EditList:
        """One more edit, or several.

        Raises:
            EditError: one names a copy that no edit before it made, or they are too many.
        """
        every = (*self.edits, *edits)
        made = {0} | {n for n, e in enumerate(every, 1) if e.kind == "duplicate"}
        for number, edit in enumerate(every, 1):
            if edit.copy is not None and (edit.copy not in made or edit.copy >= number):
                raise EditError(f"there is no copy {edit.copy}: edit {edit.copy} is no duplication of this list")
        return EditList(every)

    def undone(self) -> EditList:
        """Without the last edit.

        Raises:
            EditError: there is none.
        """
        if not self.edits:
            raise EditError("there is nothing to undo")
        return EditList(self.edits[:-1])

    def check(self, model: AnyModel) -> None:
        """Whether the edits fit a model.

        Raises:
            EditError: they were made in another run, or for the other backbone.
        """
        gaussian = model.backbone == "gaussians"
        for number, edit in enumerate(self.edits, 1):
            selection = edit.selection
            if selection is None:
                if (edit.source or "").endswith(".ply") != gaussian:
                    what = "a .ply of Gaussians" if gaussian else "another run of maskfield"
                    raise EditError(f"edit {number} inserts {edit.source}: this scene can only take {what}")
                continue
            if isinstance(selection, GaussianSelection) != gaussian:
                raise EditError(f"edit {number} was made in a scene of the other kind (Gaussians or field)")
            if isinstance(selection, FieldSelection):
                most = model.query_head.num_queries
                if any(max(term.rule.queries) >= most for term in selection.terms):
                    raise EditError(f"edit {number} was made in another run: this scene has {most} queries")
            if (
                isinstance(selection, GaussianSelection)
                and model.backbone == "gaussians"
                and selection.count != len(model.gauss_params["means"])
            ):
                count = len(model.gauss_params["means"])
                raise EditError(
                    f"edit {number} was made in a scene of {selection.count} Gaussians, this one has {count}: "
                    "another run, or the training has gone on since; make the edit again"
                )

    def save(self, path: Path, run: dict[str, Any] | None = None) -> None:
        """Writes the edit file at once, never half.

        Args:
            path: of the file.
            run: what it belongs to, for people.

        Raises:
            EditError: the file cannot be written, or its selections are larger than one may hold.
        """
        data: dict[str, Any] = {
            "format": "maskfield edits",
            "schema_version": SCHEMA_VERSION,
            "run": run or {},
            "edits": [edit.to_json() for edit in self.edits],
        }
        unpack = Unpacker(_most_indices(len(json.dumps(data))))
        for item in data["edits"]:  # what is saved can be read again
            Edit.from_json(item, unpack)
        write_json(path, data, EditError)

    @classmethod
    def load(cls, path: Path) -> EditList:
        """Reads an edit file.

        Raises:
            EditError: there is none, or it is damaged or of another version.
        """
        data = read_json(path, "the edits", EditError)
        if not isinstance(data, dict) or data.get("format") != "maskfield edits":
            raise EditError(f"{path} is no edit file of maskfield-ns")
        version = data.get("schema_version")
        if version != SCHEMA_VERSION:
            raise EditError(f"{path} has version {version}, this maskfield-ns reads version {SCHEMA_VERSION}")
        if not isinstance(data.get("edits"), list):
            raise EditError(f"{path} holds no list of edits")
        if len(data["edits"]) > MOST_EDITS:
            raise EditError(f"{path} holds {len(data['edits'])} edits; {MOST_EDITS} is the most that is read")
        unpack, edits = Unpacker(_most_indices(path.stat().st_size)), []
        for number, item in enumerate(data["edits"], 1):
            try:
                edits.append(Edit.from_json(item, unpack))
            except (EditError, SelectionError) as error:
                raise EditError(f"{path}, edit {number}: {error}") from error
        try:
            return cls().then(*edits)
        except EditError as error:
            raise EditError(f"{path}: {error}") from error


def _most_indices(file_bytes: int) -> int:
    """How many indices the selections of an edit file of so many bytes may hold together."""
    return max(_LEAST_INDICES, _INDICES_PER_BYTE * file_bytes)


def tint_matrix(colour: Sequence[float], strength: float) -> Float[np.ndarray, "3 3"]:
    """The linear map of sRGB colours that a tint is: towards the tint in the colour's own brightness.

    Linear, so that it acts on spherical harmonics as on colours and a tinted thing looks alike from everywhere.

    Args:
        colour: the tint, sRGB in 0..1.
        strength: 0 (nothing) to 1 (no hue of its own left).
    """
    luma = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
    paint = np.asarray(colour, np.float64)
    # Relative to the tint's own brightness; a nearly black tint may darken.
    shade = paint / max(float(paint @ luma), 0.25)
    return (1 - strength) * np.eye(3) + strength * np.outer(shade, luma)
