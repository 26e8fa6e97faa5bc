"""Labelled bodies on a PyBullet server: loading, measuring, colouring and placing them, and taking pictures."""

from __future__ import annotations

import colorsys
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pybullet as p
import pybullet_data
from PIL import Image
from scene_catalogue import SHAPES, TEXTURES, Asset, Mesh, add_box, lathe, make_texture, named_colour
from scipy.spatial import ConvexHull
from scipy.spatial.transform import Rotation

DATA = Path(pybullet_data.getDataPath())


@dataclass
class Instance:
    """One labelled thing of a layout, with the hull of its surface in world coordinates."""

    cls: str
    hull: np.ndarray
    colour: str | None = None
    colours: list[str] = field(default_factory=list)
    texture: str | None = None
    flat: bool = False

    def meta(self) -> dict[str, Any]:
        """What a reader of the shards gets to know."""
        cls = None if self.cls == "object" else self.cls
        return {"class": cls, "colour": self.colour, "colours": self.colours, "texture": self.texture}


@dataclass
class Layout:
    """Bodies on the bullet server with the room the camera may use."""

    instances: dict[int, Instance] = field(default_factory=dict)  # by body
    surface: np.ndarray = field(default_factory=lambda: np.zeros(5))  # centre x, y, half x, half y, height
    walls: list[tuple[int, float]] = field(default_factory=list)  # axis and coordinate the camera stays above
    objects: list[int] = field(default_factory=list)


@dataclass
class View:
    """Camera, light and sky of one picture."""

    eye: np.ndarray
    target: np.ndarray
    up: np.ndarray
    fov: float  # vertical, degrees
    light: dict[str, Any]
    sky: np.ndarray | None = None  # 2 colours, top and bottom; None: the renderer's white


class Stock:
    """Meshes and textures drawn for one shard, and hulls of the ready-made assets, kept across shards."""

    hulls: dict[tuple[str, int], np.ndarray] = {}

    def __init__(self, rng: np.random.Generator, folder: Path, variants: int = 2, textures: int = 48) -> None:
        self.folder, self.loaded = folder, {}  # texture file -> id on the server, valid for one layout
        self.shapes: dict[str, list[tuple[Path, np.ndarray]]] = {}
        self.textures: list[tuple[Path, str, str | None, list[str]]] = []
        for name, (_, make, *_) in SHAPES.items():
            self.shapes[name] = [self.mesh(make(rng), f"{name}{i}") for i in range(variants)]
        for i in range(textures):
            kind = str(rng.choice(TEXTURES))
            picture, colour, colours = make_texture(rng, kind)
            Image.fromarray(picture).save(path := folder / f"texture{i}.png", compress_level=1)
            self.textures.append((path, kind, colour, colours))

    def mesh(self, mesh: Mesh, name: str) -> tuple[Path, np.ndarray]:
        """Write a mesh; the hull is all that placing it needs."""
        mesh.write(path := self.folder / f"{name}.obj")
        points = mesh.vertices()
        return path, points[ConvexHull(points, qhull_options="QJ").vertices]

    def texture_id(self, path: Path) -> int:
        """Load a texture once per layout."""
        if path not in self.loaded:
            self.loaded[path] = p.loadTexture(str(path))
        return self.loaded[path]

    def coloured_duck(self, rng: np.random.Generator, colour: str) -> Path:
        """The duck's own texture with another hue: a plain tint would multiply its yellow to mud."""
        path = self.folder / f"duck_{colour}.png"
        if not path.exists():
            hsv = np.array(Image.open(DATA / "duckCM.png").convert("RGB").resize((256, 256)).convert("HSV"))
            hue, saturation, _ = colorsys.rgb_to_hsv(*named_colour(rng, colour)[1])
            body = hsv[..., 0] > 26  # the beak is orange and stays so
            hsv[..., 0][body] = int(hue * 255)
            hsv[..., 1][body] = hsv[..., 1][body] * saturation
            Image.fromarray(hsv, "HSV").convert("RGB").save(path)
        return path


