"""Campaign: mutated label files through their readers.

    python scripts/campaigns/labels.py                      # 2,000 files
    python scripts/campaigns/labels.py --cases 200 --seed 7

Annotations of LERF-OVS (polygons), labels of a capture (gt/), class lists, and pictures of class ids and masks. A file
is refused in one line or accepted; what is accepted is checked against the file itself.
"""

from __future__ import annotations

import copy
import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from campaign import Campaign, Wrong, finish, options
from PIL import Image

from maskfield_ns.data import layouts
from maskfield_ns.evaluation.labels import LabelledCapture
from maskfield_ns.evaluation.protocols.labels import IndexLabels, IndicatorLabels, PolygonLabels

SIZE = (40, 30)
"""Width and height."""
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2.5, 1e9, 1e30, 1e300, -1e12, 2**31, -(2**31) - 5, 2**63, 10**80),
    *(
        float("nan"),
        float("inf"),
        "",
        " ",
        "abc",
        "40",
        "\ud800",
        "x" * 5000,
        [],
        {},
        [[]],
        [[1]],
        [[1, 2], [3]],
        {"a": 1},
    ),
)


def _pick(rng: np.random.Generator, items: Any) -> Any:
    return items[int(rng.integers(len(items)))]


def mutate(data: Any, rng: np.random.Generator) -> Any:
    """Replaces, removes or repeats something at a random place of plain data."""
    places: list[tuple[Any, Any]] = []

    def collect(node: Any) -> None:
        keys = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
        for key in keys:
            places.append((node, key))
            collect(node[key])

    collect(data)
    if not places:
        return data
    node, key = _pick(rng, places)
    kind = int(rng.integers(5))
    if kind < 3:
        node[key] = copy.deepcopy(_pick(rng, VALUES))
    elif kind == 3:
        del node[key]
    elif isinstance(node, list):
        node.append(copy.deepcopy(node[key]))
    elif isinstance(node[key], (int, float)) and not isinstance(node[key], bool):
        node[key] = float(node[key]) * float(10.0 ** rng.integers(-9, 10))
    return data


def damage(data: bytes, rng: np.random.Generator) -> bytes:
    """Cuts a file short, changes bytes, or nests brackets or digits without end."""
    kind = int(rng.integers(5))
    if kind == 0:
        return data[: int(rng.integers(len(data) + 1))]
    if kind == 1:
        changed = bytearray(data or b"x")
        for _ in range(int(rng.integers(1, 4))):
            changed[int(rng.integers(len(changed)))] = int(rng.integers(256))
        return bytes(changed)
    if kind == 2:
        return b"[" * int(10.0 ** rng.uniform(1, 5))
    if kind == 3:
        return data.replace(b"0", b"9" * int(10.0 ** rng.uniform(1, 4)), 1)
    return b"\xef\xbb\xbf" + data


def _write(path: Path, data: Any, rng: np.random.Generator) -> None:
    for _ in range(int(rng.integers(1, 3))):
        data = mutate(data, rng)
    encoded = json.dumps(data).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(damage(encoded, rng) if rng.random() < 0.15 else encoded)


# --- kinds of files ---------------------------------------------------------------------------------------------------


def polygons(folder: Path, rng: np.random.Generator) -> None:
    """An annotation: its masks lie where its points are."""
    width, height = SIZE
    objects = [
        {
            "category": name,
            "segmentation": (rng.random((int(rng.integers(3, 9)), 2)) * (width, height)).round(2).tolist(),
            "bbox": [1.0, 2.0, 20.0, 25.0],
            "group": 1,
        }
        for name in ("mug", "red mug", "mug")
    ]
    data = {"info": {"name": "frame_1.jpg", "width": width, "height": height, "depth": 3}, "objects": objects}
    path = folder / "frame_1.json"
    _write(path, data, rng)
    labels = PolygonLabels(folder)
    given = json.loads(path.read_text(encoding="utf-8-sig"))
    for view in labels.views:
        loaded = labels.load(view)
        if loaded.size != (given["info"]["height"], given["info"]["width"]):
            raise Wrong("another size than the file's")
        assert loaded.masks is not None
        for phrase, mask in zip(loaded.phrases, loaded.masks, strict=True):
            rings = [np.array(o["segmentation"], np.float64) for o in given["objects"] if o["category"] == phrase]
            _check_mask(mask, rings)


def _check_mask(mask: np.ndarray, rings: list[np.ndarray]) -> None:
    """Pixels well inside exactly one ring are set; pixels outside all bounding boxes are not."""
    height, width = mask.shape
    rows, columns = np.mgrid[:height, :width]
    near = np.zeros(mask.shape, bool)
    for ring in rings:
        (left, top), (right, bottom) = np.trunc(ring).min(axis=0), np.trunc(ring).max(axis=0)
        near |= (columns >= left) & (columns <= right) & (rows >= top) & (rows <= bottom)
    if (mask & ~near).any():
        raise Wrong("a mask has pixels where its polygon has none")
    for ring in rings:
        for x, y in np.trunc(ring).astype(int):
            if 0 <= x < width and 0 <= y < height and not mask[y, x]:
                raise Wrong("a polygon's own point is not in its mask")


