"""The viewer as a person uses it: a headless browser opens a run, types, and clicks.

The tests touch nothing but the page; Python only makes the run, puts the camera in front of the scene and says where
the thing is that must light up. Without a browser they are skipped, but never in CI.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
from browser import Browser, find_browser
from made_run import make_run
from PIL import Image

from maskfield_ns.answers.render import answer_view
from maskfield_ns.scene import Scene
from maskfield_ns.viewer.panel import Panel

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_browser() is None and not os.environ.get("CI"), reason="no browser is installed"),
]

PHRASE, ABSENT = "green mug", "zebra"
SHOWN = (580, 660)
"""Height and width looked at: a little less than the canvas, whose size depends on the panel's scroll bar."""


@dataclass
class Shown:
    """A viewer of a small run with a browser in front of it."""

    browser: Browser
    panel: Panel
    scene: Scene
    port: int

    def settled_picture(self) -> np.ndarray:
        """The scene's part of the window once it stands still."""
        last, since = self._picture(), time.monotonic()

        def still() -> bool:
            nonlocal last, since
            now = self._picture()
            if np.abs(now.astype(int) - last).max() > 8:
                last, since = now, time.monotonic()
            return time.monotonic() - since > 3.0

        self.browser.until(still, "a picture that stands still")
        return self._picture().astype(int)

    def _picture(self) -> np.ndarray:
        left, top, _, _ = self.browser.canvas()
        return self.browser.picture()[top : top + SHOWN[0], left : left + SHOWN[1]]

    def changed(self, before: np.ndarray, least: float = 0.0, most: float = 1.0) -> np.ndarray:
        """Pixels that differ from an earlier picture, once that many do: a busy machine may take its time to draw."""

        def different(now: np.ndarray) -> np.ndarray:
            return np.abs(now.astype(int) - before).max(-1) > 40

        self.browser.until(lambda: least <= different(self._picture()).mean() <= most, f"{least} to {most} to change")
        return different(self.settled_picture())

    def answer(self, phrase: str) -> np.ndarray:
        """Where a phrase's mask is in this browser's view, by the functions of rendering and evaluation."""
        (client,) = self.panel.server.get_clients().values()
        view = self.panel._camera(client, side=160)
        model = self.scene.model
        active = model.ask([phrase])
        features = model.render_view(view, None).features
        mask = answer_view(features, model.query_head, active, None, model.config.decision).masks[0]
        return self.like_canvas(mask)

    def like_canvas(self, mask: np.ndarray) -> np.ndarray:
        left, top, right, bottom = self.browser.canvas()
        size = right - left, bottom - top
        return np.array(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))[: SHOWN[0], : SHOWN[1]]


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    from nerfstudio.scripts.viewer.run_viewer import _start_viewer
    from nerfstudio.utils.eval_utils import eval_setup

    folder = tmp_path_factory.mktemp("browser")
    run = make_run(folder)
    config, pipeline, _, step = eval_setup(run, test_mode="test")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    config.vis = "viewer"
    config.viewer.websocket_port = port
    threading.Thread(target=_start_viewer, args=(config, pipeline, step), daemon=True).start()
    control = pipeline.model.presenter
    with Browser(1000, 640) as browser:
        browser.until(lambda: control.panel is not None and control.panel.viewer.ready, "the viewer")
        panel = control.panel
        panel.viewer.control_panel._max_res.value = 256  # pixels: enough to see, and quick
        browser.open(f"http://127.0.0.1:{port}")
        client = browser.until(lambda: next(iter(panel.server.get_clients().values()), None), "a client")
        with client.atomic():
            client.camera.position, client.camera.look_at = (0.0, -9.0, 7.0), (0.0, 0.0, 0.0)
        browser.until(lambda: browser.shows("Ready") or browser.shows("Nothing can be found"), "the text model")
        yield Shown(browser, panel, Scene(pipeline, run, step), port)


