"""A run of maskfield-splat-lite that is made instead of trained: a table with a yellow duck and a green mug on it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from runs import DEMO_CAPTURE, make_small_demo

from maskfield_ns.commands.extract import method_config

THINGS = ("wooden table", "yellow rubber duck", "green mug")
"""In the order of the queries of each level; phrases of the demo capture's labels."""
_COLOURS = ((0.72, 0.55, 0.38), (0.9, 0.8, 0.1), (0.1, 0.6, 0.2))
_SH_C0 = 0.28209479177387814


def make_run(folder: Path) -> Path:
    """Writes config.yml and a checkpoint as ns-train does; returns the path of config.yml.

    The table lies in the plane z = -0.1, half a unit to each side; the things are balls of radius 0.12 at x = -0.22
    and 0.22. Embeddings are what the embedded CLIP sees in the demo capture's pictures of such things.
    """
    config = method_config("maskfield-splat-lite")
    config.data, config.output_dir = make_small_demo(folder / "capture", frames=4, held_out=(2,)), folder / "runs"
    config.experiment_name, config.timestamp, config.vis = "made", "run", "viewer"
    config.pipeline.datamanager.data = config.data
    config.pipeline.model.system.num_queries = 9
    config.pipeline.model.num_random = 50
    config.save_config()
    pipeline = config.pipeline.setup(device="cpu", test_mode="test")
    _fill(pipeline.model)
    checkpoints = config.get_checkpoint_dir()
    checkpoints.mkdir(parents=True)
    torch.save({"step": 7, "pipeline": pipeline.state_dict()}, checkpoints / "step-000000007.ckpt")
    return Path(config.get_base_dir()) / "config.yml"


def _seen(text: Any, name: str) -> torch.Tensor:
    """Embedding of a thing of the demo capture, from the picture that shows most of it."""
    labels = json.loads((DEMO_CAPTURE / "gt" / "labels.json").read_text(encoding="utf-8"))
    number = next(int(key) for key, label in labels.items() if name in label["queries"])
    masks = {path: np.asarray(Image.open(path)) == number for path in sorted((DEMO_CAPTURE / "gt/instance").glob("*"))}
    best = max(masks, key=lambda path: masks[path].sum())
    picture = next((DEMO_CAPTURE / "images").glob(best.stem + ".*"))
    pixels = np.asarray(Image.open(picture).convert("RGB"))
    return torch.from_numpy(text.config.setup("cpu").embed_regions(pixels, masks[best][None])[0])


@torch.no_grad()
def _fill(model: Any) -> None:
    head = model.query_head
    vectors = torch.stack([_seen(model.text, name) for name in THINGS])
    head.resize_embeddings({"semantic_table": torch.zeros(head.num_queries, vectors.shape[1])})
    for query in range(head.num_queries):
        head.adopt(query, vectors[query % 3], support=20.0, visible=20.0)
    axis = torch.linspace(-0.5, 0.5, 41)
    x, y = torch.meshgrid(axis, axis, indexing="ij")
    table = torch.stack([x.flatten(), y.flatten(), torch.full((axis.numel() ** 2,), -0.1)], dim=1)
    generator = torch.Generator().manual_seed(0)
    ball = torch.nn.functional.normalize(torch.randn(400, 3, generator=generator), dim=1) * 0.1
    places = (torch.zeros(3), torch.tensor([-0.22, 0.0, 0.02]), torch.tensor([0.22, 0.0, 0.02]))
    points = [points + place for points, place in zip((table, ball, ball), places, strict=True)]
    owner = torch.cat([torch.full((len(p),), i) for i, p in enumerate(points)])
    count = len(owner)
    colours = torch.tensor(_COLOURS)[owner]
    logit_10 = 0.15 * head.mask_vectors.detach().unflatten(0, (3, 3))
    model.load_gaussians(
        {
            "means": torch.cat(points),
            "scales": torch.full((count, 3), 0.015).log(),
            "quats": torch.tensor([1.0, 0.0, 0.0, 0.0]).expand(count, 4),
            "features_dc": (colours - 0.5) / _SH_C0,
            "features_rest": torch.zeros(count, *model.gauss_params["features_rest"].shape[1:]),
            "opacities": torch.full((count, 1), 4.0),
            "mask_features": torch.cat([logit_10[level][owner] for level in range(3)], dim=1),
        }
    )
