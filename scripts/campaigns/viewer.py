"""A viewer under hostile and absurd clients, on the loopback interface: handshakes, nonsense, values, reconnects.

    python scripts/campaigns/viewer.py --run RUN/config.yml

Clients are plain websockets that speak viser's protocol, as a script in a browser's page could.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

sys.path.insert(0, str(Path(__file__).parent))
from campaign import Campaign, Refused, Wrong, finish

PATIENCE = 120.0
"""Seconds to wait for an image or for the end of a thread on a busy machine."""
GROWTH_MB = 64.0
"""Memory that may be gained between the first quarter of the reconnects and the last."""


@dataclass
class Shown:
    """A viewer of a run in this process."""

    viewer: Any
    port: int

    @property
    def server(self) -> Any:
        """viser's server."""
        return self.viewer.viser_server

    @property
    def clients(self) -> int:
        """Connections that the server knows of."""
        return len(self.server._websock_server._client_state_from_id)

    def until(self, true: Callable[[], bool], what: str) -> None:
        """Waits for something to become true.

        Raises:
            Wrong: it does not.
        """
        deadline = time.monotonic() + PATIENCE
        while not true():
            if time.monotonic() > deadline:
                raise Wrong(f"{what}: not within {PATIENCE:.0f} s")
            time.sleep(0.02)


def show(run: Path) -> Shown:
    """Opens a run as ns-viewer does, on a free port of the loopback interface."""
    from nerfstudio.utils.eval_utils import eval_setup
    from nerfstudio.viewer.viewer import Viewer

    config, pipeline, _, _ = eval_setup(run, test_mode="test")
    with socket.create_server(("127.0.0.1", 0)) as free:
        config.viewer.websocket_port = free.getsockname()[1]
    config.viewer.websocket_host = "127.0.0.1"
    viewer = Viewer(
        config.viewer,
        log_filename=run.parent / "viewer_log.txt",
        datapath=pipeline.datamanager.get_datapath(),
        pipeline=pipeline,
        train_lock=threading.Lock(),
    )
    viewer.init_scene(train_dataset=pipeline.datamanager.train_dataset, train_state="completed")
    viewer.control_panel._max_res.value = 128
    return Shown(viewer, config.viewer.websocket_port)


# --- a client ---------------------------------------------------------------------------------------------------------


def camera_message(rng: np.random.Generator) -> Any:
    """A camera that looks at the scene from somewhere."""
    from viser import _messages

    turn = rng.normal(size=4)
    place = rng.normal(size=3) * 5
    return _messages.ViewerCameraMessage(
        tuple(map(float, turn / np.linalg.norm(turn))),
        tuple(map(float, place)),
        1.0,
        1.5,
        (0.0, 0.0, 0.0),
        (0.0, 0.0, 1.0),
    )


def send(connection: ClientConnection, message: Any) -> None:
    """Sends one of viser's messages."""
    connection.send(msgspec.msgpack.encode(message.as_serializable_dict()))


def next_image(connection: ClientConnection) -> None:
    """Waits for an image of the scene.

    Raises:
        Wrong: none comes.
    """
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            messages = msgspec.msgpack.decode(connection.recv(timeout=max(0.1, deadline - time.monotonic())))
        except TimeoutError:
            break
        for message in messages if isinstance(messages, (list, tuple)) else [messages]:
            if message.get("type") == "BackgroundImageMessage":
                return
    raise Wrong(f"no image within {PATIENCE:.0f} s")


@contextmanager
def client(shown: Shown, rng: np.random.Generator) -> Iterator[ClientConnection]:
    """A browser that has shown its first image."""
    with connect(f"ws://127.0.0.1:{shown.port}", max_size=None, open_timeout=PATIENCE) as connection:
        send(connection, camera_message(rng))
        next_image(connection)
        yield connection


# --- the campaigns ----------------------------------------------------------------------------------------------------


