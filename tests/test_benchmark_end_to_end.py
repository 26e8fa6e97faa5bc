"""A benchmark scene through nerfstudio: trained without labels, evaluated by its protocol, scored again from disk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fixtures_on_disk import scene, source
from runs import OpenedFiles, small_config, train

from maskfield_ns.commands.bench import find_results
from maskfield_ns.data.dataparsers.ovs3d import Ovs3dDataParserConfig
from maskfield_ns.evaluation.protocols.registry import BENCHMARKS, score_folder

pytestmark = pytest.mark.slow


def test_training_evaluation_and_score_of_a_3d_ovs_scene(tmp_path: Path) -> None:
    from nerfstudio.scripts.eval import ComputePSNR

    data = scene(tmp_path / "data", "3d-ovs", source(frames=12, labelled=3, scale=0.4))
    config = small_config(data, tmp_path / "runs", "run", colour_steps=150, mask_steps=30)
    config.pipeline.datamanager.dataparser = Ovs3dDataParserConfig()
    recorder = OpenedFiles()
    with recorder.record() as opened:
        run = train(config)
    assert any("images_8" in path for path in opened), "the recorder saw nothing"
    assert not [path for path in opened if "segmentations" in path], "labels are for evaluation only"

    folder = run.parent
    ComputePSNR(run, folder / "benchmark.json", folder / "eval").main()
    results = json.loads((folder / "benchmark.json").read_text())["results"]
    (found,) = find_results(folder)
    assert found.method == "maskfield-lite"
    assert found.details["labelled_views_trained"] is True and len(found.details["views"]) == 3
    assert results["miou"] == found.details["figures"]["miou"] > 0.02
    assert Path(found.details["worst_cases"]).is_file()

    protocol = BENCHMARKS["3d-ovs"]
    labels = protocol.open_labels(data / "segmentations", None)
    again = score_folder(protocol, folder / "eval" / "predictions", labels)
    for key in ("miou", "accuracy"):
        assert again.figures[key] == pytest.approx(results[key], abs=1e-6)
