"""Options of ``maskfield score`` and ``maskfield bench``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, Union

import tyro

from maskfield_ns.commands.options import Printing, Result
from maskfield_ns.errors import MaskfieldError


@dataclass
class Score:
    """Score anybody's predictions for a benchmark scene, as ns-eval scores ours (docs/benchmarks.md: file formats)."""

    protocol: tyro.conf.Positional[Literal["3d-ovs", "lerf-ovs", "lerf-mask", "replica", "scannet", "mipnerf360"]]
    """Benchmark whose labels and rules apply."""
    predictions: Path
    """Folder of one scene's predictions: <view>.npz, or <view>/<phrase>.npy or .png, or <view>.png with class ids; for
    LERF-OVS with --rule opengaussian also <view>_<phrase>.png."""
    labels: Path
    """Folder of the scene's labels: label/<scene> (LERF-OVS, Mip-NeRF360), segmentations (3D-OVS), test_mask
    (LERF-Mask), or the scene itself (Replica, ScanNet)."""
    rule: str = "default"
    """Decision rule and averaging; maskfield bench list names them."""
    class_file: Path | None = None
    """Another class list than the scene's own (Replica, ScanNet)."""
    output: Path | None = None
    """JSON file for all figures; maskfield bench report reads it."""
    pictures: Path | None = None
    """PNG file for images of the worst cases."""
    images: Path | None = None
    """Folder of photographs for --pictures, named like the views."""
    method: str = "predictions"
    """Name of the method that predicted, for the report."""
    scene: str | None = None
    """Name of the scene, for the report; default: the folder's."""

    printing: Printing = field(default_factory=Printing)

    def check(self) -> None:
        """The benchmark says what is wrong with labels and predictions, before it scores."""

    def run(self) -> Result:
        """Scores and prints."""
        from maskfield_ns.commands.score import score

        return Result(score(self))


@dataclass
class BenchReport:
    """Write tables of results beside published ones, as Markdown, CSV and LaTeX, with images of the worst cases."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of runs evaluated by ns-eval, or JSON files of ns-eval or maskfield score."""
    output: Path = Path("bench_report")
    """Folder for the report."""

    def check(self) -> None:
        """Refuses to report nothing."""
        if not self.runs:
            raise MaskfieldError("name at least one run: maskfield bench report RUN")

    def run(self) -> None:
        """Writes the report."""
        from maskfield_ns.commands.bench import report

        report(self.runs, self.output)


@dataclass
class BenchList:
    """Name the benchmarks, their decision rules and figures."""

    def check(self) -> None:
        """Nothing can be wrong."""

    def run(self) -> None:
        """Prints them."""
        from maskfield_ns.commands.bench import listing

        print(listing())


@dataclass
class BenchPublished:
    """Print all published figures with their sources, as Markdown."""

    def check(self) -> None:
        """Nothing can be wrong."""

    def run(self) -> None:
        """Prints them."""
        from maskfield_ns.commands.bench import all_published

        print(all_published())


Action = Union[  # noqa: UP007 (subcommands are annotated members)
    Annotated[BenchReport, tyro.conf.subcommand("report")],
    Annotated[BenchList, tyro.conf.subcommand("list")],
    Annotated[BenchPublished, tyro.conf.subcommand("published")],
]


@dataclass
class Bench:
    """Report on benchmarks, and list what there is."""

    action: Action
    """What to report."""

    def check(self) -> None:
        """As the action."""
        self.action.check()

    def run(self) -> None:
        """Runs the action."""
        self.action.run()