def handshakes(shown: Shown, campaign: Campaign) -> None:
    """Requests to open a websocket under many names and from many pages; a table says which are right."""
    here = [f"localhost:{shown.port}", f"127.0.0.1:{shown.port}", f"[::1]:{shown.port}", "LOCALHOST"]
    strange = ["rebound.example.org", f"10.0.0.7:{shown.port}", "localhost.example.org:80", "127.0.0.1.example.org", ""]
    for number, rng in campaign.each():
        good_host = bool(rng.random() < 0.5)
        host = str(rng.choice(here if good_host else strange))
        origin = rng.choice(["none", "same", "foreign", "null"])
        page = {"same": f"http://{host}", "foreign": "https://evil.example.org", "null": "null"}.get(str(origin))
        headers = f"Host: {host}\r\n" + (f"Origin: {page}\r\n" if page else "")
        if rng.random() < 0.5:
            headers += "X-Forwarded-Host: evil.example.org\r\nX-Forwarded-For: 127.0.0.1\r\n"
        welcome = good_host and origin in ("none", "same")

        def act(headers: str = headers, welcome: bool = welcome) -> None:
            status = _upgrade(shown.port, headers)
            if (status == 101) != welcome:
                raise Wrong(f"status {status} for {headers!r}")
            if status != 101:
                raise Refused(f"status {status}")

        campaign.attempt(f"handshake {number}", act)


def _upgrade(port: int, headers: str) -> int:
    wanted = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as connection:
        connection.sendall(f"GET / HTTP/1.1\r\n{wanted}{key}{headers}\r\n".encode())
        return int(connection.recv(1 << 16).split(b" ", 2)[1])


def nonsense(shown: Shown, campaign: Campaign) -> None:
    """Messages that are none: the connection is closed, its render thread ends, its client is forgotten."""
    from maskfield_ns.viewer.guard import alive_render_threads

    for number, rng in campaign.each():
        kinds: list[Any] = [
            rng.bytes(int(rng.integers(0, 200))),
            "text",
            msgspec.msgpack.encode({"type": "NoSuchMessage"}),
            msgspec.msgpack.encode({"type": "ViewerCameraMessage"}),
            msgspec.msgpack.encode(["a", 1]),
            msgspec.msgpack.encode({"type": "GuiUpdateMessage", "id": 3}),
            msgspec.msgpack.encode({**camera_message(rng).as_serializable_dict(), "fov": float("nan")}),
            msgspec.msgpack.encode({**camera_message(rng).as_serializable_dict(), "position": [1e300, 0, 0]}),
        ]
        message = kinds[int(rng.integers(len(kinds)))]

        def act(message: Any = message, rng: np.random.Generator = rng) -> None:
            before = shown.clients
            with client(shown, rng) as connection:
                connection.send(message)
                try:
                    for _ in range(100_000):
                        connection.recv(timeout=PATIENCE)
                except ConnectionClosed:
                    pass
                except TimeoutError as error:
                    raise Wrong(f"still connected after {message!r}") from error
            shown.until(lambda: shown.clients <= before, "the server to forget the client")
            shown.until(lambda: alive_render_threads() <= before, "the render thread to end")
            raise Refused("closed")

        campaign.attempt(f"message {number}", act)


def values(shown: Shown, campaign: Campaign) -> None:
    """Absurd values of every widget of the page, nerfstudio's too; every 50 values a camera move brings an image."""
    from viser import _messages

    numbers = [float("nan"), float("inf"), -1e308, 1e308, 0, -1, 10**18, 2**63 - 1, -(2**31)]
    texts = ["", "x" * 20_000, "<script>", "rgb", "depth", b"bytes"]
    absurd: list[Any] = [*numbers, *texts, None, True, [], [1], [1, 2, 3], [1e308] * 3, ["a"] * 3, {}, {"a": 1}]
    rng = np.random.default_rng(campaign.seed)
    with client(shown, rng) as connection:
        for number, own in campaign.each():

            def act(own: np.random.Generator = own, number: int = number) -> None:
                ids = [i for i, h in shown.server.gui._gui_input_handle_from_id.items() if not h._impl.is_button]
                chosen = ids[int(own.integers(len(ids)))]
                value = absurd[int(own.integers(len(absurd)))]
                try:
                    send(connection, _messages.GuiUpdateMessage(chosen, {"value": value}))
                    if number % 50 == 49:
                        send(connection, camera_message(own))
                        next_image(connection)
                except ConnectionClosed as error:
                    raise Wrong(f"{value!r} closed the connection") from error

            campaign.attempt(f"value {number}", act)


