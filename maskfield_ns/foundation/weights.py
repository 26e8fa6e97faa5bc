"""Find, fetch and identify the weight files of full-size models."""

from __future__ import annotations

import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from maskfield_ns.errors import WeightsError
from maskfield_ns.files import file_sha256

CHUNK = 1 << 20
TIMEOUT_S = 30
WEIGHT_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors", ".npz")


@dataclass(frozen=True)
class RemoteFile:
    """A published weight file."""

    name: str
    """File name in the weights folder."""
    url: str
    """Where it is published."""
    size: int
    """Bytes."""
    sha256_prefix: str
    """First characters of its SHA-256, in hexadecimal."""


def _sam(name: str, size: int) -> RemoteFile:
    # The official files carry the start of their hash in their name, as torch.hub wants it.
    prefix = name.removesuffix(".pth").rsplit("_", 1)[1]
    return RemoteFile(name, f"https://dl.fbaipublicfiles.com/segment_anything/{name}", size, prefix)


SAM_CHECKPOINTS = {
    "vit_h": _sam("sam_vit_h_4b8939.pth", 2_564_550_879),
    "vit_l": _sam("sam_vit_l_0b3195.pth", 1_249_524_607),
    "vit_b": _sam("sam_vit_b_01ec64.pth", 375_042_383),
}
"""The official Segment Anything checkpoints (Apache-2.0), by model type."""


def weights_dir() -> Path:
    """Folder of fetched weights: ``$MASKFIELD_HOME``, else ``maskfield`` in the user's cache folder."""
    if home := os.environ.get("MASKFIELD_HOME"):
        return Path(home).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "maskfield"


def as_local_file(text: str) -> Path | None:
    """The path, if `text` means a local weight file rather than the name of published weights.

    Raises:
        WeightsError: it can only mean a file, and there is none.
    """
    path = Path(text).expanduser()
    if path.is_file():
        return path
    if len(path.parts) > 1 or text.endswith(WEIGHT_SUFFIXES):
        raise WeightsError(f"no weight file at {path}: check the path, or pass the name of published weights instead")
    return None


def sha256_file(path: Path) -> str:
    """Hex digest of a file's content; computed once per process and version of the file.

    Raises:
        WeightsError: the file cannot be read.
    """
    path = Path(path).expanduser()
    try:
        status = path.stat()
        return _digest(path, status.st_size, status.st_mtime_ns)
    except OSError as error:
        raise WeightsError(f"cannot read the weight file {path}: {error.strerror}") from error


@lru_cache(maxsize=32)
def _digest(path: Path, size: int, mtime_ns: int) -> str:
    return file_sha256(path)


def fetch(remote: RemoteFile, folder: Path | None = None, progress: bool = True) -> Path:
    """Path of a verified weight file, downloaded if it is not there yet; an interrupted download is resumed.

    Args:
        remote: which file.
        folder: where to look and to download to; default :func:`weights_dir`.
        progress: show a progress bar.

    Raises:
        WeightsError: it cannot be had, or what is there is not the published file.
    """
    folder = weights_dir() if folder is None else Path(folder)
    target = folder / remote.name
    if not target.exists():
        part = target.with_name(target.name + ".part")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _download(remote, part, progress)
        except http.client.IncompleteRead:
            pass  # what arrived is in the .part file
        except (OSError, ValueError, http.client.HTTPException) as error:  # URLError and time-outs are OSErrors
            reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
            raise WeightsError(_unavailable(remote, folder, str(reason))) from error
        if not part.exists() or part.stat().st_size < remote.size:
            raise WeightsError(_unavailable(remote, folder, "the connection ended early; run again to resume"))
        if problem := _problem(part, remote):
            part.unlink()
            raise WeightsError(_unavailable(remote, folder, f"the download was discarded: {problem}"))
        os.replace(part, target)
    elif problem := _problem(target, remote):
        raise WeightsError(_unavailable(remote, folder, f"the file there is not the published one: {problem}"))
    return target


def _problem(path: Path, remote: RemoteFile) -> str | None:
    size = path.stat().st_size
    if size != remote.size:
        return f"it has {size:,} bytes instead of {remote.size:,}"
    digest = sha256_file(path)
    if not digest.startswith(remote.sha256_prefix):
        return f"its SHA-256 starts with {digest[: len(remote.sha256_prefix)]} instead of {remote.sha256_prefix}"
    return None


def _unavailable(remote: RemoteFile, folder: Path, reason: str) -> str:
    return (
        f"cannot get {remote.name} ({remote.size / 1e6:,.0f} MB): {reason}\n"
        f"Either download {remote.url}\n"
        f"and put it into {folder} (the folder can be changed with MASKFIELD_HOME),\n"
        f"or pass the path of a copy as `checkpoint`,\n"
        f"or work offline with the embedded models: `ns-train maskfield-lite`."
    )


def _download(remote: RemoteFile, part: Path, progress: bool) -> None:
    have = part.stat().st_size if part.exists() else 0
    if have > remote.size:  # not a beginning of this file
        part.unlink()
        have = 0
    if have == remote.size:
        return
    headers = {"User-Agent": "maskfield-ns"}
    if have:
        headers["Range"] = f"bytes={have}-"
    with urllib.request.urlopen(urllib.request.Request(remote.url, headers=headers), timeout=TIMEOUT_S) as response:
        # A server that ignores the range sends the whole file with status 200.
        resumed = have > 0 and response.status == 206
        have = have if resumed else 0
        with part.open("ab" if resumed else "wb") as file, _bar(remote, have, progress) as advance:
            while have < remote.size and (chunk := response.read(min(CHUNK, remote.size - have))):
                file.write(chunk)
                have += len(chunk)
                advance(len(chunk))


@contextmanager
def _bar(remote: RemoteFile, have: int, show: bool) -> Iterator[Callable[[int], None]]:
    if not show:
        yield lambda _: None
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn()) as bar:
        task = bar.add_task(f"downloading {remote.name}", total=remote.size, completed=have)
        yield lambda size: bar.advance(task, size)
