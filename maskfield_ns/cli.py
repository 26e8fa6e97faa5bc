"""``maskfield``: extract masks, query, edit and export trained runs, run the demo, score benchmarks."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Literal, Union

from maskfield_ns import quiet  # isort: skip

quiet.install()  # what is imported from here on takes a second, in which Ctrl-C is quiet already

import tyro  # noqa: E402

from maskfield_ns.errors import MaskfieldError  # noqa: E402


@dataclass
class Extract:
    """Propose and embed masks for a capture ahead of training; resumes where it was interrupted.

    Captures of other formats are read by a dataparser, named last with its own options behind it, word for word as for
    ns-train: maskfield extract --data lerf_ovs/figurines lerf-ovs-data --split strict
    """

    data: Path
    """Capture folder (with transforms.json) or its transforms.json; with a dataparser, what that one takes."""
    method: str | None = None
    """Method that is going to be trained: masks and embeddings come from its 2D models. Default: maskfield-splat where
    torch can use CUDA, else maskfield-splat-lite."""
    cache_dir: Path | None = None
    """Where the cache goes; default: maskfield_cache inside the capture."""
    proposer: Literal["preset", "sam", "tiny-sam", "regions", "merged"] = "preset"
    """Another mask proposer than the method's own."""
    embedder: Literal["preset", "open-clip", "tiny-clip"] = "preset"
    """Another embedder than the method's own."""
    missing_images: Literal["refuse", "skip"] = "refuse"
    """What happens to frames whose image file does not exist: skip leaves them out."""
    dataparser: tyro.conf.Positional[str] = ""
    """A dataparser of nerfstudio or a plugin, such as ovs3d-data, lerf-ovs-data, lerf-mask-data, replica-semantic-data,
    scannet-semantic-data or mipnerf360-data; what follows are its options (maskfield extract --data DATA lerf-ovs-data
    --help). Default: the method's own."""
    dataparser_options: tyro.conf.Suppress[tuple[str, ...]] = ()

    def run(self) -> None:
        """Builds the cache."""
        from maskfield_ns.commands.extract import extract

        own = (self.data, self.method, self.cache_dir, self.proposer, self.embedder)
        extract(*own, self.dataparser or None, self.dataparser_options, self.missing_images)


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
    export: str = ""
    """Files to write into the output folder too, with commas between: *.json gets boxes, centroids and volumes of what
    was found, *.ply its Gaussians (or points), *mesh.ply a triangle mesh. E.g. boxes.json,object.ply"""

    def run(self) -> None:
        """Answers the phrases."""
        from maskfield_ns.commands.query import query

        arguments = (self.load_config, self.text, self.output, self.negatives, self.split, self.max_views, self.scale)
        query(*arguments, [name.strip() for name in self.export.split(",") if name.strip()])


@dataclass
class Edit:
    """Edit a trained scene without training: an edit is added to those kept beside the run (edits.json)."""

    load_config: Path
    """config.yml of the run (or its folder)."""
    action: Literal["tint", "delete", "extract", "move", "duplicate", "insert"] | None = None
    """What to do; without it the edits are listed."""
    text: str | None = None
    """What to do it to: a phrase."""
    queries: tuple[int, ...] = ()
    """Or: queries of the scene (``maskfield export`` lists them in objects.json)."""
    level: Literal["auto", "subpart", "part", "whole"] = "auto"
    """Mask level of the phrase."""
    colour: tuple[float, float, float] | None = None
    """Of a tint: red, green and blue from 0 to 1."""
    strength: float = 0.8
    """Of a tint, 0 to 1."""
    translation: tuple[float, float, float] | None = None
    """Of a move, duplicate or insert, in scene units."""
    at: tuple[float, float, float] | None = None
    """Instead: where the thing is put down (its lowest point), scene coordinates."""
    rotation: float = 0.0
    """Degrees, about the thing's middle."""
    axis: tuple[float, float, float] = (0.0, 0.0, 1.0)
    """Axis of the rotation; by default up."""
    scale: float = 1.0
    """About the thing's middle."""
    copy: int | None = None
    """Only this copy: 0 the original, k the one that edit number k made."""
    source: Path | None = None
    """Of an insert: a .ply of Gaussians, or another radiance field's run (with --text or --queries for what of it)."""
    undo: bool = False
    """Take the last edit back."""
    clear: bool = False
    """Take all edits back."""
    bake: Path | None = None
    """Write the edited Gaussians as a .ply."""
    preview: Path | None = None
    """Write a picture of the edited scene."""

    def run(self) -> None:
        """Edits."""
        from maskfield_ns.commands.edit import Request, edit

        how: dict[str, object] = {"copy": self.copy} if self.copy is not None else {}
        if self.action == "tint":
            how |= {"colour": self.colour, "strength": self.strength}
        if self.action in ("move", "duplicate", "insert"):
            how |= {"translation": self.translation, "at": self.at, "rotation": self.rotation}
            how |= {"axis": self.axis, "scale": self.scale}
        if self.action == "insert":
            how["source"] = self.source
        chosen = (self.load_config, self.text, self.queries, self.level)
        edit(Request(*chosen, self.action, how, self.undo, self.clear, self.bake, self.preview))


