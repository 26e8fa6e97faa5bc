"""scripts/gpu_check.py runs to its end, on the CPU and small, and would notice a back end that draws something else."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"


@pytest.fixture
def gpu_check(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import gpu_check

    return gpu_check


def test_the_script_runs_without_a_gpu(gpu_check, tmp_path: Path, monkeypatch, capsys) -> None:
    output = tmp_path / "check.json"
    arguments = ["--device", "cpu", "--quick", "--repetitions", "1", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", *arguments])
    assert gpu_check.main() == 0
    result = json.loads(output.read_text())
    assert all(row["passed"] for row in result["parity"])
    assert len(result["rasterising"]) == 6
    assert result["queries"]["frames_per_second"] > 0
    assert "| mask-stage step |" in capsys.readouterr().out


def test_a_wrong_gradient_is_noticed(gpu_check, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, right = [], gpu_check.rasterize

    def wrong(**arguments):
        calls.append(1)
        if len(calls) % 2 == 0:
            arguments["opacities"] = arguments["opacities"] * 0.9
        return right(**arguments)

    monkeypatch.setattr(gpu_check, "rasterize", wrong)
    assert not any(row["passed"] for row in gpu_check.parity(torch.device("cpu")))


def test_without_a_gpu_it_says_so(gpu_check, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    monkeypatch.setattr(sys, "argv", ["gpu_check.py"])
    assert gpu_check.main() == 1
    assert "no CUDA device" in capsys.readouterr().err
