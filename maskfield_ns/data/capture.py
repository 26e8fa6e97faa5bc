"""Checks a capture before nerfstudio touches it, so that what is wrong is said in one message.

A capture is a folder with ``transforms.json`` (nerfstudio, instant-ngp) or with a COLMAP model, as it is. Only headers
of images are read (no pixel is decoded): about a tenth of a second for a thousand images.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from PIL import Image, UnidentifiedImageError

from maskfield_ns.data.downscaling import copy_path, make_copies
from maskfield_ns.data.lenses import check_lenses
from maskfield_ns.data.transforms import SPLITS, Declared, Frame, read_transforms, some
from maskfield_ns.errors import CaptureError

MAX_AUTO_SIDE = 1600
"""Long side up to which nerfstudio takes the images as they are; above it, it looks for ``images_2`` and so on."""
COLMAP_MODELS = ("sparse/0", "colmap/sparse/0", "sparse")
"""Where a folder without transforms.json may have its COLMAP model."""
_PIXEL_MODES = ("RGB", "RGBA", "L")
"""PIL modes that nerfstudio reads as colors; it would take a palette's indices for gray values."""
_MASK_MODES = ("L", "1")
"""PIL modes of masks: one channel whose zero means masked out."""
_FULL_SIZE = 'Add "nerfstudio-data --downscale-factor 1" to the end of the ns-train command'
SKIP_MISSING = "--pipeline.datamanager.missing-images skip (maskfield extract: --missing-images skip)"
"""How a user leaves out frames without an image."""
_SMALLER = range(2, 17)
"""Whole numbers by which images may be smaller than their file of cameras declares."""


@dataclass(frozen=True)
class CaptureSummary:
    """What a valid capture holds."""

    folder: Path
    """Folder that the file paths in ``transforms_path`` are relative to."""
    transforms_path: Path
    """The file of cameras, or the folder of the COLMAP model."""
    image_paths: tuple[Path, ...]
    """The images in use (those of ``images_<factor>`` when downscaled), in nerfstudio's order: sorted by path."""
    names: tuple[str, ...]
    """The same images as named in the file (``file_path``, POSIX): the name labels and users know them by."""
    sizes: tuple[tuple[int, int], ...]
    """(width, height) of each image in use as found on disk; empty when images were not looked at."""
    downscale_factor: int
    splits: dict[str, tuple[str, ...]] | None
    """Names per split, if the file lists any; otherwise nerfstudio splits by its ``eval_mode``."""
    frames: tuple[Frame, ...]
    """Cameras as declared, in the order of ``image_paths``."""
    mask_paths: tuple[Path, ...]
    """Per image the file of the pixels that count; empty when the capture has none."""
    declared: Declared
    notes: tuple[str, ...]
    """What a user should know about the capture."""

    def __len__(self) -> int:
        return len(self.names)


def check_capture(
    path: Path,
    *,
    downscale_factor: int | None = None,
    images: bool = True,
    skip_missing: bool = False,
) -> CaptureSummary:
    """Validate a capture and describe it.

    Args:
        path: the capture's folder, or a ``.json`` file with its cameras.
        downscale_factor: images come from ``images_<factor>``; None follows nerfstudio's automatic choice.
        images: also check that images exist and have the declared size (cameras alone are enough to render a path).
        skip_missing: leave out frames whose image does not exist.

    Raises:
        CaptureError: with one message that says what is wrong, where, and what to do.
    """
    return check_declared(declare(Path(path)), downscale_factor, images, skip_missing)


def declare(path: Path) -> Declared:
    """The cameras of a capture's folder or file, as declared.

    Raises:
        CaptureError: there is no capture, or its cameras cannot be used.
    """
    try:
        exists = path.exists()
    except (OSError, ValueError) as error:
        raise CaptureError(f"{str(path)[:80]!r} is no name of a folder ({type(error).__name__}).") from error
    if not exists:
        where = "" if path.is_absolute() else f" (looked in {Path.cwd()})"
        raise CaptureError(f"No such capture: {path}{where}. Give the folder that holds transforms.json as --data.")
    transforms = path if path.suffix == ".json" else path / "transforms.json"
    if transforms.is_file():
        return read_transforms(transforms, lambda image: _header(image)[0])
    model = colmap_model(path)
    if model is not None:
        from maskfield_ns.data import colmap

        return colmap.declare(path, model)
    raise CaptureError(f"{path} is not a nerfstudio capture: it has no transforms.json{_instead(path)}")


def colmap_model(folder: Path) -> Path | None:
    """The COLMAP model of a folder, if it has one."""
    places = (folder / place for place in COLMAP_MODELS)
    return next((each for each in places if any((each / f"cameras.{s}").is_file() for s in ("bin", "txt"))), None)


