"""Our reader of captures against nerfstudio's, and what that cannot: map coordinates, COLMAP folders, damage."""

from __future__ import annotations

import copy
import io
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from captures import make_capture, pose, read_transforms, write_image, write_transforms
from nerfstudio.cameras.cameras import CameraType
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs
from nerfstudio.data.dataparsers.colmap_dataparser import ColmapDataParserConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from PIL import Image
from runs import DEMO_CAPTURE

from maskfield_ns import configs
from maskfield_ns.data.capture_source import CaptureDataset
from maskfield_ns.data.dataparsers.captures import own_parser
from maskfield_ns.data.mask_source import extract
from maskfield_ns.data.points import read_points
from maskfield_ns.data.undistortion import mark_fisheyes, undistortion
from maskfield_ns.errors import CaptureError
from maskfield_ns.selection.coordinates import CaptureCoordinates

XYZ = "property double x\nproperty double y\nproperty double z\n"
RGB = "property uchar red\nproperty uchar green\nproperty uchar blue\n"


def write_ply(path: Path, points: np.ndarray, kind: str = "binary_little_endian") -> Path:
    """Points [P, 3] with the color (10, 20, 30)."""
    header = f"ply\nformat {kind} 1.0\nelement vertex {len(points)}\n{XYZ}{RGB}end_header\n"
    if kind == "ascii":
        rows = "\n".join(f"{x!r} {y!r} {z!r} 10 20 30" for x, y, z in points.tolist())
        path.write_text(header + rows)
    else:
        order = "<" if kind.endswith("little_endian") else ">"
        path.write_bytes(header.encode() + b"".join(struct.pack(order + "3d3B", *p, 10, 20, 30) for p in points))
    return path


def points(count: int = 50, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 3))


def parse(
    data: Path, split: str = "train", kind: Any = NerfstudioDataParserConfig, **options: Any
) -> DataparserOutputs:
    return own_parser(kind(data=data, **options)).setup().get_dataparser_outputs(split=split)


def refused(*parts: str, data: Path, method: str = "maskfield_splat_lite", **options: Any) -> None:
    """As ``maskfield extract`` and ns-train begin, before anything is computed."""
    settings = copy.deepcopy(getattr(configs, method).config.pipeline.datamanager)
    for name, value in options.items():
        setattr(settings.dataparser, name, value)
    settings.data = settings.dataparser.data = data
    settings.use_own_parser()
    with pytest.raises(CaptureError) as caught:
        settings.check_cameras(settings.dataparser.setup().get_dataparser_outputs(split="train").cameras)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message


# --- nerfstudio's results ---------------------------------------------------------------------------------------------

FIELDS = ("fx", "fy", "cx", "cy", "width", "height", "distortion_params", "camera_type")


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"orientation_method": "pca", "center_method": "focus"},
        {"orientation_method": "vertical", "auto_scale_poses": False},
        {"orientation_method": "none", "center_method": "none", "scale_factor": 0.5},
    ],
)
def test_the_demo_capture_is_read_as_nerfstudio_reads_it(split: str, options: dict[str, Any]) -> None:
    config = NerfstudioDataParserConfig(data=DEMO_CAPTURE, **options)
    theirs, ours = (each.setup().get_dataparser_outputs(split=split) for each in (config, own_parser(config)))
    assert ours.image_filenames == theirs.image_filenames
    for field in FIELDS:
        torch.testing.assert_close(getattr(ours.cameras, field), getattr(theirs.cameras, field), rtol=0, atol=0)
    torch.testing.assert_close(ours.cameras.camera_to_worlds, theirs.cameras.camera_to_worlds, rtol=0, atol=2e-6)
    torch.testing.assert_close(ours.dataparser_transform, theirs.dataparser_transform, rtol=0, atol=2e-6)
    assert ours.dataparser_scale == pytest.approx(theirs.dataparser_scale, rel=1e-6)
    torch.testing.assert_close(ours.scene_box.aabb, theirs.scene_box.aabb.float())


