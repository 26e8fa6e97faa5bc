"""Smaller copies of a capture's images, made where none are: nerfstudio would ask at a prompt."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from maskfield_ns.data.transforms import Declared
from maskfield_ns.errors import CaptureError
from maskfield_ns.files import atomic_path

_JPEG_QUALITY = 95


def make_copies(declared: Declared, factor: int) -> list[str]:
    """Makes copies smaller by a whole number where they are missing, masks included; says what was done.

    Raises:
        CaptureError: an image cannot be read or a copy cannot be written.
    """
    if factor == 1:
        return []
    from nerfstudio.utils.rich_utils import CONSOLE

    names = [frame.name for frame in declared.frames]
    masks = [frame.mask for frame in declared.frames if frame.mask is not None]
    missing = [name for name in (*names, *masks) if not copy_path(declared.folder, name, factor).is_file()]
    if not missing:
        return []
    place = copy_path(declared.folder, missing[0], factor).parent
    CONSOLE.print(f"Making {len(missing)} images smaller by {factor} in {place} (--downscale-factor 1: full size) ...")
    for name in missing:
        _shrink(declared.folder / name, copy_path(declared.folder, name, factor), factor, name in set(masks))
    return []


def _shrink(path: Path, target: Path, factor: int, mask: bool) -> None:
    try:
        with atomic_path(target) as temporary, Image.open(path) as image:
            size = image.width // factor, image.height // factor
            if min(size) < 1:
                raise CaptureError(f"{path} is too small to be made smaller by {factor}.")
            how = Image.Resampling.NEAREST if mask else Image.Resampling.LANCZOS
            options = {"quality": _JPEG_QUALITY} if image.format == "JPEG" else {}
            image.resize(size, how).save(temporary, format=image.format, **options)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise CaptureError(
            f"Cannot make {target}, the copy of {path} smaller by {factor} ({error}). Replace the image if it is "
            "damaged, make the folder writable, or set --downscale-factor 1."
        ) from error


def copy_path(folder: Path, name: str, factor: int) -> Path:
    """Where COLMAP users keep smaller copies: ``images_2/left/a.jpg`` of ``images/left/a.jpg``."""
    top, _, rest = name.partition("/")
    return folder / f"{top}_{factor}" / rest if rest else folder / f"images_{factor}" / top
