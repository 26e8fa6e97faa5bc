"""How kernels are compiled: without the GIL, and kept in a user folder so that only the first use ever waits."""

import hashlib
import os
import tempfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any


@lru_cache(maxsize=1)
def cache_folder() -> Path:
    """Folder of compiled kernels: in ``$MASKFIELD_HOME`` or the user's cache folder, else a private temporary one.

    The name carries a digest of this package's sources: numba itself would only notice changes of a kernel's own file.
    """
    digest = hashlib.sha256()
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    name = f"kernels-{digest.hexdigest()[:16]}"
    home = os.environ.get("MASKFIELD_HOME")
    xdg = os.environ.get("XDG_CACHE_HOME")
    usual = Path(home) if home else (Path(xdg) if xdg else Path.home() / ".cache") / "maskfield"
    for folder in (usual / name, Path(tempfile.gettempdir()) / f"maskfield-{_user()}" / name):
        if _private_and_writable(folder):
            return folder
    return Path(tempfile.mkdtemp(prefix="maskfield-"))  # kernels are then compiled anew by every process


def _user() -> str:
    return str(os.getuid()) if hasattr(os, "getuid") else os.environ.get("USERNAME", "user")


def _private_and_writable(folder: Path) -> bool:
    """numba reads pickles from this folder, so it must belong to this user and be closed to others' writing."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder):
            pass
        if not hasattr(os, "getuid"):
            return True
        status = folder.stat()
        return status.st_uid == os.getuid() and not status.st_mode & 0o022
    except OSError:
        return False


def kernel(function: Callable[..., Any]) -> Any:
    """Decorator: compile at the first call, release the GIL while running, cache on disk."""
    import numba

    chosen = numba.config.CACHE_DIR  # type: ignore[attr-defined]
    if not chosen:
        numba.config.CACHE_DIR = str(cache_folder())  # type: ignore[attr-defined]
    try:
        return numba.njit(nogil=True, cache=True, error_model="numpy")(function)
    finally:
        numba.config.CACHE_DIR = chosen  # type: ignore[attr-defined]
