"""Each workaround: that it works, and that what it works around is still there."""

from __future__ import annotations

import math
import socket
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from nerfstudio.configs.base_config import ViewerConfig
from nerfstudio.engine.schedulers import ExponentialDecaySchedulerConfig
from nerfstudio.models.nerfacto import NerfactoModel
from nerfstudio.viewer.viewer import Viewer

from maskfield_ns import compat
from maskfield_ns.errors import CaptureError


def test_numpy_scalars_of_nerfstudio_schedulers_can_be_loaded(tmp_path: Path) -> None:
    """Fails at `saved` once nerfstudio's scheduler returns plain floats, and at `raises` once torch allows them."""
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(2))], lr=1e-2)
    schedule = ExponentialDecaySchedulerConfig(lr_final=1e-3, max_steps=10).setup()
    scheduler = schedule.get_scheduler(optimizer=optimizer, lr_init=1e-2)
    optimizer.step()
    scheduler.step()
    saved = scheduler.state_dict()
    assert isinstance(saved["_last_lr"][0], np.floating)
    torch.save({"schedulers": saved}, tmp_path / "step.ckpt")

    previous = torch.serialization.get_safe_globals()
    try:
        torch.serialization.clear_safe_globals()
        with pytest.raises(Exception, match=r"Weights only load failed|Unsupported global"):
            torch.load(tmp_path / "step.ckpt")
        compat.allow_numpy_scalars_in_checkpoints()
        loaded = torch.load(tmp_path / "step.ckpt")["schedulers"]
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(previous)
    assert loaded["_last_lr"] == pytest.approx(saved["_last_lr"])


def test_numpy_scalars_load_by_the_name_of_either_numpy(tmp_path: Path) -> None:
    """numpy 2 moved the constructor; a checkpoint names it as the numpy that wrote it did."""
    compat.allow_numpy_scalars_in_checkpoints()
    path = tmp_path / "step.ckpt"
    torch.save({"rate": np.float64(0.25)}, path)
    names = {b"numpy._core.multiarray", b"numpy.core.multiarray"}
    for name in names:
        with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "other.ckpt", "w") as new:
            for entry in old.namelist():
                content = old.read(entry)
                for other in names - {name}:
                    content = content.replace(b"c" + other + b"\n", b"c" + name + b"\n")
                new.writestr(entry, content)
        assert torch.load(tmp_path / "other.ckpt", weights_only=True)["rate"] == 0.25


# --- LPIPS ------------------------------------------------------------------------------------------------------------


class FakeMetric(torch.nn.Module):
    """In place of torchmetrics' LPIPS, whose weights tests cannot have."""

    built = 0

    def __init__(self, normalize: bool = False):
        super().__init__()
        assert normalize
        type(self).built += 1
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a - b).abs().mean() * self.weight

    def reset(self) -> None:
        pass


class LpipsModel(torch.nn.Module):
    """Takes LPIPS as nerfstudio's models do: imported inside the method."""

    def populate_modules(self) -> None:
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

        self.lpips = LearnedPerceptualImagePatchSimilarity(normalize=True)


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> LpipsModel:
    from torchmetrics.image import lpip

    monkeypatch.setattr(lpip, "LearnedPerceptualImagePatchSimilarity", FakeMetric)
    monkeypatch.setattr(FakeMetric, "built", 0)
    model = LpipsModel()
    with compat.lazy_lpips():
        model.populate_modules()
    assert lpip.LearnedPerceptualImagePatchSimilarity is FakeMetric
    return model


def test_nerfacto_still_imports_lpips_where_we_replace_it() -> None:
    import inspect

    source = inspect.getsource(NerfactoModel.populate_modules)
    assert "from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity" in source


def test_lpips_is_built_on_first_use_and_stays_out_of_the_module(
    model: LpipsModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compat, "_alexnet_at_hand", lambda: True)
    assert FakeMetric.built == 0
    a, b = torch.rand(2, 1, 3, 40, 40)
    for _ in range(2):
        assert model.lpips(a, b).item() == pytest.approx((a - b).abs().mean().item())
    assert FakeMetric.built == 1
    assert model.state_dict() == {}
    assert len(list(model.modules())) == 1


def test_lpips_without_weights_is_left_out(model: LpipsModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compat, "_alexnet_at_hand", lambda: False)
    images = torch.rand(1, 3, 40, 40)
    with pytest.warns(UserWarning, match="LPIPS is left out"):
        first = float(model.lpips(images, images))
    second = float(model.lpips(images, images))  # without asking, or warning, again
    assert math.isnan(first)
    assert math.isnan(second)
    for lpips, keys in ((first, {"psnr", "ssim"}), (0.0, {"psnr", "ssim", "lpips"})):
        figures = {"psnr": 20.0, "ssim": math.nan, "lpips": lpips}
        metrics, pictures = compat.image_metrics(lambda x, figures=figures: (figures, {"img": x}), images)
        assert metrics.keys() == keys
        assert pictures == {"img": images}


def test_lpips_of_tiny_images_is_left_out(model: LpipsModel) -> None:
    assert math.isnan(float(model.lpips(torch.rand(1, 3, 24, 40), torch.rand(1, 3, 24, 40))))
    assert FakeMetric.built == 0


def test_damaged_lpips_weights_are_no_crash(model: LpipsModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Any, normalize: bool) -> None:
        raise RuntimeError("PytorchStreamReader failed")

    monkeypatch.setattr(compat, "_alexnet_at_hand", lambda: True)
    monkeypatch.setattr(FakeMetric, "__init__", fail)
    with pytest.warns(UserWarning, match="PytorchStreamReader"):
        assert math.isnan(float(model.lpips(torch.rand(1, 3, 40, 40), torch.rand(1, 3, 40, 40))))


