"""Layout of the mask cache: what an entry holds, how it is named, and what makes it valid. Pure functions only.

``docs/cache.md`` describes the same for readers in other languages; raise :data:`SCHEMA_VERSION` with every change.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import numpy as np
from jaxtyping import Bool, Float16, Float32, Int8, Int32, Int64, UInt16

from maskfield_ns.cache.runs import decode_masks, encode_masks, runs_problem
from maskfield_ns.foundation.protocols import LEVELS, MaskProposals

FORMAT = "maskfield-cache"
SCHEMA_VERSION = 2
CACHE_FOLDER = "maskfield_cache"
"""Usual folder of the caches of a capture, inside it."""
MANIFEST = "manifest.json"
ENTRY_SUFFIX = ".safetensors"
SLUG_LENGTH = 60


@dataclass(frozen=True)
class EntryHeader:
    """Which image an entry is about, and what it was made with."""

    image_name: str
    """Name of the image relative to the capture, see :func:`normalise_name`."""
    image_sha256: str
    """SHA-256 of the image file's bytes."""
    height: int
    """Rows of the masks: the camera's resolution."""
    width: int
    """Columns of the masks."""
    fingerprint: str
    """See :func:`extraction_fingerprint`."""

    def metadata(self, checksum: str) -> dict[str, str]:
        """The safetensors header of the entry; its values are strings by that format's rule."""
        return {
            "format": FORMAT,
            "schema": str(SCHEMA_VERSION),
            "image_name": self.image_name,
            "image_sha256": self.image_sha256,
            "height": str(self.height),
            "width": str(self.width),
            "fingerprint": self.fingerprint,
            "checksum": checksum,
        }


@dataclass(frozen=True)
class CacheEntry:
    """The masks of one image and their embeddings; masks stay run lengths until asked for."""

    header: EntryHeader
    runs: UInt16[np.ndarray, " R"]
    """Run lengths of all masks, see :func:`~maskfield_ns.cache.runs.encode_masks`."""
    ends: Int64[np.ndarray, " M"]
    """Where each mask's runs end."""
    levels: Int8[np.ndarray, " M"]
    """Index into :data:`~maskfield_ns.foundation.protocols.LEVELS`."""
    scores: Float32[np.ndarray, " M"]
    """Predicted IoU in [0, 1]."""
    stability: Float32[np.ndarray, " M"]
    """Stability in [0, 1]."""
    boxes: Int32[np.ndarray, "M 4"]
    """Pixel boxes (x0, y0, x1, y1), ends exclusive."""
    embeddings: Float16[np.ndarray, "M C"]
    """Unit-length region embeddings."""

    def __len__(self) -> int:
        return len(self.levels)

    def masks(self) -> Bool[np.ndarray, "M H W"]:
        """The masks, decoded."""
        return decode_masks(self.runs, self.ends, self.header.height, self.header.width)

    def each_mask(self) -> Iterator[Bool[np.ndarray, "H W"]]:
        """The masks one after the other: all of a large photograph's at once are gigabytes."""
        for k in range(len(self)):
            own = self.runs[self.ends[k - 1] if k else 0 : self.ends[k]]
            yield decode_masks(own, np.array([len(own)]), self.header.height, self.header.width)[0]

    def proposals(self) -> MaskProposals:
        """Everything but the embeddings, as the proposer returned it."""
        return MaskProposals(self.masks(), self.levels, self.scores, self.stability, self.boxes)

    def tensors(self) -> dict[str, np.ndarray]:
        """The arrays under their names in the file."""
        return {name: np.ascontiguousarray(getattr(self, name)) for name in TENSORS}

    @property
    def checksum(self) -> str:
        """See :func:`checksum`."""
        return checksum(self.header, self.tensors())


TENSORS = ("runs", "ends", "levels", "scores", "stability", "boxes", "embeddings")
"""Tensor names of an entry, in the order in which the checksum covers them."""
_DTYPES = {
    "runs": np.uint16,
    "ends": np.int64,
    "levels": np.int8,
    "scores": np.float32,
    "stability": np.float32,
    "boxes": np.int32,
    "embeddings": np.float16,
}


