"""Benchmark dataparsers: geometry against the capture that a scene was made of, splits, sizes, registration."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import tyro
from fixtures_on_disk import CONFIGS, formats, frame_of, parse
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

pytest_plugins = ("fixtures_on_disk",)
TRAINS_ON_LABELLED = ("3d-ovs", "lerf-ovs", "mipnerf360")

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


# --- what users see --------------------------------------------------------------------------------------------------


def test_class_ids_of_replica_are_sorted_and_of_scannet_are_not(scenes: dict[str, Path]) -> None:
    replica = layouts.indexed_classes(layouts.indexed_scene(scenes["replica"]), "replica").names
    assert list(replica) == sorted(replica) and replica[0] == " " and "elephant" in replica
    scannet = layouts.indexed_classes(layouts.indexed_scene(scenes["scannet"]), "scannet").names
    assert scannet[0] == " " and list(scannet[1:]) == sorted(scannet[1:], reverse=True)


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
