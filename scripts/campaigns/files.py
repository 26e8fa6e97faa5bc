"""Damages .ply files and edit lists: refused in a line, or read within memory and right; never anything else.

scripts/campaigns/files.py [--cases 1000] [--seconds S] [--seed N] [--output tallies.json]
"""

from __future__ import annotations

import base64
import json
import re
import shutil
import sys
import tempfile
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from campaign import Campaign, Wrong, finish, options
from mutations import changed, damaged

from maskfield_ns.answers.membership import MembershipRule
from maskfield_ns.editing import edits as operations
from maskfield_ns.editing.edits import EditList
from maskfield_ns.ply_format import read_ply, write_ply
from maskfield_ns.selection.ply import read_gaussians, write_gaussians, write_mesh, write_points
from maskfield_ns.selection.selection import FieldSelection, FieldTerm, GaussianSelection
from maskfield_ns.selection.transform import Similarity

MEMORY_FACTOR, MEMORY_FLOOR = 40, 64 << 20
"""Reading a file may take this many times its size, or so many bytes (an edit list's selections: 2 million indices)."""


def within_memory(path: Path, act: Callable[[], None]) -> Callable[[], None]:
    """The act, which is wrong when it takes more memory than a file of this size may cost."""

    def measured() -> None:
        allowed = max(MEMORY_FACTOR * path.stat().st_size, MEMORY_FLOOR)
        tracemalloc.start()
        try:
            act()
        finally:
            _, most = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            if most > allowed:
                raise Wrong(f"{most >> 20} MiB for a file of {path.stat().st_size} bytes")

    return measured


# --- .ply -------------------------------------------------------------------------------------------------------------


def some_plys(folder: Path) -> list[bytes]:
    """Good files of every kind that is read: binary of both orders, text, compressed, points, a mesh."""
    rng = np.random.default_rng(0)
    shapes = {"means": 3, "quats": 4, "scales": 3, "opacities": 1, "features_dc": 3}
    gaussians = {name: rng.normal(size=(40, width)).astype(np.float32) for name, width in shapes.items()}
    gaussians["features_rest"] = rng.normal(size=(40, 3, 3)).astype(np.float32)
    path = folder / "good.ply"
    write_gaussians(path, gaussians, np.arange(40))
    result = [path.read_bytes()]
    vertex = read_ply(path)["vertex"]
    names = [name for name in vertex if name != "instance"]
    table = np.stack([vertex[name] for name in names], axis=1)
    head = "".join(f"property float {name}\n" for name in names)
    text = "\n".join(" ".join(map(repr, row)) for row in table.astype(float).tolist())
    result.append(f"ply\nformat ascii 1.0\nelement vertex 40\n{head}end_header\n{text}\n".encode())
    big = f"ply\nformat binary_big_endian 1.0\nelement vertex 40\n{head}end_header\n".encode()
    result.append(big + table.astype(">f4").tobytes())
    ends = [f"{end}_{name}" for end in ("min", "max") for name in ("x", "y", "z", "scale_x", "scale_y", "scale_z")]
    packed = rng.integers(0, 2**32, (4, 40), dtype=np.uint32)
    columns = zip(("packed_position", "packed_rotation", "packed_scale", "packed_color"), packed, strict=True)
    chunk = {name: np.array([-1.0 if name.startswith("min") else 1.0], np.float32) for name in ends}
    write_ply(path, {"chunk": chunk, "vertex": dict(columns)})
    result.append(path.read_bytes())
    write_points(path, rng.normal(size=(40, 3)), rng.integers(0, 255, (40, 3), dtype=np.uint8))
    result.append(path.read_bytes())
    write_mesh(path, rng.normal(size=(40, 3)), rng.integers(0, 40, (9, 3)), np.zeros((40, 3), np.uint8))
    result.append(path.read_bytes())
    return result


def odd_header(data: bytes, rng: np.random.Generator) -> bytes:
    """The file with one line of its header changed."""
    head, end, body = data.partition(b"end_header\n")
    lines = head.split(b"\n")
    at = int(rng.integers(1, len(lines) - 1))
    count = int(10 ** rng.uniform(0, 30))
    choices = [
        re.sub(rb"\d+$", str(count).encode(), lines[at]),
        re.sub(rb"\d+$", b"9" * int(rng.integers(1, 5000)), lines[at]),
        re.sub(rb"\d+$", b"-1", lines[at]),
        re.sub(rb"(float|uint|uchar|int)", [b"double", b"uchar", b"list uchar int", b"quark"][count % 4], lines[at]),
        lines[at] + b"\n" + lines[at],
        b"element extra " + str(count).encode(),
        b"element vertex " + str(count).encode() + b"\n" + lines[at],
        b"comment " + b"x" * int(rng.integers(1, 10_000)),
        b"format " + [b"ascii", b"binary_big_endian", b"binary_little_endian", b"zip"][count % 4] + b" 1.0",
        b"",
    ]
    lines[at] = choices[int(rng.integers(len(choices)))]
    return b"\n".join(lines) + end + body


