"""Makes this process believe in a GPU: import it first, under the environment that :func:`variables` describes."""

from __future__ import annotations

import ctypes
import os
import subprocess
import types
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent


def build(folder: Path) -> dict[str, str]:
    """Compiles the two small libraries that torch's autograd engine is satisfied with; the environment to run under."""
    interpose, driver = folder / "interpose.so", folder / "driver" / "libcuda.so.1"
    driver.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["g++", "-shared", "-fPIC", "-O1", "-o", interpose, HERE / "interpose.cpp"], check=True)
    command = ["gcc", "-shared", "-fPIC", "-w", "-D_GNU_SOURCE", "-o", driver, HERE / "libcuda.c", "-ldl"]
    subprocess.run(command, check=True)
    paths = os.pathsep.join(filter(None, [str(driver.parent), os.environ.get("LD_LIBRARY_PATH")]))
    return {"LD_PRELOAD": str(interpose), "LD_LIBRARY_PATH": paths, "PRETENDED_GPU": str(interpose)}


def believe() -> None:
    """torch says that there is one GPU; what asks the real driver is answered here."""
    import torch
    from device import COUNTS, Pretended, constructors, site
    from torch.utils._pytree import tree_map

    torch._C._ensureCUDADeviceGuardSet()
    ctypes.CDLL(os.environ["PRETENDED_GPU"]).pretend_devices(127)
    torch._C._set_only_lift_cpu_tensors(True)
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    torch.inference_mode = lambda *_, **__: torch.no_grad()
    facts: dict[str, Any] = {
        "is_available": True,
        "is_initialized": False,
        "is_bf16_supported": True,
        "current_device": 0,
        "device_count": 1,
        "get_device_name": "pretended GPU",
        "get_device_capability": (9, 0),
        "get_device_properties": types.SimpleNamespace(total_memory=24 << 30, major=9, minor=0, name="pretended"),
        "max_memory_allocated": 0,
        **dict.fromkeys(("empty_cache", "reset_peak_memory_stats", "set_device", "manual_seed", "manual_seed_all")),
    }
    for name, answer in facts.items():
        setattr(torch.cuda, name, lambda *_, answer=answer, **__: answer)
    torch.cuda.synchronize = lambda *_, **__: COUNTS.waits.update([f"synchronize {site()}"])
    torch.random._seed_custom_device = lambda *_, **__: None
    torch.backends.cudnn.enabled = False
    for switch in ("enable_flash_sdp", "enable_mem_efficient_sdp", "enable_cudnn_sdp"):
        getattr(torch.backends.cuda, switch)(False)
    torch.backends.mha.set_fastpath_enabled(False)
    torch.tensor, torch.as_tensor = constructors()
    save, load = torch.save, torch.load

    def plain_save(value: Any, *args: Any, **kwargs: Any) -> Any:
        with torch.utils._python_dispatch._disable_current_modes():
            on_host = tree_map(lambda x: x.inner.detach().clone() if isinstance(x, Pretended) else x, value)
            return save(on_host, *args, **kwargs)

    def plain_load(*args: Any, **kwargs: Any) -> Any:
        with torch.utils._python_dispatch._disable_current_modes():
            return load(*args, **kwargs)

    torch.save, torch.load = plain_save, plain_load
