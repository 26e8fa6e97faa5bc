"""Same seed, same result: work that is not always done takes no random numbers from what follows."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch
from captures import make_capture

from maskfield_ns.commands.extract import method_config
from maskfield_ns.data.mask_source import extract
from maskfield_ns.data.random_state import kept_random_state
from maskfield_ns.foundation.config import RegionsConfig


def drawn() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def seed() -> None:
    random.seed(3)
    np.random.seed(3)
    torch.manual_seed(3)


def test_the_block_leaves_no_trace() -> None:
    seed()
    want = drawn()
    seed()
    with kept_random_state():
        drawn()
    assert drawn() == want


def test_extraction_leaves_no_trace(tmp_path: Path) -> None:
    """Loading the models and proposing masks draw random numbers; with the masks there, neither is done."""
    config = method_config("maskfield-lite").pipeline.datamanager
    config.data, config.proposer = make_capture(tmp_path / "capture"), RegionsConfig()
    states = []
    for _ in ("made", "there"):
        seed()
        report = extract(config, "cpu", progress=False)
        states.append((report.built, drawn()))
    assert states[0][0] > 0 and states[1][0] == 0 and states[0][1] == states[1][1]
