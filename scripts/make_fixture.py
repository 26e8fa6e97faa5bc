"""Converts a labelled capture into a benchmark's on-disk format, quirks included.

    python scripts/make_fixture.py lerf-ovs --capture CAPTURE --output OUT
    python scripts/make_fixture.py 3d-ovs --capture CAPTURE --output OUT --frames 24 --scale 0.25

The capture is a nerfstudio capture without lens distortion, with gt/instance/*.png and gt/labels.json. It is only read.
The figures of a method on such a scene say nothing about the benchmark; that parsers and evaluators agree on it does.
"""

from __future__ import annotations

import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro
from fixture_formats import DATAPARSERS, WRITERS, read_source

from maskfield_ns.errors import MaskfieldError


@dataclass
class MakeFixture:
    """What to convert into what."""

    format: tyro.conf.Positional[
        Literal["3d-ovs", "lerf-ovs", "lerf-mask", "replica", "scannet", "mipnerf360", "semantic-nerf"]
    ]
    """Benchmark; semantic-nerf is the other packaging of Replica."""
    capture: Path
    """Labelled capture."""
    output: Path
    """Folder for the scene (and for its labels, where the benchmark keeps them beside it)."""
    frames: int = 0
    """Only the first so many pictures; 0: all."""
    labelled: int = 5
    """How many views get labels in 3D-OVS, LERF-OVS, LERF-Mask and Mip-NeRF360."""
    scale: float = 0.5
    """Of the picture size; 3D-OVS and Mip-NeRF360 add photographs of eight times that."""


def main(args: MakeFixture) -> Path:
    """Writes the scene and says how to train on it."""
    source = read_source(args.capture, args.frames, args.labelled, args.scale)
    if args.output.exists() and any(args.output.iterdir()):
        raise MaskfieldError(f"{args.output} is not empty; a fixture is written from scratch")
    try:
        scene = WRITERS[args.format](source, args.output)
    except BaseException:
        shutil.rmtree(args.output, ignore_errors=True)  # no half a scene
        raise
    print(f"scene: {scene}")
    print(shlex.join(["ns-train", "maskfield-lite", "--data", str(scene), *DATAPARSERS[args.format]]))
    return scene


if __name__ == "__main__":
    try:
        main(tyro.cli(MakeFixture, description=__doc__))
    except MaskfieldError as error:
        sys.exit(f"error: {error}")
