"""Runs of earlier versions name classes by the addresses they had."""

from __future__ import annotations

import importlib

import pytest
import yaml

import maskfield_ns.configs  # noqa: F401 - installs the old names, as every ns-* command does
from maskfield_ns.old_addresses import MOVED


@pytest.mark.parametrize("old", sorted(MOVED))
def test_an_old_name_is_the_new_module_itself(old: str) -> None:
    assert importlib.import_module(old) is importlib.import_module(MOVED[old])


def test_a_config_of_the_first_version_is_read() -> None:
    text = """\
- !!python/object:maskfield_ns.queries.decision.DecisionRule {found_threshold: 0.365}
- !!python/object:maskfield_ns.models.mask_stage.MaskStageConfig {rule: consensus}
- !!python/name:maskfield_ns.models.pipeline.MaskfieldPipeline ''
"""
    from maskfield_ns.answers.decision import DecisionRule
    from maskfield_ns.pipeline import MaskfieldPipeline
    from maskfield_ns.systems.mask_field.mask_stage import MaskStageConfig

    rule, stage, pipeline = yaml.load(text, Loader=yaml.Loader)
    assert type(rule) is DecisionRule and rule == DecisionRule()
    assert type(stage) is MaskStageConfig
    assert pipeline is MaskfieldPipeline
