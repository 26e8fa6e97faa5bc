"""Gaussians of a compressed .ply, as the SuperSplat editor and other PlayCanvas tools write them.

256 Gaussians in a row share a chunk, which holds the bounds of their positions, log scales and colors; each Gaussian is
four 32-bit numbers within these bounds: position and scale with 11, 10 and 11 bits, a rotation as the place of its
largest component and the other three with 10 bits each, and color and opacity with 8 bits each. An element ``sh``, if
there is one, holds the further spherical harmonics with 8 bits each.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float64, UInt32

from maskfield_ns.errors import PlyError

_CHUNK = 256
_PACKED = ("packed_position", "packed_rotation", "packed_scale", "packed_color")
_C0 = 0.28209479177387814
"""Value of the constant spherical harmonic."""
_HARMONICS_RANGE = 8.0
"""Spherical harmonics are kept from minus to plus half of this."""


def is_compressed(elements: Mapping[str, Mapping[str, np.ndarray]]) -> bool:
    """Whether the elements of a .ply are those of a compressed one."""
    return "chunk" in elements and any(name in elements["vertex"] for name in _PACKED)


def decompressed(path: Path, elements: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The properties of an uncompressed .ply: x y z, f_dc, f_rest, opacity (logit), scale (log), rot (w first).

    Opacities of 0 and 1 are infinite logits.

    Args:
        path: of the file, for messages.
        elements: of the file.

    Raises:
        PlyError: properties are missing or of the wrong type, or chunks and Gaussians do not fit together.
    """
    chunk, vertex = elements["chunk"], elements["vertex"]
    lacking = [name for name in _PACKED if name not in vertex or vertex[name].dtype != np.uint32]
    bounds = [f"{end}_{name}" for name in (*"xyz", "scale_x", "scale_y", "scale_z") for end in ("min", "max")]
    lacking += [name for name in bounds if name not in chunk]
    if lacking:
        raise PlyError(f"{path} is a compressed .ply that lacks {', '.join(lacking)} or has it in another type")
    count, chunks = len(vertex["packed_position"]), len(chunk["min_x"])
    if chunks != -(-count // _CHUNK):
        raise PlyError(f"{path}: {chunks} chunks of {_CHUNK} do not fit {count} Gaussians")
    owner = np.arange(count) // _CHUNK

    def between(share: np.ndarray, name: str) -> np.ndarray:
        if f"min_{name}" not in chunk:  # files of the first version keep colors between 0 and 1
            return share
        low, high = (chunk[f"{end}_{name}"].astype(np.float64)[owner] for end in ("min", "max"))
        return low + share * (high - low)

    columns: dict[str, np.ndarray] = {}
    for axis, share in zip("xyz", _fields(vertex["packed_position"], (11, 10, 11)), strict=True):
        columns[axis] = between(share, axis)
    red, green, blue, opacity = _fields(vertex["packed_color"], (8, 8, 8, 8))
    for k, (name, share) in enumerate(zip("rgb", (red, green, blue), strict=True)):
        columns[f"f_dc_{k}"] = (between(share, name) - 0.5) / _C0
    with np.errstate(divide="ignore"):
        columns["opacity"] = np.log(opacity) - np.log1p(-opacity)
    for k, (axis, share) in enumerate(zip("xyz", _fields(vertex["packed_scale"], (11, 10, 11)), strict=True)):
        columns[f"scale_{k}"] = between(share, f"scale_{axis}")
    for k, component in enumerate(_rotations(vertex["packed_rotation"]).T):
        columns[f"rot_{k}"] = component
    columns |= _harmonics(path, elements.get("sh", {}), count)
    return {name: values.astype(np.float32) for name, values in columns.items()}


def _fields(packed: UInt32[np.ndarray, " N"], bits: tuple[int, ...]) -> list[Float64[np.ndarray, " N"]]:
    """The numbers packed into 32 bits, the first in the highest ones, as shares of their range."""
    result, shift = [], 32
    for width in bits:
        shift -= width
        result.append(((packed >> np.uint32(shift)) & np.uint32((1 << width) - 1)) / ((1 << width) - 1))
    return result


def _rotations(packed: UInt32[np.ndarray, " N"]) -> Float64[np.ndarray, "N 4"]:
    """Unit quaternions: the two highest bits are the place of the largest component, which is positive."""
    largest = (packed >> np.uint32(30)).astype(np.int64)
    others = np.stack(_fields(packed << np.uint32(2), (10, 10, 10)), axis=1)
    others = (others - 0.5) * math.sqrt(2)
    rest = np.sqrt(np.clip(1 - (others**2).sum(axis=1), 0, None))
    # Component k comes before or after the largest one, which is left out of the sequence.
    places = np.arange(4)[None]
    source = np.clip(places - (places > largest[:, None]), 0, 2)
    return np.where(places == largest[:, None], rest[:, None], np.take_along_axis(others, source, axis=1))


def _harmonics(path: Path, columns: Mapping[str, np.ndarray], count: int) -> dict[str, np.ndarray]:
    result = {}
    for name, values in columns.items():
        if values.dtype != np.uint8 or len(values) != count:
            raise PlyError(f"{path}: the spherical harmonics of a compressed .ply are one byte each, {name} is not")
        # The middle of each of 256 steps; the first and the last stand for the ends of the range.
        share = np.where(values == 0, 0.0, np.where(values == 255, 1.0, (values + 0.5) / 256))
        result[name] = (share - 0.5) * _HARMONICS_RANGE
    return result
