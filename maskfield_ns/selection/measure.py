"""Measures of a selection: points, boxes, centroid, volume, masks in any camera, mesh."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from nerfstudio.cameras.cameras import Cameras
from torch import Tensor

from maskfield_ns.errors import SelectionError
from maskfield_ns.selection.carving import Solid, carve
from maskfield_ns.selection.coordinates import CaptureCoordinates
from maskfield_ns.selection.geometry import TRIM, Box, aligned_box, oriented_box, pieces
from maskfield_ns.selection.selection import FieldSelection, GaussianSelection, Selection
from maskfield_ns.selection.selector import Selector
from maskfield_ns.selection.surface_views import SurfaceView, unedited
from maskfield_ns.selection.transform import quaternion_rotations
from maskfield_ns.splatting import rasterize_features

_LARGE_PIECE = 0.05
"""Pieces with less than this share of the points are counted with none of the instances."""


@dataclass(frozen=True, eq=False)
class Cloud:
    """Points that stand for a selection."""

    points: Float[np.ndarray, "N 3"]
    """Scene coordinates: centres of Gaussians, or where rays of the survey end on the thing."""
    weights: Float[np.ndarray, " N"]
    """How much each counts in boxes and means."""
    colours: UInt8[np.ndarray, "N 3"]
    outline: Float[np.ndarray, "M 3"]
    """Points that boxes are drawn around: of Gaussians the ends of their axes, a standard deviation from the centre."""
    outline_weights: Float[np.ndarray, " M"]

    @property
    def colors(self) -> UInt8[np.ndarray, "N 3"]:
        """The same as ``colours``, which goes with the next version."""
        return self.colours


class Measurement:
    """A selection of an opened run, measured on demand; lengths in scene units unless said otherwise.

    Args:
        selection: the thing.
        selector: of the run.
        frame: of the run's capture.
    """

    def __init__(self, selection: Selection, selector: Selector, frame: CaptureCoordinates) -> None:
        self.selection, self.selector, self.frame = selection, selector, frame

    def __repr__(self) -> str:
        return f"Measurement({self.selection!r})"

    @cached_property
    def cloud(self) -> Cloud:
        """The selection as points."""
        if isinstance(self.selection, GaussianSelection):
            return gaussian_cloud(self.selector.model, self.selection)
        return _field_cloud(self.selector, self.selection)

    def aligned_box(self, trim: float = TRIM) -> Box:
        """The axis-aligned box that leaves out ``trim`` of the points (by weight) on each side."""
        return aligned_box(self.cloud.outline, self.cloud.outline_weights, trim)

    def oriented_box(self, upright: bool = True, trim: float = TRIM) -> Box:
        """The smallest box found, with one edge along the scene's up (+z) unless ``upright`` is False."""
        from maskfield_ns.selection.coordinates import UP

        return oriented_box(self.cloud.outline, self.cloud.outline_weights, UP if upright else None, trim)

    @property
    def centroid(self) -> Float[np.ndarray, " 3"]:
        """Centre of mass of the carved solid; of the points where carving found nothing (a sheet, a hidden thing)."""
        if self.solid.filled.any():
            return self.solid.centres.mean(axis=0)
        return np.average(self.cloud.points, axis=0, weights=self.cloud.weights)

    @cached_property
    def solid(self) -> Solid:
        """The space the thing fills, carved from the survey's depth and the thing's masks in it."""
        views = self.selector.surface_views
        masks = [self.mask_in_surface_view(view) for view in views]
        return carve(views, masks, self.aligned_box(TRIM / 2))

    @property
    def volume(self) -> float:
        """Of the carved solid, scene units cubed: too large where hollows were not seen into."""
        return self.solid.volume

    def mask_in_surface_view(self, view: SurfaceView) -> Bool[Tensor, "H W"]:
        """The thing's mask in a view of the survey."""
        if isinstance(self.selection, GaussianSelection):
            return gaussian_mask(self.selector.model, self.selection, view.prepared)
        from maskfield_ns.selection.field import soft_membership

        assert isinstance(self.selection, FieldSelection)
        model = self.selector.model
        return view.solid & (soft_membership(model, self.selection, view.points, view.features) >= 0.5)

    def mask(self, camera: Cameras) -> Bool[np.ndarray, "H W"]:
        """The thing's visible mask in any camera [1], in the scene as it was trained."""
        model = self.selector.model
        camera = camera.to(model.device)
        if isinstance(self.selection, GaussianSelection):
            return gaussian_mask(model, self.selection, model.prepared_view(camera)).cpu().numpy()
        from maskfield_ns.selection.field import field_mask

        assert isinstance(self.selection, FieldSelection)
        with unedited(model):
            return field_mask(model, self.selection, camera)

    def mesh(self) -> tuple[Float[np.ndarray, "V 3"], Int[np.ndarray, "F 3"], UInt8[np.ndarray, "V 3"]]:
        """A closed surface around the carved solid: vertices, triangles, vertex colours (of the nearest point).

        Raises:
            SelectionError: nothing solid was found.
        """
        from scipy.spatial import KDTree

        vertices, faces = self.solid.mesh()
        if not len(faces):
            raise SelectionError(f'"{self.selection.name}" is too thin or too hidden to be carved into a solid')
        _, nearest = KDTree(self.cloud.points).query(vertices)
        return vertices, faces, self.cloud.colours[nearest]

    def instances(self) -> list[Int[np.ndarray, " N"]]:
        """Indices into the cloud of each separate piece, largest first: two mugs are two."""
        piece = pieces(self.cloud.points)
        sizes = np.bincount(piece, self.cloud.weights)
        kept = np.nonzero(sizes >= _LARGE_PIECE * sizes.sum())[0]
        return [np.nonzero(piece == number)[0] for number in kept]

    def to_json(self) -> dict[str, Any]:
        """Everything a program may want to know, in both frames (see docs/python_api.md)."""
        cloud = self.cloud
        upright, free = self.oriented_box(), self.oriented_box(upright=False)
        volume, centroid = self.volume, self.centroid
        capture = {
            "centroid": _plain(self.frame.to_capture(centroid)),
            "axis_aligned_box": self._capture_box().to_json(),
            "oriented_box": upright.in_capture(self.frame).to_json(),
            "smallest_box": free.in_capture(self.frame).to_json(),
            "volume": volume / self.frame.scale**3,
        }
        scene = {
            "centroid": _plain(centroid),
            "axis_aligned_box": self.aligned_box().to_json(),
            "oriented_box": upright.to_json(),
            "smallest_box": free.to_json(),
            "volume": volume,
        }
        groups = self.instances()
        every = len(cloud.outline) // len(cloud.points)
        boxes = []
        for group in groups:
            rows = (group[:, None] * every + np.arange(every)).ravel()
            boxes.append(oriented_box(cloud.outline[rows], cloud.outline_weights[rows]))
        return {
            "name": self.selection.name,
            "kind": self.selection.kind,
            "count": len(cloud.points),
            "scene": scene,
            "capture": capture,
            "instances": [
                {
                    "count": len(group),
                    "scene": {"oriented_box": box.to_json()},
                    "capture": {"oriented_box": box.in_capture(self.frame).to_json()},
                }
                for group, box in zip(groups, boxes, strict=True)
            ],
        }

    def _capture_box(self) -> Box:
        return aligned_box(self.frame.to_capture(self.cloud.outline), self.cloud.outline_weights)