def _instead(path: Path) -> str:
    """What a folder without cameras seems to be, and what to do."""
    if path.is_file():
        return f"; {path.name} is a file: give the folder."
    inside = sorted(each for each in path.iterdir() if each.is_dir()) if os.access(path, os.R_OK) else []
    scenes = [each.name for each in inside if (each / "transforms.json").is_file() or colmap_model(each)]
    if scenes:
        return f", but {some(scenes, 'folder')} in it can be trained on: give one of them as --data {path / scenes[0]}."
    marks = {
        "ovs3d-data": ("poses_bounds.npy", "segmentations"),
        "replica-semantic-data": ("traj_w_c.txt", "rgb_300"),
        "scannet-semantic-data": ("intrinsics.txt",),
    }
    for parser, files in marks.items():
        if any((folder / file).exists() for folder in (path, *inside) for file in files):
            return f"; for a benchmark scene name its dataparser at the end of the command ({parser})."
    return " and no COLMAP model (sparse/0). ns-process-data makes one from photos or a video."


def check_declared(
    declared: Declared, downscale_factor: int | None = None, images: bool = True, skip_missing: bool = False
) -> CaptureSummary:
    """:func:`check_capture` of cameras that have been read already."""
    notes = [*declared.notes, *check_lenses(declared)]
    if images and skip_missing:
        declared, note = _without_missing(declared)
        notes += note
    factor = 1
    if images:
        _check_files(declared, [declared.folder / frame.name for frame in declared.frames], 1, "image")
        factor = downscale_factor or _automatic_factor(declared)
        if declared.copies:
            notes += make_copies(declared, factor)
    frames = sorted(declared.frames, key=lambda frame: _image_path(declared, frame.name, factor))
    if declared.keep_order:
        frames = list(declared.frames)
    declared = replace(declared, frames=tuple(frames))
    names = tuple(frame.name for frame in frames)
    paths = tuple(_image_path(declared, name, factor) for name in names)
    masks = tuple(_image_path(declared, f.mask, factor, "masks_") for f in frames if f.mask is not None)
    sizes: tuple[tuple[int, int], ...] = ()
    if images:
        _check_collisions(paths, factor)
        _check_files(declared, paths, factor, "image")
        sizes, note = _check_images(declared, paths, factor)
        notes += note
        if masks:
            _check_masks(declared, masks, factor, sizes)
    return CaptureSummary(
        declared.folder,
        declared.path,
        paths,
        names,
        sizes,
        factor,
        declared.splits,
        declared.frames,
        masks,
        declared,
        tuple(notes),
    )


def _without_missing(declared: Declared) -> tuple[Declared, list[str]]:
    """The frames whose image exists, and a note that names the others."""
    there = tuple(frame for frame in declared.frames if os.path.isfile(declared.folder / frame.name))
    missing = [frame.name for frame in declared.frames if not os.path.isfile(declared.folder / frame.name)]
    if not missing:
        return declared, []
    if len(there) < 2:
        raise CaptureError(f"{declared.path}: {len(there)} of {len(declared.frames)} images exist; a scene needs two.")
    names = {frame.name for frame in there}
    splits = declared.splits and {split: tuple(n for n in s if n in names) for split, s in declared.splits.items()}
    if splits and len(set(splits["train"])) < 2:
        raise CaptureError(f"{declared.path}: fewer than two images of the train split exist; a scene needs two.")
    note = f"{some(missing, 'image')} of {len(declared.frames)} in {declared.path.name} do not exist and are left out."
    return replace(declared, frames=there, splits=splits or None), [note]


# --- images -----------------------------------------------------------------------------------------------------------


def _automatic_factor(declared: Declared) -> int:
    """nerfstudio's choice: halve while the first frame is too large and there are copies, or some can be made."""
    first = declared.frames[0].name
    side, factor = max(_header(declared.folder / first)[0]), 1
    while side / factor > MAX_AUTO_SIDE and (declared.copies or _image_path(declared, first, 2 * factor).exists()):
        factor *= 2
    return factor


def _image_path(declared: Declared, name: str, factor: int, prefix: str = "images_") -> Path:
    if factor == 1:
        return declared.folder / name
    if declared.copies:
        return copy_path(declared.folder, name, factor)
    return declared.folder / f"{prefix}{factor}" / PurePosixPath(name).name


def _check_collisions(paths: Sequence[Path], factor: int) -> None:
    repeated = [path.name for path, count in Counter(paths).items() if count > 1]
    if repeated:
        raise CaptureError(
            f"Different frames share {some(repeated, 'file name')}, and nerfstudio looks for downscaled images by "
            f"file name alone (images_{factor}/{repeated[0]}). {_FULL_SIZE}, or give the files different names."
        )


