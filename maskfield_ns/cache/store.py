"""The mask cache on disk: one folder per extraction fingerprint, one safetensors file per image."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from jaxtyping import Float32
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from maskfield_ns import __version__
from maskfield_ns.cache.schema import (
    ENTRY_SUFFIX,
    FORMAT,
    MANIFEST,
    SCHEMA_VERSION,
    CacheEntry,
    EntryHeader,
    checksum,
    entry_file_name,
    entry_stem,
    extraction_fingerprint,
    make_entry,
    normalise_name,
    shape_problem,
)
from maskfield_ns.errors import CacheError
from maskfield_ns.files import FULL_DISK, atomic_path, remove_leftovers
from maskfield_ns.foundation.protocols import MaskProposals


class DiskFullError(CacheError):
    """No space left in the cache's folder."""


class MaskCache:
    """The entries made by one pair of models with one set of parameters.

    Use :meth:`create` to write and :meth:`open` to read; several processes may write to one cache at once, because
    every file appears by an atomic rename.

    Args:
        folder: ``<cache root>/<first 12 digits of the fingerprint>``.
        fingerprint: see :func:`~maskfield_ns.cache.schema.extraction_fingerprint`.
    """

    def __init__(self, folder: Path, fingerprint: str) -> None:
        self.folder = folder
        self.fingerprint = fingerprint

    @classmethod
    def create(cls, root: Path, proposer: Mapping[str, Any], embedder: Mapping[str, Any]) -> MaskCache:
        """Open for writing: make folder and manifest where they are missing or broken.

        Args:
            root: folder of all caches of a capture.
            proposer: the mask proposer's fingerprint.
            embedder: the region embedder's fingerprint.

        Raises:
            CacheError: the folder cannot be written, or it belongs to another fingerprint or schema.
        """
        cache = cls._locate(root, proposer, embedder)
        with _explained(cache.folder):
            cache.folder.mkdir(parents=True, exist_ok=True)
        try:
            cache._check_manifest()
        except _BrokenManifest:
            manifest = {
                "format": FORMAT,
                "schema": SCHEMA_VERSION,
                "fingerprint": cache.fingerprint,
                "proposer": dict(proposer),
                "embedder": dict(embedder),
                "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
                "created_by": f"maskfield-ns {__version__}",
            }
            write_atomically(cache.folder / MANIFEST, (json.dumps(manifest, indent=2) + "\n").encode())
        return cache

    @classmethod
    def open(cls, root: Path, proposer: Mapping[str, Any], embedder: Mapping[str, Any]) -> MaskCache:
        """Open for reading.

        Raises:
            CacheError: there is no cache of these models, or it is not one of ours.
        """
        cache = cls._locate(root, proposer, embedder)
        cache._check_manifest()
        return cache

    @classmethod
    def _locate(cls, root: Path, proposer: Mapping[str, Any], embedder: Mapping[str, Any]) -> MaskCache:
        fingerprint = extraction_fingerprint(proposer, embedder)
        return cls(Path(root) / fingerprint[:12], fingerprint)

    def _check_manifest(self) -> None:
        path = self.folder / MANIFEST
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
            found = (manifest["format"], manifest["schema"], manifest["fingerprint"])
        except FileNotFoundError as error:
            raise _BrokenManifest(
                f"no mask cache of these models and parameters at {self.folder}: build it with `maskfield extract`"
            ) from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise _BrokenManifest(f"{path} cannot be read ({error}): rebuild with `maskfield extract`") from error
        if found != (FORMAT, SCHEMA_VERSION, self.fingerprint):
            raise CacheError(
                f"{path} belongs to another cache (format {found[0]!r}, schema {found[1]!r}, "
                f"fingerprint {str(found[2])[:12]!r}): move this folder away and build the cache again"
            )

    def path_of(self, name: str | PurePath, image_sha256: str, resolution: tuple[int, int]) -> Path:
        """Where the entry of an image, known by its name, content and (height, width), is or would be."""
        return self.folder / entry_file_name(normalise_name(name), image_sha256, *resolution)

    def paths_of(self, name: str | PurePath) -> list[Path]:
        """All entries of images with a name: earlier contents and sizes, and other captures' images."""
        return sorted(self.folder.glob(f"{entry_stem(normalise_name(name))}-*{ENTRY_SUFFIX}"))

    def write(
        self,
        name: str | PurePath,
        image_sha256: str,
        proposals: MaskProposals,
        embeddings: Float32[np.ndarray, "M C"],
    ) -> CacheEntry:
        """Store what the models said about one image; returns the entry.

        Args:
            name: the image's name relative to the capture.
            image_sha256: SHA-256 of the image file's bytes.
            proposals: masks at the camera's resolution.
            embeddings: one unit vector per mask.

        Raises:
            CacheError: the file cannot be written (:class:`DiskFullError`: no space left).
            ValueError: masks and embeddings do not fit together.
        """
        height, width = proposals.masks.shape[1:]
        header = EntryHeader(normalise_name(name), image_sha256, height, width, self.fingerprint)
        entry = make_entry(header, proposals, embeddings)
        tensors = entry.tensors()
        payload = save(tensors, metadata=header.metadata(checksum(header, tensors)))
        write_atomically(self.path_of(name, image_sha256, (height, width)), payload)
        return entry

    def read(
        self,
        name: str | PurePath,
        image_sha256: str | None = None,
        resolution: tuple[int, int] | None = None,
    ) -> CacheEntry:
        """The entry of one image, verified.

        Args:
            name: the image's name relative to the capture.
            image_sha256: refuse entries made from other bytes; None: any, if there is only one.
            resolution: refuse masks of another (height, width); None: any, if there are only masks of one.

        Raises:
            CacheError: there is no such entry, several would do, or it is damaged, foreign or stale.
        """
        found, problem = self.find(name, image_sha256, resolution)
        if found is not None:
            return found
        if not problem:
            raise CacheError(f"no cached masks for {normalise_name(name)} in {self.folder}: run `maskfield extract`")
        raise CacheError(
            f"cached masks of {normalise_name(name)} cannot be used: {problem}; run `maskfield extract` to rebuild them"
        )

    def find(
        self, name: str | PurePath, image_sha256: str | None, resolution: tuple[int, int] | None
    ) -> tuple[CacheEntry | None, str]:
        """The entry of one image, or None and why it has to be built again: ``""`` if there is none yet.

        Arguments are those of :meth:`read`.
        """
        paths: list[Path] = []
        if image_sha256 is not None and resolution is not None:
            exact = self.path_of(name, image_sha256, resolution)
            paths = [exact] if exact.exists() else []
        paths = paths or self.paths_of(name)
        found, problem = [], ""
        for path in paths:
            try:
                found.append(self._load(path, normalise_name(name), image_sha256, resolution))
            except _Unusable as error:
                problem = f"{error} ({path})"
        if len(found) > 1:
            return None, f"{len(found)} images of this name are in {self.folder}, say of which content and size"
        return (found[0], "") if found else (None, problem)

    def _load(self, path: Path, name: str, image_sha256: str | None, resolution: tuple[int, int] | None) -> CacheEntry:
        try:
            with safe_open(path, framework="numpy") as file:
                metadata = file.metadata() or {}
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
        except (OSError, SafetensorError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise _Unusable(f"the file is damaged ({str(error).strip() or type(error).__name__})") from error
        if metadata.get("format") != FORMAT:
            raise _Unusable("the file is no cache entry")
        if metadata.get("schema") != str(SCHEMA_VERSION):
            raise _Unusable(f"it has schema {metadata.get('schema')}, this version reads {SCHEMA_VERSION}")
        try:
            header = EntryHeader(
                metadata["image_name"],
                metadata["image_sha256"],
                int(metadata["height"]),
                int(metadata["width"]),
                metadata["fingerprint"],
            )
        except (KeyError, ValueError) as error:
            raise _Unusable("the file is damaged (incomplete header)") from error
        if bad := shape_problem(tensors, header.height, header.width):
            raise _Unusable(f"the file is damaged ({bad})")
        if checksum(header, tensors) != metadata.get("checksum"):
            raise _Unusable("the file is damaged (wrong checksum)")
        if header.image_name != name:
            raise _Unusable(f"it belongs to the image {header.image_name}")
        if header.fingerprint != self.fingerprint:
            raise _Unusable("it was made by other models or parameters")
        if image_sha256 is not None and header.image_sha256 != image_sha256:
            raise _Unusable("the image has changed since")
        if resolution is not None and (header.height, header.width) != tuple(resolution):
            raise _Unusable(
                f"its masks are {header.width}x{header.height} pixels, the camera {resolution[1]}x{resolution[0]}"
            )
        return CacheEntry(header, **tensors)

    def remove_leftovers(self) -> int:
        """Delete temporary files of writers that are gone; returns how many."""
        return remove_leftovers(self.folder)


class _BrokenManifest(CacheError):
    """No manifest, or one that nobody can read."""


class _Unusable(Exception):
    """An entry that must not be used, and why."""


def write_atomically(path: Path, payload: bytes) -> None:
    """Writes a file of the cache whole or not at all.

    Raises:
        CacheError: it cannot be written (:class:`DiskFullError`: no space left).
    """
    with _explained(path.parent), atomic_path(path) as temporary, temporary.open("wb") as file:
        _write_bytes(file, payload)


def _write_bytes(file: Any, payload: bytes) -> None:
    file.write(payload)


@contextlib.contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """Turn file-system errors into messages a user can act on."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL_DISK:
            raise DiskFullError(f"no space left for the mask cache in {folder}") from error
        raise CacheError(
            f"cannot write the mask cache in {folder} ({error.strerror or error}): "
            "make the folder writable or choose another one"
        ) from error
