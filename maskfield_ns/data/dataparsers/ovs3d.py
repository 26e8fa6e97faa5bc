"""3D-OVS scenes: LLFF poses and one folder of class masks per labelled view."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

import numpy as np
from nerfstudio.plugins.registry_dataparser import DataParserSpecification

from maskfield_ns.data import layouts
from maskfield_ns.data.dataparsers import colmap
from maskfield_ns.data.dataparsers.common import BenchmarkDataParser, BenchmarkDataParserConfig, SceneFiles, Shot
from maskfield_ns.errors import BenchmarkError


@dataclass
class Ovs3dDataParserConfig(BenchmarkDataParserConfig):
    """3D-OVS."""

    _target: type = field(default_factory=lambda: Ovs3dDataParser)
    """Target class to instantiate."""
    data: Path = Path()
    """Folder of one scene: images/ (any picture format), poses_bounds.npy (LLFF, a row per image sorted by name),
    segmentations/classes.txt (one class per line) and segmentations/NN/CLASS.png (a black and white mask per class for
    each labelled view; NN is the stem of its image). sparse/0 gives seed points for Gaussians if it is there. The
    published protocol trains on the labelled views and scores at an eighth of the size."""
    downscale_factor: Optional[int] = 8  # noqa: UP045 (tyro shows it)
    """Images come from images_<factor>, made on first use (Lanczos) if it is not there. 8 is what is scored."""
    load_points: bool = True
    """Seed points from sparse/0 where the scene has it."""


class Ovs3dDataParser(BenchmarkDataParser):
    """See the config."""

    config: Ovs3dDataParserConfig
    protocol = "3d-ovs"

    def _read_scene(self) -> SceneFiles:
        data = self.config.data
        images = layouts.images_in(data / "images")
        poses, size, focal = read_llff(data / "poses_bounds.npy", len(images))
        width, height = size
        shots = [
            Shot(image, pose, (focal, focal), (width / 2, height / 2), size)
            for image, pose in zip(images, poses, strict=True)
        ]
        labels = self.config.labels or data / "segmentations"
        views = layouts.by_stem(layouts.ovs3d_labelled(labels), images, "labelled views", data / "images")
        model = data / "sparse" / "0"
        points = colmap.read_points(model) if self.config.load_points and model.is_dir() else None
        return SceneFiles(
            shots, {image.stem: name for name, image in views.items()}, labels, held_out=False, points=points
        )


def read_llff(path: Path, count: int) -> tuple[np.ndarray, tuple[int, int], float]:
    """``poses_bounds.npy``: camera-to-world [N, 3, 4] with OpenGL axes, (width, height), and focal length in pixels.

    A row holds a 3x5 matrix (axes down, right, back; centre; H, W, focal) and two depth bounds. Size and focal length
    are those of the first row, as the reference loader takes them.

    Raises:
        BenchmarkError: missing, damaged, or another number of rows than ``count`` images.
    """
    try:
        rows = np.load(path, allow_pickle=False)
    except FileNotFoundError as error:
        raise BenchmarkError(
            f"There is no {path}; it holds the LLFF poses, one row of 17 numbers per image."
        ) from error
    except (OSError, ValueError, EOFError, MemoryError) as error:
        raise BenchmarkError(f"{path} cannot be read as a NumPy array: {error}.") from error
    if rows.ndim != 2 or rows.shape[1] != 17 or rows.dtype.kind != "f":
        raise BenchmarkError(f"{path} must have 17 numbers per image, not {rows.dtype}{list(rows.shape)}.")
    if len(rows) != count:
        raise BenchmarkError(
            f"{path} has {len(rows)} poses, but {path.parent / 'images'} has {count} images. Row i belongs to the i-th "
            "image by name, so both must agree; the scene looks half downloaded."
        )
    matrices = rows[:, :15].astype(np.float64).reshape(-1, 3, 5)
    height, width, focal = matrices[0, :, 4]
    if not (np.isfinite([height, width, focal]).all() and min(height, width, focal) > 0):
        raise BenchmarkError(f"{path}: the first row gives an image of {width}x{height} with focal length {focal}.")
    poses = np.stack([matrices[..., 1], -matrices[..., 0], matrices[..., 2], matrices[..., 3]], axis=-1)
    return poses, (round(width), round(height)), float(focal)


ovs3d_data = DataParserSpecification(config=Ovs3dDataParserConfig(), description="3D-OVS scenes (LLFF poses)")
