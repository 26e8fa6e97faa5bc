"""How nerfstudio's viewer finds the panel: an attribute of the model, set by the pipeline."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from nerfstudio.viewer.render_state_machine import RenderStateMachine
from nerfstudio.viewer.viewer_elements import ViewerControl

if TYPE_CHECKING:
    from nerfstudio.cameras.cameras import Cameras
    from nerfstudio.data.scene_box import OrientedBox
    from nerfstudio.viewer.viewer import Viewer

    from maskfield_ns.answers.render import Outputs
    from maskfield_ns.models.contract import AnyModel
    from maskfield_ns.viewer.panel import Panel


class PanelControl(ViewerControl):
    """Opens the panel when a viewer of the model starts; nothing at all where none does.

    nerfstudio sets up every ViewerControl it finds on a pipeline, in ns-train and ns-viewer alike. (Widgets found as
    attributes would appear in alphabetical order, far below everything else, and hold the training lock while typing.)

    Args:
        model: a maskfield model.
    """

    def __init__(self, model: AnyModel) -> None:
        self._model = model
        self.panel: Panel | None = None

    def _setup(self, viewer: Viewer) -> None:
        from maskfield_ns.viewer.panel import Panel

        super()._setup(viewer)
        self.panel = Panel(viewer, self._model)

    def shows_this_thread(self) -> bool:
        """Whether the caller renders for a browser (training, evaluation and exports use other threads)."""
        return self.panel is not None and isinstance(threading.current_thread(), RenderStateMachine)

    def outputs(self, render: Callable[[], Outputs], camera: Cameras, box: OrientedBox | None) -> Outputs:
        """What the panel shows of a camera; see :meth:`maskfield_ns.viewer.session.Session.outputs`."""
        assert self.panel is not None
        return self.panel.session.outputs(render, camera, box)
