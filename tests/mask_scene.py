"""A flat world of cells with known things, seen through windows: mask targets without pictures, rays or networks."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maskfield_ns.data.mask_views import MaskViews, pack_targets
from maskfield_ns.foundation.protocols import LEVELS
from maskfield_ns.systems.base import Space
from maskfield_ns.systems.mask_field.mask_stage import MaskStage, MaskStageConfig
from maskfield_ns.systems.mask_field.published import PublishedConfig
from maskfield_ns.systems.query_head import QueryHead

HEIGHT, WIDTH, EMBEDDING_DIM = 12, 16, 8
"""Size of a view's ray grid."""
ROWS, COLUMNS = 16, 24
"""Size of the world in cells."""
PART, WHOLE = LEVELS.index("part"), LEVELS.index("whole")


def things() -> dict[str, tuple[int, np.ndarray]]:
    """(level, cells) of every thing: a floor and four boxes on it, and a part of two of the boxes."""
    empty = np.zeros((ROWS, COLUMNS), bool)

    def box(rows: slice, columns: slice) -> np.ndarray:
        mask = empty.copy()
        mask[rows, columns] = True
        return mask

    boxes = {
        "red": box(slice(5, 9), slice(6, 11)),
        "green": box(slice(5, 9), slice(11, 16)),  # touches the red one
        "blue": box(slice(10, 12), slice(7, 10)),
        "yellow": box(slice(9, 13), slice(12, 17)),
    }
    floor = ~np.logical_or.reduce(list(boxes.values()))
    wholes = {"floor": (WHOLE, floor)} | {name: (WHOLE, mask) for name, mask in boxes.items()}
    return wholes | {
        "red lid": (PART, box(slice(5, 7), slice(6, 11))),
        "yellow lid": (PART, box(slice(9, 11), slice(12, 17))),
    }


def meaning(name: str) -> np.ndarray:
    """CLIP vector of a thing."""
    vector = np.random.default_rng([ord(c) for c in name]).normal(size=EMBEDDING_DIM).astype(np.float32)
    return vector / np.linalg.norm(vector)


@dataclass
class MaskScene:
    """Views of the world and what was proposed in each."""

    cells: list[np.ndarray]
    """Per view, cell per ray [HEIGHT * WIDTH]."""
    names: list[list[str]]
    """Per view, the thing that each mask shows."""
    views: MaskViews = field(repr=False)

    def truth(self, name: str) -> Tensor:
        """bool [ROWS * COLUMNS]."""
        return torch.from_numpy(things()[name][1].ravel())

    def seen(self) -> Tensor:
        """bool [ROWS * COLUMNS]: cells in any view."""
        seen = np.zeros(ROWS * COLUMNS, bool)
        seen[np.concatenate(self.cells)] = True
        return torch.from_numpy(seen)


def make_scene(
    corners: list[tuple[int, int]],
    missed: dict[int, set[str]] | None = None,
    excluded: dict[int, np.ndarray] | None = None,
) -> MaskScene:
    """A scene.

    Args:
        corners: (row, column) of each view's window.
        missed: things whose mask a view lacks although they are in it.
        excluded: bool [HEIGHT, WIDTH] per view, rays that the capture's own masks exclude.
    """
    missed, excluded = missed or {}, excluded or {}
    world, index = things(), np.arange(ROWS * COLUMNS).reshape(ROWS, COLUMNS)
    cells, names, targets = [], [], []
    for view, (row, column) in enumerate(corners):
        window = (slice(row, row + HEIGHT), slice(column, column + WIDTH))
        shown = [
            name for name, (_, mask) in world.items() if mask[window].any() and name not in missed.get(view, set())
        ]
        masks = np.array([world[name][1][window] for name in shown], np.float16).reshape(len(shown), HEIGHT, WIDTH)
        targets.append(
            pack_targets(
                masks,
                levels=np.array([world[name][0] for name in shown], np.int8),
                scores=np.ones(len(shown), np.float32),
                embeddings=np.array([meaning(name) for name in shown], np.float32).reshape(-1, EMBEDDING_DIM),
                valid=~excluded.get(view, np.zeros((HEIGHT, WIDTH), bool)),
            )
        )
        cells.append(index[window].ravel())
        names.append(shown)
    views = MaskViews([f"view_{i}" for i in range(len(corners))], targets, EMBEDDING_DIM)
    return MaskScene(cells, names, views)


