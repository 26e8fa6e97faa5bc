"""Time the CPU rasteriser against gsplat's torch implementation ('ref') and a dense per-tile one ('tile').

All methods render the same Gaussians in the same process, one after the other; figures are medians of process CPU time
(summed over threads), so that ratios hold on a busy machine. Peak memory is what a step adds to the resident set.

    python scripts/bench_rasterizer.py                 about two minutes
    python scripts/bench_rasterizer.py --full          all sizes, more repetitions
    python scripts/bench_rasterizer.py --ours          without the slow baselines
"""

import argparse
import ctypes
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from rasterizer_baselines import project, render_ref, render_tile

from maskfield_ns.splatting import accumulate, prepare_view, rasterize, rasterize_features

SIZES = [(160, 120, 5_000), (320, 240, 20_000), (320, 240, 100_000), (640, 480, 100_000)]
SHORT = [(320, 240, 20_000, 3), (320, 240, 20_000, 16), (640, 480, 100_000, 16)]
MEAN_RADIUS = 7.0  # pixels

START = """
import time, torch
wall, cpu = time.perf_counter(), time.process_time()
from maskfield_ns.splatting import rasterize
torch.manual_seed(0)
tensors = [torch.rand(64, 3), torch.rand(64, 4), torch.rand(64, 3) / 9, torch.rand(64), torch.rand(64, 3)]
for t in tensors: t.requires_grad_()
view = torch.eye(4)[None].clone(); view[0, 2, 3] = 2.0
K = torch.tensor([[[40.0, 0, 20], [0, 40.0, 15], [0, 0, 1]]])
image, _, _ = rasterize(*tensors, view, K, 40, 30)
half = time.perf_counter() - wall
image.sum().backward()
print(half, time.perf_counter() - wall, time.process_time() - cpu)
"""


def scene(width: int, height: int, n: int, channels: int) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
    """A cloud in front of the camera with a mean projected radius of 7 pixels."""
    generator = torch.Generator().manual_seed(n)
    depth = torch.rand(n, generator=generator) * 4 + 2
    place = torch.rand(n, 2, generator=generator) - 0.5
    focal = 0.8 * width
    means = torch.cat([place * torch.tensor([width, height]) / focal * depth[:, None] * 1.05, depth[:, None]], 1)
    quats = torch.randn(n, 4, generator=generator)
    shape = torch.exp(torch.randn(n, 3, generator=generator) * 0.4)
    opacities = torch.rand(n, generator=generator) * 0.9 + 0.05
    features = torch.rand(n, channels, generator=generator)
    viewmats, Ks = torch.eye(4)[None], torch.tensor([[[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1.0]]])
    low, high = 1e-4, 1.0
    for _ in range(14):
        middle = (low * high) ** 0.5
        radii = project(means, quats, shape * middle, viewmats, Ks, width, height)[0]
        radius = float(radii[radii > 0].float().mean())
        low, high = (middle, high) if radius < MEAN_RADIUS else (low, middle)
    return [means, quats, shape * low, opacities, features], viewmats, Ks


