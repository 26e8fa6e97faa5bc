"""Files: what people bring is bounded and refused in one line; what is written is whole or not there."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from maskfield_ns import files
from maskfield_ns.errors import CaptureError, MaskfieldError
from maskfield_ns.files import MAX_JSON_DEPTH, read_json


def test_sound_files_are_read_as_json_reads_them(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    value = {
        "a": [1, 2.5, -1e-7, None, True],
        "text": 'brackets [[[[ and "quotes" and \\ and 0' + "1" * 500,
        "ü": "é🙂",
    }
    for ascii_only in (True, False):
        path.write_bytes(json.dumps(value, ensure_ascii=ascii_only).encode("utf-8"))
        assert read_json(path, "a test") == value
    path.write_bytes(b"\xef\xbb\xbf" + b"[1]")
    assert read_json(path, "a test") == [1]
    path.write_text("[" * MAX_JSON_DEPTH + "]" * MAX_JSON_DEPTH)
    read_json(path, "a test")


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b'{"a": \xff}', "not UTF-8"),
        (b"", "not valid JSON"),
        (b'{"a": 1', "line 1, column"),
        (b"[" * 100_000, "100000 deep"),
        (b"[" * 65 + b"]" * 65, "65 deep"),
        (b'{"a": ' + b"9" * 5000 + b"}", "more than 100 characters"),
        (b'{"a": 1.' + b"0" * 400 + b"1}", "more than 100 characters"),
        (b'{"a": "\\ud800"}', "surrogate"),
        (b'{"a": 1, "a": 2}', "'a' occurs twice"),
    ],
)
def test_what_is_no_json_is_named_in_one_line(tmp_path: Path, content: bytes, part: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(CaptureError) as caught:
        read_json(path, "the cameras", CaptureError, unique_keys=True)
    message = str(caught.value)
    assert part in message and str(path) in message and "the cameras" in message and "\n" not in message


def test_missing_and_odd_paths(tmp_path: Path) -> None:
    for path in (tmp_path / "no.json", tmp_path, tmp_path / ("x" * 3000), Path("a\0b")):
        with pytest.raises(MaskfieldError) as caught:
            read_json(path, "a test")
        assert "\n" not in str(caught.value)


# --- writing ----------------------------------------------------------------------------------------------------------


def test_what_is_written_is_whole_and_flushed_before_it_takes_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, order = tmp_path / "new" / "a.txt", []
    flush, replace = files.flush, os.replace
    monkeypatch.setattr(files, "flush", lambda p: (order.append(("flush", p.suffix)), flush(p)))
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append(("replace", Path(a).suffix)), replace(a, b)))
    files.write_text(path, "hello")
    assert path.read_text() == "hello" and list(path.parent.iterdir()) == [path]
    assert order == [("flush", ".tmp"), ("replace", ".tmp"), ("flush", "")]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), KeyboardInterrupt()])
def test_a_write_that_fails_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    path = tmp_path / "a.txt"
    files.write_text(path, "old")

    def fails(_: Path) -> None:
        raise error

    monkeypatch.setattr(files, "flush", fails)
    with pytest.raises((CaptureError, KeyboardInterrupt)) as caught:
        files.write_text(path, "new", CaptureError)
    if isinstance(error, OSError):
        assert str(caught.value) == f"cannot write {path}: the disk is full; free some space and try again"
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_json_holds_no_nan_and_no_half_characters(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    value = {"a": [float("nan"), 1.5, (float("inf"), "\udcff")], "b": {"c": -float("inf")}, "ü": "é"}
    files.write_json(path, value)

    def refuse(constant: str) -> None:
        raise ValueError(constant)

    read = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    assert read == {"a": [None, 1.5, [None, "\udcff"]], "b": {"c": None}, "ü": "é"}


def test_leftovers_of_killed_writers_go_and_those_of_living_ones_stay(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    mine = files.temporary_path(tmp_path / ("x" * 200))
    other = mine.with_name(mine.name.replace(f".{os.getpid()}.", f".{gone.pid}."))
    folder = other.with_name(other.name.replace("x", "y"))
    mine.write_text("")
    other.write_text("")
    folder.mkdir()
    (folder / "half").write_text("")
    (tmp_path / ".mine.tmp").write_text("just now, whoever it was")
    assert files.remove_leftovers(tmp_path) == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([".mine.tmp", mine.name])
