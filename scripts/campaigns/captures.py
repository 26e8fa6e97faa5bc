"""Campaign: mutated captures through the reader in process, and some through ``maskfield extract`` and ``ns-train``.

    python scripts/campaigns/captures.py    # 6,000 and 1,000 COLMAP folders in process, 300 through the commands
    python scripts/campaigns/captures.py --cases 500 --colmap 0 --commands 0 --seed 7

A capture must be refused in one line or accepted; what is accepted is checked against the file itself, in float64, by
rules that the reader does not use: distances between cameras, intrinsics at the pictures' size, points that are finite.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import shutil
import struct
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from campaign import Campaign, Refused, Wrong, finish, parser
from PIL import Image
from scipy.spatial.transform import Rotation

from maskfield_ns import configs
from maskfield_ns.data.capture_source import CaptureDataset
from maskfield_ns.data.undistortion import mark_fisheyes, undistortion

SIZE, COUNT = (32, 24), 6
METHODS = ("maskfield_splat_lite", "maskfield_lite")
Change = Callable[[Path, dict[str, Any], np.random.Generator], None]
"""Changes a capture's files or its ``transforms.json``, given parsed; that is written afterwards."""

# --- the sound capture ------------------------------------------------------------------------------------------------


def pose(index: int) -> list[list[float]]:
    """On a circle around the origin, looking inwards."""
    angle = 2 * np.pi * index / COUNT
    place = np.array([2 * np.cos(angle), 2 * np.sin(angle), 0.7])
    back = place / np.linalg.norm(place)
    right = np.cross([0, 0, 1], back)
    right /= np.linalg.norm(right)
    matrix = np.eye(4)
    matrix[:3] = np.stack([right, np.cross(back, right), back, place], axis=1)
    return matrix.tolist()


def write_points(path: Path, points: np.ndarray, kind: str = "binary_little_endian", count: int | None = None) -> None:
    """A .ply of points [P, 3]; its header may announce another number."""
    header = f"ply\nformat {kind} 1.0\nelement vertex {len(points) if count is None else count}\n"
    header += "".join(f"property double {axis}\n" for axis in "xyz")
    header += "".join(f"property uchar {color}\n" for color in ("red", "green", "blue")) + "end_header\n"
    if kind == "ascii":
        body = "\n".join(" ".join(map(repr, row)) + " 9 9 9" for row in points.tolist()).encode()
    else:
        body = b"".join(struct.pack("<3d3B", *row, 9, 9, 9) for row in points.tolist())
    path.write_bytes(header.encode() + body)


def sound(folder: Path) -> dict[str, Any]:
    """Writes images, masks and points of a sound capture; returns its ``transforms.json``."""
    rng = np.random.default_rng(0)
    frames: list[dict[str, Any]] = []
    for index in range(COUNT):
        name = f"images/frame_{index}.png"
        for place, shape in (("images", (SIZE[1], SIZE[0], 3)), ("masks", (SIZE[1], SIZE[0]))):
            path = folder / place / f"frame_{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 255, shape, np.uint8)).save(path)
        frames.append({"file_path": name, "transform_matrix": pose(index)})
    write_points(folder / "sparse.ply", rng.normal(size=(40, 3)))
    camera = {"w": SIZE[0], "h": SIZE[1], "fl_x": 30.0, "fl_y": 31.0, "cx": 16.5, "cy": 11.5}
    lens = {"k1": 0.01, "k2": -0.002, "p1": 0.0, "p2": 0.001}
    return {"camera_model": "OPENCV", **camera, **lens, "ply_file_path": "sparse.ply", "frames": frames}


# --- mutations --------------------------------------------------------------------------------------------------------

VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 5, 7.5, 1e-300, 1e30, -1e30, 1e300, float("nan"), float("inf"), -float("inf")),
    *(
        10**18,
        10**80,
        "",
        "abc",
        "5",
        "nan",
        "../../etc/passwd",
        "~",
        "a\0b",
        "x" * 300,
        "x" * 5000,
        "images/",
        "\ud800",
    ),
    *(
        [],
        {},
        [1],
        [[1]],
        {"a": 1},
        [[0.0] * 4] * 4,
        [[float("nan")] * 4] * 4,
        [[1, 0, 0, 0]] * 3,
        "images\\frame_1.png",
    ),
)
TOP = (
    *("w", "h", "fl_x", "fl_y", "cx", "cy", "k1", "k2", "k3", "k4", "p1", "p2", "distortion_params", "camera_model"),
    *(
        "camera_angle_x",
        "camera_angle_y",
        "orientation_override",
        "applied_transform",
        "applied_scale",
        "ply_file_path",
    ),
    *("train_filenames", "val_filenames", "test_filenames", "frames", "fisheye_crop_radius", "is_fisheye", "other"),
)
PER_FRAME = (
    "file_path",
    "transform_matrix",
    "mask_path",
    "depth_file_path",
    "k1",
    "w",
    "fl_x",
    "camera_model",
    "other",
)
CAMERA_MODELS = ("OPENCV", "PINHOLE", "SIMPLE_PINHOLE", "OPENCV_FISHEYE", "EQUIRECTANGULAR", "FISHEYE624", "ORTHOPHOTO")


def _value(rng: np.random.Generator) -> Any:
    return copy.deepcopy(VALUES[int(rng.integers(len(VALUES)))])


def _pick(rng: np.random.Generator, items: Any) -> Any:
    return items[int(rng.integers(len(items)))]


