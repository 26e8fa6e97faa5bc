""".ply files: Gaussians as common viewers read them, coloured points, meshes. Binary little endian, written at once."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8

from maskfield_ns.errors import PlyError
from maskfield_ns.splatting.sh_rotation import C0

_NUMPY = {
    "float": "<f4", "float32": "<f4", "double": "<f8", "float64": "<f8",
    "char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1",
    "short": "<i2", "int16": "<i2", "ushort": "<u2", "uint16": "<u2",
    "int": "<i4", "int32": "<i4", "uint": "<u4", "uint32": "<u4",
}  # fmt: skip
_PLY = {
    "f4": "float",
    "f8": "double",
    "i1": "char",
    "u1": "uchar",
    "i2": "short",
    "u2": "ushort",
    "i4": "int",
    "u4": "uint",
}
_MOST_HEADER = 1 << 16
_REST_SIZES = (0, 3, 8, 15, 24)
"""Coefficients per channel beyond the constant, for spherical harmonics of degree 0 to 4."""


def write_gaussians(
    path: Path,
    gaussians: Mapping[str, Float[np.ndarray, "N ..."]],
    instance: Int[np.ndarray, " N"] | None = None,
    comments: Sequence[str] = (),
) -> None:
    """Writes Gaussians in the layout of the original 3D Gaussian splatting code and nerfstudio's exporter.

    Properties in order: x y z, nx ny nz (0), f_dc_0..2, f_rest_* (all red coefficients first, then green, blue),
    opacity (logit), scale_0..2 (log), rot_0..3 (w first), and with ``instance`` an extra int property of that name.
    Rows with a value that is not finite are left out, as nerfstudio does.

    Args:
        path: of the file; replaced at once.
        gaussians: means, quats, scales, opacities, features_dc, features_rest before activation, features as spherical
            harmonics.
        instance: number of the thing that each belongs to, -1 for none.
        comments: lines of the header.

    Raises:
        PlyError: the file cannot be written, or there is not a single Gaussian.
    """
    count = len(gaussians["means"])
    rest = np.asarray(gaussians["features_rest"], np.float32).transpose(0, 2, 1).reshape(count, -1)
    columns: dict[str, np.ndarray] = {}
    for names, values in (
        (("x", "y", "z"), gaussians["means"]),
        (("nx", "ny", "nz"), np.zeros((count, 3), np.float32)),
        (("f_dc_0", "f_dc_1", "f_dc_2"), gaussians["features_dc"]),
        ([f"f_rest_{i}" for i in range(rest.shape[1])], rest),
        (("opacity",), np.asarray(gaussians["opacities"]).reshape(count, 1)),
        (("scale_0", "scale_1", "scale_2"), gaussians["scales"]),
        (("rot_0", "rot_1", "rot_2", "rot_3"), gaussians["quats"]),
    ):
        for column, name in enumerate(names):
            columns[name] = np.asarray(values, np.float32)[:, column]
    finite = np.all([np.isfinite(values) for values in columns.values()], axis=0) if count else np.zeros(0, bool)
    if not finite.any():
        raise PlyError(f"no Gaussian to write to {path}")
    if instance is not None:
        columns["instance"] = np.asarray(instance, np.int32)
    write_ply(path, {"vertex": {name: values[finite] for name, values in columns.items()}}, comments)


def read_gaussians(path: Path) -> dict[str, np.ndarray]:
    """Gaussians of a .ply, as :func:`write_gaussians` takes them, and ``instance`` if the file has it.

    Raises:
        PlyError: the file cannot be read, is not a .ply, or lacks properties or has wrong ones; says which.
    """
    vertex = read_ply(path)["vertex"]
    groups = {
        "means": ["x", "y", "z"],
        "features_dc": [f"f_dc_{i}" for i in range(3)],
        "opacities": ["opacity"],
        "scales": [f"scale_{i}" for i in range(3)],
        "quats": [f"rot_{i}" for i in range(4)],
    }
    missing = [name for names in groups.values() for name in names if name not in vertex]
    if missing:
        hint = ""
        if {"red", "green", "blue"} & set(vertex) and any(name.startswith("f_dc") for name in missing):
            hint = ": exported with --ply-color-mode rgb? Use sh_coeffs"
        elif not any(name.startswith(("scale_", "rot_")) for name in vertex):
            hint = ": a point cloud or a mesh, not Gaussians?"
        raise PlyError(f"{path} lacks the properties {', '.join(missing)}{hint}")
    rest_names = [name for name in vertex if name.startswith("f_rest_")]
    expected = [f"f_rest_{i}" for i in range(len(rest_names))]
    if set(rest_names) != set(expected) or len(rest_names) % 3 or len(rest_names) // 3 not in _REST_SIZES:
        sizes = ", ".join(str(3 * size) for size in _REST_SIZES)
        raise PlyError(f"{path} has {len(rest_names)} f_rest properties; they must be f_rest_0 on, {sizes} of them")
    result = {key: np.stack([vertex[name] for name in names], axis=1) for key, names in groups.items()}
    count = len(vertex["x"])
    if not count:
        raise PlyError(f"{path} holds no Gaussian")
    rest = np.stack([vertex[name] for name in expected], axis=1) if expected else np.zeros((count, 0))
    result["features_rest"] = rest.reshape(count, 3, -1).transpose(0, 2, 1)
    for key, values in result.items():
        if values.dtype.kind != "f":
            raise PlyError(f"{path}: the properties of {key} are whole numbers, not float")
        if not np.isfinite(values).all():
            raise PlyError(f"{path} holds NaN or infinity in {key}: remove those rows")
        result[key] = np.ascontiguousarray(values, np.float32)
    if (np.linalg.norm(result["quats"], axis=1) < 1e-8).any():
        raise PlyError(f"{path} holds rotations (rot_0 to rot_3) that are all zero")
    if "instance" in vertex:
        result["instance"] = vertex["instance"].astype(np.int64)
    return result


def write_points(
    path: Path, points: Float[np.ndarray, "N 3"], colours: UInt8[np.ndarray, "N 3"], comments: Sequence[str] = ()
) -> None:
    """Writes a coloured point cloud. Errors as :func:`write_gaussians`."""
    if not len(points):
        raise PlyError(f"no point to write to {path}")
    write_ply(path, {"vertex": _coloured(points, colours)}, comments)


def write_mesh(
    path: Path,
    vertices: Float[np.ndarray, "V 3"],
    faces: Int[np.ndarray, "F 3"],
    colours: UInt8[np.ndarray, "V 3"],
    comments: Sequence[str] = (),
) -> None:
    """Writes a triangle mesh with vertex colours. Errors as :func:`write_gaussians`."""
    if not len(faces):
        raise PlyError(f"no triangle to write to {path}")
    rows = np.empty(len(faces), [("n", "u1"), ("index", "<i4", (3,))])
    rows["n"], rows["index"] = 3, faces
    tail = (f"element face {len(faces)}\nproperty list uchar int vertex_indices\n", rows.tobytes())
    write_ply(path, {"vertex": _coloured(vertices, colours)}, comments, tail)


def rgb_of(features_dc: Float[np.ndarray, "N 3"]) -> UInt8[np.ndarray, "N 3"]:
    """Colours of Gaussians, without what depends on the direction."""
    return np.round(np.clip(0.5 + C0 * np.asarray(features_dc), 0, 1) * 255).astype(np.uint8)


def _coloured(points: np.ndarray, colours: np.ndarray) -> dict[str, np.ndarray]:
    place = np.asarray(points, np.float32)
    named = {name: place[:, k] for k, name in enumerate("xyz")}
    return named | {name: np.asarray(colours, np.uint8)[:, k] for k, name in enumerate(("red", "green", "blue"))}


# --- the format -------------------------------------------------------------------------------------------------------


def write_ply(
    path: Path,
    elements: Mapping[str, Mapping[str, np.ndarray]],
    comments: Sequence[str] = (),
    tail: tuple[str, bytes] = ("", b""),
) -> None:
    """Writes elements of scalar properties.

    Args:
        path: of the file; replaced at once.
        elements: element -> property -> column.
        comments: lines of the header.
        tail: header lines and data that follow.

    Raises:
        PlyError: the file cannot be written.
    """
    header = ["ply", "format binary_little_endian 1.0", "comment Generated by maskfield-ns"]
    header += [f"comment {' '.join(line.split())}".encode("ascii", "replace").decode() for line in comments]
    data = []
    for element, columns in elements.items():
        kinds = [(name, column.dtype.newbyteorder("<")) for name, column in columns.items()]
        rows = np.empty(len(next(iter(columns.values()))), kinds)
        for name, column in columns.items():
            rows[name] = column
        header.append(f"element {element} {len(rows)}")
        header += [f"property {_PLY[np.dtype(kind).str[1:]]} {name}" for name, kind in kinds]
        data.append(rows.tobytes())
    text = "\n".join(header) + "\n" + tail[0] + "end_header\n"
    path = Path(path)
    temporary = path.parent / f".{secrets.token_hex(8)}.tmp"  # same folder, hence same file system, for os.replace
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(b"".join([text.encode("ascii"), *data, tail[1]]))
        os.replace(temporary, path)
    except OSError as error:
        raise PlyError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def read_ply(path: Path) -> dict[str, dict[str, np.ndarray]]:
    """Elements of scalar properties of a .ply, binary or ASCII, up to the first element with a list (a mesh's faces).

    Raises:
        PlyError: there is no such file, it is no .ply, or damaged.
    """
    try:
        with open(path, "rb") as file:
            elements, form = _header(path, file)
            result: dict[str, dict[str, np.ndarray]] = {}
            for name, count, properties in elements:
                if any(kind is None for _, kind in properties):
                    break
                result[name] = _body(path, file, form, name, count, properties)
    except OSError as error:
        raise PlyError(f"cannot read {path}: {error.strerror or error}") from error
    if "vertex" not in result:
        raise PlyError(f"{path} has no element vertex with plain properties")
    return result


_Element = tuple[str, int, list[tuple[str, Any]]]


def _header(path: Path, file: Any) -> tuple[list[_Element], str]:
    if file.readline(16).strip() != b"ply":
        raise PlyError(f"{path} is no .ply file")
    elements: list[_Element] = []
    form, read = "", 0
    while True:
        raw = file.readline(4096)
        read += len(raw)
        words = raw.decode("ascii", "replace").split()
        if not raw.endswith(b"\n") or read > _MOST_HEADER:
            raise PlyError(f"{path}: the header does not end; the file is damaged")
        try:
            if words[:1] == ["end_header"]:
                break
            if words[:1] == ["format"]:
                form = words[1]
            elif words[:1] == ["element"]:
                elements.append((words[1], int(words[2]), []))
            elif words[:1] == ["property"]:
                kind = None if words[1] == "list" else _NUMPY[words[1]]
                elements[-1][2].append((words[-1], kind))
        except (IndexError, KeyError, ValueError) as error:
            raise PlyError(f"{path}: the header line {' '.join(words)!r} makes no sense") from error
    if form not in ("ascii", "binary_little_endian", "binary_big_endian"):
        raise PlyError(f"{path}: the format {form or 'none'!r} is unknown")
    for name, count, properties in elements:
        names = [key for key, _ in properties]
        if count < 0 or len(set(names)) < len(names):
            raise PlyError(f"{path}: element {name} has a negative size or a property twice")
    return elements, form


def _body(
    path: Path, file: Any, form: str, name: str, count: int, properties: list[tuple[str, Any]]
) -> dict[str, np.ndarray]:
    if not properties:
        return {}
    if form == "ascii":
        lines = [file.readline().split() for _ in range(min(count, os.fstat(file.fileno()).st_size))]
        try:
            table = np.array(lines, np.float64).reshape(count, len(properties))
        except ValueError as error:
            raise PlyError(f"{path}: element {name} does not have {count} rows of {len(properties)} numbers") from error
        return {key: table[:, k].astype(kind) for k, (key, kind) in enumerate(properties)}
    order = "<" if form == "binary_little_endian" else ">"
    layout = np.dtype([(key, np.dtype(kind).newbyteorder(order)) for key, kind in properties])
    # Asked of the file before memory is taken by its header's word.
    data = b""
    if count * layout.itemsize <= os.fstat(file.fileno()).st_size:
        data = file.read(count * layout.itemsize)
    if len(data) < count * layout.itemsize:
        raise PlyError(f"{path} ends in the middle of element {name}: {count} rows announced; the file is damaged")
    rows = np.frombuffer(data, layout, count)
    return {key: rows[key].astype(rows[key].dtype.newbyteorder("=")) for key in layout.names or ()}
