"""Configs of runs: read as data; what names more than settings is refused, and run when the user says so."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from maskfield_ns.errors import CheckpointError
from maskfield_ns.run_config import TRUST_VARIABLE, read_config


@pytest.fixture(scope="module")
def methods() -> dict[str, Any]:
    from nerfstudio.configs.method_configs import all_methods
    from nerfstudio.engine.trainer import TrainerConfig

    return {name: c for name, c in all_methods.items() if isinstance(c, TrainerConfig) and hasattr(c.pipeline, "model")}


def test_every_methods_config_is_read_as_nerfstudio_reads_it(methods: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "config.yml"
    for name in ("maskfield", "maskfield-splat-lite", "nerfacto", "splatfacto", "depth-nerfacto", "neus-facto"):
        text = yaml.dump(methods[name])
        path.write_text(text)
        assert yaml.dump(read_config(path)) == yaml.dump(yaml.load(text, Loader=yaml.UnsafeLoader))


FOREIGN = {
    "a function": "!!python/object/apply:os.system ['touch {0}']",
    "a call": "!!python/object/apply:subprocess.Popen [['touch', '{0}']]",
    "a call with state": "!!python/object/apply:os.system {{args: ['touch {0}']}}",
    "new": "!!python/object/new:os.system ['touch {0}']",
    "a module": "!!python/module:evil",
    "a name": "!!python/name:os.system",
    "a name of our packages that is no class": "!!python/name:nerfstudio.utils.scripts.run_command",
    "a path to a function": "!!python/object/apply:nerfstudio.utils.scripts.run_command ['touch {0}']",
    "an object": "!!python/object:evil.Thing {{}}",
    "a class that is no setting": "!!python/object:nerfstudio.engine.trainer.Trainer {{}}",
    "a class that is called": "!!python/object/apply:nerfstudio.engine.trainer.TrainerConfig []",
    "a dunder field": "!!python/object:nerfstudio.configs.base_config.MachineConfig {{__class__: 1}}",
    "an attribute": "!!python/object/apply:builtins.getattr [!!python/name:nerfstudio.utils.writer.EventName '', mro]",
    "an attribute of no enumeration": (
        "!!python/object/apply:builtins.getattr [!!python/name:nerfstudio.engine.trainer.TrainerConfig '', setup]"
    ),
    "a subscript": "!!python/object/apply:_operator.getitem [{{a: !!python/name:os.system }}, a]",
}


@pytest.mark.parametrize("what", FOREIGN)
def test_what_is_no_setting_is_refused_and_does_not_run(
    methods: dict[str, Any], tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    path, ran = tmp_path / "config.yml", tmp_path / "ran"
    text = yaml.dump(methods["maskfield-lite"])
    path.write_text(text.replace("prompt: null", "prompt: " + FOREIGN[what].format(ran), 1))
    with pytest.raises(CheckpointError, match=rf"config\.yml.*{TRUST_VARIABLE}=1") as caught:
        read_config(path)
    assert "\n" not in str(caught.value)
    assert not ran.exists() and not (tmp_path / "imported").exists()


def test_trust_runs_it(methods: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, ran = tmp_path / "config.yml", tmp_path / "ran"
    text = yaml.dump(methods["maskfield-lite"])
    path.write_text(text.replace("prompt: null", f"prompt: !!python/object/apply:os.system ['touch {ran}']", 1))
    read_config(path, trust=True)
    assert ran.exists()
    ran.unlink()
    monkeypatch.setenv(TRUST_VARIABLE, "1")
    read_config(path)
    assert ran.exists()


@pytest.mark.parametrize("text", ["", "a: b", "[" * 5000, "\x00", "&a [*a]", "!!python/tuple {}", "x: !!int y"])
def test_what_is_no_config_is_a_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.yml"
    path.write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.yml") as caught:
        read_config(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(CheckpointError, match="cannot read"):
        read_config(tmp_path / "none.yml")


def test_paths_of_another_system_are_read(methods: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "config.yml"
    text = yaml.dump(methods["maskfield-lite"])
    windows = "output_dir: !!python/object/apply:pathlib.WindowsPath ['C:\\\\', runs]"
    path.write_text(text.replace("output_dir: !!python/object/apply:pathlib.PosixPath\n- outputs", windows, 1))
    assert read_config(path).output_dir == Path("C:/runs")


def test_members_of_enumerations_are_read_as_some_pythons_write_them(methods: dict[str, Any], tmp_path: Path) -> None:
    """Python 3.11.0 to 3.11.3 pickle them as attributes, all others by value."""
    from nerfstudio.utils.writer import EventName

    path = tmp_path / "config.yml"
    text = yaml.dump(methods["maskfield-lite"])
    member = "!!python/object/apply:builtins.getattr [!!python/name:nerfstudio.utils.writer.EventName '', ETA]"
    path.write_text(text.replace("\nload_step: null", f"\nload_step: {member}", 1))
    assert read_config(path).load_step is EventName.ETA


def test_an_insertion_does_not_run_another_runs_config(methods: dict[str, Any], tmp_path: Path) -> None:
    """edits.json is data, and must not name a program."""
    from maskfield_ns.runs import as_trained, open_run

    path, ran = tmp_path / "config.yml", tmp_path / "ran"
    path.write_text(f"!!python/object/apply:os.system ['touch {ran}']")
    (tmp_path / "nerfstudio_models").mkdir()
    (tmp_path / "nerfstudio_models" / "step-000000001.ckpt").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"posix\.system|os\.system"):
        open_run(path, update=as_trained)
    assert not ran.exists()


def test_a_plugin_under_development_is_a_plugin(tmp_path: Path) -> None:
    (tmp_path / "my_plugin.py").write_text(
        "from dataclasses import dataclass\n@dataclass\nclass Setting:\n    value: int = 1\n"
    )
    (tmp_path / "x.yml").write_text("!!python/object:my_plugin.Setting {value: 2}")
    code = (
        "import sys; from pathlib import Path; from maskfield_ns.run_config import read_config\n"
        "try: read_config(Path(sys.argv[1]))\nexcept Exception as error: print(error)"
    )
    for value, says in (("mine=my_plugin:method", "holds a Setting"), ("", "names my_plugin.Setting")):
        environment = {"NERFSTUDIO_METHOD_CONFIGS": value, "PYTHONPATH": ":".join([str(tmp_path), *sys.path])}
        run = subprocess.run(
            [sys.executable, "-c", code, tmp_path / "x.yml"], capture_output=True, text=True, env=environment
        )
        assert says in run.stdout, run.stdout + run.stderr
