"""The mask cache: layout, damage, resuming. Models are fakes here; what they say is irrelevant to the store."""

import errno
import json
import os
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from maskfield_ns.cache import store
from maskfield_ns.cache.builder import build_cache, load_image
from maskfield_ns.cache.runs import LONGEST, decode_masks, encode_masks, runs_problem
from maskfield_ns.cache.schema import (
    MANIFEST,
    canonical_json,
    entry_file_name,
    extraction_fingerprint,
    normalise_name,
)
from maskfield_ns.cache.store import MaskCache
from maskfield_ns.errors import CacheError, CaptureError
from maskfield_ns.files import file_sha256, temporary_path
from maskfield_ns.foundation.protocols import MaskProposals, mask_boxes

SHA = "0" * 64


class FakeModel:
    """Both models in one: masks by brightness, embeddings by mean colour. Counts what it is asked for."""

    def __init__(self, name="fake", fail_at=None, error=None):
        self.name, self.fail_at, self.error = name, fail_at, error
        self.loads, self.seen = 0, []

    def __call__(self):
        self.loads += 1
        return self

    def fingerprint(self):
        return {"name": self.name}

    dim = 3

    def propose(self, image):
        if len(self.seen) == self.fail_at:
            raise self.error
        self.seen.append(image)
        grey = image.mean(-1)
        masks = np.stack([grey > cut for cut in (40, 90, 160)])
        masks = masks[masks.any((1, 2))]
        values = np.linspace(0.9, 0.7, len(masks), dtype=np.float32)
        return MaskProposals(masks, np.arange(len(masks), dtype=np.int8), values, values, mask_boxes(masks))

    def embed_regions(self, image, masks):
        found = np.array([image[mask].mean(0) + 1 for mask in masks], np.float32).reshape(-1, 3)
        return found / np.linalg.norm(found, axis=1, keepdims=True)


@pytest.fixture
def capture(tmp_path):
    names = ["images/a b.png", "images/ä.png", "left/frame.png", "right/frame.png", "right/FRAME.png"]
    rng = np.random.default_rng(0)
    for name in names:
        path = tmp_path / "capture" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (11, 13, 3), np.uint8)).save(path)
    return tmp_path / "capture", names


def build(capture, root, model=None, names=None, **options):
    folder, all_names = capture
    names = all_names if names is None else names
    model = model or FakeModel()
    options.setdefault("progress", False)
    return build_cache([folder / name for name in names], names, root, model, model, **options), model


def only(cache, name):
    """The one entry of images with this name."""
    (path,) = cache.paths_of(name)
    return path


def opened(root, name="fake"):
    return MaskCache.open(root, {"name": name}, {"name": name})


# --- layout -------------------------------------------------------------------------------------------------------


@settings(max_examples=80, deadline=None)
@given(
    masks=arrays.arrays(bool, arrays.array_shapes(min_dims=3, max_dims=3, min_side=0, max_side=19)),
    longest=st.sampled_from([1, 2, 3, 7, LONGEST]),
)
def test_run_lengths_round_trip(masks, longest):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("maskfield_ns.cache.runs.LONGEST", longest)
        runs, ends = encode_masks(masks)
    _, height, width = masks.shape
    assert runs.dtype == np.uint16 and ends.shape == (len(masks),) and runs.max(initial=0) <= longest
    assert runs_problem(runs, ends, height * width) is None
    decoded = decode_masks(runs, ends, height, width)
    assert decoded.dtype == bool
    np.testing.assert_array_equal(decoded, masks)


def test_run_lengths_by_hand():
    mask = np.zeros((2, 2, 3), bool)
    mask[0, 0, 1:] = mask[0, 1, 0] = mask[1] = True
    runs, ends = encode_masks(mask)
    assert (runs.tolist(), ends.tolist()) == ([1, 3, 2, 0, 6], [3, 5])
    for wrong, says in (([1, 3, 2, 0, 5], "fill"), ([1, 3, 2, 0, 7], "fill"), ([1, 3, 2, 0], "end")):
        assert says in str(runs_problem(np.array(wrong, np.uint16), ends, 6))
    assert "end" in str(runs_problem(runs, np.array([5, 3]), 6))


name_parts = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=8)
image_names = st.lists(name_parts.filter(lambda part: part not in (".", "..")), min_size=1, max_size=3).map("/".join)


