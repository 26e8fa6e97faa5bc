"""Benchmark scenes for tests: the packaged demo capture in every format of scripts/fixture_formats.py.

A pytest plugin too: modules that name it in ``pytest_plugins`` have the fixtures below.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs
from runs import DEMO_CAPTURE

from maskfield_ns.data import layouts
from maskfield_ns.data.dataparsers.indexed import ReplicaDataParserConfig, ScanNetOvDataParserConfig
from maskfield_ns.data.dataparsers.lerf_mask import LerfMaskDataParserConfig
from maskfield_ns.data.dataparsers.ovs3d import Ovs3dDataParserConfig
from maskfield_ns.data.dataparsers.polygons import LerfOvsDataParserConfig, MipNerf360DataParserConfig
from maskfield_ns.errors import BenchmarkError

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))

import fixture_formats as formats

CONFIGS: dict[str, Callable[..., Any]] = {
    "3d-ovs": Ovs3dDataParserConfig,
    "lerf-ovs": LerfOvsDataParserConfig,
    "lerf-mask": LerfMaskDataParserConfig,
    "replica": ReplicaDataParserConfig,
    "scannet": ScanNetOvDataParserConfig,
    "mipnerf360": lambda **more: MipNerf360DataParserConfig(downscale_factor=8, **more),
    "semantic-nerf": ReplicaDataParserConfig,
}
"""Format -> dataparser config."""


def source(frames: int = 14, labelled: int = 4, scale: float = 0.5) -> formats.Source:
    """The demo capture made small."""
    return formats.read_source(DEMO_CAPTURE, frames, labelled, scale)


def scene(folder: Path, kind: str, capture: formats.Source) -> Path:
    """A scene in a benchmark's format; returns its folder."""
    return formats.WRITERS[kind](capture, folder)


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


def labels_of(kind: str, path: Path) -> Path:
    """Where a scene keeps its labels."""
    places = {"3d-ovs": path / "segmentations", "lerf-mask": path / "test_mask"}
    return places.get(kind, path.parent / "label" / path.name if kind in ("lerf-ovs", "mipnerf360") else path)


def protocol_of(kind: str) -> str:
    return "replica" if kind == "semantic-nerf" else kind


def refused(action: Callable[[], Any], *parts: str) -> None:
    with pytest.raises(BenchmarkError) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message


@pytest.fixture(scope="session")
def capture() -> formats.Source:
    """What all scenes are made of."""
    return source()


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory, capture: formats.Source) -> dict[str, Path]:
    """A scene of every format; not to be changed."""
    return {kind: scene(tmp_path_factory.mktemp(kind), kind, capture) for kind in CONFIGS}


@pytest.fixture
def copy(scenes: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    """Makes a copy of a scene, with what lies beside it, that may be broken."""

    def make(kind: str) -> Path:
        top = scenes[kind] if kind != "semantic-nerf" else scenes[kind].parent
        shutil.copytree(top.parent, tmp_path / "copies" / kind)
        return tmp_path / "copies" / kind / scenes[kind].relative_to(top.parent)

    return make
