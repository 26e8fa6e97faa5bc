"""A short run of the campaign against the viewer."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
from made_run import make_run

CAMPAIGNS = Path(__file__).parent.parent / "scripts" / "campaigns"


@pytest.mark.slow
def test_the_viewer_withstands_strangers_and_absurd_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(CAMPAIGNS))
    spec = importlib.util.spec_from_file_location("viewer_campaign", CAMPAIGNS / "viewer.py")
    assert spec is not None and spec.loader is not None
    campaign = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, campaign)
    spec.loader.exec_module(campaign)
    results = campaign.run_all(make_run(tmp_path), campaign.SHORT, seed=1)
    assert sum(result.tried for result in results) >= sum(campaign.SHORT.values()) - campaign.SHORT["moves"]
    assert [failure for result in results for failure in result.failures] == []
