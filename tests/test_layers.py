"""Calls go downwards: who may import whom, lazily or not, as docs/architecture.md draws it."""

from __future__ import annotations

import ast
import graphlib
from pathlib import Path

ORDER = (
    "errors", "files", "ply_format", "quiet", "assets", "old_addresses", "startup", "splatting", "fields", "cameras",
    "foundation", "pictures", "cache", "data", "systems", "answers", "checkpoints", "run_config", "compat", "runs",
    "models", "evaluation", "selection", "editing", "viewer", "scene", "training", "pipeline", "ns_commands",
    "configs", "commands", "cli", "__init__",
)  # fmt: skip
"""Rooms from the ground up; a room may import from those before it."""
EVERYWHERE = {"compat", "__init__"}
"""Workarounds for other people's libraries are wanted wherever those are used; ``__init__`` knows the version."""
PACKAGE = Path(__file__).parents[1] / "maskfield_ns"


def imports() -> dict[str, set[str]]:
    """Module -> modules of the package that it imports, inside functions too, but not for type checkers alone."""
    files = {
        ".".join(("maskfield_ns", *f.relative_to(PACKAGE).with_suffix("").parts)): f for f in PACKAGE.rglob("*.py")
    }
    files = {name.removesuffix(".__init__"): path for name, path in files.items()}
    result: dict[str, set[str]] = {name: set() for name in files}
    for name, path in files.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        guarded = [n for n in ast.walk(tree) if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.unparse(n.test)]
        skipped = {id(child) for node in guarded for child in ast.walk(node)}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module in files and id(node) not in skipped:
                targets = {f"{node.module}.{alias.name}" for alias in node.names}
                result[name] |= {target if target in files else str(node.module) for target in targets}
        result[name].discard(name)
    return result


def room(module: str) -> str:
    return (*module.split("."), "__init__")[1]


def test_rooms_import_downwards_only() -> None:
    assert {room(module) for module in imports()} == set(ORDER)
    upwards = [
        f"{source} -> {target}"
        for source, targets in imports().items()
        for target in targets
        if room(target) not in EVERYWHERE and ORDER.index(room(target)) > ORDER.index(room(source))
    ]
    assert not upwards


def test_no_module_imports_itself_in_a_circle() -> None:
    graph = {name: {target for target in targets if room(target) != "__init__"} for name, targets in imports().items()}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle
