"""What a large capture costs where masks are handled: seconds, memory and disk, stage by stage, on synthetic masks.

    python scripts/bench/capacity.py --output capacity.json       250 views of 1600 x 1060 with about 150 masks each
    python scripts/bench/capacity.py --views 20 --size 320 212    a minute, to try the script itself

A floor is tiled three times (subparts, parts, wholes); cameras look at parts of it, and a proposer's faults are added:
15 % of the masks are missed, 10 % hold their neighbor too. Every stage runs in a process of its own, on the CPU; memory
is what it needs at most beyond what the imports took. Prints one table.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from maskfield_ns.cache.builder import build_cache
from maskfield_ns.cache.schema import CacheEntry, extraction_fingerprint
from maskfield_ns.data.mask_views import MaskTargets, MaskViews, grid_size, reduce_masks
from maskfield_ns.data.target_files import kept_targets
from maskfield_ns.foundation.protocols import LEVELS, MaskProposals, mask_boxes
from maskfield_ns.foundation.specks import without_specks
from maskfield_ns.systems.mask_field.association import ViewMasks, associate, mask_cells, nested
from maskfield_ns.systems.mask_field.level_loss import level_targets

RESOLUTION = 256
"""Cells along an axis of the contracted scene."""
MAP = 1024
"""Pixels along a side of the floor's label images."""
SEEN = 0.5
"""Side of what a camera sees, as a share of the floor's."""
EMBEDDING_DIM = 512


