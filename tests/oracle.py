"""A model that knows everything, what ns-eval would make of it, and the command line in this process: fixtures."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from fixtures_on_disk import formats, frame_of, parse
from PIL import Image
from torch import Tensor

from maskfield_ns import cli
from maskfield_ns.answers.decision import DecisionRule
from maskfield_ns.answers.render import Outputs
from maskfield_ns.evaluation.benchmark import BenchmarkEvaluator
from maskfield_ns.systems.query_head import QueryHead

DIM = 24
Command = Callable[..., str]


class Oracle:
    """Query k of the whole level means label id k + 1; its features are made of the labels."""

    def __init__(self, capture: formats.Source) -> None:
        self.ids = sorted(capture.names)
        self.query_head = QueryHead(3 * DIM, 12, DIM)
        self.first = 2 * DIM
        self.query_head.support[self.first : self.first + len(self.ids)] = 9.0
        with torch.no_grad():
            self.query_head.semantic_table.copy_(torch.eye(DIM).repeat(3, 1))
        rule = DecisionRule(levels_agreeing=1, found_threshold=0.55)
        self.config = type("Config", (), {"decision": rule, "negatives": ("object",)})()
        self.meaning = {name.lower(): k for k, name in enumerate(capture.names[i] for i in self.ids)}
        self.meaning |= {capture.phrases[i]: k for k, i in enumerate(self.ids)}

    def text(self, phrases: Any) -> Tensor:
        return torch.stack([self._vector(phrase.lower()) for phrase in phrases])

    def _vector(self, phrase: str) -> Tensor:
        if phrase == "object":  # the negative, which resembles everything a little
            return torch.full((DIM,), DIM**-0.5)
        return torch.eye(DIM)[self.meaning.get(phrase, DIM - 1)]

    def outputs(self, ids: np.ndarray) -> Outputs:
        """What would be rendered where the labels are ``ids``."""
        table = torch.zeros(256, self.query_head.channels)
        for k, identity in enumerate(self.ids):
            vector = self.query_head.feature_vectors[self.first + k].detach()
            table[identity] = 30 * vector / vector.square().sum()
        outputs = Outputs({"rgb": torch.full((*ids.shape, 3), 0.5)})
        outputs.features = table[torch.from_numpy(ids.astype(np.int64))]
        return outputs


def ids_in(kind: str, capture: formats.Source, image: Path) -> np.ndarray:
    """Label ids as the image of a scene shows them."""
    ids = capture.frames[frame_of(kind, image)].ids
    with Image.open(image) as picture:
        width, height = picture.size
    if kind == "mipnerf360":
        return formats.distorted(ids, capture, (width, height), (-0.04, 0.01, 0.001, -0.001))
    if kind == "semantic-nerf":
        wide = np.zeros((height, width), np.uint8)
        own_height, own_width = ids.shape
        top, left = (height - own_height) // 2, (width - own_width) // 2
        wide[top : top + own_height, left : left + own_width] = ids
        return wide
    return cv2.resize(ids, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)


@dataclass
class Evaluated:
    """What ns-eval would leave behind."""

    figures: dict[str, float]
    details: dict[str, Any]
    folder: Path


@pytest.fixture(scope="session")
def evaluated(
    scenes: dict[str, Path], capture: formats.Source, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Evaluated]:
    done: dict[str, Evaluated] = {}

    def evaluate(kind: str) -> Evaluated:
        if kind not in done:
            options = {"rule": "semantic-nerf"} if kind == "semantic-nerf" else {}
            outputs = parse(kind, scenes[kind], "test", **options)
            folder = tmp_path_factory.mktemp(f"run_{kind}")
            oracle = Oracle(capture)
            evaluator = BenchmarkEvaluator(oracle, outputs.metadata["benchmark"], folder / "eval")
            for path in outputs.image_filenames:
                evaluator.add(f"{path.parent.name}/{path.name}", oracle.outputs(ids_in(kind, capture, path)))
            figures, details = evaluator.summary()
            (folder / "eval").mkdir(exist_ok=True)
            evaluator.write(folder / "eval" / "segmentation.json", details)
            whole = {"method_name": "oracle", "results": figures | {"benchmark": details}}
            (folder / "benchmark.json").write_text(json.dumps(whole))
            done[kind] = Evaluated(figures, details, folder)
        return done[kind]

    return evaluate


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs ``maskfield`` in this process; returns what it printed, or its one line of error with ``code`` 1."""

    def call(*arguments: str | Path, code: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["maskfield", *map(str, arguments)])
        capsys.readouterr()
        if code == 0:
            cli.entrypoint()
            return capsys.readouterr().out
        with pytest.raises(SystemExit) as exit_:
            cli.entrypoint()
        assert exit_.value.code == code
        err = capsys.readouterr().err
        assert err.startswith("error: ") and err.count("\n") == 1, err
        return err

    return call
