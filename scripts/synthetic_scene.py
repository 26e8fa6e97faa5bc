"""A made-up scene with everything the mask stage needs, on any device and without nerfstudio: for timing only.

Blobs of Gaussians on a table, cameras around it, and per view exact masks of the blobs on three levels (alone, in twos,
in fours).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from maskfield_ns.data.mask_views import MaskViews, pack_targets
from maskfield_ns.splatting import PreparedView, prepare_view, rasterize_features
from maskfield_ns.systems.mask_field.mask_stage import MaskStage, MaskStageConfig, ViewState
from maskfield_ns.systems.query_head import QueryHead

EMBEDDING_DIM = 512
LEVELS = 3


@dataclass
class SyntheticScene:
    """Gaussians in blobs, seen by cameras on a circle."""

    gaussians: dict[str, Tensor]
    """means, quats, scales, opacities: arguments of the rasteriser."""
    thing_of: Tensor
    """[N] blob of each Gaussian; the last one is the table."""
    views: list[PreparedView]
    targets: MaskViews

    @property
    def num_things(self) -> int:
        return int(self.thing_of.max()) + 1


def camera(angle: float, width: int, height: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(viewmat [4, 4], K [3, 3]) of a camera that looks at the table's centre from above."""
    eye = torch.tensor([3.2 * math.cos(angle), 3.2 * math.sin(angle), 1.8])
    forward = -eye / eye.norm()
    right = torch.linalg.cross(forward, torch.tensor([0.0, 0.0, 1.0]))
    right = right / right.norm()
    rotation = torch.stack([right, torch.linalg.cross(forward, right), forward])
    view = torch.eye(4)
    view[:3, :3], view[:3, 3] = rotation, -rotation @ eye
    K = torch.tensor([[0.9 * width, 0, width / 2], [0, 0.9 * width, height / 2], [0, 0, 1]])
    return view.to(device), K.to(device)


def make_gaussians(count: int, things: int, device: torch.device) -> tuple[dict[str, Tensor], Tensor]:
    """Half of the Gaussians lie in blobs, half in the table."""
    generator = torch.Generator().manual_seed(0)
    side = math.ceil(math.sqrt(things))
    places = torch.stack([torch.arange(things) % side, torch.arange(things) // side], 1) / max(1, side - 1) * 2 - 1
    thing = torch.cat([torch.arange(count // 2) % things, torch.full((count - count // 2,), things)])
    means = torch.randn(count, 3, generator=generator) * (0.35 / side)
    on_table = thing == things
    means[~on_table, :2] += places[thing[~on_table]]
    means[~on_table, 2] += 0.5 / side
    means[on_table] = (torch.rand(count, 3, generator=generator) * 2.8 - 1.4)[on_table]
    means[on_table, 2] = 0.0
    size = 1.6 / math.sqrt(count)
    gaussians = {
        "means": means,
        "quats": torch.randn(count, 4, generator=generator),
        "scales": size * torch.exp(0.3 * torch.randn(count, 3, generator=generator)),
        "opacities": torch.rand(count, generator=generator) * 0.6 + 0.35,
    }
    return {name: tensor.to(device) for name, tensor in gaussians.items()}, thing.to(device)


def make_scene(
    count: int, things: int, num_views: int, grid: tuple[int, int], device: torch.device, keep_weights: bool = True
) -> SyntheticScene:
    """Gaussians, prepared views and exact masks.

    Args:
        count: N Gaussians.
        things: blobs, without the table.
        grid: (height, width) in pixels of every view.
        keep_weights: of :func:`maskfield_ns.splatting.prepare_view`.
    """
    gaussians, thing = make_gaussians(count, things, device)
    height, width = grid
    prepared, targets = [], []
    embeddings = torch.nn.functional.normalize(torch.randn(things + 1, EMBEDDING_DIM), dim=-1).numpy()
    for v in range(num_views):
        view, K = camera(2 * math.pi * v / num_views, width, height, device)
        prepared.append(
            prepare_view(**gaussians, viewmat=view, K=K, width=width, height=height, keep_weights=keep_weights)
        )
        one_hot = torch.nn.functional.one_hot(thing, things + 1).float()
        image, _ = rasterize_features(prepared[-1], one_hot)
        ids = image.argmax(-1).cpu().numpy()
        masks, levels, names = [], [], []
        for level in range(LEVELS):
            for group in range(things + 1):
                if group < things and group % 2**level:
                    continue
                mask = ids == things if group == things else (ids // 2**level == group // 2**level) & (ids < things)
                if mask.sum() >= 4:
                    masks.append(mask)
                    levels.append(level)
                    names.append(group)
        stack = np.stack(masks)
        targets.append(
            pack_targets(
                stack,
                levels=np.array(levels, np.int8),
                scores=np.ones(len(stack), np.float32),
                embeddings=embeddings[names],
                valid=np.ones(grid, bool),
            )
        )
        targets[-1].__dict__["things"] = np.array(names)  # which query explains which mask, known here
    views = MaskViews([f"view {v}" for v in range(num_views)], targets, EMBEDDING_DIM)
    return SyntheticScene(gaussians, thing, prepared, views)


def make_stage(scene: SyntheticScene, feature_dim: int, num_queries: int, device: torch.device) -> MaskStage:
    """A mask stage whose grouping is known: thing g is query g of each level's bank."""
    head = QueryHead(num_queries, feature_dim, EMBEDDING_DIM).to(device)
    stage = MaskStage(MaskStageConfig(num_queries=num_queries), head, scene.targets, lambda view: torch.zeros(0), 1)
    stage.prepared = True
    banks = [head.bank(level) for level in range(LEVELS)]
    if scene.num_things > min(len(bank) for bank in banks):
        raise ValueError(f"{num_queries} queries are too few for {scene.num_things} things on {LEVELS} levels")
    for view in range(len(scene.targets)):
        target = scene.targets[view]
        names = torch.from_numpy(target.__dict__["things"])
        queries = torch.stack([banks[level][name] for level, name in zip(target.levels.tolist(), names, strict=True)])
        head.support[queries] = 5.0
        count = torch.arange(len(queries), device=device)
        stage.states[view] = ViewState(queries.to(device), count, torch.ones(len(queries), device=device))
    return stage
