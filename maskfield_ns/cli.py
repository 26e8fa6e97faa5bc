"""``maskfield``: extract masks ahead of training, query a trained run, run the demo."""

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


Command = Union[  # noqa: UP007 (subcommands are annotated members)
    Annotated[Extract, tyro.conf.subcommand("extract")],
    Annotated[Query, tyro.conf.subcommand("query")],
    Annotated[Demo, tyro.conf.subcommand("demo")],
]


def entrypoint() -> None:
    """Console script: errors a user can act on end in one line and exit code 1."""
    command = tyro.cli(Command, description=__doc__)
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
