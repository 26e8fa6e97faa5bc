"""Options of ``maskfield edit``: one command per edit, and those that take edits back, list and render them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Union

import tyro

from maskfield_ns.commands.options import (
    Printing,
    Result,
    Target,
    Vector,
    check_file,
    check_numbers,
    check_run,
)
from maskfield_ns.errors import EditError

COLOR_ARGUMENT = "colour"
"""The tint's color among the arguments of :meth:`maskfield_ns.Scene.edit`."""


@dataclass
class Files:
    """Files of the edited scene."""

    bake: Path | None = None
    """Write the edited Gaussians to this .ply file."""
    preview: Path | None = None
    """Write a rendered image of the edited scene to this .png file."""

    def check(self) -> None:
        """Refuses other kinds of files.

        Raises:
            MaskfieldError: says which.
        """
        check_file(self.bake, "--bake", (".ply",))
        check_file(self.preview, "--preview", (".png", ".jpg", ".jpeg"))


@dataclass
class Placement:
    """Where the object goes; rotation and scale are about its center."""

    translation: Vector | None = None
    """Shift along x, y, z, in scene units."""
    at: Vector | None = None
    """Point in scene coordinates that the object is put on (its lowest point); instead of a translation."""
    rotation: float = 0.0
    """Angle of rotation in degrees."""
    axis: Vector = (0.0, 0.0, 1.0)
    """Axis of the rotation; default: up."""
    scale: float = 1.0
    """Factor of size; 2 doubles the object."""

    def check(self) -> None:
        """Refuses what places nothing.

        Raises:
            MaskfieldError: says what.
        """
        if self.translation is not None and self.at is not None:
            raise EditError("give either --translation or --at, not both")
        for name in ("translation", "at", "axis"):
            check_numbers(f"--{name}", getattr(self, name))
        check_numbers("--rotation", [self.rotation])
        check_numbers("--scale", [self.scale], 1e-6, 1e6)
        if not any(self.axis):
            raise EditError("--axis must not be 0 0 0")

    @property
    def given(self) -> bool:
        """Whether the object is moved at all."""
        return self.translation is not None or self.at is not None or self.rotation != 0 or self.scale != 1

    def arguments(self) -> dict[str, Any]:
        """Of :meth:`maskfield_ns.Scene.edit`."""
        return {name: getattr(self, name) for name in ("translation", "at", "rotation", "axis", "scale")}


@dataclass
class _Run:
    kind: ClassVar[str] = ""
    """Of the edit; empty for what is none."""
    takes_back: ClassVar[Literal["", "last", "all"]] = ""
    """Which edits are taken back."""

    load_config: Path
    """config.yml of the run, or the folder that holds it."""

    def check(self) -> None:
        """Refuses wrong values before anything is loaded.

        Raises:
            MaskfieldError: says which.
        """
        check_run(self.load_config)

    def arguments(self) -> dict[str, Any]:
        """Of :meth:`maskfield_ns.Scene.edit`, besides kind and selection."""
        return {}


@dataclass
class EditCommand(_Run):
    """One edit of a trained run. Subclasses name it first, so that its groups of options come last in help texts."""

    files: Files = field(default_factory=Files)
    printing: Printing = field(default_factory=Printing)

    def check(self) -> None:
        self.files.check()
        super().check()

    @property
    def selected(self) -> Target:
        """Object to edit."""
        return getattr(self, "target", None) or Target()

    def run(self) -> Result:
        """Edits."""
        from maskfield_ns.commands.edit import edit

        return edit(self)


@dataclass
class _OfObject(_Run):
    target: Target = field(default_factory=Target)
    copy: int | None = None
    """Copy to edit: 0 the original, k the one that edit number k made; default: all."""

    def check(self) -> None:
        self.target.check()
        if not self.target.given:
            raise EditError(f"say what to {self.kind}: --text or --queries")
        if self.copy is not None and self.copy < 0:
            raise EditError("--copy takes a number from 0 on")
        super().check()

    def arguments(self) -> dict[str, Any]:
        return {} if self.copy is None else {"copy": self.copy}


