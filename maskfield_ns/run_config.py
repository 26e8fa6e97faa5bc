"""Reading a run's config.yml: as data where possible, as a program only when the user says so.

nerfstudio writes its configs as YAML that names classes and functions by import path, and its own commands construct
whatever is named: such a file can do all that a program can.
"""

from __future__ import annotations

import importlib
import os
from dataclasses import is_dataclass
from enum import Enum
from functools import lru_cache
from importlib import metadata
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any

import yaml

from maskfield_ns.errors import CheckpointError
from maskfield_ns.old_addresses import answer_old_names
from maskfield_ns.startup import import_trainer

if TYPE_CHECKING:
    from nerfstudio.engine.trainer import TrainerConfig

MAX_CONFIG_BYTES = 1 << 22
"""Configs of nerfstudio have ten to twenty kilobytes."""
_TAG = "tag:yaml.org,2002:python/"
_PLUGIN_GROUPS = ("nerfstudio.method_configs", "nerfstudio.dataparser_configs")
_PLUGIN_VARIABLES = ("NERFSTUDIO_METHOD_CONFIGS", "NERFSTUDIO_DATAPARSER_CONFIGS")
TRUST_VARIABLE = "MASKFIELD_TRUST"
"""Set to 1 in the environment, runs are opened as with ``trust``; ns-* commands have no option for it."""
_FUNCTIONS = frozenset({"nerfstudio.data.utils.nerfstudio_collate.nerfstudio_collate"})
"""Functions that configs of nerfstudio's methods name; all else that may be named is a class."""


def read_config(path: Path, trust: bool = False) -> TrainerConfig:
    """The config of a run. The one place of this package where a config is loaded.

    Args:
        path: of the config.yml.
        trust: load it as nerfstudio's commands do, with whatever it names: WITH THIS, OPENING A FILE RUNS IT LIKE A
            PROGRAM. Without, it may build nothing but settings (dataclasses, paths, enumerations) of nerfstudio, of
            this package and of nerfstudio plugins that are installed, which no honest config goes beyond.

    Raises:
        CheckpointError: it cannot be read, is no config of nerfstudio, or names more than that.
    """
    answer_old_names()
    import_trainer()
    from nerfstudio.engine.trainer import TrainerConfig

    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise CheckpointError(f"{path} is too large for a config.yml of nerfstudio")
        trust = trust or os.environ.get(TRUST_VARIABLE, "") not in ("", "0")
        text = path.read_text(encoding="utf-8")
        config = yaml.load(text, Loader=yaml.UnsafeLoader if trust else _SettingsLoader)
    except _ForeignName as error:
        raise CheckpointError(
            f"{path} names {error}, which is no setting of nerfstudio, of this package or of an installed plugin of "
            "nerfstudio: opening it would run foreign code. If you know where the run comes from, say so with "
            f"{TRUST_VARIABLE}=1 in the environment"
        ) from error
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    except CheckpointError:
        raise
    except Exception as error:  # yaml, and the constructors of what is named, raise anything
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path} is no config.yml of nerfstudio: {type(error).__name__}: {reason}") from error
    if not isinstance(config, TrainerConfig):
        raise CheckpointError(f"{path} is no config.yml of nerfstudio: it holds a {type(config).__name__}")
    pipeline = getattr(config, "pipeline", None)
    if not (hasattr(pipeline, "model") and hasattr(pipeline, "datamanager") and isinstance(config.method_name, str)):
        raise CheckpointError(f"{path} is no complete config.yml of nerfstudio")
    return config


class _ForeignName(Exception):
    """A name that a config read as data must not use."""


@lru_cache(maxsize=1)
def _packages() -> frozenset[str]:
    """Top-level packages whose settings a config may name."""
    found = metadata.entry_points()
    places = [point.value for group in _PLUGIN_GROUPS for point in found.select(group=group)]
    # Plugins under development are named by "method=module:attribute" pairs instead.
    pairs = [pair for variable in _PLUGIN_VARIABLES for pair in os.environ.get(variable, "").split(",")]
    places += [pair.partition("=")[2] for pair in pairs if "=" in pair]
    return frozenset({"nerfstudio", "maskfield_ns"} | {place.partition(":")[0].split(".")[0] for place in places})