def capture_labels(folder: Path, rng: np.random.Generator) -> None:
    """gt/labels.json and a picture of ids."""
    entries = {
        str(identity): {"name": f"{name} 1", "class": name, "queries": [name, f"red {name}"]}
        for identity, name in enumerate(("mug", "duck", "ball"), 1)
    }
    _write(folder / "gt" / "labels.json", entries, rng)
    ids = rng.integers(0, 4 if rng.random() < 0.8 else 256, (SIZE[1], SIZE[0]), np.uint8)
    _picture(folder / "gt" / "instance" / "a.png", ids, rng)
    labels = LabelledCapture.load(folder)
    if labels is None:
        raise Wrong("the labels were passed over")
    found = labels.instances("images/a.jpg")
    with Image.open(folder / "gt" / "instance" / "a.png") as picture:
        if not np.array_equal(found, np.array(picture)):
            raise Wrong("other ids than in the picture")
    known = {int(key) for key in json.loads((folder / "gt" / "labels.json").read_text(encoding="utf-8-sig"))}
    if not set(np.unique(found).tolist()) <= known | {0} or {label.id for label in labels.labels} != known:
        raise Wrong("other ids than in the file")
    labels.class_map("a", (15, 20))


def _picture(path: Path, values: np.ndarray, rng: np.random.Generator) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    mode = _pick(rng, ("L",) * 6 + ("RGB", "P", "1", "I;16", "RGBA"))
    image = Image.fromarray(values)
    (Image.fromarray(values.astype(np.uint16)) if mode == "I;16" else image.convert(mode)).save(path)
    if rng.random() < 0.15:
        path.write_bytes(damage(path.read_bytes(), rng))


SEPARATORS = ("\t", ",", ", ", " ", ":", "\t\t")


def class_list(folder: Path, rng: np.random.Generator) -> None:
    """A scene with class ids and its list, with or without ids, as text or as Replica's JSON."""
    count = int(rng.integers(1, 6))
    ids = np.sort(rng.choice(np.arange(1, 30), count, replace=False)).tolist()
    names = [f"class {i}" for i in range(count)]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "classes.txt"
    kind = int(rng.integers(3))
    if kind == 0:
        path = folder / "info_semantic.json"
        _write(path, {"classes": [{"id": i, "name": n} for i, n in zip(ids, names, strict=True)]}, rng)
    else:
        separator = _pick(rng, SEPARATORS)
        lines = ["", *names] if kind == 1 else [f"{i}{separator}{n}" for i, n in zip(ids, names, strict=True)]
        if rng.random() < 0.3:
            lines.insert(
                int(rng.integers(len(lines) + 1)), _pick(rng, ("", "#", "id\tname", names[0], "a,b,c,d", "\0"))
            )
        text = _pick(rng, ("\n", "\r\n")).join(lines).encode()
        path.write_bytes(damage(text, rng) if rng.random() < 0.2 else text)
    given = ids if kind != 1 else list(range(1, count + 1))
    values = rng.choice(np.array([0, *given], np.uint8), (SIZE[1], SIZE[0]))
    for index in range(11):
        for place, suffix in (("rgb", ".jpg"), ("semantic", ".png"), ("pose", ".txt")):
            (folder / place).mkdir(exist_ok=True)
            if suffix == ".txt":
                np.savetxt(folder / place / f"{index}.txt", np.eye(4))
            else:
                Image.fromarray(values).save(folder / place / f"{index}{suffix}")
    labels = IndexLabels(folder, "scannet", path)
    loaded = labels.load(labels.views[0])
    assert loaded.index is not None
    if (loaded.index == 0).sum() != (values == 0).sum():
        raise Wrong("void is not where it was")
    listed = layouts.read_class_list(path)
    back = np.array(listed.ids or range(len(listed.names)))[loaded.index]
    if not np.array_equal(back, values):
        raise Wrong("other classes than in the picture")


def indicators(folder: Path, rng: np.random.Generator) -> None:
    """3D-OVS: a mask per class."""
    names = ["mug", "Duck", "red ball"]
    masks = {name: (rng.random((SIZE[1], SIZE[0])) < 0.3).astype(np.uint8) * 255 for name in names}
    (folder / "00").mkdir(parents=True)
    text = "\n".join(names).encode()
    (folder / "classes.txt").write_bytes(damage(text, rng) if rng.random() < 0.3 else text)
    for name, mask in masks.items():
        if rng.random() < 0.95:
            _picture(folder / "00" / f"{name}.png", mask, rng)
    labels = IndicatorLabels(folder)
    loaded = labels.load("00")
    assert loaded.masks is not None
    for name, mask in zip(loaded.phrases, loaded.masks, strict=True):
        with Image.open(folder / "00" / f"{name}.png") as picture:
            if picture.mode in ("L", "1") and not np.array_equal(mask, np.array(picture.convert("L")) == 255):
                raise Wrong("another mask than in the picture")


KINDS: tuple[Callable[[Path, np.random.Generator], None], ...] = (
    polygons,
    polygons,
    capture_labels,
    class_list,
    indicators,
)


def run(campaign: Campaign, folder: Path) -> Campaign:
    """Kinds of files by turns."""
    for number, rng in campaign.each():
        shutil.rmtree(folder, ignore_errors=True)
        kind = KINDS[number % len(KINDS)]
        campaign.attempt(f"case {number} ({kind.__name__})", lambda kind=kind, rng=rng: kind(folder, rng))
    return campaign


def main() -> int:
    """Runs the campaign and prints the tally."""
    chosen = options(__doc__, cases=2000)
    with tempfile.TemporaryDirectory() as work:
        campaign = Campaign("labels", chosen.cases, chosen.seconds, chosen.seed, case_seconds=5)
        run(campaign, Path(work) / "case")
    return finish([campaign], chosen.output)


if __name__ == "__main__":
    sys.exit(main())