def reconnects(shown: Shown, campaign: Campaign) -> None:
    """Clients that look and leave: no render thread stays and memory does not grow."""
    from maskfield_ns.viewer.guard import alive_render_threads

    used: list[float] = []
    for number, rng in campaign.each():

        def act(rng: np.random.Generator = rng) -> None:
            with client(shown, rng):
                pass
            shown.until(lambda: alive_render_threads() == 0 and shown.clients == 0, "the client's end")

        campaign.attempt(f"reconnect {number}", act)
        gc.collect()
        used.append(psutil.Process().memory_info().rss / 2**20)
    quarter = max(1, len(used) // 4)
    growth = float(np.median(used[-quarter:]) - np.median(used[quarter : 2 * quarter] or used[:quarter]))
    campaign.notes["memory_growth_mb"] = round(growth, 1)

    def flat() -> None:
        if growth > GROWTH_MB:
            raise Wrong(f"memory grew by {growth:.0f} MB")

    campaign.attempt("memory", flat)


def questions(shown: Shown, campaign: Campaign, moves: int) -> None:
    """Phrases of all kinds typed into the panel while the camera moves; at the end an image still comes."""
    from viser import _messages

    gui = shown.server.gui._gui_input_handle_from_id
    field = next(i for i, h in gui.items() if h._impl.label == "Find")
    words = [
        "red mug",
        "duck",
        "",
        " ",
        "zebra",
        "a" * 500,
        "🦆" * 50,
        "mug, duck, ball",
        "<b>",
        "\x00",
        "${x}",
        "ein Löffel",
    ]
    rng = np.random.default_rng(campaign.seed)
    with client(shown, rng) as connection:
        for number, own in campaign.each():

            def act(own: np.random.Generator = own, number: int = number) -> None:
                text = ", ".join(str(own.choice(words)) for _ in range(int(own.integers(1, 4))))
                send(connection, _messages.GuiUpdateMessage(field, {"value": text}))
                if number % max(1, campaign.cases // max(1, moves)) == 0:
                    send(connection, camera_message(own))
                if number % 50 == 49:
                    next_image(connection)

            campaign.attempt(f"question {number}", act)
        send(connection, camera_message(rng))
        campaign.attempt("an image at the end", lambda: next_image(connection))


def run_all(run: Path, counts: dict[str, int], seed: int) -> list[Campaign]:
    """Opens a run and tries everything on it."""
    shown = show(run)
    with client(shown, np.random.default_rng(seed)):
        pass  # kernels are compiled, models loaded
    campaigns = []
    for name, act in (
        ("handshakes", handshakes),
        ("nonsense", nonsense),
        ("values", values),
        ("reconnects", reconnects),
        ("questions", lambda s, c: questions(s, c, counts["moves"])),
    ):
        campaign = Campaign(f"viewer, {name}", counts[name], seed=seed, case_seconds=4 * PATIENCE)
        act(shown, campaign)
        print(campaign.line(), flush=True)
        campaigns.append(campaign)
    return campaigns


FULL = {"handshakes": 60, "nonsense": 100, "values": 700, "reconnects": 200, "questions": 500, "moves": 300}
"""Counts of a full run."""
SHORT = {"handshakes": 20, "nonsense": 5, "values": 50, "reconnects": 5, "questions": 10, "moves": 5}
"""Counts of the run that is part of the test suite."""


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="config.yml of a trained run")
    parser.add_argument("--counts", type=json.loads, default={}, help=f"JSON; in full {json.dumps(FULL)}")
    parser.add_argument("--seed", type=int, default=0, help="of the cases")
    parser.add_argument("--output", type=Path, help="JSON file for the tallies")
    args = parser.parse_args()
    return finish(run_all(args.run, FULL | args.counts, args.seed), args.output)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # the viewer has no end: its threads would be torn down in the middle of their work
