"""Where benchmark scenes keep what: names of files and classes. No pixel of any label is read here.

Dataparsers and evaluation share this module, so that both agree on which view a label belongs to.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from maskfield_ns.errors import BenchmarkError
from maskfield_ns.files import read_json

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
_SHOWN = 4


@dataclass(frozen=True)
class ClassList:
    """Classes of a scene."""

    names: tuple[str, ...]
    ids: tuple[int, ...] = ()
    """Id of each class in label pictures, where the file gives ids; empty: the position in ``names``."""


def read_class_list(path: Path) -> ClassList:
    """Class names, one a line in the order of the file; or with ids: ``1<tab>wall``, ``1,wall``, or Replica's
    ``info_semantic.json``, by ascending id.

    A byte-order mark, Windows line ends, spaces around names and empty lines at the end are taken away. The first line
    may be empty: OV-NeRF keeps its void class there.

    Raises:
        BenchmarkError: no such file, not UTF-8, no class, an empty line between classes (it would shift the ids of all
            classes after it), a class or an id twice, or a list in another format.
    """
    if path.suffix.lower() == ".json":
        return _json_classes(path)
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except FileNotFoundError as error:
        raise BenchmarkError(f"There is no class list {path} (a text file with one class a line).") from error
    except (OSError, ValueError) as error:
        raise BenchmarkError(f"The class list {path} cannot be read as UTF-8 text: {error}.") from error
    while lines and not lines[-1]:
        lines.pop()
    if not lines:
        raise BenchmarkError(f"The class list {path} is empty.")
    if "" in lines[1:]:
        number = lines.index("", 1) + 1
        raise BenchmarkError(
            f"{path}: line {number} is empty, but classes follow it; remove it (ids count lines, so check the labels)."
        )
    wrong = next((n for n, line in enumerate(lines, 1) if len(line) > _MAX_NAME or not line.isprintable()), None)
    if wrong is not None and "\t" not in lines[wrong - 1]:
        raise BenchmarkError(f"{path}: line {wrong} is no class: {lines[wrong - 1][:40]!a} ...")
    rows = [_ID_AND_NAME.fullmatch(line) for line in lines]
    header = rows[0] is None and _ID_HEADER.fullmatch(lines[0]) is not None
    if len(rows) > header and all(rows[header:]):
        return _with_ids(path, [(int(row["id"]), row["name"].strip()) for row in rows[header:] if row is not None])
    odd = next((number for number, line in enumerate(lines, 1) if "\t" in line), None)
    if odd is not None or (len(lines) == 1 and lines[0].count(",") > 1):
        raise BenchmarkError(
            f"{path}: line {odd or 1} is no class ({lines[(odd or 1) - 1][:40]!r}): a list has one class a line, "
            "or in every line an id, a tab or comma, and a class."
        )
    _check_repeated(path, lines)
    return ClassList(tuple(lines))


_MAX_NAME = 200
"""Characters of a class; masks are called like classes, and file systems take 255 bytes."""
_ID_AND_NAME = re.compile(r"(?P<id>[0-9]{1,6})\s*[\t,;:]\s*(?P<name>[^\t]*[^\t\s])")
_ID_HEADER = re.compile(r"\W*(class\W*)?(id|index)s?\W*[\t,;]\s*\w[\w ]*", re.IGNORECASE)


def _json_classes(path: Path) -> ClassList:
    """Replica's ``info_semantic.json``: {"classes": [{"id": 1, "name": "backpack"}, ...], ...}."""
    data = read_json(path, "class list", BenchmarkError)
    classes = data.get("classes") if isinstance(data, dict) else None
    if not isinstance(classes, list) or not classes:
        raise BenchmarkError(f'{path} is no class list: it needs "classes", a list of {{"id": 1, "name": "wall"}}.')
    pairs = []
    for entry in classes:
        identity, name = (entry.get("id"), entry.get("name")) if isinstance(entry, dict) else (None, None)
        whole = isinstance(identity, int) and not isinstance(identity, bool) and 0 <= identity < 10**6
        if not whole or not isinstance(name, str) or not name.strip():
            raise BenchmarkError(f'{path}: every entry of "classes" needs an "id" from 0 on and a "name".')
        pairs.append((identity, name.strip()))
    return _with_ids(path, pairs)


