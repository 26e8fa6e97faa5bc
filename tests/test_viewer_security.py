"""What the viewer's web server hands out, asked over plain sockets as an attacker would."""

from __future__ import annotations

import asyncio
import dataclasses
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
import viser
import websockets
from viser import _messages
from viser.infra import WebsockServer, _infra

from maskfield_ns.viewer import guard

PATCHED = WebsockServer.__init__
CLIENT = Path(viser.__file__).parent / "client" / "build"


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bool], int]]:
    """Starts a viser server, with viser as it is or as we leave it; returns its port."""
    servers = []

    def start(patched: bool) -> int:
        original = PATCHED
        while hasattr(original, "__wrapped__"):
            original = original.__wrapped__
        monkeypatch.setattr(WebsockServer, "__init__", original)
        monkeypatch.setattr(_infra, "websockets", websockets)
        if patched:
            for _ in range(2):
                guard.guard_viewers()
        servers.append(viser.ViserServer(host="127.0.0.1", port=18700, verbose=False))
        return servers[-1].get_port()

    start.servers = servers  # type: ignore[attr-defined]
    yield start
    for server in servers:
        server.stop()


def request(port: int, path: str, headers: str = "") -> tuple[int, bytes]:
    """Status and everything after it for a GET of exactly this path; no client may tidy it up."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n".encode())
        answer = b""
        while part := connection.recv(1 << 16):
            answer += part
    return int(answer.split(b" ", 2)[1]), answer


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret.txt"
    path.write_text("for nobody else", encoding="utf-8")
    return path


def climbing(secret: Path) -> list[str]:
    """Ways of asking for a file outside of the client folder."""
    up = "/.." * len(CLIENT.resolve().parts)
    return [
        f"{up}{secret}",
        f"{up}{secret}?x=1",
        f"/assets{up}/..{secret}",
        f"/{secret}",
        f"//{secret}",
        f"/./.{up}{secret}",
        f"{up}{secret}".replace("..", "%2e%2e"),
        f"{up}{secret}".replace("..", "..%2f"),
        f"{up}{secret}".replace("..", "%252e%252e"),
    ]


def test_viser_alone_serves_any_file(serve: Callable[[bool], int], secret: Path) -> None:
    """The hole; once this fails, viser has been mended and the workaround can go."""
    status, answer = request(serve(False), climbing(secret)[0])
    assert status == 200
    assert answer.endswith(b"for nobody else")


def test_no_file_outside_the_client_folder_is_served(serve: Callable[[bool], int], secret: Path) -> None:
    port = serve(True)
    for path in climbing(secret):
        status, answer = request(port, path)
        assert status != 200, path
        assert b"nobody" not in answer, path
    for path in ("/assets", "/%00", "/" + "a" * 5000, "/no_such_page.html"):
        assert request(port, path)[0] != 200, path


def test_a_link_does_not_lead_out(tmp_path: Path, secret: Path) -> None:
    root = tmp_path / "client"
    root.mkdir()
    (root / "page.html").write_text("hello", encoding="utf-8")
    (root / "link").symlink_to(secret)
    (root / "loop").symlink_to(root / "loop")
    folder = guard.ClientFolder(root)
    assert (folder / "page.html").read_text(encoding="utf-8") == "hello"
    for name in ("link", "loop", "../secret.txt", str(secret), "page.html/x", "\0"):
        assert not (folder / name).exists(), name


def test_the_client_still_works(serve: Callable[[bool], int]) -> None:
    port = serve(True)
    status, page = request(port, "/?websocket=ws://localhost")
    assert status == 200
    assert page.endswith(
        (CLIENT / "index.html").read_bytes().partition(b"<!-- Google")[2].partition(b"<meta charset")[2]
    )
    asset = next((CLIENT / "assets").iterdir())
    status, answer = request(port, f"/assets/{asset.name}")
    assert status == 200
    assert answer.endswith(asset.read_bytes())
    assert request(port, "/hdri/potsdamer_platz_1k.hdr")[0] == 200


def test_the_websocket_still_works(serve: Callable[[bool], int]) -> None:
    from websockets.sync.client import connect

    with connect(f"ws://127.0.0.1:{serve(True)}", open_timeout=10) as connection:
        assert msgspec.msgpack.decode(connection.recv(timeout=10))


def upgrade(port: int, headers: str) -> int:
    """Status of a request to open a websocket."""
    wanted = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        connection.sendall(f"GET / HTTP/1.1\r\n{wanted}{key}{headers}\r\n".encode())
        return int(connection.recv(1 << 16).split(b" ", 2)[1])


EVIL = "Host: localhost:18700\r\nOrigin: https://example.org\r\n"


def test_viser_alone_talks_to_any_page(serve: Callable[[bool], int]) -> None:
    assert upgrade(serve(False), EVIL) == 101


def test_pages_of_other_sites_are_refused(serve: Callable[[bool], int]) -> None:
    port = serve(True)
    assert upgrade(port, EVIL) == 403
    assert upgrade(port, "Host: localhost:18700\r\nOrigin: null\r\n") == 403
    assert upgrade(port, "Host: localhost:18700\r\nOrigin: http://localhost:9999\r\n") == 403
    assert upgrade(port, "Host: localhost:18700\r\nOrigin: http://localhost:18700\r\n") == 101
    assert upgrade(port, "Host: LOCALHOST:18700\r\nOrigin: http://localhost:18700\r\n") == 101
    assert upgrade(port, "Host: localhost:18700\r\n") == 101
    proxied = "Host: localhost:18700\r\nX-Forwarded-Host: lab.example.org\r\nOrigin: https://lab.example.org\r\n"
    assert upgrade(port, proxied) == 403


def test_another_host_name_is_refused_on_the_loopback_interface(serve: Callable[[bool], int]) -> None:
    """DNS rebinding: a page gives its own name this machine's address, so that its Origin and Host agree."""
    port = serve(True)
    rebound = "Host: rebound.example.org:18700\r\nOrigin: http://rebound.example.org:18700\r\n"
    assert upgrade(port, rebound) == 403
    for host in ("localhost", "127.0.0.1:18700", "[::1]:18700", "LocalHost:1"):
        assert upgrade(port, f"Host: {host}\r\n") == 101, host
    for host in ("localhost.example.org", "127.0.0.1.example.org", "[::2]", "10.0.0.1", ""):
        assert upgrade(port, f"Host: {host}\r\n") == 403, host


