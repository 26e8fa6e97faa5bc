#!/usr/bin/env python
"""One picture for the documentation: what each edit makes of a trained run.

    python scripts/edit_pictures.py --splat RUN --nerf RUN [--text "red mug"] [--output docs/editing.png]
    python scripts/edit_pictures.py --splat RUN --other OTHER_RUN --other-text "blue mug" --output docs/composing.png

The runs are not changed.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from maskfield_ns.pictures.sheets import contact_sheet
from maskfield_ns.scene import Scene


@dataclass
class Args:
    """Trained runs of one capture."""

    splat: Path | None = None
    nerf: Path | None = None
    other: Path | None = None
    """Another run of Gaussians: what ``other_text`` says is put into the first one, shown from three views."""
    other_text: str = "blue mug"
    text: str = "red mug"
    view: int = 0
    """Which held-out view is shown."""
    height: int = 240
    """Of the pictures, pixels; views are enlarged to it."""
    output: Path = Path(__file__).resolve().parents[1] / "docs" / "editing.png"


def row(run: Path, kind: str, args: Args) -> list[tuple[str, np.ndarray]]:
    """A view of a run as trained, and after each edit."""
    scene = Scene.load(run)
    camera = scene.cameras("test")[args.view]
    scale = args.height / int(camera.camera.height.item())
    camera.camera.rescale_output_resolution(scale)
    thing = scene.select(args.text)
    up = scene.measure(thing).aligned_box().size[2]
    aside = (0.0, 0.0, 1.2 * float(up))
    steps = {
        "tint": {"colour": (0.1, 0.35, 1.0)},
        "delete": {},
        "extract": {},
        "move": {"translation": aside, "rotation": 60.0},
        "duplicate": {"translation": aside, "scale": 0.7},
    }
    pictures = [(f"{kind}, as trained", scene.render(camera).rgb)]
    for name, how in steps.items():
        scene.edits = None
        scene.edit(name, thing, **how)
        pictures.append((name, scene.render(camera).rgb))
    return pictures


def composed(run: Path, args: Args) -> list[tuple[str, np.ndarray]]:
    """Three views of a run with a thing of another one, put in front of ``args.text``."""
    assert args.other is not None
    scene, other = Scene.load(run), Scene.load(args.other)
    box = scene.measure(scene.select(args.text)).aligned_box()
    low = box.centre - [0.0, 0.0, box.size[2] / 2]
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "thing.ply"
        other.export(source, other.select(args.other_text))
        scene.edit("insert", source=source, at=low + np.array([0.0, 1.5 * box.size[1], 0.0]))
        cameras = scene.cameras("test")
        shown = [cameras[i] for i in (args.view, len(cameras) // 3, 2 * len(cameras) // 3)]
        return [(camera.name, scene.render(camera).rgb) for camera in shown]


def main(args: Args) -> None:
    """Writes the picture."""
    if args.other is not None and args.splat is not None:
        contact_sheet([composed(args.splat, args)], args.output)
        print(args.output)
        return
    rows = [row(run, kind, args) for run, kind in ((args.splat, "Gaussians"), (args.nerf, "field")) if run is not None]
    contact_sheet(rows, args.output)
    print(args.output)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
