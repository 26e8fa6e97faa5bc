"""ns-eval, ns-viewer, ns-render and ns-export open runs of our methods as every other command of this package does."""

from __future__ import annotations

import functools
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

_EVAL_UTILS = "nerfstudio.utils.eval_utils"


def open_runs_where_they_are() -> None:
    """Let ns-eval, ns-viewer, ns-render and ns-export open our runs by :func:`maskfield_ns.runs.open_run`.

    nerfstudio 1.1.5 opens the checkpoint in the folder that the training was started with, whichever config.yml it is
    given: of a copied run it opens the original, and ns-viewer writes into that (no upstream issue known). Relative
    paths are taken from the current folder, and a run trained on Windows ends in a traceback.

    The commands fetch ``eval_setup`` from a module that imports this plugin before it has defined it; so the module is
    given a class whose property stands before its own entry. Other methods' runs are opened as ever.
    """
    module = sys.modules.get(_EVAL_UTILS)
    if module is not None:
        module.__class__ = _EvalUtils
    elif not any(isinstance(finder, _EvalUtilsFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _EvalUtilsFinder())


class _EvalUtils(ModuleType):
    """nerfstudio's module of that name, with our way to open our runs."""

    @property
    def eval_setup(self) -> Callable[..., Any]:
        """nerfstudio's function for others' runs, :func:`maskfield_ns.runs.open_run` for ours."""
        try:
            original = self.__dict__["eval_setup"]
        except KeyError as error:
            raise AttributeError("eval_setup") from error  # the module is still being imported

        @functools.wraps(original)
        def setup(
            config_path: Path,
            eval_num_rays_per_chunk: int | None = None,
            test_mode: Literal["test", "val", "inference"] = "test",
            update_config_callback: Callable[[Any], Any] | None = None,
        ) -> tuple[Any, Any, Path, int]:
            from nerfstudio.utils.rich_utils import CONSOLE

            from maskfield_ns.runs import find_config, is_ours, open_run

            if config_path.is_file() and not is_ours(config_path):
                return original(config_path, eval_num_rays_per_chunk, test_mode, update_config_callback)
            run = open_run(
                find_config(config_path),
                test_mode=test_mode,
                rays_per_chunk=eval_num_rays_per_chunk,
                update=update_config_callback,
            )
            CONSOLE.print(f"Checkpoint: {run.checkpoint}", soft_wrap=True)
            return run.config, run.pipeline, run.checkpoint, run.step

        return setup

    @eval_setup.setter
    def eval_setup(self, value: Callable[..., Any]) -> None:
        self.__dict__["eval_setup"] = value


class _EvalUtilsFinder(importlib.abc.MetaPathFinder):
    """Waits for nerfstudio's module to be imported, where this plugin came first."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        """The module as the other finders see it; on loading, it is given its new class."""
        if fullname != _EVAL_UTILS:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                module.__class__ = _EvalUtils
                execute(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
