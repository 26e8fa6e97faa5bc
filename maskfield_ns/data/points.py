"""The sparse points that Gaussians start from: is the .ply what it should be, and what is in it?

Read without nerfstudio's open3d, which wants system libraries and says nothing when it cannot read a file.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from maskfield_ns.errors import CaptureError

MIN_POINTS = 4
"""Gaussians start as large as the distance to their three nearest neighbors."""
_HEADER_BYTES = 1 << 16
_REMEDY = 'mend it, or remove "ply_file_path" from transforms.json to start from random points'
_TYPES = {
    **dict.fromkeys(("char", "int8"), "i1"),
    **dict.fromkeys(("uchar", "uint8"), "u1"),
    **dict.fromkeys(("short", "int16"), "i2"),
    **dict.fromkeys(("ushort", "uint16"), "u2"),
    **dict.fromkeys(("int", "int32"), "i4"),
    **dict.fromkeys(("uint", "uint32"), "u4"),
    **dict.fromkeys(("float", "float32"), "f4"),
    **dict.fromkeys(("double", "float64"), "f8"),
}
_BYTE_ORDERS = {"binary_little_endian": "<", "binary_big_endian": ">"}
_GRAY = 128
"""Color of points without one."""


@dataclass(frozen=True)
class _Header:
    kind: str
    count: int
    properties: tuple[tuple[str, str], ...]
    """(name, type) of the vertices."""
    before: int
    """Bytes (rows, in a text file) of elements before the vertices."""
    length: int
    """Bytes of the header itself."""

    @property
    def dtype(self) -> np.dtype:
        order = _BYTE_ORDERS[self.kind]
        return np.dtype([(name, order + _TYPES[kind]) for name, kind in self.properties])


def check_points(path: Path) -> int:
    """Number of points in a .ply file; reads its header only.

    Raises:
        CaptureError: no such file, no PLY, too few points, points without a position, or fewer bytes than it announces.
    """
    return _header(path).count


def read_points(path: Path) -> tuple[Float[np.ndarray, "P 3"], UInt8[np.ndarray, "P 3"]]:
    """Positions (float64) and colors of a .ply file's points; memory is bounded by the size of the file.

    Raises:
        CaptureError: as :func:`check_points`, or the rows are not what the header says.
    """
    header = _header(path)
    names = [name for name, _ in header.properties]
    with path.open("rb") as file:
        file.seek(header.length)
        if header.kind == "ascii":
            rows = file.read().decode("ascii", "replace").split("\n", header.before)[-1]
            values = _numbers(rows, header.count * len(names))
            if values is None:
                raise CaptureError(f"the sparse points {path} have rows that are no numbers; {_REMEDY}")
            table = dict(zip(names, values.reshape(header.count, len(names)).T, strict=True))
        else:
            file.seek(header.length + header.before)
            rows = np.frombuffer(file.read(header.count * header.dtype.itemsize), header.dtype)
            table = {name: rows[name] for name in names}
    xyz = np.stack([table[name].astype(np.float64) for name in "xyz"], axis=1)
    colors = [table.get(name) for name in ("red", "green", "blue")]
    if any(color is None for color in colors):
        return xyz, np.full(xyz.shape, _GRAY, np.uint8)
    rgb = np.nan_to_num(np.stack([np.asarray(color, np.float64) for color in colors], axis=1))
    if dict(header.properties)["red"] in ("float", "float32", "double", "float64") and rgb.max() <= 1:
        rgb *= 255
    return xyz, rgb.clip(0, 255).astype(np.uint8)


def _numbers(text: str, count: int) -> Float[np.ndarray, " N"] | None:
    """The first numbers of a text, or None when there are fewer or something else."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # NumPy before 2.3 warns where it now raises
        try:
            values = np.fromstring(text, np.float64, count, sep=" ")
        except ValueError:
            return None
    return values if len(values) == count else None


def _header(path: Path) -> _Header:
    try:
        with path.open("rb") as file:
            start = file.read(_HEADER_BYTES)
        size = path.stat().st_size
    except OSError as error:
        raise CaptureError(f"cannot read the sparse points {path}: {error.strerror or error}; {_REMEDY}") from error
    text, mark, rest = start.partition(b"end_header")
    if not start.startswith(b"ply") or not mark:
        raise CaptureError(f"the sparse points {path} are no PLY file (no header); {_REMEDY}")
    kind, elements = _elements(text.decode("ascii", "replace"))
    if kind != "ascii" and kind not in _BYTE_ORDERS:
        raise CaptureError(f"the sparse points {path} are of the unknown format {kind!r}; {_REMEDY}")
    names = [name for name, _, _ in elements]
    at = names.index("vertex") if "vertex" in names else None
    count, properties = elements[at][1:] if at is not None else (0, ())
    own = {name: kind for name, kind in properties if kind in _TYPES}
    missing = [name for name in "xyz" if name not in own]
    if missing:
        raise CaptureError(f"the sparse points {path} have no {', '.join(missing)}; {_REMEDY}")
    if count < MIN_POINTS:
        raise CaptureError(f"the sparse points {path} are {count}, at least {MIN_POINTS} are needed; {_REMEDY}")
    # Rows of text have at least a digit and a separator per value: memory stays bounded by the size of the file.
    if len(own) < len(properties):
        raise CaptureError(f"the sparse points {path} have properties that are no numbers, or twice; {_REMEDY}")
    before, width = 0, 2 * len(properties)
    if kind == "ascii":
        before = sum(number for _, number, _ in elements[:at])
    else:
        if any(kind not in _TYPES for _, _, p in elements[:at] for _, kind in p):
            raise CaptureError(f"the sparse points {path} have lists before the points; {_REMEDY}")
        before = sum(number * sum(_width(kind) for _, kind in p) for _, number, p in elements[:at])
        width = sum(_width(kind) for _, kind in properties)
    length = len(text) + len(mark) + (2 if rest.startswith(b"\r\n") else 1)
    needed = length + (before if kind != "ascii" else 2 * before) + count * width
    if size < needed - 1:  # the last line of a text file may lack its end
        raise CaptureError(f"the sparse points {path} are cut short: {size} of {needed} bytes; {_REMEDY}")
    return _Header(kind, count, tuple(properties), before, length)


def _elements(text: str) -> tuple[str, list[tuple[str, int, list[tuple[str, str]]]]]:
    """Format of the rows, and of every element its name, number and properties (name, type)."""
    kind, elements = "", []
    for words in (line.split() for line in text.splitlines()):
        if words[:1] == ["format"] and len(words) > 1:
            kind = words[1]
        elif words[:1] == ["element"] and len(words) == 3:
            number = words[2]
            usable = number.isascii() and number.isdigit() and len(number) < 19
            elements.append((words[1], int(number) if usable else 0, []))
        elif words[:1] == ["property"] and elements and len(words) >= 3:
            elements[-1][2].append((words[-1], words[1]))
    return kind, elements


def _width(kind: str) -> int:
    return np.dtype(_TYPES[kind]).itemsize