def _with_ids(path: Path, pairs: list[tuple[int, str]]) -> ClassList:
    """Classes by ascending id, with a void class of id 0 where the list has none."""
    counts = Counter(identity for identity, _ in pairs)
    twice = [identity for identity, count in counts.items() if count > 1]
    if twice:
        raise BenchmarkError(f"{path} lists the id {twice[0]} more than once; keep one of them.")
    _check_repeated(path, [name for _, name in pairs])
    ordered = sorted(pairs if 0 in counts else [(0, ""), *pairs])
    return ClassList(tuple(name for _, name in ordered), tuple(identity for identity, _ in ordered))


def _check_repeated(path: Path, names: Sequence[str]) -> None:
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        numbers = [str(number) for number, name in enumerate(names, 1) if name == repeated[0]]
        raise BenchmarkError(
            f"{path} lists the class {repeated[0]!r} more than once (lines {', '.join(numbers)}); keep one of them."
        )


def images_in(folder: Path, kind: str = "image") -> list[Path]:
    """Picture files of a folder, sorted by name (ASCII order).

    Raises:
        BenchmarkError: no such folder, no picture in it, or two pictures of one stem.
    """
    if not folder.is_dir():
        raise BenchmarkError(f"There is no folder {folder}; the {kind}s are expected in it.")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
    if not paths:
        raise BenchmarkError(f"{folder} has no {kind} ({', '.join(IMAGE_SUFFIXES)}).")
    repeated = [stem for stem, count in Counter(path.stem for path in paths).items() if count > 1]
    if repeated:
        raise BenchmarkError(f"{folder} has more than one {kind} called {some(repeated)}; labels go by the stem.")
    return paths


_IMAGE_FOLDERS = ("images", "rgb", "rgb_300")


def scenes_in(folder: Path) -> list[Path]:
    """Sub-folders that look like scenes, if the folder does not look like one itself: the root of a benchmark."""

    def scene(place: Path) -> bool:
        return any((place / name).is_dir() for name in _IMAGE_FOLDERS)

    return [] if scene(folder) else sorted(each for each in folder.iterdir() if each.is_dir() and scene(each))


def number_in(stem: str) -> int | None:
    """The last number in a file's stem, or None."""
    found = re.findall(r"\d+", stem)
    return int(found[-1]) if found else None


def by_stem(wanted: Sequence[str], images: Iterable[Path], what: str, place: Path) -> dict[str, Path]:
    """The image of each labelled view, by file stem: equal stems, else (views that are numbers) equal numbers.

    Raises:
        BenchmarkError: views without an image.
    """
    stems = {path.stem: path for path in images}
    numbers: dict[int, list[Path]] = {}
    for stem, path in stems.items():
        if stem.isdigit():
            numbers.setdefault(int(stem), []).append(path)
    found: dict[str, Path] = {}
    missing = []
    for name in wanted:
        same = numbers.get(int(name), []) if name.isdigit() else []
        if name in stems:
            found[name] = stems[name]
        elif len(same) == 1:
            found[name] = same[0]
        else:
            missing.append(name)
    if missing:
        raise BenchmarkError(
            f"No image belongs to the {what} {some(missing)} ({len(missing)} of {len(wanted)}): expected "
            f"{place / missing[0]} with the suffix of an image; the images there are called {some(sorted(stems))}."
        )
    return found


def some(items: Sequence[str]) -> str:
    """A few items for a message."""
    shown = ", ".join(items[:_SHOWN])
    return shown if len(items) <= _SHOWN else f"{shown}, ... ({len(items)})"


# --- 3D-OVS -----------------------------------------------------------------------------------------------------------


def ovs3d_labelled(segmentations: Path) -> list[str]:
    """Annotated views of a 3D-OVS scene: the sub-folders of ``segmentations``, in the order of their numbers.

    Raises:
        BenchmarkError: no such folder, or no annotated view in it.
    """
    if not segmentations.is_dir():
        raise BenchmarkError(
            f"There is no folder {segmentations}; it holds classes.txt and one folder per labelled view."
        )
    names = [path.name for path in segmentations.iterdir() if path.is_dir() and not path.name.startswith(".")]
    if not names:
        raise BenchmarkError(f"{segmentations} has no folder of a labelled view (like {segmentations / '00'}).")
    return sorted(names, key=lambda name: (number_in(name) if name.isdigit() else -1, name))


