"""What the rendered table-top scenes are made of: class names, colours, ready-made assets, shapes and textures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

Colour = tuple[float, float, float]

#: Class name -> the words people use for it.  "object" marks shapes which have no honest name.
CLASSES: dict[str, list[str]] = {
    "floor": ["floor", "ground"],
    "table": ["table", "desk", "tabletop"],
    "wall": ["wall"],
    "duck": ["duck", "rubber duck", "toy duck"],
    "teddy bear": ["teddy bear", "stuffed bear", "teddy", "bear", "plush bear"],
    "soccer ball": ["soccer ball", "football", "ball"],
    "ball": ["ball", "sphere", "toy ball"],
    "mug": ["mug", "cup", "coffee mug", "coffee cup"],
    "toy brick": ["toy brick", "lego", "lego brick", "brick", "building brick"],
    "tray": ["tray", "serving tray"],
    "cube": ["cube", "box", "block"],
    "box": ["box", "block", "cuboid"],
    "wooden block": ["wooden block", "jenga block", "block"],
    "domino": ["domino", "domino tile"],
    "robot": ["robot", "r2d2", "droid", "toy robot"],
    "toy car": ["toy car", "car", "race car", "racing car"],
    "rover": ["rover", "vehicle", "wheeled robot"],
    "robot dog": ["robot dog", "quadruped", "legged robot"],
    "robot arm": ["robot arm", "robotic arm", "manipulator"],
    "gripper": ["gripper", "robot gripper"],
    "bicycle": ["bicycle", "bike"],
    "shelf": ["shelf", "rack", "shelving"],
    "bunny": ["bunny", "rabbit", "toy rabbit"],
    "ring": ["ring", "torus", "donut"],
    "stone": ["stone", "rock"],
    "cylinder": ["cylinder", "can", "tube"],
    "cone": ["cone", "traffic cone"],
    "pyramid": ["pyramid"],
    "capsule": ["capsule", "pill"],
    "bowl": ["bowl", "dish"],
    "plate": ["plate", "dish"],
    "bottle": ["bottle", "flask"],
    "vase": ["vase", "pot"],
    "book": ["book", "notebook"],
    "object": [],
}

#: Synonyms which only hold while the surface carries that texture: class -> texture -> words.
TEXTURE_SYNONYMS: dict[str, dict[str, list[str]]] = {
    "table": {"wood": ["wooden table", "wooden desk"], "checks": ["checkered table"], "marble": ["marble table"]},
    "floor": {
        "checks": ["checkered floor", "tiled floor"],
        "tiles": ["tiled floor"],
        "wood": ["wooden floor", "wood floor"],
        "marble": ["marble floor"],
        "fabric": ["carpet", "rug"],
    },
    "wall": {"tiles": ["tiled wall", "brick wall"]},
}


def words_for(cls: str, texture: str | None = None) -> list[str]:
    """Every word which is true of an instance of a class with that texture."""
    return CLASSES[cls] + TEXTURE_SYNONYMS.get(cls, {}).get(texture or "", [])


#: Colour name -> boxes of (hue in degrees, saturation, value) which people would call by that name.
COLOURS: dict[str, list[tuple[tuple[float, float], tuple[float, float], tuple[float, float]]]] = {
    "red": [((-10, 7), (0.78, 1), (0.45, 1))],
    "orange": [((18, 35), (0.8, 1), (0.8, 1))],
    "yellow": [((47, 61), (0.5, 1), (0.82, 1))],
    "green": [((90, 150), (0.45, 1), (0.28, 0.95))],
    "cyan": [((173, 192), (0.5, 1), (0.7, 1))],
    "blue": [((210, 244), (0.6, 1), (0.35, 1)), ((204, 222), (0.35, 0.6), (0.85, 1))],
    "purple": [((266, 290), (0.4, 0.9), (0.4, 0.9))],
    "pink": [((325, 345), (0.3, 0.72), (0.88, 1)), ((-10, 5), (0.42, 0.6), (0.88, 1))],
    "brown": [((18, 32), (0.45, 0.75), (0.25, 0.58))],
    "grey": [((0, 360), (0, 0.06), (0.35, 0.65))],
    "black": [((0, 360), (0, 0.2), (0.02, 0.13))],
    "white": [((0, 360), (0, 0.05), (0.9, 1))],
}


def hsv_to_rgb(h: float, s: float, v: float) -> Colour:
    """Hue in degrees; the same convention as the ranges in COLOURS."""
    k = (np.array([5.0, 3.0, 1.0]) + h / 60) % 6
    r, g, b = v - v * s * np.clip(np.minimum(k, 4 - k), 0, 1)
    return float(r), float(g), float(b)


def named_colour(rng: np.random.Generator, name: str | None = None) -> tuple[str, Colour]:
    """A colour name with one of the many shades it stands for, so that names are learnt as ranges."""
    name = name or str(rng.choice(list(COLOURS)))
    boxes = COLOURS[name]
    return name, hsv_to_rgb(*(float(rng.uniform(*span)) for span in boxes[rng.integers(len(boxes))]))


@dataclass(frozen=True)
class Asset:
    """A ready-made model: which class it is, how big to make it and what its material looks like."""

    path: str
    cls: str
    size: tuple[float, float]  # longest side in metres, on a table of 1.5 m
    weight: float
    up: tuple[float, float] = (0.0, 0.0)  # roll and pitch in degrees which make it stand
    colours: tuple[str, ...] | None = None  # of its own material; None: it has none and is painted
    paint: tuple[int, ...] | None = None  # links which may be repainted; None: all
    repaint: float = 0.0  # how often an asset with colours of its own is repainted
    tilt: float = 0.0  # how often it lies on a side
    flat: bool = False  # other things can stand on it
    poses: int = 1  # joint poses to draw from; 1: the rest pose


ASSETS: list[Asset] = [
    Asset("duck_vhacd.urdf", "duck", (0.09, 0.24), 10, (90, 0), ("yellow",), repaint=0.2, tilt=0.12),
    Asset("teddy_vhacd.urdf", "teddy bear", (0.09, 0.26), 10, (90, 0), tilt=0.45),
    Asset("soccerball.urdf", "soccer ball", (0.1, 0.26), 9, (0, 0), ("black", "white"), tilt=1.0),
    Asset("objects/mug.urdf", "mug", (0.1, 0.24), 10, tilt=0.15),
    Asset("lego/lego.urdf", "toy brick", (0.07, 0.2), 10, tilt=0.1, flat=True),
    Asset("tray/traybox.urdf", "tray", (0.22, 0.45), 6, colours=("black",), flat=True),
    Asset("tray/tray.urdf", "tray", (0.22, 0.45), 1.5, colours=("black",), flat=True),
    Asset("cube.urdf", "cube", (0.07, 0.2), 9, flat=True),
    Asset("r2d2.urdf", "robot", (0.16, 0.38), 9, colours=("blue", "white"), paint=(-1,), repaint=0.25, tilt=0.05),
    Asset("racecar/racecar.urdf", "toy car", (0.16, 0.4), 8, colours=("blue",), paint=(0,), repaint=0.4, tilt=0.05),
    Asset("jenga/jenga.urdf", "wooden block", (0.12, 0.22), 1.5, colours=("brown",), tilt=0.3, flat=True),
    Asset("domino/domino.urdf", "domino", (0.08, 0.16), 1.5, colours=("black", "white"), tilt=0.5),
    Asset("block.urdf", "box", (0.1, 0.22), 1.0, tilt=0.2),
    Asset("sphere_small.urdf", "ball", (0.07, 0.18), 1.5, colours=("black", "white"), tilt=1.0),
    Asset("bunny.obj", "bunny", (0.12, 0.3), 2.5, tilt=0.15),
    Asset("torus/torus_textured.obj", "ring", (0.12, 0.28), 1.5, (90, 0), ("yellow", "cyan", "pink"), tilt=0.2),
    Asset("stone.obj", "stone", (0.08, 0.2), 0.8, tilt=0.2),
    Asset("bicycle/bike.urdf", "bicycle", (0.3, 0.6), 1.2, (90, 0), ("orange",), repaint=0.6, tilt=0.2),
    Asset("husky/husky.urdf", "rover", (0.22, 0.45), 1.5, colours=("yellow", "black", "grey")),
    Asset("quadruped/minitaur.urdf", "robot dog", (0.25, 0.45), 0.8, colours=("grey", "black")),
    Asset("a1/a1.urdf", "robot dog", (0.25, 0.45), 0.9, colours=("orange", "black"), tilt=0.1),
    Asset("aliengo/aliengo.urdf", "robot dog", (0.25, 0.45), 0.9, colours=("black",), tilt=0.1),
    Asset("kuka_iiwa/model.urdf", "robot arm", (0.35, 0.65), 0.9, colours=("blue", "orange"), poses=3),
    Asset("xarm/xarm6_robot.urdf", "robot arm", (0.3, 0.55), 0.9, colours=("blue", "red", "yellow", "green"), poses=3),
    Asset("franka_panda/panda.urdf", "robot arm", (0.35, 0.65), 0.7, colours=("white",), poses=3),
    Asset("gripper/wsg50_one_motor_gripper.sdf", "gripper", (0.15, 0.3), 0.6, colours=("white",), tilt=0.5),
    Asset("kiva_shelf/model.sdf", "shelf", (0.35, 0.6), 0.6, colours=("yellow", "brown"), flat=True),
    *(Asset(f"random_urdfs/{i:03d}/{i:03d}.urdf", "object", (0.07, 0.2), 0.1, tilt=0.3) for i in range(30)),
]


class Mesh:
    """Triangles with normals and texture coordinates, written as OBJ since that is what the renderer reads."""

    def __init__(self) -> None:
        self.points: list[np.ndarray] = []
        self.uvs: list[np.ndarray] = []
        self.normals: list[np.ndarray] = []

    def quad(self, corners: np.ndarray, uv: np.ndarray, normals: np.ndarray | None = None) -> None:
        """Corners anticlockwise seen from outside; flat shading without normals."""
        if normals is None:
            flat = np.cross(corners[2] - corners[0], corners[3] - corners[1])
            normals = np.repeat(flat[None] / max(np.linalg.norm(flat), 1e-9), 4, 0)
        self.points.append(np.asarray(corners, float))
        self.uvs.append(np.asarray(uv, float))
        self.normals.append(normals)

    def vertices(self) -> np.ndarray:
        """Every corner, for bounds and resting heights."""
        return np.concatenate(self.points)

    def write(self, path: Path) -> None:
        """Collapsed quads (the poles of a lathe) lose their empty triangle."""
        lines = [f"v {x:.5f} {y:.5f} {z:.5f}" for x, y, z in self.vertices()]
        lines += [f"vt {u:.4f} {v:.4f}" for u, v in np.concatenate(self.uvs)]
        lines += [f"vn {x:.4f} {y:.4f} {z:.4f}" for x, y, z in np.concatenate(self.normals)]
        for i, q in enumerate(self.points):
            for a, b, c in ((0, 1, 2), (0, 2, 3)):
                if np.linalg.norm(np.cross(q[b] - q[a], q[c] - q[a])) > 1e-9:
                    lines.append("f " + " ".join(f"{n}/{n}/{n}" for n in (4 * i + k + 1 for k in (a, b, c))))
        path.write_text("\n".join(lines) + "\n")


def add_box(mesh: Mesh, centre: Colour, half: Colour, tiles: float = 1.0, taper: float = 1.0) -> Mesh:
    """An axis-aligned box; with taper below one its top shrinks, down to a pyramid."""
    uv = np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) * tiles
    for axis in range(3):
        for sign in (-1.0, 1.0):
            a, b = [(1, 2), (2, 0), (0, 1)][axis]
            corners = np.zeros((4, 3))
            corners[:, axis] = sign
            corners[:, a] = np.array([-1, 1, 1, -1]) * sign
            corners[:, b] = [-1, -1, 1, 1]
            corners[:, :2] *= np.where(corners[:, 2:] > 0, taper, 1.0)
            mesh.quad(corners * np.array(half) + np.array(centre), uv)
    return mesh


def lathe(profile: list[tuple[float, float]], smooth: bool = False, n: int = 28, offset: float = 0.0) -> Mesh:
    """Turn (radius, height) points, listed bottom to top on the outside, around the vertical axis."""
    mesh, prof = Mesh(), np.array(profile, float)
    angle = np.linspace(0, 2 * np.pi, n + 1)
    ring = np.stack([np.cos(angle), np.sin(angle)], 1)
    tangent = np.diff(prof, axis=0)
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True) + 1e-12
    for i in range(len(prof) - 1):
        ends = [tangent[i], tangent[i]]
        if smooth:
            ends = [tangent[max(i - 1, 0)] + tangent[i], tangent[i] + tangent[min(i + 1, len(tangent) - 1)]]
        slopes = [np.array([t[1], -t[0]]) / (np.linalg.norm(t) + 1e-12) for t in ends]
        for j in range(n):
            picks = [(i, j, 0), (i, j + 1, 0), (i + 1, j + 1, 1), (i + 1, j, 1)]
            corners = np.array([[*(ring[b] * (prof[a, 0] + offset)), prof[a, 1]] for a, b, _ in picks])
            normals = np.array([[*(ring[b] * slopes[e][0]), slopes[e][1]] for _, b, e in picks])
            uv = np.array([[2 * b / n, a / (len(prof) - 1)] for a, b, _ in picks])
            mesh.quad(corners, uv, normals)
    return mesh


def _arc(radius: float, start: float, stop: float, z: float = 0.0, n: int = 12) -> list[tuple[float, float]]:
    return [(radius * np.cos(t), z + radius * np.sin(t)) for t in np.linspace(start, stop, n)]


def _bottle(rng: np.random.Generator) -> Mesh:
    r, neck, h = rng.uniform(0.14, 0.22), rng.uniform(0.05, 0.08), rng.uniform(0.5, 0.65)
    return lathe([(0, 0), (r, 0), (r, h), (neck, h + 0.15), (neck, 0.95), (neck * 1.2, 0.95), (neck * 1.2, 1), (0, 1)])


def _bowl(rng: np.random.Generator) -> Mesh:
    depth, wall = rng.uniform(0.45, 0.9), 0.94
    outer = [(r, z * depth) for r, z in _arc(1, -1.25, 0)]
    inner = [(r * wall, z * depth * wall) for r, z in _arc(1, 0, -1.57)]
    return lathe([(0, outer[0][1]), *outer, *inner])


def _plate(rng: np.random.Generator) -> Mesh:
    rim, h = rng.uniform(0.55, 0.75), rng.uniform(0.08, 0.2)
    return lathe([(0, 0), (rim, 0), (1, h), (0.99, h + 0.04), (rim - 0.02, 0.05), (0, 0.05)])


def _vase(rng: np.random.Generator) -> Mesh:
    z = np.linspace(0, 1, 14)
    phase, swing, base = rng.uniform(-0.5, 1.5), rng.uniform(0.05, 0.14), rng.uniform(0.2, 0.3)
    r = base + swing * np.sin(phase + z * rng.uniform(3.5, 6.5))
    outer = list(zip(r, z, strict=True))
    return lathe([(0, 0), *outer, *[(x * 0.88, y) for x, y in outer[:4:-1]], (0, 0.3)], smooth=True)


def _box(rng: np.random.Generator) -> Mesh:
    return add_box(Mesh(), (0, 0, 0), tuple(rng.uniform(0.2, 1, 3)))


def _book(rng: np.random.Generator) -> Mesh:
    return add_box(Mesh(), (0, 0, 0), (rng.uniform(0.6, 0.8), 1, rng.uniform(0.06, 0.22)))


#: Shape -> (class, maker, longest side in metres, weight, how often it lies on a side, others can stand on it).
SHAPES: dict[str, tuple[str, Callable[[np.random.Generator], Mesh], tuple[float, float], float, float, bool]] = {
    "cube": ("cube", lambda rng: add_box(Mesh(), (0, 0, 0), (1, 1, 1)), (0.07, 0.2), 3, 0.1, True),
    "box": ("box", _box, (0.1, 0.3), 4, 0.2, True),
    "book": ("book", _book, (0.15, 0.32), 3, 0.15, True),
    "pyramid": (
        "pyramid",
        lambda rng: add_box(Mesh(), (0, 0, 0), (1, 1, rng.uniform(0.6, 1.2)), taper=0.001),
        (0.1, 0.22),
        1.5,
        0.2,
        False,
    ),
    "ball": ("ball", lambda rng: lathe(_arc(1, -np.pi / 2, np.pi / 2, n=15), True), (0.07, 0.22), 6, 1.0, False),
    "cylinder": (
        "cylinder",
        lambda rng: lathe([(0, 0), (r := rng.uniform(0.15, 0.6), 0), (r, 1), (0, 1)]),
        (0.08, 0.26),
        3,
        0.35,
        True,
    ),
    "cone": ("cone", lambda rng: lathe([(0, 0), (rng.uniform(0.25, 0.55), 0), (0, 1)]), (0.1, 0.25), 2, 0.25, False),
    "capsule": (
        "capsule",
        lambda rng: lathe([*_arc(0.3, -np.pi / 2, 0), *_arc(0.3, 0, np.pi / 2, 0.8)], True),
        (0.1, 0.25),
        1.5,
        0.8,
        False,
    ),
    "bowl": ("bowl", _bowl, (0.15, 0.32), 3, 0.1, False),
    "plate": ("plate", _plate, (0.18, 0.34), 3, 0.05, True),
    "bottle": ("bottle", _bottle, (0.18, 0.36), 3, 0.2, False),
    "vase": ("vase", _vase, (0.15, 0.34), 2.5, 0.15, False),
    "ring": (
        "ring",
        lambda rng: lathe(_arc(rng.uniform(0.18, 0.4), -np.pi, np.pi), True, offset=1.0),
        (0.12, 0.26),
        2,
        0.15,
        False,
    ),
}


def smooth_noise(rng: np.random.Generator, size: int, cells: tuple[int, int], octaves: int = 4) -> np.ndarray:
    """Tileable value noise in 0..1 by cosine-free bilinear upsampling of random grids."""
    total = np.zeros((size, size))
    for octave in range(octaves):
        ny, nx = (min(size, c * 2**octave) for c in cells)
        grid = rng.random((ny, nx))
        y, x = np.arange(size) * ny / size, np.arange(size) * nx / size
        y0, x0 = y.astype(int), x.astype(int)
        fy, fx = (y - y0)[:, None], (x - x0)[None]
        fy, fx = fy * fy * (3 - 2 * fy), fx * fx * (3 - 2 * fx)
        top = grid[y0][:, x0] * (1 - fx) + grid[y0][:, (x0 + 1) % nx] * fx
        low = grid[(y0 + 1) % ny][:, x0] * (1 - fx) + grid[(y0 + 1) % ny][:, (x0 + 1) % nx] * fx
        total += (top * (1 - fy) + low * fy) / 2**octave
    return (total - total.min()) / (np.ptp(total) + 1e-9)


TEXTURES = ("wood", "wood", "noise", "stripes", "checks", "marble", "fabric", "dots", "tiles")


def make_texture(rng: np.random.Generator, kind: str, size: int = 192) -> tuple[np.ndarray, str | None, list[str]]:
    """A tileable uint8 picture, the one colour name it deserves (or None) and all of its colour names."""
    (name_a, a), (name_b, b) = named_colour(rng), named_colour(rng)
    y, x = np.mgrid[:size, :size] / size
    one: str | None = None
    if kind == "wood":
        dark = np.array(hsv_to_rgb(rng.uniform(20, 36), rng.uniform(0.3, 0.7), rng.uniform(0.3, 0.75)))
        light = np.clip(dark * rng.uniform(1.2, 1.7), 0, 1)
        grain = smooth_noise(rng, size, (2, 24)) * 0.6
        bend = 1.5 * smooth_noise(rng, size, (1, 3))
        grain += 0.2 + 0.2 * np.sin(2 * np.pi * (rng.integers(2, 9) * x + bend))
        a, b, mix, names = tuple(dark), tuple(light), grain, ["brown"]
    elif kind == "noise":
        mix, names = smooth_noise(rng, size, (int(rng.integers(2, 12)),) * 2), [name_a, name_b]
    elif kind == "stripes":
        n, flip = int(rng.integers(2, 10)), rng.random() < 0.5
        mix, names = ((x if flip else y) * n % 1 < rng.uniform(0.3, 0.7)).astype(float), [name_a, name_b]
    elif kind == "checks":
        n = int(rng.integers(1, 5)) * 2
        mix, names = ((np.floor(x * n) + np.floor(y * n)) % 2), [name_a, name_b]
    elif kind == "marble":
        vein = np.abs(np.sin(np.pi * (2 * x + 2 * y + 2.5 * smooth_noise(rng, size, (3, 3)))))
        one, a = named_colour(rng, str(rng.choice(["white", "grey", "black", "green", "pink"])))
        b = tuple(np.clip(np.array(a) + rng.choice([-0.35, 0.35]), 0, 1))
        mix, names = np.exp(-6 * vein), [one]
    elif kind == "fabric":
        n = int(rng.integers(24, 64))
        weave = 0.5 + 0.25 * np.sin(2 * np.pi * n * x) + 0.25 * np.sin(2 * np.pi * n * y)
        b, one = tuple(np.array(a) * rng.uniform(0.6, 0.85)), name_a
        mix, names = weave * 0.7 + 0.3 * smooth_noise(rng, size, (8, 8)), [name_a]
    elif kind == "dots":
        n, r = int(rng.integers(2, 7)), rng.uniform(0.15, 0.4)
        mix, names = (np.hypot(x * n % 1 - 0.5, y * n % 1 - 0.5) < r).astype(float), [name_a, name_b]
    else:  # tiles or bricks: a grid of joints, every second row shifted half the time
        n, joint, shift = int(rng.integers(2, 6)) * 2, rng.uniform(0.03, 0.1), 0.5 * (rng.random() < 0.5)
        cell = x * n / (1 + (shift > 0)) + shift * (np.floor(y * n) % 2)
        mix = ((cell % 1 < joint) | (y * n % 1 < joint)).astype(float)
        b, one, names = tuple(np.clip(np.array(a) * 0.5 + rng.uniform(0, 0.4), 0, 1)), name_a, [name_a]
        mix = np.clip(mix + 0.15 * smooth_noise(rng, size, (n, n)), 0, 1)
    picture = np.array(a) * (1 - mix[..., None]) + np.array(b) * mix[..., None]
    picture = picture + rng.normal(0, rng.uniform(0, 0.02), picture.shape)
    names = list(dict.fromkeys(names))
    return (np.clip(picture, 0, 1) * 255).astype(np.uint8), one or (names[0] if len(names) == 1 else None), names
