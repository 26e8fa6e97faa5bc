"""gsplat's CUDA kernels, found or compiled before anything long begins.

gsplat ships its kernels as source for most versions of torch and compiles them when the first of them is called;
without a compiler it prints a line and fails there, with an error of Python's. Here the same happens at a time of our
choosing, with a reason when it cannot.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util
import os
import shutil
import sys
import threading
from pathlib import Path

import torch

from maskfield_ns.errors import SplatError

SUPPORTED = (1, 4)
"""gsplat's version, major and minor: 1.5 changed the shape of radii, 1.6 the numbers of channels; nerfstudio asks for
1.4.0."""
_PROGRESS_S = 30.0
_JOBS = 10
_BYTES_PER_JOB = 3 << 30
"""What compiling one file may need."""


@functools.cache
def load_kernels() -> None:
    """Loads gsplat's kernels; compiles them where this machine has not done so yet.

    Raises:
        SplatError: gsplat is missing or of another version, there is no CUDA compiler, or compiling fails.
    """
    if "gsplat.cuda._backend" not in sys.modules:
        _check_version()
        if importlib.util.find_spec("gsplat.csrc") is None:
            _check_compiler()
            with _Progress():
                _import_backend()
    if _import_backend() is None:
        raise SplatError(f"gsplat found no kernels for torch {torch.__version__}: {_remedy()}")


def _import_backend() -> object:
    try:
        backend = importlib.import_module("gsplat.cuda._backend")
    except Exception as error:  # whatever ninja, nvcc, a linker or a loader have to say
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        telling = next((line for line in lines if "error" in line.lower()), lines[0] if lines else repr(error))
        raise SplatError(
            f"gsplat's CUDA kernels cannot be compiled or loaded ({telling[:300]}): {_remedy()}"
        ) from error
    return backend._C


def _check_version() -> None:
    try:
        version = importlib.metadata.version("gsplat")
    except importlib.metadata.PackageNotFoundError as error:
        raise SplatError("Gaussians on a GPU need gsplat: pip install gsplat==1.4.0") from error
    if not version.startswith(".".join(map(str, SUPPORTED)) + "."):
        raise SplatError(f"gsplat {version} is installed; this package works with 1.4: pip install gsplat==1.4.0")


def _check_compiler() -> None:
    """Makes sure that gsplat, which looks along PATH only, finds nvcc."""
    if shutil.which("nvcc"):
        return
    from torch.utils.cpp_extension import CUDA_HOME

    folder = Path(CUDA_HOME) / "bin" if CUDA_HOME else None
    if folder is None or not shutil.which("nvcc", path=str(folder)):
        raise SplatError(f"gsplat has to compile its CUDA kernels and finds no nvcc: {_remedy()}")
    os.environ["PATH"] = os.pathsep.join([str(folder), os.environ.get("PATH", "")])


def _remedy() -> str:
    return (
        f"install the CUDA toolkit {torch.version.cuda or ''} that this torch was built for (nvcc on PATH, or "
        "CUDA_HOME set), or train --machine.device-type cpu"
    )


class _Progress:
    """Says how far compiling is: gsplat itself shows a terminal a spinner, and a log nothing."""

    def __enter__(self) -> None:
        from torch.utils.cpp_extension import _get_build_directory

        self.folder = Path(_get_build_directory("gsplat_cuda", verbose=False))
        self.stop = threading.Event()
        self.thread: threading.Thread | None = None
        self.jobs = os.environ.get("MAX_JOBS")
        if (self.folder / "gsplat_cuda.so").exists():
            return
        jobs = self.jobs or str(_fitting_jobs())
        os.environ["MAX_JOBS"] = jobs
        print(
            f"Compiling gsplat's CUDA kernels, once for this torch: about half an hour of one core, {jobs} files at a "
            "time (MAX_JOBS sets how many)."
        )
        source = importlib.util.find_spec("gsplat")
        folder = Path(source.origin).parent / "cuda" / "csrc" if source and source.origin else Path()
        self.total = sum(1 for suffix in ("cu", "cpp") for _ in folder.glob(f"*.{suffix}"))
        self.thread = threading.Thread(target=self._report, daemon=True)
        self.thread.start()

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        if self.thread is not None:
            self.thread.join()
            if self.jobs is None:
                os.environ.pop("MAX_JOBS", None)

    def _report(self) -> None:
        while not self.stop.wait(_PROGRESS_S):
            done = sum(1 for _ in self.folder.glob("*.o"))
            print(f"gsplat: {done} of {self.total} files compiled", flush=True)


def _fitting_jobs() -> int:
    """How many files to compile at once here."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 16 << 30
    return max(1, min(_JOBS, os.cpu_count() or 1, memory // _BYTES_PER_JOB))
