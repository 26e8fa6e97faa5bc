"""Other systems than the mask field on Gaussians: trained a few steps, opened again, asked, selected and evaluated."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from runs import make_small_demo, small_splat_config, train

from maskfield_ns.scene import Scene
from maskfield_ns.systems.base import SystemConfig
from maskfield_ns.systems.dense.system import DenseConfig
from maskfield_ns.systems.mask_field.published import PublishedConfig

pytestmark = pytest.mark.slow

SYSTEMS: dict[str, SystemConfig] = {
    "dff of dense maps": DenseConfig(feature_dim=32, num_codes=40),
    "MaskField's rule": PublishedConfig(num_queries=60),
}


@pytest.fixture(scope="module")
def capture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_small_demo(tmp_path_factory.mktemp("systems") / "capture", points=True)


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_system_is_trained_opened_asked_selected_and_evaluated(name: str, capture: Path, tmp_path: Path) -> None:
    system = SYSTEMS[name]
    config = small_splat_config(capture, tmp_path / "runs", "run", 150, 30)
    config.pipeline.model.system = system
    scene = Scene.load(train(config))
    model = scene.model
    assert type(model.config.system) is type(system) and model.system.fitted
    there, absent = scene.query(["wooden table", "elephant"])
    assert there.score > absent.score
    (camera,) = scene.cameras("test", scale=0.5)[:1]
    view = scene.render(camera, [there, absent])
    table, elephant = view.relevancy["wooden table"], view.relevancy["elephant"]
    assert table.shape == view.depth.shape and table.max() > elephant.max()
    best = int(torch.argmax(model.ask(["wooden table"]).scores[0]))
    assert not scene.select([best]).empty
    figures = scene.pipeline.get_average_eval_image_metrics()
    assert 0 < figures["class_miou"] <= 1 and "query_miou" in figures
