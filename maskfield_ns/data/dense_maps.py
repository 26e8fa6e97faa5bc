"""Maps of embeddings over the training images: made once by the embedder, kept beside the mask cache."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Float16
from nerfstudio.utils.rich_utils import CONSOLE
from PIL import Image
from torch import Tensor

from maskfield_ns.cache.schema import extraction_fingerprint
from maskfield_ns.errors import CacheError, WeightsError
from maskfield_ns.files import atomic_path, file_sha256
from maskfield_ns.foundation.protocols import DenseEmbedder

if TYPE_CHECKING:
    from maskfield_ns.data.undistortion import Undistortion
    from maskfield_ns.foundation.base import EmbedderConfig

FOLDER = "dense"


class DenseMaps:
    """Maps of some images, in half precision at the embedder's own resolution.

    Args:
        root: folder of the mask cache.
        embedder: what makes the maps.
    """

    def __init__(self, root: Path, embedder: EmbedderConfig) -> None:
        self.embedder = embedder
        self.folder = root / FOLDER / extraction_fingerprint({}, embedder.fingerprint())[:16]

    def path_of(self, image: Path) -> Path:
        """Where the map of an image file is or would be; it goes by what is in the file."""
        return self.folder / f"{file_sha256(image)[:32]}.npy"

    def build(self, images: Sequence[Path], device: torch.device | str) -> None:
        """Makes what is missing.

        Raises:
            WeightsError: the embedder cannot be loaded, or makes no maps.
            CacheError: a map cannot be written.
        """
        missing = [path for path in images if not self.path_of(path).is_file()]
        if not missing:
            return
        model = self.embedder.setup(device)
        if not isinstance(model, DenseEmbedder):
            raise WeightsError(
                f"{type(model).__name__} makes no map of an image: use another embedder, or a system that distils "
                "masks (--pipeline.model.system.teacher masks)"
            )
        CONSOLE.print(f"Maps of embeddings of {len(missing)} images ...")
        for number, path in enumerate(missing, 1):
            with Image.open(path) as image:
                pixels = np.asarray(image.convert("RGB"))
            array = model.dense_map(pixels).half().cpu().numpy()
            target = self.path_of(path)
            try:
                with atomic_path(target) as temporary, temporary.open("wb") as file:
                    np.save(file, array, allow_pickle=False)
            except OSError as error:
                raise CacheError(f"cannot write {target}: {error.strerror or error}") from error
            if number % 20 == 0:
                CONSOLE.print(f"Maps of embeddings: {number}/{len(missing)}")

    def read(self, image: Path) -> Float16[np.ndarray, "C h w"]:
        """The map of an image.

        Raises:
            CacheError: it is not there or damaged.
        """
        path = self.path_of(image)
        try:
            array = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise CacheError(f"cannot read {path} ({error}): delete it, and it will be made again") from error
        if array.ndim != 3 or array.dtype != np.float16:
            raise CacheError(f"{path} holds no map of embeddings: delete it, and it will be made again")
        return array


def on_grid(
    array: Float16[np.ndarray, "C h w"], grid: tuple[int, int], how: Undistortion | None
) -> Float[Tensor, "P C"]:
    """A photograph's map on the grid of the view that is trained on, cell by cell."""
    maps = torch.from_numpy(array).float()
    if how is not None:
        maps = how.forth(maps, grid)
    else:
        maps = torch.nn.functional.interpolate(maps[None], grid, mode="bilinear", align_corners=False)[0]
    return maps.flatten(1).T
