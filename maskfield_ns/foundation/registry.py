"""Kinds of proposers and embedders by name: the package's own, and those that other packages add by entry points.

A package adds a kind with one line in its pyproject.toml; docs/extending.md has examples:

    [project.entry-points."maskfield_ns.proposers"]
    superpixels = "my_package.superpixels:SuperpixelConfig"
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from maskfield_ns.errors import MaskfieldError
from maskfield_ns.foundation.base import EmbedderConfig, ProposerConfig
from maskfield_ns.foundation.config import (
    MergedConfig,
    OpenClipConfig,
    RegionsConfig,
    SamConfig,
    TinyClipConfig,
    TinySamConfig,
)
from maskfield_ns.foundation.given_masks import GivenMasksConfig

PRESET = "preset"
"""The name that stands for the method's own proposer or embedder."""
PROPOSERS: Mapping[str, type[ProposerConfig]] = {
    "sam": SamConfig,
    "tiny-sam": TinySamConfig,
    "regions": RegionsConfig,
    "merged": MergedConfig,
}
EMBEDDERS: Mapping[str, type[EmbedderConfig]] = {"open-clip": OpenClipConfig, "tiny-clip": TinyClipConfig}
PROPOSER_GROUP, EMBEDDER_GROUP = "maskfield_ns.proposers", "maskfield_ns.embedders"
"""Entry points; each names a config class with default settings."""

C = TypeVar("C", ProposerConfig, EmbedderConfig)


def proposer_config(kind: str, preset: ProposerConfig) -> ProposerConfig:
    """The proposer of a kind, with its default settings.

    Args:
        kind: its name, or :data:`PRESET`; "given:PATH" reads masks from files (:mod:`.given_masks`).
        preset: the method's own.

    Raises:
        MaskfieldError: nothing of that name is installed, or it cannot be imported.
    """
    name, colon, path = kind.partition(":")
    if name == "given":
        return GivenMasksConfig(Path(path).expanduser() if colon else None)
    return preset if kind == PRESET else _made(kind, PROPOSERS, PROPOSER_GROUP, ProposerConfig)


def embedder_config(kind: str, preset: EmbedderConfig) -> EmbedderConfig:
    """The embedder of a kind; arguments and errors as :func:`proposer_config`."""
    return preset if kind == PRESET else _made(kind, EMBEDDERS, EMBEDDER_GROUP, EmbedderConfig)


def _made(kind: str, own: Mapping[str, type[C]], group: str, base: type[C]) -> C:
    if kind in own:
        return own[kind]()
    what = group.rpartition(".")[2].removesuffix("s")
    others = {entry.name: entry for entry in importlib.metadata.entry_points(group=group)}
    if kind not in others:
        names = ", ".join([PRESET, *own, *sorted(others)])
        raise MaskfieldError(f"there is no {what} {kind!r}; there are {names}")
    try:
        made = others[kind].load()()
    except Exception as error:  # another package's code
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise MaskfieldError(f"the {what} {kind!r} ({others[kind].value}) cannot be used: {reason}") from error
    if not isinstance(made, base):
        raise MaskfieldError(f"the {what} {kind!r} ({others[kind].value}) is no {base.__name__}")
    return made
