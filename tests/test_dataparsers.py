"""Benchmark dataparsers: geometry against the capture that a fixture was made of, splits, and what they refuse."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import tyro
from fixtures_on_disk import formats, scene, source
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs
from nerfstudio.plugins.registry_dataparser import DataParserSpecification
from PIL import Image

from maskfield_ns.data import layouts
from maskfield_ns.data.dataparsers.common import downscaled
from maskfield_ns.data.dataparsers.indexed import ReplicaDataParserConfig, ScanNetOvDataParserConfig
from maskfield_ns.data.dataparsers.lerf_mask import LerfMaskDataParserConfig
from maskfield_ns.data.dataparsers.ovs3d import Ovs3dDataParserConfig
from maskfield_ns.data.dataparsers.polygons import LerfOvsDataParserConfig, MipNerf360DataParserConfig
from maskfield_ns.errors import BenchmarkError
from maskfield_ns.evaluation.protocols.registry import BENCHMARKS

CONFIGS: dict[str, Callable[..., Any]] = {
    "3d-ovs": Ovs3dDataParserConfig,
    "lerf-ovs": LerfOvsDataParserConfig,
    "lerf-mask": LerfMaskDataParserConfig,
    "replica": ReplicaDataParserConfig,
    "scannet": ScanNetOvDataParserConfig,
    "mipnerf360": lambda **more: MipNerf360DataParserConfig(downscale_factor=8, **more),
    "semantic-nerf": ReplicaDataParserConfig,
}
TRAINS_ON_LABELLED = ("3d-ovs", "lerf-ovs", "mipnerf360")


@pytest.fixture(scope="module")
def capture() -> formats.Source:
    return source()


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory, capture: formats.Source) -> dict[str, Path]:
    return {kind: scene(tmp_path_factory.mktemp(kind), kind, capture) for kind in CONFIGS}


@pytest.fixture
def copy(scenes: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    """A scene (with what lies beside it) that may be broken."""

    def make(kind: str) -> Path:
        top = scenes[kind] if kind != "semantic-nerf" else scenes[kind].parent
        shutil.copytree(top.parent, tmp_path / kind)
        return tmp_path / kind / scenes[kind].relative_to(top.parent)

    return make


def parse(kind: str, data: Path, of: str = "train", **options: Any) -> DataparserOutputs:
    return CONFIGS[kind](data=data, **options).setup().get_dataparser_outputs(split=of)


def frame_of(kind: str, path: Path) -> int:
    """Index in the capture of an image of a scene."""
    number = layouts.number_in(path.stem)
    assert number is not None
    if kind == "mipnerf360":
        return number - 5400
    if kind == "lerf-ovs":
        return number - 1 if number < 3 else number - 2
    return number - 1 if kind == "lerf-mask" and path.stem.startswith("frame") else number


# --- geometry ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CONFIGS)
def test_points_fall_on_the_pixels_they_were_seen_at(
    kind: str, scenes: dict[str, Path], capture: formats.Source
) -> None:
    assert capture.points is not None
    for split in ("train", "test"):
        outputs = parse(kind, scenes[kind], split)
        transform = outputs.dataparser_transform.numpy().astype(np.float64)
        world = capture.points[0][::50]
        moved = (world @ transform[:, :3].T + transform[:, 3]) * outputs.dataparser_scale
        for index, path in enumerate(outputs.image_filenames):
            frame = capture.frames[frame_of(kind, path)]
            with Image.open(path) as picture:
                width, height = picture.size
            cameras = outputs.cameras
            assert (int(cameras.width[index]), int(cameras.height[index])) == (width, height)
            pose = cameras.camera_to_worlds[index].numpy().astype(np.float64)
            seen = (moved - pose[:, 3]) @ pose[:, :3]
            front = seen[:, 2] < -0.05 * outputs.dataparser_scale
            matrix = np.array(
                [
                    [cameras.fx[index, 0], 0, cameras.cx[index, 0]],
                    [0, cameras.fy[index, 0], cameras.cy[index, 0]],
                    [0, 0, 1],
                ]
            ).astype(np.float64)
            k1, k2, k3, k4, p1, p2 = (
                np.zeros(6) if cameras.distortion_params is None else cameras.distortion_params[index]
            )
            assert k3 == k4 == 0
            lens = np.array([float(each) for each in (k1, k2, p1, p2)])
            got = cv2.projectPoints(seen[front] * [1, -1, -1], np.zeros(3), np.zeros(3), matrix, lens)[0][:, 0]

            original = np.linalg.inv(frame.pose)
            local = (world @ original[:3, :3].T + original[:3, 3])[front]
            (fx, fy), (cx, cy) = capture.focal, capture.centre
            u, v = fx * local[:, 0] / -local[:, 2] + cx, fy * -local[:, 1] / -local[:, 2] + cy
            own_width, own_height = capture.size
            if kind == "semantic-nerf":
                u, v = u + (width - own_width) // 2, v + (height - own_height) // 2
                wanted = np.stack([u, v], axis=1)
                tolerance = 0.02 * width  # the padded picture has 90 degrees to the pixel
            else:
                if kind == "mipnerf360":
                    bent = cv2.projectPoints(
                        local * [1, -1, -1], np.zeros(3), np.zeros(3),
                        np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1.0]]), np.array([-0.04, 0.01, 0.001, -0.001]),
                    )[0][:, 0]  # fmt: skip
                    u, v = bent.T
                wanted = np.stack([u * width / own_width, v * height / own_height], axis=1)
                tolerance = 0.02 * width if kind == "3d-ovs" else 0.05
            inside = ((wanted >= 0) & (wanted < [width, height])).all(axis=1)
            assert inside.sum() >= 3
            assert np.abs(got - wanted)[inside].max() < tolerance
            if kind == "3d-ovs":  # one focal length for both axes of a slightly stretched picture
                assert np.abs(got - wanted)[inside].mean() < 0.5


@pytest.mark.parametrize("kind", ["lerf-ovs", "lerf-mask", "mipnerf360"])
def test_seed_points_come_from_the_model(kind: str, scenes: dict[str, Path], capture: formats.Source) -> None:
    outputs = parse(kind, scenes[kind])
    assert capture.points is not None
    moved, transform = outputs.metadata["points3D_xyz"], outputs.dataparser_transform
    world = torch.from_numpy(capture.points[0].astype(np.float32))
    assert torch.allclose(moved, (world @ transform[:, :3].T + transform[:, 3]) * outputs.dataparser_scale, atol=1e-4)
    assert np.array_equal(outputs.metadata["points3D_rgb"].numpy(), capture.points[1])


# --- splits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CONFIGS)
def test_splits(kind: str, scenes: dict[str, Path], capture: formats.Source) -> None:
    train, test = (parse(kind, scenes[kind], split) for split in ("train", "test"))
    strict = parse(kind, scenes[kind], "train", split="strict")
    benchmark = train.metadata["benchmark"]
    labelled = {path.stem for path in test.image_filenames}
    trained = {path.stem for path in train.image_filenames}
    held_out = {path.stem for path in strict.image_filenames}
    assert list(benchmark["views"]) == [path.stem for path in test.image_filenames]
    assert not labelled & held_out and len(held_out) >= 2
    assert benchmark["labelled_views_trained"] == (kind in TRAINS_ON_LABELLED)
    assert labelled <= trained if kind in TRAINS_ON_LABELLED else not labelled & trained
    assert strict.metadata["benchmark"]["labelled_views_trained"] is False
    assert strict.metadata["benchmark"]["split"] == "strict"
    if kind in TRAINS_ON_LABELLED:
        assert len(trained) == len(capture.frames)
        assert [frame_of(kind, path) for path in test.image_filenames] == capture.labelled
    # Held-out and trained views are in one frame of the scene.
    again = parse(kind, scenes[kind], "train")
    assert torch.equal(again.cameras.camera_to_worlds, train.cameras.camera_to_worlds)
    assert torch.equal(test.dataparser_transform, strict.dataparser_transform)


def test_views_by_stem_and_not_by_number(scenes: dict[str, Path]) -> None:
    views = parse("lerf-ovs", scenes["lerf-ovs"]).metadata["benchmark"]["views"]
    assert all(stem == view for stem, view in views.items())
    assert "frame_00003" not in {path.stem for path in (scenes["lerf-ovs"] / "images").iterdir()}


def test_frames_that_are_numbered_find_their_images(scenes: dict[str, Path]) -> None:
    views = parse("mipnerf360", scenes["mipnerf360"]).metadata["benchmark"]["views"]
    assert all(int(image[4:]) - 5400 == int(view[6:]) - 1 for image, view in views.items())


def test_lerf_mask_numbers_count_test_images(scenes: dict[str, Path]) -> None:
    views = parse("lerf-mask", scenes["lerf-mask"]).metadata["benchmark"]["views"]
    tests = sorted(path.stem for path in (scenes["lerf-mask"] / "images").glob("test_*"))
    assert len(tests) == 4
    assert views == {tests[0]: "0", tests[2]: "2", tests[3]: "3"}
    train = {path.stem for path in parse("lerf-mask", scenes["lerf-mask"]).image_filenames}
    assert not train & set(tests), "a test view without masks does not train either"


def test_every_tenth_frame_tests_and_broken_poses_are_left_out(
    scenes: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    outputs = parse("scannet", scenes["scannet"])
    assert list(outputs.metadata["benchmark"]["views"]) == ["000000", "000010"]
    assert {"000003", "000005"}.isdisjoint(path.stem for path in outputs.image_filenames)
    assert len(outputs.image_filenames) == 14 - 2 - 2
    assert "2 of 14 frames are left out" in " ".join(capsys.readouterr().out.split())


def test_semantic_nerf_trains_and_tests_on_its_own_numbers(scenes: dict[str, Path]) -> None:
    numbers = [[layouts.number_in(p.stem) for p in parse("semantic-nerf", scenes["semantic-nerf"], s).image_filenames]
               for s in ("train", "test")]  # fmt: skip
    assert numbers == [[0, 5, 10], [2, 7, 12]]


# --- sizes ------------------------------------------------------------------------------------------------------------


def test_3d_ovs_is_an_eighth_and_kept(copy: Callable[[str], Path]) -> None:
    data = copy("3d-ovs")
    shutil.rmtree(data / "images_8", ignore_errors=True)
    outputs = parse("3d-ovs", data)
    with Image.open(data / "images" / "00.jpg") as full, Image.open(outputs.image_filenames[0]) as small:
        assert small.size == (int(full.width / 8), int(full.height / 8))
        assert full.width % 8 and full.height % 8
    before = {path: path.stat().st_mtime_ns for path in (data / "images_8").iterdir()}
    parse("3d-ovs", data, "test")
    assert before == {path: path.stat().st_mtime_ns for path in (data / "images_8").iterdir()}
    assert len(before) == 14


def test_copies_that_exist_are_used_whatever_their_rounding(scenes: dict[str, Path], capture: formats.Source) -> None:
    outputs = parse("mipnerf360", scenes["mipnerf360"])
    assert {path.parent.name for path in outputs.image_filenames} == {"images_8"}
    assert int(outputs.cameras.width[0]) == capture.size[0] + 1
    scale = (capture.size[0] + 1) / capture.size[0]
    assert float(outputs.cameras.fx[0]) == pytest.approx(capture.focal[0] * scale, rel=1e-4)
    assert torch.allclose(outputs.cameras.distortion_params[0], torch.tensor([-0.04, 0.01, 0, 0, 0.001, -0.001]))


def test_a_copy_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "images" / "a.png")
    with pytest.raises(BenchmarkError, match="too small"):
        downscaled([tmp_path / "images" / "a.png"], 8)
    (tmp_path / "images_2").write_text("in the way")
    with pytest.raises(BenchmarkError, match="Cannot write"):
        downscaled([tmp_path / "images" / "a.png"], 2)


# --- what is missing or wrong -----------------------------------------------------------------------------------------


def refused(kind: str, data: Path, *parts: str, **options: Any) -> None:
    with pytest.raises(BenchmarkError) as caught:
        parse(kind, data, **options)
    message = str(caught.value)
    for part in parts:
        assert part in message, message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("kind", "missing", "parts"),
    [
        ("3d-ovs", "images", ("images", "There is no folder")),
        ("3d-ovs", "poses_bounds.npy", ("poses_bounds.npy", "LLFF")),
        ("3d-ovs", "images/03.jpg", ("14 poses", "13 images", "half downloaded")),
        ("3d-ovs", "segmentations", ("segmentations", "one folder per labelled view")),
        ("lerf-ovs", "sparse/0/cameras.bin", ("sparse/0/cameras.bin",)),
        ("lerf-ovs", "sparse", ("sparse/0",)),
        ("lerf-ovs", "images/frame_00007.jpg", ("frame_00007.jpg", "half downloaded")),
        ("lerf-ovs", "../label", ("label/tabletop", "--labels")),
        ("mipnerf360", "../label/tabletop/frame_00002.jpg", ("frame_00002.jpg", "--match number")),
        ("lerf-mask", "images_train", ("images_train",)),
        ("lerf-mask", "test_mask", ("test_mask",)),
        ("replica", "pose_300", ("pose_300",)),
        ("replica", "pose_300/pose_0004.txt", ("1 of 14 images have no pose", "rgb_0004.jpg", "half downloaded")),
        ("replica", "semantic_300/semantic_0010.png", ("have no label", "rgb_0010.jpg")),
        ("replica", "intrinsics.txt", ("intrinsics.txt",)),
        ("replica", "rgb_300", ("no scene of a known packaging", "rgb_300")),
        ("scannet", "semantic", ("semantic",)),
        ("semantic-nerf", "traj_w_c.txt", ("traj_w_c.txt",)),
        ("semantic-nerf", "semantic_class/semantic_class_7.png", ("no label", "rgb_7.png")),
    ],
)
def test_missing_files_are_named_with_their_place(
    kind: str, missing: str, parts: tuple[str, ...], copy: Callable[[str], Path]
) -> None:
    data = copy(kind)
    path = data / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    refused(kind, data, *parts)


def test_no_scene(tmp_path: Path) -> None:
    for kind in CONFIGS:
        refused(kind, tmp_path / "nowhere", "nowhere", "--data")


def test_damaged_models(copy: Callable[[str], Path]) -> None:
    data = copy("lerf-ovs")
    whole = (data / "sparse/0/images.bin").read_bytes()
    (data / "sparse/0/images.bin").write_bytes(whole[: len(whole) // 2])
    refused("lerf-ovs", data, "images.bin", "damaged")
    (data / "sparse/0/images.bin").write_bytes(whole)
    (data / "sparse/0/points3D.bin").write_bytes(b"xx")
    refused("lerf-ovs", data, "points3D.bin", "damaged")


def test_poses_that_do_not_fit(copy: Callable[[str], Path]) -> None:
    data = copy("3d-ovs")
    rows = np.load(data / "poses_bounds.npy")
    rows[2, :15] = np.nan
    np.save(data / "poses_bounds.npy", rows)
    outputs = parse("3d-ovs", data)
    assert "02" not in {path.stem for path in outputs.image_filenames} and len(outputs.image_filenames) == 13
    np.save(data / "poses_bounds.npy", rows[:, :16])
    refused("3d-ovs", data, "17 numbers")
    (data / "poses_bounds.npy").write_bytes(b"nonsense")
    refused("3d-ovs", data, "poses_bounds.npy")
    data = copy("replica")
    (data / "pose_300/pose_0001.txt").write_text("1 0 0")
    refused("replica", data, "pose_0001.txt", "4x4", "3")
    (data / "pose_300/pose_0001.txt").write_text("a b c")
    refused("replica", data, "pose_0001.txt")


def test_a_labelled_view_without_a_pose_is_said_to_be_lost(copy: Callable[[str], Path]) -> None:
    data = copy("scannet")
    np.savetxt(data / "pose/000010.txt", np.full((4, 4), np.nan))
    benchmark = parse("scannet", data).metadata["benchmark"]
    assert benchmark["views"] == {"000000": "000000"} and benchmark["views_without_camera"] == ["000010"]
    np.savetxt(data / "pose/000000.txt", np.full((4, 4), np.nan))
    refused("scannet", data, "None of the labelled views")


def test_images_of_another_shape_than_their_camera(copy: Callable[[str], Path]) -> None:
    data = copy("lerf-ovs")
    Image.new("RGB", (80, 80)).save(data / "images/frame_00001.jpg")
    refused("lerf-ovs", data, "frame_00001.jpg", "80x80", "aspect")


def test_labelled_frames_without_an_image(copy: Callable[[str], Path]) -> None:
    data = copy("lerf-ovs")
    labels = data.parent / "label" / data.name
    (labels / "frame_00999.json").write_text("{}")
    refused("lerf-ovs", data, "frame_00999", "images")
    data = copy("3d-ovs")
    (data / "segmentations" / "77").mkdir()
    refused("3d-ovs", data, "77")
    data = copy("lerf-mask")
    (data / "test_mask" / "9").mkdir()
    refused("lerf-mask", data, "test image number 9", "0 to 3")
    (data / "test_mask" / "9").rename(data / "test_mask" / "extra")
    refused("lerf-mask", data, "extra")


def test_numbered_frames_must_show_the_same_picture(copy: Callable[[str], Path]) -> None:
    data = copy("mipnerf360")
    labels = data.parent / "label" / data.name
    name = min(path.stem for path in labels.glob("*.json"))
    with Image.open(labels / f"{name}.jpg") as picture:
        size = picture.size
    Image.new("RGB", size, (255, 0, 255)).save(labels / f"{name}.jpg")
    refused("mipnerf360", data, f"{name}.jpg", "do not belong together")
    (labels / f"{name}.jpg").unlink()
    refused("mipnerf360", data, "--match number")
    assert parse("mipnerf360", data, match="number").metadata["benchmark"]["views"]


def test_labels_elsewhere(copy: Callable[[str], Path], tmp_path: Path) -> None:
    data = copy("lerf-ovs")
    (data.parent / "label" / data.name).rename(tmp_path / "elsewhere")
    outputs = parse("lerf-ovs", data, labels=tmp_path / "elsewhere")
    assert outputs.metadata["benchmark"]["labels"] == str(tmp_path / "elsewhere")


def test_parsers_read_no_label(copy: Callable[[str], Path]) -> None:
    """With every label file made unreadable, the scenes still parse: only names of labels matter."""
    for kind, patterns in {
        "3d-ovs": ["segmentations/*/*.png", "segmentations/classes.txt"],
        "lerf-ovs": ["../label/tabletop/*.json", "../label/tabletop/*.jpg"],
        "lerf-mask": ["test_mask/*/*.png", "object_mask/*.png"],
        "replica": ["semantic_300/*", "classes.txt"],
        "scannet": ["semantic/*", "classes.txt"],
        "mipnerf360": ["../label/tabletop/*.json"],
        "semantic-nerf": ["semantic_class/*", "classes.txt"],
    }.items():
        data = copy(kind)
        for pattern in patterns:
            files = list(data.parent.glob(f"{data.name}/{pattern}")) if ".." not in pattern else list(
                (data.parent / "label" / data.name).glob(Path(pattern).name)
            )  # fmt: skip
            assert files
            for path in files:
                path.write_bytes(b"not to be read")
        for split in ("train", "test"):
            assert parse(kind, data, split).image_filenames


def test_class_files(tmp_path: Path) -> None:
    path = tmp_path / "classes.txt"
    path.write_bytes(b"\xef\xbb\xbfred bag\r\n camera \r\nXbox controller\r\n\r\n\r\n")
    assert layouts.read_class_file(path) == ["red bag", "camera", "Xbox controller"]
    path.write_bytes(b"\nwall\nfloor\n")
    assert layouts.read_class_file(path) == ["", "wall", "floor"]
    for text, parts in (
        ("wall\n\nfloor\n", ("line 2 is empty",)),
        ("wall\nfloor\nwall\n", ("'wall'", "lines 1, 3")),
        ("\r\n \n", ("is empty",)),
    ):
        path.write_text(text)
        with pytest.raises(BenchmarkError) as caught:
            layouts.read_class_file(path)
        assert all(part in str(caught.value) for part in (*parts, str(path)))
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BenchmarkError, match="UTF-8"):
        layouts.read_class_file(path)
    with pytest.raises(BenchmarkError, match="no class list"):
        layouts.read_class_file(tmp_path / "absent.txt")


def test_class_ids_of_replica_are_sorted_and_of_scannet_are_not(scenes: dict[str, Path]) -> None:
    replica = layouts.indexed_classes(layouts.indexed_scene(scenes["replica"]), "replica")
    assert replica == sorted(replica) and replica[0] == " " and "elephant" in replica
    scannet = layouts.indexed_classes(layouts.indexed_scene(scenes["scannet"]), "scannet")
    assert scannet[0] == " " and scannet[1:] == sorted(scannet[1:], reverse=True)


def test_help_shows_the_tree() -> None:
    for config, places in (
        (Ovs3dDataParserConfig, ("poses_bounds.npy", "segmentations/NN/CLASS.png")),
        (LerfOvsDataParserConfig, ("sparse/0", "../label/SCENE/frame_XXXXX.json")),
        (MipNerf360DataParserConfig, ("images_2/", "../label/SCENE/frame_XXXXX.json")),
        (LerfMaskDataParserConfig, ("images_train/", "test_mask/K/PROMPT.png")),
        (ReplicaDataParserConfig, ("pose_300/*.txt", "traj_w_c.txt")),
        (ScanNetOvDataParserConfig, ("pose/*.txt", "intrinsics.txt")),
    ):
        shown = "".join(tyro.extras.get_parser(config).format_help().replace("│", "").split())
        assert all(place in shown for place in places), shown


def test_label_json_is_json(scenes: dict[str, Path]) -> None:
    """The fixture keeps the real schema: flat rings, absolute corners."""
    path = next((scenes["lerf-ovs"].parent / "label" / "tabletop").glob("*.json"))
    data = json.loads(path.read_text())
    assert set(data) == {"info", "objects"}
    first = data["objects"][0]
    assert np.asarray(first["segmentation"]).ndim == 2 and len(first["bbox"]) == 4
    assert any(each["bbox"][0] > each["bbox"][2] for each in data["objects"]), "corners in any order"


def registered() -> dict[str, str]:
    """Entry points of pyproject.toml."""
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    with (Path(__file__).resolve().parents[1] / "pyproject.toml").open("rb") as file:
        return tomllib.load(file)["project"]["entry-points"]["nerfstudio.dataparser_configs"]


def test_entry_points_are_specifications_of_all_protocols() -> None:
    protocols = set()
    for place in registered().values():
        module, name = place.split(":")
        specification = getattr(importlib.import_module(module), name)
        assert isinstance(specification, DataParserSpecification)
        protocols.add(specification.config._target.protocol)  # type: ignore[attr-defined]
    assert protocols == set(BENCHMARKS)


def test_nerfstudio_loads_them_while_it_is_half_imported() -> None:
    """Registration by environment variable happens at the same moment as by entry point."""
    pairs = registered()
    code = (
        "import importlib.metadata as m; m.entry_points = lambda **k: m.EntryPoints()\n"
        "import nerfstudio.data.datamanagers.base_datamanager\n"
        "from nerfstudio.configs.dataparser_configs import all_dataparsers\n"
        f"missing = set({sorted(pairs)!r}) - set(all_dataparsers)\n"
        "assert not missing, missing\n"
    )
    variable = ",".join(f"{name}={place}" for name, place in pairs.items())
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | {"NERFSTUDIO_DATAPARSER_CONFIGS": variable},
        cwd=Path(__file__).parents[1],
        timeout=300,
    )
    assert result.returncode == 0, result.stdout + result.stderr
