"""Every ns-* command imports every plugin: ours must bring in (almost) nothing that nerfstudio has not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

HEAVY = ("segment_anything", "open_clip", "skimage", "scipy.optimize", "sklearn", "pybullet", "gsplat.cuda")

CODE = """
import json, sys
import nerfstudio.configs.method_configs
before = set(sys.modules)
import maskfield_ns.configs
from maskfield_ns.data.dataparsers import indexed, lerf_mask, ovs3d, polygons
print(json.dumps([sorted(before), sorted(sys.modules)]))
"""


def test_configs_import_next_to_nothing_of_their_own() -> None:
    """nerfstudio is imported first, without plugins, whether or not this package is installed in the environment."""
    block = "import importlib.metadata as m; m.entry_points = lambda **k: m.EntryPoints()\n"
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", block + CODE],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    before, after = json.loads(result.stdout.splitlines()[-1])
    assert not [name for name in before if name.startswith("maskfield_ns")]
    added = set(after) - set(before)
    assert "maskfield_ns.configs" in added
    assert not [name for name in added if name.startswith(HEAVY)]
    # A part of a library that is there anyway is not foreign: what is loaded when differs from release to release.
    known = {name.split(".")[0] for name in before} | set(sys.stdlib_module_names) | {"maskfield_ns"}
    foreign = {name.split(".")[0] for name in added} - known
    assert not foreign, f"{sorted(foreign)} are imported by the plugin and not by nerfstudio itself"
