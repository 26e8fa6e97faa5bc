"""Labels of a capture as the pictures that are rendered show them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath

import numpy as np
from jaxtyping import UInt8

from maskfield_ns.data.undistortion import Undistortion
from maskfield_ns.evaluation.labels import LabelledCapture


class ServedLabels(LabelledCapture):
    """Labels that go through the undistortion and cropping their pictures went through.

    Args:
        labels: over the photographs.
        undistortions: by image name; None or no entry for pictures that are used as they are.
    """

    undistortions: Mapping[str, Undistortion | None]

    def __init__(self, labels: LabelledCapture, undistortions: Mapping[str, Undistortion | None]) -> None:
        super().__init__(labels.directory, labels.labels)
        object.__setattr__(self, "undistortions", undistortions)  # the base class is frozen

    def instances(self, image_name: str | PurePath, size: tuple[int, int] | None = None) -> UInt8[np.ndarray, "H W"]:
        """Ids of one picture as served. Arguments and errors as :meth:`LabelledCapture.instances`."""
        how = self.undistortions.get(str(image_name))
        if how is None:
            return super().instances(image_name, size)
        ids = how.apply(super().instances(image_name))
        if size is None or size == ids.shape:
            return ids
        rows, columns = ((np.arange(new) * 2 + 1) * old // (2 * new) for old, new in zip(ids.shape, size, strict=True))
        return ids[rows[:, None], columns[None, :]]
