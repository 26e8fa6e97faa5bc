"""Sparse points that cannot be used end in one clear message."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from runs import DEMO_CAPTURE

from maskfield_ns.data.points import check_points
from maskfield_ns.errors import CaptureError

HEADER = "ply\nformat {kind} 1.0\nelement vertex {count}\n{properties}end_header\n"
XYZ = "property float x\nproperty float y\nproperty float z\n"


def write(
    path: Path, count: int = 5, properties: str = XYZ, kind: str = "binary_little_endian", points: int = 5
) -> Path:
    header = HEADER.format(kind=kind, count=count, properties=properties).encode()
    path.write_bytes(header + struct.pack("<3f", 1, 2, 3) * points)
    return path


def test_good_files_are_counted(tmp_path: Path) -> None:
    assert check_points(write(tmp_path / "a.ply")) == 5
    coloured = XYZ + "property uchar red\nproperty uchar green\nproperty uchar blue\nelement face 0\n"
    assert check_points(write(tmp_path / "b.ply", 4, coloured)) == 4
    assert check_points(DEMO_CAPTURE / "sparse.ply") > 100


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"count": 3}, "are 3, at least 4"),
        ({"count": 0}, "are 0, at least 4"),
        ({"properties": XYZ.replace("property float y\n", "")}, "have no y"),
        ({"properties": "property list uchar int x\n"}, "have no x, y, z"),
        ({"points": 2}, r"cut short: \d+ of \d+ bytes"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, arguments: dict, message: str) -> None:
    path = write(tmp_path / "bad points.ply", **arguments)
    with pytest.raises(CaptureError, match=message) as caught:
        check_points(path)
    assert "bad points.ply" in str(caught.value) and "ply_file_path" in str(caught.value)


def test_missing_and_foreign_files(tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match="No such file"):
        check_points(tmp_path / "nothing.ply")
    (tmp_path / "picture.ply").write_bytes(b"\x89PNG" * 100)
    with pytest.raises(CaptureError, match="no PLY file"):
        check_points(tmp_path / "picture.ply")
