"""The demo's own work, with programs that only leave behind what the real ones leave; and ``maskfield extract``."""

from __future__ import annotations

import json
import os
import stat
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from captures import make_capture

from maskfield_ns import compat
from maskfield_ns.commands import demo as demo_module
from maskfield_ns.commands import steps
from maskfield_ns.commands.demo import CAPTURE, FIGURES, PHRASES, copy_capture, demo
from maskfield_ns.commands.extract import extract, method_config
from maskfield_ns.data import mask_source
from maskfield_ns.data.capture import check_capture
from maskfield_ns.errors import CaptureError, MaskfieldError
from maskfield_ns.evaluation.labels import LabelledCapture

PROGRAM = """#!{python}
import json, pathlib, sys
name, args = pathlib.Path(sys.argv[0]).name, sys.argv[1:]
after = lambda flag: pathlib.Path(args[args.index(flag) + 1])
with open({record!r}, "a") as file:
    file.write(json.dumps([name, *args]) + "\\n")
if name == {failing!r}:
    sys.exit("error: out of luck")
if name == "ns-train":
    run = after("--output-dir") / after("--experiment-name") / args[0] / after("--timestamp")
    run.mkdir(parents=True)
    (run / "config.yml").write_text("run")
elif name == "ns-eval":
    assert after("--load-config").read_text() == "run"
    after("--render-output-path").mkdir()
    after("--output-path").write_text(json.dumps({{"results": {{"psnr": 21.5, "query_miou": 0.8, "fps": 1.0}}}}))
elif args[0] == "query":
    assert after("--load-config").read_text() == "run"
    folder = after("--output")
    folder.mkdir()
    (folder / "contact_sheet.png").write_bytes(b"picture")
    texts = [args[i + 1] for i, word in enumerate(args) if word == "--text"]
    answers = [{{"phrase": t, "found": t != "elephant", "score": 0.5}} for t in texts]
    (folder / "answers.json").write_text(json.dumps({{"answers": answers}}))
elif args[0] == "extract":
    (after("--data") / "maskfield_cache").mkdir(exist_ok=True)
"""