@pytest.mark.parametrize("mode", ["fraction", "interval", "all"])
@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_splits_distortion_masks_and_transforms_are_those_of_nerfstudio(tmp_path: Path, mode: str, split: str) -> None:
    names = [f"images/{name}.png" for name in ("b", "a b", "10", "9", "z", "y", "c", "d", "e", "f", "g")]
    make_capture(tmp_path, names, held_out=None, per_frame=True)
    meta = read_transforms(tmp_path)
    for index, frame in enumerate(meta["frames"]):
        frame |= {"k1": 0.01 * index, "p2": 0.001, "k3": 0.02, "mask_path": frame["file_path"].replace("images", "m")}
        write_image(tmp_path / frame["mask_path"], 40, 30, "L")
    meta |= {"applied_transform": [[0, 1, 0, 2], [1, 0, 0, 3], [0, 0, -1, 4]], "applied_scale": 2.0}
    meta["orientation_override"] = "pca"
    write_transforms(tmp_path, meta)
    config = NerfstudioDataParserConfig(data=tmp_path, eval_mode=mode)  # type: ignore[arg-type]
    theirs, ours = (each.setup().get_dataparser_outputs(split=split) for each in (config, own_parser(config)))
    assert ours.image_filenames == theirs.image_filenames and ours.mask_filenames == theirs.mask_filenames
    for field in FIELDS:
        torch.testing.assert_close(getattr(ours.cameras, field), getattr(theirs.cameras, field))
    torch.testing.assert_close(ours.dataparser_transform, theirs.dataparser_transform, rtol=0, atol=1e-5)
    assert ours.dataparser_scale == pytest.approx(theirs.dataparser_scale)


def test_a_split_by_file_names_without_names(tmp_path: Path) -> None:
    make_capture(tmp_path, held_out=None)
    refused("--eval-mode", "frame_00.png", data=tmp_path, eval_mode="filename")
    refused("--train-split-fraction", data=tmp_path, train_split_fraction=1.5)
    refused("--eval-interval", data=tmp_path, eval_mode="interval", eval_interval=0)
    refused("--scale-factor", data=tmp_path, scale_factor=0.0)
    make_capture(tmp_path / "named", [f"{'eval' if i > 5 else 'train'}_{i}.png" for i in range(8)], held_out=None)
    assert len(parse(tmp_path / "named", eval_mode="filename").image_filenames) == 6


# --- map coordinates --------------------------------------------------------------------------------------------------


def shifted(folder: Path, offset: np.ndarray) -> Path:
    meta = read_transforms(make_capture(folder))
    for frame in meta["frames"]:
        matrix = np.array(frame["transform_matrix"])
        matrix[:3, 3] += offset
        frame["transform_matrix"] = matrix.tolist()
    write_transforms(folder, meta | {"ply_file_path": "sparse.ply"})
    write_ply(folder / "sparse.ply", points() + offset)
    return folder


@pytest.mark.parametrize("offset", [(552340.0, 4182711.0, 310.0), (1e5, -1e7, 0.0)])
def test_map_coordinates_give_the_same_scene(tmp_path: Path, offset: tuple[float, ...]) -> None:
    there = np.array(offset)
    here = parse(shifted(tmp_path / "a", np.zeros(3)), load_3D_points=True)
    far = parse(shifted(tmp_path / "b", there), load_3D_points=True)
    torch.testing.assert_close(far.cameras.camera_to_worlds, here.cameras.camera_to_worlds, rtol=0, atol=2e-6)
    torch.testing.assert_close(far.metadata["points3D_xyz"], here.metadata["points3D_xyz"], rtol=0, atol=2e-6)
    assert far.dataparser_scale == pytest.approx(here.dataparser_scale, rel=1e-6)

    class Manager:
        train_dataparser_outputs = far

    # And back, to a tenth of a millimeter at 10,000 km.
    back = CaptureCoordinates.of(Manager()).to_capture(far.metadata["points3D_xyz"].numpy())
    np.testing.assert_allclose(back, points() + there, rtol=0, atol=1e-4 if abs(there).max() < 1e6 else 1e-3)
    refused("--center-method none", data=tmp_path / "b", center_method="none")


