"""Pictures of the worst answers: the view, its label and the answer side by side."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from maskfield_ns.evaluation.protocols.scoring import Case


class WorstCases:
    """Keeps the few answers with the lowest IoU and their pictures; nothing else stays in memory."""

    def __init__(self, keep: int = 6) -> None:
        self.keep = keep
        self._heap: list[tuple[float, int, Case]] = []
        self._count = 0
        self._pictures: dict[str, np.ndarray] = {}

    def __call__(self, case: Case) -> None:
        """Takes a case in."""
        self._count += 1
        entry = (-case.score, -self._count, case)
        if len(self._heap) < self.keep:
            heapq.heappush(self._heap, entry)
        else:
            heapq.heappushpop(self._heap, entry)

    def picture(self, view: str, rgb: UInt8[np.ndarray, "H W 3"]) -> None:
        """Gives the picture of a view whose cases have been taken in; kept if one of them is among the worst."""
        wanted = {case.view for case in self.cases()}
        if view in wanted:
            self._pictures[view] = rgb
        self._pictures = {name: kept for name, kept in self._pictures.items() if name in wanted}

    def cases(self) -> list[Case]:
        """Worst first; of equals the first."""
        return [case for _, _, case in sorted(self._heap, key=lambda entry: entry[:2], reverse=True)]

    def write(self, path: Path, photograph: Callable[[str], np.ndarray | None] | None = None) -> bool:
        """Draws the sheet; False when there is nothing to draw.

        Args:
            path: of the PNG.
            photograph: uint8 [H, W, 3] of a view, where no picture was given.

        Raises:
            MaskfieldError: the file cannot be written.
        """
        from maskfield_ns.pictures.sheets import contact_sheet, overlay

        rows = []
        for case in self.cases():
            rgb = self._pictures.get(case.view)
            if rgb is None and photograph is not None:
                rgb = photograph(case.view)
            picture = _ground(rgb, case.label.shape)
            rows.append(
                [
                    (f"{case.view}: {case.what}, IoU {case.score:.2f}", picture),
                    ("label", overlay(picture, case.label)),
                    ("answer", overlay(picture, case.pred)),
                ]
            )
        if rows:
            contact_sheet(rows, path)
        return bool(rows)


def _ground(rgb: np.ndarray | None, shape: tuple[int, ...]) -> UInt8[np.ndarray, "H W 3"]:
    from PIL import Image

    height, width = shape
    if rgb is None:
        return np.full((height, width, 3), 96, np.uint8)
    if rgb.shape[:2] == (height, width):
        return rgb
    return np.asarray(Image.fromarray(rgb).resize((width, height), Image.Resampling.BILINEAR))
