"""Model configs as nerfstudio uses them: defaults inside other configs, YAML, command lines."""

from dataclasses import FrozenInstanceError, dataclass, fields, replace
from pathlib import Path

import pytest
import tyro
import yaml

from maskfield_ns.cache.schema import canonical_json
from maskfield_ns.errors import WeightsError
from maskfield_ns.foundation import config as c

PROPOSERS = [c.SamConfig(), c.TinySamConfig(), c.RegionsConfig(), c.MergedConfig()]
EMBEDDERS = [c.OpenClipConfig(), c.TinyClipConfig()]


@dataclass
class Outer:
    """Stands for a nerfstudio config."""

    proposer: c.MergedConfig = PROPOSERS[-1]
    """Where masks come from."""
    embedder: c.OpenClipConfig = EMBEDDERS[0]
    """What embeds them."""


@pytest.mark.parametrize("config", [*PROPOSERS, *EMBEDDERS], ids=lambda config: type(config).__name__)
def test_yaml_round_trip(config):
    # The loader nerfstudio reads config.yml with.
    loaded = yaml.load(yaml.dump(config), Loader=yaml.Loader)
    assert loaded == config and type(loaded) is type(config)
    with pytest.raises(FrozenInstanceError):
        setattr(loaded, fields(loaded)[0].name, None)


def test_command_line(capsys):
    args = ["--proposer.sam.points-per-side", "8", "--proposer.regions.scales", "100", "300", "--embedder.model", "x"]
    outer = tyro.cli(Outer, args=args)
    assert outer.proposer.sam.points_per_side == 8 and outer.proposer.regions.scales == (100.0, 300.0)
    assert outer.embedder.model == "x"
    with pytest.raises(SystemExit):
        tyro.cli(Outer, args=["--help"])
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for text in ("Point prompts along each side", "Gaussian smoothing", "Pretrained tag"):
        assert text in shown


def test_every_parameter_is_in_the_fingerprint_unless_it_only_costs_time(tmp_path):
    weights = tmp_path / "w.safetensors"
    weights.write_bytes(b"x")
    silent = {"points_per_batch", "batch_size"}
    cases = [
        c.SamConfig(),
        c.TinySamConfig(weights=weights),
        c.RegionsConfig(),
        c.OpenClipConfig(),
        c.TinyClipConfig(weights=weights),
    ]
    other = {"model_type": "vit_b", "region_mode": "dense", "pretrained": "openai", "model": "ViT-B-32"}
    for config in cases:
        base = canonical_json(config.fingerprint())
        for field in fields(config):
            value = getattr(config, field.name)
            if isinstance(value, (Path, type(None))):
                continue
            if isinstance(value, str):
                changed = replace(config, **{field.name: other[field.name]})
            else:
                changed = replace(config, **{field.name: value * 2 or 1})
            differs = canonical_json(changed.fingerprint()) != base
            assert differs == (field.name not in silent), field.name


def test_a_deferred_model_tells_its_fingerprint_unloaded():
    deferred = c.RegionsConfig().deferred("cpu")
    assert deferred.fingerprint() == c.RegionsConfig().fingerprint() == deferred().fingerprint()


def test_merged_setup_is_what_its_fingerprint_says(tmp_path):
    from safetensors.torch import save_file

    from maskfield_ns.foundation.tiny.sam import build_tiny_sam

    weights = tmp_path / "w.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in build_tiny_sam().state_dict().items()}, weights)
    config = c.MergedConfig(sam=c.TinySamConfig(weights=weights))
    assert config.setup("cpu").fingerprint() == config.fingerprint()
    assert str(tmp_path) not in canonical_json(config.fingerprint())


@pytest.mark.parametrize("config", [c.TinySamConfig, c.TinyClipConfig])
def test_missing_weights_are_named(tmp_path, config):
    with pytest.raises(WeightsError, match=r"nothing\.safetensors"):
        config(weights=tmp_path / "nothing.safetensors").fingerprint()
