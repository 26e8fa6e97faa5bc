"""Views kept after rendering: as long as camera and model stay, a new question costs no rendering."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras
from torch import Tensor

from maskfield_ns.answers.assignments import PixelAssignments
from maskfield_ns.models.contract import QueryableModel

MAX_BYTES = 512 << 20
MAX_VIEWS = 12


@dataclass(frozen=True)
class KeptView:
    """What a camera sees, and what its pixels belong to."""

    pictures: dict[str, Float[Tensor, "H W _"]]
    """The backbone's outputs: rgb, depth, ..."""
    features: Float[Tensor, "H W channels"]
    """Mask features in half precision: only pictures of them are made from here on."""
    assignments: PixelAssignments
    camera: Cameras
    """A single camera [1] of this size."""

    @property
    def pose(self) -> Hashable:
        """Same for all sizes of a camera."""
        return camera_pose(self.camera)

    @property
    def nbytes(self) -> int:
        """Memory in bytes."""
        tensors = [*self.pictures.values(), self.features]
        return self.assignments.nbytes + sum(t.numel() * t.element_size() for t in tensors)


class ViewCache:
    """The most recently used views, at most so many and so large; safe to use from several threads."""

    def __init__(self, max_bytes: int = MAX_BYTES, max_views: int = MAX_VIEWS) -> None:
        self.max_bytes, self.max_views = max_bytes, max_views
        self._views: OrderedDict[Hashable, KeptView] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._views)

    def get(self, key: Hashable) -> KeptView | None:
        """The view with this key, which counts as used now."""
        with self._lock:
            if key in self._views:
                self._views.move_to_end(key)
            return self._views.get(key)

    def put(self, key: Hashable, view: KeptView) -> None:
        """Keeps a view; the longest unused go when there are too many. The newest always stays."""
        with self._lock:
            self._views[key] = view
            self._views.move_to_end(key)
            total = sum(kept.nbytes for kept in self._views.values())
            while len(self._views) > 1 and (total > self.max_bytes or len(self._views) > self.max_views):
                total -= self._views.popitem(last=False)[1].nbytes

    def largest(self, pose: Hashable, state: Hashable) -> KeptView | None:
        """The view of a camera with most pixels, made from this state of the model."""
        with self._lock:
            views = [v for (kept, _, _), v in self._views.items() if kept == state and v.pose == pose]  # type: ignore[misc]
        return max(views, key=lambda v: v.assignments.size[0] * v.assignments.size[1], default=None)


def camera_pose(camera: Cameras) -> Hashable:
    """Where a single camera [1] stands and how it sees, but for the number of pixels."""
    height = float(camera.height.item())
    lens = [float(getattr(camera, name).item()) / height for name in ("fx", "fy", "cx", "cy", "width")]
    # Integer sizes of one aspect ratio differ in the third digit.
    rough = tuple(round(value, 1) for value in lens)
    return camera.camera_to_worlds.cpu().numpy().tobytes(), rough, int(camera.camera_type.item())


def view_key(camera: Cameras, box: Any, state: Hashable) -> Hashable:
    """(state of the model, camera and size, crop box): equal keys give equal pictures."""
    exact = tuple(float(getattr(camera, name).item()) for name in ("fx", "fy", "cx", "cy", "width", "height"))
    cut = None if box is None else tuple(t.cpu().numpy().tobytes() for t in (box.R, box.T, box.S))
    return state, (camera.camera_to_worlds.cpu().numpy().tobytes(), exact, int(camera.camera_type.item())), cut


def model_state(model: QueryableModel) -> Hashable:
    """Changes whenever a parameter or buffer of the model does: in place, or replaced by another tensor."""
    tensors = [*model.parameters(), *model.buffers()]
    background = getattr(model, "background_color", None)
    colour = tuple(background.tolist()) if isinstance(background, Tensor) else background
    return hash(tuple((t.data_ptr(), t._version, tuple(t.shape)) for t in tensors)), colour
