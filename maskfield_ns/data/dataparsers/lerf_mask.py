"""LERF-Mask scenes of Gaussian Grouping: a COLMAP model, training images named by a folder, masks per test view."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from nerfstudio.plugins.registry_dataparser import DataParserSpecification

from maskfield_ns.data import layouts
from maskfield_ns.data.dataparsers import colmap
from maskfield_ns.data.dataparsers.common import BenchmarkDataParser, BenchmarkDataParserConfig, SceneFiles
from maskfield_ns.errors import BenchmarkError


@dataclass
class LerfMaskDataParserConfig(BenchmarkDataParserConfig):
    """LERF-Mask."""

    _target: type = field(default_factory=lambda: LerfMaskDataParser)
    """Target class to instantiate."""
    data: Path = Path()
    """Folder of one scene: images/ (all images), images_train/ (those that train; the others test), sparse/0 (COLMAP),
    test_mask/K/PROMPT.png (masks of the K-th test image by name, K = 0, 1, ...; folders may be missing). object_mask/
    is not read. Test views are held out by the protocol."""


class LerfMaskDataParser(BenchmarkDataParser):
    """See the config."""

    config: LerfMaskDataParserConfig
    protocol = "lerf-mask"

    def _read_scene(self) -> SceneFiles:
        data = self.config.data
        test = layouts.lerf_mask_test_images(data)
        shots = colmap.read_shots(data / "sparse" / "0", data / "images")
        registered = {shot.image.stem for shot in shots}
        labels = self.config.labels or data / "test_mask"
        labelled: dict[str, str] = {}
        for name in layouts.lerf_mask_labelled(labels):
            if int(name) >= len(test):
                raise BenchmarkError(
                    f"{labels / name} belongs to the test image number {name}, but there are only {len(test)} images "
                    f"in {data / 'images'} that {data / 'images_train'} does not have (numbers 0 to {len(test) - 1})."
                )
            image = test[int(name)]
            if image.stem not in registered:
                raise BenchmarkError(f"{image} has masks ({labels / name}), but no camera in {data / 'sparse' / '0'}.")
            labelled[image.stem] = name
        notes = []
        if len(labelled) < len(test):
            bare = [image.name for image in test if image.stem not in labelled]
            notes.append(f"test images without masks: {layouts.some(bare)}; they neither train nor count")
        return SceneFiles(
            shots,
            labelled,
            labels,
            held_out=True,
            points=colmap.read_points(data / "sparse" / "0"),
            untrained=frozenset(image.stem for image in test),
            notes=notes,
        )


lerf_mask_data = DataParserSpecification(
    config=LerfMaskDataParserConfig(), description="LERF-Mask scenes of Gaussian Grouping"
)