def test_a_viewer_for_the_network_answers_under_any_name() -> None:
    assert guard.refusal("0.0.0.0", "lab.example.org:7007", "http://lab.example.org:7007") is None
    assert guard.refusal("0.0.0.0", "lab.example.org:7007", "http://evil.example.org") is not None
    assert guard.refusal("192.168.1.5", "printer:7007", None) is None
    assert guard.refusal("::1", "lab.example.org", None) is not None


def test_the_page_loads_nothing_from_other_hosts(serve: Callable[[bool], int]) -> None:
    status, page = request(serve(True), "/")
    assert status == 200
    head, _, body = page.partition(b"\r\n\r\n")
    assert b"default-src 'self'" in head
    assert b"googletagmanager" not in body and b"gtag" not in body
    assert b'<div id="root">' in body


def test_a_malformed_message_closes_and_forgets_its_client(serve: Callable[[bool], int]) -> None:
    from websockets.exceptions import ConnectionClosed
    from websockets.sync.client import connect

    port = serve(True)
    left: list[int] = []
    server = serve.servers[-1]  # type: ignore[attr-defined]
    server._websock_server.on_client_disconnect(lambda connection: left.append(connection.client_id))
    camera = _messages.ViewerCameraMessage((1, 0, 0, 0), (0, 0, 0), 1.0, 1.5, (0, 0, 1), (0, 0, 1))
    assert guard.sane_camera(camera)
    wrong = [
        msgspec.msgpack.encode(dataclasses.replace(camera, **change).as_serializable_dict())
        for change in ({"wxyz": (0, 0, 0, 0)}, {"fov": float("nan")}, {"aspect": 0}, {"position": (0, 1)})
    ]
    for nonsense in (*wrong, b"", b"\xff\x00", b"\x81\xa4type\xa6nobody", "text", b"\x93\x01\x02\x03"):
        with connect(f"ws://127.0.0.1:{port}", open_timeout=10) as connection:
            connection.recv(timeout=10)
            connection.send(nonsense)
            with pytest.raises(ConnectionClosed):
                while True:
                    connection.recv(timeout=10)
    deadline = time.monotonic() + 10
    while len(left) < 9 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(left) == 9
    assert not server._websock_server._client_state_from_id