@settings(max_examples=200, deadline=None)
@given(st.lists(image_names, min_size=2, max_size=6))
def test_different_names_give_different_files_everywhere(names):
    keys = {normalise_name(name) for name in names}
    files = {entry_file_name(key, sha, *size) for key in keys for sha in (SHA, "1" * 64) for size in ((4, 5), (5, 4))}
    assert len({file.casefold() for file in files}) == 4 * len(keys)
    for file in files:
        assert file.isascii() and len(file) <= 100 and not set(file) & set('<>:"/\\|?* ')
        assert not file.startswith(".") and file.endswith(".safetensors")


def test_file_names_are_readable_and_stable():
    assert entry_file_name("images/Frame 01.JPG", SHA, 3, 4).startswith("images-frame-01-jpg-")
    assert entry_file_name("images/frame 01.jpg", SHA, 3, 4) != entry_file_name("images/frame_01.jpg", SHA, 3, 4)
    composed, decomposed = "images/ä.png", unicodedata.normalize("NFD", "images/ä.png")
    assert composed != decomposed and normalise_name(composed) == normalise_name(decomposed)


def test_names_that_are_no_utf8():
    name = normalise_name(os.fsdecode(b"images/\xff.png"))
    assert name == "images/\\udcff.png"
    entry_file_name(name, SHA, 3, 4)


@pytest.mark.parametrize("name", ["/data/x.png", "", "."])
def test_names_must_be_relative(name):
    with pytest.raises(ValueError, match="relative"):
        normalise_name(name)


def test_fingerprint_depends_on_values_not_on_order():
    first = extraction_fingerprint({"a": 1, "b": [1, 2]}, {"c": 0.1})
    assert first == extraction_fingerprint({"b": [1, 2], "a": 1}, {"c": 0.1})
    others = [({"a": 2, "b": [1, 2]}, {"c": 0.1}), ({"a": 1, "b": [1, 2]}, {"c": 0.2}), ({"c": 0.1}, {"a": 1})]
    assert len({first, *(extraction_fingerprint(*pair) for pair in others)}) == 4
    with pytest.raises(ValueError, match="JSON"):
        canonical_json(float("nan"))


@settings(max_examples=25, deadline=None)
@given(data=st.data(), count=st.integers(0, 4), height=st.integers(1, 9), width=st.integers(1, 9))
def test_what_is_written_is_read(tmp_path_factory, data, count, height, width):
    masks = data.draw(arrays.arrays(bool, (count, height, width)))
    levels = data.draw(arrays.arrays(np.int8, count, elements=st.integers(0, 2)))
    unit = st.floats(0, 1, width=32)
    scores, stability = (data.draw(arrays.arrays(np.float32, count, elements=unit)) for _ in range(2))
    vectors = np.random.default_rng(count).normal(size=(count, 5)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    cache = MaskCache.create(tmp_path_factory.mktemp("c"), {}, {})
    written = MaskProposals(masks, levels, scores, stability, mask_boxes(masks))
    made = cache.write("x/ö.png", SHA, written, vectors)
    assert cache.path_of("x/ö.png", SHA, (height, width)).is_file()
    entry = cache.read("x/ö.png", SHA, (height, width))
    assert entry.checksum == made.checksum
    for mask, expected in zip(entry.each_mask(), masks, strict=True):
        np.testing.assert_array_equal(mask, expected)
    read = entry.proposals()
    for name in ("masks", "levels", "scores", "stability", "boxes"):
        expected, found = getattr(written, name), getattr(read, name)
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)
    assert len(entry) == count and entry.embeddings.dtype == np.float16
    np.testing.assert_allclose(entry.embeddings, vectors, atol=1e-3)


def test_nonsense_is_not_written(tmp_path):
    cache = MaskCache.create(tmp_path, {}, {})
    good = FakeModel().propose(np.full((5, 6, 3), 200, np.uint8))
    vectors = np.ones((len(good), 3), np.float32)
    for proposals, embeddings in (
        (good, vectors[:1]),
        (good, np.full_like(vectors, np.nan)),
        (MaskProposals(good.masks, good.levels + 5, good.scores, good.stability, good.boxes), vectors),
    ):
        with pytest.raises(ValueError):
            cache.write("a.png", SHA, proposals, embeddings)
    assert [path.name for path in cache.folder.iterdir()] == [MANIFEST]


# --- building -----------------------------------------------------------------------------------------------------