def _check_files(declared: Declared, paths: Sequence[Path], factor: int, kind: str) -> None:
    missing = [path for path in paths if not os.path.isfile(path)]
    if not missing:
        return
    if factor > 1 and not missing[0].parent.is_dir():
        raise CaptureError(
            f"Images downscaled by {factor} are wanted, but there is no folder {missing[0].parent}. "
            f"{_FULL_SIZE}, or create them (ns-process-data does)."
        )
    hint = ""
    relatives = [path for path in missing[0].parent.glob(f"{_escape(missing[0].name)}.*") if path.is_file()]
    if relatives and not missing[0].suffix:
        hint = f" {relatives[0].name} exists: write file names with their extension."
    elif kind == "image" and len(missing) <= len(paths) - 2:
        hint = f" Add them, or leave those frames out: {SKIP_MISSING}."
    raise CaptureError(
        f"{declared.path} names {some([_relative(path, declared.folder) for path in missing], kind)} "
        f"that {'does' if len(missing) == 1 else 'do'} not exist ({len(missing)} of {len(paths)}).{hint}"
    )


def _check_images(
    declared: Declared, paths: Sequence[Path], factor: int
) -> tuple[tuple[tuple[int, int], ...], list[str]]:
    """Sizes, and a note where images are smaller by a whole number than the cameras are for."""
    sizes, modes, wrong = [], set(), []
    for frame, path in zip(declared.frames, paths, strict=True):
        size, mode = _header(path)
        if mode not in _PIXEL_MODES:
            raise CaptureError(f"{path} is stored in color mode {mode}; convert it to RGB (8 bits a channel).")
        modes.add("RGBA" if mode == "RGBA" else "RGB")
        sizes.append(size)
        wanted = int(frame.size[0] / factor), int(frame.size[1] / factor)
        # Whoever downscaled may have rounded up where nerfstudio rounds the camera down.
        slack = 0 if factor == 1 else 1
        if any(abs(found - expected) > slack for found, expected in zip(size, wanted, strict=True)):
            wrong.append((path, size, wanted))
    if len(modes) > 1:
        raise CaptureError(
            f"{declared.path}: some images have an alpha channel and some have none; make them all alike."
        )
    if not wrong:
        return tuple(sizes), []
    smaller = {_times_smaller(size, frame.size) for size, frame in zip(sizes, declared.frames, strict=True)}
    if factor == 1 and len(smaller) == 1 and None not in smaller:
        times = next(iter(smaller))
        note = f"The images are 1/{times} of the size that {declared.path.name} declares; intrinsics follow them."
        return tuple(sizes), [note]
    path, size, wanted = wrong[0]
    more = f" ({len(wrong)} of {len(paths)} images differ)" if len(wrong) > 1 else ""
    scaled = f" after downscaling by {factor}" if factor > 1 else ""
    raise CaptureError(
        f"{path} is {size[0]}x{size[1]}, but {declared.path} declares {wanted[0]}x{wanted[1]}{scaled}{more}. "
        "The intrinsics would not fit: correct w, h, fl_x, fl_y, cx and cy, or use the images they were made for."
    )


def _times_smaller(size: tuple[int, int], declared: tuple[int, int]) -> int | None:
    """The whole number that an image was downscaled by, rounding either way."""
    fits = (n for n in _SMALLER if all(abs(s * n - d) < n for s, d in zip(size, declared, strict=True)))
    return next(fits, None)


def _check_masks(declared: Declared, paths: Sequence[Path], factor: int, sizes: Sequence[tuple[int, int]]) -> None:
    _check_files(declared, paths, factor, "mask")
    for path, size in zip(paths, sizes, strict=True):
        found, mode = _header(path)
        if found != size:
            raise CaptureError(f"Mask {path} is {found[0]}x{found[1]}, but its image is {size[0]}x{size[1]}.")
        if mode not in _MASK_MODES:
            raise CaptureError(
                f"Mask {path} is stored in color mode {mode}; save it with one channel (8-bit gray: 0 is masked out)."
            )


def _header(path: Path) -> tuple[tuple[int, int], str]:
    """(width, height) and color mode, without decoding."""
    try:
        with Image.open(path) as image:
            return image.size, image.mode
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise CaptureError(f"{path} cannot be read as an image; replace or remove it ({error}).") from error


def _relative(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)


def _escape(name: str) -> str:
    return "".join(f"[{character}]" if character in "*?[" else character for character in name)


__all__ = ["SPLITS", "CaptureSummary", "check_capture", "check_declared", "declare"]
