"""Modules that have moved, found under the names by which config.yml files of earlier versions know their classes."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
from types import ModuleType

MOVED = {
    "maskfield_ns.models.pipeline": "maskfield_ns.pipeline",
    "maskfield_ns.models.mask_stage": "maskfield_ns.systems.mask_field.mask_stage",
    "maskfield_ns.queries": "maskfield_ns.systems.mask_field",
    "maskfield_ns.queries.decision": "maskfield_ns.answers.decision",
}
"""Old name -> new name, of every module whose classes a config.yml has named."""


class _Moved(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports the new module when the old one is asked for."""

    def find_spec(self, fullname: str, path: object, target: object = None) -> importlib.machinery.ModuleSpec | None:
        return importlib.machinery.ModuleSpec(fullname, self) if fullname in MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        # The import system hands out what stands in sys.modules after this: the one and only new module.
        sys.modules[module.__name__] = importlib.import_module(MOVED[module.__name__])


def answer_old_names() -> None:
    """Lets old names be imported, from now on; safe to call again."""
    if not any(isinstance(finder, _Moved) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Moved())
