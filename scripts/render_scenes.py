"""Render random labelled table-top scenes with PyBullet's CPU renderer.

``dataset`` writes shards of training pictures for the small segmentation and language-image models; ``capture``
writes one labelled multi-view capture of a layout which the training scenes never contain.
"""

from __future__ import annotations

import json
import multiprocessing as mp
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pybullet as p
import tyro
from PIL import Image
from scene_catalogue import ASSETS, SHAPES, Asset
from scene_world import (
    DATA,
    Instance,
    Layout,
    Stock,
    View,
    add_object,
    add_surroundings,
    add_table,
    asset_hull,
    camera_to_world,
    draw,
    unproject,
)
from scipy.ndimage import gaussian_filter

VIEWS_PER_LAYOUT = 4
IMAGES_PER_SHARD = 200
SUPERSAMPLED = 0.25  # share of antialiased pictures: they take three times as long, and real captures have both looks
CAPTURE_SEED_SPACE = 0xCA97  # first word of the capture's seed sequence, so that no shard ever shares it


def layout_objects(rng: np.random.Generator, stock: Stock) -> Layout:
    """Empty the world and fill it with one random layout."""
    p.resetSimulation()
    stock.loaded.clear()
    layout = Layout()
    table = str(rng.choice(["table", "square", "box", "round", "none"], p=[0.44, 0.1, 0.12, 0.09, 0.25]))
    floors = ["plane", "plane100", "quad", ""]
    floor = str(rng.choice(floors, p=[0.47, 0.08, 0.33, 0.12] if table != "none" else [0.5, 0.08, 0.42, 0]))
    add_surroundings(rng, stock, layout, floor)
    add_table(rng, stock, layout, table)
    layout.surface[2:4] *= rng.uniform(0.5, 0.97) if rng.random() < 0.7 else 1.0  # crowded or spread out
    choices: list[Asset | str] = [*ASSETS, *SHAPES]
    weights = np.array([c.weight if isinstance(c, Asset) else SHAPES[c][3] for c in choices])
    wanted = int(rng.integers(4, 13))
    for _ in range(2 * wanted):
        what = choices[rng.choice(len(choices), p=weights / weights.sum())]
        mode = str(rng.choice(["rest", "stack", "edge", "floor", "lean"], p=[0.72, 0.13, 0.05, 0.05, 0.05]))
        add_object(rng, stock, layout, what, mode)
        if len(layout.objects) == wanted:
            break
    return layout


def orbit(target: np.ndarray, distance: float, azimuth: float, pitch: float) -> np.ndarray:
    """Position of a camera which looks at a target; angles in degrees, the pitch above the horizon."""
    a, e = np.radians([azimuth, pitch])
    return target + distance * np.array([np.cos(a) * np.cos(e), np.sin(a) * np.cos(e), np.sin(e)])


def random_light(rng: np.random.Generator) -> dict[str, Any]:
    """Half of the lights are near the renderer's defaults, the others anywhere above."""
    direction = orbit(np.zeros(3), 1.0, rng.uniform(0, 360), rng.uniform(25, 88))
    light = {"lightDirection": (direction * 3).tolist(), "shadow": int(rng.random() < 0.75)}
    light["lightDistance"] = float(np.exp(rng.uniform(np.log(0.4), np.log(3))))  # far lights leave stripes of shadow
    if rng.random() < 0.6:
        light |= {
            "lightAmbientCoeff": float(rng.uniform(0.45, 0.75)),
            "lightDiffuseCoeff": float(rng.uniform(0.2, 0.75)),
            "lightSpecularCoeff": float(rng.uniform(0, 0.4)),
            "lightColor": rng.uniform(0.8, 1, 3).tolist(),
        }
    return light


