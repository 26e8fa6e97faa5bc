"""``maskfield``: extract masks, query, edit and export trained runs, run the demo, score benchmarks.

Each command is a dataclass of options; values that make no sense are refused before anything is loaded. Exit codes:
0 done, 1 refused or failed (one line says why), 2 options that do not exist, 3 nothing in the scene answers, 130
interrupted.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Literal, Union

from maskfield_ns import quiet  # isort: skip

quiet.install()  # what is imported from here on takes a second, in which Ctrl-C is quiet already

import tyro  # noqa: E402

from maskfield_ns import __version__  # noqa: E402
from maskfield_ns.commands.bench_options import Bench, Score  # noqa: E402
from maskfield_ns.commands.edit_options import Edit  # noqa: E402
from maskfield_ns.commands.options import (  # noqa: E402
    Level,
    Printing,
    Result,
    check_folder,
    check_phrases,
    check_queries,
    check_run,
)
from maskfield_ns.errors import MaskfieldError, NothingFoundError  # noqa: E402

NOTHING_FOUND = 3
"""Exit code: a question was asked and nothing in the scene answers."""
MAX_SCALE = 8
"""Factor of the image size: beyond it there is nothing more to see, and memory ends."""
SUBCOMMANDS_OF_EDIT = ("tint", "delete", "extract", "move", "duplicate", "insert", "undo", "clear", "list")
RENAMED = {"--colour": "--color"}
"""Options of earlier versions; accepted for one version, with a note."""


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
    """Folder of the mask cache; default: maskfield_cache inside the capture."""
    proposer: str = "preset"
    """Mask proposer: sam, tiny-sam, regions, merged, given:PATH (a folder of id images or a COCO JSON of your own), or
    one that an installed package adds; preset: the method's own."""
    embedder: str = "preset"
    """Embedder of masks and phrases: open-clip, tiny-clip, or one that an installed package adds; preset: the method's
    own."""
    missing_images: Literal["refuse", "skip"] = "refuse"
    """What happens to frames whose image file does not exist: skip leaves them out."""
    dataparser: tyro.conf.Positional[str] = ""
    """A dataparser of nerfstudio or a plugin, such as ovs3d-data, lerf-ovs-data, lerf-mask-data, replica-semantic-data,
    scannet-semantic-data or mipnerf360-data; what follows are its options (maskfield extract --data DATA lerf-ovs-data
    --help). Default: the method's own."""
    dataparser_options: tyro.conf.Suppress[tuple[str, ...]] = ()

    def check(self) -> None:
        """Refuses a capture that is not there."""
        if not self.data.exists():
            raise MaskfieldError(f"there is no capture at {self.data}")

    def run(self) -> None:
        """Builds the cache."""
        from maskfield_ns.commands.extract import extract

        own = (self.data, self.method, self.cache_dir, self.proposer, self.embedder)
        extract(*own, self.dataparser or None, self.dataparser_options, self.missing_images)


@dataclass
class Views:
    """Images that are rendered."""

    split: Literal["test", "train"] = "test"
    """Views to answer in: those held out from training, or those trained on."""
    max_views: int = 8
    """Number of views at most, evenly spread; 0: all."""
    scale: float = 1.0
    """Factor of the image size; 0.5 renders half as wide and high."""


