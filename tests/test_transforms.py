"""Values of transforms.json: each that cannot be used is named with file and key; what can be derived is derived."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from captures import make_capture, pose, read_transforms, write_image, write_transforms

from maskfield_ns.data.capture import check_capture
from maskfield_ns.data.lenses import folded_share
from maskfield_ns.errors import CaptureError

ANYTHING = [5, None, {}, [[1]], [[math.nan] * 4] * 4, math.nan, -1, 0, True]
TEXTS = ["abc", "../../etc/passwd", "x" * 5000, ""]


def refused(folder: Path, *parts: str, **options: Any) -> str:
    with pytest.raises(CaptureError) as caught:
        check_capture(folder, **options)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 700
    for part in parts:
        assert part in message, message
    return message


def of_all(key: str, value: Any) -> Callable[[dict[str, Any]], object]:
    return lambda meta: meta.update({key: value})


def of_frames(key: str, value: Any) -> Callable[[dict[str, Any]], object]:
    return lambda meta: [frame.update({key: value}) for frame in meta["frames"]]


CASES = [
    *(("orientation_override", of_all("orientation_override", v)) for v in [*ANYTHING, *TEXTS]),
    *(("applied_transform", of_all("applied_transform", v)) for v in [*ANYTHING, *TEXTS, [[0.0] * 4] * 3]),
    *(("applied_scale", of_all("applied_scale", v)) for v in [None, {}, [1], "1", math.nan, 0, -1, 1e300]),
    *(("ply_file_path", of_all("ply_file_path", v)) for v in [*ANYTHING, "", "x" * 5000, "a\0b"]),
    *(("mask_path", of_frames("mask_path", v)) for v in [*ANYTHING, "", "x" * 5000]),
    *(("depth_file_path", of_frames("depth_file_path", v)) for v in ANYTHING),
    *(("camera_model", of_all("camera_model", v)) for v in [*ANYTHING, *TEXTS]),
    *(("k1", of_all("k1", v)) for v in [None, [1], "abc", True, math.inf, 10**80]),
    *(("k4", of_frames("k4", v)) for v in ["images/", {}]),
    *(("distortion", of_all(key, v)) for key, v in [("distortion_params", [1, 2]), ("k1", 1e9)]),
    *((key, of_all(key, v)) for key in ("w", "fl_x") for v in [0, -1, "40", None, math.nan, 10**90]),
    *((key, of_all(key, 1e30)) for key in ("w", "h", "fl_x", "fl_y", "cx", "cy")),
    ("fl_x", of_all("fl_x", 1e-6)),
    ("file_path", of_frames("file_path", "x" * 300)),
    ("transform_matrix", of_frames("transform_matrix", [["1"] * 4] * 4)),
    ("transform_matrix", of_frames("transform_matrix", [[True] * 4] * 4)),
]


@pytest.mark.parametrize("case", range(len(CASES)))
def test_values_of_wrong_kinds_are_refused_with_file_and_key(tmp_path: Path, case: int) -> None:
    key, change = CASES[case]
    meta = read_transforms(make_capture(tmp_path))
    change(meta)
    write_transforms(tmp_path, meta)
    refused(tmp_path, key, "transforms.json")


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda m: [[2 * v for v in row] if i < 3 else row for i, row in enumerate(m)], "no rotation"),
        (lambda m: [m[0], m[1], [-v for v in m[2]], m[3]], "mirrors"),
        (lambda m: [*m[:3], [0, 0, 0, 2]], "last row"),
        (lambda m: [[*row[:3], row[3] * 1e15] for row in m[:3]] + [m[3]], "puts the camera at"),
        (lambda m: [[*row[:3], 1e8] for row in m[:3]] + [m[3]], "times farther away"),
    ],
)
def test_poses_that_are_none(tmp_path: Path, change: Callable[[Any], Any], part: str) -> None:
    meta = read_transforms(make_capture(tmp_path))
    meta["frames"][3]["transform_matrix"] = change(meta["frames"][3]["transform_matrix"])
    write_transforms(tmp_path, meta)
    refused(tmp_path, "frame_03.png", part)


def test_mixed_camera_models(tmp_path: Path) -> None:
    meta = read_transforms(make_capture(tmp_path))
    del meta["camera_model"]
    for frame in meta["frames"]:
        frame["camera_model"] = "OPENCV_FISHEYE"
    write_transforms(tmp_path, meta)
    assert check_capture(tmp_path).declared.camera_model == "OPENCV_FISHEYE"
    meta["frames"][2]["camera_model"] = "OPENCV"
    write_transforms(tmp_path, meta)
    refused(tmp_path, "mixes camera models")
    for frame in meta["frames"]:
        del frame["camera_model"]
    write_transforms(tmp_path, meta | {"is_fisheye": True})
    assert check_capture(tmp_path).declared.camera_model == "OPENCV_FISHEYE"


# --- what is derived --------------------------------------------------------------------------------------------------


def test_field_of_view_alone_is_enough(tmp_path: Path) -> None:
    """Blender's exporters give an angle, and neither size nor focal length."""
    folder = make_capture(tmp_path)
    meta = read_transforms(folder)
    plain = check_capture(folder)
    angle = 2 * math.atan(40 / (2 * 40.0))
    for key in ("w", "h", "fl_x", "fl_y", "cx", "cy"):
        del meta[key]
    write_transforms(folder, meta | {"camera_angle_x": angle})
    frame = check_capture(folder).frames[0]
    assert frame.size == plain.frames[0].size and frame.center == (20.0, 15.0)
    np.testing.assert_allclose(frame.focal, (40.0, 40.0))
    assert any("fl_x" in note and "derived" in note for note in check_capture(folder).notes)
    write_transforms(folder, meta | {"camera_angle_x": angle, "camera_angle_y": 2 * math.atan(30 / (2 * 35.0))})
    np.testing.assert_allclose(check_capture(folder).frames[0].focal, (40.0, 35.0))
    write_transforms(folder, meta | {"camera_angle_x": 7.0})
    refused(folder, "camera_angle_x", "field of view")