def random_view(rng: np.random.Generator, layout: Layout) -> View:
    """A camera on an orbit around some of the objects, outside of all of them."""
    hulls = [layout.instances[b].hull for b in layout.objects]
    boxes = np.array([[h.min(0), h.max(0)] for h in hulls])
    centres = boxes.mean(1)
    spread = float(np.clip(np.ptp(boxes[..., :2].reshape(-1, 2), axis=0).max(), 0.5, 2.2))
    while True:
        fov = float(rng.uniform(40, 75))
        close = rng.random() < 0.4
        target = centres[rng.integers(len(centres))] if close else np.median(centres, 0)
        target = target + rng.normal(0, 0.06 * (1 if close else spread), 3)
        width = float(np.exp(rng.uniform(np.log(0.42), np.log(0.85))))
        width = width if close else spread * float(rng.uniform(0.6, 1.25))
        distance = max(width / 2 / (np.tan(np.radians(fov / 2)) * 4 / 3), 0.3)
        pitch = float(rng.uniform(10, 75))
        eye = orbit(target, distance, rng.uniform(0, 360), pitch)
        inside = np.all((eye > boxes[:, 0] - 0.12) & (eye < boxes[:, 1] + 0.12), axis=1).any()
        walled = any(eye[axis] < place + 0.1 for axis, place in layout.walls)
        if inside or walled or eye[2] < layout.surface[4] + 0.06:
            continue
        forward = (target - eye) / distance
        right = np.cross(forward, [0, 0, 1.0])
        right /= np.linalg.norm(right)
        ahead = (centres - eye) @ forward
        shift = np.abs((centres - eye) @ np.stack([right, np.cross(right, forward)], 1))
        shift /= np.maximum(ahead, 0.01)[:, None]
        limits = np.tan(np.radians(fov / 2)) * np.array([4 / 3, 1])
        if np.sum((ahead > 0.1) & np.all(shift < limits, axis=1)) >= 2 or rng.random() < 0.02:
            break
    roll = np.radians(rng.normal(0, 4))
    side = np.cross(target - eye, [0, 0, 1.0])
    up = np.array([0, 0, np.cos(roll)]) + np.sin(roll) * side / np.linalg.norm(side)
    sky = None
    if rng.random() < 0.35:
        sky = np.clip(rng.uniform(0.3, 1) + rng.normal(0, 0.12, (2, 3)), 0, 1) * 255
    return View(eye, target, up, fov, random_light(rng), sky)


def render(view: View, width: int, height: int, samples: int = 2) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Antialiased RGB uint8, metric depth and body and link codes; the latter two are not averaged."""
    rgb, depth, seg = draw(view, width * samples, height * samples)
    if view.sky is not None:
        fade = np.linspace(0, 1, len(rgb))[:, None, None]
        rgb = np.where(seg[..., None] < 0, view.sky[0] * (1 - fade) + view.sky[1] * fade, rgb)
    if samples > 1:
        rgb = rgb.reshape(height, samples, width, samples, 3).astype(np.float32).mean((1, 3)) + 0.5
        at = samples // 2
        depth, seg = depth[at::samples, at::samples], seg[at::samples, at::samples]
    return rgb.astype(np.uint8), depth, seg


def grade(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Camera-like changes: exposure, contrast, gamma, white balance and noise."""
    x = image.astype(np.float32) / 255
    if rng.random() < 0.4:
        x = np.clip(x * rng.uniform(0.93, 1.07, 3) * rng.uniform(0.82, 1.2), 0, 1) ** rng.uniform(0.75, 1.35)
        x = (x - 0.5) * rng.uniform(0.75, 1.15) + 0.5 + rng.uniform(-0.04, 0.04)
    if rng.random() < 0.5:
        x = x + rng.normal(0, rng.uniform(0.003, 0.025), x.shape)
    return (np.clip(x, 0, 1) * 255 + 0.5).astype(np.uint8)