@dataclass
class Query:
    """Ask a trained run for objects by name; writes masks, relevancy maps, overlays and scores.

    Exit code 3 when none of the phrases is found.
    """

    load_config: Path
    """config.yml of the run, or the folder that holds it."""
    text: tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]]
    """Phrases, e.g. --text "red mug" duck; each is answered on its own."""
    output: Path = Path("maskfield_query")
    """Folder for images and answers.json."""
    export: str = ""
    """Files about the found objects, written into the output folder, with commas between: NAME.json gets their boxes,
    centroids and volumes, NAME.ply their Gaussians (or points), NAMEmesh.ply a triangle mesh. E.g.
    boxes.json,object.ply"""
    negatives: tuple[str, ...] = ()
    """Phrases that relevancy is measured against; default: object, things, stuff, texture."""
    views: Views = field(default_factory=Views)
    printing: Printing = field(default_factory=Printing)

    @property
    def phrases(self) -> list[str]:
        """Every phrase once, in order."""
        return list(dict.fromkeys(phrase for group in self.text for phrase in group))

    @property
    def exports(self) -> list[str]:
        """Names of files."""
        return [name.strip() for name in self.export.split(",") if name.strip()]

    def check(self) -> None:
        """Refuses wrong values before anything is loaded."""
        check_phrases(self.phrases or [""])
        check_phrases(self.negatives)
        if not 0 < self.views.scale <= MAX_SCALE or self.views.max_views < 0:
            raise MaskfieldError(f"--scale must be above 0 and at most {MAX_SCALE}, and --max-views 0 (all) or more")
        wrong = [name for name in self.exports if Path(name).suffix not in (".json", ".ply") or Path(name).name != name]
        if wrong:
            raise MaskfieldError(f"--export takes names of .json and .ply files in the output folder, not {wrong[0]}")
        check_run(self.load_config)
        check_folder(self.output)

    def run(self) -> Result:
        """Answers the phrases."""
        from maskfield_ns.commands.query import query

        return query(self)


@dataclass
class Export:
    """Write a trained run's Gaussians with instance numbers, a list of its objects, and a .ply and boxes per phrase.

    Exit code 3 when none of the phrases is found.
    """

    load_config: Path
    """config.yml of the run, or the folder that holds it; config_edited.yml for the edited scene."""
    text: tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]] = ()
    """Phrases to write a .ply file for, e.g. --text "red mug" duck."""
    queries: tuple[int, ...] = ()
    """Numbers of queries (as in objects.json) to write a .ply file for."""
    output: Path = Path("maskfield_export")
    """Folder for the files."""
    frame: Literal["scene", "capture"] = "scene"
    """Coordinates of .ply files: nerfstudio's (as ns-export writes), or the capture's own."""
    mesh: bool = False
    """Write a triangle mesh of each object, too."""
    level: Level = "auto"
    """Mask level that the phrases are answered at; auto: all levels together."""
    printing: Printing = field(default_factory=Printing)

    @property
    def phrases(self) -> list[str]:
        """Every phrase once, in order."""
        return list(dict.fromkeys(phrase for group in self.text for phrase in group))

    def check(self) -> None:
        """Refuses wrong values before anything is loaded."""
        check_phrases(self.phrases)
        check_queries(self.queries)
        check_run(self.load_config)
        check_folder(self.output)

    def run(self) -> Result:
        """Exports."""
        from maskfield_ns.commands.export import export

        return export(self)


@dataclass
class Demo:
    """Run the main job on the capture that ships with the package: cache, training, queries, evaluation."""

    output: Path = Path("demo_output")
    """Folder for the run, images and metrics."""
    method: Literal["maskfield-splat-lite", "maskfield-lite"] = "maskfield-splat-lite"
    """Method to train."""

    def check(self) -> None:
        """Nothing can be wrong."""

    def run(self) -> None:
        """Runs every step as the command a user would type."""
        from maskfield_ns.commands.demo import demo

        demo(self.output, self.method)


@dataclass
class Doctor:
    """Report what this machine has: versions, GPU, compiler, weights, and what would be downloaded or compiled."""

    data: Path | None = None
    """Capture whose mask cache is reported, too."""
    printing: Printing = field(default_factory=Printing)

    def check(self) -> None:
        """Refuses a capture that is not there."""
        if self.data is not None and not self.data.exists():
            raise MaskfieldError(f"there is no capture at {self.data}")

    def run(self) -> Result:
        """Reports."""
        from maskfield_ns.commands.doctor import doctor

        return doctor(self)


Command = Union[  # noqa: UP007 (subcommands are annotated members)
    Annotated[Query, tyro.conf.subcommand("query")],
    Annotated[Edit, tyro.conf.subcommand("edit")],
    Annotated[Export, tyro.conf.subcommand("export")],
    Annotated[Extract, tyro.conf.subcommand("extract")],
    Annotated[Demo, tyro.conf.subcommand("demo")],
    Annotated[Doctor, tyro.conf.subcommand("doctor")],
    Annotated[Score, tyro.conf.subcommand("score")],
    Annotated[Bench, tyro.conf.subcommand("bench")],
]


def entrypoint() -> None:
    """Console script: errors a user can act on end in one line and exit code 1."""
    for stream in (sys.stdout, sys.stderr):  # a file name need not be UTF-8, nor a terminal
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    words = sys.argv[1:]
    if words == ["--version"]:
        print(f"maskfield-ns {__version__}")
        return
    try:
        code = execute(parse(words))
        sys.stdout.flush()
    except NothingFoundError as error:
        print(f"not found: {error}", file=sys.stderr)
        code = NOTHING_FOUND
    except MaskfieldError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 1
    except (KeyboardInterrupt, BrokenPipeError) as error:
        quiet.ends_quietly(error)
        code = quiet.INTERRUPTED if isinstance(error, KeyboardInterrupt) else quiet.NO_READER
    if code:
        sys.exit(code)


def parse(words: Sequence[str]) -> Command:
    """A command with its options; words that are none end the process as tyro does, with a message and exit code 2."""
    arguments, rest = split_arguments(todays_names(words))
    command = tyro.cli(
        Command,
        args=arguments,
        description="Open-vocabulary 3D segmentation for nerfstudio. maskfield --version prints the version; exit "
        "code 3 means that nothing was found.",
        config=(tyro.conf.OmitSubcommandPrefixes, tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
    )
    return replace(command, dataparser_options=tuple(rest)) if isinstance(command, Extract) else command


def execute(command: Command) -> int:
    """Checks a command's options, runs it and prints what is wanted of it; returns the exit code.

    Raises:
        MaskfieldError: as the command.
    """
    from maskfield_ns.compat import quiet_known_warnings

    for name, text in _texts(command):
        if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
            # Bytes of an argument that are no UTF-8 arrive as halves of surrogate pairs.
            raise MaskfieldError(f"--{name.replace('_', '-')} is not UTF-8 text: {ascii(text)[:80]}")
    command.check()
    quiet_known_warnings()
    printing = getattr(command, "printing", Printing())
    with _silent() if printing.json or printing.quiet else contextlib.nullcontext():
        result = command.run() or Result()
    if printing.json:
        print(json.dumps(result.data, indent=1, ensure_ascii=False))
    return 0 if result.found else NOTHING_FOUND


def _texts(value: object, name: str = "") -> Iterator[tuple[str, str]]:
    """Every text among the options of a command, with the option's name. File names are no texts."""
    if isinstance(value, str):
        yield name, value
    elif isinstance(value, tuple):
        for item in value:
            yield from _texts(item, name)
    elif is_dataclass(value):
        for entry in fields(value):
            yield from _texts(getattr(value, entry.name), entry.name)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Drops what is printed inside, nerfstudio's progress included; errors are not concerned."""
    with open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


def todays_names(words: Sequence[str]) -> list[str]:
    """A command line as this version has it, made of one as the last version had it; tells what has changed.

    ``maskfield edit --load-config RUN --action tint --colour 1 0 0`` is ``maskfield edit tint --load-config RUN
    --color 1 0 0``.

    Raises:
        MaskfieldError: several edits in one command.
    """
    result = []
    for word in words:
        name, equals, value = word.partition("=")
        if name in RENAMED:
            print(f"note: {name} is called {RENAMED[name]} now", file=sys.stderr)
            name = RENAMED[name]
        result.append(name + equals + value)
    if result[:1] != ["edit"] or not result[1:2] or result[1] in (*SUBCOMMANDS_OF_EDIT, "-h", "--help"):
        return result
    actions, rest, place = [], [], 1
    while place < len(result):
        word = result[place]
        if word == "--action" and place + 1 < len(result):
            actions.append(result[place + 1])
            place += 1
        elif word.startswith("--action="):
            actions.append(word.partition("=")[2])
        elif word in ("--undo", "--clear"):
            actions.append(word[2:])
        else:
            rest.append(word)
        place += 1
    if len(actions) > 1:
        raise MaskfieldError(f"one edit at a time: {' or '.join(actions)}")
    action = actions[0] if actions else "list"
    print(f"note: this is maskfield edit {action} now", file=sys.stderr)
    return ["edit", action, *rest]


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