def resident(key: str) -> float | None:
    """MB from /proc/self/status; None where there is none."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(key):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    return None


def added_memory(step) -> float | None:
    """Peak MB that one call adds to the resident set."""
    gc.collect()
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    except OSError:
        return None
    before = resident("VmRSS")
    step()
    peak = resident("VmHWM")
    return None if before is None or peak is None else round(peak - before, 1)


def measure(step, repetitions: int) -> tuple[float, float]:
    """Median CPU and wall milliseconds."""
    cpu, wall = [], []
    for _ in range(repetitions):
        a, b = time.process_time(), time.perf_counter()
        step()
        cpu.append(time.process_time() - a)
        wall.append(time.perf_counter() - b)
    return statistics.median(cpu) * 1e3, statistics.median(wall) * 1e3


def steps(render, tensors, viewmats, Ks, width, height):
    leaves = [t.clone().requires_grad_() for t in tensors]
    generator = torch.Generator().manual_seed(1)
    cotangent = torch.randn(1, height, width, tensors[-1].shape[1], generator=generator)

    shown = []

    def forward():
        with torch.no_grad():
            shown[:] = [render(*leaves, viewmats, Ks, width, height)[0]]

    def both():
        image = render(*leaves, viewmats, Ks, width, height)[0]
        torch.autograd.grad(image, leaves, cotangent)

    return forward, both, shown


def one_size(width: int, height: int, n: int, channels: int, slow: int, fast: int) -> dict:
    tensors, viewmats, Ks = scene(width, height, n, channels)
    row: dict = {"width": width, "height": height, "gaussians": n, "channels": channels}
    methods = {"ours": (rasterize, fast)} | ({"ref": (render_ref, slow), "tile": (render_tile, slow)} if slow else {})
    images = {}
    for name, (render, repetitions) in methods.items():
        forward, both, shown = steps(render, tensors, viewmats, Ks, width, height)
        for _ in range(3 if name == "ours" else 0):
            both()
        cpu, wall = measure(forward, repetitions)
        row[name] = {"forward_cpu_ms": cpu, "forward_wall_ms": wall}
        if name == "ours":
            row[name]["peak_mb"] = added_memory(both)
            cpu, wall = measure(both, repetitions)
        else:  # one run serves both: these take seconds
            timed: list[tuple[float, float]] = []
            row[name]["peak_mb"] = added_memory(lambda run=both, out=timed: out.append(measure(run, 1)))
            if repetitions > 1:
                timed.append(measure(both, repetitions - 1))
            cpu, wall = min(timed)
        row[name] |= {"both_cpu_ms": cpu, "both_wall_ms": wall}
        images[name] = shown[0]
    for name in images:
        row[name]["difference"] = float((images[name] - images["ours"]).abs().max())
    outputs = (width * height * (channels + 1) * 4) / 2**20
    row["memory_bound_mb"] = round(outputs + 40 * n * (channels + 8) / 2**20 + 50, 1)
    for name in ("ref", "tile"):
        if name in row:
            row[f"{name}_over_ours"] = {
                key: row[name][f"{key}_cpu_ms"] / row["ours"][f"{key}_cpu_ms"] for key in ("forward", "both")
            }
    row["frozen"] = frozen(tensors, viewmats, Ks, width, height, fast)
    return row


def frozen(tensors, viewmats, Ks, width: int, height: int, repetitions: int) -> dict:
    """Fixed geometry, without and with kept weights: CPU ms of preparing, rendering, training, and accumulating."""
    features = tensors[4].clone().requires_grad_()
    values = torch.randn(height, width, tensors[4].shape[1])
    result = {}
    for name, keep in (("prepared", False), ("kept", True)):

        def prepare(keep=keep):
            return prepare_view(*tensors[:4], viewmats[0], Ks[0], width, height, keep_weights=keep)

        view = prepare()

        def forward(view=view):
            with torch.no_grad():
                rasterize_features(view, features)

        def both(view=view):
            torch.autograd.grad(rasterize_features(view, features)[0], features, values)

        def collect(view=view):
            accumulate(view, values)

        both()
        result[name] = {"mb": view.nbytes / 2**20} | {
            f"{key}_cpu_ms": measure(step, repetitions)[0]
            for key, step in (("prepare", prepare), ("forward", forward), ("both", both), ("accumulate", collect))
        }
    return result


def start_up() -> dict:
    """Seconds of the first forward + backward in a fresh process, without torch's import: first and cached.

    Python's own byte code is compiled beforehand, as an installer does.
    """
    result = {}
    with tempfile.TemporaryDirectory() as home:
        environment = {**os.environ, "MASKFIELD_HOME": f"{home}/kernels", "PYTHONPYCACHEPREFIX": f"{home}/bytecode"}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        modules = "import numba.core.caching, scipy.linalg, maskfield_ns.splatting.kernels_backward"
        subprocess.run([sys.executable, "-c", f"import torch; {modules}"], env=environment, check=True)
        for name in ("first", "cached"):
            done = subprocess.run(
                [sys.executable, "-c", START], env=environment, capture_output=True, text=True, check=True
            )
            forward, wall, cpu = map(float, done.stdout.split())
            result[name] = {"forward_wall_s": forward, "wall_s": wall, "cpu_s": cpu}
    return result


def table(rows: list[dict], start: dict) -> str:
    lines = [
        "Process CPU ms, forward / forward+backward; ratios ref/ours and tile/ours; peak MB of forward+backward",
        f"{'W x H, N, D':>22} | {'ours':>13} | {'ref':>13} | {'tile':>13} | {'ref/ours':>13} | {'tile/ours':>13} | "
        f"{'MB ours/ref/tile (bound)':>26}",
    ]
    for row in rows:
        cells = [f"{row['width']}x{row['height']} {row['gaussians'] // 1000}k {row['channels']}".rjust(22)]
        for name in ("ours", "ref", "tile"):
            one = row.get(name)
            cells.append((f"{one['forward_cpu_ms']:.1f}/{one['both_cpu_ms']:.1f}" if one else "-").rjust(13))
        for name in ("ref", "tile"):
            one = row.get(f"{name}_over_ours")
            cells.append((f"{one['forward']:.0f}x/{one['both']:.0f}x" if one else "-").rjust(13))
        peaks = "/".join(str(row[name]["peak_mb"]) for name in ("ours", "ref", "tile") if name in row)
        cells.append(f"{peaks} ({row['memory_bound_mb']})".rjust(26))
        lines.append(" | ".join(cells))
    lines.append("Fixed geometry, process CPU ms (kept: with the blending weights in memory)")
    for row in rows:
        for name, one in row["frozen"].items():
            lines.append(
                f"{row['width']}x{row['height']} {row['gaussians'] // 1000}k {row['channels']}".rjust(22)
                + f" | {name:>8}: prepare {one['prepare_cpu_ms']:.1f}, forward/forward+backward "
                f"{one['forward_cpu_ms']:.1f}/{one['both_cpu_ms']:.1f}, accumulate {one['accumulate_cpu_ms']:.1f}, "
                f"{one['mb']:.1f} MB"
            )
    for name, one in start.items():
        lines.append(f"start-up, {name}: {one['wall_s']:.1f} s wall, {one['cpu_s']:.1f} s CPU "
                     f"(forward alone {one['forward_wall_s']:.1f} s wall)")  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="all sizes of the reference, three repetitions")
    parser.add_argument("--ours", action="store_true", help="leave out the baselines")
    parser.add_argument("--skip-start", action="store_true", help="do not measure the start-up")
    parser.add_argument("--channels", type=int, nargs="*", help="channels instead of 3 and 16")
    parser.add_argument("--json", type=Path, default=Path("outputs/bench_rasterizer.json"))
    given = parser.parse_args()
    sizes = [(w, h, n, d) for d in (3, 16) for w, h, n in SIZES] if given.full else SHORT
    if given.channels:
        sizes = [(w, h, n, d) for d in given.channels for w, h, n in sorted({size[:3] for size in sizes})]
    slow = 0 if given.ours else (3 if given.full else 1)
    rows = []
    for size in sizes:
        rows.append(one_size(*size, slow=slow, fast=7))
        print(f"done: {size}", file=sys.stderr, flush=True)
    start = {} if given.skip_start else start_up()
    print(table(rows, start))
    given.json.parent.mkdir(parents=True, exist_ok=True)
    report = {"threads": torch.get_num_threads(), "torch": torch.__version__, "rows": rows, "start_up": start}
    given.json.write_text(json.dumps(report, indent=1))
    print(f"written to {given.json}")


if __name__ == "__main__":
    main()
