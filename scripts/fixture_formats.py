"""Writes a labelled capture in the on-disk formats of the benchmarks, quirks included. Used by make_fixture.py.

Every quirk that a parser or evaluator has to survive is called out where it is written.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from nerfstudio.data.utils import colmap_parsing_utils as colmap
from PIL import Image

from maskfield_ns.errors import CaptureError
from maskfield_ns.evaluation.labels import LabelledCapture

MIN_PIXELS = 25
"""Objects smaller than this in a view are not annotated."""


@dataclass
class Frame:
    """One photograph with its camera and labels."""

    image: np.ndarray
    """uint8 [H, W, 3]"""
    pose: np.ndarray
    """Camera-to-world [4, 4], OpenGL axes."""
    ids: np.ndarray
    """uint8 [H, W], 0 = nothing."""


@dataclass
class Source:
    """A labelled capture, made small."""

    frames: list[Frame]
    focal: tuple[float, float]
    centre: tuple[float, float]
    names: dict[int, str]
    """Label id -> class name."""
    phrases: dict[int, str]
    """Label id -> the phrase that asks for it."""
    points: tuple[np.ndarray, np.ndarray] | None
    """Sparse points [P, 3] and colours [P, 3]."""
    labelled: list[int]
    """Frames that get labels in the formats that label only a few."""

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)."""
        return self.frames[0].image.shape[1], self.frames[0].image.shape[0]


def read_source(capture: Path, frames: int, labelled: int, scale: float) -> Source:
    """The first ``frames`` photographs of a pinhole capture (0: all), ``labelled`` of them evenly chosen.

    Raises:
        CaptureError: no labels, or a camera with distortion.
    """
    meta = json.loads((capture / "transforms.json").read_text(encoding="utf-8"))
    labels = LabelledCapture.load(capture)
    if labels is None:
        raise CaptureError(f"{capture} has no labels (gt/): a fixture needs a labelled capture")
    if any(abs(meta.get(key, 0.0)) > 0 for key in ("k1", "k2", "p1", "p2")):
        raise CaptureError(f"{capture} has lens distortion: a fixture needs a pinhole capture")
    size = round(meta["w"] * scale), round(meta["h"] * scale)
    entries = sorted(meta["frames"], key=lambda frame: frame["file_path"])[: frames or None]
    result = []
    for entry in entries:
        with Image.open(capture / entry["file_path"]) as picture:
            image = np.asarray(picture.convert("RGB").resize(size, Image.Resampling.BOX))
        ids = labels.instances(entry["file_path"], (size[1], size[0]))
        result.append(Frame(image, np.asarray(entry["transform_matrix"], np.float64), ids))
    across, down = size[0] / meta["w"], size[1] / meta["h"]
    points = read_ply(capture / meta["ply_file_path"]) if meta.get("ply_file_path") else None
    chosen = np.linspace(1, len(result) - 2, labelled).round().astype(int)
    return Source(
        frames=result,
        focal=(meta["fl_x"] * across, meta["fl_y"] * down),
        centre=(meta["cx"] * across, meta["cy"] * down),
        names={label.id: label.class_name for label in labels.labels},
        phrases={label.id: (label.queries or (label.name,))[0] for label in labels.labels},
        points=points,
        labelled=sorted(set(chosen.tolist())),
    )


