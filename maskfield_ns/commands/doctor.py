"""``maskfield doctor``: what this machine has, and what would be downloaded or compiled."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskfield_ns import __version__
from maskfield_ns.commands.options import Result
from maskfield_ns.foundation.weights import SAM_CHECKPOINTS, weights_dir

if TYPE_CHECKING:
    from maskfield_ns.cli import Doctor

PACKAGES = ("nerfstudio", "torch", "torchvision", "gsplat", "open_clip_torch", "numpy", "numba", "viser", "tyro")
"""Whose versions are worth knowing in a report of a problem."""
_EMBEDDED = ("tiny_sam", "tiny_clip")


def doctor(options: Doctor) -> Result:
    """Prints a report, one line each, grouped; nothing is downloaded, compiled or changed."""
    report: dict[str, dict[str, Any]] = {
        "machine": machine(),
        "versions": versions(),
        "gpu": gpu(),
        "weights": weights(),
    }
    if options.data is not None:
        report["cache"] = caches(options.data)
    report["advice"] = {str(number): line for number, line in enumerate(advice(report), 1)}
    for title, entries in report.items():
        print(f"{title}:")
        for name, value in entries.items():
            print(f"  {name}: {value}" if title != "advice" else f"  {value}")
        if not entries:
            print("  none")
    return Result({**report, "advice": list(report["advice"].values())})


def machine() -> dict[str, Any]:
    """Operating system, Python, cores, memory and disk."""
    free = shutil.disk_usage(Path.cwd()).free
    found: dict[str, Any] = {
        "system": platform.platform(),
        "python": platform.python_version(),
        "cpu cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    }
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        found["memory"] = f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1e9:.1f} GB"
    found["free disk here"] = f"{free / 1e9:.1f} GB"
    return found


def versions() -> dict[str, Any]:
    """Of this package and those it stands on; "missing" where one is not installed."""
    found = {"maskfield-ns": __version__}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "missing"
    return found


def gpu() -> dict[str, Any]:
    """CUDA as torch sees it, the compiler, and whether gsplat's kernels are there."""
    import torch

    found: dict[str, Any] = {"cuda usable by torch": torch.cuda.is_available(), "cuda of torch": torch.version.cuda}
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found |= {"device": properties.name, "memory": f"{properties.total_memory / 1e9:.1f} GB"}
    found["nvcc"] = nvcc() or "missing"
    found["gsplat kernels"] = gsplat_kernels() or "not compiled"
    return found


def nvcc() -> str | None:
    """Path and version of the CUDA compiler, None without one."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    places = [shutil.which("nvcc"), *(str(Path(root) / "bin" / "nvcc") for root in (home, "/usr/local/cuda") if root)]
    for place in places:
        if place and Path(place).is_file():
            said = subprocess.run([place, "--version"], capture_output=True, text=True, check=False).stdout
            version = re.search(r"release ([\d.]+)", said)
            return f"{place} ({version[1] if version else 'version unknown'})"
    return None


def gsplat_kernels() -> str | None:
    """Where gsplat's CUDA kernels are: shipped with the package, or compiled by torch earlier; None if nowhere."""
    spec = importlib.util.find_spec("gsplat")
    for folder in spec.submodule_search_locations or [] if spec else []:
        for library in Path(folder).glob("csrc*.so"):
            return str(library)
    import torch

    if not torch.cuda.is_available():  # asking torch for its folder would warn about that
        return None
    from torch.utils import cpp_extension

    root = os.environ.get("TORCH_EXTENSIONS_DIR") or cpp_extension.get_default_build_root()
    return next((str(path) for path in sorted(Path(root).glob("**/gsplat_cuda*.so"))), None)


def weights() -> dict[str, Any]:
    """Weights of 2D models and whether they are here; by size only, digests are checked when they are used."""
    from maskfield_ns.foundation.tiny import packaged_weights

    found: dict[str, Any] = {"folder": str(weights_dir())}
    for name in _EMBEDDED:
        path = Path(packaged_weights(name))
        found[f"{name} (in the package)"] = _there(path.is_file(), path.stat().st_size if path.is_file() else 0)
    for name, remote in SAM_CHECKPOINTS.items():
        path = weights_dir() / remote.name
        whole = path.is_file() and path.stat().st_size == remote.size
        found[f"SAM {name}"] = _there(whole, remote.size)
    open_clip = clip_of_full_size()
    hub = Path(os.environ.get("HF_HUB_CACHE") or Path(os.environ.get("HF_HOME", "~/.cache/huggingface")) / "hub")
    there = any(hub.expanduser().glob(f"models--*{open_clip}*/snapshots/*/*"))
    found[f"OpenCLIP {open_clip}"] = _there(there, 0)
    return found


def clip_of_full_size() -> str:
    """Architecture and weights of the embedder that the GPU-sized methods use, as the model hub names them."""
    from maskfield_ns.foundation.config import OpenClipConfig

    config = OpenClipConfig()
    return f"{config.model}-{config.pretrained.replace('laion2b_', 'laion2B-').replace('_', '-')}"


def _there(present: bool, size: int) -> str:
    return "present" if present else f"missing, {size / 1e6:,.0f} MB" if size else "missing"


def caches(data: Path) -> dict[str, Any]:
    """Mask caches of a capture: models that made them, images and size."""
    from maskfield_ns.cache.schema import CACHE_FOLDER, ENTRY_SUFFIX, MANIFEST

    root = (data if data.is_dir() else data.parent) / CACHE_FOLDER
    found = {}
    for manifest in sorted(root.glob(f"*/{MANIFEST}")):
        try:
            content = json.loads(manifest.read_text(encoding="utf-8"))
            models = f"{content['proposer']['name']} + {content['embedder']['name']}"
        except (OSError, ValueError, KeyError, TypeError):
            models = "damaged"
        entries = [path for path in manifest.parent.iterdir() if path.suffix == ENTRY_SUFFIX]
        size = sum(path.stat().st_size for path in entries)
        found[str(manifest.parent)] = f"{models}: {len(entries)} images, {size / 1e6:.1f} MB"
    return found


def advice(report: dict[str, dict[str, Any]]) -> list[str]:
    """What follows from a report for the user."""
    lines = []
    missing = [name for name, version in report["versions"].items() if version == "missing"]
    if missing:
        lines.append(f"not installed: {', '.join(missing)}; install maskfield-ns again")
    on_gpu, state = report["gpu"]["cuda usable by torch"], report["gpu"]
    if not on_gpu:
        lines.append("no CUDA: train maskfield-splat-lite or maskfield-lite, which need no downloads")
        return lines
    if state["gsplat kernels"] == "not compiled" and state["nvcc"] == "missing":
        lines.append(
            f"gsplat compiles its kernels at first use and needs nvcc: install CUDA {state['cuda of torch']}'s toolkit "
            "and set CUDA_HOME"
        )
    elif state["gsplat kernels"] == "not compiled":
        lines.append("gsplat compiles its kernels at the first training: some minutes, once")
    wanted = [name for name in ("SAM vit_h", *report["weights"]) if name == "SAM vit_h" or name.startswith("OpenCLIP")]
    for name in dict.fromkeys(wanted):
        if report["weights"][name].startswith("missing"):
            lines.append(f"{name} is downloaded when maskfield or maskfield-splat first extracts masks")
    return lines
