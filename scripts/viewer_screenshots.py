#!/usr/bin/env python
"""Screenshots for the documentation: opens a trained run in ns-viewer, uses it in a headless browser, takes pictures.

    python scripts/viewer_screenshots.py --run RUN [--phrases "red mug, robot, soccer ball"] [--output docs]

Needs a Chromium (see tests/browser.py). The run is not changed.
"""

from __future__ import annotations

import argparse
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from browser import Browser  # noqa: E402

VIEWER = "import sys; from nerfstudio.scripts.viewer.run_viewer import entrypoint; entrypoint()"


def settle(browser: Browser, seconds: float = 4.0) -> None:
    """Waits until the page has looked the same for some seconds."""
    last, since = browser.picture(), time.monotonic()

    def still() -> bool:
        nonlocal last, since
        now = browser.picture()
        if np.abs(now.astype(int) - last).max() > 12:
            last, since = now, time.monotonic()
        return time.monotonic() - since > seconds

    browser.until(still, "the page to stand still")


def main() -> None:
    """Takes the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="config.yml of a trained run")
    parser.add_argument("--phrases", default="red mug, robot, soccer ball")
    parser.add_argument("--one", default="robot", help="phrase for heat map and object alone")
    parser.add_argument("--click", type=float, nargs=2, default=(0.5, 0.5), help="where to click, 0 to 1 of the scene")
    parser.add_argument("--output", type=Path, default=ROOT / "docs")
    options = parser.parse_args()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    arguments = ["--load-config", str(options.run), "--viewer.websocket-port", str(port)]
    viewer = subprocess.Popen([sys.executable, "-c", VIEWER, *arguments], stdout=subprocess.DEVNULL)
    try:
        with Browser(1280, 860, patience=300) as browser:

            def listening() -> bool:
                with socket.socket() as probe:
                    return probe.connect_ex(("127.0.0.1", port)) == 0

            browser.until(listening, "the viewer to start")
            browser.open(f"http://127.0.0.1:{port}")
            browser.until(lambda: browser.shows("Ready"), "the text model")
            browser.until(lambda: browser.shows("Show Train Cams"), "the training cameras to go")

            def shoot(name: str) -> None:
                browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=700, y=20)
                browser.javascript("document.activeElement.blur()")
                settle(browser)
                path = options.output / f"viewer_{name}.png"
                Image.fromarray(browser.picture()).save(path, optimize=True)
                print(path)

            browser.type_into("Find", options.phrases)
            browser.until(lambda: browser.shows("found."), "the answer")
            shoot("outline")
            browser.choose("Show", "Class map")
            shoot("class_map")
            browser.choose("Show", "Instances")
            shoot("instances")
            browser.type_into("Find", options.one)
            browser.until(lambda: browser.shows("Found."), "the answer")
            browser.choose("Show", "Relevancy heat map")
            shoot("relevancy")
            browser.choose("Show", "Object alone")
            shoot("object")
            browser.choose("Show", "Outline and tint")
            browser.type_into("Find", "")
            left, top, right, bottom = browser.canvas()
            x, y = options.click
            browser.click_at(left + x * (right - left), top + y * (bottom - top))
            browser.until(lambda: browser.shows("Selected"), "the selection")
            browser.unfold("Objects")
            browser.press("List objects")
            browser.until(lambda: browser.shows("objects listed"), "the list")
            shoot("click")
    finally:
        viewer.terminate()
        viewer.wait(20)


if __name__ == "__main__":
    main()
