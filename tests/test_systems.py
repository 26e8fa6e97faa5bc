"""Systems: found by name, opened from configs and checkpoints of earlier versions."""

from __future__ import annotations

import copy
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import pytest
import torch
import yaml
from toy_scene import gaussian_scene

import maskfield_ns.configs  # noqa: F401 - installs the old names, as every ns-* command does
from maskfield_ns.errors import MaskfieldError
from maskfield_ns.models.splat import MaskfieldSplatModelConfig
from maskfield_ns.systems import registry
from maskfield_ns.systems.base import System, SystemConfig
from maskfield_ns.systems.mask_field.mask_stage import MaskStageConfig
from maskfield_ns.systems.mask_field.published import PublishedConfig


@pytest.mark.parametrize("name", sorted(registry.SYSTEMS))
def test_every_system_is_made_by_its_name(name: str) -> None:
    system = registry.system_config(name).setup(embedding_dim=8)
    assert isinstance(system, System)
    assert system.channels > 0 and not system.fitted
    with pytest.raises(Exception, match="query head"):  # nothing else may pass for a checkpoint
        system.restore({})


def test_another_package_brings_a_system(monkeypatch: pytest.MonkeyPatch) -> None:
    place = f"{PublishedConfig.__module__}:PublishedConfig"
    points = EntryPoints(
        [EntryPoint("mine", place, registry.GROUP), EntryPoint("broken", "no.such:thing", registry.GROUP)]
    )
    monkeypatch.setattr(registry, "entry_points", lambda group: points.select(group=group))
    assert "mine" in registry.names()
    assert isinstance(registry.system_config("mine"), PublishedConfig)
    with pytest.raises(MaskfieldError, match="broken"):
        registry.system_config("broken")
    with pytest.raises(MaskfieldError, match="mask-field"):
        registry.system_config("unheard-of")


@pytest.mark.parametrize(("rule", "kind"), [("consensus", MaskStageConfig), ("reference", PublishedConfig)])
def test_a_config_of_the_first_version_names_its_system(rule: str, kind: type[SystemConfig]) -> None:
    text = f"""\
!!python/object:maskfield_ns.models.splat.MaskfieldSplatModelConfig
feature_dim: 12
mask_stage: !!python/object:maskfield_ns.models.mask_stage.MaskStageConfig
  {{rule: {rule}, num_queries: 33, dice_weight: 1.0}}
phrases: !!python/tuple [mug]
"""
    config = yaml.load(text, Loader=yaml.Loader)
    assert isinstance(config, MaskfieldSplatModelConfig) and config.phrases == ("mug",)
    assert type(config.system) is kind
    assert (config.system.num_queries, config.system.feature_dim) == (33, 12)
    assert copy.deepcopy(config).system == config.system


def test_a_checkpoint_of_the_first_version_keeps_its_queries(tmp_path: Path) -> None:
    model = gaussian_scene(tmp_path).model
    state = {name.removeprefix("system."): tensor.clone() for name, tensor in model.state_dict().items()}
    vectors = torch.randn_like(state["query_head.semantic_table"])
    state["query_head.semantic_table"] = vectors
    model.load_state_dict(state)
    assert torch.equal(model.query_head.embeddings, vectors)


@pytest.mark.parametrize("name", registry.SYSTEMS)
def test_nerfstudios_viewer_can_look_through_a_system_that_has_not_begun(name: str) -> None:
    """It reads every attribute of everything in a pipeline, properties too."""
    from nerfstudio.viewer.utils import parse_object
    from nerfstudio.viewer.viewer_elements import ViewerElement

    assert parse_object(registry.system_config(name).setup(None), ViewerElement, "here") == []
