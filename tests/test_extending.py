"""The examples of docs/extending.md, as another package would bring them."""

from __future__ import annotations

import importlib.metadata
import re
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType

import pytest
from runs import make_small_demo

from maskfield_ns.errors import MaskfieldError
from maskfield_ns.foundation import registry
from maskfield_ns.foundation.config import TinyClipConfig, TinySamConfig

PAGE = Path(__file__).parents[1] / "docs" / "extending.md"


@pytest.fixture
def my_package(monkeypatch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    """The modules of the page, installed with the entry points of the page."""
    text = PAGE.read_text(encoding="utf-8")
    entries: dict[str, list[EntryPoint]] = {}
    for group, name, value in re.findall(r'entry-points\."([\w.]+)"\]\n([\w-]+) = "([\w.:]+)"', text):
        entries.setdefault(group, []).append(EntryPoint(name, value, group))
    genuine = importlib.metadata.entry_points

    def found(**wanted: str) -> object:
        return entries.get(wanted.get("group", ""), []) or genuine(**wanted)

    monkeypatch.setattr(importlib.metadata, "entry_points", found)
    codes = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    addresses = [points[0].value.partition(":")[0] for points in entries.values()]
    assert len(codes) == len(addresses) == 3
    modules = {}
    monkeypatch.setitem(sys.modules, "my_package", ModuleType("my_package"))
    for address, code in zip(addresses, codes, strict=True):
        module = ModuleType(address)
        monkeypatch.setitem(sys.modules, address, module)
        exec(compile(code, str(PAGE), "exec"), module.__dict__)
        modules[address] = module
    return modules


def test_a_cache_is_made_with_models_of_another_package(my_package: dict[str, ModuleType], tmp_path: Path) -> None:
    from maskfield_ns.data import mask_source

    config = my_package["my_package.method"].superpixel_field.config
    settings = config.pipeline.datamanager
    settings.data = make_small_demo(tmp_path / "capture", frames=3, held_out=(1,))
    report = mask_source.extract(settings, "cpu")
    assert report.built == 2
    assert settings.get_proposer().fingerprint()["parameters"]["segments"] == [60, 20, 6]
    vectors = settings.get_embedder().setup("cpu").embed_texts(["a red mug", "a green mug"])
    assert vectors.shape == (2, 4) and abs(float(vectors[0] @ vectors[1])) < 0.9


def test_names_that_nobody_installed_are_refused_with_those_there_are(my_package: dict[str, ModuleType]) -> None:
    with pytest.raises(MaskfieldError, match=r"no proposer 'mine'; there are preset, sam, .*superpixels"):
        registry.proposer_config("mine", TinySamConfig())
    with pytest.raises(MaskfieldError, match=r"no embedder 'mine'; there are preset, open-clip, tiny-clip, colors"):
        registry.embedder_config("mine", TinyClipConfig())


def test_another_package_that_breaks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = [
        EntryPoint("gone", "no_such_package.module:Config", registry.PROPOSER_GROUP),
        EntryPoint("wrong", "pathlib:Path", registry.PROPOSER_GROUP),
    ]
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda **_: broken)
    with pytest.raises(MaskfieldError, match=r"'gone' \(no_such_package.module:Config\) cannot be used: ModuleNot"):
        registry.proposer_config("gone", TinySamConfig())
    with pytest.raises(MaskfieldError, match=r"'wrong' \(pathlib:Path\) is no ProposerConfig"):
        registry.proposer_config("wrong", TinySamConfig())


def test_the_preset_is_the_method_s_own() -> None:
    own = TinySamConfig()
    assert registry.proposer_config("preset", own) is own