def read_ply(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Points and colours of a binary PLY with x, y, z (float) and red, green, blue (uchar)."""
    data = path.read_bytes()
    header, _, body = data.partition(b"end_header\n")
    count = int(next(line for line in header.split(b"\n") if line.startswith(b"element vertex")).split()[-1])
    kinds = {b"float": "<f4", b"uchar": "u1", b"double": "<f8"}
    fields = [line.split()[1:] for line in header.split(b"\n") if line.startswith(b"property")]
    table = np.frombuffer(body, np.dtype([(name.decode(), kinds[kind]) for kind, name in fields]), count)
    xyz = np.stack([table[axis] for axis in "xyz"], axis=1).astype(np.float64)
    return xyz, np.stack([table[colour] for colour in ("red", "green", "blue")], axis=1)


# --- 3D-OVS -----------------------------------------------------------------------------------------------------------


def write_3d_ovs(source: Source, output: Path) -> Path:
    """LLFF poses; photographs at eight times the evaluated size, not divisible by it; class order; grey mask edges."""
    scene = output / "table_scene"
    width, height = (8 * side + odd for side, odd in zip(source.size, (5, 3), strict=True))
    focal = source.focal[0] * width / source.size[0]
    rows = []
    for index, frame in enumerate(source.frames):
        save(scene / "images" / f"{index:02d}.jpg", resized(frame.image, (width, height), cv2.INTER_CUBIC))
        x, y, z, position = frame.pose[:3].T
        matrix = np.stack([-y, x, z, position, (height, width, focal)], axis=1)  # axes down, right, back
        rows.append([*matrix.ravel(), 0.5, 20.0])
    np.save(scene / "poses_bounds.npy", np.array(rows))
    classes = class_spelling(source)
    folder = scene / "segmentations"
    folder.mkdir(parents=True, exist_ok=True)
    # Not in the order that counts (ASCII: upper case first), with Windows line ends and a byte-order mark.
    shuffled = sorted(classes, key=lambda name: name.lower(), reverse=True)
    (folder / "classes.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n".join([*shuffled, ""]).encode())
    for index in source.labelled:
        for name, ids in classes.items():
            mask = resized(np.isin(source.frames[index].ids, ids).astype(np.uint8), (width, height), cv2.INTER_NEAREST)
            edge = cv2.dilate(mask, np.ones((9, 9), np.uint8))
            # Anti-aliased edges are grey, and only 255 is foreground. Classes that are not to be seen are all black.
            save(folder / f"{index:02d}" / f"{name}.png", np.where(mask, 255, np.where(edge, 128, 0)).astype(np.uint8))
    return scene


def class_spelling(source: Source) -> dict[str, list[int]]:
    """Class name -> label ids; every second name begins with a capital, which ASCII order puts first."""
    by_name: dict[str, list[int]] = {}
    for identity, name in source.names.items():
        by_name.setdefault(name, []).append(identity)
    return {
        (name[0].upper() + name[1:] if number % 2 else name): ids for number, (name, ids) in enumerate(by_name.items())
    }


# --- LERF-OVS and Mip-NeRF360 -----------------------------------------------------------------------------------------


def write_lerf_ovs(source: Source, output: Path) -> Path:
    """COLMAP and polygons; a gap in the frame numbers, swapped box corners, several polygons of one category."""
    scene = output / "tabletop"
    # Frame 3 does not exist: whoever takes numbers for indices evaluates the wrong picture.
    numbers = [index + 1 if index < 2 else index + 2 for index in range(len(source.frames))]
    names = [f"frame_{number:05d}.jpg" for number in numbers]
    for name, frame in zip(names, source.frames, strict=True):
        save(scene / "images" / name, frame.image)
    write_colmap(scene / "sparse" / "0", source, names, source.size)
    (scene / "distorted" / "sparse" / "0").mkdir(parents=True, exist_ok=True)
    for index in source.labelled:
        write_polygons(output / "label" / scene.name, Path(names[index]).stem, source.frames[index], source.phrases)
    return scene


def write_mipnerf360(source: Source, output: Path) -> Path:
    """Photographs with other names than the labels, lens distortion, and images_8 with sizes rounded up."""
    scene = output / "tabletop"
    # 8 * size + 5 divided by 8 is not whole: the folder's pictures are rounded up, the intrinsics are not.
    full = tuple(8 * side + 5 for side in source.size)
    small = tuple(side + 1 for side in source.size)
    names = [f"DSCF{5400 + index}.JPG" for index in range(len(source.frames))]
    coefficients = (-0.04, 0.01, 0.001, -0.001)  # k1, k2, p1, p2
    for index, (name, frame) in enumerate(zip(names, source.frames, strict=True)):
        ids, image = (
            distorted(frame.ids, source, small, coefficients),
            distorted(frame.image, source, small, coefficients),
        )
        save(scene / "images_8" / name, image)
        save(scene / "images" / name, resized(image, full, cv2.INTER_CUBIC))
        if index in source.labelled:
            warped = Frame(image, frame.pose, ids)
            # Numbered by position: frame_00001 is the first picture by name.
            write_polygons(output / "label" / scene.name, f"frame_{index + 1:05d}", warped, source.phrases)
    write_colmap(scene / "sparse" / "0", source, names, full, coefficients)
    return scene


def distorted(picture: np.ndarray, source: Source, size: Sequence[int], coefficients: Sequence[float]) -> np.ndarray:
    """A pinhole picture as a lens with OpenCV coefficients would show it, at another size."""
    width, height = size
    (fx, fy), (cx, cy) = source.focal, source.centre
    across, down = width / source.size[0], height / source.size[1]
    camera = np.array([[fx * across, 0, cx * across - 0.5], [0, fy * down, cy * down - 0.5], [0, 0, 1]])
    pixels = np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1).astype(np.float64)
    rays = cv2.undistortPoints(pixels.reshape(-1, 1, 2), camera, np.array(coefficients)).reshape(height, width, 2)
    column, row = rays[..., 0] * fx + cx - 0.5, rays[..., 1] * fy + cy - 0.5
    mode = cv2.INTER_NEAREST if picture.ndim == 2 else cv2.INTER_LINEAR
    return cv2.remap(picture, column.astype(np.float32), row.astype(np.float32), mode, borderMode=cv2.BORDER_REPLICATE)


def write_polygons(folder: Path, stem: str, frame: Frame, phrases: dict[int, str]) -> None:
    """One annotated frame: flat rings, truncated corners, boxes with corners in any order, and the picture."""
    objects: list[dict[str, Any]] = []
    for identity, phrase in phrases.items():
        mask = (frame.ids == identity).astype(np.uint8)
        if mask.sum() < MIN_PIXELS:
            continue
        contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        for contour in contours:
            ring = contour.reshape(-1, 2).astype(float)
            left, top, right, bottom = *ring.min(axis=0).tolist(), *ring.max(axis=0).tolist()
            box = [right, bottom, left, top] if len(objects) % 2 else [left, top, right, bottom]
            objects.append(
                {
                    "category": phrase,
                    "group": len(objects) + 1,
                    "segmentation": (ring + 0.37).tolist(),  # a flat list of points; casting cuts the fraction off
                    "area": float(cv2.contourArea(contour)),
                    "layer": float(len(objects)),
                    "bbox": box,
                    "iscrowd": 0,
                    "note": "",
                }
            )
    height, width = frame.ids.shape
    info = {"description": "", "name": f"{stem}.jpg", "width": width, "height": height, "depth": 3, "note": ""}
    save(folder / f"{stem}.jpg", frame.image)
    (folder / f"{stem}.json").write_text(json.dumps({"info": info, "objects": objects}), encoding="utf-8")


# --- LERF-Mask --------------------------------------------------------------------------------------------------------


def write_lerf_mask(source: Source, output: Path) -> Path:
    """images_train decides what trains; masks by test number, one number without masks; black object masks."""
    scene = output / "tabletop"
    test = set(source.labelled)
    names = [f"test_{i:03d}.jpg" if i in test else f"frame_{i + 1:05d}.jpg" for i in range(len(source.frames))]
    for index, (name, frame) in enumerate(zip(names, source.frames, strict=True)):
        save(scene / "images" / name, frame.image)
        if index not in test:
            save(scene / "images_train" / name, frame.image)
        black = np.zeros_like(frame.ids)
        save(scene / "object_mask" / f"{Path(name).stem}.png", black if index in test else frame.ids)
    write_colmap(scene / "sparse" / "0", source, names, source.size)
    for number, index in enumerate(sorted(test)):
        if number == 1 and len(test) > 2:
            continue  # as teatime: the second test view has no masks
        for identity, phrase in source.phrases.items():
            mask = source.frames[index].ids == identity
            if mask.sum() >= MIN_PIXELS:
                save(scene / "test_mask" / str(number) / f"{phrase}.png", mask.astype(np.uint8) * 255)
    return scene


# --- Replica and ScanNet ----------------------------------------------------------------------------------------------


def write_replica(source: Source, output: Path) -> Path:
    """OV-NeRF's packaging: intrinsics for another size than the pictures', classes sorted, one never to be seen."""
    scene = output / "room0"
    # In the file out of order; the loader blanks line 0 and sorts the rest. "elephant" occurs in no label.
    names = sorted({*source.names.values(), "elephant"}, reverse=True)
    ids = class_ids(source, [" ", *sorted(names)])
    (scene).mkdir(parents=True, exist_ok=True)
    (scene / "classes.txt").write_text("\n".join(["other", *names, ""]), encoding="utf-8")
    write_intrinsics(scene / "intrinsics.txt", source, (640, 480))
    for index, frame in enumerate(source.frames):
        save(scene / "rgb_300" / f"rgb_{index:04d}.jpg", frame.image)
        save(scene / "semantic_300" / f"semantic_{index:04d}.png", ids[frame.ids])
        write_pose(scene / "pose_300" / f"pose_{index:04d}.txt", opencv(frame.pose))
    return scene


def write_scannet(source: Source, output: Path) -> Path:
    """OV-NeRF's packaging: classes unsorted, poses with NaN and infinity, a test view without labels."""
    scene = output / "scene0004_00"
    names = sorted(set(source.names.values()), reverse=True)
    ids = class_ids(source, [" ", *names])
    (scene).mkdir(parents=True, exist_ok=True)
    (scene / "classes.txt").write_text("\r\n".join(["", *names, "", ""]), encoding="utf-8")
    write_intrinsics(scene / "intrinsics.txt", source, (1296, 968))
    for index, frame in enumerate(source.frames):
        save(scene / "rgb" / f"{index:06d}.jpg", frame.image)
        label = ids[frame.ids]
        save(scene / "semantic" / f"{index:06d}.png", np.zeros_like(label) if index == 10 else label)
        broken = {3: np.full((4, 4), np.nan), 5: np.full((4, 4), -np.inf)}
        write_pose(scene / "pose" / f"{index:06d}.txt", broken.get(index, opencv(frame.pose)))
    return scene


def write_semantic_nerf(source: Source, output: Path) -> Path:
    """Semantic-NeRF's packaging: numbers not padded, one trajectory file, 90 degrees across (black around pictures)."""
    scene = output / "room_0" / "Sequence_1"
    width, height = source.size
    wide = round(2 * source.focal[0])
    tall = round(wide * height / width)
    left, top = (wide - width) // 2, (tall - height) // 2
    names = list(dict.fromkeys(source.names.values()))
    ids = class_ids(source, [" ", *names])
    scene.mkdir(parents=True, exist_ok=True)
    (scene / "classes.txt").write_text("\n".join(["void", *names]), encoding="utf-8")
    for index, frame in enumerate(source.frames):
        image, label = np.zeros((tall, wide, 3), np.uint8), np.zeros((tall, wide), np.uint8)
        image[top : top + height, left : left + width] = frame.image
        label[top : top + height, left : left + width] = ids[frame.ids]
        save(scene / "rgb" / f"rgb_{index}.png", image)
        save(scene / "semantic_class" / f"semantic_class_{index}.png", label)
    lines = (" ".join(f"{value:.9e}" for value in opencv(frame.pose).ravel()) for frame in source.frames)
    (scene / "traj_w_c.txt").write_text("\n".join([*lines, ""]), encoding="utf-8")
    return scene


def class_ids(source: Source, classes: Sequence[str]) -> np.ndarray:
    """Label id -> position in the class list, 0 = void."""
    table = np.zeros(256, np.uint8)
    for identity, name in source.names.items():
        table[identity] = classes.index(name)
    return table


def write_intrinsics(path: Path, source: Source, size: tuple[int, int]) -> None:
    """A 4x4 camera matrix for pictures of another size."""
    across, down = size[0] / source.size[0], size[1] / source.size[1]
    matrix = np.eye(4)
    matrix[0, 0], matrix[1, 1] = source.focal[0] * across, source.focal[1] * down
    matrix[0, 2], matrix[1, 2] = source.centre[0] * across, source.centre[1] * down
    np.savetxt(path, matrix, fmt="%.8f")


def write_pose(path: Path, pose: np.ndarray) -> None:
    """A 4x4 matrix as text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savetxt(path, pose, fmt="%.9f")


# --- shared -----------------------------------------------------------------------------------------------------------


def opencv(pose: np.ndarray) -> np.ndarray:
    """OpenGL camera-to-world with y and z turned round."""
    return pose @ np.diag([1.0, -1.0, -1.0, 1.0])


def write_colmap(
    model: Path, source: Source, names: Sequence[str], size: Sequence[int], coefficients: Sequence[float] = ()
) -> None:
    """A binary COLMAP model: PINHOLE, or OPENCV with distortion; images not in the order of their names."""
    model.mkdir(parents=True, exist_ok=True)
    across, down = size[0] / source.size[0], size[1] / source.size[1]
    parameters = [source.focal[0] * across, source.focal[1] * down, source.centre[0] * across, source.centre[1] * down]
    kind = "OPENCV" if coefficients else "PINHOLE"
    camera = colmap.Camera(1, kind, size[0], size[1], np.array([*parameters, *coefficients]))
    colmap.write_cameras_binary({1: camera}, model / "cameras.bin")
    images = {}
    for position, (name, frame) in enumerate(zip(names, source.frames, strict=True)):
        world_to_camera = np.linalg.inv(opencv(frame.pose))
        identity = len(names) - position
        images[identity] = colmap.Image(
            id=identity,
            qvec=colmap.rotmat2qvec(world_to_camera[:3, :3]),
            tvec=world_to_camera[:3, 3],
            camera_id=1,
            name=name,
            xys=np.zeros((0, 2)),
            point3D_ids=np.zeros(0, np.int64),
        )
    colmap.write_images_binary(images, model / "images.bin")
    points = {}
    if source.points is not None:
        for number, (xyz, rgb) in enumerate(zip(*source.points, strict=True), 1):
            points[number] = colmap.Point3D(number, xyz, rgb, 0.5, np.array([1, 2]), np.array([0, 0]))
    colmap.write_points3D_binary(points, model / "points3D.bin")


def resized(picture: np.ndarray, size: Sequence[int], mode: int) -> np.ndarray:
    """At (width, height)."""
    return cv2.resize(picture, (size[0], size[1]), interpolation=mode)


def save(path: Path, picture: np.ndarray) -> None:
    """Writes a picture, JPEG at high quality."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(picture)
    image.save(path, quality=95) if path.suffix.lower() in (".jpg", ".jpeg") else image.save(path)


WRITERS: dict[str, Callable[[Source, Path], Path]] = {
    "3d-ovs": write_3d_ovs,
    "lerf-ovs": write_lerf_ovs,
    "lerf-mask": write_lerf_mask,
    "replica": write_replica,
    "scannet": write_scannet,
    "mipnerf360": write_mipnerf360,
    "semantic-nerf": write_semantic_nerf,
}
"""Format -> writer, which returns the scene's folder."""

DATAPARSERS = {
    "3d-ovs": ("ovs3d-data",),
    "lerf-ovs": ("lerf-ovs-data",),
    "lerf-mask": ("lerf-mask-data",),
    "replica": ("replica-semantic-data",),
    "scannet": ("scannet-semantic-data",),
    "mipnerf360": ("mipnerf360-data", "--downscale-factor", "8"),
    "semantic-nerf": ("replica-semantic-data", "--rule", "semantic-nerf"),
}
"""Format -> dataparser as ns-train takes it at the end of the command."""
