"""Where a scene's surfaces are, from a few training views; rendered once per opened run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from nerfstudio.cameras.cameras import Cameras, CameraType
from torch import Tensor

from maskfield_ns.models.contract import AnyModel

GAUSSIAN_VIEWS, FIELD_VIEWS = 24, 16
"""Views of a survey, evenly spread over the training views."""
GAUSSIAN_SIDE, FIELD_SIDE = 160, 96
"""Pixels along the longer side of a survey's views."""


@dataclass(frozen=True, eq=False)
class SurfaceView:
    """One view: where its rays end, and what the mask features say there."""

    camera: Cameras
    """A pinhole camera [1]."""
    points: Float[Tensor, "H W 3"]
    """Where each ray meets a surface, scene coordinates."""
    depth: Float[Tensor, "H W"]
    """Of these points, along the viewing direction."""
    solid: Bool[Tensor, "H W"]
    """Whether the ray meets anything (at least half opaque)."""
    features: Float[Tensor, "H W D"]
    rgb: Float[Tensor, "H W 3"]
    prepared: Any = None
    """Of Gaussians: the view as :func:`maskfield_ns.splatting.prepare_view` gives it."""

    @property
    def footprint(self) -> Float[Tensor, "H W"]:
        """Area that a pixel covers at its depth, facing the camera; scene units squared."""
        focal = self.camera.fx[0] * self.camera.fy[0]
        return self.depth.square() / focal.to(self.depth)

    def project(self, points: Float[Tensor, "N 3"]) -> tuple[Tensor, Tensor, Tensor]:
        """(row [N], column [N], depth [N]) of points: int64 pixels, -1 where outside the picture."""
        row, column, depth = project(self.camera, points)
        height, width = self.depth.shape
        inside = (depth > 0) & (row >= 0) & (row < height) & (column >= 0) & (column < width)
        nowhere = torch.full_like(row, -1, dtype=torch.long)
        return torch.where(inside, row.long(), nowhere), torch.where(inside, column.long(), nowhere), depth


def project(camera: Cameras, points: Float[Tensor, "N 3"]) -> tuple[Tensor, Tensor, Tensor]:
    """(row [N], column [N], depth [N]) of points in a pinhole camera [1]; pixel (i, j) spans i..i+1, j..j+1.

    Behind the camera the depth is negative and row and column mean nothing.
    """
    pose = camera.camera_to_worlds[0].to(points)
    local = (points - pose[:, 3]) @ pose[:, :3]
    depth = -local[:, 2]
    safe = torch.where(depth.abs() > 1e-9, depth, torch.full_like(depth, 1e-9))
    fx, fy, cx, cy = (value[0, 0].to(points) for value in (camera.fx, camera.fy, camera.cx, camera.cy))
    return cy - fy * local[:, 1] / safe, cx + fx * local[:, 0] / safe, depth


def render_surface_views(
    model: AnyModel, cameras: Cameras, max_views: int | None = None, side: int | None = None
) -> list[SurfaceView]:
    """Renders some of a run's cameras, small and without lens distortion, of the scene as it was trained.

    Args:
        model: a maskfield model.
        cameras: the training views' [N].
        max_views: this many, evenly spread; all if there are fewer.
        side: pixels along the longer side. Both are by default more for Gaussians, which render faster.
    """
    gaussian = model.backbone == "gaussians"
    side = side or (GAUSSIAN_SIDE if gaussian else FIELD_SIDE)
    max_views = max_views or (GAUSSIAN_VIEWS if gaussian else FIELD_VIEWS)
    chosen = np.unique(np.linspace(0, len(cameras) - 1, min(max_views, len(cameras))).round().astype(int))
    views = []
    with unedited(model):
        for index in chosen.tolist():
            camera = pinhole(cameras[index : index + 1].to(model.device), side)
            outputs = model.render_view(camera)
            points = surface_points(model, camera, outputs)
            pose = camera.camera_to_worlds[0].to(points)
            depth = -((points - pose[:, 3]) @ pose[:, :3])[..., 2]
            solid = (outputs["accumulation"][..., 0] >= 0.5) & (depth > 0)
            prepared = model.prepared_view(camera) if model.backbone == "gaussians" else None
            views.append(SurfaceView(camera, points, depth, solid, outputs.features, outputs["rgb"], prepared))
    return views


def pinhole(camera: Cameras, side: int | None = None) -> Cameras:
    """The camera [1] without lens distortion and, with ``side``, at most that many pixels along its longer side."""
    width, height = int(camera.width.item()), int(camera.height.item())
    factor = min(1.0, side / max(width, height)) if side else 1.0
    new_width, new_height = max(1, round(width * factor)), max(1, round(height * factor))
    across, down = new_width / width, new_height / height
    return Cameras(
        camera_to_worlds=camera.camera_to_worlds,
        fx=camera.fx * across,
        fy=camera.fy * down,
        cx=camera.cx * across,
        cy=camera.cy * down,
        width=new_width,
        height=new_height,
        camera_type=CameraType.PERSPECTIVE,
    )


@torch.no_grad()
def surface_points(model: AnyModel, camera: Cameras, outputs: dict[str, Tensor]) -> Float[Tensor, "H W 3"]:
    """Where the rays of a rendered view end, scene coordinates."""
    return model.surface_points(camera, outputs)


def places_as_trained(model: AnyModel, point: Float[Tensor, " 3"]) -> tuple[tuple[float, float, float], ...]:
    """Where a point of the scene as it is shown may stem from: itself, or the places that edits copied it from."""
    shown = point.detach().cpu().double().numpy()
    edits = model.edits
    places = [shown] if edits is None else [layer.transform.inverse(shown) for layer in edits.layers]
    return tuple((float(x), float(y), float(z)) for x, y, z in places)


@contextmanager
def unedited(model: AnyModel) -> Iterator[None]:
    """Sets a model's edits aside."""
    edits, model.edits = model.edits, None
    try:
        yield
    finally:
        model.edits = edits