# --- points -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["binary_little_endian", "binary_big_endian", "ascii"])
def test_points_are_read_back(tmp_path: Path, kind: str) -> None:
    xyz, rgb = read_points(write_ply(tmp_path / "a.ply", points(), kind))
    np.testing.assert_array_equal(xyz, points())
    assert (rgb == (10, 20, 30)).all() and rgb.dtype == np.uint8


def test_points_after_other_elements_and_without_colors(tmp_path: Path) -> None:
    header = (
        "ply\nformat {} 1.0\nelement note 2\nproperty uchar a\nelement vertex 4\nproperty float x\nproperty float y\n"
    )
    header += "property float z\nend_header\n"
    rows = points(4).astype(np.float32)
    (tmp_path / "b.ply").write_bytes(header.format("binary_little_endian").encode() + b"\1\2" + rows.tobytes())
    (tmp_path / "a.ply").write_text(
        header.format("ascii") + "1\n2\n" + "\n".join(" ".join(map(repr, r.tolist())) for r in rows)
    )
    for name in ("a.ply", "b.ply"):
        xyz, rgb = read_points(tmp_path / name)
        np.testing.assert_allclose(xyz, rows)
        assert (rgb == 128).all()


def test_points_that_are_not_finite_and_points_at_one_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    xyz = np.concatenate([points(), points()[:5], np.full((3, 3), np.nan), [[np.inf, 0, 0]], [[1e30, 0, 0]]])
    make_capture(tmp_path, ply_file_path="sparse.ply")
    write_ply(tmp_path / "sparse.ply", xyz)
    found = parse(tmp_path, load_3D_points=True).metadata["points3D_xyz"]
    assert found.shape == (50, 3) and bool(torch.isfinite(found).all())
    said = capsys.readouterr().out
    assert "of 60 sparse points 5 that are not finite" in said and "5 at the place of another are merged" in said
    write_ply(tmp_path / "sparse.ply", np.full((10, 3), 7.0))
    refused("1 usable places", "ply_file_path", data=tmp_path)


@pytest.mark.parametrize("kind", ["ascii", "binary_little_endian"])
def test_a_small_file_that_announces_a_billion_points(tmp_path: Path, kind: str) -> None:
    make_capture(tmp_path, ply_file_path="sparse.ply")
    header = f"ply\nformat {kind} 1.0\nelement vertex 1000000000\n{XYZ}end_header\n1 2 3\n"
    for text in (header, header.replace("1000000000", "9" * 300), header.replace(kind, "binary")):
        (tmp_path / "sparse.ply").write_text(text)
        refused("sparse.ply", "ply_file_path", data=tmp_path)
    (tmp_path / "sparse.ply").write_text(f"ply\nformat ascii 1.0\nelement vertex 5\n{XYZ}end_header\n" + "a b c\n" * 5)
    refused("no numbers", data=tmp_path)


# --- COLMAP -----------------------------------------------------------------------------------------------------------


