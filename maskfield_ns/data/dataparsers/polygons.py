"""LERF-OVS and Mip-NeRF360 with GAGS's labels: a COLMAP model, and polygon labels in a folder beside the scene."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from nerfstudio.plugins.registry_dataparser import DataParserSpecification
from PIL import Image

from maskfield_ns.data import layouts
from maskfield_ns.data.dataparsers import colmap
from maskfield_ns.data.dataparsers.common import BenchmarkDataParser, BenchmarkDataParserConfig, SceneFiles
from maskfield_ns.errors import BenchmarkError

_THUMBNAIL = (48, 36)
_ALIKE = 12.0
"""Mean difference of two thumbnails, in grey levels, below which they show the same picture."""


@dataclass
class LerfOvsDataParserConfig(BenchmarkDataParserConfig):
    """LERF-OVS: LERF scenes with LangSplat's labels."""

    _target: type = field(default_factory=lambda: LerfOvsDataParser)
    """Target class to instantiate."""
    data: Path = Path()
    """Folder of one scene, SCENE: images/frame_00001.jpg ..., sparse/0 (COLMAP), and beside it
    ../label/SCENE/frame_XXXXX.json (polygons, one file per labelled frame; a .jpg of the same stem may lie there).
    Labelled frames belong to images by file stem. The published protocol trains on the labelled frames and scores at
    full size."""
    match: Literal["stem", "number", "auto"] = "stem"
    """How labelled frames find their images. stem: by equal file stems. number: frame_00012 is the 12th registered
    image by name, which is verified where the label folder has the frame's .jpg. auto: stem, or else number with
    verification."""


@dataclass
class MipNerf360DataParserConfig(LerfOvsDataParserConfig):
    """Mip-NeRF360 with GAGS's labels."""

    _target: type = field(default_factory=lambda: MipNerf360DataParser)
    """Target class to instantiate."""
    data: Path = Path()
    """Folder of one scene, SCENE: images/ (images_2/ ...), sparse/0 (COLMAP), and beside it
    ../label/SCENE/frame_XXXXX.json (and .jpg). How the released labels are numbered is not established: they are
    matched by file stem, or else frame_00012 is taken for the 12th image by name if its .jpg shows the same picture.
    The published protocol trains on the labelled frames. Choose the downscale factor nearest to 1080 pixels."""
    match: Literal["stem", "number", "auto"] = "auto"
    """How labelled frames find their images. stem: by equal file stems. number: frame_00012 is the 12th registered
    image by name, which is verified where the label folder has the frame's .jpg. auto: stem, or else number with
    verification."""


class LerfOvsDataParser(BenchmarkDataParser):
    """See the config."""

    config: LerfOvsDataParserConfig
    protocol = "lerf-ovs"

    def _read_scene(self) -> SceneFiles:
        data = self.config.data
        shots = colmap.read_shots(data / "sparse" / "0", data / "images")
        labels = self.config.labels or data.resolve().parent / "label" / data.resolve().name
        names = [path.stem for path in layouts.polygon_files(labels)]
        images, notes = [shot.image for shot in shots], []
        stems = {path.stem for path in images}
        if self.config.match == "stem" or (self.config.match == "auto" and all(name in stems for name in names)):
            views = layouts.by_stem(names, images, "labelled frames", data / "images")
        else:
            views = _by_number(names, images, labels, verified_only=self.config.match == "auto")
            notes.append(f"labelled frames are matched by number: {names[0]} is {views[names[0]].name}")
        return SceneFiles(
            shots,
            {image.stem: name for name, image in views.items()},
            labels,
            held_out=False,
            points=colmap.read_points(data / "sparse" / "0"),
            notes=notes,
        )


class MipNerf360DataParser(LerfOvsDataParser):
    """See the config."""

    protocol = "mipnerf360"


def _by_number(names: list[str], images: list[Path], labels: Path, verified_only: bool) -> dict[str, Path]:
    """Frame number n is the n-th image by name; where the label folder has the picture, it must look the same.

    Raises:
        BenchmarkError: no number in a name, no such image, another picture, or no picture although one is demanded.
    """
    found = {}
    for name in names:
        number = layouts.number_in(name)
        if number is None or not 1 <= number <= len(images):
            raise BenchmarkError(
                f"The labelled frame {labels / name}.json has no image: neither is one called {name}, nor is there an "
                f"image number {number} among the {len(images)} registered ones."
            )
        image = images[number - 1]
        picture = next((p for s in layouts.IMAGE_SUFFIXES if (p := labels / f"{name}{s}").is_file()), None)
        if picture is None and verified_only:
            raise BenchmarkError(
                f"No image is called {name}, and {labels} has no {name}.jpg to verify that it is {image.name} (the "
                f"{number}. by name). If you know that it is, set --match number."
            )
        if picture is not None and (difference := _difference(picture, image)) > _ALIKE:
            raise BenchmarkError(
                f"{picture} should show the same as {image} (the {number}. image by name), but they differ by "
                f"{difference:.0f} grey levels on average. Labels and scene do not belong together."
            )
        found[name] = image
    return found


def _difference(first: Path, second: Path) -> float:
    thumbnails = []
    for path in (first, second):
        try:
            with Image.open(path) as picture:
                small = picture.convert("L").resize(_THUMBNAIL, Image.Resampling.BOX)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise BenchmarkError(f"{path} cannot be read as an image: {error}.") from error
        thumbnails.append(np.asarray(small, np.float64))
    return float(np.abs(thumbnails[0] - thumbnails[1]).mean())


lerf_ovs_data = DataParserSpecification(
    config=LerfOvsDataParserConfig(), description="LERF-OVS scenes (COLMAP, polygon labels)"
)
mipnerf360_data = DataParserSpecification(
    config=MipNerf360DataParserConfig(), description="Mip-NeRF360 scenes with GAGS's labels"
)