def test_weights_in_the_hub_folder_need_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    asked: list[str] = []
    monkeypatch.setattr(compat, "_reachable", lambda url, patience: bool(asked.append(url)))
    assert not compat._alexnet_at_hand()
    assert len(asked) == 1
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "alexnet-owt-7be5be79.pth").touch()
    assert compat._alexnet_at_hand()
    assert len(asked) == 1


def test_a_silent_server_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with socket.create_server(("127.0.0.1", 0)) as server:  # accepts, never answers
        port = server.getsockname()[1]
        start = time.monotonic()
        assert not compat._reachable(f"http://127.0.0.1:{port}/weights", 0.2)
        assert time.monotonic() - start < 15
    assert not compat._reachable(f"http://127.0.0.1:{port}/weights", 0.2)


def test_an_answering_server_is_reachable(monkeypatch: pytest.MonkeyPatch) -> None:
    from http.server import BaseHTTPRequestHandler, HTTPServer

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(200 if self.path == "/weights" else 404)
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            pass

    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        assert compat._reachable(f"http://127.0.0.1:{server.server_port}/weights", 5)
        assert not compat._reachable(f"http://127.0.0.1:{server.server_port}/other", 5)
    finally:
        server.shutdown()
        server.server_close()


# --- errors -----------------------------------------------------------------------------------------------------------


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    hook = "from maskfield_ns import compat, errors; compat.install_error_hook(); compat.install_error_hook()\n"
    root = str(Path(__file__).parents[1])
    return subprocess.run(
        [sys.executable, "-c", hook + code],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": root, "PATH": "/usr/bin:/bin"} | environment,
        timeout=60,
    )


def test_user_errors_end_in_one_line_and_exit_code_1() -> None:
    result = run("raise errors.CaptureError('no such capture')")
    assert (result.returncode, result.stderr) == (1, "error: no such capture\n")


def test_traceback_on_request() -> None:
    result = run("raise errors.CaptureError('no such capture')", MASKFIELD_TRACEBACK="1")
    assert result.returncode == 1
    assert "Traceback" in result.stderr
    assert result.stderr.endswith("error: no such capture\n")


def test_other_errors_keep_their_traceback() -> None:
    result = run("raise ValueError('a bug')")
    assert result.returncode == 1
    assert "Traceback" in result.stderr
    assert "error: " not in result.stderr


# --- viewer and devices -----------------------------------------------------------------------------------------------


def make_viewer(monkeypatch: pytest.MonkeyPatch, *arguments: str, ours: bool = True, **keywords: Any) -> ViewerConfig:
    """Construct nerfstudio's Viewer (its constructor stubbed) the way ns-viewer does; returns the settings it saw."""
    seen: list[ViewerConfig] = []
    monkeypatch.setattr(Viewer, "__init__", lambda self, config, *args, **kwargs: seen.append(config))
    compat.keep_viewer_local()
    compat.keep_viewer_local()
    monkeypatch.setattr(sys, "argv", ["ns-viewer", *arguments])
    model = type("Model", (), {"__module__": "maskfield_ns.models.maskfield" if ours else "nerfstudio.models"})()
    config = ViewerConfig(**keywords.pop("config", {}))
    Viewer(config, log_filename=Path(), datapath=Path(), pipeline=SimpleNamespace(model=model), **keywords)
    assert len(seen) == 1
    return seen[0]


def test_nerfstudio_still_listens_everywhere_by_default() -> None:
    assert ViewerConfig().websocket_host == "0.0.0.0"


def test_ns_viewer_stays_local_for_our_runs_only(monkeypatch: pytest.MonkeyPatch) -> None:
    assert make_viewer(monkeypatch).websocket_host == "127.0.0.1"
    assert make_viewer(monkeypatch, ours=False).websocket_host == "0.0.0.0"


@pytest.mark.parametrize("flag", ["--viewer.websocket-host", "--viewer.websocket_host"])
def test_ns_viewer_obeys_the_user(monkeypatch: pytest.MonkeyPatch, flag: str) -> None:
    assert make_viewer(monkeypatch, flag, "0.0.0.0").websocket_host == "0.0.0.0"
    assert make_viewer(monkeypatch, f"{flag}=0.0.0.0").websocket_host == "0.0.0.0"
    other = make_viewer(monkeypatch, config={"websocket_host": "192.0.2.1"})
    assert other.websocket_host == "192.0.2.1"


def test_a_training_viewer_follows_its_config(monkeypatch: pytest.MonkeyPatch) -> None:
    assert make_viewer(monkeypatch, trainer=object()).websocket_host == "0.0.0.0"


def test_default_viewer_is_local_and_overridable() -> None:
    config = compat.default_viewer_config(num_rays_per_chunk=7)
    assert (config.websocket_host, config.num_rays_per_chunk) == ("127.0.0.1", 7)
    assert compat.default_viewer_config(websocket_host="0.0.0.0").websocket_host == "0.0.0.0"


@pytest.mark.parametrize("available", [True, False])
def test_default_device(monkeypatch: pytest.MonkeyPatch, available: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    assert compat.default_device_type() == ("cuda" if available else "cpu")


def test_whole_downscale_factor() -> None:
    assert compat.whole_downscale_factor(None) is None
    factor = compat.whole_downscale_factor(4.0)
    assert isinstance(factor, int)
    assert factor == 4
    for bad in (0, 2.5, -1):
        with pytest.raises(CaptureError):
            compat.whole_downscale_factor(bad)