def make_colmap(folder: Path, model: str = "sparse/0", size: tuple[int, int] = (40, 30), count: int = 9) -> Path:
    """A COLMAP model as text, with images in sub-folders and a mask for each."""
    place = folder / model
    place.mkdir(parents=True)
    (place / "cameras.txt").write_text(f"1 OPENCV {size[0]} {size[1]} 40 41 20 15 0.01 0 0 0\n")
    lines = []
    for index in range(count):
        matrix = np.array(pose(index, count))
        matrix[:3, 1:3] *= -1
        inverse = np.linalg.inv(matrix)
        trace = inverse[:3, :3]
        w = np.sqrt(max(0.0, 1 + np.trace(trace))) / 2
        x, y, z = (trace[2, 1] - trace[1, 2]), (trace[0, 2] - trace[2, 0]), (trace[1, 0] - trace[0, 1])
        quaternion = np.array([w, *(np.array([x, y, z]) / (4 * w))])
        name = f"{'left' if index % 2 else 'right'}/{count - index}.png"
        values = " ".join(repr(float(v)) for v in (*quaternion, *inverse[:3, 3]))
        lines.append(f"{index + 1} {values} 1 {name}\n1.0 2.0 -1\n")
        write_image(folder / "images" / name, *size)
        write_image(folder / "masks" / name, *size, "L")
    (place / "images.txt").write_text("".join(lines))
    rows = [f"{i + 1} {x!r} {y!r} {z!r} 1 2 3 0.5 1 0\n" for i, (x, y, z) in enumerate(points().tolist())]
    (place / "points3D.txt").write_text("".join(rows))
    return folder


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_colmap_model_is_read_as_nerfstudio_reads_it(tmp_path: Path, split: str) -> None:
    make_colmap(tmp_path)
    config = ColmapDataParserConfig(data=tmp_path, colmap_path=Path("sparse/0"), masks_path=Path("masks"))
    theirs, ours = (each.setup().get_dataparser_outputs(split=split) for each in (config, own_parser(config)))
    assert ours.image_filenames == theirs.image_filenames and ours.mask_filenames == theirs.mask_filenames
    for field in FIELDS:
        torch.testing.assert_close(getattr(ours.cameras, field), getattr(theirs.cameras, field))
    torch.testing.assert_close(ours.cameras.camera_to_worlds, theirs.cameras.camera_to_worlds, rtol=0, atol=1e-5)
    torch.testing.assert_close(ours.dataparser_transform, theirs.dataparser_transform, rtol=0, atol=1e-5)
    torch.testing.assert_close(ours.metadata["points3D_xyz"], theirs.metadata["points3D_xyz"], rtol=0, atol=1e-5)
    assert torch.equal(ours.metadata["points3D_rgb"], theirs.metadata["points3D_rgb"])


@pytest.mark.parametrize("model", ["sparse/0", "sparse", "colmap/sparse/0"])
def test_a_colmap_folder_trains_as_it_is(tmp_path: Path, model: str) -> None:
    """``ns-train METHOD --data FOLDER`` without naming a dataparser."""
    make_colmap(tmp_path, model)
    settings = copy.deepcopy(configs.maskfield_splat_lite.config.pipeline.datamanager)
    settings.data = settings.dataparser.data = tmp_path
    settings.use_own_parser()
    outputs = settings.dataparser.setup().get_dataparser_outputs(split="train")
    assert len(outputs.image_filenames) == 9 and len(outputs.metadata["points3D_xyz"]) == 50


def test_colmap_folders_that_cannot_be_used(tmp_path: Path) -> None:
    make_colmap(tmp_path)
    with pytest.raises(CaptureError, match="--colmap-path sparse/0"):
        parse(tmp_path, kind=ColmapDataParserConfig)
    (tmp_path / "images/left/8.png").unlink()
    refused("images/left/8.png", "1 of 9", data=tmp_path)
    (tmp_path / "sparse/0/images.txt").write_text("1 nonsense\n")
    refused("images.txt", "damaged", data=tmp_path)
    (tmp_path / "images").rename(tmp_path / "photos")
    refused("no folder images", data=tmp_path)


