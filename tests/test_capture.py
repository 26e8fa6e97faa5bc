"""check_capture: every kind of broken capture ends in one message that names the fault; odd but sound ones pass."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from captures import make_capture, pose, read_transforms, write_image, write_transforms
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig

from maskfield_ns.data.capture import check_capture
from maskfield_ns.errors import CaptureError


def test_sound_capture_is_described(tmp_path: Path) -> None:
    summary = check_capture(make_capture(tmp_path))
    assert len(summary) == 8
    assert summary.folder == tmp_path
    assert summary.sizes == ((40, 30),) * 8
    assert summary.downscale_factor == 1
    assert summary.splits is not None
    assert summary.splits["test"] == ("images/frame_02.png", "images/frame_05.png")
    assert len(summary.splits["train"]) == 6
    assert check_capture(tmp_path / "transforms.json") == summary


def test_odd_names_folders_and_per_frame_intrinsics_pass(tmp_path: Path) -> None:
    names = ["images/left/a b.png", "images/right/a b.png", "images/Küche 厨房.png", "b.png"]
    summary = check_capture(make_capture(tmp_path, names, per_frame=True, held_out=None))
    assert sorted(summary.names) == sorted(names)
    assert summary.splits is None


@pytest.mark.parametrize("factor", [None, 2])
def test_order_and_files_are_those_of_nerfstudio(tmp_path: Path, factor: int | None) -> None:
    names = ["images/b.png", "images/a b.png", "images/a/x.png", "images/a.png"]
    make_capture(tmp_path, names, held_out=None)
    for name in names:
        write_image(tmp_path / "images_2" / Path(name).name, 20, 15)
    summary = check_capture(tmp_path, downscale_factor=factor)
    parser = NerfstudioDataParserConfig(data=tmp_path, downscale_factor=factor, eval_mode="all").setup()
    assert list(summary.image_paths) == parser.get_dataparser_outputs("train").image_filenames
    assert summary.downscale_factor == (factor or 1)
    for path, name in zip(summary.image_paths, summary.names, strict=True):
        assert path.name == Path(name).name


@pytest.mark.parametrize(("with_copies", "factor"), [(True, 2), (False, 1)])
def test_automatic_downscaling_follows_nerfstudio(tmp_path: Path, with_copies: bool, factor: int) -> None:
    make_capture(tmp_path, size=(1700, 20), held_out=None)
    if with_copies:
        for index in range(8):
            write_image(tmp_path / "images_2" / f"frame_{index:02d}.png", 850, 10)
    summary = check_capture(tmp_path)
    parser = NerfstudioDataParserConfig(data=tmp_path, eval_mode="all").setup()
    outputs = parser.get_dataparser_outputs("train")
    assert summary.downscale_factor == parser.downscale_factor == factor
    assert list(summary.image_paths) == outputs.image_filenames


def edit(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """A way to break a capture by editing its transforms.json."""

    def apply(folder: Path) -> None:
        meta = read_transforms(folder)
        change(meta)
        write_transforms(folder, meta)

    return apply


def frame(index: int, **values: Any) -> Callable[[Path], None]:
    return edit(lambda meta: meta["frames"][index].update(values))


def nan_pose() -> list[list[float]]:
    matrix = pose(0, 8)
    matrix[1][3] = math.nan
    return matrix


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no transforms": (lambda f: (f / "transforms.json").unlink(), "no transforms.json"),
    "broken json": (lambda f: (f / "transforms.json").write_text('{"frames": [\n  {,\n]}'), "line 2, column 4"),
    "not utf-8": (lambda f: (f / "transforms.json").write_bytes(b'{"a": "\xff"}'), "not UTF-8"),
    "a list": (lambda f: (f / "transforms.json").write_text("[]"), "JSON object"),
    "no frames key": (edit(lambda m: m.pop("frames")), 'no list of "frames"'),
    "no frames": (edit(lambda m: m.update(frames=[])), "no frames"),
    "one frame": (edit(lambda m: m.update(frames=m["frames"][:1])), "only one frame"),
    "no file_path": (edit(lambda m: m["frames"][3].pop("file_path")), 'frame 3 has no "file_path"'),
    "duplicate": (frame(1, file_path="./images/frame_00.png"), r"1 image \(images/frame_00.png\) more than once"),
    "3x4 pose": (frame(2, transform_matrix=pose(2, 8)[:3]), "images/frame_02.png is not a 4x4"),
    "ragged pose": (frame(2, transform_matrix=[[1, 2], [3]]), "images/frame_02.png is not a 4x4"),
    "no pose": (edit(lambda m: m["frames"][4].pop("transform_matrix")), "images/frame_04.png is not a 4x4"),
    "NaN pose": (frame(0, transform_matrix=nan_pose()), "images/frame_00.png holds NaN"),
    "one place": (
        edit(lambda m: [f.update(transform_matrix=pose(0, 8)) for f in m["frames"]]),
        "all 8 cameras at the same place",
    ),
    "no focal": (edit(lambda m: m.pop("fl_x")), 'gives no "fl_x"'),
    "zero focal": (edit(lambda m: m.update(fl_y=0)), '"fl_y" is 0'),
    "text width": (edit(lambda m: m.update(w="40")), "\"w\" is '40'"),
    "camera model": (edit(lambda m: m.update(camera_model="PINWHEEL")), "'PINWHEEL'"),
    "missing image": (lambda f: (f / "images/frame_03.png").unlink(), r"frame_03.png\) that does not exist \(1 of 8"),
    "missing images": (
        lambda f: [path.unlink() for path in (f / "images").iterdir()],
        r"8 images \(images/frame_00.png, images/frame_01.png, images/frame_02.png, ...\) that do not exist",
    ),
    "no extension": (
        edit(lambda m: (m["frames"][0].update(file_path="images/frame_00"), [m.pop(f"{s}_filenames") for s in SPLITS])),
        "frame_00.png exists: write file names with their extension",
    ),
    "other size": (lambda f: write_image(f / "images/frame_01.png", 30, 40), "is 30x40, but .* declares 40x30"),
    "not an image": (lambda f: (f / "images/frame_01.png").write_bytes(b"hello"), "frame_01.png cannot be read"),
    "empty image": (lambda f: (f / "images/frame_01.png").write_bytes(b""), "frame_01.png cannot be read"),
    "palette": (lambda f: write_image(f / "images/frame_01.png", 40, 30, "P"), "color mode P"),
    "mixed alpha": (lambda f: write_image(f / "images/frame_01.png", 40, 30, "RGBA"), "alpha channel"),
    "unknown split": (edit(lambda m: m["test_filenames"].append("images/zz.png")), r"lists 1 file \(images/zz.png\)"),
    "half a split": (edit(lambda m: m.pop("val_filenames")), 'no "val_filenames"'),
    "split not a list": (edit(lambda m: m.update(train_filenames="all")), '"train_filenames" must be a list'),
    "tiny train split": (edit(lambda m: m.update(train_filenames=["images/frame_00.png"])), "fewer than two"),
    "some masks": (frame(0, mask_path="masks/a.png"), "for 1 of 8 frames"),
    "no mask files": (
        edit(lambda m: [f.update(mask_path=f"masks/{i}.png") for i, f in enumerate(m["frames"])]),
        r"8 masks .* do not exist",
    ),
}
SPLITS = ("train", "val", "test")


@pytest.mark.parametrize("fault", BROKEN)
def test_broken_capture_is_refused_with_the_reason(tmp_path: Path, fault: str) -> None:
    damage, message = BROKEN[fault]
    make_capture(tmp_path)
    damage(tmp_path)
    with pytest.raises(CaptureError, match=message) as caught:
        check_capture(tmp_path)
    assert "\n" not in str(caught.value)


def test_missing_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CaptureError, match=r"No such capture: nowhere \(looked in .*\)"):
        check_capture(Path("nowhere"))
    with pytest.raises(CaptureError, match="No such capture"):
        check_capture(tmp_path / "other.json")


def test_downscaled_copies(tmp_path: Path) -> None:
    make_capture(tmp_path, size=(41, 30), held_out=None)
    with pytest.raises(CaptureError, match=r"no folder .*images_4"):
        check_capture(tmp_path, downscale_factor=4)
    for index in range(8):
        write_image(tmp_path / "images_2" / f"frame_{index:02d}.png", 21, 15)  # rounded up: 41 / 2
    assert check_capture(tmp_path, downscale_factor=2).sizes == ((21, 15),) * 8
    write_image(tmp_path / "images_2" / "frame_03.png", 41, 30)
    with pytest.raises(CaptureError, match=r"is 41x30, but .* declares 20x15 after downscaling by 2"):
        check_capture(tmp_path, downscale_factor=2)


def test_equal_stems_collide_only_when_downscaled(tmp_path: Path) -> None:
    make_capture(tmp_path, ["left/a.png", "right/a.png", "right/b.png"], held_out=None)
    assert len(check_capture(tmp_path)) == 3
    with pytest.raises(CaptureError, match=r"share 1 file name \(a.png\)"):
        check_capture(tmp_path, downscale_factor=2)


def test_cameras_alone_are_enough_without_images(tmp_path: Path) -> None:
    make_capture(tmp_path)
    for path in (tmp_path / "images").iterdir():
        path.unlink()
    summary = check_capture(tmp_path, downscale_factor=4, images=False)
    assert (len(summary), summary.sizes, summary.downscale_factor) == (8, (), 1)
    (tmp_path / "transforms.json").write_text("{")
    with pytest.raises(CaptureError):
        check_capture(tmp_path, images=False)


def test_no_pixel_is_decoded(tmp_path: Path) -> None:
    """A thousand images: one real file behind many names, cut off after its header, so that decoding would fail."""
    make_capture(tmp_path, ["images/0.png", "images/1.png"], size=(640, 480), held_out=None)
    whole = (tmp_path / "images/0.png").read_bytes()
    (tmp_path / "images/0.png").write_bytes(whole[:64])
    meta = read_transforms(tmp_path)
    for index in range(1, 1000):
        if index > 1:
            os.link(tmp_path / "images/0.png", tmp_path / f"images/{index}.png")
            meta["frames"].append({"file_path": f"images/{index}.png", "transform_matrix": pose(index, 1000)})
    (tmp_path / "transforms.json").write_text(json.dumps(meta))
    assert len(check_capture(tmp_path)) == 1000
