"""gsplat's kernels are looked for before anything long begins, and what is wrong is said in a line."""

from __future__ import annotations

import importlib.metadata
import os
import sys
from pathlib import Path

import pytest
import torch
from torch.utils import cpp_extension

from maskfield_ns.data.splat_datamanager import MaskfieldSplatDataManager, MaskfieldSplatDataManagerConfig
from maskfield_ns.errors import SplatError
from maskfield_ns.splatting.gsplat_kernels import load_kernels

pytest.importorskip("gsplat")


@pytest.fixture(autouse=True)
def nothing_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """A machine on which gsplat has not been used yet, without a compiler."""
    load_kernels.cache_clear()
    monkeypatch.delitem(sys.modules, "gsplat.cuda._backend", raising=False)
    monkeypatch.setattr(cpp_extension, "CUDA_HOME", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "built"))
    yield
    load_kernels.cache_clear()
    sys.modules.pop("gsplat.cuda._backend", None)


def test_a_gpu_without_a_compiler_is_refused_before_the_capture_is_read(tmp_path: Path) -> None:
    config = MaskfieldSplatDataManagerConfig(data=tmp_path / "no capture here")
    with pytest.raises(SplatError, match="finds no nvcc: install the CUDA toolkit") as caught:
        MaskfieldSplatDataManager(config, device=torch.device("cuda", 0))
    assert "\n" not in str(caught.value)


def test_another_gsplat_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.5.3" if name == "gsplat" else found(name))
    with pytest.raises(SplatError, match=r"gsplat 1\.5\.3 is installed; this package works with 1\.4"):
        load_kernels()


def test_a_compiler_that_fails_is_quoted_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    tools = tmp_path / "toolkit" / "bin"
    tools.mkdir(parents=True)
    (tools / "nvcc").write_text("#!/bin/sh\nexit 3\n")
    (tools / "nvcc").chmod(0o755)
    monkeypatch.setattr(cpp_extension, "CUDA_HOME", str(tools.parent))  # nvcc is not on PATH, but torch knows it
    monkeypatch.delenv("MAX_JOBS", raising=False)

    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("Error building extension 'gsplat_cuda': [1/22] nvcc ...\nfatal error: no glm.hpp\n")

    monkeypatch.setattr(cpp_extension, "load", fails)
    with pytest.raises(SplatError, match=r"cannot be compiled or loaded .*Error building extension") as caught:
        load_kernels()
    assert "\n" not in str(caught.value)
    assert "Compiling gsplat's CUDA kernels" in capsys.readouterr().out
    assert "MAX_JOBS" not in os.environ
