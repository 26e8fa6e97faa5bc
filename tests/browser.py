"""A headless Chromium, driven over its DevTools protocol: what a person at the viewer sees and does.

Used by the viewer's tests and by scripts/viewer_screenshots.py. Needs a chromium or google-chrome on the PATH (or its
path in BROWSER_BINARY) and nothing from a package registry that the project does not have already.
"""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--remote-debugging-port=0",
)


def find_browser() -> str | None:
    """Path of a browser, or None."""
    given = os.environ.get("BROWSER_BINARY")
    names = (given,) if given else ("chromium", "chromium-browser", "google-chrome", "chrome")
    return next((path for name in names if (path := shutil.which(name))), None)


class Browser:
    """One page of a browser of its own; a context manager.

    Args:
        width, height: of the window in pixels.
        patience: seconds that anything may take.
    """

    def __init__(self, width: int = 1000, height: int = 700, patience: float = 120.0) -> None:
        binary = find_browser()
        assert binary is not None, "no browser found"
        self.patience = patience
        self._folder = tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True)
        command = [binary, *FLAGS, f"--user-data-dir={self._folder.name}", f"--window-size={width},{height}"]
        self._process = subprocess.Popen(
            [*command, "about:blank"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self._number = 0
        try:
            self._connect()
            self.call("Page.enable")
            size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
            self.call("Emulation.setDeviceMetricsOverride", **size)
        except BaseException:
            self.close()
            raise

    def _connect(self) -> None:
        import urllib.request

        from websockets.sync.client import connect

        port_file = Path(self._folder.name) / "DevToolsActivePort"
        port = self.until(lambda: port_file.is_file() and port_file.read_text(encoding="utf-8").split("\n")[0])
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

        def page() -> str | None:
            with opener.open(f"http://127.0.0.1:{port}/json", timeout=self.patience) as answer:
                targets = json.load(answer)
            return next((t["webSocketDebuggerUrl"] for t in targets if t["type"] == "page"), None)

        self._socket = connect(self.until(page), max_size=None, open_timeout=self.patience, proxy=None)

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    def close(self) -> None:
        """Ends the browser."""
        if hasattr(self, "_socket"):
            self._socket.close()
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._folder.cleanup()

    # --- protocol -----------------------------------------------------------------------------------------------------

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command and its result."""
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            answer = json.loads(self._socket.recv(timeout=self.patience))
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]

    def until(self, condition: Callable[[], Any], what: str = "something") -> Any:
        """Waits for a value that counts as true, and returns it."""
        end = time.monotonic() + self.patience
        while time.monotonic() < end:
            value = condition()
            if value:
                return value
            time.sleep(0.1)
        raise AssertionError(f"waited {self.patience} s in vain for {what}")

    def javascript(self, expression: str) -> Any:
        """Value of an expression in the page."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    # --- what a person does -------------------------------------------------------------------------------------------

    def open(self, url: str) -> None:
        """Opens nerfstudio's viewer and waits until its panel is there."""
        self.call("Page.navigate", url=url)
        self.until(lambda: self.shows("Train Cams"), "the viewer's panel")

    def text(self) -> str:
        """All text on the page."""
        return self.javascript("document.body ? document.body.innerText : ''")

    def shows(self, text: str) -> bool:
        """Whether a text is on the page."""
        return text in self.text()

    def place(self, xpath: str) -> tuple[float, float]:
        """Centre of an element, scrolled into sight, once it stands still (texts above it come and go)."""
        code = f"""(() => {{
            const e = document.evaluate({json.dumps(xpath)}, document, null, 9, null).singleNodeValue;
            if (!e) return null;
            e.scrollIntoView({{block: "center"}});
            const r = e.getBoundingClientRect();
            return r.width ? [r.left + r.width / 2, r.top + r.height / 2] : null;
        }})()"""
        last: list[float] | None = None

        def still() -> list[float] | None:
            nonlocal last
            before, last = last, self.javascript(code)
            if last is None or last != before:
                time.sleep(0.3)
                return None
            return last

        return tuple(self.until(still, xpath))

    def click_at(self, x: float, y: float) -> None:
        """Moves the mouse somewhere and clicks."""
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        time.sleep(0.3)  # the page learns of hovering with its next frame
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
            time.sleep(0.1)

    def drag(self, x0: float, y0: float, x1: float, y1: float) -> None:
        """Drags the mouse."""
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x0, y=y0)
        time.sleep(0.3)
        self.call("Input.dispatchMouseEvent", type="mousePressed", x=x0, y=y0, button="left", clickCount=1)
        for part in np.linspace(0, 1, 6):
            x, y = x0 + part * (x1 - x0), y0 + part * (y1 - y0)
            self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y, button="left", buttons=1)
            time.sleep(0.05)
        self.call("Input.dispatchMouseEvent", type="mouseReleased", x=x1, y=y1, button="left", clickCount=1)

    def press(self, label: str) -> None:
        """Clicks a button by what is written on it."""
        self.click_at(*self.place(f'//button[normalize-space(.)="{label}"]'))

    def unfold(self, label: str) -> None:
        """Opens or closes a folder of the panel."""
        self.click_at(*self.place(f'//div[contains(@class, "Paper") and normalize-space(text())="{label}"]'))

    def field(self, label: str) -> str:
        """XPath of the input that belongs to a label."""
        return (
            f'(//*[normalize-space(text())="{label}"]/following::input[not(@type="hidden") and not(@type="range")])[1]'
        )

    def type_into(self, label: str, text: str) -> None:
        """Replaces what an input holds, key by key."""
        self.click_at(*self.place(self.field(label)))
        self.javascript("document.activeElement.select()")
        for character in text:
            self.call("Input.dispatchKeyEvent", type="char", text=character)
            time.sleep(0.02)
        if not text:
            self.call("Input.dispatchKeyEvent", type="keyDown", key="Delete", code="Delete", windowsVirtualKeyCode=46)

    def choose(self, label: str, option: str) -> None:
        """Picks from a drop-down list."""
        self.click_at(*self.place(self.field(label)))
        self.click_at(*self.place(f'//*[@role="option" and normalize-space(.)="{option}"]'))

    def picture(self) -> np.ndarray:
        """The window, uint8 [H, W, 3]."""
        data = base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])
        return np.array(Image.open(io.BytesIO(data)).convert("RGB"))

    def canvas(self) -> tuple[int, int, int, int]:
        """Left, top, right, bottom of the scene in the window (three.js marks its canvas)."""
        code = """(() => {const r = document.querySelector("canvas[data-engine]").getBoundingClientRect();
                         return [r.left, r.top, r.right, r.bottom]})()"""
        left, top, right, bottom = (round(v) for v in self.javascript(code))
        return left, top, right, bottom