def load_asset(asset: Asset, scale: float, pose: int) -> int:
    """Load a model at its rest pose, or with the joints of one of its numbered poses."""
    path = str(DATA / asset.path)
    if path.endswith(".obj"):
        shape = p.createVisualShape(p.GEOM_MESH, fileName=path, meshScale=[scale] * 3)
        return p.createMultiBody(0, -1, shape)
    body = p.loadSDF(path, globalScaling=scale)[0] if path.endswith(".sdf") else p.loadURDF(path, globalScaling=scale)
    if pose:
        angles = np.random.default_rng(pose).uniform(-0.9, 0.9, p.getNumJoints(body))
        for joint in range(p.getNumJoints(body)):
            if p.getJointInfo(body, joint)[2] == p.JOINT_REVOLUTE:
                p.resetJointState(body, joint, angles[joint])
    return body


def asset_hull(asset: Asset, pose: int) -> np.ndarray:
    """Hull of what the renderer draws for an asset at scale one; collision shapes have margins or lack altogether.

    The first call for an asset needs a world without other bodies.
    """
    if (key := (asset.path, pose)) in Stock.hulls:
        return Stock.hulls[key]
    body = load_asset(asset, 1.0, pose)
    p.resetBasePositionAndOrientation(body, (0, 0, 0), (0, 0, 0, 1))
    centre, radius, n = np.zeros(3), 4.0, 192
    for _ in range(3):
        points = []
        for axis, sign in ((a, s) for a in range(3) for s in (-1, 1)):
            away = np.eye(3)[axis] * sign
            view = View(centre + away * 10 * radius, centre, np.eye(3)[(axis + 2) % 3], 13.0, {"shadow": 0})
            _, depth, seg = draw(view, n, n, 8 * radius, 12 * radius)
            points.append(unproject(view, depth)[seg & 0xFFFFFF == body])
        cloud = np.concatenate(points)
        if len(cloud):
            centre = (cloud.min(0) + cloud.max(0)) / 2
            radius = float(np.abs(cloud - centre).max() * 1.05) + 6 * radius / n
        else:
            radius /= 4
    p.removeBody(body)
    Stock.hulls[key] = cloud[ConvexHull(cloud, qhull_options="QJ").vertices]
    return Stock.hulls[key]


def projection(fov: float, width: int, height: int, near: float, far: float) -> list[float]:
    """Perspective with the renderer's sampling at pixel corners moved to pixel centres."""
    matrix = list(p.computeProjectionMatrixFOV(fov, width / height, near, far))
    matrix[8] += 1 / width
    matrix[9] += 1 / height
    return matrix


def draw(view: View, width: int, height: int, near: float = 0.05, far: float = 60.0) -> tuple[np.ndarray, ...]:
    """RGB uint8, metric depth along the axis and the renderer's body and link codes (-1: sky)."""
    look = p.computeViewMatrix(view.eye.tolist(), view.target.tolist(), view.up.tolist())
    _, _, rgba, depth, seg = p.getCameraImage(
        width,
        height,
        look,
        projection(view.fov, width, height, near, far),
        flags=p.ER_SEGMENTATION_MASK_OBJECT_AND_LINKINDEX,
        renderer=p.ER_TINY_RENDERER,
        **view.light,
    )
    rgb = np.asarray(rgba, np.uint8).reshape(height, width, 4)[..., :3]
    depth = far * near / (far - (far - near) * np.asarray(depth).reshape(height, width))
    return rgb, depth, np.asarray(seg).reshape(height, width)


def camera_to_world(view: View) -> np.ndarray:
    """OpenGL camera axes (x right, y up, looking along -z)."""
    back = (view.eye - view.target) / np.linalg.norm(view.eye - view.target)
    right = np.cross(view.up, back)
    right /= np.linalg.norm(right)
    matrix = np.eye(4)
    matrix[:3] = np.stack([right, np.cross(back, right), back, view.eye], 1)
    return matrix