def test_typing_lights_up_the_thing(shown: Shown) -> None:
    before = shown.settled_picture()
    shown.browser.type_into("Find", PHRASE)  # and neither Enter nor a button
    shown.browser.until(lambda: shown.browser.shows("Found."), "the answer")
    changed, thing = shown.changed(before, least=0.002), shown.answer(PHRASE)
    assert 0.003 < thing.mean() < 0.3, "the thing must be in sight, and not everything"
    assert changed[thing].mean() > 0.7
    assert changed[~thing].mean() < 0.02
    listed = shown.browser.text()
    assert PHRASE in listed

    shown.browser.type_into("Find", ABSENT)
    shown.browser.until(lambda: shown.browser.shows("Not found"), "the answer")
    assert shown.changed(before, most=0.01).mean() < 0.01, "nothing is marked for what is not there"

    shown.browser.type_into("Find", "{<script>`</div>${1}, 🦆, " + "x" * 60)
    shown.browser.until(lambda: shown.browser.shows("of 3 found") or shown.browser.shows("0 of 3"), "the answer")
    assert shown.browser.shows("{<script>`</div>${1}"), "shown as it was typed, not run"

    shown.browser.type_into("Find", "")
    shown.browser.until(lambda: shown.browser.shows("Type what you are looking for"), "the answer")
    assert shown.changed(before, most=0.01).mean() < 0.01


def test_a_click_selects_the_object_and_dragging_still_turns_the_view(shown: Shown) -> None:
    browser = shown.browser
    before = shown.settled_picture()
    thing = shown.answer(PHRASE)
    row, column = (int(np.median(places)) for places in np.nonzero(thing))
    left, top, _, _ = browser.canvas()
    browser.click_at(left + column, top + row)
    browser.until(lambda: browser.shows("Selected"), "the selection")
    changed = shown.changed(before, least=0.002)
    assert changed[thing].mean() > 0.5, "what was clicked is marked"
    assert changed[~thing].mean() < 0.02, "and nothing else"

    browser.press("clear")
    browser.until(lambda: browser.shows("Nothing is selected"), "the cleared selection")
    assert shown.changed(before, most=0.01).mean() < 0.01
    (client,) = shown.panel.server.get_clients().values()
    position = client.camera.position.copy()
    browser.drag(left + 200, top + 200, left + 260, top + 220)
    browser.until(lambda: np.abs(client.camera.position - position).max() > 0.01, "the camera to move")
    assert not shown.panel.session.selection


def test_view_modes_are_in_the_page(shown: Shown) -> None:
    before = shown.settled_picture()
    shown.browser.choose("Show", "Instances")
    assert shown.changed(before, least=0.15).mean() > 0.15
    shown.browser.choose("Show", "Photo")
    assert shown.changed(before, most=0.01).mean() < 0.01


def test_deleting_takes_the_thing_out_of_the_scene_and_undo_brings_it_back(shown: Shown) -> None:
    browser = shown.browser
    browser.choose("Show", "Photo")
    before, thing = shown.settled_picture(), shown.answer(PHRASE)
    browser.type_into("Find", PHRASE)
    browser.until(lambda: browser.shows("Found."), "the answer")
    browser.press("select")
    browser.until(lambda: browser.shows("Selected"), "the selection")
    browser.unfold("Edit")
    browser.press("delete")
    browser.until(lambda: browser.shows("deleted"), "the edit")
    changed = shown.changed(before, least=0.002)
    assert changed[thing].mean() > 0.6, "it is gone"
    assert changed[~thing].mean() < 0.03, "and nothing else"
    browser.press("Undo edit")
    browser.until(lambda: browser.shows("undone"), "the edit taken back")
    assert shown.changed(before, most=0.01).mean() < 0.01
    browser.unfold("Edit")
    browser.choose("Show", "Outline and tint")
    browser.type_into("Find", "")


def test_the_viewer_listens_to_this_machine_only(shown: Shown) -> None:
    assert shown.panel.server.get_host() == "127.0.0.1"
    addresses = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)}
    for address in addresses - {"127.0.0.1", "127.0.1.1"}:
        with pytest.raises(OSError, match=r"refused|unreachable|timed out"):
            socket.create_connection((str(address), shown.port), timeout=3).close()