def label(layout: Layout, seg: np.ndarray) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Instance picture with ids 1..K, part picture and what each instance is."""
    codes, flat = np.unique(seg, return_inverse=True)
    part = flat.reshape(seg.shape) + (0 if codes[0] < 0 else 1)  # the sky's code -1 sorts first and becomes 0
    bodies = np.where(codes < 0, -1, codes & 0xFFFFFF)
    kept = [b for b in layout.instances if b in bodies]
    number = {-1: 0} | {b: i + 1 for i, b in enumerate(kept)}
    instance = np.array([number[b] for b in bodies.tolist()], np.uint8)[flat].reshape(seg.shape)
    meta = {str(number[b]): layout.instances[b].meta() for b in kept}
    return instance, part.astype(np.uint8), {"instances": meta}


def acceptable(layout: Layout, seg: np.ndarray) -> bool:
    """At least two objects to be seen, none of them filling the picture."""
    bodies, counts = np.unique(np.where(seg < 0, -1, seg & 0xFFFFFF), return_counts=True)
    shares = [c / seg.size for b, c in zip(bodies, counts, strict=True) if b in layout.objects]
    return sum(s > 0.002 for s in shares) >= 2 and max(shares) < 0.45


def prepare() -> None:
    """One server per process; models print warnings which nobody needs, so both streams of a worker go."""
    if mp.current_process().name != "MainProcess":
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
    p.connect(p.DIRECT)
    for asset in ASSETS:
        for pose in range(asset.poses):
            asset_hull(asset, pose)


def write_shard(job: tuple[Path, int, int, int, int, int]) -> tuple[int, float]:
    """Render one shard; its content depends on the seed, its number and the picture size only."""
    path, seed, shard, count, width, height = job
    began = time.perf_counter()
    rng = np.random.default_rng([seed, shard])
    out: dict[str, list[np.ndarray]] = {"image": [], "instance": [], "part": []}
    metas: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        stock = Stock(rng, Path(folder))
        while len(metas) < count:
            layout = layout_objects(rng, stock)
            if len(layout.objects) < 3:
                continue
            for _ in range(min(VIEWS_PER_LAYOUT, count - len(metas))):
                samples = 2 if rng.random() < SUPERSAMPLED else 1
                rgb, _, seg = render(random_view(rng, layout), width, height, samples)
                if not acceptable(layout, seg):
                    continue
                if samples == 1 and rng.random() < 0.5:
                    rgb = gaussian_filter(rgb, (*[rng.uniform(0.3, 0.65)] * 2, 0))
                instance, part, meta = label(layout, seg)
                for key, value in zip(out, (grade(rng, rgb), instance, part), strict=True):
                    out[key].append(value)
                metas.append(meta)
    p.resetSimulation()
    text = np.frombuffer(json.dumps(metas).encode(), np.uint8)
    partial = path.with_suffix(".tmp")
    with partial.open("wb") as file:
        np.savez(file, **{key: np.stack(value) for key, value in out.items()}, meta=text)
    os.replace(partial, path)
    return count, time.perf_counter() - began


def dataset(
    output: Path, num_images: int = 10000, seed: int = 0, width: int = 256, height: int = 192, workers: int = 2
) -> None:
    """Write shards of training pictures; finished shards are kept."""
    output.mkdir(parents=True, exist_ok=True)
    shards = range(-(-num_images // IMAGES_PER_SHARD))
    jobs = [
        (
            output / f"shard_{i:05d}.npz",
            seed,
            i,
            min(IMAGES_PER_SHARD, num_images - i * IMAGES_PER_SHARD),
            width,
            height,
        )
        for i in shards
    ]
    jobs = [job for job in jobs if not job[0].exists()]
    todo, done, began = sum(job[3] for job in jobs), 0, time.perf_counter()
    print(f"{len(shards) - len(jobs)} shards are there, {len(jobs)} to render", flush=True)
    with mp.get_context("spawn").Pool(workers, prepare) as pool:
        for count, seconds in pool.imap_unordered(write_shard, jobs):
            done += count
            eta = (time.perf_counter() - began) / done * (todo - done) / 60
            print(f"{done}/{todo} pictures, {1000 * seconds / count:.0f} ms each, {eta:.1f} min left", flush=True)


DEMO = [  # class, path or shape, colour, x, y, yaw, longest side; the queries it is known by
    ("mug", "objects/mug.urdf", "green", -0.38, 0.17, 200, 0.19, ["green mug", "cup"]),
    ("duck", "duck_vhacd.urdf", None, 0.02, -0.24, 140, 0.2, ["yellow rubber duck", "duck"]),
    ("ball", "soccerball.urdf", None, 0.34, 0.2, 30, 0.22, ["soccer ball", "football"]),
    ("cube", "cube.urdf", "red", -0.3, -0.22, 25, 0.13, ["red cube", "box"]),
    ("teddy", "teddy_vhacd.urdf", "brown", 0.0, 0.14, -60, 0.22, ["brown teddy bear", "stuffed bear"]),
    ("robot", "r2d2.urdf", None, 0.42, -0.2, 70, 0.3, ["blue robot", "robot"]),
    ("lego", "lego/lego.urdf", "blue", -0.58, -0.03, 50, 0.13, ["blue toy brick", "lego"]),
]


def capture(
    output: Path, seed: int = 7, views: int = 30, test_views: int = 6, width: int = 320, height: int = 240
) -> None:
    """Write one labelled capture of a fixed table in the transforms.json layout, with every n-th view held out."""
    rng = np.random.default_rng([CAPTURE_SEED_SPACE, seed])
    prepare()
    layout, by_path = Layout(), {asset.path: asset for asset in ASSETS}
    names = ["floor", "table", *(d[0] for d in DEMO)]
    queries = [["checkered floor", "floor"], ["wooden table", "table"], *(d[-1] for d in DEMO)]
    with tempfile.TemporaryDirectory() as folder:
        stock = Stock(rng, Path(folder), variants=1, textures=0)
        for path, cls in (("plane.urdf", "floor"), ("table/table.urdf", "table")):
            layout.instances[p.loadURDF(str(DATA / path))] = Instance(cls, np.zeros((1, 3)))
        layout.surface = np.array([0, 0, 0.75, 0.5, 0.625])
        for name, path, colour, x, y, yaw, size, _ in DEMO:
            spot = (x + rng.normal(0, 0.01), y + rng.normal(0, 0.01), yaw + rng.normal(0, 10))
            if not add_object(rng, stock, layout, by_path[path], "rest", colour, spot, size):
                raise RuntimeError(f"no room for the {name}")
        light = {
            "lightDirection": (1.5, -1.0, 3.0),
            "lightDistance": 0.9,
            "shadow": 1,
            "lightAmbientCoeff": 0.55,
            "lightDiffuseCoeff": 0.5,
        }
        labels = {
            body: {"name": name, "class": layout.instances[body].cls, "queries": words}
            for name, body, words in zip(names, layout.instances, queries, strict=True)
        }
        photograph(output, rng, labels, light, np.array([0, 0, 0.68]), 1.0, (views, test_views), (width, height))


def photograph(
    output: Path,
    rng: np.random.Generator,
    labels: dict[int, dict[str, Any]],
    light: dict[str, Any],
    centre: np.ndarray,
    spread: float,
    views: tuple[int, int],
    size: tuple[int, int],
) -> None:
    """Photograph the world's present layout from an orbit and write pictures, cameras, points and labels.

    Args:
        output: folder of the capture.
        rng: of everything that varies.
        labels: what ``gt/labels.json`` says of each labelled body.
        light: of the renderer.
        centre: what cameras look at, in meters.
        spread: distance of the cameras, in units of what suits a table of 1.5 m.
        views: how many for training, and held out.
        size: width and height in pixels.
    """
    fov, total, (width, height) = 52.0, sum(views), size
    held_out = set(np.linspace(0, total - 1, views[1] + 2).round().astype(int)[1:-1].tolist())
    for sub in ("images", "gt/instance"):
        (output / sub).mkdir(parents=True, exist_ok=True)
    frames, points, colours = [], [], []
    for i in range(total):
        pitch, distance = ((20, 1.25), (36, 1.3), (55, 1.2))[i % 3]
        target = centre + rng.normal(0, 0.03, 3)
        away = spread * (distance + rng.normal(0, 0.05))
        eye = orbit(target, away, 360 * i / total + rng.normal(0, 3), pitch + rng.normal(0, 2))
        view = View(eye, target, np.array([0, 0, 1.0]), fov, light)
        rgb, depth, seg = render(view, width, height)
        ids = np.zeros(seg.shape, np.uint8)
        for number, body in enumerate(labels, 1):
            ids[seg & 0xFFFFFF == body] = number
        ids[seg < 0] = 0
        name = f"frame_{i + 1:05d}"
        Image.fromarray(rgb).save(output / "images" / f"{name}.jpg", quality=92)
        Image.fromarray(ids).save(output / "gt" / "instance" / f"{name}.png")
        frames.append({"file_path": f"images/{name}.jpg", "transform_matrix": camera_to_world(view).tolist()})
        near = np.flatnonzero((seg >= 0).ravel() & (depth.ravel() < 4)) if i not in held_out else np.empty(0, int)
        pick = rng.choice(near, min(len(near), -(-8000 // views[0])), replace=False)
        points.append(unproject(view, depth).reshape(-1, 3)[pick])
        colours.append(rgb.reshape(-1, 3)[pick])
    write_sparse(output / "sparse.ply", np.concatenate(points), np.concatenate(colours), rng)
    files = [f["file_path"] for f in frames]
    test = [f for i, f in enumerate(files) if i in held_out]
    focal = height / 2 / np.tan(np.radians(fov) / 2)
    transforms = {
        "camera_model": "OPENCV",
        "w": width,
        "h": height,
        "fl_x": focal,
        "fl_y": focal,
        "cx": width / 2,
        "cy": height / 2,
        "k1": 0.0,
        "k2": 0.0,
        "p1": 0.0,
        "p2": 0.0,
        "ply_file_path": "sparse.ply",
        "train_filenames": [f for f in files if f not in test],
        "val_filenames": test,
        "test_filenames": test,
        "frames": frames,
    }
    (output / "transforms.json").write_text(json.dumps(transforms))
    numbered = {str(i): label for i, label in enumerate(labels.values(), 1)}
    (output / "gt" / "labels.json").write_text(json.dumps(numbered, indent=1))


def write_sparse(path: Path, points: np.ndarray, colours: np.ndarray, rng: np.random.Generator) -> None:
    """Binary PLY as structure from motion would leave it: a few thousand points, a few millimetres off."""
    kinds = [(c, "<f4") for c in "xyz"] + [(c, "u1") for c in ("red", "green", "blue")]
    rows = np.zeros(len(points), np.dtype(kinds))
    for k in range(3):
        rows["xyz"[k]] = points[:, k] + rng.normal(0, 0.004, len(points))
        rows[("red", "green", "blue")[k]] = colours[:, k]
    words = {"<f4": "float", "u1": "uchar"}
    header = "".join(f"property {words[kind]} {name}\n" for name, kind in kinds)
    head = f"ply\nformat binary_little_endian 1.0\nelement vertex {len(rows)}\n{header}end_header\n"
    path.write_bytes(head.encode() + rows.tobytes())


if __name__ == "__main__":
    tyro.extras.subcommand_cli_from_dict({"dataset": dataset, "capture": capture})
