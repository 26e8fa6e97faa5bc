"""What benchmark dataparsers refuse, and what they leave alone: half-downloaded scenes, broken files, labels."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fixtures_on_disk import CONFIGS, parse
from fixtures_on_disk import refused as refused_action
from PIL import Image

from maskfield_ns.data import layouts
from maskfield_ns.errors import BenchmarkError

pytest_plugins = ("fixtures_on_disk",)


def refused(kind: str, data: Path, *parts: str, **options: Any) -> None:
    """Parsing fails with one line that holds all parts."""
    refused_action(lambda: parse(kind, data, **options), *parts)


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


def test_the_root_of_a_benchmark_is_told_from_a_scene(copy: Callable[[str], Path]) -> None:
    data = copy("lerf-ovs")
    refused("lerf-ovs", data.parent, "is no scene", data.name, f"--data {data}")


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
    assert layouts.read_class_list(path).names == ("red bag", "camera", "Xbox controller")
    path.write_bytes(b"\nwall\nfloor\n")
    assert layouts.read_class_list(path).names == ("", "wall", "floor")
    for text, parts in (
        ("wall\n\nfloor\n", ("line 2 is empty",)),
        ("wall\nfloor\nwall\n", ("'wall'", "lines 1, 3")),
        ("\r\n \n", ("is empty",)),
    ):
        path.write_text(text)
        with pytest.raises(BenchmarkError) as caught:
            layouts.read_class_list(path)
        assert all(part in str(caught.value) for part in (*parts, str(path)))
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BenchmarkError, match="UTF-8"):
        layouts.read_class_list(path)
    with pytest.raises(BenchmarkError, match="no class list"):
        layouts.read_class_list(tmp_path / "absent.txt")
