"""Systems by name: ours, and those that other packages bring (entry points of the group ``maskfield_ns.systems``)."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points

from maskfield_ns.errors import MaskfieldError
from maskfield_ns.systems.base import SystemConfig

SYSTEMS = {
    "mask-field": "maskfield_ns.systems.mask_field.mask_stage:MaskStageConfig",
    "maskfield-paper": "maskfield_ns.systems.mask_field.published:PublishedConfig",
    "dff": "maskfield_ns.systems.dense.system:DenseConfig",
}
"""Name -> config class."""
GROUP = "maskfield_ns.systems"


def names() -> tuple[str, ...]:
    """All systems that are at hand."""
    return (*SYSTEMS, *sorted({point.name for point in entry_points(group=GROUP)} - set(SYSTEMS)))


def system_config(name: str) -> SystemConfig:
    """The config of a system, with its defaults.

    Raises:
        MaskfieldError: there is no such system, or its package cannot be imported.
    """
    places = {point.name: point.value for point in entry_points(group=GROUP)} | SYSTEMS
    if name not in places:
        raise MaskfieldError(f"there is no system {name!r}; there are {', '.join(names())}")
    module, _, attribute = places[name].partition(":")
    try:
        config = getattr(import_module(module), attribute)()
    except (ImportError, AttributeError, TypeError) as error:
        raise MaskfieldError(f"the system {name!r} ({places[name]}) cannot be used: {error}") from error
    if not isinstance(config, SystemConfig):
        raise MaskfieldError(f"the system {name!r} ({places[name]}) is no SystemConfig")
    return config
