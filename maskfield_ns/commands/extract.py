"""``maskfield extract``."""

from __future__ import annotations

import copy
import shlex
from pathlib import Path
from typing import Any

from maskfield_ns.errors import MaskfieldError


def extract(data: Path, method: str, cache_dir: Path | None, proposer: str, embedder: str) -> None:
    """Builds the mask cache that ``ns-train METHOD --data DATA`` will read, and says how to use it.

    Args:
        data: capture folder, or its transforms.json.
        method: name of a registered method; its foundation models are used.
        cache_dir: folder of the cache; None: inside the capture.
        proposer: kind of proposer (``mask_source.PROPOSERS``), or "preset" for the method's own.
        embedder: kind of embedder (``datamanager.EMBEDDERS``), or "preset".

    Raises:
        MaskfieldError: no such method; a broken capture; weights that cannot be had; a cache that cannot be written.
    """
    config = method_config(method)
    from maskfield_ns.data import mask_source

    settings = config.pipeline.datamanager
    settings.data, settings.cache_dir = data, cache_dir
    settings.proposer_kind, settings.embedder_kind = proposer, embedder
    report = mask_source.extract(settings, config.machine.device_type)
    command = ["ns-train", method, "--data", str(data)]
    for flag, value, default in (
        ("cache-dir", cache_dir, None),
        ("proposer-kind", proposer, "preset"),
        ("embedder-kind", embedder, "preset"),
    ):
        if value != default:
            command += [f"--pipeline.datamanager.{flag}", str(value)]
    print(f"cache: {report.folder}\ntrain with it: {shlex.join(command)}")


def method_config(name: str) -> Any:
    """A copy of a method's trainer config, to be changed freely.

    Raises:
        MaskfieldError: this package registers no such method.
    """
    from nerfstudio.plugins.types import MethodSpecification

    from maskfield_ns import configs

    known = {
        str(spec.config.method_name): spec for spec in vars(configs).values() if isinstance(spec, MethodSpecification)
    }
    if name not in known:
        raise MaskfieldError(f"there is no method {name!r}; methods with mask fields: {', '.join(sorted(known))}")
    return copy.deepcopy(known[name].config)