# --- LERF-OVS and Mip-NeRF360 -----------------------------------------------------------------------------------------


def polygon_files(labels: Path) -> list[Path]:
    """Annotation files of a scene, sorted by name.

    Raises:
        BenchmarkError: no such folder, or no annotation in it.
    """
    if not labels.is_dir():
        raise BenchmarkError(
            f"There is no label folder {labels}; it holds one .json per labelled frame. LERF-OVS keeps it at "
            "label/<scene> beside the scene's folder (set --labels for another place)."
        )
    paths = sorted(labels.glob("*.json"))
    if not paths:
        raise BenchmarkError(f"{labels} has no annotation (like {labels / 'frame_00001.json'}).")
    return paths


# --- LERF-Mask --------------------------------------------------------------------------------------------------------


def lerf_mask_test_images(scene: Path) -> list[Path]:
    """Test images of a LERF-Mask scene, sorted by name: those of ``images`` that ``images_train`` does not have.

    Raises:
        BenchmarkError: a folder is missing or empty, a training image is not in ``images``, or nothing is left to test.
    """
    images = images_in(scene / "images")
    train = {path.stem for path in images_in(scene / "images_train", "training image")}
    unknown = sorted(train - {path.stem for path in images})
    if unknown:
        raise BenchmarkError(f"{scene / 'images_train'} has {some(unknown)}, which {scene / 'images'} does not have.")
    test = [path for path in images if path.stem not in train]
    if not test:
        raise BenchmarkError(
            f"All images of {scene / 'images'} are also in {scene / 'images_train'}; LERF-Mask tests on the others."
        )
    return test


def lerf_mask_labelled(test_mask: Path) -> list[str]:
    """Labelled test views: the numbered sub-folders of ``test_mask``, in order. Numbers may be missing.

    Raises:
        BenchmarkError: no such folder, no numbered folder in it, or one whose name is no number.
    """
    if not test_mask.is_dir():
        raise BenchmarkError(f"There is no folder {test_mask}; it holds one numbered folder of masks per test view.")
    names = [path.name for path in test_mask.iterdir() if path.is_dir() and not path.name.startswith(".")]
    wrong = [name for name in names if not name.isdigit()]
    if wrong or not names:
        what = f"folders that are no numbers: {some(wrong)}" if wrong else "no numbered folder (like 0)"
        raise BenchmarkError(f"{test_mask} has {what}; folder k holds the masks of the k-th test image.")
    return sorted(names, key=int)


# --- Replica and ScanNet ----------------------------------------------------------------------------------------------

TEST_INTERVAL = 10
"""OV-NeRF tests on every tenth frame, beginning with the first."""


@dataclass(frozen=True)
class IndexedFrame:
    """One frame of a scene with class-index labels."""

    name: str
    """Stem of the image file."""
    image: Path
    pose: Path | int
    """Text file of one 4x4 matrix, or the line of ``traj_w_c.txt`` (from 0)."""
    label: Path
    test: bool
    """Whether the protocol tests on it."""


@dataclass(frozen=True)
class IndexedScene:
    """A Replica or ScanNet scene in OV-NeRF's packaging, or a Replica sequence as Semantic-NeRF rendered it."""

    folder: Path
    packaging: str
    """``ov-nerf`` or ``semantic-nerf``."""
    frames: tuple[IndexedFrame, ...]
    """Frames of the protocol, sorted."""