class World:
    """The floor, and cameras that look at it."""

    def __init__(self, views: int, masks: int, size: tuple[int, int]) -> None:
        from scipy.spatial import KDTree

        self.views, (self.width, self.height) = views, size
        rng = np.random.default_rng(0)
        places = np.stack(np.meshgrid(*[(np.arange(MAP) + 0.5) / MAP] * 2, indexing="ij"), -1).reshape(-1, 2)
        tiles = round(masks / len(LEVELS) / SEEN**2)
        self.labels = [KDTree(rng.random((tiles, 2))).query(places)[1].reshape(MAP, MAP) for _ in LEVELS]
        self.cameras = np.c_[rng.uniform(SEEN / 2, 1 - SEEN / 2, (views, 2)), rng.uniform(0, 2 * np.pi, views)]
        self.embeddings = rng.normal(size=(len(LEVELS), tiles, EMBEDDING_DIM)).astype(np.float32)

    def points(self, view: int, size: tuple[int, int]) -> np.ndarray:
        """Where the pixels [h, w] of a view see the floor, [h, w, 2] in 0..1."""
        x, y, angle = self.cameras[view]
        down, across = np.meshgrid(*[(np.arange(n) + 0.5) / n - 0.5 for n in (size[1], size[0])], indexing="ij")
        depth = 1 / (1 + 0.6 * down)  # what is further up is further away
        u, v = across * depth * SEEN, down * depth * SEEN
        turned = [x + u * np.cos(angle) - v * np.sin(angle), y + u * np.sin(angle) + v * np.cos(angle)]
        return np.stack(turned, -1).clip(0, 1 - 1e-6)

    def cells(self, view: int) -> np.ndarray:
        """The 3D cell that each ray of a view's mask grid ends in."""
        grid = grid_size(self.width, self.height, 256)
        place = (self.points(view, (grid[1], grid[0])) * 0.7 * RESOLUTION).astype(np.int64)
        return ((place[..., 0] * RESOLUTION + place[..., 1]) * RESOLUTION + RESOLUTION // 2).ravel()

    def proposals(self, view: int) -> tuple[MaskProposals, np.ndarray]:
        """Masks of a photograph and their embeddings."""
        rng = np.random.default_rng([1, view])
        index = (self.points(view, (self.width, self.height)) * MAP).astype(np.int64)
        masks, levels, vectors = [], [], []
        for level, labels in enumerate(self.labels):
            picture = labels[index[..., 0], index[..., 1]]
            found, counts = np.unique(picture, return_counts=True)
            found = found[counts >= 150]
            for tile, other in zip(found, np.roll(found, 1), strict=True):
                chance = rng.random()
                if chance < 0.15:
                    continue
                masks.append((picture == tile) | ((picture == other) if chance < 0.25 else False))
                levels.append(level)
                vectors.append(self.embeddings[level, tile])
        stack, count = np.array(masks).reshape(-1, self.height, self.width), len(masks)
        found = np.array(vectors, np.float32).reshape(-1, EMBEDDING_DIM)
        found /= np.linalg.norm(found, axis=1, keepdims=True)
        ones = np.ones(count, np.float32)
        return MaskProposals(stack, np.array(levels, np.int8), ones, ones, mask_boxes(stack)), found


class Recorded:
    """Proposer and embedder in one, for pictures that come in the order of the views."""

    dim = EMBEDDING_DIM

    def __init__(self, world: World) -> None:
        self.world, self.view = world, 0

    def __call__(self) -> Recorded:
        return self

    def fingerprint(self) -> dict[str, Any]:
        return {"name": "synthetic"}

    def propose(self, image: np.ndarray) -> MaskProposals:
        proposals, self.vectors = self.world.proposals(self.view)
        self.view += 1
        return proposals

    def embed_regions(self, image: np.ndarray, masks: np.ndarray) -> np.ndarray:
        return self.vectors


def write_pictures(world: World, folder: Path) -> list[Path]:
    """Files to stand for photographs, as large as such are."""
    from PIL import Image

    rng, paths = np.random.default_rng(0), []
    noise = rng.integers(0, 255, (world.height // 4, world.width // 4, 3), np.uint8)
    picture = Image.fromarray(noise).resize((world.width, world.height))
    for view in range(world.views):
        paths.append(folder / f"frame_{view:05d}.jpg")
        if not paths[-1].exists():
            picture.save(paths[-1], quality=90, comment=str(view))
    return paths


def load_targets(world: World, folder: Path) -> tuple[MaskViews, int]:
    """What a training does at its start; also how many views had to be reduced."""
    paths, model = write_pictures(world, folder), Recorded(world)
    grid, reduced = grid_size(world.width, world.height, 256), [0]
    targets: dict[int, MaskTargets] = {}
    cache = folder / "cache" / extraction_fingerprint(model.fingerprint(), model.fingerprint())[:12]

    def visit(index: int, entry: CacheEntry) -> None:
        def reduce() -> MaskTargets:
            reduced[0] += 1
            return reduce_masks(entry.each_mask(), entry.levels, entry.scores, entry.embeddings, grid=grid)

        targets[index] = kept_targets(cache, entry, {"grid": grid}, reduce)

    build_cache(paths, [path.name for path in paths], folder / "cache", model, model, progress=False, visit=visit)
    views = [targets[index] for index in range(len(paths))]
    return MaskViews([path.name for path in paths], views, EMBEDDING_DIM), reduced[0]


def measured(run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Wall and CPU seconds, and memory beyond what was in use at the start."""
    before, wall, cpu = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter(), time.process_time()
    found = run()
    found["wall_s"], found["cpu_s"] = time.perf_counter() - wall, time.process_time() - cpu
    found["peak_mb"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return found


def first_start(world: World, folder: Path) -> dict[str, Any]:
    """Extraction without models: making the masks, encoding, writing, reducing."""
    views, reduced = load_targets(world, folder)
    return {"masks": views.num_masks, "reduced": reduced}


def warm_start(world: World, folder: Path) -> dict[str, Any]:
    views, reduced = load_targets(world, folder)
    entries = sum(path.stat().st_size for path in (folder / "cache").rglob("*.safetensors"))
    targets = sum(path.stat().st_size for path in (folder / "cache").rglob("*.targets"))
    return {
        "masks": views.num_masks,
        "reduced": reduced,
        "targets_mb": views.nbytes / 1e6,
        "disk_entries_mb": entries / 1e6,
        "disk_targets_mb": targets / 1e6,
    }


def reducing(world: World, folder: Path) -> dict[str, Any]:
    """The masks of all views to the grid once more, as after `maskfield extract` or with another grid."""
    for path in (folder / "cache").rglob("*.targets"):
        path.unlink()
    _, reduced = load_targets(world, folder)
    return {"reduced": reduced}


def association(world: World, folder: Path) -> dict[str, Any]:
    views, _ = load_targets(world, folder)

    def group() -> dict[str, Any]:
        each: Iterator[ViewMasks] = (ViewMasks(world.cells(v), view.sparse()) for v, view in enumerate(views))
        cells = mask_cells(each, RESOLUTION**3).compact()
        levels, counts = np.concatenate([view.levels for view in views]), []
        for level in range(len(LEVELS)):
            groups = associate(cells, levels == level, min_views=3)
            nested(cells, groups)
            counts.append(len(groups))
        return {"groups": counts}

    return {"part": measured(group)}


def kept_level_targets(world: World, folder: Path) -> dict[str, Any]:
    """What the masks of every level and view say about pixels, kept for all steps."""
    views, _ = load_targets(world, folder)
    total = 0
    for index in range(len(views)):
        tensors = views.tensors(index, "cpu")
        for level in range(len(LEVELS)):
            own = (tensors.levels == level).nonzero()[:, 0]
            if len(own):
                total += level_targets(torch.arange(len(own)), tensors.masks(own), torch.ones(len(own))).nbytes
    return {"kept_mb": total / 1e6}


def specks(world: World, folder: Path) -> dict[str, Any]:
    """Small holes and islands of 450 candidate masks of one picture, 1,024 pixels wide."""
    small = World(1, 450, (1024, round(1024 * world.height / world.width)))
    masks = small.proposals(0)[0].masks
    noise = np.random.default_rng(0).random(masks.shape) < 1e-4

    def clean() -> dict[str, Any]:
        for mask, speck in zip(masks, noise, strict=True):
            without_specks(mask & ~speck, 100)
        return {"candidates": len(masks)}

    return {"part": measured(clean)}


STAGES = {
    "first start, models aside": first_start,
    "reducing all masks": reducing,
    "start with a warm cache": warm_start,
    "association, all levels": association,
    "level targets of all views": kept_level_targets,
    "removing specks, one picture": specks,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--views", type=int, default=250, help="training views")
    parser.add_argument("--masks", type=int, default=180, help="tiles in a view, over all levels; some are missed")
    parser.add_argument("--size", type=int, nargs=2, default=(1600, 1060), help="pixels: width and height")
    parser.add_argument("--folder", type=Path, help="where to keep the synthetic cache; default: nowhere")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stage:
        world = World(options.views, options.masks, tuple(options.size))
        found = measured(lambda: STAGES[options.stage](world, options.folder))
        # A stage that has to prepare something measures the part that counts.
        print(json.dumps(found.pop("part", None) or found))
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        given = ["--views", str(options.views), "--masks", str(options.masks), "--folder", str(folder)]
        given += ["--size", *map(str, options.size)]
        results = {}
        for name in STAGES:
            command = [sys.executable, __file__, *given, "--stage", name]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            results[name] = json.loads(done.stdout.splitlines()[-1])
            print(name, results[name], file=sys.stderr, flush=True)
    print(table(results))
    if options.output:
        options.output.write_text(json.dumps(vars(options) | {"results": results}, indent=1, default=str))
    return 0


def table(results: dict[str, dict[str, Any]]) -> str:
    lines = ["| stage | wall | CPU | peak memory | |", "| --- | --- | --- | --- | --- |"]
    for name, found in results.items():
        more = {k: v for k, v in found.items() if k not in ("wall_s", "cpu_s", "peak_mb")}
        said = ", ".join(f"{k} {v:.0f}" if isinstance(v, float) else f"{k} {v}" for k, v in more.items())
        times = f"{found['wall_s']:.1f} s | {found['cpu_s']:.1f} s | {found['peak_mb']:.0f} MB"
        lines.append(f"| {name} | {times} | {said} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
