"""``maskfield``: extract masks ahead of training, query a trained run, run the demo, score benchmarks."""

from __future__ import annotations

import contextlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Union

import tyro

from maskfield_ns.errors import MaskfieldError


@dataclass
class Extract:
    """Propose and embed masks for a capture ahead of training; resumes where it was interrupted."""

    data: Path
    """Capture folder (with transforms.json) or its transforms.json."""
    method: str = "maskfield-splat-lite"
    """Method whose foundation models are used."""
    cache_dir: Path | None = None
    """Where the cache goes; default: maskfield_cache inside the capture."""
    proposer: Literal["preset", "sam", "tiny-sam", "regions", "merged"] = "preset"
    """Another mask proposer than the method's own."""
    embedder: Literal["preset", "open-clip", "tiny-clip"] = "preset"
    """Another embedder than the method's own."""

    def run(self) -> None:
        """Builds the cache."""
        from maskfield_ns.commands.extract import extract

        extract(self.data, self.method, self.cache_dir, self.proposer, self.embedder)


@dataclass
class Query:
    """Ask a trained run for things by name; writes masks, heat maps, overlays and scores."""

    load_config: Path
    """config.yml of the run (or its folder)."""
    text: tyro.conf.UseAppendAction[tuple[str, ...]]
    """A phrase; give --text several times for several phrases."""
    output: Path = Path("maskfield_query")
    """Folder for pictures and answers.json."""
    negatives: tuple[str, ...] = ()
    """What relevancy is measured against; default: object, things, stuff, texture."""
    split: Literal["test", "train"] = "test"
    """Views to answer in."""
    max_views: int = 8
    """At most this many views, evenly spread; 0: all."""
    scale: float = 1.0
    """Of the picture size, e.g. 0.5 for half."""

    def run(self) -> None:
        """Answers the phrases."""
        from maskfield_ns.commands.query import query

        query(self.load_config, self.text, self.output, self.negatives, self.split, self.max_views, self.scale)


@dataclass
class Demo:
    """The main job on the capture that ships with the package: cache, train, queries, evaluation."""

    output: Path = Path("demo_output")
    """Folder for the run, pictures and metrics."""
    method: Literal["maskfield-splat-lite", "maskfield-lite"] = "maskfield-splat-lite"
    """Method to train."""

    def run(self) -> None:
        """Runs every step as the command a user would type."""
        from maskfield_ns.commands.demo import demo

        demo(self.output, self.method)


@dataclass
class Score:
    """Scores anybody's predictions for a benchmark scene, as ns-eval scores ours (docs/benchmarks.md: file formats)."""

    protocol: tyro.conf.Positional[Literal["3d-ovs", "lerf-ovs", "lerf-mask", "replica", "scannet", "mipnerf360"]]
    """Benchmark."""
    predictions: Path
    """Folder of one scene's predictions: <view>.npz, or <view>/<phrase>.npy or .png, or <view>.png with class ids."""
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
    """PNG file for the worst cases."""
    images: Path | None = None
    """Folder of photographs for those, called like the views."""
    method: str = "predictions"
    """Whose predictions these are, for the report."""
    scene: str | None = None
    """Name of the scene, for the report; default: of the folder."""

    def run(self) -> None:
        """Scores and prints."""
        from maskfield_ns.commands.score import score

        score(
            self.protocol,
            self.predictions,
            self.labels,
            self.rule,
            self.class_file,
            self.output,
            self.pictures,
            self.images,
            self.method,
            self.scene,
        )


@dataclass
class BenchReport:
    """Tables of results beside published ones, as Markdown, CSV and LaTeX, with pictures of the worst cases."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of runs evaluated by ns-eval, or JSON files of ns-eval or maskfield score."""
    output: Path = Path("bench_report")
    """Folder for the report."""

    def run(self) -> None:
        """Writes the report."""
        from maskfield_ns.commands.bench import report

        if not self.runs:
            raise MaskfieldError("name at least one run: maskfield bench report RUN")
        report(self.runs, self.output)


@dataclass
class BenchList:
    """Names the benchmarks, their decision rules and figures."""

    def run(self) -> None:
        """Prints them."""
        from maskfield_ns.commands.bench import listing

        print(listing())


@dataclass
class BenchPublished:
    """Prints all published figures with their sources, as Markdown."""

    def run(self) -> None:
        """Prints them."""
        from maskfield_ns.commands.bench import published_tables

        print(published_tables())


@dataclass
class Bench:
    """Benchmarks: reports and what there is."""

    action: Union[  # noqa: UP007 (subcommands are annotated members)
        Annotated[BenchReport, tyro.conf.subcommand("report")],
        Annotated[BenchList, tyro.conf.subcommand("list")],
        Annotated[BenchPublished, tyro.conf.subcommand("published")],
    ]

    def run(self) -> None:
        """Runs the action."""
        self.action.run()


Command = Union[  # noqa: UP007 (subcommands are annotated members)
    Annotated[Extract, tyro.conf.subcommand("extract")],
    Annotated[Query, tyro.conf.subcommand("query")],
    Annotated[Demo, tyro.conf.subcommand("demo")],
    Annotated[Score, tyro.conf.subcommand("score")],
    Annotated[Bench, tyro.conf.subcommand("bench")],
]


def entrypoint() -> None:
    """Console script: errors a user can act on end in one line and exit code 1."""
    command = tyro.cli(Command, description=__doc__, config=(tyro.conf.OmitSubcommandPrefixes,))
    try:
        command.run()
    except MaskfieldError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def write_json(path: Path, data: object) -> None:
    """Writes JSON so that a reader never sees half a file.

    Raises:
        MaskfieldError: the file cannot be written.
    """
    temporary = path.with_suffix(path.suffix + ".tmp")
    try:
        temporary.write_text(json.dumps(data, indent=1, ensure_ascii=False), encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise MaskfieldError(f"cannot write {path}: {error.strerror or error}") from error


if __name__ == "__main__":
    entrypoint()
