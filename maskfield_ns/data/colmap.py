"""A capture given by a COLMAP model and its images, as COLMAP leaves them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from maskfield_ns.data.transforms import Declared, Frame, check_intrinsics, check_places, check_pose
from maskfield_ns.errors import BenchmarkError, CaptureError

WORLD = ((1.0, 0.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, -1.0, 0.0, 0.0))
"""COLMAP's world to one whose z axis points up: COLMAP tends to have y down, as its first camera."""


def declare(
    folder: Path,
    model: Path,
    images: str = "images",
    masks: str | None = None,
    upright: bool = True,
    keep_order: bool = False,
) -> Declared:
    """The cameras of a COLMAP model.

    Args:
        folder: the capture.
        model: folder of cameras.bin and images.bin (or .txt).
        images: folder of the images in ``folder``.
        masks: folder of masks in ``folder``, called like the images, .png; None: none.
        upright: turn the world by ``WORLD``.
        keep_order: frames by COLMAP's image ids instead of by name.

    Raises:
        CaptureError: the model is damaged, or cannot be used.
    """
    from maskfield_ns.data.dataparsers import colmap  # imports nerfstudio, which takes seconds

    if not (folder / images).is_dir():
        raise CaptureError(f"{folder} has a COLMAP model ({model}) but no folder {images} with its images.")
    try:
        shots = colmap.read_shots(model, folder / images, by_name=not keep_order)
    except BenchmarkError as error:
        raise CaptureError(str(error)) from error
    broken = [shot.image.name for shot in shots if not np.isfinite(shot.pose).all()]
    if broken or len(shots) < 2:
        what = f"{len(broken)} images with poses that are none ({broken[0]})" if broken else "only one image"
        raise CaptureError(f"{model} has {what}; run COLMAP's mapper again.")
    world = np.array(WORLD)[:, :3] if upright else np.eye(3)
    odd = [view for view in (shot.image.name for shot in shots) if not view.isprintable()]
    if odd:
        raise CaptureError(f"{model} names an image {ascii(odd[0])[:80]}: control characters; it is damaged.")
    outside = [shot.image.name for shot in shots if not shot.image.is_relative_to(folder / images)]
    if outside:
        raise CaptureError(f"{model} names {outside[0]} by an absolute path; names are relative to {folder / images}.")
    frames = []
    for shot in shots:
        check_pose(model, shot.image.name, np.vstack([shot.pose, (0, 0, 0, 1)]))
        check_intrinsics(model, shot.image.name, shot.focal, shot.centre, shot.size)
        name = shot.image.relative_to(folder).as_posix()
        mask = None if masks is None else (Path(masks) / shot.image.relative_to(folder / images)).with_suffix(".png")
        pose = tuple(tuple(row) for row in (world @ shot.pose).tolist())
        frames.append(
            Frame(
                name,
                pose,
                shot.focal,
                shot.centre,
                shot.size,
                shot.distortion,
                None if mask is None else mask.as_posix(),
            )
        )
    models = {shot.camera_model for shot in shots}
    if len(models) > 1:
        raise CaptureError(f"{model} mixes camera models ({', '.join(sorted(models))}): make a capture of each.")
    check_places(model, [frame.name for frame in frames], np.array([frame.pose for frame in frames])[:, :, 3])
    has_points = any((model / f"points3D.{suffix}").is_file() for suffix in ("bin", "txt"))
    return Declared(
        model,
        folder,
        tuple(frames),
        models.pop(),
        _splits(folder, images, {frame.name for frame in frames}),
        applied_transform=WORLD if upright else None,
        points=model if has_points else None,
        copies=True,
        keep_order=keep_order,
    )


def _splits(folder: Path, images: str, names: set[str]) -> dict[str, tuple[str, ...]] | None:
    """nerfstudio's ``train_list.txt``, ``test_list.txt`` and ``val_list.txt``: file names in the image folder."""
    splits: dict[str, tuple[str, ...]] = {}
    for split in ("train", "val", "test"):
        path = folder / f"{split}_list.txt"
        if not path.is_file():
            continue
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise CaptureError(f"{path} cannot be read as UTF-8 text: {error}.") from error
        splits[split] = tuple(f"{images}/{line.strip()}" for line in lines if line.strip())
        unknown = [name for name in splits[split] if name not in names]
        if unknown:
            raise CaptureError(f"{path} lists {unknown[0]}, which the COLMAP model does not have.")
    if not splits:
        return None
    if "train" not in splits or not ("val" in splits or "test" in splits):
        raise CaptureError(f"{folder} has some of train_list.txt, val_list.txt and test_list.txt; it needs all three.")
    splits.setdefault("test", splits.get("val", ()))
    splits.setdefault("val", splits["test"])
    return splits
