"""A run's folder without any training, for what concerns opening runs: name it in ``pytest_plugins``."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from captures import make_capture
from runs import small_config


@pytest.fixture(scope="module")
def untrained_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of maskfield-lite with a checkpoint of random weights; its capture lies at ``parents[3] / "capture"``."""
    folder = tmp_path_factory.mktemp("untrained")
    config = small_config(make_capture(folder / "capture"), folder / "runs", "run", colour_steps=1, mask_steps=1)
    config.pipeline.datamanager.data = config.data
    config.save_config()
    pipeline = config.pipeline.setup(device="cpu", test_mode="test")
    head = pipeline.model.query_head
    head.resize_embeddings({"semantic_table": torch.zeros(head.num_queries, 128)})
    path = config.get_checkpoint_dir() / "step-000000001.ckpt"
    path.parent.mkdir()
    torch.save({"step": 1, "pipeline": pipeline.state_dict()}, path)
    return config.get_base_dir()
