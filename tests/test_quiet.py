"""Ends that are nobody's fault, and text that is none: one line or nothing, never a call stack."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import ImageFont

from maskfield_ns import quiet
from maskfield_ns.answers import text as texts
from maskfield_ns.answers.text import MAX_CHARACTERS, TextEncoder
from maskfield_ns.cli import MAX_SCALE, Query, Views
from maskfield_ns.errors import MaskfieldError
from maskfield_ns.pictures.sheets import _fitted

COMMAND = [sys.executable, "-c", "from maskfield_ns.cli import entrypoint; entrypoint()"]


def run(*arguments: str | bytes, **options: object) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, timeout=120, **options)  # type: ignore[call-overload]


def test_output_that_nobody_reads(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([*COMMAND, "bench", "published"], stdout=write, stderr=subprocess.PIPE, timeout=120)
    os.close(write)
    assert done.returncode == quiet.NO_READER and done.stderr == b""


def test_an_interrupt_while_things_are_imported(tmp_path: Path) -> None:
    """Sent when tyro, which takes longest, begins to be imported."""
    (tmp_path / "tyro.py").write_text(f"open({str(tmp_path / 'began')!r}, 'w').close()\nimport time\ntime.sleep(60)\n")
    process = subprocess.Popen(
        COMMAND, stderr=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": _path_with(tmp_path)}
    )
    while not (tmp_path / "began").exists():
        time.sleep(0.02)
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=300)
    assert process.returncode != 0 and out == b"" and error == b"interrupted\n"


def _path_with(folder: Path) -> str:
    return os.pathsep.join([str(folder), str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")])


@pytest.mark.skipif(sys.platform == "win32", reason="arguments are text there")
def test_bytes_that_are_no_text() -> None:
    done = run("query", "--load-config", "nowhere", "--text", b"caf\xe9")
    assert done.returncode == 1 and done.stderr.count(b"\n") == 1 and b"--text is not UTF-8" in done.stderr
    done = run("bench", "report", b"/nowhere/caf\xe9")
    assert done.returncode == 1 and b"Traceback" not in done.stderr and b"caf\\udce9" in done.stderr


@pytest.mark.parametrize("scale", [0.0, -1.0, 1e9, float("nan"), float("inf")])
def test_scales_without_a_picture(tmp_path: Path, scale: float) -> None:
    command = Query(tmp_path / "nowhere", (("mug",),), tmp_path / "out", views=Views(scale=scale))
    with pytest.raises(MaskfieldError, match=f"at most {MAX_SCALE}"):
        command.check()


def test_captions_are_measured_a_few_times_however_long(monkeypatch: pytest.MonkeyPatch) -> None:
    font = ImageFont.load_default(14)
    measured: list[str] = []
    genuine = type(font).getlength

    def counting(self: object, text: str, *args: object, **more: object) -> float:
        measured.append(text)
        return genuine(self, text, *args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(type(font), "getlength", counting)
    for text in ("x" * 2000, "a few words " * 100_000, "ü" * 10**6):
        measured.clear()
        fitted = _fitted(text, font, 160)
        assert len(measured) <= 12 and max(map(len, measured)) <= 1001
        assert fitted.endswith("…") and genuine(font, fitted) <= 160 < genuine(font, fitted[:-1] + text[0] * 2 + "…")  # type: ignore[arg-type]
    assert _fitted("short", font, 160) == "short"


def test_text_models_get_a_bounded_text() -> None:
    given: list[str] = []

    class Embedder:
        dim = 2

        def embed_texts(self, phrases: list[str]) -> np.ndarray:
            given.extend(phrases)
            return np.ones((len(phrases), 2), np.float32)

    encoder = TextEncoder(None)
    encoder._embedder = Embedder()  # type: ignore[assignment]
    phrases = ["mug", "x" * 10**6, " " * 10**5 + "far behind", "two  spaces stay"]
    assert encoder(phrases).shape == (4, 2)
    assert given == ["mug", "x" * MAX_CHARACTERS, "far behind", "two  spaces stay"]
    assert texts.MAX_CHARACTERS >= 77 * 20
