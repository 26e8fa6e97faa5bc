"""The sparse points that Gaussians start from: is the .ply what it should be?"""

from __future__ import annotations

from pathlib import Path

from maskfield_ns.errors import CaptureError

MIN_POINTS = 4
"""Gaussians start as large as the distance to their three nearest neighbours."""
_HEADER_BYTES = 1 << 16
_SIZES = {
    **dict.fromkeys(("char", "uchar", "int8", "uint8"), 1),
    **dict.fromkeys(("short", "ushort", "int16", "uint16"), 2),
    **dict.fromkeys(("int", "uint", "float", "int32", "uint32", "float32"), 4),
    **dict.fromkeys(("double", "float64"), 8),
}


def check_points(path: Path) -> int:
    """Number of points in a .ply file; reads its header only.

    The library nerfstudio reads it with says nothing when it cannot: training would start from random points.

    Raises:
        CaptureError: no such file, no PLY, too few points, points without a position, or a file cut short.
    """
    remedy = 'mend it, or remove "ply_file_path" from transforms.json to start from random points'
    try:
        with path.open("rb") as file:
            start = file.read(_HEADER_BYTES)
        size = path.stat().st_size
    except OSError as error:
        raise CaptureError(f"cannot read the sparse points {path}: {error.strerror or error}; {remedy}") from error
    text, end, _ = start.partition(b"end_header")
    if not start.startswith(b"ply") or not end:
        raise CaptureError(f"the sparse points {path} are no PLY file (no header); {remedy}")
    lines = [line.split() for line in text.decode("ascii", "replace").splitlines()]
    kind, count, element, properties = "", 0, "", {}
    for words in lines:
        if words[:1] == ["format"] and len(words) > 1:
            kind = words[1]
        elif words[:1] == ["element"] and len(words) == 3:
            element = words[1]
            if element == "vertex":
                count = int(words[2]) if words[2].isdigit() else 0
        elif words[:1] == ["property"] and element == "vertex" and len(words) == 3:
            properties[words[2]] = words[1]
    missing = [name for name in "xyz" if name not in properties]
    if missing:
        raise CaptureError(f"the sparse points {path} have no {', '.join(missing)}; {remedy}")
    if count < MIN_POINTS:
        raise CaptureError(f"the sparse points {path} are {count}, at least {MIN_POINTS} are needed; {remedy}")
    if kind.startswith("binary") and all(t in _SIZES for t in properties.values()):
        needed = len(text) + count * sum(_SIZES[t] for t in properties.values())
        if size < needed:
            raise CaptureError(f"the sparse points {path} are cut short: {size} of {needed} bytes; {remedy}")
    return count
