"""The capture side of every datamanager: which parser reads it, and images whose damage is named."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.datasets.base_dataset import InputDataset
from PIL import Image

from maskfield_ns.compat import TRACEBACK_VARIABLE
from maskfield_ns.data.capture import CaptureSummary
from maskfield_ns.data.dataparsers.captures import CaptureDataParser, own_parser
from maskfield_ns.errors import CaptureError, MaskfieldError


@dataclass
class CaptureSourceConfig:
    """How a capture is read."""

    missing_images: Literal["refuse", "skip"] = "refuse"
    """What happens to frames whose image file does not exist: skip trains on the others."""

    def use_own_parser(self) -> None:
        """Lets captures of nerfstudio's own formats be read and checked by :class:`CaptureDataParser`."""
        config: Any = self
        config.dataparser = own_parser(config.dataparser, skip_missing=self.missing_images == "skip")

    def check_cameras(self, cameras: Cameras) -> None:
        """Raises CaptureError for cameras that the method cannot render."""


def named_errors(dataparser: Any) -> Any:
    """Lets whatever another dataparser fails with name the data that it could not read.

    Dataparsers of nerfstudio fail with assertions, missing keys, or at a prompt that nobody answers.
    """
    if isinstance(dataparser, CaptureDataParser):
        return dataparser
    read = dataparser.get_dataparser_outputs

    def reading(*args: Any, **options: Any) -> Any:
        try:
            return read(*args, **options)
        except MaskfieldError:
            raise
        except Exception as error:
            lines = str(error).strip().splitlines() or [""]
            raise CaptureError(
                f"{dataparser.config.data} cannot be read by {type(dataparser).__name__}: {type(error).__name__}: "
                f"{lines[0][:300]} ({TRACEBACK_VARIABLE}=1 shows where)"
            ) from error

    dataparser.get_dataparser_outputs = reading
    return dataparser


class CaptureSource:
    """Mixin for a nerfstudio datamanager whose config is a :class:`CaptureSourceConfig`."""

    config: Any
    _dataparser: Any

    @property
    def dataparser(self) -> Any:
        """What reads the capture; nerfstudio's datamanagers make it of the config."""
        return self._dataparser

    @dataparser.setter
    def dataparser(self, dataparser: Any) -> None:
        self._dataparser = named_errors(dataparser)

    @property
    def capture(self) -> CaptureSummary | None:
        """The capture, if it is of nerfstudio's own formats; benchmark dataparsers check their own."""
        return self.dataparser.capture if isinstance(self.dataparser, CaptureDataParser) else None

    def create_train_dataset(self) -> Any:
        """The training images; first of all their cameras are looked at."""
        self.config.check_cameras(self.train_dataparser_outputs.cameras)  # type: ignore[attr-defined]
        return super().create_train_dataset()  # type: ignore[misc]


class CaptureDataset(InputDataset):
    """nerfstudio's images, with damage named."""

    def get_numpy_image(self, image_idx: int) -> np.ndarray:
        """Pixels, uint8 [H, W, 3 or 4].

        Raises:
            CaptureError: the file cannot be decoded (half downloaded, say).
        """
        try:
            return super().get_numpy_image(image_idx)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            path = self.image_filenames[image_idx]
            raise CaptureError(f"{path} cannot be read as an image; replace or remove it ({error}).") from error

    def get_data(self, image_idx: int, image_type: Literal["uint8", "float32"] = "float32") -> dict:
        """Image and mask.

        Raises:
            CaptureError: one of them cannot be decoded.
        """
        try:
            return super().get_data(image_idx, image_type)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            masks = self._dataparser_outputs.mask_filenames
            path = masks[image_idx] if masks else self.image_filenames[image_idx]
            raise CaptureError(f"{path} cannot be read as an image; replace or remove it ({error}).") from error
