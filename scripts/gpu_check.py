"""Everything worth knowing about Gaussians on a GPU, in one command and without nerfstudio or data.

    python scripts/gpu_check.py --output gpu_check.json        a few minutes
    python scripts/gpu_check.py --device cpu --quick           the same code on small sizes, to try the script itself

Needs torch, gsplat and this package. Prints one table:

- parity: CPU kernels against the device (gsplat on CUDA), images and all gradients;
- rasterising forwards and forwards + backwards at 1440 x 1080 for 3, 16 and 32 channels, 100k and 1M Gaussians;
- a mask-stage step, and query frames per second (16 channels rendered, 240 queries, one phrase to a mask);
- peak memory of each.

Times are medians between device events, after warming up. Exit code 1 if parity fails.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from bench_mask_stage import mask_step
from synthetic_scene import camera, make_gaussians, make_scene
from torch import Tensor

from maskfield_ns.answers import decision
from maskfield_ns.answers.decision import DecisionRule
from maskfield_ns.splatting import prepare_view, rasterize, rasterize_features
from maskfield_ns.splatting.cuda import CHANNELS_AT_ONCE
from maskfield_ns.systems.query_head import QueryHead

IMAGE_TOLERANCE, GRADIENT_TOLERANCE = 2e-3, 1e-2
"""Largest difference of a pixel (values about 1), and of gradients relative to the largest one. Where the Gaussian that
ends a pixel differs by rounding, a pixel may change by more than arithmetic alone explains."""


class Timer:
    """Median milliseconds of a step and the memory it needs at most."""

    def __init__(self, device: torch.device, repetitions: int) -> None:
        self.device, self.repetitions = device, repetitions

    def __call__(self, step: Callable[[], Any]) -> dict[str, float]:
        """Runs a step to warm up, then measures it."""
        for _ in range(3):
            step()
        if self.device.type != "cuda":
            times = []
            for _ in range(self.repetitions):
                began = time.perf_counter()
                step()
                times.append((time.perf_counter() - began) * 1e3)
            return {"ms": statistics.median(times)}
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        events = [
            (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
            for _ in range(self.repetitions)
        ]
        for start, end in events:
            start.record()
            step()
            end.record()
        torch.cuda.synchronize()
        return {
            "ms": statistics.median(start.elapsed_time(end) for start, end in events),
            "peak_mb": torch.cuda.max_memory_allocated() / 1e6,
        }


def parity(device: torch.device) -> list[dict[str, Any]]:
    """CPU kernels against the device: images, alphas and gradients for several numbers of channels."""
    rows = []
    for channels in (1, 3, 16, 32, 48):
        gaussians, _ = make_gaussians(3000, 15, torch.device("cpu"))
        colours = torch.rand(3000, channels, generator=torch.Generator().manual_seed(channels))
        view, K = camera(0.7, 203, 151, torch.device("cpu"))
        cotangent = torch.randn(1, 151, 203, channels, generator=torch.Generator().manual_seed(1))
        results = []
        for where in (torch.device("cpu"), device):
            given = gaussians | {"colors": colours}
            leaves = {k: v.detach().clone().to(where).requires_grad_() for k, v in given.items()}
            image, alphas, info = rasterize(
                **leaves, viewmats=view[None].to(where), Ks=K[None].to(where), width=203, height=151, absgrad=True
            )
            info["means2d"].retain_grad()
            (image * cotangent.to(where)).sum().backward()
            found = {k: v.grad for k, v in leaves.items()}
            if channels <= CHANNELS_AT_ONCE:  # beyond, gsplat's absgrad is that of the last chunk of channels
                found["absgrad"] = info["means2d"].absgrad
            results.append((image.detach().cpu(), alphas.detach().cpu(), {k: g.cpu() for k, g in found.items()}))
        (image, alphas, grads), (image_2, alphas_2, grads_2) = results
        row: dict[str, Any] = {"channels": channels, "image": float((image - image_2).abs().max())}
        row["alpha"] = float((alphas - alphas_2).abs().max())
        row["gradients"] = {k: relative(g, grads_2[k]) for k, g in grads.items()}
        worst = max(row["gradients"].values())
        row["passed"] = max(row["image"], row["alpha"]) < IMAGE_TOLERANCE and worst < GRADIENT_TOLERANCE
        rows.append(row)
    return rows


def relative(a: Tensor, b: Tensor) -> float:
    """Largest difference of two gradients, relative to the largest entry."""
    return float((a - b).abs().max() / a.abs().max().clamp(min=1e-12))


def rasterising(timer: Timer, counts: list[int], size: tuple[int, int]) -> list[dict[str, Any]]:
    """Times by number of Gaussians and channels."""
    rows, (width, height) = [], size
    for count in counts:
        gaussians, _ = make_gaussians(count, 100, timer.device)
        view, K = camera(0.7, width, height, timer.device)
        for channels in (3, 16, 32):
            leaves = {k: v.clone().requires_grad_() for k, v in gaussians.items()}
            leaves["colors"] = torch.rand(count, channels, device=timer.device).requires_grad_()
            camera_arguments: dict[str, Any] = {"viewmats": view[None], "Ks": K[None], "width": width, "height": height}

            def forward(leaves: dict = leaves, more: dict = camera_arguments) -> Tensor:
                return rasterize(**leaves, **more)[0]

            def quietly(run: Callable = forward) -> None:
                with torch.no_grad():
                    run()

            def both(run: Callable = forward, leaves: dict = leaves) -> None:
                torch.autograd.grad(run().sum(), list(leaves.values()))

            row = {"gaussians": count, "channels": channels, "forward": timer(quietly), "both": timer(both)}
            rows.append(row)
            print(f"  {count} Gaussians, {channels} channels: done", flush=True)
    return rows


def queries(timer: Timer, count: int, size: tuple[int, int]) -> dict[str, Any]:
    """From a new camera and a phrase to its mask: project, render 16 channels, score 240 queries, decide."""
    width, height = size
    gaussians, _ = make_gaussians(count, 80, timer.device)
    features = torch.randn(count, 16, device=timer.device)
    head = QueryHead(240, 16, 512, by_level=False).to(timer.device)
    head.support[:] = 10.0
    rule, every = DecisionRule(), torch.arange(240, device=timer.device)
    text = torch.nn.functional.normalize(torch.randn(1, 512, device=timer.device), dim=-1)
    negatives = torch.nn.functional.normalize(torch.randn(4, 512, device=timer.device), dim=-1)
    cameras = [camera(0.1 * i, width, height, timer.device) for i in range(8)]
    turn = [0]

    @torch.inference_mode()
    def frame() -> None:
        view, K = cameras[turn[0] % len(cameras)]
        turn[0] += 1
        prepared = prepare_view(**gaussians, viewmat=view, K=K, width=width, height=height)
        image, _ = rasterize_features(prepared, features)
        scores = decision.phrase_relevancy(head.embeddings, head.valid(1.0), text, negatives, 10.0)
        weights = torch.ones_like(head.support)
        verdict = decision.judge(scores, weights, None, rule)
        for rows in image.split(max(1, (1 << 17) // width)):
            heat = decision.heat_map(head.probabilities(rows, every), scores, head.levels, rule)
            decision.phrase_masks(heat, verdict)

    result: dict[str, Any] = {"gaussians": count, "width": width, "height": height} | timer(frame)
    result["frames_per_second"] = 1e3 / result["ms"]
    return result


def table(result: dict[str, Any]) -> str:
    """Everything as Markdown."""
    lines = [f"device: {result['name']}; torch {result['torch']}", ""]
    lines += ["| parity, channels | image | alpha | worst gradient | |", "| --- | --- | --- | --- | --- |"]
    for row in result["parity"]:
        worst = max(row["gradients"], key=row["gradients"].get)
        values = f"{row['image']:.1e} | {row['alpha']:.1e} | {row['gradients'][worst]:.1e} ({worst})"
        lines.append(f"| {row['channels']} | {values} | {'ok' if row['passed'] else 'FAILED'} |")
    lines += ["", "| what | Gaussians | channels | time | peak memory |", "| --- | --- | --- | --- | --- |"]

    def add(what: str, row: dict[str, Any], channels: Any, timing: dict[str, float]) -> None:
        memory = f"{timing['peak_mb']:.0f} MB" if "peak_mb" in timing else ""
        lines.append(f"| {what} | {row['gaussians']} | {channels} | {timing['ms']:.2f} ms | {memory} |")

    for row in result["rasterising"]:
        add("forward", row, row["channels"], row["forward"])
        add("forward + backward", row, row["channels"], row["both"])
    add("mask-stage step", result["mask_stage"], "3 x 16", result["mask_stage"])
    fps = result["queries"]["frames_per_second"]
    add(f"query, new camera and phrase ({fps:.0f} frames/s)", result["queries"], 16, result["queries"])
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="small sizes")
    parser.add_argument("--repetitions", type=int, default=20)
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("error: torch sees no CUDA device here; --device cpu --quick tries the script itself", file=sys.stderr)
        return 1
    torch.manual_seed(0)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    result: dict[str, Any] = {"name": name, "torch": torch.__version__, "parity": parity(device)}
    timer = Timer(device, options.repetitions)
    counts, size = ([2_000, 5_000], (160, 120)) if options.quick else ([100_000, 1_000_000], (1440, 1080))
    result["size"] = size
    result["rasterising"] = rasterising(timer, counts, size)
    grid = (30, 40) if options.quick else (192, 256)
    scene = make_scene(counts[0], 30, 6, grid, device)
    step, number = mask_step(scene, 16, 240, device), [0]

    def next_step() -> None:
        number[0] += 1
        step(number[0])

    result["mask_stage"] = {"gaussians": counts[0], "grid": grid} | timer(next_step)
    result["queries"] = queries(timer, counts[0], size)
    print("\n" + table(result))
    if options.output:
        options.output.write_text(json.dumps(result, indent=1))
    return 0 if all(row["passed"] for row in result["parity"]) else 1


if __name__ == "__main__":
    sys.exit(main())
