"""What config.yml files of earlier versions say about a model, in the present words."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from maskfield_ns.systems.base import SystemConfig
from maskfield_ns.systems.mask_field.mask_stage import MaskStageConfig
from maskfield_ns.systems.mask_field.published import PublishedConfig


def modern(state: dict[str, Any]) -> dict[str, Any]:
    """The fields of a model config; those of the first version have ``mask_stage`` with a rule, and no ``system``."""
    if "system" in state or "mask_stage" not in state:
        return state
    state = dict(state)
    stage = vars(state.pop("mask_stage"))
    kind: type[SystemConfig] = PublishedConfig if stage.get("rule") == "reference" else MaskStageConfig
    own = {f.name for f in fields(kind)} - {"_target", "dice_weight" if kind is PublishedConfig else ""}
    system = kind(**{name: value for name, value in stage.items() if name in own})
    widths = (state.pop("feature_dim", None), vars(state.get("mask_field", _Nothing())).get("feature_dim"))
    system.feature_dim = next((width for width in widths if width), system.feature_dim)
    state["system"] = system
    return state


class _Nothing:
    """In place of a config that is not there."""
