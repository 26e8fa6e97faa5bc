"""Fill the mask cache: load models if anything is left to do, and go through the images."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any, Protocol, TypeVar, cast

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from maskfield_ns.cache.schema import CacheEntry, canonical_json, normalise_name
from maskfield_ns.cache.store import DiskFullError, MaskCache
from maskfield_ns.errors import CacheError, CaptureError
from maskfield_ns.files import file_sha256
from maskfield_ns.foundation.protocols import MaskProposer, RegionEmbedder, propose

PRINT_EVERY_S = 10.0
"""Without a terminal, seconds between two progress lines."""

Model = TypeVar("Model", covariant=True)


class ModelFactory(Protocol[Model]):
    """A model that can tell its fingerprint before it is loaded (``config.deferred(device)`` makes one)."""

    def fingerprint(self) -> dict[str, Any]:
        """The fingerprint of the model that a call returns."""
        ...

    def __call__(self) -> Model:
        """Load the model."""
        ...


@dataclass(frozen=True)
class BuildReport:
    """What a build did."""

    folder: Path
    """Where the entries are."""
    total: int
    """Images asked for."""
    built: int
    """Entries made now, rebuilt ones included."""
    rebuilt: dict[str, str] = field(default_factory=dict)
    """Image name -> why its old entry could not be used."""
    masks: int = 0
    """Masks in the entries made now."""
    bytes: int = 0
    """Bytes of the entries made now."""
    seconds: float = 0.0
    """Wall time."""

    def __str__(self) -> str:
        if self.built == 0:
            return f"masks of all {self.total} images are in {self.folder}"
        return (
            f"masks of {self.built} of {self.total} images in {self.seconds:.0f} s: "
            f"{self.masks / self.built:.0f} masks per image, {self.bytes / 1e6:.1f} MB, in {self.folder}"
        )


@dataclass(frozen=True)
class _Job:
    index: int
    path: Path
    name: str
    sha256: str
    resolution: tuple[int, int]


def build_cache(
    image_paths: Sequence[Path],
    names: Sequence[str | PurePath],
    cache_dir: Path,
    proposer_factory: ModelFactory[MaskProposer],
    embedder_factory: ModelFactory[RegionEmbedder],
    *,
    resolution: tuple[int, int] | Sequence[tuple[int, int]] | None = None,
    progress: bool = True,
    visit: Callable[[int, CacheEntry], None] | None = None,
) -> BuildReport:
    """Make every missing, damaged or stale entry of a capture's cache; what is good is kept.

    Entries appear one by one and whole, so a build that was stopped continues where it was when it is run again.

    Args:
        image_paths: image files.
        names: their names relative to the capture, in the same order.
        cache_dir: folder of all caches of the capture; models and parameters get a sub-folder each.
        proposer_factory: finds masks; loaded only if an entry has to be made.
        embedder_factory: embeds them; loaded only if an entry has to be made.
        resolution: (height, width) in pixels of the cameras, one for all or one per image; None: the images' own.
        progress: print progress and a final line.
        visit: called once per image with its position and its entry, verified or just made: nothing is read twice,
            and nobody can get between the check and the use.

    Raises:
        CaptureError: an image is missing, broken, named twice, or of another shape than its camera.
        CacheError: the cache cannot be written; the message says how many entries are safe.
        WeightsError: a model cannot be loaded.
    """
    start = time.monotonic()
    resolutions = _per_image(resolution, len(image_paths))
    keys = _unique_names(names, len(image_paths))
    cache = MaskCache.create(cache_dir, proposer_factory.fingerprint(), embedder_factory.fingerprint())
    cache.remove_leftovers()

    jobs: list[_Job] = []
    rebuilt: dict[str, str] = {}
    for index, (path, name, size) in enumerate(zip(map(Path, image_paths), keys, resolutions, strict=True)):
        try:
            sha256 = file_sha256(path)
        except OSError as error:
            raise CaptureError(f"cannot read the image {path} ({error.strerror}): check the capture") from error
        wanted = _resolution(path, size)
        entry, reason = cache.find(name, sha256, wanted)
        if entry is None:
            jobs.append(_Job(index, path, name, sha256, wanted))
        elif visit is not None:
            visit(index, entry)
        if reason:
            rebuilt[name] = reason
            if progress:
                print(f"cached masks of {name} are made again: {reason}", flush=True)

    total, masks, size_bytes, done = len(keys), 0, 0, 0
    if jobs:
        proposer, embedder = _load(proposer_factory), _load(embedder_factory)
        with _progress(len(jobs), total - len(jobs), progress) as advance:
            for job in jobs:
                image = load_image(job.path, job.resolution)
                proposals = propose(proposer, image, job.name)
                embeddings = embedder.embed_regions(image, proposals.masks)
                try:
                    entry = cache.write(job.name, job.sha256, proposals, embeddings)
                except DiskFullError as error:
                    safe = total - len(jobs) + done
                    raise CacheError(
                        f"{error}: {safe} of {total} entries are safe. Free some space and run the same command "
                        "again; it continues where it stopped"
                    ) from error
                size_bytes += cache.path_of(job.name, job.sha256, job.resolution).stat().st_size
                masks, done = masks + len(proposals), done + 1
                if visit is not None:
                    visit(job.index, entry)
                advance()
    report = BuildReport(cache.folder, total, len(jobs), rebuilt, masks, size_bytes, seconds=time.monotonic() - start)
    if progress:
        print(report, flush=True)
    return report


def load_image(path: Path, resolution: tuple[int, int] | None = None) -> UInt8[np.ndarray, "H W 3"]:
    """An image as nerfstudio sees it: RGB, stored orientation (EXIF rotation is not applied), at the camera's size.

    Args:
        path: image file; grey, palette, 16-bit and transparent pictures are converted.
        resolution: (height, width) in pixels; None: the image's own.

    Raises:
        CaptureError: the file is missing, no image, or of another aspect ratio than `resolution`.
    """
    height, width = _resolution(path, resolution)
    with _opened(path) as image:
        if image.mode.startswith("I") or image.mode == "F":
            # 16-bit grey; Pillow would clip it to white.
            grey = np.asarray(image, np.float32)
            image = Image.fromarray((grey / (257 if grey.max(initial=0) > 255 else 1)).clip(0, 255).astype(np.uint8))
        image = image.convert("RGB")
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.BILINEAR)
        return np.array(image)


def _resolution(path: Path, wanted: tuple[int, int] | None) -> tuple[int, int]:
    """(height, width) that masks of an image shall have, after checking that it can be brought to it."""
    with _opened(path) as image:
        width, height = image.size
    if wanted is None:
        return height, width
    rows, columns = wanted
    # Rounded down-scaling leaves the sides off by up to a pixel.
    if abs(height * columns / width - rows) > 1 and abs(width * rows / height - columns) > 1:
        raise CaptureError(
            f"{path} has {width}x{height} pixels, its camera {columns}x{rows}, which is another shape: "
            "correct w and h in transforms.json or the image"
        )
    return rows, columns


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    try:
        with Image.open(path) as image:
            yield image
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise CaptureError(f"cannot read the image {path} ({error}): replace it or take it out") from error


def _per_image(
    resolution: tuple[int, int] | Sequence[tuple[int, int]] | None, count: int
) -> list[tuple[int, int] | None]:
    if resolution is None:
        return [None] * count
    if len(resolution) == 2 and all(isinstance(side, (int, np.integer)) for side in resolution):
        rows, columns = cast("tuple[int, int]", resolution)
        return [(int(rows), int(columns))] * count
    if len(resolution) != count:
        raise ValueError(f"{len(resolution)} resolutions for {count} images")
    return [(int(rows), int(columns)) for rows, columns in cast("Sequence[tuple[int, int]]", resolution)]


def _unique_names(names: Sequence[str | PurePath], count: int) -> list[str]:
    if len(names) != count:
        raise ValueError(f"{len(names)} names for {count} images")
    keys = [normalise_name(name) for name in names]
    if len(set(keys)) != count:
        twice = next(key for key in keys if keys.count(key) > 1)
        raise CaptureError(f"two images of the capture are named {twice}: rename one of them")
    return keys


def _load(factory: ModelFactory[Model]) -> Model:
    model = factory()
    promised, actual = factory.fingerprint(), model.fingerprint()  # type: ignore[attr-defined]
    if canonical_json(promised) != canonical_json(actual):
        # Entries would be filed under models that did not make them.
        raise CacheError(f"the model that was loaded is not the one that was asked for: {actual} instead of {promised}")
    return model


@contextmanager
def _progress(count: int, reused: int, show: bool) -> Iterator[Any]:
    """Yields a function to call after each image."""
    if not show:
        yield lambda: None
    elif sys.stdout.isatty():
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
        from rich.progress import TimeRemainingColumn as Remaining

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, TextColumn("left"), Remaining(elapsed_when_finished=False)) as bar:
            task = bar.add_task("masks and embeddings", total=count)
            yield lambda: bar.advance(task)
    else:
        yield _Lines(count, reused)


class _Lines:
    """Progress for logs: a line at most every :data:`PRINT_EVERY_S` seconds."""

    def __init__(self, count: int, reused: int) -> None:
        self.count, self.done = count, 0
        self.start = self.last = time.monotonic()
        already = f" ({reused} are there already)" if reused else ""
        print(f"masks and embeddings of {count} images{already} ...", flush=True)

    def __call__(self) -> None:
        self.done += 1
        now = time.monotonic()
        if now - self.last < PRINT_EVERY_S or self.done == self.count:
            return
        self.last = now
        left = (now - self.start) / self.done * (self.count - self.done)
        print(f"masks and embeddings: {self.done}/{self.count}, {_duration(left)} left", flush=True)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