@dataclass
class _Placed(_OfObject):
    placement: Placement = field(default_factory=Placement)

    def check(self) -> None:
        self.placement.check()
        if not self.placement.given:
            raise EditError(f"a {self.kind} needs to know where to: --translation, --at, --rotation or --scale")
        super().check()

    def arguments(self) -> dict[str, Any]:
        return super().arguments() | self.placement.arguments()


@dataclass
class Tint(EditCommand, _OfObject):
    """Recolor an object, keeping its light and dark."""

    kind = "tint"
    color: Vector | None = None
    """Tint color: red, green and blue, each in [0, 1]."""
    strength: float = 0.8
    """Tint strength in [0, 1]: 0 changes nothing, 1 leaves no hue of the object's own."""

    def check(self) -> None:
        if self.color is None:
            raise EditError("a tint needs a color: --color RED GREEN BLUE, each in [0, 1]")
        check_numbers("--color", self.color, 0, 1)
        check_numbers("--strength", [self.strength], 0, 1)
        super().check()

    def arguments(self) -> dict[str, Any]:
        return super().arguments() | {COLOR_ARGUMENT: self.color, "strength": self.strength}


@dataclass
class Delete(EditCommand, _OfObject):
    """Remove an object. What is behind it was never seen and may be a hole."""

    kind = "delete"


@dataclass
class ExtractObject(EditCommand, _OfObject):
    """Keep an object and remove everything else."""

    kind = "extract"


@dataclass
class Move(EditCommand, _Placed):
    """Move, turn and scale an object."""

    kind = "move"


@dataclass
class Duplicate(EditCommand, _Placed):
    """Put a copy of an object somewhere else."""

    kind = "duplicate"


@dataclass
class _Inserted(_Run):
    source: Path | None = None
    """A .ply file of Gaussians, or config.yml of another run (--text or --queries then select its object)."""
    target: Target = field(default_factory=Target)
    placement: Placement = field(default_factory=Placement)

    def check(self) -> None:
        if self.source is None:
            raise EditError("say what to insert: --source FILE.ply, or config.yml of another run")
        if not self.source.exists():
            raise EditError(f"there is no {self.source} to insert")
        self.target.check()
        self.placement.check()
        super().check()

    def arguments(self) -> dict[str, Any]:
        return {"source": self.source} | self.placement.arguments()


@dataclass
class Insert(EditCommand, _Inserted):
    """Put Gaussians of a .ply file, or an object of another radiance field's run, into the scene."""

    kind = "insert"


@dataclass
class Undo(EditCommand):
    """Take the last edit back."""

    takes_back = "last"


@dataclass
class Clear(EditCommand):
    """Take all edits back."""

    takes_back = "all"


@dataclass
class ListEdits(EditCommand):
    """List the edits of a run; with --bake or --preview also write the edited scene."""


Action = Union[  # noqa: UP007 (subcommands are annotated members)
    Annotated[Tint, tyro.conf.subcommand("tint")],
    Annotated[Delete, tyro.conf.subcommand("delete")],
    Annotated[ExtractObject, tyro.conf.subcommand("extract")],
    Annotated[Move, tyro.conf.subcommand("move")],
    Annotated[Duplicate, tyro.conf.subcommand("duplicate")],
    Annotated[Insert, tyro.conf.subcommand("insert")],
    Annotated[Undo, tyro.conf.subcommand("undo")],
    Annotated[Clear, tyro.conf.subcommand("clear")],
    Annotated[ListEdits, tyro.conf.subcommand("list")],
]


@dataclass
class Edit:
    """Edit a trained scene without training; edits are stored beside the run (edits.json) and shown by ns-viewer."""

    action: Action
    """Edit to make, or what to do with earlier ones."""

    @property
    def printing(self) -> Printing:
        """Of the action."""
        return self.action.printing

    def check(self) -> None:
        """As the action."""
        self.action.check()

    def run(self) -> Result:
        """As the action."""
        return self.action.run()
