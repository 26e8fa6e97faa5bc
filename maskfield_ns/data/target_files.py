"""Reduced mask targets kept beside the cache, so that a training starts without reducing every mask again.

A file of its own per image and per way of reducing. Its key covers the cache entry's content and everything else the
targets depend on; a file that is missing, damaged or of another key is made again from the entry. Embeddings, levels
and scores stay in the entry alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from maskfield_ns.cache.schema import CacheEntry, canonical_json, entry_stem
from maskfield_ns.data.mask_views import MaskTargets, unit_vectors

FORMAT = "maskfield-targets"
VERSION = 1
FOLDER = "targets"
_STORED = {"crops": np.uint8, "boxes": np.int32, "places": np.int64, "areas": np.float32, "valid": np.uint8}


def kept_targets(folder: Path, entry: CacheEntry, depends_on: object, reduce: Callable[[], MaskTargets]) -> MaskTargets:
    """Targets of a cache entry, from their file or made by `reduce` and stored.

    Args:
        folder: the cache's, of one pair of models.
        entry: what the targets are made from.
        depends_on: everything else that they follow from, as JSON can hold it.
        reduce: makes them.

    Raises:
        CacheError: the file cannot be written.
    """
    key = hashlib.sha256(canonical_json([VERSION, entry.checksum, depends_on]).encode()).hexdigest()
    path = folder / FOLDER / f"{entry_stem(entry.header.image_name)}-{key[:16]}.targets"
    stored = _load(path, key)
    if stored is not None:
        return _with_attributes(stored, entry)
    targets = reduce()
    tensors = {name: np.ascontiguousarray(getattr(targets, name)) for name in _STORED}
    tensors["valid"] = tensors["valid"].view(np.uint8)
    path.parent.mkdir(exist_ok=True)
    metadata = {"format": FORMAT, "key": key, "checksum": _checksum(key, tensors)}
    from safetensors.numpy import save

    from maskfield_ns.cache.store import write_atomically

    write_atomically(path, save(tensors, metadata=metadata))
    return targets


def _load(path: Path, key: str) -> dict[str, np.ndarray] | None:
    if not path.is_file():
        return None
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in _STORED}
    except (OSError, SafetensorError, ValueError, TypeError, KeyError, AttributeError):
        return None
    if metadata.get("key") != key or metadata.get("checksum") != _checksum(key, tensors):
        return None
    return tensors


def _checksum(key: str, tensors: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256(key.encode())
    for name, kind in _STORED.items():
        digest.update(canonical_json([name, str(tensors[name].dtype), list(tensors[name].shape)]).encode())
        digest.update(np.ascontiguousarray(tensors[name], kind).tobytes())
    return digest.hexdigest()


def _with_attributes(stored: dict[str, np.ndarray], entry: CacheEntry) -> MaskTargets:
    places = stored["places"]
    return MaskTargets(
        crops=stored["crops"],
        boxes=stored["boxes"],
        levels=entry.levels[places],
        scores=(entry.scores * entry.stability)[places],
        embeddings=unit_vectors(entry.embeddings)[places],
        places=places,
        areas=stored["areas"],
        valid=stored["valid"].view(bool),
    )