def indexed_scene(folder: Path) -> IndexedScene:
    """Frames of a scene; which packaging it is shows in the folders.

    Raises:
        BenchmarkError: neither packaging, or images, poses and labels that do not belong together.
    """
    if not folder.is_dir():
        raise BenchmarkError(f"There is no scene folder {folder}.")
    if (folder / "traj_w_c.txt").exists() or (folder / "semantic_class").exists():
        return IndexedScene(folder, "semantic-nerf", _semantic_nerf_frames(folder))
    for suffix in ("_300", ""):
        if (folder / f"rgb{suffix}").is_dir():
            return IndexedScene(folder, "ov-nerf", _ovnerf_frames(folder, suffix))
    raise BenchmarkError(
        f"{folder} is no scene of a known packaging: expected rgb_300/, pose_300/, semantic_300/ (Replica by OV-NeRF), "
        "rgb/, pose/, semantic/ (ScanNet by OV-NeRF), or rgb/, semantic_class/ and traj_w_c.txt (Semantic-NeRF)."
    )


def indexed_classes(scene: IndexedScene, dataset: str, class_file: Path | None = None) -> ClassList:
    """Class name of every label id; id 0 is void and called " ", as OV-NeRF does.

    OV-NeRF blanks the first line of ``classes.txt`` and sorts the list for Replica but not for ScanNet; lists that give
    ids are taken at their word.

    Args:
        scene: from :func:`indexed_scene`.
        dataset: ``replica`` or ``scannet``.
        class_file: another file than ``classes.txt`` in the scene.

    Raises:
        BenchmarkError: from :func:`read_class_list`.
    """
    classes = read_class_list(class_file or scene.folder / "classes.txt")
    names = (" ", *classes.names[1:])
    sort = dataset == "replica" and scene.packaging == "ov-nerf" and not classes.ids
    return ClassList(tuple(sorted(names)) if sort else names, classes.ids)


def _ovnerf_frames(folder: Path, suffix: str) -> tuple[IndexedFrame, ...]:
    images, labels = images_in(folder / f"rgb{suffix}"), images_in(folder / f"semantic{suffix}", "label")
    poses_folder = folder / f"pose{suffix}"
    if not poses_folder.is_dir():
        raise BenchmarkError(f"There is no folder {poses_folder}; it holds one 4x4 matrix per image as text.")
    poses = sorted(poses_folder.glob("*.txt"))
    pose_of, label_of = _paired(images, poses, "pose"), _paired(images, labels, "label")
    return tuple(
        IndexedFrame(image.stem, image, pose_of[image], label_of[image], index % TEST_INTERVAL == 0)
        for index, image in enumerate(images)
    )


def _paired(images: Sequence[Path], others: Sequence[Path], what: str) -> dict[Path, Path]:
    """What belongs to each image: by equal stem, or else by the number in the stem."""
    place = others[0].parent if others else None
    if place is None:
        raise BenchmarkError(f"There is no {what} for the images of {images[0].parent}: expected one per image.")
    stems = {path.stem: path for path in others}
    if not all(image.stem in stems for image in images):
        numbered = {number_in(path.stem): path for path in others}
        if None not in numbered and len(numbered) == len(others):
            stems |= {image.stem: numbered[n] for image in images if (n := number_in(image.stem)) in numbered}
    missing = [image.name for image in images if image.stem not in stems]
    if missing:
        raise BenchmarkError(
            f"{len(missing)} of {len(images)} images have no {what} in {place}: {some(missing)}. "
            "The scene looks half downloaded; every image needs one of the same stem or number."
        )
    return {image: stems[image.stem] for image in images}


def _semantic_nerf_frames(folder: Path) -> tuple[IndexedFrame, ...]:
    if not (folder / "traj_w_c.txt").is_file():
        raise BenchmarkError(f"There is no {folder / 'traj_w_c.txt'}; it holds one 4x4 camera pose a line.")
    images, labels = images_in(folder / "rgb"), images_in(folder / "semantic_class", "label")
    numbers = {number_in(path.stem): path for path in images}
    if None in numbers or len(numbers) != len(images):
        raise BenchmarkError(f"{folder / 'rgb'}: every image needs a number of its own in its name (rgb_0.png).")
    label_of = _paired(images, labels, "label")
    ordered = sorted((number, path) for number, path in numbers.items() if number is not None)
    # Train ids are 0, 5, 10, ...; test ids 2, 7, 12, ...; the rest of a full sequence is not used.
    return tuple(
        IndexedFrame(path.stem, path, number, label_of[path], number % 5 == 2)
        for number, path in ordered
        if number % 5 in (0, 2)
    )
