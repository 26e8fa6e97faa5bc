"""Trains, exports and measures the embedded SAM / CLIP pair.

    python scripts/render_scenes.py dataset --output DATA --num-images 9600
    python scripts/render_scenes.py dataset --output VAL --num-images 400 --seed 1000
    python scripts/train_tiny.py sam --data DATA --work WORK
    python scripts/train_tiny.py clip --data DATA --work WORK
    python scripts/train_tiny.py export --work WORK
    python scripts/train_tiny.py report --data VAL

Every stage is deterministic from its seed, checkpoints, and resumes when run again.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Union

import torch
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parent))
ASSETS = Path(__file__).resolve().parents[1] / "maskfield_ns" / "assets"


def default_device() -> str:
    """CUDA when there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@dataclass
class TrainSam:
    """Train the embedded SAM."""

    data: Path
    work: Path
    device: str = field(default_factory=default_device)
    steps: int = 11000
    seed: int = 0
    threads: int = 0
    """CPU threads; 0 leaves torch's choice."""

    def run(self) -> None:
        """Trains to the end or resumes."""
        from tiny_sam_training import SamTrainingConfig, train

        if self.threads:
            torch.set_num_threads(self.threads)
        print(train(SamTrainingConfig(steps=self.steps, seed=self.seed), self.data, self.work, self.device))


@dataclass
class TrainClip:
    """Train the embedded CLIP."""

    data: Path
    work: Path
    device: str = field(default_factory=default_device)
    steps: int = 8500
    seed: int = 0
    threads: int = 0
    """CPU threads; 0 leaves torch's choice."""

    def run(self) -> None:
        """Trains to the end or resumes."""
        from tiny_clip_training import ClipTrainingConfig, train

        if self.threads:
            torch.set_num_threads(self.threads)
        print(train(ClipTrainingConfig(steps=self.steps, seed=self.seed), self.data, self.work, self.device))


@dataclass
class Export:
    """Write the averaged weights in half precision as the package's assets."""

    work: Path
    output: Path = ASSETS

    def run(self) -> None:
        """Writes tiny_sam.safetensors and tiny_clip.safetensors, whichever checkpoints exist."""
        from safetensors.torch import save_file
        from tiny_phrases import vocabulary_texts

        from maskfield_ns.foundation.tiny.clip import CompactTokenizer

        for name in ("sam", "clip"):
            path = self.work / f"{name}.pt"
            if not path.exists():
                continue
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
            state = {k: v.half().contiguous() if v.is_floating_point() else v for k, v in checkpoint["ema"].items()}
            if name == "clip":
                known = CompactTokenizer.ids_of(vocabulary_texts())
                state["tokenizer.known_ids"] = torch.tensor(known, dtype=torch.int32)
            target = self.output / f"tiny_{name}.safetensors"
            temporary = target.with_suffix(".tmp")
            save_file(state, temporary, metadata={"trained_steps": str(checkpoint["step"])})
            temporary.replace(target)
            print(f"{target}: {target.stat().st_size / 1e6:.2f} MB after {checkpoint['step']} steps")


@dataclass
class Report:
    """Measure the shipped weights on layouts that training never saw."""

    data: Path
    images: int = 100
    output: Path | None = None
    """Where to write the figures as JSON."""
    weights: Path | None = None
    """Folder of exported weights; default: the packaged ones."""

    def run(self) -> None:
        """Prints the figures."""
        from tiny_report import report

        report(self.data, self.images, self.output, self.weights)


Command = Union[  # noqa: UP007 (tyro reads the names from Annotated members)
    Annotated[TrainSam, tyro.conf.subcommand("sam")],
    Annotated[TrainClip, tyro.conf.subcommand("clip")],
    Annotated[Export, tyro.conf.subcommand("export")],
    Annotated[Report, tyro.conf.subcommand("report")],
]

if __name__ == "__main__":
    tyro.cli(Command, description=__doc__).run()