class Programs:
    """Stand-ins for the commands, which record how they were called."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.record = folder, folder / "calls"
        folder.mkdir()
        monkeypatch.setattr(steps, "find_program", lambda name: str(folder / name))
        self.write()

    def write(self, failing: str = "") -> None:
        for name in ("maskfield", "ns-train", "ns-eval"):
            path = self.folder / name
            path.write_text(PROGRAM.format(python=sys.executable, record=str(self.record), failing=failing))
            path.chmod(0o755)

    def calls(self) -> list[list[str]]:
        """Name and arguments of each call, in order."""
        return [json.loads(line) for line in self.record.read_text().splitlines()]


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Programs:
    return Programs(tmp_path / "bin", monkeypatch)


def test_the_packaged_capture_is_valid_labelled_and_small() -> None:
    summary = check_capture(CAPTURE)
    assert summary.splits is not None
    assert len(summary.splits["train"]) >= 30
    assert len(summary.splits["test"]) >= 6
    labels = LabelledCapture.load(CAPTURE)
    assert labels is not None
    for name in summary.names:
        assert labels.instances(name, summary.sizes[0][::-1]).max() > 0
    files = [path for path in CAPTURE.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 1_500_000


def test_every_step_runs_once_in_order_and_results_are_published(
    programs: Programs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "with space" / "out"
    demo(output, "maskfield-lite")
    assert [call[0] for call in programs.calls()] == ["maskfield", "ns-train", "maskfield", "ns-eval"]
    assert (output / "contact_sheet.png").read_bytes() == b"picture"
    assert json.loads((output / "metrics.json").read_text())["results"]["psnr"] == 21.5
    record = json.loads((output / "demo.json").read_text())
    assert [step["name"] for step in record["steps"]] == ["cache", "train", "query", "evaluate"]
    assert record["seconds"] == pytest.approx(sum(step["seconds"] for step in record["steps"]), abs=0.3)
    assert record["figures"] == {"psnr": 21.5, "query_miou": 0.8}
    assert [answer["phrase"] for answer in record["answers"]] == list(PHRASES)
    assert Path(record["config"]).read_text() == "run"
    shown = capsys.readouterr().out
    for text in ("contact_sheet.png", "metrics.json", f"ns-viewer --load-config {record['config']}", FIGURES["psnr"]):
        assert text in shown
    assert '"elephant": not found' in shown


def test_a_second_run_trains_afresh_and_keeps_the_cache(
    programs: Programs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stamps = iter(["first", "second"])
    monkeypatch.setattr(demo_module.time, "strftime", lambda _: next(stamps))
    demo(tmp_path / "out", "maskfield-lite")
    kept = tmp_path / "out" / "capture" / "maskfield_cache" / "entry"
    kept.write_text("masks")
    demo(tmp_path / "out", "maskfield-lite")
    runs = tmp_path / "out" / "runs" / "demo" / "maskfield-lite"
    assert sorted(path.name for path in runs.iterdir()) == ["first", "second"]
    assert kept.read_text() == "masks"
    assert json.loads((tmp_path / "out" / "demo.json").read_text())["config"] == str(runs / "second" / "config.yml")


@pytest.mark.parametrize(("failing", "step", "calls"), [("ns-train", "train", 2), ("ns-eval", "evaluate", 4)])
def test_a_failed_step_ends_the_demo(
    programs: Programs, tmp_path: Path, failing: str, step: str, calls: int, capfd: pytest.CaptureFixture[str]
) -> None:
    programs.write(failing)
    with pytest.raises(MaskfieldError, match=f'the step "{step}" ended with exit code 1'):
        demo(tmp_path / "out", "maskfield-lite")
    assert len(programs.calls()) == calls
    assert "error: out of luck" in capfd.readouterr().err
    assert not (tmp_path / "out" / "demo.json").exists()


def test_a_capture_of_read_only_files_becomes_writable(tmp_path: Path) -> None:
    source = make_capture(tmp_path / "package")
    for path in [*source.rglob("*"), source]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    copy = tmp_path / "copy"
    try:
        copy_capture(source, copy)
        copy_capture(source, copy)
    finally:
        for path in [source, *(p for p in source.rglob("*") if p.is_dir())]:
            path.chmod(0o755)
    copied = [path for path in copy.rglob("*") if path.is_file()]
    assert {path.relative_to(copy) for path in copied} == {
        path.relative_to(source) for path in source.rglob("*") if path.is_file()
    }
    for path in copied:
        assert path.stat().st_mode & stat.S_IWUSR
        assert path.read_bytes() == (source / path.relative_to(copy)).read_bytes()
    assert os.access(copy / "images", os.W_OK)


def test_an_output_that_cannot_be_written_is_one_message(programs: Programs, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MaskfieldError, match=r"cannot write to .*file.*another --output"):
        demo(tmp_path / "file", "maskfield-lite")
    assert not programs.record.exists()


def test_extract_builds_the_cache_and_names_the_command_that_uses_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capture, cache = make_capture(tmp_path / "my capture"), tmp_path / "cache"
    extract(capture, "maskfield-lite", cache, "regions", "preset")
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == (
        f"train with it: ns-train maskfield-lite --data '{capture}' --pipeline.datamanager.cache-dir {cache} "
        "--pipeline.datamanager.proposer-kind regions"
    )
    assert len(list(cache.glob("*/*.safetensors"))) == 6


@pytest.mark.parametrize(("device", "method"), [("cuda", "maskfield-splat"), ("cpu", "maskfield-splat-lite")])
def test_extract_is_for_the_method_that_the_machine_is_meant_for(
    device: str, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def build(settings: Any, device: str) -> Any:
        asked.append((settings.get_proposer(), settings.get_embedder()))
        return SimpleNamespace(folder=tmp_path)

    monkeypatch.setattr(compat, "default_device_type", lambda: device)
    monkeypatch.setattr(mask_source, "extract", build)
    extract(tmp_path, None, None, "preset", "preset")
    trained = method_config(method).pipeline.datamanager
    assert asked == [(trained.get_proposer(), trained.get_embedder())]
    printed = capsys.readouterr().out
    assert f"masks and embeddings for {method} (" in printed and "--method NAME" in printed
    assert f"ns-train {method} --data" in printed


def test_extract_knows_the_registered_methods_only(tmp_path: Path) -> None:
    with pytest.raises(MaskfieldError, match=r"no masks are made for the method 'nerfacto'.*maskfield, maskfield-lite"):
        extract(tmp_path, "nerfacto", None, "preset", "preset")
    with pytest.raises(MaskfieldError, match=r"no method 'nobody'.*maskfield, maskfield-lite"):
        extract(tmp_path, "nobody", None, "preset", "preset")
    with pytest.raises(CaptureError, match="No such capture"):
        extract(tmp_path / "nowhere", "maskfield-lite", None, "preset", "preset")


def test_a_method_config_is_a_copy() -> None:
    method_config("maskfield").pipeline.datamanager.mask_start = -1
    assert method_config("maskfield").pipeline.datamanager.mask_start != -1