def _named(name: str) -> Any:
    """The class (or one of few functions) that a config names.

    Raises:
        _ForeignName: it is none, or of a package that is not allowed.
    """
    module_name, _, attribute = name.rpartition(".")
    ours = module_name.partition(".")[0] in _packages()
    if not (ours or module_name.startswith("torch.optim")) or not all(p.isidentifier() for p in name.split(".")):
        raise _ForeignName(name)
    try:
        found = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise CheckpointError(f"it names {name}, which is not there: a run of another version?") from error
    if name not in _FUNCTIONS and not isinstance(found, type):
        raise _ForeignName(name)
    return found


class _SettingsLoader(yaml.SafeLoader):
    """YAML with the Python objects that settings are made of."""

    def name(self, suffix: str, node: yaml.Node) -> Any:
        """``python/name:``, a class."""
        return _named(suffix)

    def setting(self, suffix: str, node: yaml.Node) -> Any:
        """``python/object:``, a dataclass with its fields."""
        kind = _named(suffix)
        if not (isinstance(kind, type) and is_dataclass(kind) and isinstance(node, yaml.MappingNode)):
            raise _ForeignName(suffix)
        setting: Any = kind.__new__(kind)
        yield setting
        fields = self.construct_mapping(node, deep=True)
        if not all(isinstance(key, str) and key.isidentifier() and not key.startswith("__") for key in fields):
            raise _ForeignName(suffix)
        restore = getattr(setting, "__setstate__", setting.__dict__.update)  # a config may know its earlier forms
        restore(fields)

    def applied(self, suffix: str, node: yaml.Node) -> Any:
        """``python/object/apply:``, a path, a member of an enumeration, or a class with a class as its parameter."""
        values = self.construct_sequence(node, deep=True) if isinstance(node, yaml.SequenceNode) else []
        if suffix == "_operator.getitem" and len(values) == 2 and all(isinstance(value, type) for value in values):
            return values[0][values[1]]  # VanillaDataManager[DepthDataset]
        if suffix == "builtins.getattr" and len(values) == 2:  # how Python 3.11.0 to 3.11.3 writes a member
            members = values[0].__members__ if isinstance(values[0], type) and issubclass(values[0], Enum) else {}
            if isinstance(values[1], str) and values[1] in members:
                return members[values[1]]
        if not all(isinstance(value, (str, int, float)) for value in values):
            raise _ForeignName(suffix)
        if suffix.startswith("pathlib."):
            if suffix.endswith(".WindowsPath"):
                return Path(PureWindowsPath(*map(str, values)).as_posix())
            return Path(*map(str, values))
        kind = _named(suffix)
        if not issubclass(kind, Enum):
            raise _ForeignName(suffix)
        return kind(*values)

    def pair(self, node: yaml.Node) -> tuple:
        """``python/tuple``."""
        if not isinstance(node, yaml.SequenceNode):
            raise _ForeignName("a tuple that is no list")
        return tuple(self.construct_sequence(node, deep=True))

    def foreign(self, suffix: str, node: yaml.Node) -> Any:
        """All other Python objects."""
        raise _ForeignName(suffix)


_SettingsLoader.add_multi_constructor(_TAG + "name:", _SettingsLoader.name)
_SettingsLoader.add_multi_constructor(_TAG + "object/apply:", _SettingsLoader.applied)
_SettingsLoader.add_multi_constructor(_TAG + "object:", _SettingsLoader.setting)
_SettingsLoader.add_constructor(_TAG + "tuple", _SettingsLoader.pair)
_SettingsLoader.add_multi_constructor(_TAG, _SettingsLoader.foreign)