def make_entry(header: EntryHeader, proposals: MaskProposals, embeddings: Float32[np.ndarray, "M C"]) -> CacheEntry:
    """Pack what the models returned for one image.

    Raises:
        ValueError: shapes, levels or sizes do not fit together, or values are not finite.
    """
    entry = CacheEntry(
        header,
        *encode_masks(proposals.masks),
        levels=np.asarray(proposals.levels, _DTYPES["levels"]),
        scores=np.asarray(proposals.scores, _DTYPES["scores"]),
        stability=np.asarray(proposals.stability, _DTYPES["stability"]),
        boxes=np.asarray(proposals.boxes, _DTYPES["boxes"]),
        embeddings=np.asarray(embeddings, _DTYPES["embeddings"]),
    )
    if proposals.masks.shape[1:] != (header.height, header.width):
        raise ValueError(f"masks of {proposals.masks.shape[1:]} pixels for an image of {header.height, header.width}")
    if problem := shape_problem(entry.tensors(), header.height, header.width):
        raise ValueError(problem)
    return entry


def shape_problem(tensors: Mapping[str, np.ndarray], height: int, width: int) -> str | None:
    """What is wrong with the tensors of an entry, or None."""
    if set(tensors) != set(TENSORS):
        return f"tensors {sorted(tensors)} instead of {sorted(TENSORS)}"
    count = len(tensors["levels"]) if tensors["levels"].ndim == 1 else -1
    shapes = {
        "runs": (tensors["runs"].size,),
        "ends": (count,),
        "levels": (count,),
        "scores": (count,),
        "stability": (count,),
        "boxes": (count, 4),
        "embeddings": (count, tensors["embeddings"].shape[-1] if tensors["embeddings"].ndim == 2 else -1),
    }
    for name, shape in shapes.items():
        if tensors[name].shape != shape or tensors[name].dtype != _DTYPES[name]:
            return f"{name} is {tensors[name].dtype} {tensors[name].shape}, not {np.dtype(_DTYPES[name])} {shape}"
    if problem := runs_problem(tensors["runs"], tensors["ends"], height * width):
        return problem
    if not np.isin(tensors["levels"], range(len(LEVELS))).all():
        return "a level that does not exist"
    if not all(np.isfinite(tensors[name]).all() for name in ("scores", "stability", "embeddings")):
        return "values that are not finite"
    return None


def checksum(header: EntryHeader, tensors: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over the header and every tensor's name, type, shape and little-endian bytes."""
    digest = hashlib.sha256(canonical_json(header.metadata(checksum="")).encode())
    for name in TENSORS:
        array = np.ascontiguousarray(tensors[name])
        array = array.astype(array.dtype.newbyteorder("<"), copy=False)
        digest.update(canonical_json([name, array.dtype.name, list(array.shape)]).encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def canonical_json(value: Any) -> str:
    """One text per value: sorted keys, no spaces, ASCII, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def extraction_fingerprint(proposer: Mapping[str, Any], embedder: Mapping[str, Any]) -> str:
    """SHA-256 of everything but the image that determines an entry: schema, models, weights, parameters."""
    everything = {"schema": SCHEMA_VERSION, "proposer": proposer, "embedder": embedder}
    return hashlib.sha256(canonical_json(everything).encode()).hexdigest()


def normalise_name(name: str | PurePath) -> str:
    """An image's name relative to its capture: forward slashes, Unicode NFC, the same on every file system.

    Raises:
        ValueError: the name is absolute (it would tie the cache to one machine) or empty.
    """
    path = PurePath(name)
    if path.is_absolute() or not path.name:
        raise ValueError(f"an image's name must be relative to the capture: {str(name)!r}")
    # File names that are no valid UTF-8 arrive as lone surrogates, which JSON and safetensors cannot hold.
    text = path.as_posix().encode("utf-8", "backslashreplace").decode("utf-8")
    return unicodedata.normalize("NFC", text)


def entry_file_name(name: str, image_sha256: str, height: int, width: int) -> str:
    """File name of an entry: a readable part, a hash of the image's name, and one of its content and size.

    So any two names give two files everywhere, and so do two captures that share a cache and use the same names.

    Args:
        name: a normalised image name.
        image_sha256, height, width: as in :class:`EntryHeader`.
    """
    content = hashlib.sha256(canonical_json([image_sha256, height, width]).encode()).hexdigest()[:8]
    return f"{entry_stem(name)}-{content}{ENTRY_SUFFIX}"


def entry_stem(name: str) -> str:
    """The part of an entry's file name that depends on the image's name alone."""
    ascii_text = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    slug = re.sub(r"[^a-z0-9]+", "-", ascii_text).strip("-")[-SLUG_LENGTH:].strip("-")
    digest = hashlib.sha256(name.encode("utf-8")).hexdigest()[:16]
    return f"{slug}-{digest}" if slug else digest
