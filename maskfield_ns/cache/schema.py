"""Layout of the mask cache: what an entry holds, how it is named, and what makes it valid. Pure functions only.

``docs/cache.md`` describes the same for readers in other languages; raise :data:`SCHEMA_VERSION` with every change.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import numpy as np
from jaxtyping import Bool, Float16, Float32, Int8, Int32, UInt8

from maskfield_ns.foundation.protocols import LEVELS, MaskProposals

FORMAT = "maskfield-cache"
SCHEMA_VERSION = 1
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
    """The masks of one image and their embeddings; masks stay bit-packed until asked for."""

    header: EntryHeader
    packed_masks: UInt8[np.ndarray, "M B"]
    """One row of ceil(H*W/8) bytes per mask, see :func:`pack_masks`."""
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
        return len(self.packed_masks)

    def masks(self) -> Bool[np.ndarray, "M H W"]:
        """The masks, unpacked."""
        return unpack_masks(self.packed_masks, self.header.height, self.header.width)

    def proposals(self) -> MaskProposals:
        """Everything but the embeddings, as the proposer returned it."""
        return MaskProposals(self.masks(), self.levels, self.scores, self.stability, self.boxes)

    def tensors(self) -> dict[str, np.ndarray]:
        """The arrays under their names in the file."""
        return {name: np.ascontiguousarray(getattr(self, _FIELDS[name])) for name in TENSORS}


TENSORS = ("masks", "levels", "scores", "stability", "boxes", "embeddings")
"""Tensor names of an entry, in the order in which the checksum covers them."""
_FIELDS = {name: "packed_masks" if name == "masks" else name for name in TENSORS}
_DTYPES = {
    "masks": np.uint8,
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
        pack_masks(proposals.masks),
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
        "masks": (count, packed_bytes(height, width)),
        "levels": (count,),
        "scores": (count,),
        "stability": (count,),
        "boxes": (count, 4),
        "embeddings": (count, tensors["embeddings"].shape[-1] if tensors["embeddings"].ndim == 2 else -1),
    }
    for name, shape in shapes.items():
        if tensors[name].shape != shape or tensors[name].dtype != _DTYPES[name]:
            return f"{name} is {tensors[name].dtype} {tensors[name].shape}, not {np.dtype(_DTYPES[name])} {shape}"
    if not np.isin(tensors["levels"], range(len(LEVELS))).all():
        return "a level that does not exist"
    if not all(np.isfinite(tensors[name]).all() for name in ("scores", "stability", "embeddings")):
        return "values that are not finite"
    return None


def packed_bytes(height: int, width: int) -> int:
    """Bytes of one packed mask."""
    return (height * width + 7) // 8


def pack_masks(masks: Bool[np.ndarray, "M H W"]) -> UInt8[np.ndarray, "M B"]:
    """One bit per pixel, row by row, the first pixel in the highest bit; the last byte is padded with zeros."""
    return np.packbits(masks.reshape(len(masks), masks.shape[1] * masks.shape[2]), axis=1)


def unpack_masks(packed: UInt8[np.ndarray, "M B"], height: int, width: int) -> Bool[np.ndarray, "M H W"]:
    """The inverse of :func:`pack_masks`."""
    bits = np.unpackbits(packed, axis=1, count=height * width)
    return bits.view(bool).reshape(len(packed), height, width)


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


def entry_file_name(name: str) -> str:
    """File name of an entry: a readable part and a hash, so that any two image names give two files everywhere.

    Args:
        name: a normalised image name.
    """
    ascii_text = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    slug = re.sub(r"[^a-z0-9]+", "-", ascii_text).strip("-")[-SLUG_LENGTH:].strip("-")
    digest = hashlib.sha256(name.encode("utf-8")).hexdigest()[:16]
    return f"{slug}-{digest}{ENTRY_SUFFIX}" if slug else f"{digest}{ENTRY_SUFFIX}"
