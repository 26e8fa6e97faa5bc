"""read_json: what people bring is bounded and refused in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

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
