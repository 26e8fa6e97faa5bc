"""What the viewer's web server hands out, asked over plain sockets as an attacker would."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import viser
import websockets
from viser.infra import WebsockServer, _infra

from maskfield_ns import compat

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
                compat.confine_viewer_files()
                compat.refuse_foreign_pages()
        servers.append(viser.ViserServer(host="127.0.0.1", port=18700, verbose=False))
        return servers[-1].get_port()

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
    folder = compat.ClientFolder(root)
    assert (folder / "page.html").read_text(encoding="utf-8") == "hello"
    for name in ("link", "loop", "../secret.txt", str(secret), "page.html/x", "\0"):
        assert not (folder / name).exists(), name


def test_the_client_still_works(serve: Callable[[bool], int]) -> None:
    port = serve(True)
    status, page = request(port, "/?websocket=ws://localhost")
    assert status == 200
    assert page.endswith((CLIENT / "index.html").read_bytes())
    asset = next((CLIENT / "assets").iterdir())
    status, answer = request(port, f"/assets/{asset.name}")
    assert status == 200
    assert answer.endswith(asset.read_bytes())
    assert request(port, "/hdri/potsdamer_platz_1k.hdr")[0] == 200


def test_the_websocket_still_works(serve: Callable[[bool], int]) -> None:
    import msgspec
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
    proxied = "Host: inner:7007\r\nX-Forwarded-Host: lab.example.org\r\nOrigin: https://lab.example.org\r\n"
    assert upgrade(port, proxied) == 101