@dataclass
class Export:
    """Write what a trained run holds: Gaussians with instance numbers, a .ply per thing, boxes."""

    load_config: Path
    """config.yml of the run (or its folder); config_edited.yml for the edited scene."""
    output: Path = Path("maskfield_export")
    """Folder for the files."""
    text: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A phrase to write a .ply for; give --text several times for several."""
    queries: tuple[int, ...] = ()
    """Queries of the scene to write a .ply for (numbers as in objects.json)."""
    level: Literal["auto", "subpart", "part", "whole"] = "auto"
    """Mask level of the phrases."""
    frame: Literal["scene", "capture"] = "scene"
    """Coordinates of .ply files: nerfstudio's (as ns-export writes), or the capture's own."""
    mesh: bool = False
    """Also write a triangle mesh of each thing."""

    def run(self) -> None:
        """Exports."""
        from maskfield_ns.commands.export import export

        export(self.load_config, self.output, self.text, self.queries, self.level, self.frame, self.mesh)


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
        from maskfield_ns.commands.bench import all_published

        print(all_published())


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
    Annotated[Edit, tyro.conf.subcommand("edit")],
    Annotated[Export, tyro.conf.subcommand("export")],
    Annotated[Demo, tyro.conf.subcommand("demo")],
    Annotated[Score, tyro.conf.subcommand("score")],
    Annotated[Bench, tyro.conf.subcommand("bench")],
]


def entrypoint() -> None:
    """Console script: errors a user can act on end in one line and exit code 1."""
    for stream in (sys.stdout, sys.stderr):  # a file name need not be UTF-8, nor a terminal
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    arguments, rest = split_arguments(sys.argv[1:])
    try:
        command = tyro.cli(Command, args=arguments, description=__doc__, config=(tyro.conf.OmitSubcommandPrefixes,))
        if isinstance(command, Extract):
            command = replace(command, dataparser_options=tuple(rest))
        _check_texts(command)
        command.run()
        sys.stdout.flush()
    except MaskfieldError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except (KeyboardInterrupt, BrokenPipeError) as error:
        quiet.ends_quietly(error)
        sys.exit(quiet.INTERRUPTED if isinstance(error, KeyboardInterrupt) else quiet.NO_READER)


def _check_texts(command: object) -> None:
    """Phrases and names must be text: bytes of an argument that are no UTF-8 arrive as halves of surrogate pairs.

    Raises:
        MaskfieldError: one is not.
    """
    for field in fields(command):  # type: ignore[arg-type]
        value = getattr(command, field.name)
        for text in value if isinstance(value, tuple) else (value,):
            if isinstance(text, str) and not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):
                raise MaskfieldError(f"--{field.name.replace('_', '-')} is not UTF-8 text: {ascii(text)[:80]}")


def split_arguments(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """A command's own words, and those after the name of a dataparser, which are for it to understand.

    Only ``extract`` takes a dataparser. Its name is the first word that is neither an option nor an option's value.
    """
    if list(words[:1]) == ["extract"]:
        for place in range(1, len(words)):
            before = words[place - 1]
            is_value = before.startswith("--") and "=" not in before
            if not words[place].startswith("-") and not is_value:
                return list(words[: place + 1]), list(words[place + 1 :])
    return list(words), []


if __name__ == "__main__":
    entrypoint()
