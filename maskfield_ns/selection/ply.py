""".ply files: Gaussians as common viewers read them, coloured points, meshes. Binary little endian, written at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, UInt8

from maskfield_ns.errors import PlyError
from maskfield_ns.ply_format import read_ply, write_ply
from maskfield_ns.selection.ply_compressed import decompressed, is_compressed
from maskfield_ns.splatting.sh_rotation import C0

OPAQUE_LOGIT = 20.0
"""Opacities of exactly 1 and 0 are infinite logits; this and minus this stand for them (in float32 the same)."""
_MOST_LOG_SCALE = 40.0
"""e^44 squared is no float32 any more."""
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
    if not count:
        raise PlyError(f"no Gaussian to write to {path}")
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
    finite = np.all([np.isfinite(values) for values in columns.values()], axis=0)
    if not finite.any():
        raise PlyError(f"no Gaussian to write to {path}")
    if instance is not None:
        columns["instance"] = np.asarray(instance, np.int32)
    write_ply(path, {"vertex": {name: values[finite] for name, values in columns.items()}}, comments)


def read_gaussians(path: Path) -> dict[str, np.ndarray]:
    """Gaussians of a .ply, as :func:`write_gaussians` takes them, and ``instance`` if the file has it.

    Compressed files of SuperSplat are read, too. An opacity of exactly 1 (an infinite logit) becomes OPAQUE_LOGIT.

    Raises:
        PlyError: the file cannot be read, is not a .ply, or lacks properties or has wrong ones; says which.
    """
    elements = read_ply(path)
    vertex = decompressed(path, elements) if is_compressed(elements) else elements["vertex"]
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
        if key == "opacities":
            values = np.where(np.isinf(values), np.copysign(OPAQUE_LOGIT, values), values)
        if not np.isfinite(values).all():
            raise PlyError(f"{path} holds NaN or infinity in {key}: remove those rows")
        with np.errstate(over="ignore"):
            result[key] = np.ascontiguousarray(values, np.float32)
        if not np.isfinite(result[key]).all():
            raise PlyError(f"{path} holds numbers in {key} that are too large: remove those rows")
    if (np.linalg.norm(result["quats"], axis=1) < 1e-8).any():
        raise PlyError(f"{path} holds rotations (rot_0 to rot_3) that are all zero")
    if (result["scales"] > _MOST_LOG_SCALE).any():
        raise PlyError(f"{path} holds Gaussians as large as e^{float(result['scales'].max()):.0f}: remove those rows")
    if "instance" in vertex:
        if vertex["instance"].dtype.kind not in "iu":
            raise PlyError(f"{path}: the property instance is not of whole numbers")
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
