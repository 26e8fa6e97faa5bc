"""The trainer of every method: nerfstudio's, with checkpoints that survive kills, full disks and damage."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import cast

from nerfstudio.engine.trainer import Trainer, TrainerConfig
from nerfstudio.utils.decorators import check_main_thread
from nerfstudio.utils.rich_utils import CONSOLE

from maskfield_ns import checkpoints
from maskfield_ns.errors import CheckpointError, MaskfieldError
from maskfield_ns.runs import SAVED_CAPTURE


class MaskfieldTrainer(Trainer):
    """Saves by :func:`maskfield_ns.checkpoints.save`; resumes from the newest checkpoint that is whole.

    Raises:
        CheckpointError: there is nothing to resume from. Said before the capture is looked at.
    """

    def __init__(self, config: TrainerConfig, local_rank: int = 0, world_size: int = 1) -> None:
        super().__init__(config, local_rank, world_size)
        self._resume_from = None
        if config.load_dir is not None or config.load_checkpoint is not None:
            found = _candidates(config)
            self._resume_from = chain([next(found)], found)

    def _load_checkpoint(self) -> None:
        if self._resume_from is None:
            super()._load_checkpoint()
            return
        config = cast(TrainerConfig, self.config)
        asked = config.load_dir, config.load_checkpoint

        def use(path: Path) -> None:
            checkpoints.read(path)  # a foreign file is named before anything of it is loaded
            config.load_dir, config.load_checkpoint = None, path
            super(MaskfieldTrainer, self)._load_checkpoint()

        try:
            checkpoints.use_newest(self._resume_from, use)
        finally:
            config.load_dir, config.load_checkpoint = asked

    @check_main_thread
    def save_checkpoint(self, step: int) -> None:
        """Saves, then removes older checkpoints if the config says so.

        A save that fails on the way does not end the training: the checkpoint before it stays, and the next save tries
        again.

        Raises:
            CheckpointError: the save at the end failed.
        """
        path = self.checkpoint_dir / checkpoints.name_of(step)
        self._save_capture()
        try:
            checkpoints.save(path, lambda folder: self._write(folder, step))
        except CheckpointError as error:
            kept = next(iter(checkpoints.newest_first(self.checkpoint_dir)), None)
            where = f"the last checkpoint is {kept}" if kept else "there is no checkpoint yet"
            if self.training_state == "completed":
                hint = f"; make room and go on from there (--load-dir {self.checkpoint_dir})" if kept else ""
                raise CheckpointError(f"{error}; {where}{hint}") from error
            line = f"warning: {error}; the training goes on, {where}"
            CONSOLE.print(line, style="yellow", markup=False, highlight=False)
            return
        if self.config.save_only_latest_checkpoint:
            checkpoints.remove_older(path)

    def _save_capture(self) -> None:
        """Keeps what an opened run needs of its capture, once."""
        from maskfield_ns.data.saved_capture import save_capture

        path = self.base_dir / SAVED_CAPTURE
        datamanager = self.pipeline.datamanager
        if path.exists() or not hasattr(datamanager, "info"):
            return
        try:
            save_capture(datamanager, path)
        except MaskfieldError as error:
            CONSOLE.print(f"warning: {error}", style="yellow", markup=False, highlight=False)

    def _write(self, folder: Path, step: int) -> None:
        """nerfstudio's checkpoint file of the present state, written into a folder of its own."""
        final, self.checkpoint_dir = self.checkpoint_dir, folder
        try:
            super().save_checkpoint(step)
        finally:
            self.checkpoint_dir = final


def _candidates(config: TrainerConfig) -> Iterator[Path]:
    """Whole checkpoints to resume from, the first choice first."""
    if config.load_dir is not None:
        yield from checkpoints.good(Path(config.load_dir), config.load_step)
    elif config.load_checkpoint is not None:
        path = Path(config.load_checkpoint)
        if reason := checkpoints.problem(path):
            raise CheckpointError(f"cannot resume from {path}: {reason}")
        yield path
        raise CheckpointError(f"cannot resume from {path}")