def test_build_then_read(capture, tmp_path, capsys):
    report, model = build(capture, tmp_path / "cache", progress=True)
    folder, names = capture
    assert (report.total, report.built, report.rebuilt, model.loads) == (5, 5, {}, 2)
    printed = capsys.readouterr().out
    assert str(report.folder) in printed and "masks per image" in printed and "MB" in printed
    cache = opened(tmp_path / "cache")
    assert report.bytes == sum(path.stat().st_size for path in cache.folder.glob("*.safetensors"))
    for name in names:
        image = np.array(Image.open(folder / name))
        entry = cache.read(name, file_sha256(folder / name), (11, 13))
        np.testing.assert_array_equal(entry.masks(), FakeModel().propose(image).masks)
    manifest = json.loads((cache.folder / MANIFEST).read_text())
    assert manifest["proposer"] == {"name": "fake"} and manifest["schema"] == 2
    everything = b"".join(path.read_bytes() for path in cache.folder.iterdir())
    assert str(tmp_path).encode() not in everything


def test_nothing_to_do_loads_no_model(capture, tmp_path, capsys):
    build(capture, tmp_path / "cache")
    report, model = build(capture, tmp_path / "cache", progress=True)
    assert report.built == 0 and model.loads == 0
    assert str(report.folder) in capsys.readouterr().out


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), KeyboardInterrupt()])
def test_a_stopped_build_resumes(capture, tmp_path, error):
    with pytest.raises(type(error)):
        build(capture, tmp_path / "cache", FakeModel(fail_at=3, error=error))
    report, model = build(capture, tmp_path / "cache")
    assert report.built == len(model.seen) == 2
    assert report.rebuilt == {}


def test_a_killed_build_leaves_no_trace(capture, tmp_path):
    """A process killed in the middle of a write: the entry is missing, its temporary file is cleaned up."""
    script = (
        "import os, signal, sys; sys.path.insert(0, sys.argv[1]);"
        "from pathlib import Path; from maskfield_ns.cache import store; import test_cache as t;"
        "plain = store._write_bytes;\n"
        "def dying(file, payload):\n"
        "    if t.KILL in file.name: plain(file, payload[:100]); os.kill(os.getpid(), signal.SIGKILL)\n"
        "    plain(file, payload)\n"
        "store._write_bytes = dying; capture = (Path(sys.argv[2]), sys.argv[4:]);"
        "t.build(capture, Path(sys.argv[3]))"
    )
    folder, names = capture
    root = tmp_path / "cache"
    done = subprocess.run(
        [sys.executable, "-c", script, str(Path(__file__).parent), str(folder), str(root), *names], capture_output=True
    )
    assert done.returncode == -9, done.stderr.decode()
    cache = opened(root)
    assert len(list(cache.folder.glob(".*.tmp"))) == 1
    assert len(list(cache.folder.glob("*.safetensors"))) == 2
    report, _ = build(capture, root)
    assert report.built == 3
    assert len(list(cache.folder.iterdir())) == 6


KILL = "left-frame"
"""Part of the temporary file's name at which the process above dies."""


def test_files_of_a_living_writer_stay(tmp_path):
    cache = MaskCache.create(tmp_path, {}, {})
    live = temporary_path(cache.folder / "x")
    elsewhere = cache.folder / ".x.deadbeef.1.12345678.tmp"
    old = cache.folder / ".y.deadbeef.1.12345678.tmp"
    for path in (live, elsewhere, old):
        path.write_bytes(b"")
    os.utime(old, (0, 0))
    assert cache.remove_leftovers() == 1
    assert live.exists() and elsewhere.exists() and not old.exists()


def test_other_models_live_beside_each_other(capture, tmp_path):
    first, _ = build(capture, tmp_path / "cache", FakeModel("one"))
    second, _ = build(capture, tmp_path / "cache", FakeModel("two"))
    assert first.folder != second.folder and second.built == 5
    assert build(capture, tmp_path / "cache", FakeModel("one"))[0].built == 0
    with pytest.raises(CacheError, match="maskfield extract"):
        opened(tmp_path / "cache", "three")


def test_a_model_that_is_not_what_was_promised(capture, tmp_path):
    class Liar(FakeModel):
        def __call__(self):
            return FakeModel("other")

    with pytest.raises(CacheError, match="not the one"):
        build(capture, tmp_path / "cache", Liar())


# --- damage -------------------------------------------------------------------------------------------------------


def damage(path, kind):
    content = bytearray(path.read_bytes())
    if kind == "truncated":
        path.write_bytes(content[:-7])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    elif kind == "payload":
        content[-5] ^= 1
        path.write_bytes(content)
    elif kind == "header":
        at = content.index(b'"height":"11"')
        content[at : at + 13] = b'"height":"12"'
        path.write_bytes(content)


