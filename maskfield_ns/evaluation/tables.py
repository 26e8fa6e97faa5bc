"""Tables of benchmark results, ours beside published ones, as Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from maskfield_ns.evaluation.protocols.registry import Benchmark
from maskfield_ns.evaluation.published import Published, published


@dataclass(frozen=True)
class RunResult:
    """One scored scene."""

    method: str
    details: dict[str, Any]
    """As :class:`maskfield_ns.evaluation.benchmark.BenchmarkEvaluator` or ``maskfield score`` wrote it."""
    place: str
    """File it was read from."""

    @property
    def scene(self) -> str:
        """Name of the scene."""
        return str(self.details["scene"])

    @property
    def setting(self) -> str:
        """Method, rule and split: what must agree for scenes to share a row."""
        return f"{self.method} ({self.details['rule']} rule, {split_name(self.details)})"

    def figure(self, metric: str) -> float | None:
        """A figure in [0, 1], None if it is undefined."""
        value = self.details["figures"].get(metric)
        return None if value is None else float(value)


@dataclass
class Row:
    """One method of a table."""

    method: str
    cells: dict[str, str]
    """Scene -> per cent."""
    mean: str
    source: str
    ours: bool = False


@dataclass
class Table:
    """One figure of one benchmark."""

    protocol: Benchmark
    """As the rules whose figures compare have it."""
    metric: str
    scenes: list[str]
    rows: list[Row] = field(default_factory=list)

    @property
    def title(self) -> str:
        """Benchmark and figure."""
        return f"{self.protocol.title}, {self.protocol.metrics[self.metric]} (%)"


def split_name(details: dict[str, Any]) -> str:
    """What was trained on, in words."""
    if details.get("split") == "strict":
        return "strict split: labelled views held out"
    if details.get("split") is None:
        return "split unknown"
    trained = details.get("labelled_views_trained")
    return "protocol's split: " + ("labelled views trained on" if trained else "labelled views held out")


def build_table(protocol: Benchmark, metric: str, runs: Sequence[RunResult]) -> Table:
    """Published rows first, then ours: one row per setting; a second run of a scene gets a row of its own."""
    rows = published(protocol.published, metric)
    scenes = list(dict.fromkeys(row.scene for row in rows if not row.scene.startswith("mean of")))
    column = {run.scene: _published_scene(run.scene, scenes) for run in runs}
    table = Table(protocol, metric, scenes + [s for s in dict.fromkeys(column.values()) if s not in scenes])
    for method in dict.fromkeys((row.method, row.source, row.evidence) for row in rows):
        table.rows.append(_published_row([row for row in rows if (row.method, row.source, row.evidence) == method]))
    grouped: dict[str, list[dict[str, RunResult]]] = {}
    for run in runs:
        groups = grouped.setdefault(run.setting, [{}])
        free = next((group for group in groups if column[run.scene] not in group), None)
        if free is None:
            groups.append(free := {})
        free[column[run.scene]] = run
    for setting, groups in grouped.items():
        for number, group in enumerate(groups, 1):
            table.rows.append(_own_row(setting + (f", run {number}" if len(groups) > 1 else ""), metric, group))
    return table


def _published_scene(scene: str, known: Sequence[str]) -> str:
    """ScanNet scenes are printed without their suffix (scene0004 for scene0004_00)."""
    return next((name for name in known if scene == name or scene.startswith(f"{name}_")), scene)


def _published_row(rows: Sequence[Published]) -> Row:
    first = rows[0]
    means = [f"{row.value} ({row.scene.removeprefix('mean of ')})" for row in rows if row.scene.startswith("mean of")]
    cells = {row.scene: row.value for row in rows if not row.scene.startswith("mean of")}
    doubt = "" if first.evidence == "paper" else f" [{first.evidence}]"
    note = f"; {first.note}" if first.note else ""
    return Row(first.method, cells, ", ".join(means), first.source + doubt + note)


def _own_row(setting: str, metric: str, group: dict[str, RunResult]) -> Row:
    values = {scene: run.figure(metric) for scene, run in group.items()}
    defined = {scene: value for scene, value in values.items() if value is not None}
    mean = f"{100 * sum(defined.values()) / len(defined):.1f} ({len(defined)})" if defined else ""
    pairs = [(value, group[scene].figure("num_pairs")) for scene, value in defined.items()]
    total = sum(count for _, count in pairs if count)
    if len(pairs) > 1 and all(count for _, count in pairs):
        weighted = sum(value * float(count or 0) for value, count in pairs) / total
        mean += f"; by pairs {100 * weighted:.1f}"
    cells = {scene: f"{100 * value:.1f}" for scene, value in defined.items()}
    counted = f"{int(total)} pairs" if total else f"{sum(len(run.details['views']) for run in group.values())} views"
    return Row(setting, cells, mean, f"this report, {counted}", ours=True)


# --- formats ----------------------------------------------------------------------------------------------------------


def markdown(table: Table) -> str:
    """A table; our rows are bold."""
    head = ["method", *table.scenes, "mean (scenes)", "source"]
    lines = [f"### {table.title}", "", _markdown_row(head), _markdown_row(["---"] * len(head))]
    for row in table.rows:
        cells = [row.method, *(row.cells.get(scene, "") for scene in table.scenes), row.mean, row.source]
        cells = [cell.replace("|", "\\|") for cell in cells]
        lines.append(_markdown_row([f"**{cell}**" if row.ours and cell else cell for cell in cells]))
    return "\n".join([*lines, ""])


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def comma_separated(tables: Sequence[Table]) -> str:
    """All tables in long form: one number a line."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["protocol", "metric", "method", "ours", "scene", "percent", "source"])
    for table in tables:
        for row in table.rows:
            for scene, value in [*row.cells.items(), *([("mean", row.mean)] if row.mean else [])]:
                writer.writerow(
                    [table.protocol.published, table.metric, row.method, int(row.ours), scene, value, row.source]
                )
    return text.getvalue()


_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
}  # fmt: skip


def latex(table: Table) -> str:
    """A tabular environment without packages; sources as a comment per row."""
    columns = [*table.scenes, "mean"]
    lines = [f"% {table.title}", r"\begin{tabular}{l" + "r" * len(columns) + "}", r"\hline"]
    lines.append(_latex_row(["method", *columns], bold=False) + r" \hline")
    for row in table.rows:
        cells = [row.method, *(row.cells.get(scene, "--") for scene in table.scenes), row.mean or "--"]
        lines.append(_latex_row(cells, row.ours) + f" % {row.source}".replace("\n", " "))
    return "\n".join([*lines, r"\hline", r"\end{tabular}", ""])


def _latex_row(cells: Sequence[str], bold: bool) -> str:
    escaped = ["".join(_LATEX.get(character, character) for character in cell) for cell in cells]
    return " & ".join(rf"\textbf{{{cell}}}" if bold else cell for cell in escaped) + r" \\"