def unproject(view: View, depth: np.ndarray) -> np.ndarray:
    """World points [H, W, 3] of a metric depth picture."""
    h, w = depth.shape
    focal = h / 2 / np.tan(np.radians(view.fov) / 2)
    y, x = np.mgrid[:h, :w] + 0.5
    local = np.stack([(x - w / 2) / focal, (h / 2 - y) / focal, -np.ones_like(x)], -1) * depth[..., None]
    c2w = camera_to_world(view)
    return local @ c2w[:3, :3].T + c2w[:3, 3]


def paint(body: int, rgb: tuple[float, ...], links: tuple[int, ...] | None = None) -> None:
    """Give links (all of them by default) one colour."""
    for link in sorted({shape[1] for shape in p.getVisualShapeData(body)}):
        if links is None or link in links:
            p.changeVisualShape(body, link, rgbaColor=[*rgb, 1])


def add_shape(
    layout: Layout,
    path: Path,
    hull: np.ndarray,
    scale: Any,
    inst: Instance,
    at: Any = (0, 0, 0),
    turn: Rotation | None = None,
) -> int:
    """Put a generated mesh into the layout; its hull moves along."""
    turn = turn or Rotation.identity()
    shape = p.createVisualShape(p.GEOM_MESH, fileName=str(path), meshScale=np.broadcast_to(scale, 3).tolist())
    body = p.createMultiBody(0, -1, shape, basePosition=list(at), baseOrientation=turn.as_quat().tolist())
    inst.hull = turn.apply(hull * scale) + np.asarray(at)
    layout.instances[body] = inst
    return body


def dress(rng: np.random.Generator, stock: Stock, body: int, inst: Instance, textured: float) -> None:
    """Cover a plain body with a texture or a named colour."""
    if rng.random() < textured:
        path, inst.texture, inst.colour, inst.colours = stock.textures[rng.integers(len(stock.textures))]
        p.changeVisualShape(body, -1, textureUniqueId=stock.texture_id(path), rgbaColor=[1, 1, 1, 1])
    else:
        inst.colour, rgb = named_colour(rng)
        inst.colours = [inst.colour]
        paint(body, rgb)


def add_surroundings(rng: np.random.Generator, stock: Stock, layout: Layout, kind: str) -> None:
    """Floor and walls; the checkered plane is the commonest as captures of this kind usually stand on it."""
    if kind in ("plane", "plane100"):
        scale = 1.0 if rng.random() < 0.6 else rng.uniform(0.25, 1.6)
        body = p.loadURDF(str(DATA / f"{kind}.urdf"), globalScaling=scale)
        inst = Instance("floor", np.zeros((1, 3)), None, ["blue", "white"], "checks")
        if rng.random() < 0.15:
            name, rgb = named_colour(rng)
            paint(body, rgb)
            tinted = name in ("black", "grey", "brown", "red", "orange", "yellow")  # the others leave the blue visible
            inst.colours = [name] if tinted else ["blue", "white"]
        layout.instances[body] = inst
    elif kind == "quad":
        mesh = Mesh()
        size, tiles = 8.0, float(rng.uniform(3, 16))
        mesh.quad(
            np.array([[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]]) * size,
            np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) * tiles,
        )
        mesh.write(path := stock.folder / f"floor{len(os.listdir(stock.folder))}.obj")
        inst = Instance("floor", np.zeros((1, 3)))
        dress(rng, stock, add_shape(layout, path, mesh.vertices(), 1.0, inst), inst, 0.8)
    for axis in rng.permutation(2)[: int(rng.integers(1, 3)) if kind and rng.random() < 0.18 else 0]:
        place = -float(rng.uniform(1.4, 3.5))
        half = np.where(np.arange(3) == axis, 0.02, [4, 4, 1.5])
        path, hull = stock.mesh(
            add_box(Mesh(), (0, 0, 0), (1, 1, 1), tiles=float(rng.uniform(1, 8))),
            f"wall{len(os.listdir(stock.folder))}",
        )
        inst = Instance("wall", hull)
        dress(
            rng,
            stock,
            add_shape(layout, path, hull, half, inst, np.where(np.arange(3) == axis, place, [0, 0, 1.5])),
            inst,
            0.6,
        )
        layout.walls.append((int(axis), place))


def add_table(rng: np.random.Generator, stock: Stock, layout: Layout, kind: str) -> None:
    """A table with its top's rectangle as the surface; without one the surface is a patch of floor."""
    if kind == "none":
        layout.surface = np.array([0, 0, *rng.uniform(0.35, 0.8, 2), 0.0])
        return
    inst = Instance("table", np.zeros((1, 3)))
    if kind in ("table", "square"):
        path = "table/table.urdf" if kind == "table" else "table_square/table_square.urdf"
        scale = 1.0 if kind == "table" else rng.uniform(1.2, 2.2)
        body = p.loadURDF(str(DATA / path), globalScaling=scale)
        half = np.array([0.75, 0.5]) if kind == "table" else np.array([0.3, 0.3]) * scale
        top = 0.625 if kind == "table" else 0.64 * scale
        inst.texture, inst.colours = ("wood", ["brown"]) if kind == "table" else ("checks", ["black", "white"])
        layout.instances[body] = inst
        change = rng.random()
        if change < 0.2:  # a tint keeps the grain
            shade = rng.uniform(0.35, 1, 3) if rng.random() < 0.4 else np.array([1, 0.85, 0.7]) * rng.uniform(0.4, 1)
            paint(body, tuple(shade))
        elif change < 0.5:
            path_, inst.texture, inst.colour, inst.colours = stock.textures[rng.integers(len(stock.textures))]
            link = -1 if kind == "table" else 0
            p.changeVisualShape(body, link, textureUniqueId=stock.texture_id(path_), rgbaColor=[1, 1, 1, 1])
    else:  # own rectangular or round tables
        half, top = rng.uniform(0.4, 0.9, 2), float(rng.uniform(0.4, 0.8))
        thick, leg = float(rng.uniform(0.015, 0.04)), float(rng.uniform(0.02, 0.05))
        if kind == "round":
            r = float(half[0])
            mesh = lathe(
                [
                    (0, 0),
                    (r * 0.5, 0),
                    (r * 0.5, 0.03),
                    (leg, 0.04),
                    (leg, top - thick),
                    (r, top - thick),
                    (r, top),
                    (0, top),
                ],
                n=40,
            )
            half = np.array([r, r]) * 0.72
        else:
            mesh = add_box(Mesh(), (0, 0, top - thick), (half[0], half[1], thick), tiles=float(rng.uniform(1, 3)))
            for sx, sy in ((-1, -1), (-1, 1), (1, -1), (1, 1)):
                z = top / 2 - thick
                add_box(mesh, (sx * (half[0] - leg), sy * (half[1] - leg), z), (leg, leg, z))
        path, hull = stock.mesh(mesh, f"table{len(os.listdir(stock.folder))}")
        dress(rng, stock, add_shape(layout, path, hull, 1.0, inst), inst, 0.7)
    layout.surface = np.array([0, 0, *half, top])