def redraw(scene: MaskScene, view: int, masks: np.ndarray, **attributes: np.ndarray) -> None:
    """Gives a view other masks [M, h, w], and other attributes of them."""
    old = scene.views[view]
    given = {"levels": old.levels, "scores": old.scores, "embeddings": old.embeddings} | attributes
    new = pack_targets(masks, **given, valid=old.valid)
    scene.views._targets = (*scene.views._targets[:view], new, *scene.views._targets[view + 1 :])


CORNERS = [(0, 0), (0, 4), (1, 2), (2, 6), (3, 3), (4, 0), (4, 8), (2, 4)]
FAULTS = {0: {"red"}, 1: {"yellow", "floor"}, 2: {"green", "red lid"}, 3: {"blue"}, 4: {"red", "yellow"}, 6: {"green"}}
"""Every box is missed in at least one view that shows it."""


def faulty_scene() -> MaskScene:
    """Eight views; every box is missed in one or two of them."""
    return make_scene(CORNERS, FAULTS)


def make_stage(
    scene: MaskScene, num_queries: int = 18, feature_dim: int = 8, rule: str = "consensus", **settings: Any
) -> Any:
    """A stage and its head: of the grouping rule, or of MaskField's published one with the same methods."""
    torch.manual_seed(0)
    if rule == "published":
        system = PublishedConfig(feature_dim=feature_dim, num_queries=num_queries).setup(EMBEDDING_DIM)
        space = Space(lambda view: torch.from_numpy(scene.cells[view]), ROWS * COLUMNS, lambda view: torch.zeros(0))
        system.begin(scene.views, space, resuming=False)
        return SimpleNamespace(
            head=system.query_head, losses=system.losses, views=scene.views, prepare=lambda adopt: None
        )
    config = MaskStageConfig(num_queries=num_queries, feature_dim=feature_dim, **settings)
    head = QueryHead(num_queries, feature_dim, EMBEDDING_DIM)
    return MaskStage(config, head, scene.views, lambda view: torch.from_numpy(scene.cells[view]), ROWS * COLUMNS)


def feature_table(stage: MaskStage) -> torch.nn.Parameter:
    """A free feature per cell, in place of a field."""
    generator = torch.Generator().manual_seed(1)
    return torch.nn.Parameter(0.1 * torch.randn(ROWS * COLUMNS, stage.head.channels, generator=generator))


def train(stage: MaskStage, scene: MaskScene, steps: int = 160, lr: float = 0.05) -> Tensor:
    """Fits table and head to the views in turn; returns the features [cells, channels]."""
    table = feature_table(stage)
    optimiser = torch.optim.Adam([table, *stage.head.parameters()], lr=lr)
    for step in range(steps):
        view = step % len(scene.views)
        losses, _ = stage.losses(view, table[torch.from_numpy(scene.cells[view])])
        loss = sum(losses.values())
        assert torch.isfinite(loss), losses
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return table.detach()


def best_iou(stage: MaskStage, scene: MaskScene, table: Tensor, name: str) -> float:
    """IoU of a thing with the query that renders it best, over all cells that any view sees."""
    with torch.no_grad():
        inside = (stage.head.probabilities(table) > 0.5) & (stage.head.support > 0)
    seen, truth = scene.seen(), scene.truth(name)
    inside, truth = inside[seen], truth[seen][:, None]
    return ((inside & truth).sum(0) / (inside | truth).sum(0).clamp(min=1)).max().item()