@pytest.mark.parametrize("kind", ["truncated", "empty", "text", "payload", "header"])
def test_damaged_entries_are_refused_and_made_again(capture, tmp_path, capsys, kind):
    build(capture, tmp_path / "cache")
    cache = opened(tmp_path / "cache")
    name = capture[1][2]
    damage(only(cache, name), kind)
    with pytest.raises(CacheError, match="damaged") as error:
        cache.read(name)
    assert name in str(error.value) and "maskfield extract" in str(error.value)
    report, model = build(capture, tmp_path / "cache", progress=True)
    assert report.built == len(model.seen) == 1 and list(report.rebuilt) == [name]
    assert f"{name} are made again: the file is damaged" in capsys.readouterr().out
    cache.read(name)


@settings(max_examples=60, deadline=None)
@given(position=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_any_flipped_bit_is_noticed(tmp_path_factory, position, bit):
    cache = MaskCache.create(tmp_path_factory.mktemp("c"), {}, {})
    image = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
    model = FakeModel()
    proposals = model.propose(image)
    cache.write("a.png", SHA, proposals, model.embed_regions(image, proposals.masks))
    path = only(cache, "a.png")
    content = bytearray(path.read_bytes())
    before = cache.read("a.png")
    content[int(position * len(content))] ^= 1 << bit
    path.write_bytes(content)
    try:
        after = cache.read("a.png", SHA, (9, 7))
    except CacheError:
        return
    # Only a flip that changes nothing (white space in the header's padding) may pass.
    assert after.header == before.header
    for name, array in before.tensors().items():
        np.testing.assert_array_equal(after.tensors()[name], array)


def test_foreign_and_stale_entries(capture, tmp_path):
    root = tmp_path / "cache"
    build(capture, root)
    build(capture, root, FakeModel("two"))
    folder, names = capture
    cache, other = opened(root), opened(root, "two")
    first, second, third, fourth = names[:4]
    only(cache, first).write_bytes(only(cache, second).read_bytes())
    only(cache, second).write_bytes(only(other, second).read_bytes())
    Image.new("RGB", (13, 11), (200, 0, 0)).save(folder / third)
    Image.new("RGB", (26, 22), (0, 200, 0)).save(folder / fourth)
    for name, says in ((first, "belongs to the image"), (second, "other models"), (third, "has changed")):
        with pytest.raises(CacheError, match=says):
            cache.read(name, file_sha256(folder / name))
    with pytest.raises(CacheError, match="13x11 pixels, the camera 26x22"):
        cache.read(fourth, resolution=(22, 26))
    report, _ = build(capture, root)
    assert report.built == 4 and sorted(report.rebuilt) == sorted(names[:4])
    for name, size in ((third, (11, 13)), (fourth, (22, 26))):
        assert cache.read(name, file_sha256(folder / name), size).header.width == size[1]
    with pytest.raises(CacheError, match="say of which content and size"):
        cache.read(third, resolution=(11, 13))


def test_two_captures_share_a_cache(capture, tmp_path):
    """Equal names, other images: neither drives the other out, and neither ever gets the other's masks."""
    folder, names = capture
    other = tmp_path / "other"
    for name in names:
        (other / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(255 - np.array(Image.open(folder / name))).save(other / name)
    for place in (folder, other, folder, other):
        seen = {}
        report, _ = build((place, names), tmp_path / "cache", visit=seen.__setitem__)
        for index, name in enumerate(names):
            expected = FakeModel().propose(np.array(Image.open(place / name))).masks
            np.testing.assert_array_equal(seen[index].masks(), expected)
            assert seen[index].header.image_sha256 == file_sha256(place / name)
    assert report.built == 0


def test_entries_of_another_schema(capture, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("maskfield_ns.cache.schema.SCHEMA_VERSION", 0)
        fingerprint = extraction_fingerprint({"name": "fake"}, {"name": "fake"})
        build(capture, tmp_path / "old")
    # As if an old entry had been copied to where the new one belongs.
    old = MaskCache(tmp_path / "old" / fingerprint[:12], fingerprint)
    build(capture, tmp_path / "cache")
    cache = opened(tmp_path / "cache")
    name = capture[1][0]
    only(cache, name).write_bytes(only(old, name).read_bytes())
    with pytest.raises(CacheError, match="schema 0, this version reads 2"):
        cache.read(name)


def test_missing_entry_and_manifest(capture, tmp_path):
    build(capture, tmp_path / "cache")
    cache = opened(tmp_path / "cache")
    with pytest.raises(CacheError, match="no cached masks for nothing.png"):  # noqa: RUF043
        cache.read("nothing.png")
    manifest = cache.folder / MANIFEST
    manifest.write_text("{")
    with pytest.raises(CacheError, match="cannot be read"):
        opened(tmp_path / "cache")
    assert build(capture, tmp_path / "cache")[0].built == 0
    opened(tmp_path / "cache")
    manifest.write_text(manifest.read_text().replace(cache.fingerprint, "f" * 64))
    for attempt in (lambda: opened(tmp_path / "cache"), lambda: build(capture, tmp_path / "cache")):
        with pytest.raises(CacheError, match="another cache"):
            attempt()


# --- disks and images ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_full_disk_says_what_is_safe(capture, tmp_path, monkeypatch, number):
    write, count = store._write_bytes, iter(range(100))

    def limited(file, payload):
        if next(count) >= 3:  # the manifest and two entries fit
            file.write(payload[:10])
            raise OSError(number, os.strerror(number))
        write(file, payload)

    with monkeypatch.context() as patch:
        patch.setattr(store, "_write_bytes", limited)
        with pytest.raises(CacheError, match="2 of 5 entries are safe") as error:
            build(capture, tmp_path / "cache")
    assert "run the same command again" in str(error.value)
    assert not list(opened(tmp_path / "cache").folder.glob(".*.tmp"))
    assert build(capture, tmp_path / "cache")[0].built == 3


def test_unwritable_cache_fails_before_models_are_loaded(capture, tmp_path):
    (tmp_path / "file").write_text("")
    model = FakeModel()
    with pytest.raises(CacheError, match="cannot write the mask cache"):
        build(capture, tmp_path / "file" / "cache", model)
    assert model.loads == 0


def test_images_are_brought_to_the_camera(capture, tmp_path):
    names = capture[1]
    report, model = build(capture, tmp_path / "cache", resolution=(22, 26))
    assert report.built == 5 and model.seen[0].shape == (22, 26, 3)
    assert opened(tmp_path / "cache").read(names[0]).masks().shape[1:] == (22, 26)
    assert build(capture, tmp_path / "cache", resolution=[(22, 26)] * 5)[0].built == 0
    report, _ = build(capture, tmp_path / "cache", resolution=[(22, 26)] * 4 + [(6, 7)])  # 5.5 x 6.5, rounded
    assert report.built == 1 and "the camera 7x6" in report.rebuilt[names[4]]
    with pytest.raises(CaptureError, match="13x11 pixels, its camera 30x11"):
        build(capture, tmp_path / "cache", resolution=(11, 30))


def test_missing_and_broken_images(capture, tmp_path):
    folder, names = capture
    content = (folder / names[0]).read_bytes()
    (folder / names[0]).write_bytes(content[: len(content) // 2])
    with pytest.raises(CaptureError, match="a b.png"):  # noqa: RUF043
        build(capture, tmp_path / "cache")
    (folder / names[0]).write_text("no image")
    with pytest.raises(CaptureError, match="cannot read the image"):
        build(capture, tmp_path / "cache")
    (folder / names[0]).unlink()
    with pytest.raises(CaptureError, match="cannot read the image"):
        build(capture, tmp_path / "cache")
    with pytest.raises(CaptureError, match="two images"):
        build(capture, tmp_path / "cache", names=[names[1], unicodedata.normalize("NFC", names[1])])


def test_image_modes(tmp_path):
    path = tmp_path / "x.png"
    rgb = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
    grey = rgb[..., 0]
    Image.fromarray(grey).save(path)
    np.testing.assert_array_equal(load_image(path), np.stack([grey] * 3, -1))
    Image.fromarray(np.dstack([rgb, np.zeros((4, 6), np.uint8)])).save(path)
    np.testing.assert_array_equal(load_image(path), rgb)
    Image.fromarray(grey.astype(np.uint16) * 257).save(path)
    np.testing.assert_array_equal(load_image(path), np.stack([grey] * 3, -1))
    palette = Image.new("P", (6, 4), 1)
    palette.putpalette([0, 0, 0, 9, 8, 7])
    palette.save(path)
    assert (load_image(path) == (9, 8, 7)).all()


def test_exif_rotation_is_left_alone(tmp_path):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "x.png", exif=exif)
    np.testing.assert_array_equal(load_image(tmp_path / "x.png"), np.array(picture))


def test_progress_lines_without_a_terminal(capture, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("maskfield_ns.cache.builder.PRINT_EVERY_S", 0.0)
    build(capture, tmp_path / "cache", progress=True)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("masks and embeddings of 5 images")
    assert [line for line in lines if ": 2/5," in line and "left" in line]
    build(capture, tmp_path / "cache", progress=False)
    assert capsys.readouterr().out == ""


def test_progress_bar_on_a_terminal(capture, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert build(capture, tmp_path / "cache", progress=True)[0].built == 5
