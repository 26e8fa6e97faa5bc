"""The demo's commands run on a system that has Python and nothing else: no display, no USB, no graphics library."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from runs import make_small_demo

pytestmark = pytest.mark.slow

COMMANDS = """
import contextlib, json, sys
from pathlib import Path

capture, output = sys.argv[1:]
run = f"{output}/demo/maskfield-splat-lite/now/config.yml"


def command(entrypoint, *words):
    sys.argv = [*words]
    with contextlib.suppress(SystemExit):
        entrypoint()


from maskfield_ns.cli import entrypoint as maskfield
from nerfstudio.scripts.eval import entrypoint as ns_eval
from nerfstudio.scripts.train import entrypoint as ns_train

options = ["--data", capture, "--output-dir", output, "--experiment-name", "demo", "--timestamp", "now"]
options += ["--vis", "tensorboard", "--max-num-iterations", "12", "--pipeline.datamanager.mask-start", "8"]
options += ["--pipeline.datamanager.proposer-kind", "regions", "--pipeline.datamanager.mask-max-side", "32"]
command(maskfield, "maskfield", "extract", "--data", capture, "--proposer", "regions")
command(ns_train, "ns-train", "maskfield-splat-lite", *options)
command(maskfield, "maskfield", "query", "--load-config", run, "--text", "mug", "--output", f"{output}/answers")
command(ns_eval, "ns-eval", "--load-config", run, "--output-path", f"{output}/metrics.json")
mapped = {line.split(maxsplit=5)[5].strip() for line in open("/proc/self/maps") if len(line.split(maxsplit=5)) > 5}
print()
print(json.dumps([sorted(mapped), sorted(name for name in sys.modules if name.split(".")[0] == "open3d")]))
"""

ALLOWED = {
    *("ld-linux-x86-64", "ld-linux-aarch64", "libc", "libm", "libdl", "libpthread", "librt", "libutil", "libresolv"),
    *("libgcc_s", "libstdc++"),
    *("libz", "libbz2", "liblzma", "libffi", "libcrypto", "libssl", "libexpat", "libsqlite3", "libuuid", "libb2"),
    *("libtinfo", "libtinfow", "libncursesw", "libreadline", "libfribidi"),
}
"""Libraries of the system that may be mapped: the C and C++ runtimes, what Python's own modules are linked with, and
fribidi, which Pillow loads where it is and does without elsewhere."""


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="shared libraries are listed on Linux only")
def test_the_commands_map_no_library_that_a_bare_system_lacks(tmp_path: Path) -> None:
    capture, output = make_small_demo(tmp_path / "capture", points=True), tmp_path / "runs"
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", COMMANDS, str(capture), str(output)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
        timeout=600,
    )
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    assert (output / "metrics.json").is_file() and (output / "answers" / "answers.json").is_file(), result.stderr[
        -4000:
    ]
    mapped, open3d = json.loads(result.stdout.splitlines()[-1])
    assert not open3d, "seed points are read without open3d, which needs libraries of a desktop"
    inside = {Path(sys.prefix).resolve(), Path(sysconfig.get_paths()["stdlib"]).resolve()}
    shared = [Path(path) for path in mapped if ".so" in Path(path).name]
    assert any("libtorch" in path.name for path in shared)
    outside = [path for path in shared if not any(path.resolve().is_relative_to(folder) for folder in inside)]
    foreign = sorted(path.name for path in outside if not _expected(path.name))
    assert not foreign, f"libraries that a bare system does not have: {foreign}"


def _expected(name: str) -> bool:
    stem = name.split(".so")[0]
    older = re.sub(r"-[\d.]+$", "", stem)  # libc-2.31.so
    return bool({stem, older} & ALLOWED) or stem.startswith(("libpython3", "libnss_"))
