"""Colours, overlays, sheets and files; what can be asserted without eyes."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage.color import rgb2lab
from skimage.segmentation import find_boundaries

from maskfield_ns.errors import MaskfieldError
from maskfield_ns.pictures.colors import UNLABELLED_COLOUR, colour_table
from maskfield_ns.pictures.sheets import (
    class_picture,
    contact_sheet,
    heat_map,
    label_picture,
    overlay,
    pca_basis,
    pca_picture,
    save_png,
    to_uint8,
)


def test_colours_are_distinct_and_extend_each_other() -> None:
    table = colour_table(256)
    assert table.shape == (256, 3)
    assert table.dtype == np.uint8
    assert len(np.unique(table, axis=0)) == 256
    assert np.array_equal(colour_table(10), table[:10])
    assert np.array_equal(colour_table(300)[256:], table[:44])
    assert colour_table(0).shape == (0, 3)
    # Perceptual distance by scikit-image's own conversion; about 2 is just noticeable.
    for count, least in ((10, 40), (24, 25), (256, 5)):
        lab = rgb2lab(np.concatenate([table[:count], [UNLABELLED_COLOUR]]).astype(np.uint8)[None])[0]
        distance = np.linalg.norm(lab[:, None] - lab[None], axis=-1) + 1e3 * np.eye(count + 1)
        assert distance.min() > least


def test_label_picture_greys_what_is_nothing() -> None:
    picture = label_picture(np.array([[0, 1, 300, -1]]))
    assert picture[0, 0].tolist() == picture[0, 3].tolist() == list(UNLABELLED_COLOUR)
    assert np.array_equal(picture[0, 1], colour_table(2)[1])
    assert np.array_equal(picture[0, 2], colour_table(256)[300 - 256])
    colour_table(3)[:] = 0  # a caller's change stays with the caller
    assert np.array_equal(picture, label_picture(np.array([[0, 1, 300, -1]])))


def test_class_picture_has_map_and_legend() -> None:
    class_map = np.array([[0, 1], [-1, 1]])
    picture = class_picture(class_map, ["duck", "mug", "not here"])
    assert picture.shape[1] == 320
    assert picture.shape[0] > 320
    assert np.array_equal(picture[:320, :320][::160, ::160], label_picture(class_map, nothing=-1))
    legend = picture[320:].reshape(-1, 3)
    for colour in colour_table(3):
        assert (legend == colour).all(axis=1).sum() > 50
    many = class_picture(np.zeros((4, 500), int), [f"a rather long class name {i}" for i in range(40)])
    assert many.shape[1] == 500
    with pytest.raises(ValueError, match="has no name"):
        class_picture(class_map, ["duck"])


def test_heat_map_runs_from_blue_to_red() -> None:
    picture = heat_map(np.array([[0.0, 0.15, 0.5, 0.85, 1.0, -3.0, 7.0, np.nan]]))[0].astype(int)
    assert picture[1][2] > picture[1][0]
    assert picture[2][1] == picture[2].max()
    assert picture[3][0] > picture[3][2]
    assert np.array_equal(picture[5], picture[0])
    assert np.array_equal(picture[6], picture[4])
    assert picture[7].tolist() == [128, 128, 128]


def test_overlay_tints_inside_and_draws_the_boundary() -> None:
    rgb = np.random.default_rng(0).integers(60, 200, (40, 50, 3)).astype(np.uint8)
    mask = np.zeros((40, 50), bool)
    mask[10:25, 20:50] = True  # cut by the right edge
    before, colour = rgb.copy(), (250, 10, 20)
    tinted = overlay(rgb, mask, colour, outline=False)
    assert np.array_equal(rgb, before)
    assert np.array_equal(tinted[~mask], rgb[~mask])
    assert np.abs(tinted[mask] - (0.55 * rgb[mask] + 0.45 * np.array(colour))).max() <= 0.5001
    lined = overlay(rgb, mask, colour)
    inner = find_boundaries(mask, connectivity=1, mode="inner")
    outer = find_boundaries(mask, connectivity=1, mode="outer")
    assert (lined[inner] == colour).all()
    assert (lined[outer] == 20).all()
    rest = ~inner & ~outer
    assert np.array_equal(lined[rest], tinted[rest])


def test_overlay_of_nothing_and_everything() -> None:
    rgb = np.full((6, 7, 3), 100, np.uint8)
    assert np.array_equal(overlay(rgb, np.zeros((6, 7), bool)), rgb)
    full = overlay(rgb, np.ones((6, 7), bool), (200, 100, 0))
    assert (full == [145, 100, 55]).all()
    with pytest.raises(ValueError, match="the mask"):
        overlay(rgb, np.zeros((7, 6), bool))


def test_pca_separates_what_differs_and_is_repeatable() -> None:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(3, 16))
    which = rng.integers(0, 3, (20, 30))
    features = (centres[which] + 0.01 * rng.normal(size=(20, 30, 16))).astype(np.float32)
    picture = pca_picture(features)
    assert picture.shape == (20, 30, 3)
    assert picture.dtype == np.float32
    means = np.stack([picture[which == k].mean(axis=0) for k in range(3)])
    spread = max(picture[which == k][:, :2].std() for k in range(3))
    gaps = [np.linalg.norm(means[i] - means[j]) for i, j in ((0, 1), (0, 2), (1, 2))]
    assert min(gaps) > 0.3
    assert spread < 0.5
    assert np.array_equal(picture, pca_picture(features, pca_basis(features)))
    # A kept basis gives a pixel the same colour whatever else is in view.
    assert np.array_equal(pca_picture(features[:3], pca_basis(features)), picture[:3])


@pytest.mark.parametrize("dim", [0, 1, 2, 3, 4, 16])
def test_pca_of_degenerate_features(dim: int) -> None:
    shape, ramp = (4, 5), np.linspace(0, 1, 20).reshape(4, 5, 1)
    noise = 1e-8 * np.random.default_rng(0).normal(size=(*shape, dim))
    assert (pca_picture(np.zeros((*shape, dim), np.float32)) == 0.5).all()
    assert (pca_picture(np.full((*shape, dim), 3.0) + noise) == 0.5).all()  # rounding is not contrast
    if dim:
        alike = pca_picture(np.repeat(ramp, dim, axis=-1))
        assert alike[..., 0].std() > 0.2
        assert (alike[..., 1:] == 0.5).all()
    assert pca_picture(np.zeros((0, 5, dim))).shape == (0, 5, 3)
    assert pca_picture(np.ones((1, 1, dim))).tolist() == [[[0.5] * 3]]


def test_pca_leaves_out_what_is_not_finite() -> None:
    features = np.random.default_rng(0).normal(size=(6, 6, 4))
    features[0, 0, 1], features[1, 1, 2] = np.nan, np.inf
    picture = pca_picture(features)
    assert picture[0, 0].tolist() == picture[1, 1].tolist() == [0, 0, 0]
    assert np.isfinite(picture).all()
    assert picture[2:].std() > 0.1
    assert (pca_picture(np.full((3, 3, 4), np.nan)) == 0).all()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), scale=st.sampled_from([1e-30, 1e-3, 1.0, 1e6, 1e30]), rank=st.integers(0, 4))
def test_pca_stays_in_range(seed: int, scale: float, rank: int) -> None:
    rng = np.random.default_rng(seed)
    features = (scale * rng.normal(size=(5, 6, rank)) @ rng.normal(size=(rank, 7))).astype(np.float32)
    picture = pca_picture(features)
    assert picture.min() >= 0
    assert picture.max() <= 1


def test_contact_sheet_places_every_tile(tmp_path: Path) -> None:
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    tiles = [
        np.full(size, c, np.uint8) for size, c in zip([(30, 40, 3), (300, 200, 3), (7, 9, 3)], colours, strict=True)
    ]
    path = tmp_path / "new" / "sheet ü.png"
    contact_sheet([[("a", tiles[0]), ("b" * 300, tiles[1])], [], [("", tiles[2])]], path, tile_width=100)
    sheet = np.asarray(Image.open(path)).astype(int)
    for tile, colour in zip(tiles, colours, strict=True):
        rows, columns = np.nonzero(np.abs(sheet - colour).max(axis=-1) == 0)
        assert np.ptp(columns) + 1 == 100
        assert np.ptp(rows) + 1 == round(tile.shape[0] * 100 / tile.shape[1])
    dark = (sheet.max(axis=-1) < 100).sum()
    assert dark > 50  # captions
    # The long caption ends inside its column.
    assert (sheet[:, -8:] == 255).all()


def test_contact_sheet_takes_grey_float_and_bool_but_not_nothing(tmp_path: Path) -> None:
    pictures = [np.zeros((4, 4), bool), np.zeros((4, 4, 3), np.float32), np.zeros((4, 4, 4), np.uint8)]
    contact_sheet([[(str(i), picture) for i, picture in enumerate(pictures)]], tmp_path / "s.png")
    for rows in ([], [[], []]):
        with pytest.raises(ValueError, match="at least one picture"):
            contact_sheet(rows, tmp_path / "t.png")
    assert [path.name for path in tmp_path.iterdir()] == ["s.png"]


def test_save_png_round_trip_and_replacement(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    for array in (
        np.arange(24, dtype=np.uint8).reshape(2, 4, 3),
        np.arange(8, dtype=np.uint8).reshape(2, 4),
        np.arange(32, dtype=np.uint8).reshape(2, 4, 4),
    ):
        save_png(path, array)
        assert np.array_equal(np.asarray(Image.open(path)), array)
    assert os.listdir(tmp_path) == ["a.png"]
    umask = os.umask(0o022)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask


def test_failed_write_keeps_the_old_file_and_leaves_no_rubbish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    save_png(path, np.zeros((2, 2), np.uint8))
    old = path.read_bytes()

    def full_disk(self: Image.Image, target: Path, **_: object) -> None:
        Path(target).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full_disk)
    with pytest.raises(MaskfieldError, match=r"cannot write .*a\.png: the disk is full"):
        save_png(path, np.ones((2, 2), np.uint8))
    assert path.read_bytes() == old
    assert os.listdir(tmp_path) == ["a.png"]


def test_a_reader_of_the_old_file_never_sees_it_change(tmp_path: Path) -> None:
    path, same_file = tmp_path / "a.png", tmp_path / "link.png"
    save_png(path, np.zeros((2, 2), np.uint8))
    os.link(path, same_file)
    old = path.read_bytes()
    save_png(path, np.ones((2, 2), np.uint8))
    assert same_file.read_bytes() == old != path.read_bytes()


def test_a_file_in_the_way_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MaskfieldError, match="cannot write"):
        save_png(tmp_path / "file" / "a.png", np.zeros((2, 2), np.uint8))


def test_to_uint8() -> None:
    assert to_uint8(np.array([[0.0, 0.5, 1.0, 2.0, -1.0, np.nan]])).tolist() == [[0, 128, 255, 255, 0, 0]]
    assert to_uint8(np.array([[True, False]])).tolist() == [[255, 0]]
    for bad in (np.zeros((2, 2), int), np.zeros((2, 2, 2)), np.zeros(3), np.zeros((0, 2, 3))):
        with pytest.raises(ValueError, match="a picture is"):
            to_uint8(bad)