def test_file_names_of_windows(tmp_path: Path) -> None:
    meta = read_transforms(make_capture(tmp_path))
    for frame in meta["frames"]:
        frame["file_path"] = ".\\" + frame["file_path"].replace("/", "\\")
    for split in ("train", "val", "test"):
        meta[f"{split}_filenames"] = [name.replace("/", "\\") for name in meta[f"{split}_filenames"]]
    write_transforms(tmp_path, meta)
    assert check_capture(tmp_path).names[3] == "images/frame_03.png"


def test_images_smaller_by_a_whole_number(tmp_path: Path) -> None:
    make_capture(tmp_path, size=(161, 120))
    for index in range(8):
        write_image(tmp_path / f"images/frame_{index:02d}.png", 40, 30)
    summary = check_capture(tmp_path)
    assert summary.sizes == ((40, 30),) * 8 and any("1/4" in note for note in summary.notes)
    write_image(tmp_path / "images/frame_05.png", 54, 40)  # one by 3: no longer the same for all
    refused(tmp_path, "declares 161x120")


def test_frames_without_images(tmp_path: Path) -> None:
    make_capture(tmp_path)
    for index in (1, 2):
        (tmp_path / f"images/frame_{index:02d}.png").unlink()
    refused(tmp_path, "frame_01.png, images/frame_02.png", "2 of 8", "--missing-images skip")
    summary = check_capture(tmp_path, skip_missing=True)
    assert len(summary) == 6 and summary.splits is not None and summary.splits["test"] == ("images/frame_05.png",)
    assert any("images/frame_01.png, images/frame_02.png" in note for note in summary.notes)
    for index in range(1, 8):
        (tmp_path / f"images/frame_{index:02d}.png").unlink(missing_ok=True)
    refused(tmp_path, "1 of 8 images exist", skip_missing=True)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "LA"])
def test_masks_of_several_channels(tmp_path: Path, mode: str) -> None:
    meta = read_transforms(make_capture(tmp_path))
    for frame in meta["frames"]:
        frame["mask_path"] = frame["file_path"].replace("images", "masks")
        write_image(tmp_path / frame["mask_path"], 40, 30, "L")
    write_transforms(tmp_path, meta)
    assert len(check_capture(tmp_path).mask_paths) == 8
    write_image(tmp_path / "masks/frame_02.png", 40, 30, mode)
    refused(tmp_path, "masks/frame_02.png", f"mode {mode}", "one channel")


# --- lenses -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["OPENCV", "OPENCV_FISHEYE"])
def test_a_distortion_that_folds_inside_the_image(tmp_path: Path, model: str) -> None:
    meta = read_transforms(make_capture(tmp_path))
    write_transforms(tmp_path, meta | {"camera_model": model, "k1": -19.5})
    refused(tmp_path, "k1=-19.5", "folds inside the image")
    write_transforms(tmp_path, meta | {"camera_model": model, "k1": -0.05, "k2": 0.01})
    assert check_capture(tmp_path).notes == ()


def test_folded_share_against_the_cubic(tmp_path: Path) -> None:
    """r (1 + k r^2) turns at r^2 = -1 / (3 k), where it has reached 2 r / 3."""
    make_capture(tmp_path, size=(400, 400))
    meta = read_transforms(tmp_path) | {"fl_x": 200.0, "fl_y": 200.0, "k1": -0.3}
    write_transforms(tmp_path, meta)
    with pytest.raises(CaptureError, match="folds"):
        check_capture(tmp_path)
    meta["k1"] = -0.13
    write_transforms(tmp_path, meta)
    summary = check_capture(tmp_path)
    x = (np.arange(400) + 0.5 - 200) / 200
    reached = math.sqrt(1 / 0.39) * 2 / 3
    expected = (np.hypot(x[:, None], x[None, :]) > reached).mean()
    assert folded_share(summary.frames[0], False) == pytest.approx(expected, abs=0.01)
    assert any("near the border" in note for note in summary.notes)


# --- folders ----------------------------------------------------------------------------------------------------------


def test_a_folder_of_captures_and_a_benchmark_scene_are_told_apart(tmp_path: Path) -> None:
    make_capture(tmp_path / "one")
    refused(tmp_path, "one", "--data")
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "poses_bounds.npy").touch()
    refused(tmp_path / "two", "ovs3d-data")
    (tmp_path / "three").mkdir()
    refused(tmp_path / "three", "no transforms.json", "ns-process-data")


def test_long_and_odd_paths() -> None:
    for path in ("x" * 5000, "a\0b"):
        with pytest.raises(CaptureError):
            check_capture(Path(path))


def test_a_thousand_frames_are_checked_in_one_pass(tmp_path: Path) -> None:
    """Every frame's values, not those of the first only."""
    meta = read_transforms(make_capture(tmp_path, per_frame=True))
    meta["frames"][7]["cx"] = "middle"
    (tmp_path / "transforms.json").write_text(json.dumps(meta))
    refused(tmp_path, "cx", "frame_07.png", "'middle'")
    assert pose(0, 8) != pose(1, 8)
