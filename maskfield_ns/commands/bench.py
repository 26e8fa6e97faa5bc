"""``maskfield bench``: tables of results beside published ones, and what each benchmark wants."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from maskfield_ns.errors import BenchmarkError, MaskfieldError
from maskfield_ns.evaluation.protocols.registry import BENCHMARKS, Benchmark, published_tables
from maskfield_ns.evaluation.published import published
from maskfield_ns.evaluation.tables import RunResult, Table, build_table, comma_separated, latex, markdown, split_name
from maskfield_ns.files import read_json, write_text

_HOW = "ns-eval --load-config RUN/config.yml --output-path RUN/benchmark.json --render-output-path RUN/eval"


def report(runs: Sequence[Path], output: Path) -> list[Table]:
    """Writes ``report.md``, ``report.csv``, ``report.tex`` and pictures of the worst cases.

    Args:
        runs: folders of runs that ns-eval has evaluated, or JSON files of ns-eval or ``maskfield score``.
        output: folder for the report.

    Raises:
        BenchmarkError: a run without results, or files that cannot be read or written.
    """
    results = [result for run in runs for result in find_results(run)]
    tables, text = [], ["# Benchmark report", ""]
    for key, protocol in published_tables().items():
        own = [result for result in results if _as_scored(result).published == key]
        if not own:
            continue
        text += [f"## {protocol.title}", ""]
        for metric in protocol.metrics:
            having = [result for result in own if metric in _as_scored(result).metrics]
            if having:
                table = build_table(protocol, metric, having)
                tables.append(table)
                text.append(markdown(table))
        for number, result in enumerate(own):
            text += _run_text(result, output, f"{key.replace(':', '_')}_{result.scene}_{number}")
    text += [
        "Published figures are per cent as printed, means with their number of scenes; means over different numbers of "
        "scenes do not compare. Marks: [secondary] copied from another paper or a summary, [issue thread] said by the "
        "authors there, [unverified] widely quoted, original not seen.",
        "",
    ]
    for name, content in (
        ("report.md", "\n".join(text)),
        ("report.csv", comma_separated(tables)),
        ("report.tex", "\n".join(latex(table) for table in tables)),
    ):
        write_text(output / name, content, BenchmarkError)
    print(f"report: {output / 'report.md'} (and .csv, .tex)")
    return tables


def find_results(run: Path) -> list[RunResult]:
    """Results of a run: a JSON file, or the newest one per scene, rule and split in a run's folder.

    Raises:
        BenchmarkError: there is none.
    """
    if run.is_file():
        found = _read(run)
        if found is None:
            raise BenchmarkError(f"{run} has no benchmark results; make them with: {_HOW}")
        return [found]
    if not run.is_dir():
        raise BenchmarkError(f"There is no run at {run}.")
    paths = sorted([*run.glob("*.json"), *run.glob("*/*.json")], key=lambda path: path.stat().st_mtime)
    newest: dict[tuple[str, ...], RunResult] = {}
    for path in paths:
        found = _read(path)
        # ns-eval's own file knows the method, the one beside the pictures does not.
        if found is not None and (found.method or not newest):
            key = tuple(str(found.details.get(name)) for name in ("protocol", "scene", "rule", "split"))
            newest[key] = found
    if not newest:
        raise BenchmarkError(f"{run} has no benchmark results; make them with: {_HOW.replace('RUN', str(run))}")
    return list(newest.values())


def listing() -> str:
    """The benchmarks with their rules and figures."""
    lines = []
    for each in BENCHMARKS.values():
        lines.append(f"{each.name}: {each.title}")
        for number, rule in enumerate(each.rules):
            own = each.under(rule)
            figures = ", ".join(f"{title} ({key})" for key, title in own.metrics.items())
            default = " (default)" if number == 0 else ""
            lines.append(f"  --rule {rule}{default}: predictions: {own.kind}; {figures}")
    return "\n".join(lines)


def all_published() -> str:
    """Every published figure as Markdown tables."""
    tables = [
        build_table(each, metric, [])
        for key, each in published_tables().items()
        for metric in each.metrics
        if published(key, metric)
    ]
    return "\n".join(markdown(table) for table in tables)


def _as_scored(result: RunResult) -> Benchmark:
    """The result's benchmark as its rule has it."""
    return BENCHMARKS[result.details["protocol"]].under(result.details["rule"])


def _read(path: Path) -> RunResult | None:
    try:
        data = read_json(path, "results")
    except MaskfieldError:
        return None
    if not isinstance(data, dict):
        return None
    results = data.get("results") if isinstance(data.get("results"), dict) else data
    details = results.get("benchmark") if isinstance(results, dict) else None
    needed = ("protocol", "scene", "rule", "figures", "views")
    if not isinstance(details, dict) or any(key not in details for key in needed):
        return None
    if details["protocol"] not in BENCHMARKS:
        raise BenchmarkError(f"{path} is of the protocol {details['protocol']}, which this version does not know.")
    if details["rule"] not in BENCHMARKS[details["protocol"]].rules:
        raise BenchmarkError(f"{path} was scored by the rule {details['rule']}, which this version does not know.")
    return RunResult(str(data.get("method_name") or ""), details, str(path))


def _run_text(result: RunResult, output: Path, name: str) -> list[str]:
    details = result.details
    lines = [f"**{result.scene}**, {result.method or 'unnamed method'}: {details['rule']} rule, {split_name(details)}."]
    if details.get("scored_sizes"):
        sizes = ", ".join(f"{width}x{height}" for width, height in details["scored_sizes"])
        lines[0] += f" Scored at {sizes}."
    own = result.figure("miou_own_masks")
    if own is not None:
        lines[0] += f" The method's own masks, without the protocol's threshold: mIoU {100 * own:.1f}."
    lines += [f"Note: {note}." for note in details.get("notes", [])]
    sheet = details.get("worst_cases")
    if sheet and Path(sheet).is_file():
        target = output / "pictures" / f"{name}.png"
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(sheet, target)
        except OSError as error:
            raise BenchmarkError(f"Cannot copy {sheet} to {target}: {error.strerror or error}.") from error
        lines += ["", f"![Worst answers in {result.scene}](pictures/{name}.png)"]
    return [*lines, ""]
