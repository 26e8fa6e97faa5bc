"""Fetching checkpoints, against a real HTTP server on this machine."""

import hashlib
import http.server
import threading

import pytest

from maskfield_ns.errors import WeightsError
from maskfield_ns.foundation import weights
from maskfield_ns.foundation.config import SamConfig

CONTENT = bytes(range(256)) * 20_000  # 5.12 MB: several chunks


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT, with ranges unless told otherwise."""

    def do_GET(self):
        server = self.server
        start, wanted = 0, self.headers.get("Range")
        server.ranges.append(wanted)
        if server.status != 200:
            self.send_error(server.status)
            return
        if wanted and server.supports_ranges:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
        else:
            self.send_response(200)
        body = CONTENT[start:]
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: server.stop_after])

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.ranges, server.status, server.supports_ranges, server.stop_after = [], 200, True, None
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def remote(server):
    digest = hashlib.sha256(CONTENT).hexdigest()
    return weights.RemoteFile("model.pth", f"http://127.0.0.1:{server.server_port}/model.pth", len(CONTENT), digest[:6])


def test_download_and_reuse(server, remote, tmp_path):
    path = weights.fetch(remote, tmp_path / "new" / "folder", progress=False)
    assert path.read_bytes() == CONTENT
    assert [p.name for p in path.parent.iterdir()] == ["model.pth"]
    assert weights.fetch(remote, tmp_path / "new" / "folder", progress=False) == path
    assert server.ranges == [None]


def test_interrupted_download_is_resumed(server, remote, tmp_path):
    server.stop_after = 3_000_000
    with pytest.raises(WeightsError, match=r"run again to resume"):
        weights.fetch(remote, tmp_path, progress=True)
    have = (tmp_path / "model.pth.part").stat().st_size
    assert 0 < have <= 3_000_000
    assert not (tmp_path / "model.pth").exists()
    server.stop_after = None
    assert weights.fetch(remote, tmp_path, progress=True).read_bytes() == CONTENT
    assert server.ranges == [None, f"bytes={have}-"]
    assert not (tmp_path / "model.pth.part").exists()


def test_server_without_ranges_starts_over(server, remote, tmp_path):
    server.supports_ranges = False
    (tmp_path / "model.pth.part").write_bytes(b"x" * 1000)
    assert weights.fetch(remote, tmp_path, progress=False).read_bytes() == CONTENT


def test_complete_part_file_needs_no_request(server, remote, tmp_path):
    (tmp_path / "model.pth.part").write_bytes(CONTENT)
    assert weights.fetch(remote, tmp_path, progress=False).read_bytes() == CONTENT
    assert server.ranges == []


def test_wrong_content_is_discarded(server, remote, tmp_path):
    (tmp_path / "model.pth.part").write_bytes(b"x" * 1000)  # the beginning of something else
    with pytest.raises(WeightsError, match="SHA-256"):
        weights.fetch(remote, tmp_path, progress=False)
    assert list(tmp_path.iterdir()) == []
    assert weights.fetch(remote, tmp_path, progress=False).read_bytes() == CONTENT


@pytest.mark.parametrize("content", [b"short", b"y" * len(CONTENT)])
def test_wrong_file_in_place_is_refused_not_overwritten(server, remote, tmp_path, content):
    (tmp_path / "model.pth").write_bytes(content)
    with pytest.raises(WeightsError, match=r"bytes instead of|SHA-256 starts"):
        weights.fetch(remote, tmp_path, progress=False)
    assert (tmp_path / "model.pth").read_bytes() == content
    assert server.ranges == []


def test_error_names_everything_needed(server, remote, tmp_path):
    server.status = 404
    with pytest.raises(WeightsError) as error:
        weights.fetch(remote, tmp_path, progress=False)
    for part in ("model.pth", "5 MB", remote.url, str(tmp_path), "MASKFIELD_HOME", "`checkpoint`", "maskfield-lite"):
        assert part in str(error.value)


def test_no_server_and_no_folder(remote, server, tmp_path):
    closed = weights.RemoteFile("model.pth", "http://127.0.0.1:9/model.pth", 10, "00")
    with pytest.raises(WeightsError, match="refused"):
        weights.fetch(closed, tmp_path, progress=False)
    (tmp_path / "file").write_text("")
    with pytest.raises(WeightsError, match="maskfield-lite"):
        weights.fetch(remote, tmp_path / "file" / "folder", progress=False)


def test_table_of_official_checkpoints():
    assert {name: (file.name, file.sha256_prefix) for name, file in weights.SAM_CHECKPOINTS.items()} == {
        "vit_h": ("sam_vit_h_4b8939.pth", "4b8939"),
        "vit_l": ("sam_vit_l_0b3195.pth", "0b3195"),
        "vit_b": ("sam_vit_b_01ec64.pth", "01ec64"),
    }
    assert weights.SAM_CHECKPOINTS["vit_h"].url == (
        "https://dl.fbaipublicfiles.com/segment_anything/sam_vit_h_4b8939.pth"
    )


def test_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("MASKFIELD_HOME", str(tmp_path))
    assert weights.weights_dir() == tmp_path
    monkeypatch.delenv("MASKFIELD_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "c"))
    assert weights.weights_dir() == tmp_path / "c" / "maskfield"


def test_hash_notices_a_changed_file(tmp_path):
    path = tmp_path / "w.pt"
    path.write_bytes(b"one")
    first = weights.sha256_file(path)
    path.write_bytes(b"three")
    assert first == hashlib.sha256(b"one").hexdigest() != weights.sha256_file(path)
    with pytest.raises(WeightsError, match=r"missing\.pt"):
        weights.sha256_file(tmp_path / "missing.pt")


def test_local_file_or_name(tmp_path):
    path = tmp_path / "w.pt"
    path.write_bytes(b"")
    assert weights.as_local_file(str(path)) == path
    assert weights.as_local_file("laion2b_s34b_b88k") is None


def test_an_official_checkpoint_has_one_identity_wherever_it_lies(remote, tmp_path, monkeypatch):
    path = tmp_path / "copy.pth"
    path.write_bytes(CONTENT)
    monkeypatch.setitem(weights.SAM_CHECKPOINTS, "vit_b", remote)
    assert SamConfig(model_type="vit_b").fingerprint() == SamConfig(model_type="vit_b", checkpoint=path).fingerprint()
    path.write_bytes(b"finetuned")
    assert SamConfig(model_type="vit_b").fingerprint() != SamConfig(model_type="vit_b", checkpoint=path).fingerprint()


def test_setup_without_weights_fails_with_the_explanation(tmp_path, monkeypatch):
    monkeypatch.setenv("MASKFIELD_HOME", str(tmp_path))
    gone = weights.RemoteFile("sam_vit_b.pth", "http://127.0.0.1:9/x", 375_042_383, "01ec64")
    monkeypatch.setitem(weights.SAM_CHECKPOINTS, "vit_b", gone)
    with pytest.raises(WeightsError, match=r"sam_vit_b.pth \(375 MB\)"):
        SamConfig(model_type="vit_b").setup("cpu")
