"""The panel "MaskField" in nerfstudio's viewer: widgets that talk to a session."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import viser
from nerfstudio.utils.rich_utils import CONSOLE
from nerfstudio.viewer.render_state_machine import RenderAction
from PIL import Image

from maskfield_ns.answers.objects import overview_cameras
from maskfield_ns.foundation.protocols import LEVELS
from maskfield_ns.models.contract import AnyModel
from maskfield_ns.viewer import compose
from maskfield_ns.viewer.editor import SceneEditor
from maskfield_ns.viewer.phrases import panel_text
from maskfield_ns.viewer.session import PICTURE, Session

if TYPE_CHECKING:
    from nerfstudio.viewer.viewer import Viewer

TYPING_PAUSE = 0.6
"""Seconds without a keystroke after which a text is asked. (viser 0.2.7 does not tell us of the Enter key.)"""
SHOWN_FINDINGS = 12
AUTOMATIC = "automatic"
_NO_THING: str = "(none)"
_CLICK_BOX = "/maskfield_click_area"
_FAR = 1e5
"""Half the side of the box that catches clicks, in the viewer's units: beyond what it draws."""


class Panel:
    """Builds the widgets, passes what the user does on to a :class:`Session`, and shows what it says.

    Widgets are viser's own: nerfstudio's elements call back under the training lock for every keystroke. No callback
    here waits for the model, and nothing a user types is shown before it has been made harmless.

    Args:
        viewer: nerfstudio's viewer, still being constructed.
        model: the QueryableModel that it shows.
    """

    def __init__(self, viewer: Viewer, model: AnyModel) -> None:
        self.viewer, self.model, self.server = viewer, model, viewer.viser_server
        self.folder = viewer.log_filename.parent
        editor = SceneEditor(model, viewer.pipeline.datamanager, self.folder, viewer.train_lock)
        self.session = Session(model, viewer.train_lock, self.refresh, self.show_status, editor)
        self._typing: threading.Timer | None = None
        self._build()
        self._catch_clicks()
        self.session.load_text_model()
        if viewer.config.websocket_host in ("127.0.0.1", "localhost", "::1"):
            CONSOLE.print(
                "The viewer is open to this machine only. From another one: an SSH tunnel "
                f"(ssh -L {viewer.config.websocket_port or viewer.config.websocket_port_default}:localhost:PORT HOST), "
                "or --viewer.websocket-host 0.0.0.0, which lets everybody in who can reach this machine.",
                soft_wrap=True,
            )

    # --- widgets ------------------------------------------------------------------------------------------------------

    def _build(self) -> None:
        gui, rule = self.server.gui, self.session.settings.rule
        with gui.add_folder("MaskField", order=-1.0):
            self.text = gui.add_text("Find", "", hint="What to look for; several phrases separated by commas")
            self.text.on_update(lambda _: self._typed())
            apply = gui.add_button("Apply", icon=viser.Icon.SEARCH, hint="Ask now, without waiting for a typing pause")
            apply.on_click(lambda _: self.apply())
            self.status = gui.add_markdown("")
            self.answers = gui.add_markdown("")
            self.mode = gui.add_dropdown("Show", compose.MODES, hint="What the picture shows")
            self.mode.on_update(lambda _: self._set(mode=self.mode.value))
            self.level = gui.add_dropdown("Level", (AUTOMATIC, *LEVELS), hint="Size of things: all levels, or only one")
            self.level.on_update(lambda _: self._set(level=self._level()))
            with gui.add_folder("Selection"):
                self._group("Found", ("select", "add"), self._select_found, "What the question has found")
                self._group("Deselect", ("remove", "clear"), self._select_found, "What was found, or everything")
                self.click_selects = gui.add_checkbox("Click selects", True, hint="A click in the picture selects")
                self.click_selects.on_update(lambda _: self._arm_clicks())
                self.click_adds = gui.add_checkbox("Click adds", False, hint="Clicks add to what is selected")
                self._button("Export", self._export, viser.Icon.FILE_EXPORT, "Into the run's folder")
                self._button("Screenshot", self._screenshot, viser.Icon.CAMERA, "Download the picture as PNG")
            with gui.add_folder("Edit", expand_by_default=False):
                self.colour = gui.add_rgb("Tint", (255, 80, 40), hint="Colour of the button tint")
                self._group("Change", ("tint", "delete", "extract"), self._edit, "Acts on the selection")
                self.shift = gui.add_vector3("Shift", (0.0, 0.0, 0.0), step=0.01, hint="Scene units: x, y, z (up)")
                self.turn = gui.add_slider("Turn", min=-180, max=180, step=1, initial_value=0, hint="Degrees, about up")
                self.size = gui.add_slider("Size", min=0.1, max=3.0, step=0.05, initial_value=1.0, hint="1 keeps it")
                self._group("Place", ("move", "duplicate"), self._edit, "The selection, by shift, turn, size")
                if self.model.backbone == "gaussians":
                    insert = gui.add_upload_button("Insert .ply", icon=viser.Icon.UPLOAD, color="gray")
                    insert.on_upload(lambda event: self._insert(event.target.value.content))
                self._button("Undo edit", self._undo, viser.Icon.ARROW_BACK_UP, "Takes the last back")
                self._button("Save edits", self.session.save_edits, viser.Icon.DEVICE_FLOPPY, "For ns-render")
            with gui.add_folder("Objects", expand_by_default=False):
                self.things: Any = gui.add_dropdown(
                    "Object", (_NO_THING,), hint="name · share of the picture · confidence"
                )
                self.things.on_update(lambda _: self._choose_thing())
                self._button("List objects", self.list_objects, viser.Icon.LIST, "Looks around in the scene")
            with gui.add_folder("Image patch", expand_by_default=False):
                upload = gui.add_upload_button(
                    "Upload a picture", icon=viser.Icon.UPLOAD, mime_type="image/*", color="gray"
                )
                upload.on_upload(lambda event: self.session.ask_patch(event.target.value.content, "uploaded picture"))
                self._button(
                    "Draw a rectangle", self._arm_rectangle, viser.Icon.CROP, "Around something in the picture"
                )
            with gui.add_folder("Tuning", expand_by_default=False):
                negatives = ", ".join(self.model.config.negatives)
                self.negatives = gui.add_text("Negatives", negatives, hint="What relevancy is measured against")
                self.negatives.on_update(lambda _: self._typed())
                self._slider("Threshold", rule.found_threshold, 0.0, 1.0, 0.01, "found_threshold", "Found from here on")
                self._slider("Mask scale", rule.mask_scale, 0.2, 3.0, 0.05, "mask_scale", "Smaller: larger masks")
                self._slider("Sharpness", rule.sharpness, 0.2, 9.0, 0.1, "sharpness", "Larger: sharper")

    def _button(self, label: str, action: Callable[[], None], icon: Any, hint: str) -> None:
        self.server.gui.add_button(label, icon=icon, hint=hint, color="gray").on_click(lambda _: action())

    def _group(self, label: str, options: tuple[str, ...], action: Callable[[str], None], hint: str) -> None:
        group = self.server.gui.add_button_group(label, options, hint=hint)
        # viser 0.2.7 takes a group for an input whose value may not have changed: pressing the first button, or one
        # button twice, would go unnoticed.
        group._impl.is_button = True
        group.on_click(lambda event: action(event.target.value))

    def _slider(self, label: str, value: float, low: float, high: float, step: float, name: str, hint: str) -> None:
        value = min(max(value, low), high)
        slider = self.server.gui.add_slider(label, min=low, max=high, step=step, initial_value=value, hint=hint)
        slider.on_update(lambda _: self._set(**{name: slider.value}))

    # --- asking -------------------------------------------------------------------------------------------------------

    def _typed(self) -> None:
        """Every keystroke; asks when typing pauses."""
        if self._typing is not None:
            self._typing.cancel()
        self._typing = threading.Timer(TYPING_PAUSE, self.apply)
        self._typing.daemon = True
        self._typing.start()

    def apply(self) -> None:
        """Asks for what the text box says."""
        if self._typing is not None:
            self._typing.cancel()
        self._show_picture()
        self.session.ask(self.text.value, self.negatives.value)

    def _select_found(self, how: str) -> None:
        """select, add or remove what the question has found; or clear."""
        self._show_picture()
        if how == "clear":
            self.session.clear()
        else:
            self.session.select(self.session.found_objects(), how)

    def _set(self, **changes: Any) -> None:
        self._show_picture()
        self.session.set(**changes)

    def _level(self) -> int | None:
        return None if self.level.value == AUTOMATIC else LEVELS.index(self.level.value)

    def list_objects(self) -> None:
        """Looks at the scene from up to six training views and lists what it contains."""
        dataset = self.viewer.pipeline.datamanager.train_dataset
        assert dataset is not None
        views = [view.to(self.model.device) for view in overview_cameras(dataset.cameras)]
        self.session.list_objects(views)

    def _choose_thing(self) -> None:
        chosen = self._thing_labels().index(self.things.value) if self.things.value in self._thing_labels() else -1
        if chosen >= 0:
            thing = self.session.objects[chosen]
            self._show_picture()
            self.session.select_object(thing)

    def _thing_labels(self) -> list[str]:
        """Labels, made unique."""
        seen: dict[str, int] = {}
        labels = []
        for label in (thing.label() for thing in self.session.objects):
            seen[label] = seen.get(label, 0) + 1
            labels.append(label if seen[label] == 1 else f"{label} ({seen[label]})")
        return labels

    # --- pointing -----------------------------------------------------------------------------------------------------

    def _catch_clicks(self) -> None:
        """An invisible box around everything that reports clicks.

        viser's own pointer events would stop the mouse from turning the view while they are on. The box is seen from
        inside, larger than what the browser draws, and catches what no other object has caught.
        """
        corners = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], np.float32) * _FAR
        inward = [[0, 1, 3], [0, 3, 2], [4, 7, 5], [4, 6, 7], [0, 5, 1], [0, 4, 5]]
        inward += [[2, 3, 7], [2, 7, 6], [0, 2, 6], [0, 6, 4], [1, 7, 3], [1, 5, 7]]
        faces = np.array(inward, np.uint32)
        self.box = self.server.scene.add_mesh_simple(_CLICK_BOX, corners, faces, opacity=0.0, side="double")
        self.box.on_click(self._clicked)

    def _arm_clicks(self) -> None:
        self.box.visible = self.click_selects.value

    def _clicked(self, event: Any) -> None:
        x, y = event.screen_pos
        how = "add" if self.click_adds.value else "select"
        camera = self._camera(event.client)
        self._show_picture()
        self.session.worker.later(lambda: self.session.click(camera, x, y, how))

    def _camera(self, client: Any, side: int = 240) -> Any:
        """The camera of a browser, small: kept views of any size are found by it."""
        from nerfstudio.viewer.utils import get_camera

        state = self.viewer.get_camera_state(client)
        height = side if state.aspect <= 1 else max(1, round(side / state.aspect))
        return get_camera(state, height, max(1, round(height * state.aspect))).to(self.model.device)

    def _arm_rectangle(self) -> None:
        """The next drag in the picture draws a rectangle."""
        self.show_status("Drag the mouse over a part of the picture.")
        done = threading.Event()

        @self.server.scene.on_pointer_event("rect-select")
        def _(event: Any) -> None:
            if done.is_set():
                return
            done.set()
            self.server.scene.remove_pointer_callback()
            (x0, y0), (x1, y1) = event.screen_pos
            camera = self._camera(event.client)
            self.session.worker.later(lambda: self._ask_rectangle(camera, (x0, y0, x1, y1)))

    def _ask_rectangle(self, camera: Any, bounds: tuple[float, float, float, float]) -> None:
        rgb = self.session.view_of(camera).pictures["rgb"].clamp(0, 1)
        height, width = rgb.shape[:2]
        x0, x1 = (min(max(round(v * width), 0), width) for v in (bounds[0], bounds[2]))
        y0, y1 = (min(max(round(v * height), 0), height) for v in (bounds[1], bounds[3]))
        patch = (rgb[y0:y1, x0:x1] * 255).byte().cpu().numpy()
        self._show_picture()
        self.session.ask_patch(patch, "drawn rectangle")

    # --- edits and files ----------------------------------------------------------------------------------------------

    def _edit(self, action: str) -> None:
        self._show_picture()
        given: dict[str, tuple[Any, ...]] = {"tint": (self.colour.value,), "delete": (), "extract": ()}
        self.session.edit(action, *given.get(action, self._place()))

    def _place(self) -> tuple[tuple[float, float, float], float, float]:
        return self.shift.value, float(self.turn.value), float(self.size.value)

    def _insert(self, content: bytes) -> None:
        self._show_picture()
        self.session.insert(content, *self._place())

    def _undo(self) -> None:
        self._show_picture()
        self.session.undo()

    def _export(self) -> None:
        self.session.export(self.folder / "maskfield_exports" / _stamp())

    def _screenshot(self) -> None:
        picture = self.session.last_picture
        if picture is None:
            self.show_status("There is no picture yet.")
            return
        file = io.BytesIO()
        Image.fromarray(picture).save(file, format="PNG")
        self.server.send_file_download(f"maskfield_{_stamp()}.png", file.getvalue())

    # --- showing ------------------------------------------------------------------------------------------------------

    def _show_picture(self) -> None:
        """Switches the viewer to the panel's picture, should it show something else."""
        output = self.viewer.control_panel._output_render
        if output.value != PICTURE and PICTURE in getattr(output.gui_handle, "options", ()):
            output.value = PICTURE

    def show_status(self, text: str) -> None:
        """One line below the text box."""
        self.status.content = panel_text(text, limit=300)

    def refresh(self) -> None:
        """Shows new answers, and has every browser's picture drawn again at once and in full size.

        nerfstudio's own re-rendering would first show a few coarse pictures.
        """
        self._show_answers()
        labels = (_NO_THING, *self._thing_labels())
        if tuple(self.things.options) != labels:
            self.things.options = labels
        if not self.viewer.ready:
            return
        for machine in list(self.viewer.render_statemachines.values()):
            machine.action(RenderAction("step", self.viewer.get_camera_state(machine.client)))

    def _show_answers(self) -> None:
        findings = self.session.findings()
        lines = []
        for finding in findings[:SHOWN_FINDINGS]:
            name = panel_text(finding.name)
            if finding.found:
                lines.append(f"- `{finding.colour}` **{name}** {finding.score:.2f}")
            else:
                lines.append(f"- {name} *not found* ({finding.score:.2f})")
        if len(findings) > SHOWN_FINDINGS:
            lines.append(f"- and {len(findings) - SHOWN_FINDINGS} more")
        if self.session.selection:
            lines.append(f"\nSelected: **{panel_text(self.session.selection.name)}**")
        self.answers.content = "\n".join(lines)


def _stamp() -> str:
    return time.strftime("%Y%m%d-%H%M%S")
