"""Time of a mask-stage step on Gaussians: against distilling 512-channel CLIP features, and how it grows.

    python scripts/bench_mask_stage.py                 about two minutes
    python scripts/bench_mask_stage.py --device cuda

A step renders the features of one view, computes the losses, goes backwards and updates (Adam). Distillation is the
same with one 512-channel vector per Gaussian and a cosine loss against a dense target of the same grid. Both run on the
same rasteriser, alternating, in one process; figures are medians of process CPU time (wall time on a GPU).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from synthetic_scene import EMBEDDING_DIM, SyntheticScene, make_scene, make_stage

from maskfield_ns.splatting import rasterize_features

GRID = (120, 160)
THINGS, VIEWS = 30, 6


def mask_step(scene: SyntheticScene, feature_dim: int, num_queries: int, device: torch.device) -> Callable[[int], None]:
    """One step of the mask stage, as ``maskfield-splat`` makes it."""
    stage = make_stage(scene, feature_dim, num_queries, device)
    count = len(scene.thing_of)
    features = torch.nn.Parameter(0.1 * torch.randn(count, stage.head.channels, device=device))
    optimiser = torch.optim.Adam([features, *stage.head.parameters()], lr=1e-3, fused=True)

    def step(number: int) -> None:
        view = number % len(scene.views)
        image, _ = rasterize_features(scene.views[view], features)
        losses, _ = stage.losses(view, image.flatten(0, 1))
        optimiser.zero_grad()
        sum(losses.values()).backward()  # type: ignore[union-attr]
        optimiser.step()

    return step


def distillation_step(scene: SyntheticScene, device: torch.device) -> Callable[[int], None]:
    """One step of dense distillation: every pixel's 512-channel CLIP feature."""
    count = len(scene.thing_of)
    features = torch.nn.Parameter(0.1 * torch.randn(count, EMBEDDING_DIM, device=device))
    optimiser = torch.optim.Adam([features], lr=1e-3, fused=True)
    target = F.normalize(torch.randn(scene.views[0].height, scene.views[0].width, EMBEDDING_DIM, device=device), dim=-1)

    def step(number: int) -> None:
        image, _ = rasterize_features(scene.views[number % len(scene.views)], features)
        loss = 1 - F.cosine_similarity(image, target, dim=-1).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    return step


def median_ms(steps: list[Callable[[int], None]], device: torch.device, repetitions: int) -> list[float]:
    """Median milliseconds of each kind of step, taken in turns."""
    times: list[list[float]] = [[] for _ in steps]
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    for number in range(-2, repetitions):
        for step, found in zip(steps, times, strict=True):
            if device.type == "cuda":
                torch.cuda.synchronize()
            began = clock()
            step(number % VIEWS)
            if device.type == "cuda":
                torch.cuda.synchronize()
            if number >= 0:
                found.append((clock() - began) * 1e3)
    return [statistics.median(found) for found in times]


def compare(device: torch.device, repetitions: int) -> list[dict]:
    """Ours against distillation."""
    rows = []
    for count, grid in ((20_000, (60, 80)), (20_000, GRID), (100_000, GRID)):
        scene = make_scene(count, THINGS, VIEWS, grid, device)
        steps = [mask_step(scene, 16, 240, device), distillation_step(scene, device)]
        ours, theirs = median_ms(steps, device, repetitions)
        rows.append({"gaussians": count, "pixels": grid[0] * grid[1], "mask_ms": ours, "distil_ms": theirs})
        rows[-1]["ratio"] = theirs / ours
    return rows


def growth(device: torch.device, repetitions: int) -> list[dict]:
    """Ours, with one size changed at a time."""
    base = {"gaussians": 20_000, "views": VIEWS, "grid": GRID, "queries": 240}
    cases = [base | {"gaussians": n} for n in (5_000, 20_000, 50_000, 200_000)]
    cases += [base | {"views": n} for n in (3, 12, 48)]
    cases += [base | {"grid": (h, h * 4 // 3)} for h in (60, 90, 240)]
    cases += [base | {"queries": n} for n in (20, 100, 400)]
    rows = []
    for case in cases:
        things = min(THINGS, case["queries"] // 3 - 2)
        began = time.perf_counter()
        scene = make_scene(case["gaussians"], things, case["views"], case["grid"], device)
        prepared = time.perf_counter() - began
        (ms,) = median_ms([mask_step(scene, 16, case["queries"], device)], device, repetitions)
        memory = sum(view.nbytes for view in scene.views) / case["views"] / 1e6
        rows.append(case | {"mask_ms": ms, "prepare_s": prepared, "view_mb": memory})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    options = parser.parse_args()
    device = torch.device(options.device)
    torch.manual_seed(0)
    result = {"device": str(device), "threads": torch.get_num_threads(), "torch": torch.__version__}
    print(
        f"{device}, {result['threads']} threads; 3 levels x 16 channels, 240 queries, {THINGS} things, {VIEWS} views\n"
    )
    print("| Gaussians | pixels | mask step | distilling 512 channels | ratio |\n| --- | --- | --- | --- | --- |")
    result["compare"] = compare(device, options.repetitions)
    for row in result["compare"]:
        cells = [f"{row['mask_ms']:.1f} ms", f"{row['distil_ms']:.1f} ms", f"{row['ratio']:.1f}"]
        print(f"| {row['gaussians']} | {row['pixels']} | " + " | ".join(cells) + " |", flush=True)
    print("\n| Gaussians | views | pixels | queries | mask step | memory per view |\n" + "| --- " * 6 + "|")
    result["growth"] = growth(device, options.repetitions)
    for row in result["growth"]:
        pixels = row["grid"][0] * row["grid"][1]
        cells = [row["gaussians"], row["views"], pixels, row["queries"], f"{row['mask_ms']:.1f} ms"]
        print("| " + " | ".join(map(str, cells)) + f" | {row['view_mb']:.1f} MB |", flush=True)
    if options.output:
        options.output.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
