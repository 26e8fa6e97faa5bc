"""CPU and wall seconds of commands on a trained run, and where opening it spends them.

    python scripts/bench/startup.py RUN [--before CHECKOUT] [--repeats 3]
    python scripts/bench/startup.py RUN --parts

RUN is a run of the demo (config.yml or its folder); it is copied first. With ``--before``, the same commands of another
checkout of this repository are measured too, by turns, so that both see the same machine. Prints a table for
docs/speed.md. CPU seconds are those of all threads and sub-processes; on a machine that does other work they are the
figure to compare.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from maskfield_ns.editing.edits import EditList, insert
from maskfield_ns.runs import find_config

HERE = Path(__file__).resolve().parents[2]
NOW, BEFORE = "now", "before"


class Cost(NamedTuple):
    """Of one command."""

    cpu: float
    wall: float


def commands(run: Path, output: Path, side: str) -> dict[str, list[str]]:
    """Module and words of every command that is measured, by what it is called in the table."""
    undo = ["edit", "undo"] if side == NOW else ["edit", "--undo"]
    wrong = ["edit", "tint", "--color"] if side == NOW else ["edit", "--action", "tint", "--colour"]
    chosen = ["--load-config", str(run)]
    query = ["query", *chosen, "--text", "green mug", "--max-views", "3", "--output", str(output / "query")]
    return {
        "maskfield query (3 views)": ["maskfield_ns.cli", *query],
        "ns-eval (6 views)": ["nerfstudio.scripts.eval", *chosen, "--output-path", str(output / "metrics.json")],
        "maskfield edit undo": ["maskfield_ns.cli", *undo, *chosen],
        "maskfield edit, a color out of range": ["maskfield_ns.cli", *wrong, "2", "0", "0", "--text", "duck", *chosen],
    }


def measure(words: list[str], checkout: Path) -> Cost:
    """Runs a module's command in a process of its own.

    ns-* modules have no line that calls their entry point when they are run, so it is called by name.
    """
    start = f"import sys; sys.argv = {[words[0], *words[1:]]!r}; from {words[0]} import entrypoint; entrypoint()"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(checkout), os.environ.get("PYTHONPATH", "")])}
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    # From that checkout's folder, which stands first on the path of `python -c`.
    done = subprocess.run(
        [sys.executable, "-c", start], cwd=checkout, env=environment, capture_output=True, text=True, check=False
    )
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    expected = 1 if "2" in words and "0" in words else 0
    if done.returncode != expected:
        sys.exit(f"{' '.join(words)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return Cost(wall=wall, cpu=after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def with_an_edit(run: Path) -> None:
    """Something that can be undone, the same for both."""
    thing = run.parent / "thing.ply"
    thing.write_bytes(b"ply")
    EditList().then(insert(thing)).save(run.parent / "edits.json")


def compare(run: Path, before: Path | None, repeats: int, output: Path) -> str:
    """Table of all commands, measured by turns."""
    sides = {NOW: HERE} if before is None else {BEFORE: before, NOW: HERE}
    costs: dict[tuple[str, str], list[Cost]] = {}
    for _ in range(repeats):
        for title in commands(run, output, NOW):
            for side, checkout in sides.items():
                (run.parent / "edits.json").unlink(missing_ok=True)
                if "undo" in title:
                    with_an_edit(run)
                cost = measure(commands(run, output, side)[title], checkout)
                costs.setdefault((title, side), []).append(cost)
                print(f"{title}, {side}: {cost.cpu:.1f} CPU-s, {cost.wall:.1f} s", file=sys.stderr, flush=True)
    return table(costs)


def table(costs: dict[tuple[str, str], list[Cost]]) -> str:
    """Medians by command and checkout, as Markdown."""
    sides = list(dict.fromkeys(side for _, side in costs))
    head = "".join(f" CPU-s {side} | wall s {side} |" for side in sides)
    lines = [f"| command |{head}", "| --- |" + " --- | --- |" * len(sides)]
    for title in dict.fromkeys(title for title, _ in costs):
        row = [f"| {title} |"]
        for side in sides:
            cpu, wall = (statistics.median(values) for values in zip(*costs[title, side], strict=True))
            row.append(f" {cpu:.1f} | {wall:.1f} |")
        lines.append("".join(row))
    return "\n".join(lines)


OPENING = """
import sys, time
from pathlib import Path
def part(name, since):
    print(f"part {name}: {time.process_time() - since:.2f}", flush=True)
    return time.process_time()
clock = part("interpreter", 0.0)
from maskfield_ns.scene import Scene
from maskfield_ns.run_config import read_config
clock = part("this package", clock)
read_config(Path(sys.argv[1]))
clock = part("torch, nerfstudio and the config", clock)
scene = Scene.load(sys.argv[1])
clock = part("cameras, model and checkpoint", clock)
answers = scene.query(["green mug"])
clock = part("text model and the question", clock)
camera = scene.cameras("test")[0]
scene.render(camera, answers)
clock = part("first view (loads compiled kernels)", clock)
scene.render(camera, answers)
part("every further view", clock)
"""


def parts(run: Path) -> str:
    """Table of the parts of opening a run and asking, and of the packages whose import costs most."""
    words = [sys.executable, "-X", "importtime", "-c", OPENING, str(run)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    lines = ["| part | CPU-s |", "| --- | --- |"]
    lines += [f"| {m[1]} | {m[2]} |" for m in re.finditer(r"^part (.*): ([\d.]+)$", done.stdout, re.MULTILINE)]
    packages: Counter[str] = Counter()
    for match in re.finditer(r"import time:\s+(\d+) \|\s+\d+ \|\s*(\S+)", done.stderr):
        packages[match[2].split(".")[0]] += int(match[1])
    lines += ["", "| import | s |", "| --- | --- |"]
    lines += [f"| {name} | {microseconds / 1e6:.2f} |" for name, microseconds in packages.most_common(12)]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="config.yml of a run, or its folder")
    parser.add_argument("--before", type=Path, help="another checkout of this repository")
    parser.add_argument("--repeats", type=int, default=3, help="times that every command is run; medians are printed")
    parser.add_argument("--parts", action="store_true", help="where opening the run and asking spend their time")
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "run"
        shutil.copytree(find_config(arguments.run).parent, copy)
        run = copy / "config.yml"
        if arguments.parts:
            print(parts(run))
        else:
            print(compare(run, arguments.before, arguments.repeats, Path(folder)))


if __name__ == "__main__":
    main()