def odd_values(data: bytes, rng: np.random.Generator) -> bytes:
    """The file with infinite, missing or absurd numbers among its values."""
    head, end, body = data.partition(b"end_header\n")
    if b"ascii" in head:
        words = [b"inf", b"-inf", b"nan", b"1e400", b"9" * 300, b"x", b"0x10", b"1_0", b"--1", b""]
        values = body.split(b" ")
        values[int(rng.integers(len(values)))] = words[int(rng.integers(len(words)))]
        return head + end + b" ".join(values)
    values = np.array([np.inf, -np.inf, np.nan, 3e38, -3e38, 1e-45, 0], np.float32)
    at = 4 * int(rng.integers(len(body) // 4))
    value = values[int(rng.integers(len(values)))]
    number = value.astype(">f4" if b"big_endian" in head else "<f4").tobytes()
    return head + end + body[:at] + number + body[at + 4 :]


def plys(folder: Path, campaign: Campaign) -> Campaign:
    """Right: refused, or Gaussians that are finite, of one number, and no more than the file can hold."""
    good, path = some_plys(folder), folder / "case.ply"
    for number, rng in campaign.each():
        base = good[int(rng.integers(len(good)))]
        way = int(rng.integers(4))
        kind, data = ("header", odd_header(base, rng)) if way < 2 else ("values", odd_values(base, rng))
        if way == 3:
            kind, data = damaged(base, rng, good)
        path.write_bytes(data)

        def read() -> None:
            found = read_gaussians(path)
            counts = {len(values) for values in found.values()}
            if len(counts) != 1 or 4 * counts.pop() > path.stat().st_size:
                raise Wrong("the numbers of rows do not fit")
            if not all(np.isfinite(values).all() for values in found.values()):
                raise Wrong("values that are not finite")
            sizes = {name: values.shape[1:] for name, values in found.items()}
            if sizes["means"] != (3,) or sizes["quats"] != (4,) or sizes["scales"] != (3,):
                raise Wrong(f"shapes {sizes}")

        campaign.attempt(f"case {number}, {kind}", within_memory(path, read))
    return campaign


# --- edit lists -------------------------------------------------------------------------------------------------------


def some_edits() -> EditList:
    """An edit of every kind, on Gaussians and on a field."""
    mug = GaussianSelection("mug", np.array([1, 2, 3]), np.array([9]), 1000)
    term = FieldTerm(True, MembershipRule((3, 4), (0.9, 0.1), 0.3, 2), np.array([5, 7]), np.array([7]))
    field = FieldSelection("f", (term,), 8)
    up = Similarity(1.2, np.eye(3), np.ones(3))
    return EditList().then(
        operations.tint(mug, (1, 0, 0)),
        operations.move(mug, up),
        operations.duplicate(mug, up),
        operations.delete(mug, copy=3),
        operations.insert("other.ply", up),
        operations.insert("run/config.yml", up, field),
        operations.extract(mug),
    )


def bomb(rng: np.random.Generator) -> str:
    """A short text of very many neighbouring indices."""
    steps = np.ones(int(10 ** rng.uniform(5, 7.3)), "<u4")
    return base64.b64encode(zlib.compress(steps.tobytes(), 6)).decode()


def edit_lists(folder: Path, campaign: Campaign) -> Campaign:
    """Right: refused, or a list that is saved and read back the same, with a line to show for every edit."""
    path, again = folder / "edits.json", folder / "again.json"
    some_edits().save(path)
    good: dict[str, Any] = json.loads(path.read_text())
    for number, rng in campaign.each():
        way = int(rng.integers(10))
        if way == 0:
            kind, data = damaged(json.dumps(good).encode(), rng)
        elif way == 1:
            kind, large = "bomb", json.loads(json.dumps(good))
            chosen = large["edits"][int(rng.integers(4))]["selection"]
            chosen["count"], chosen["members"] = int(rng.integers(1, 2**31)), bomb(rng)
            data = json.dumps(large).encode()
        elif way == 2:
            kind, some = "many", [good["edits"][int(k)] for k in rng.integers(0, 7, int(2 ** rng.uniform(0, 11)))]
            data = json.dumps(good | {"edits": some}).encode()
        elif way == 3:
            kind, depth = "nested", int(10 ** rng.uniform(1, 5.5))
            data = json.dumps(good).encode().replace(b"[", b"[" * depth, 1)
        else:
            kind, data = "values", json.dumps(changed(good, rng)).encode()
        path.write_bytes(data)

        def load() -> None:
            found = EditList.load(path)
            lines = [edit.describe() for edit in found.edits]
            if any("\n" in line for line in lines):
                raise Wrong("an edit is described in several lines")
            found.save(again)
            if [a.to_json() for a in EditList.load(again).edits] != [a.to_json() for a in found.edits]:
                raise Wrong("saved and read again it is another list")

        campaign.attempt(f"case {number}, {kind}", within_memory(path, load))
    return campaign


def run(cases: int, seconds: float = float("inf"), seed: int = 0) -> list[Campaign]:
    """Both campaigns, of so many cases each."""
    folder = Path(tempfile.mkdtemp(prefix="maskfield-files-"))
    try:
        return [
            plys(folder, Campaign(".ply files", cases, seconds, seed)),
            edit_lists(folder, Campaign("edit lists", cases, seconds, seed)),
        ]
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    given = options(__doc__, 1000)
    sys.exit(finish(run(given.cases, given.seconds, given.seed), given.output))
