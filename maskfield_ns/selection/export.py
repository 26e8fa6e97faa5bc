"""Carries things out of a run: .ply of Gaussians, points and meshes, and boxes as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float

from maskfield_ns.errors import EditError, MaskfieldError, SelectionError
from maskfield_ns.files import slug, write_json
from maskfield_ns.selection.coordinates import CaptureCoordinates
from maskfield_ns.selection.measure import Measurement
from maskfield_ns.selection.ply import write_gaussians, write_mesh, write_points
from maskfield_ns.selection.selection import GaussianSelection, Selection
from maskfield_ns.selection.selector import Selector, coarsest_owner
from maskfield_ns.selection.transform import Similarity, transformed
from maskfield_ns.splatting.sh_rotation import C0

Frame = Literal["scene", "capture"]
BOXES_VERSION = 1
"""Version of the JSON with boxes."""


@torch.no_grad()
def export_gaussians(
    selector: Selector,
    frame: CaptureCoordinates,
    path: Path,
    selection: GaussianSelection | None = None,
    coordinates: Frame = "scene",
) -> int:
    """Writes Gaussians with an extra property ``instance``: the query that each belongs to, -1 for none.

    Args:
        selector: of the opened run.
        frame: of its capture.
        path: of the .ply.
        selection: only these; None: the whole scene with its edits baked in.
        coordinates: "scene", as ns-export writes them, or the capture's own.

    Returns:
        How many were written.

    Raises:
        PlyError: nothing to write, or the file cannot be written. EditError: the capture's coordinates are mirrored.
    """
    model = selector.model
    owners = torch.from_numpy(coarsest_owner(selector.ownership()[0]))
    own = model.gauss_params
    if selection is not None:
        rows = torch.from_numpy(selection.members)
        params: Any = {name: tensor.detach()[rows.to(tensor.device)] for name, tensor in own.items()}
        instance = owners[rows]
    elif model.edits is None:
        params, instance = {name: tensor.detach() for name, tensor in own.items()}, owners
    else:
        params, source = model.edits.params(own), model.edits.sources(own).cpu()
        instance = torch.where(source >= 0, owners[source.clamp(min=0)], -1)
    comments = [f"coordinates: {coordinates}", "instance: index of the scene's query, -1 for none"]
    if coordinates == "capture":
        params = transformed(params, to_capture(frame))
    arrays = {name: tensor.cpu().numpy() for name, tensor in params.items() if name != "mask_features"}
    if model.config.sh_degree == 0:
        arrays["features_dc"] = (1 / (1 + np.exp(-arrays["features_dc"])) - 0.5) / C0
    write_gaussians(path, arrays, instance.numpy(), comments)
    return len(arrays["means"])


def to_capture(frame: CaptureCoordinates) -> Similarity:
    """Scene to capture coordinates.

    Raises:
        EditError: the capture's axes are mirrored, which Gaussians cannot be.
    """
    matrix = frame.scene_to_capture
    if np.linalg.det(matrix[:3, :3]) < 0:
        raise EditError("the capture's coordinates are a mirror image of the scene's: export in scene coordinates")
    return Similarity(1 / frame.scale, matrix[:3, :3] * frame.scale, matrix[:3, 3])


def export_points(measured: Measurement, path: Path, coordinates: Frame = "scene") -> int:
    """Writes a selection as a coloured point cloud; returns the number of points.

    Raises:
        PlyError: the file cannot be written. SelectionError: no view sees the thing.
    """
    cloud = measured.cloud
    write_points(path, _in(measured.frame, cloud.points, coordinates), cloud.colours, [f"coordinates: {coordinates}"])
    return len(cloud.points)


def export_mesh(measured: Measurement, path: Path, coordinates: Frame = "scene") -> int:
    """Writes a selection as a closed triangle mesh; returns the number of triangles.

    Raises:
        PlyError: the file cannot be written. SelectionError: the thing is too thin to be carved.
    """
    vertices, faces, colours = measured.mesh()
    if coordinates == "capture" and np.linalg.det(measured.frame.scene_to_capture[:3, :3]) < 0:
        faces = faces[:, ::-1]
    write_mesh(path, _in(measured.frame, vertices, coordinates), faces, colours, [f"coordinates: {coordinates}"])
    return len(faces)


def export_object(measured: Measurement, path: Path, coordinates: Frame = "scene") -> int:
    """Writes a selection in the form its scene has: Gaussians, or points of a field. Returns how many."""
    if isinstance(measured.selection, GaussianSelection):
        return export_gaussians(measured.selector, measured.frame, path, measured.selection, coordinates)
    return export_points(measured, path, coordinates)


def boxes_json(things: Sequence[Measurement], frame: CaptureCoordinates, run: dict[str, Any]) -> dict[str, Any]:
    """What boxes.json holds: see docs/python_api.md."""
    return {
        "format": "maskfield boxes",
        "schema_version": BOXES_VERSION,
        "run": run,
        "frames": {
            "scene": "coordinates the model was trained in (nerfstudio's, after orienting, centring and scaling)",
            "capture": "coordinates of the capture's camera poses before nerfstudio changed them",
            "scene_to_capture": np.round(frame.scene_to_capture, 9).tolist(),
            "scene_units_per_capture_unit": frame.scale,
        },
        "objects": [thing.to_json() for thing in things],
    }


def _in(frame: CaptureCoordinates, points: Float[np.ndarray, "N 3"], coordinates: Frame) -> Float[np.ndarray, "N 3"]:
    return points if coordinates == "scene" else frame.to_capture(points)


def export(
    selector: Selector,
    frame: CaptureCoordinates,
    run: dict[str, Any],
    path: Path,
    selection: Selection | None,
    coordinates: Frame,
) -> int:
    """Writes a selection as its file name asks: ``*.ply``, ``*mesh.ply`` or, its measures, ``*.json``.

    Args:
        selector: of the opened run.
        frame: of its capture.
        run: config and step, for the JSON.
        path: of the file.
        selection: what; None: all Gaussians of the scene.
        coordinates: of a .ply.

    Returns:
        How many Gaussians, points, triangles or objects were written.

    Raises:
        MaskfieldError: another file name, nothing to write, or the file cannot be written.
    """
    if path.suffix not in (".json", ".ply"):
        raise MaskfieldError(f"{path.name}: an export is a .ply or a .json file")
    if selection is None or (path.suffix == ".ply" and not path.stem.endswith("mesh")):
        if selection is None and (path.suffix == ".json" or path.stem.endswith("mesh")):
            what = "boxes" if path.suffix == ".json" else "a mesh"
            raise MaskfieldError(f"{path.name}: {what} can only be made of an object: give a selection")
        if selection is None or isinstance(selection, GaussianSelection):
            if not selector.gaussian:
                raise MaskfieldError("a radiance field cannot be written as Gaussians: export a selection as points")
            return export_gaussians(selector, frame, path, selection, coordinates)
        return export_points(Measurement(selection, selector, frame), path, coordinates)
    measured = Measurement(selection, selector, frame)
    if path.suffix == ".json":
        write_json(path, boxes_json([measured], frame, run))
        return 1
    return export_mesh(measured, path, coordinates)


def write_objects(
    things: Sequence[Measurement], output: Path, frame: Literal["scene", "capture"], mesh: bool, stem: str | None = None
) -> list[Path]:
    """Writes a .ply per thing, and a mesh each if wanted; returns the paths.

    Args:
        things: what.
        output: folder.
        frame: coordinates.
        mesh: also write ``..._mesh.ply``.
        stem: first part of the names; a single thing has it as its name.
    """
    taken: set[str] = {"scene"}
    written = []
    for thing in things:
        own = slug(thing.selection.name, taken)
        name = own if stem is None else stem if len(things) == 1 else f"{stem}_{own}"
        path = output / f"{name}.ply"
        count = export_object(thing, path, frame)
        what = "Gaussians" if thing.selector.gaussian else "points"
        print(f'{path}: {count} {what} of "{thing.selection.name}"')
        written.append(path)
        if mesh:
            path = output / f"{name}_mesh.ply"
            try:
                count = export_mesh(thing, path, frame)
            except SelectionError as error:
                print(f"no mesh: {error}")
                continue
            print(f'{path}: {count} triangles around "{thing.selection.name}"')
            written.append(path)
    return written
