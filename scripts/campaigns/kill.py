"""Kills extraction and training at any moment, inside a save too: what was finished is still there, and whole.

scripts/campaigns/kill.py [--cases 200] [--seconds S] [--seed N] [--output tallies.json] [--only extraction|training]

Every case is a process of its own, ended by SIGKILL; it is forked from this one, which has loaded everything, so that
a case takes a second and not half a minute. Training gets half of the cases.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))
from campaign import Campaign, Wrong, finish

from maskfield_ns import checkpoints
from maskfield_ns.cache.store import MaskCache
from maskfield_ns.commands.extract import method_config
from maskfield_ns.data.mask_source import extract
from maskfield_ns.errors import CacheError
from maskfield_ns.files import file_sha256
from maskfield_ns.foundation.config import RegionsConfig, TinyClipConfig

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
from captures import make_capture, read_transforms

IMAGES = 12
FILE_EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir")


class Child:
    """A forked process.

    Args:
        act: what it does.
        folder: it is killed at a use of this folder, if ``at`` says so.
        at: which use of files in the folder is its last; None: it runs until it is killed from outside.
    """

    def __init__(self, act: Callable[[], object], folder: Path, at: int | None = None) -> None:
        self.pid = os.fork()
        if self.pid:
            return
        status, count = 1, 0

        def audit(event: str, arguments: tuple) -> None:
            nonlocal count
            if at is not None and event in FILE_EVENTS and str(folder) in str(arguments[0]):
                count += 1
                if count == at:
                    os.kill(os.getpid(), signal.SIGKILL)

        try:
            sys.addaudithook(audit)
            # Python's own output only: a test that looks at the terminal is not disturbed.
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                act()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)

    def end(self, after: float | None = None) -> int | None:
        """Kills the process after some seconds, or waits for its end; returns its exit code, None if it was killed."""
        if after is not None:
            limit = time.monotonic() + after
            while time.monotonic() < limit:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                if pid:
                    return None if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
                time.sleep(0.005)
            os.kill(self.pid, signal.SIGKILL)
        _, status = os.waitpid(self.pid, 0)
        return None if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


# --- extraction -------------------------------------------------------------------------------------------------------


def extraction(folder: Path, campaign: Campaign) -> Campaign:
    """Kills ``maskfield extract``, from outside or before a use of the file system.

    Right: every entry there is, is whole and the one that an undisturbed extraction makes; a further extraction makes
    the rest and leaves nothing else behind.
    """
    config: Any = method_config("maskfield-lite").pipeline.datamanager
    config.data = make_capture(folder / "capture", [f"images/{k:02d}.png" for k in range(IMAGES)], held_out=None)
    config.proposer, config.embedder = RegionsConfig(), TinyClipConfig()
    transforms = read_transforms(config.data)
    names = [frame["file_path"] for frame in transforms["frames"]]
    hashes = {name: file_sha256(config.data / name) for name in names}
    config.cache_dir = folder / "reference"
    start = time.monotonic()
    if Child(lambda: extract(config, "cpu", progress=False), folder).end() != 0:
        raise RuntimeError("the undisturbed extraction failed")
    usual = time.monotonic() - start
    want = held(folder / "reference", config, hashes)
    cache, interrupted, finished = folder / "cache", 0, 0
    for number, rng in campaign.each():
        config.cache_dir = cache
        at = int(rng.integers(1, 8 * IMAGES)) if number % 2 else None
        # What is left to do takes less time from case to case, and starts again when all is done.
        left = 1 - len(list(cache.glob("*/*.safetensors"))) / max(len(want), 1)
        child = Child(lambda: extract(config, "cpu", progress=False), cache, at)
        code = child.end(None if at else float(rng.uniform(0, usual * max(left, 0.2))))
        interrupted += code is None

        def check(code: int | None = code) -> None:
            if code not in (0, None):
                raise Wrong(f"the extraction ended with exit code {code}")
            found = held(cache, config, hashes)
            if any(not np.array_equal(found[key], want[key]) for key in found):
                raise Wrong("an entry differs from that of an undisturbed extraction")
            if code == 0 and (set(found) != set(want) or list(cache.rglob(".*.tmp"))):
                raise Wrong("a finished extraction lacks entries, or left temporary files")

        campaign.attempt(f"case {number}, {'file event ' + str(at) if at else 'from outside'}", check)
        if code == 0:
            finished += 1
            shutil.rmtree(cache, ignore_errors=True)
    config.cache_dir = cache

    def complete() -> None:
        if Child(lambda: extract(config, "cpu", progress=False), folder).end() != 0:
            raise Wrong("the last extraction failed")
        if set(held(cache, config, hashes)) != set(want) or list(cache.rglob(".*.tmp")):
            raise Wrong("the last extraction lacks entries, or left temporary files")

    campaign.attempt("completed", complete)
    campaign.notes |= {"killed": interrupted, "finished in between": finished}
    return campaign


def held(folder: Path, config: Any, hashes: dict[str, str]) -> dict[str, np.ndarray]:
    """The entries of a cache, in bytes, by image; those that are not there yet are left out."""
    try:
        cache = MaskCache.open(folder, config.proposer.fingerprint(), config.embedder.fingerprint())
    except CacheError:
        if list(folder.rglob("*.safetensors")):
            raise
        return {}
    result = {}
    for name, digest in hashes.items():
        if cache.paths_of(name):
            tensors = cache.read(name, digest).tensors()
            result[name] = np.concatenate([np.frombuffer(tensors[key].tobytes(), np.uint8) for key in sorted(tensors)])
    return result


# --- training ---------------------------------------------------------------------------------------------------------


def training_config(capture: Path, output: Path) -> Any:
    """maskfield-splat-lite on little, with a checkpoint after every second step."""
    from runs import small_splat_config

    config = small_splat_config(capture, output, "killed", 10, 6)
    config.steps_per_save, config.vis = 2, "none"
    config.pipeline.model.num_random = 300
    return config


def training(folder: Path, campaign: Campaign) -> Campaign:
    """Kills a training, most often inside a save.

    Right: there is a checkpoint as soon as one save is over, the newest whole one opens with finite values, its step is
    at most one save behind, and whatever is not whole is no checkpoint by its name.
    """
    from runs import make_small_demo

    capture = make_small_demo(folder / "capture", frames=5, held_out=(2,), scale=0.25, points=True)
    config = training_config(capture, folder / "runs")
    config.pipeline.datamanager.data = config.data
    output = io.StringIO()
    # Masks first, in a process of its own: this one must not start the threads of a training.
    if Child(lambda: extract(config.pipeline.datamanager, "cpu", progress=False), folder).end() != 0:
        raise RuntimeError("the extraction failed")
    with contextlib.redirect_stdout(output):
        config.save_config()
        trainer = config.setup(local_rank=0, world_size=1)
        trainer.setup()
    saved, inside, opened = trainer.checkpoint_dir, 0, 0
    for number, rng in campaign.each():
        before = {path.name for path in checkpoints.newest_first(saved)} if number % 3 else set()
        if not before:
            shutil.rmtree(saved, ignore_errors=True)  # a fresh run
        at = int(rng.integers(1, 120)) if number % 4 else None
        child = Child(trainer.train, saved, at)
        code = child.end(None if at else float(rng.uniform(0, 6)))
        inside += code is None and at is not None

        def check(code: int | None = code, before: set[str] = before) -> None:
            nonlocal opened
            if code not in (0, None):
                raise Wrong(f"the training ended with exit code {code}")
            there = checkpoints.newest_first(saved)
            if before and not there:
                raise Wrong("the checkpoint that was there is gone")
            bad = [path.name for path in there if checkpoints.problem(path) is not None]
            if bad:
                raise Wrong(f"not whole: {bad}")
            if there:
                state = checkpoints.read(there[0])
                if there[0].name != checkpoints.name_of(state["step"]):
                    raise Wrong("a checkpoint has the name of another step")
                if not all(torch.isfinite(t).all() for t in state["pipeline"].values() if t.is_floating_point()):
                    raise Wrong("a checkpoint holds values that are not finite")
                opened += 1
            if code == 0 and [path.name for path in there[:1]] != [checkpoints.name_of(15)]:
                raise Wrong("a finished training has another last checkpoint")

        campaign.attempt(f"case {number}, {'file event ' + str(at) if at else 'from outside'}", check)
    # The run as a user would go on with it.
    again = training_config(capture, folder / "runs")
    again.timestamp, again.load_dir, again.max_num_iterations = "resumed", saved, 2

    def resume() -> None:
        from runs import train

        if Child(lambda: train(again), folder).end() != 0:
            raise Wrong("the training does not go on from what is left")

    if checkpoints.newest_first(saved):
        campaign.attempt("resumed with --load-dir", resume)
    campaign.notes |= {"killed at a use of the run's files": inside, "checkpoints read after a kill": opened}
    return campaign


def run(cases: int, seconds: float = float("inf"), seed: int = 0, only: str = "") -> list[Campaign]:
    """Both campaigns."""
    folder = Path(tempfile.mkdtemp(prefix="maskfield-kill-"))
    try:
        tallies = []
        if only != "training":
            tallies.append(extraction(folder / "extraction", Campaign("kills of extraction", cases, seconds, seed)))
        if only != "extraction":
            kills = Campaign("kills of training", max(3, cases // 2), seconds, seed)
            tallies.append(training(folder / "training", kills))
        return tallies
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=200, help="kills of extraction; of training half as many")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="no new case after this time, each")
    parser.add_argument("--seed", type=int, default=0, help="of the cases")
    parser.add_argument("--only", choices=("extraction", "training"), default="", help="one of the two")
    parser.add_argument("--output", type=Path, help="JSON file for the tallies")
    given = parser.parse_args()
    torch.set_num_threads(1)
    sys.exit(finish(run(given.cases, given.seconds, given.seed, given.only), given.output))