def test_nothing_of_a_client_that_left_keeps_running(serve: Callable[[bool], int]) -> None:
    from websockets.sync.client import connect

    port = serve(True)
    server = serve.servers[-1]  # type: ignore[attr-defined]
    loop = server._websock_server._broadcast_buffer.event_loop

    def tasks() -> int:
        return asyncio.run_coroutine_threadsafe(_count_tasks(), loop).result(10)

    before = tasks()
    for _ in range(10):
        with connect(f"ws://127.0.0.1:{port}", open_timeout=10) as connection:
            connection.recv(timeout=10)
    deadline = time.monotonic() + 10
    while tasks() > before + 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert tasks() <= before + 2


async def _count_tasks() -> int:
    return len(asyncio.all_tasks())


class Message:
    """A message of the client, as viser's handlers see it."""

    def __init__(self, **fields: object) -> None:
        self.__dict__.update(fields)


def test_values_that_no_widget_sends_are_dropped(serve: Callable[[bool], int]) -> None:
    serve(True)
    gui = serve.servers[-1].gui  # type: ignore[attr-defined]
    widgets = {
        "slider": (gui.add_slider("a", 1, 10, 1, 5), [7], [0, 11, 1e308, float("nan"), "7", None, [7], True, {}]),
        "number": (gui.add_number("b", 0.5), [2.5, -1], [float("inf"), "x", None, 1e300]),
        "text": (gui.add_text("c", "x"), ["red mug"], ["y" * 20_000, 3, None, ["a"]]),
        "check": (gui.add_checkbox("d", False), [True], [1, "True", None]),
        "choice": (gui.add_dropdown("e", ("p", "q")), ["q"], ["z", 1, None, ["p"]]),
        "color": (gui.add_rgb("f", (1, 2, 3)), [(4, 5, 6)], [(1, 2), (1, 2, 300), "abc", None, (1, 2, float("nan"))]),
        "vector": (gui.add_vector3("g", (0.0, 0.0, 0.0)), [(1, 2, 3)], [(1, 2), (1, 2, float("inf")), 4]),
    }
    for name, (widget, good, bad) in widgets.items():
        before = widget.value
        for value in bad:
            gui._handle_gui_updates(0, Message(id=widget._impl.id, updates={"value": value}))
            assert widget.value == before, (name, value)
        gui._handle_gui_updates(0, Message(id=widget._impl.id, updates={"update_cb": []}))
        gui._handle_gui_updates(0, Message(id="nobody", updates={"value": 1}))
        gui._handle_gui_updates(0, Message(id=widget._impl.id, updates=None))
        for value in good:
            gui._handle_gui_updates(0, Message(id=widget._impl.id, updates={"value": value}))
            assert widget.value == value, (name, value)


def test_unfinished_uploads_end_with_their_client(serve: Callable[[bool], int]) -> None:
    serve(True)
    server = serve.servers[-1]  # type: ignore[attr-defined]
    button, gui = server.gui.add_upload_button("file"), server.gui

    def start(name: str, client: int = 3, size: int = 10, parts: int = 2) -> None:
        gui._handle_file_transfer_start(
            client,
            Message(
                source_component_id=button._impl.id,
                transfer_uuid=name,
                filename=name,
                mime_type="",
                part_count=parts,
                size_bytes=size,
            ),
        )

    def part(name: str, number: int, content: bytes, client: int = 3) -> None:
        gui._handle_file_transfer_part(
            client,
            Message(source_component_id=button._impl.id, transfer_uuid=name, part=number, content=content),
        )

    for name in "abcdef":
        start(name)
    assert len(gui._current_file_upload_states) == guard.MAX_UPLOADS_PER_CLIENT
    start("huge", client=4, size=1 << 50)
    start("none", client=4, size=0)
    assert not {"huge", "none"} & set(gui._current_file_upload_states)
    part("a", 0, b"01234", client=9)  # somebody else's
    assert not gui._current_file_upload_states["a"]["parts"]
    part("a", 0, b"0123456789ab")  # more than was announced
    assert "a" not in gui._current_file_upload_states
    part("b", 0, b"01234")
    part("b", 1, b"56789")
    assert button.value.content == b"0123456789"
    for callback in server._websock_server._client_disconnect_cb:
        callback(Message(client_id=3))
    assert not gui._current_file_upload_states