def _frame(meta: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    frames = meta.get("frames")
    usable = [frame for frame in frames if isinstance(frame, dict)] if isinstance(frames, list) else []
    return _pick(rng, usable) if usable else {}


def set_top(folder: Path, meta: dict[str, Any], rng: np.random.Generator) -> None:
    meta[_pick(rng, TOP)] = _value(rng)


def remove_top(folder: Path, meta: dict[str, Any], rng: np.random.Generator) -> None:
    meta.pop(_pick(rng, list(meta)), None) if meta else None


def set_in_frame(folder: Path, meta: dict[str, Any], rng: np.random.Generator) -> None:
    _frame(meta, rng)[_pick(rng, PER_FRAME)] = _value(rng)


def set_in_all_frames(folder: Path, meta: dict[str, Any], rng: np.random.Generator) -> None:
    key, value = _pick(rng, PER_FRAME), _value(rng)
    for frame in meta["frames"] if isinstance(meta.get("frames"), list) else []:
        if isinstance(frame, dict):
            frame[key] = value


def remove_in_frame(folder: Path, meta: dict[str, Any], rng: np.random.Generator) -> None:
    frame = _frame(meta, rng)
    frame.pop(_pick(rng, list(frame)), None) if frame else None


def change_pose(folder: Path, meta: dict[str, Any], rng: np.random.Generator) -> None:
    frame = _frame(meta, rng)
    with contextlib.suppress(KeyError, TypeError, IndexError):
        frame["transform_matrix"][int(rng.integers(4))][int(rng.integers(4))] = _value(rng)


def scale_number(folder: Path, meta: dict[str, Any], rng: np.random.Generator) -> None:
    key = _pick(rng, TOP)
    if isinstance(meta.get(key), (int, float)):
        meta[key] = float(meta[key]) * float(10.0 ** rng.integers(-12, 13)) * float(_pick(rng, (1, -1)))


def move_away(folder: Path, meta: dict[str, Any], rng: np.random.Generator) -> None:
    """A georeferenced capture: poses and points far from the origin."""
    offset = rng.normal(size=3) * 10.0 ** rng.integers(0, 10)
    for frame in meta["frames"] if isinstance(meta.get("frames"), list) else []:
        with contextlib.suppress(KeyError, TypeError, IndexError):
            for axis in range(3):
                frame["transform_matrix"][axis][3] += float(offset[axis])
    write_points(folder / "sparse.ply", np.random.default_rng(1).normal(size=(40, 3)) + offset)


def camera_model(folder: Path, meta: dict[str, Any], rng: np.random.Generator) -> None:
    meta["camera_model"] = _pick(rng, CAMERA_MODELS)


def add_masks(folder: Path, meta: dict[str, Any], rng: np.random.Generator) -> None:
    for index, frame in enumerate(meta["frames"] if isinstance(meta.get("frames"), list) else []):
        if isinstance(frame, dict):
            frame["mask_path"] = f"masks/frame_{index}.png"


def damage_image(folder: Path, meta: dict[str, Any], rng: np.random.Generator) -> None:
    path = folder / _pick(rng, ("images", "masks")) / f"frame_{int(rng.integers(COUNT))}.png"
    kind = int(rng.integers(6))
    if kind == 0:
        path.unlink(missing_ok=True)
    elif kind == 1:
        path.write_bytes(path.read_bytes()[: int(rng.integers(400))]) if path.exists() else None
    elif kind == 2:
        data = bytearray(path.read_bytes() if path.exists() else b"x")
        data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
        path.write_bytes(bytes(data))
    else:
        mode, size = _pick(rng, ("RGB", "RGBA", "L", "P", "1", "LA", "I;16", "F")), _pick(rng, (SIZE, (8, 6), (31, 24)))
        with contextlib.suppress(ValueError, OSError):
            Image.new("RGB", size).convert("L" if mode in ("I;16", "F") else mode).save(path)


def shrink_images(folder: Path, meta: dict[str, Any], rng: np.random.Generator) -> None:
    times = int(rng.integers(2, 5))
    for path in [*folder.glob("images/*.png"), *folder.glob("masks/*.png")]:
        with contextlib.suppress(OSError, ValueError, SyntaxError), Image.open(path) as image:
            smaller = image.resize((max(1, image.width // times), max(1, image.height // times)))
            smaller.save(path)


def damage_points(folder: Path, meta: dict[str, Any], rng: np.random.Generator) -> None:
    path, xyz = folder / "sparse.ply", np.random.default_rng(1).normal(size=(40, 3))
    if not path.exists():
        write_points(path, xyz)
    kind = int(rng.integers(7))
    form = _pick(rng, ("ascii", "binary_little_endian"))
    if kind == 0:
        xyz[rng.random(40) < rng.random()] = _pick(rng, (np.nan, np.inf, 1e300, 1e30))
        write_points(path, xyz, form)
    elif kind == 1:
        write_points(path, xyz[rng.integers(0, int(rng.integers(1, 40)), 40)], form)
    elif kind == 2:
        write_points(path, xyz, form, int(10.0 ** rng.integers(0, 30)))
    elif kind == 3:
        path.write_bytes(path.read_bytes()[: int(rng.integers(600))])
    elif kind == 4:
        data = bytearray(path.read_bytes() or b"x")
        for _ in range(int(rng.integers(1, 5))):
            data[int(rng.integers(len(data)))] = int(rng.integers(256))
        path.write_bytes(bytes(data))
    elif kind == 5:
        write_points(path, xyz[: int(rng.integers(6))], form)
    else:
        path.unlink(missing_ok=True)


MUTATIONS: tuple[Change, ...] = (
    *(set_top, set_top, set_in_frame, set_in_frame, set_in_all_frames, change_pose, change_pose, remove_top),
    *(remove_in_frame, scale_number, move_away, camera_model, add_masks, damage_image, shrink_images, damage_points),
)


def damage_text(text: str, rng: np.random.Generator) -> bytes:
    """The file itself: cut short, a byte changed, brackets without end, numbers without end, another encoding."""
    kind, data = int(rng.integers(6)), text.encode("utf-8", "surrogatepass")
    if kind == 0:
        return data[: int(rng.integers(len(data)))]
    if kind == 1:
        changed = bytearray(data)
        changed[int(rng.integers(len(changed)))] = int(rng.integers(256))
        return bytes(changed)
    if kind == 2:
        return b'{"frames": ' + b"[" * int(10.0 ** rng.uniform(1, 6))
    if kind == 3:
        return data.replace(b"30.0", b"3" * int(10.0 ** rng.uniform(1, 5)))
    if kind == 4:
        return text.encode("utf-16", "surrogatepass")
    return b"\xef\xbb\xbf" + data


def mutated(folder: Path, rng: np.random.Generator) -> dict[str, Any]:
    """Writes a capture with one to three mutations; returns what its file says (as parsed, if it still parses)."""
    meta = sound(folder)
    for _ in range(int(rng.integers(1, 4))):
        _pick(rng, MUTATIONS)(folder, meta, rng)
    text = json.dumps(meta)
    data = damage_text(text, rng) if rng.random() < 0.1 else text.encode()
    (folder / "transforms.json").write_bytes(data)
    return meta


# --- COLMAP folders ---------------------------------------------------------------------------------------------------


def colmap(folder: Path, rng: np.random.Generator) -> None:
    """Writes a folder as COLMAP leaves it, with one of its three files damaged or none."""
    sound(folder)
    model = folder / "sparse" / "0"
    model.mkdir(parents=True)
    files = {
        "cameras.bin": struct.pack("<QiiQQ8d", 1, 1, 4, *SIZE, 30.0, 31.0, 16.5, 11.5, 0.01, 0.0, 0.0, 0.001),
        "images.bin": struct.pack("<Q", COUNT),
        "points3D.bin": struct.pack("<Q", 40),
    }
    for index in range(COUNT):
        camera = np.array(pose(index))
        camera[:3, 1:3] *= -1
        inverse = np.linalg.inv(camera)
        x, y, z, w = Rotation.from_matrix(inverse[:3, :3]).as_quat()
        files["images.bin"] += struct.pack("<i7di", index + 1, w, x, y, z, *inverse[:3, 3], 1)
        files["images.bin"] += f"frame_{index}.png".encode() + b"\0" + struct.pack("<Q2dq", 1, 1.0, 2.0, -1)
    for index, point in enumerate(np.random.default_rng(1).normal(size=(40, 3))):
        files["points3D.bin"] += struct.pack("<Q3d3BdQ2i", index + 1, *point, 9, 9, 9, 0.5, 1, 1, 0)
    damaged = _pick(rng, list(files))
    data = bytearray(files[damaged])
    kind = int(rng.integers(4))
    if kind == 0:
        data = data[: int(rng.integers(len(data)))]
    elif kind == 1:
        at = int(rng.integers(max(1, len(data) - 8)))
        data[at : at + 8] = struct.pack("<Q", int(2.0 ** rng.uniform(0, 63)))
    elif kind == 2:
        for _ in range(int(rng.integers(1, 4))):
            data[int(rng.integers(len(data)))] = int(rng.integers(256))
    files[damaged] = bytes(data)
    for name, content in files.items():
        (model / name).write_bytes(content)


def check_colmap(folder: Path, method: str) -> None:
    """Reads a COLMAP folder as a training would.

    Raises:
        MaskfieldError: refused. Wrong: accepted, but with values that cannot be.
    """
    settings = copy.deepcopy(getattr(configs, method).config.pipeline.datamanager)
    settings.data = settings.dataparser.data = folder
    settings.use_own_parser()
    outputs = settings.dataparser.setup().get_dataparser_outputs(split="train")
    settings.check_cameras(outputs.cameras)
    found = outputs.cameras.camera_to_worlds.double().numpy()
    if not np.isfinite(found).all() or np.abs(found[:, :, 3]).max() > 1 + 1e-5:
        raise Wrong("camera positions are not within 1, or not finite")
    turns = np.einsum("nji,njk->nik", found[:, :, :3], found[:, :, :3])
    if np.abs(turns - np.eye(3)).max() > 0.05:
        raise Wrong("a camera's axes are not orthogonal")
    for value in (outputs.cameras.fx, outputs.cameras.fy, outputs.cameras.cx, outputs.cameras.cy):
        if not bool(value.isfinite().all()):
            raise Wrong("intrinsics that are not finite")
    if {(int(w), int(h)) for w, h in zip(outputs.cameras.width, outputs.cameras.height, strict=True)} != {SIZE}:
        raise Wrong("a camera is not of the size of its image")
    dataset = CaptureDataset(outputs)
    for index in range(len(dataset)):
        dataset.get_data(index)


# --- what is accepted must be right -----------------------------------------------------------------------------------


def check(folder: Path, method: str) -> None:
    """Reads the capture as a training would, up to its first pixel.

    Raises:
        MaskfieldError: refused. Wrong: accepted, but not what the file says.
    """
    settings = copy.deepcopy(getattr(configs, method).config.pipeline.datamanager)
    settings.data = settings.dataparser.data = folder
    settings.use_own_parser()
    dataparser = settings.dataparser.setup()
    outputs = {split: dataparser.get_dataparser_outputs(split=split) for split in ("train", "test")}
    meta = json.loads((folder / "transforms.json").read_text(encoding="utf-8-sig"))
    frames = {folder / str(f["file_path"]).replace("\\", "/"): f for f in meta["frames"]}
    for each in outputs.values():
        settings.check_cameras(each.cameras)
        _check_cameras(meta, frames, each)
        dataset = CaptureDataset(each)
        mark_fisheyes(dataset.cameras)
        for index in range(len(dataset)):
            data = dataset.get_data(index)
            height, width = data["image"].shape[:2]
            camera = dataset.cameras[index].reshape(())
            if (int(camera.width), int(camera.height)) != (width, height):
                raise Wrong(f"the camera of {each.image_filenames[index].name} is not of the size of its image")
            if method == "maskfield_splat_lite":
                undistortion(camera)
    points = outputs["train"].metadata.get("points3D_xyz")
    if points is not None and not (np.isfinite(points.numpy()).all() and len(np.unique(points.numpy(), axis=0)) > 3):
        raise Wrong("points that no Gaussian can start from")
    if points is not None and len(points) != len(outputs["train"].metadata["points3D_rgb"]):
        raise Wrong("points without a color each")


def _check_cameras(meta: dict[str, Any], frames: dict[Path, Any], outputs: Any) -> None:
    """Poses and intrinsics of a split against the file, by ratios that no change of coordinates alters."""
    if not len(outputs.image_filenames):
        return
    chosen = [frames[path] for path in outputs.image_filenames]
    given = np.array([frame["transform_matrix"] for frame in chosen], np.float64)
    found = outputs.cameras.camera_to_worlds.double().numpy()
    if not np.isfinite(found).all() or np.abs(found[:, :, 3]).max() > 1 + 1e-5:
        raise Wrong("camera positions are not within 1, or not finite")
    distances = [np.linalg.norm(p[:, None, :3, 3] - p[None, :, :3, 3], axis=-1) for p in (given, found)]
    scale = distances[1].sum() / max(distances[0].sum(), 1e-300)
    # Coordinates as large as 1e9 have themselves no more digits than this.
    slack = 1e-4 * distances[1].max() + 4 * scale * np.abs(given[:, :3, 3]).max() * 2.0**-52
    if np.abs(distances[1] - scale * distances[0]).max() > slack:
        raise Wrong("distances between cameras are not those of the file")
    turns = [np.einsum("nij,mij->nm", p[:, :3, :3], p[:, :3, :3]) for p in (given, found)]
    if np.abs(turns[1] - turns[0]).max() > 0.05 * np.abs(turns[0]).max():
        raise Wrong("rotations between cameras are not those of the file")
    for index, frame in enumerate(chosen):
        place = {key: meta.get(key, frame.get(key)) for key in ("w", "h", "fl_x", "fl_y", "cx", "cy")}
        if any(value is None for value in place.values()):
            continue  # derived values have tests of their own
        for side, keys in (("width", ("w", "fl_x", "fx", "cx")), ("height", ("h", "fl_y", "fy", "cy"))):
            ratio = float(getattr(outputs.cameras, side)[index]) / int(place[keys[0]])
            for key, own in ((keys[1], keys[2]), (keys[3], keys[3])):
                wanted = float(place[key]) * ratio
                if abs(float(getattr(outputs.cameras, own)[index]) - wanted) > 1e-4 * max(1.0, abs(wanted)):
                    raise Wrong(f"{own} is not {key} of the file")


# --- through the commands ---------------------------------------------------------------------------------------------


def command(words: list[str]) -> tuple[int, str]:
    """Exit code and standard error of a command run in a forked process, so that nothing is imported again."""
    with tempfile.TemporaryFile() as captured:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.dup2(captured.fileno(), 2)
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
                os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
                sys.stdin, sys.stdout, sys.stderr = (os.fdopen(i, "r" if i == 0 else "w") for i in range(3))
                sys.argv = words
                code = _run(words[0])
                sys.stderr.flush()
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        captured.seek(0)
        return os.waitstatus_to_exitcode(status), captured.read().decode("utf-8", "replace")


def _run(program: str) -> int:
    from nerfstudio.engine.trainer import Trainer
    from nerfstudio.scripts import train

    from maskfield_ns import cli

    Trainer.train = lambda self: None  # everything is set up by then: no step of a training depends on the input's form
    try:
        cli.entrypoint() if program == "maskfield" else train.entrypoint()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException as error:
        # As the interpreter does with what reaches it.
        sys.excepthook(type(error), error, error.__traceback__)
        return 1
    return 0


def through_command(folder: Path, program: str) -> None:
    """Runs a command on a capture.

    Raises:
        Refused: one line and exit code 1. Wrong: anything else but success.
    """
    out = folder.parent / "out"
    words = {
        "extract": ["maskfield", "extract", "--data", str(folder), "--proposer", "regions"],
        "train": [
            *("ns-train", "maskfield-splat-lite", "--data", str(folder), "--output-dir", str(out)),
            *("--vis", "tensorboard", "--pipeline.datamanager.proposer-kind", "regions"),
        ],
    }[program]
    code, text = command(words)
    lines = [
        line for line in text.splitlines() if line.strip() and "Warning" not in line and "warnings.warn" not in line
    ]
    if any(folder.parent.rglob("*.tmp")):
        raise Wrong(f"a temporary file is left over: {next(folder.parent.rglob('*.tmp'))}")
    if code == 0:
        return
    errors = [line for line in lines if line.startswith("error: ")]
    if code != 1 or "Traceback" in text or len(errors) != 1 or lines[-1] != errors[0]:
        raise Wrong(f"exit code {code}, standard error: {text[-600:]!r}")
    raise Refused(errors[0])


# --- campaigns --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def in_process(campaign: Campaign, folder: Path) -> Campaign:
    """Cases through the reader."""
    for number, rng in campaign.each():
        shutil.rmtree(folder, ignore_errors=True)
        mutated(folder, rng)
        method = METHODS[number % 2]
        with _quietly():
            campaign.attempt(f"case {number}", lambda method=method: check(folder, method))
    return campaign


def colmap_folders(campaign: Campaign, folder: Path) -> Campaign:
    """COLMAP folders through the reader."""
    for number, rng in campaign.each():
        shutil.rmtree(folder, ignore_errors=True)
        colmap(folder, rng)
        method = METHODS[number % 2]
        with _quietly():
            campaign.attempt(f"case {number}", lambda method=method: check_colmap(folder, method))
    return campaign


def through_commands(campaign: Campaign, folder: Path) -> Campaign:
    """Cases through extract and ns-train by turns."""
    for number, rng in campaign.each():
        shutil.rmtree(folder.parent, ignore_errors=True)
        mutated(folder, rng)
        program = ("extract", "train")[number % 2]
        campaign.attempt(f"case {number} ({program})", lambda program=program: through_command(folder, program))
    return campaign


def main() -> int:
    """Runs all and prints the tallies."""
    arguments = parser(__doc__, cases=6000)
    arguments.add_argument("--colmap", type=int, default=1000, help="COLMAP folders in process, at most")
    arguments.add_argument("--commands", type=int, default=300, help="cases through the commands, at most")
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as work:
        first = Campaign("captures in process", options.cases, options.seconds, options.seed, case_seconds=20)
        in_process(first, Path(work) / "a" / "capture")
        second = Campaign("COLMAP folders in process", options.colmap, options.seconds, options.seed, case_seconds=20)
        colmap_folders(second, Path(work) / "a" / "capture")
        third = Campaign("captures through commands", options.commands, options.seconds, options.seed + 1, 180)
        through_commands(third, Path(work) / "b" / "capture")
    return finish([first, second, third], options.output)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        traceback.print_exc(limit=0)
        sys.exit(130)