def add_object(
    rng: np.random.Generator,
    stock: Stock,
    layout: Layout,
    what: Asset | str,
    mode: str,
    colour: str | None = None,
    spot: tuple[float, float, float] | None = None,
    size: float = 0.0,
) -> bool:
    """Place one object without overlap; False where no room was found.  ``spot`` is x, y and yaw in degrees."""
    pose = int(rng.integers(what.poses)) if isinstance(what, Asset) else 0
    if isinstance(what, Asset):
        hull, cls, sizes, tilt, flat = asset_hull(what, pose), what.cls, what.size, what.tilt, what.flat
        upright = Rotation.from_euler("xy", what.up, degrees=True)
    else:
        cls, _, sizes, _, tilt, flat = SHAPES[what]
        path, hull = stock.shapes[what][rng.integers(len(stock.shapes[what]))]
        upright = Rotation.identity()
    scale = (size or rng.uniform(*sizes)) / float(np.ptp(upright.apply(hull), axis=0).max())
    turn = upright
    if spot is None and rng.random() < tilt:
        side = rng.choice([[90, 0], [-90, 0], [0, 90], [0, -90]])
        turn = Rotation.from_euler("xy", side, degrees=True) * upright
        turn = Rotation.from_euler("xyz", rng.uniform(0, 360, 3), degrees=True) if tilt == 1 else turn
    if mode == "lean":
        turn = Rotation.from_euler("x", rng.uniform(12, 45), degrees=True) * turn
    yaw = rng.uniform(0, 360) if spot is None else spot[2]
    turn = Rotation.from_euler("z", yaw, degrees=True) * turn
    points = turn.apply(hull * scale)
    low, high = points.min(0), points.max(0)
    cx, cy, hx, hy, z = layout.surface
    bases = [layout.instances[b] for b in layout.objects if layout.instances[b].flat]
    place = None
    for _ in range(1 if spot else 25):
        if spot:
            at = np.array(spot[:2])
        elif mode == "stack" and bases:
            base = bases[rng.integers(len(bases))]
            lo, hi = base.hull.min(0), base.hull.max(0)
            tray = base.cls == "tray"
            if np.any(high[:2] - low[:2] > (hi - lo)[:2] * (0.6 if tray else 1.15)):
                continue
            at, z = (lo + hi)[:2] / 2 + rng.uniform(-0.12, 0.12, 2) * (hi - lo)[:2], hi[2]
            z = lo[2] + 0.05 * (hi - lo)[2] if tray else z
        elif mode == "floor" and z > 0:
            reach = np.array([hx, hy]) + 0.35
            at, z = rng.uniform(-1.5, 1.5, 2) * reach, 0.0
            if np.all(np.abs(at) < reach):
                continue
        elif mode == "edge" and z > 0:
            side, axis = rng.choice([-1, 1]), int(rng.integers(2))
            at = rng.uniform(-0.8, 0.8, 2) * [hx, hy]
            at[axis] = side * ([hx, hy][axis] - rng.uniform(0.02, 0.3) * (high - low)[axis])
        else:
            room = np.maximum(np.array([hx, hy]) - (high - low)[:2] / 2, 0.02)
            at = np.array([cx, cy]) + np.clip(rng.normal(0, 0.5, 2), -1, 1) * room
        offset = np.array([*(at - (low + high)[:2] / 2), z - low[2]])
        lo, hi = low + offset, high + offset
        others = [layout.instances[b].hull for b in layout.objects]
        if mode == "stack" and bases:
            others = [h for h in others if h is not base.hull]
        slack = (0.18 if mode == "lean" else 0.05) * (hi - lo)  # bounding boxes of turned things are too large
        if all(np.any(lo + slack > h.max(0)) or np.any(hi - slack < h.min(0)) for h in others):
            place = offset
            break
    if place is None:
        return False
    inst = Instance(cls, points + place, flat=flat)
    if isinstance(what, str):
        body = add_shape(layout, path, hull, scale, inst, place, turn)
        if colour:
            inst.colour, inst.colours = colour, [colour]
            paint(body, named_colour(rng, colour)[1])
        else:
            dress(rng, stock, body, inst, 0.4)
    else:
        body = load_asset(what, scale, pose)
        p.resetBasePositionAndOrientation(body, place.tolist(), turn.as_quat().tolist())
        own = list(what.colours or ())
        inst.colours, inst.colour = own, own[0] if len(own) == 1 or cls == "robot" else None
        if colour or not own or rng.random() < what.repaint:
            if cls == "duck":
                inst.colour = colour or str(rng.choice(["red", "green", "blue", "pink", "purple", "orange"]))
                if inst.colour != "yellow":
                    texture = stock.texture_id(stock.coloured_duck(rng, inst.colour))
                    p.changeVisualShape(body, -1, textureUniqueId=texture)
                inst.colours = [inst.colour]
            elif not own and cls == "cube" and not colour and rng.random() < 0.15:
                dress(rng, stock, body, inst, 1.0)
            elif not (colour and own):
                inst.colour, rgb = named_colour(rng, colour)
                paint(body, rgb, what.paint)
                inst.colours = [inst.colour, *(["white"] if cls == "robot" and inst.colour != "white" else [])]
        layout.instances[body] = inst
    layout.objects.append(body)
    return True
