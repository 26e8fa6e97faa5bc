"""Damages cache entries and checkpoints: whatever is damaged is named and not used, and nothing else is lost.

scripts/campaigns/corrupt.py [--cases 3000] [--seconds S] [--seed N] [--output tallies.json]
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))
from campaign import Campaign, Refused, Wrong, finish, options
from mutations import damaged

from maskfield_ns import checkpoints, compat
from maskfield_ns.cache.store import MaskCache
from maskfield_ns.errors import CheckpointError
from maskfield_ns.foundation.protocols import MaskProposals

SIZES = ((30, 40), (24, 32), (30, 40))
"""Of the images whose entries are damaged."""


def entries(folder: Path, campaign: Campaign) -> Campaign:
    """Damages entries of a mask cache, or puts one in another's place.

    Right: refused, or (what was hit did not matter) the very same entry.
    """
    rng = np.random.default_rng(campaign.seed)
    cache = MaskCache.create(folder, {"kind": "campaign"}, {"kind": "campaign"})
    names = [f"images/{k}.png" for k in range(len(SIZES))]
    hashes = [f"{k:064x}" for k in range(len(SIZES))]
    paths, good, want = [], [], []
    for name, digest, (height, width) in zip(names, hashes, SIZES, strict=True):
        masks = rng.random((6, height, width)) < 0.3
        numbers = rng.random((2, 6)).astype(np.float32)
        boxes = np.tile(np.array([0, 0, width, height], np.int32), (6, 1))
        proposals = MaskProposals(masks, np.array([0, 1, 2, 0, 1, 2], np.int8), numbers[0], numbers[1], boxes)
        embeddings = rng.normal(size=(6, 16)).astype(np.float32)
        embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
        cache.write(name, digest, proposals, embeddings)
        paths.append(cache.path_of(name, digest, (height, width)))
        good.append(paths[-1].read_bytes())
        want.append(cache.read(name, digest, (height, width)))
    for number, rng in campaign.each():
        at = int(rng.integers(len(names)))
        kind, data = damaged(good[at], rng, [other for k, other in enumerate(good) if k != at])
        paths[at].write_bytes(data)

        def read(at: int = at) -> None:
            found = cache.read(names[at], hashes[at], SIZES[at])
            for name, tensor in want[at].tensors().items():
                if not np.array_equal(tensor, found.tensors()[name]):
                    raise Wrong(f"{name} differs")
            if found.header != want[at].header:
                raise Wrong("the header differs")

        campaign.attempt(f"case {number}, {kind}", read)
        paths[at].write_bytes(good[at])
    return campaign


class Loads:
    """A pipeline that takes everything, as a model of another size would not."""

    tensors: dict[str, torch.Tensor]
    step: int

    def load_pipeline(self, tensors: dict[str, torch.Tensor], step: int) -> None:
        """As nerfstudio's."""
        self.tensors, self.step = tensors, step


def state(step: int) -> dict[str, Any]:
    """A checkpoint as nerfstudio saves it."""
    generator = torch.Generator().manual_seed(step)
    tensors = {f"_model.{name}": torch.randn(50, 3, generator=generator) for name in ("means", "scales", "quats")}
    rates = {"base_lrs": [np.float64(0.01)], "last_epoch": step}
    return {"step": step, "pipeline": tensors, "optimizers": {}, "schedulers": {"means": rates}, "scalers": {}}


def checkpoint_files(folder: Path, campaign: Campaign) -> Campaign:
    """Damages the newest of three checkpoints, with and without its checksum, or the checksum itself.

    Right: it is named and the one before is opened; or it is opened with every value as it was saved.
    """
    compat.allow_numpy_scalars_in_checkpoints()
    states = {step: state(step) for step in (1, 2, 3)}
    for step, saved in states.items():
        path = folder / checkpoints.name_of(step)
        checkpoints.save(path, lambda scratch, saved=saved, path=path: torch.save(saved, scratch / path.name))
    newest = folder / checkpoints.name_of(3)
    note = checkpoints.checksum_path(newest)
    good, checksum = newest.read_bytes(), note.read_bytes()
    others = [(folder / checkpoints.name_of(step)).read_bytes() for step in (1, 2)] + [checksum, b"hello"]
    for number, rng in campaign.each():
        how = ("with checksum", "without checksum", "checksum damaged")[number % 3]
        data, beside, kind = good, checksum, ""
        if how == "checksum damaged":
            kind, beside = damaged(checksum, rng, others)
        else:
            kind, data = damaged(good, rng, others if how == "with checksum" else others[2:])
        newest.write_bytes(data)
        note.write_bytes(beside)
        if how == "without checksum":
            note.unlink()

        def open_newest() -> None:
            pipeline: Any = Loads()
            path, step = checkpoints.load_into(pipeline, folder)
            want = states[step]["pipeline"]
            if step not in (2, 3) or path.name != checkpoints.name_of(step) or set(pipeline.tensors) != set(want):
                raise Wrong(f"opened {path.name}, step {step}")
            if not all(torch.equal(pipeline.tensors[name], tensor) for name, tensor in want.items()):
                raise Wrong(f"{path.name} was opened with other values")
            if step == 2:
                raise Refused(checkpoints.problem(newest) or "it does not fit")

        campaign.attempt(f"case {number}, {how}, {kind}", open_newest)
    with_all_damaged(folder, campaign)
    return campaign


def with_all_damaged(folder: Path, campaign: Campaign) -> None:
    """One more case: no checkpoint is good, and that is said in a line."""
    for path in checkpoints.newest_first(folder):
        path.write_bytes(path.read_bytes()[:-1])

    def open_any() -> None:
        pipeline: Any = Loads()
        checkpoints.load_into(pipeline, folder)
        raise Wrong("a cut checkpoint was opened")

    campaign.attempt("all cut", open_any)
    if campaign.messages and not any(key.startswith(CheckpointError.__name__) for key in campaign.messages):
        campaign.failures.append("no CheckpointError")


def run(cases: int, seconds: float = float("inf"), seed: int = 0) -> list[Campaign]:
    """Both campaigns; checkpoints get a tenth of the cases."""
    folder = Path(tempfile.mkdtemp(prefix="maskfield-corrupt-"))
    try:
        return [
            entries(folder / "cache", Campaign("cache entries", cases, seconds, seed)),
            checkpoint_files(folder / "run", Campaign("checkpoints", max(30, cases // 10), seconds, seed)),
        ]
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    given = options(__doc__, 3000)
    sys.exit(finish(run(given.cases, given.seconds, given.seed), given.output))