def test_large_images_of_a_colmap_folder_get_copies_without_a_question(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """nerfstudio asks at a prompt, which ends in an EOFError where there is no terminal."""
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    make_colmap(tmp_path, size=(1700, 20), count=3)
    options = {"kind": ColmapDataParserConfig, "colmap_path": Path("sparse/0"), "masks_path": Path("masks")}
    outputs = parse(tmp_path, **options)
    assert outputs.image_filenames[0].parent.parent == tmp_path / "images_2"
    assert outputs.mask_filenames is not None and outputs.mask_filenames[0].parent.parent == tmp_path / "masks_2"
    for path in [*outputs.image_filenames, *outputs.mask_filenames]:
        with Image.open(path) as image:
            assert image.size == (850, 10)
    assert int(outputs.cameras.width[0]) == 850 and float(outputs.cameras.fx[0]) == 20.0
    assert "smaller by 2" in capsys.readouterr().out
    assert parse(tmp_path, downscale_factor=1, **options).image_filenames[0].parent.parent == tmp_path / "images"
    parse(tmp_path, **options)
    assert "smaller" not in capsys.readouterr().out and not list(tmp_path.rglob("*.tmp*"))


def test_points_of_an_early_ns_process_data_are_used_without_a_question(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    make_colmap(tmp_path, "colmap/sparse/0")
    make_capture(tmp_path)
    before = (tmp_path / "transforms.json").read_bytes()
    outputs = parse(tmp_path, load_3D_points=True)
    assert len(outputs.metadata["points3D_xyz"]) == 50
    # As nerfstudio: x and y exchanged, z turned, before the scene's own transform.
    x, y, z = points().T
    expected = np.stack([y, x, -z], axis=1)
    plain = parse(tmp_path)
    assert (tmp_path / "transforms.json").read_bytes() == before
    turned = np.stack([outputs.metadata["points3D_xyz"].numpy()])[0] / outputs.dataparser_scale
    distances = np.linalg.norm(turned[1:] - turned[:-1], axis=1)
    np.testing.assert_allclose(distances, np.linalg.norm(expected[1:] - expected[:-1], axis=1), rtol=1e-4)
    assert plain.dataparser_scale == outputs.dataparser_scale


# --- cameras that Gaussians cannot have -------------------------------------------------------------------------------


def camera_model(folder: Path, model: str, **more: Any) -> Path:
    make_capture(folder, **more)
    write_transforms(folder, read_transforms(folder) | {"camera_model": model})
    return folder


def test_panoramas_and_a_fourth_coefficient(tmp_path: Path) -> None:
    for more in ({}, {"k1": 0.1}):
        camera_model(tmp_path / "p", "EQUIRECTANGULAR", **more)
        refused("EQUIRECTANGULAR", str(tmp_path / "p"), "maskfield-lite", data=tmp_path / "p")
        assert int(parse(tmp_path / "p").cameras.camera_type[0]) == CameraType.EQUIRECTANGULAR.value
    camera_model(tmp_path / "k", "OPENCV", k1=0.01, k4=0.02)
    refused('"k4"', str(tmp_path / "k"), data=tmp_path / "k")
    camera_model(tmp_path / "f", "FISHEYE624", k1=0.01)
    refused("distortion_params", "12 numbers", data=tmp_path / "f")


def test_a_fisheye_of_half_the_world(tmp_path: Path) -> None:
    make_capture(tmp_path)
    meta = read_transforms(tmp_path) | {"camera_model": "OPENCV_FISHEYE"}
    write_transforms(tmp_path, meta | {"fl_x": 40 / np.pi, "fl_y": 40 / np.pi})
    refused("180 degrees", str(tmp_path), "maskfield-lite", data=tmp_path)
    assert len(parse(tmp_path).image_filenames) == 6


def test_a_fisheye_without_coefficients_is_undistorted_as_one(tmp_path: Path) -> None:
    """An ideal fisheye's radius is the angle: a pixel at radius r belongs to the ray at tan(r)."""
    cameras = parse(camera_model(tmp_path, "OPENCV_FISHEYE")).cameras
    assert undistortion(cameras[0].reshape(())) is None, "nerfstudio passes by it"
    mark_fisheyes(cameras)
    how = undistortion(cameras[0].reshape(()))
    assert how is not None
    matrix, corner = how.lens.undistorted, np.array([[0.0, 0.0]])
    x, y = ((corner - how.lens.matrix[:2, 2]) / (how.lens.matrix[0, 0], how.lens.matrix[1, 1]))[0]
    radius = np.hypot(x, y)
    ray = np.array([x, y]) / radius * np.tan(radius)
    expected = ray * (matrix[0, 0], matrix[1, 1]) + matrix[:2, 2]
    np.testing.assert_allclose(how.lens.undistort(corner)[0] + how.lens.corner, expected, atol=1e-3)
    assert float(cameras.distortion_params.abs().max()) < 1e-9  # type: ignore[union-attr]


# --- damage -----------------------------------------------------------------------------------------------------------


def test_a_half_downloaded_image_or_mask_is_named(tmp_path: Path) -> None:
    meta = read_transforms(make_capture(tmp_path, size=(200, 150)))
    for frame in meta["frames"]:
        frame["mask_path"] = frame["file_path"].replace("images", "masks")
        write_image(tmp_path / frame["mask_path"], 200, 150, "L")
    write_transforms(tmp_path, meta)
    noise = np.random.default_rng(0).integers(0, 255, (150, 200, 3), np.uint8)
    dataset = CaptureDataset(parse(tmp_path))
    for folder, image in (("masks", Image.fromarray(noise[..., 0])), ("images", Image.fromarray(noise))):
        path = tmp_path / folder / "frame_00.png"
        image.save(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(CaptureError) as caught:
            dataset.get_data(0)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_what_other_dataparsers_fail_with_is_one_line(tmp_path: Path) -> None:
    from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig

    settings = copy.deepcopy(configs.maskfield_lite.config.pipeline.datamanager)
    settings.dataparser = BlenderDataParserConfig(data=tmp_path)
    settings.data = tmp_path
    with pytest.raises(CaptureError, match=r"cannot be read by Blender: \w+Error") as caught:
        extract(settings, "cpu")
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(CaptureError, match="cannot be read by Blender"):
        settings.setup(test_mode="inference")


def test_colmap_models_without_end(tmp_path: Path) -> None:
    """A file of some bytes that announces 2^60 keypoints or points must not ask for the memory."""
    make_colmap(tmp_path)
    place = tmp_path / "sparse/0"
    (place / "images.txt").unlink()
    image = struct.pack("<i7di", 1, 1, 0, 0, 0, 0, 0, 0, 1) + b"left/8.png\0"
    for content in (struct.pack("<Q", 2**60), struct.pack("<Q", 1) + image + struct.pack("<Q", 2**60), b"", b"\0" * 7):
        (place / "images.bin").write_bytes(content)
        refused("images.bin", "damaged", data=tmp_path)
    make_colmap(tmp_path / "b")
    point = struct.pack("<Q3d3BdQ", 1, 0, 0, 0, 1, 2, 3, 0.5, 2**60)
    (tmp_path / "b/sparse/0/points3D.bin").write_bytes(struct.pack("<Q", 2**60) + point)
    refused("points3D.bin", "damaged", data=tmp_path / "b")
    names = (tmp_path / "b/sparse/0/images.txt").read_text()
    nothing = "\n".join("2 0 0 0 0 0 0 0 1 right/8.png" if "left/8" in line else line for line in names.splitlines())
    (tmp_path / "b/sparse/0/images.txt").write_text(nothing)
    refused("poses that are none", data=tmp_path / "b")
    (tmp_path / "b/sparse/0/images.txt").write_text(names.replace("left/8.png", "left/8\x07.png"))
    refused("control characters", data=tmp_path / "b")
    (tmp_path / "b/sparse/0/images.txt").write_text(names.replace(" left/8.png", " /left/8.png"))
    refused("absolute path", data=tmp_path / "b")


def test_an_ideal_fisheye_is_trained_undistorted(tmp_path: Path) -> None:
    """nerfstudio would take its pictures for those of a pinhole camera."""
    capture = camera_model(tmp_path, "OPENCV_FISHEYE")
    settings = copy.deepcopy(configs.maskfield_splat_lite.config.pipeline.datamanager)
    settings.data = capture
    manager = settings.setup(test_mode="test")
    how = manager.eval_undistortions[0]
    assert how is not None
    camera, data = manager.fixed_indices_eval_dataloader[0]
    np.testing.assert_allclose(float(camera.fx), how.lens.undistorted[0, 0], rtol=1e-5)
    assert abs(float(camera.fx) - 40.0) > 0.5
    with Image.open(manager.eval_dataset.image_filenames[0]) as image:
        assert not np.array_equal(data["image"].numpy(), np.asarray(image))
