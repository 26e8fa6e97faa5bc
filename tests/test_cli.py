"""Bad input to ``maskfield query``: one clear message on stderr, exit code 1, nothing else."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from captures import make_capture

from maskfield_ns import cli
from maskfield_ns.files import slug

pytest_plugins = ("untrained",)

Ask = Callable[..., str]


@pytest.fixture
def fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Ask:
    """Calls the command in this process; it must fail as a user can bear. Returns its message."""

    def call(run: Path, *arguments: str, text: str = "red mug", output: Path | None = None) -> str:
        command = ["maskfield", "query", "--load-config", str(run), "--text", text]
        command += ["--output", str(output or tmp_path / "answers"), *arguments]
        monkeypatch.setattr(sys, "argv", command)
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            cli.entrypoint()
        assert exit_.value.code == 1
        err = capsys.readouterr().err
        assert err.startswith("error: ")
        assert err.count("\n") == 1, err
        return err

    return call


@pytest.fixture(scope="module")
def untrained(untrained_run: Path) -> Path:
    return untrained_run


@pytest.fixture
def run(untrained: Path, tmp_path: Path) -> Path:
    """A copy of the run, to be damaged."""
    shutil.copytree(untrained, tmp_path / "run")
    return tmp_path / "run"


def checkpoint(run: Path) -> Path:
    return run / "nerfstudio_models" / "step-000000001.ckpt"


def test_untrained_run_opens_and_finds_nothing(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The other tests damage this run: undamaged it must work."""
    command = ["maskfield", "query", "--load-config", str(run), "--text", "red mug", "--output", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", [*command, "--scale", "0.5", "--max-views", "1"])
    cli.entrypoint()
    assert '"red mug": not found' in capsys.readouterr().out
    assert (tmp_path / "out" / "answers.json").is_file()


# --- the run ----------------------------------------------------------------------------------------------------------


def test_no_such_run(fails: Ask, tmp_path: Path) -> None:
    assert "no such run" in fails(tmp_path / "nowhere" / "config.yml")


def test_folder_without_a_run(fails: Ask, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "holds no config.yml" in fails(tmp_path / "empty")


def test_folder_with_several_runs(fails: Ask, run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "runs" / "a")
    shutil.copytree(run, tmp_path / "runs" / "b")
    assert "holds 2 config.yml" in fails(tmp_path / "runs")


def test_run_without_a_checkpoint(fails: Ask, run: Path) -> None:
    checkpoint(run).unlink()
    assert "no checkpoint" in fails(run)
    checkpoint(run).parent.rmdir()
    assert "no checkpoint" in fails(run / "config.yml")


def test_checkpoint_of_another_schema(fails: Ask, run: Path) -> None:
    state = torch.load(checkpoint(run))
    state["pipeline"]["_model.query_head.schema_version"] += 1
    torch.save(state, checkpoint(run))
    assert "layout 2" in fails(run)


def test_checkpoint_of_another_method(fails: Ask, run: Path) -> None:
    state = torch.load(checkpoint(run))
    state["pipeline"] = {k: v for k, v in state["pipeline"].items() if "query_head" not in k}
    torch.save(state, checkpoint(run))
    assert "no query head" in fails(run)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", None])
def test_damaged_checkpoint(fails: Ask, run: Path, content: bytes | None) -> None:
    whole = checkpoint(run).read_bytes()
    checkpoint(run).write_bytes(whole[: len(whole) // 2] if content is None else content)
    assert "cannot open" in fails(run)


@pytest.mark.parametrize("content", ["", "{", "text", "!!python/object:nowhere.Nothing {}", "\x00"])
def test_damaged_config(fails: Ask, run: Path, content: str) -> None:
    (run / "config.yml").write_text(content)
    assert "cannot open" in fails(run)


def test_checkpoint_given_instead_of_config(fails: Ask, run: Path) -> None:
    assert str(checkpoint(run)) in fails(checkpoint(run))


def test_capture_is_gone(fails: Ask, run: Path, untrained: Path) -> None:
    capture = untrained.parents[3] / "capture"
    hidden = capture.rename(capture.with_name("hidden"))
    try:
        assert str(capture) in fails(run)
    finally:
        hidden.rename(capture)


# --- the question -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "  ", "\t\n"])
def test_empty_phrase(fails: Ask, run: Path, tmp_path: Path, text: str) -> None:
    assert "phrase" in fails(run, text=text)
    assert not (tmp_path / "answers").exists()


def test_one_empty_phrase_among_others(fails: Ask, run: Path) -> None:
    assert "phrase" in fails(run, "--text", " ")


@pytest.mark.parametrize("arguments", [("--scale", "0"), ("--scale", "-1"), ("--max-views", "-2")])
def test_impossible_numbers(fails: Ask, run: Path, arguments: tuple[str, ...]) -> None:
    assert arguments[0] in fails(run, *arguments)


def test_no_held_out_views(fails: Ask, tmp_path: Path, run: Path, untrained: Path) -> None:
    """nerfstudio's own split keeps no image of a small capture for evaluation."""
    capture = untrained.parents[3] / "capture"
    original = (capture / "transforms.json").read_text()
    make_capture(capture, held_out=None)
    try:
        assert "--split train" in fails(run)
    finally:
        (capture / "transforms.json").write_text(original)


# --- the output -------------------------------------------------------------------------------------------------------


def test_file_in_place_of_the_output_folder(fails: Ask, run: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("precious")
    assert str(tmp_path / "taken") in fails(run, output=tmp_path / "taken")
    assert str(tmp_path / "taken") in fails(run, output=tmp_path / "taken" / "below")
    assert (tmp_path / "taken").read_text() == "precious"


@pytest.mark.parametrize("name", ["contact_sheet.png", "answers.json"])
def test_folder_in_place_of_an_output_file(fails: Ask, run: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "out" / name).mkdir(parents=True)
    assert name in fails(run, "--scale", "0.5", "--max-views", "1", output=tmp_path / "out")
    assert not [path for path in (tmp_path / "out").iterdir() if path.suffix == ".tmp"]


def test_message_and_exit_code_of_the_real_command(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "maskfield_ns.cli", "query", "--load-config", "nowhere", "--text", "mug"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert result.returncode == 1
    assert result.stderr.startswith("error: no such run: nowhere")
    assert result.stderr.count("\n") == 1


# --- file names -------------------------------------------------------------------------------------------------------


def test_slugs_are_safe_and_distinct() -> None:
    taken: set[str] = set()
    phrases = ["Red Mug!", "red mug", "../../etc/passwd", "🚲", "自転車", "Ärger", "x" * 300, "x" * 301]
    names = [slug(phrase, taken) for phrase in phrases]
    assert len(set(names)) == len(names)
    assert names[:3] == ["red_mug", "red_mug_2", "etc_passwd"]
    assert all(name.replace("_", "").isalnum() and name.isascii() and len(name) < 60 for name in names)