@torch.no_grad()
def gaussian_cloud(model: Any, selection: GaussianSelection) -> Cloud:
    """Centres of the selected Gaussians, weighted by opacity and size."""
    from maskfield_ns.selection.ply import rgb_of

    params = model.gauss_params
    index = torch.from_numpy(selection.members).to(params["means"].device)
    points = params["means"].detach()[index].cpu().double().numpy()
    scales = params["scales"].detach()[index].exp().cpu().double().numpy()
    quats = params["quats"].detach()[index].cpu().double().numpy()
    opacity = torch.sigmoid(params["opacities"].detach()[index])[:, 0].cpu().double().numpy()
    dc = params["features_dc"].detach()[index].cpu().numpy()
    colours = rgb_of(dc) if model.config.sh_degree > 0 else np.round(255 / (1 + np.exp(-dc))).astype(np.uint8)
    mass = opacity * np.prod(np.sort(scales, axis=1)[:, 1:], axis=1)
    ends = (quaternion_rotations(quats) * scales[:, None, :]).transpose(0, 2, 1)  # [N, axis, xyz]
    outline = np.concatenate([points[:, None] + ends, points[:, None] - ends], axis=1).reshape(-1, 3)
    return Cloud(points, mass, colours, outline, np.repeat(mass / 6, 6))


@torch.no_grad()
def gaussian_mask(model: Any, selection: GaussianSelection, prepared: Any) -> Bool[Tensor, "H W"]:
    """Pixels of which more than half is painted by selected Gaussians."""
    share = torch.from_numpy(selection.mask).to(prepared.radii.device).float()[:, None]
    image, alpha = rasterize_features(prepared, share)
    return (image[..., 0] > 0.5 * alpha[..., 0]) & (alpha[..., 0] >= 0.5)


def _field_cloud(selector: Selector, selection: Selection) -> Cloud:
    from maskfield_ns.selection.field import soft_membership

    assert isinstance(selection, FieldSelection)
    points, weights, colours = [], [], []
    for view in selector.surface_views:
        inside = view.solid & (soft_membership(selector.model, selection, view.points, view.features) >= 0.5)
        points.append(view.points[inside].cpu().double().numpy())
        weights.append(view.footprint[inside].cpu().double().numpy())
        colours.append((view.rgb[inside].clamp(0, 1) * 255).round().byte().cpu().numpy())
    place, mass = np.concatenate(points), np.concatenate(weights)
    if not len(place):
        raise SelectionError(f'no view of the survey sees "{selection.name}"')
    return Cloud(place, mass, np.concatenate(colours), place, mass)


def _plain(values: np.ndarray) -> list[float]:
    return np.round(np.asarray(values, np.float64), 6).tolist()
