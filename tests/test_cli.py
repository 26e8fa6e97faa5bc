"""Bad input to ``maskfield query``: one clear message on stderr, exit code 1, nothing else."""

from __future__ import annotations

import json
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
    with pytest.raises(SystemExit) as exit_:
        cli.entrypoint()
    assert exit_.value.code == 3
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
    state["pipeline"]["_model.system.query_head.schema_version"] += 1
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
    assert "no usable checkpoint" in fails(run)


@pytest.mark.parametrize("content", ["", "{", "text", "!!python/object:nowhere.Nothing {}", "\x00"])
def test_damaged_config(fails: Ask, run: Path, content: str) -> None:
    (run / "config.yml").write_text(content)
    assert str(run / "config.yml") in fails(run)


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


# --- refused before anything is loaded --------------------------------------------------------------------------------

EDIT = ("edit", "tint", "--text", "duck", "--color", "1", "0", "0")


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("edit", "tint", "--text", "duck", "--color", "2", "0", "0"), "--color"),
        (("edit", "tint", "--text", "duck", "--color", "nan", "0", "0"), "--color"),
        (("edit", "tint", "--text", "duck"), "--color RED GREEN BLUE"),
        (("edit", "tint", "--color", "1", "0", "0"), "--text or --queries"),
        ((*EDIT, "--queries", "3"), "either --text or --queries"),
        ((*EDIT, "--strength", "1.5"), "--strength"),
        ((*EDIT, "--copy", "-1"), "--copy"),
        ((*EDIT, "--bake", "scene.txt"), "--bake"),
        ((*EDIT, "--preview", "nowhere/scene.png"), "--preview"),
        (("edit", "delete", "--queries", "-1"), "--queries"),
        (("edit", "delete", "--text", " "), "--text"),
        (("edit", "move", "--text", "duck"), "--translation"),
        (("edit", "move", "--text", "duck", "--translation", "0", "0", "1", "--at", "0", "0", "1"), "--at"),
        (("edit", "move", "--text", "duck", "--scale", "0"), "--scale"),
        (("edit", "duplicate", "--text", "duck", "--rotation", "9", "--axis", "0", "0", "0"), "--axis"),
        (("edit", "duplicate", "--text", "duck", "--translation", "inf", "0", "0"), "--translation"),
        (("edit", "insert"), "--source"),
        (("edit", "insert", "--source", "nowhere.ply"), "nowhere.ply"),
        (("query", "--text", "duck", "--scale", "nan"), "--scale"),
        (("query", "--text", "duck", "--export", "../boxes.json"), "--export"),
        (("export", "--queries", "-2"), "--queries"),
        (("export", "--text", ""), "phrase"),
    ],
)
def test_wrong_values_are_refused_in_one_line(
    words: tuple[str, ...], named: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run does not exist either, but that is not looked at before."""
    monkeypatch.setattr(sys, "argv", ["maskfield", *words, "--load-config", "no-such-run"])
    with pytest.raises(SystemExit) as exit_:
        cli.entrypoint()
    err = capsys.readouterr().err
    assert exit_.value.code == 1
    assert err.startswith("error: ") and err.count("\n") == 1 and named in err, err


def test_wrong_values_are_refused_without_loading_anything(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from maskfield_ns import cli\n"
        "for words in (['query', '--text', ''], ['edit', 'tint', '--text', 'duck', '--color', '2', '0', '0']):\n"
        "    sys.argv = ['maskfield', *words, '--load-config', 'run']\n"
        "    try:\n"
        "        cli.entrypoint()\n"
        "    except SystemExit as end:\n"
        "        assert end.code == 1\n"
        "assert not {'torch', 'nerfstudio', 'numba'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, timeout=300)


# --- edits are taken back without the scene ---------------------------------------------------------------------------


def test_undo_does_not_open_the_scene(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from maskfield_ns.editing import edits
    from maskfield_ns.scene import Scene

    (run.parent / "thing.ply").write_bytes(b"ply")
    edits.EditList().then(edits.insert(run.parent / "thing.ply")).save(run / "edits.json")
    monkeypatch.setattr(Scene, "load", lambda *_: pytest.fail("the scene is opened"))
    for words, lines in (("list", 1), ("undo", 0), ("list", 0)):
        monkeypatch.setattr(sys, "argv", ["maskfield", "edit", words, "--load-config", str(run), "--json"])
        capsys.readouterr()
        cli.entrypoint()
        assert len(json.loads(capsys.readouterr().out)["edits"]) == lines
    assert json.loads((run / "edits.json").read_text(encoding="utf-8"))["edits"] == []
    assert "edits.json" in (run / "config_edited.yml").read_text(encoding="utf-8")


# --- the command line -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (
            "edit --load-config R --action tint --text duck --colour 1 0 0",
            "edit tint --load-config R --text duck --color 1 0 0",
        ),
        ("edit --action=move --load-config R --text a", "edit move --load-config R --text a"),
        ("edit --load-config R --undo", "edit undo --load-config R"),
        ("edit --load-config R --clear --bake x.ply", "edit clear --load-config R --bake x.ply"),
        ("edit --load-config R", "edit list --load-config R"),
        ("edit tint --load-config R", "edit tint --load-config R"),
        ("query --load-config R --text edit", "query --load-config R --text edit"),
    ],
)
def test_commands_of_the_last_version_are_understood(old: str, new: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.todays_names(old.split()) == new.split()
    assert bool(capsys.readouterr().err) == (old != new)


def test_several_phrases_after_one_option(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["query", "--load-config", str(run), "--text", "red mug", "duck", "--text", "duck", "table"]
    words += ["--output", str(tmp_path / "out"), "--max-views", "1", "--scale", "0.2", "--json"]
    monkeypatch.setattr(sys, "argv", ["maskfield", *words])
    with pytest.raises(SystemExit) as exit_:
        cli.entrypoint()
    assert exit_.value.code == 3  # random weights know nothing
    printed = capsys.readouterr()
    report = json.loads(printed.out)
    assert [answer["phrase"] for answer in report["answers"]] == ["red mug", "duck", "table"]
    assert printed.err == ""


def test_quiet_prints_nothing(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["query", "--load-config", str(run), "--text", "duck", "--output", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["maskfield", *words, "--max-views", "1", "--scale", "0.2", "--quiet"])
    with pytest.raises(SystemExit):
        cli.entrypoint()
    assert capfd.readouterr() == ("", "")


def test_version(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from maskfield_ns import __version__

    monkeypatch.setattr(sys, "argv", ["maskfield", "--version"])
    cli.entrypoint()
    assert capsys.readouterr().out == f"maskfield-ns {__version__}\n"


HELP = ["", "query", "edit", "edit tint", "edit move", "edit insert", "edit undo", "edit list", "export", "extract"]
HELP += ["demo", "doctor", "score", "bench", "bench report"]


@pytest.mark.parametrize("command", HELP)
def test_help_is_plain_text(command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither remarks for tools nor markup of docstrings, and every option says what it is."""
    monkeypatch.setattr(sys, "argv", ["maskfield", *command.split(), "--help"])
    with pytest.raises(SystemExit) as exit_:
        cli.entrypoint()
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    for mark in ("noqa", "``", ":meth:", ":class:", ":func:", "colour", "Of a ", "About the thing"):
        assert mark not in text, mark


def test_doctor_reports_without_loading_nerfstudio(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "maskfield_ns.cli", "doctor", "--json", "--data", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    report = json.loads(result.stdout)
    assert report["versions"]["nerfstudio"] == "1.1.5"
    assert report["weights"]["tiny_clip (in the package)"] == "present"
    assert report["cache"] == {}
    assert " nerfstudio" not in result.stderr


# --- file names -------------------------------------------------------------------------------------------------------


def test_slugs_are_safe_and_distinct() -> None:
    taken: set[str] = set()
    phrases = ["Red Mug!", "red mug", "../../etc/passwd", "🚲", "自転車", "Ärger", "x" * 300, "x" * 301]
    names = [slug(phrase, taken) for phrase in phrases]
    assert len(set(names)) == len(names)
    assert names[:3] == ["red_mug", "red_mug_2", "etc_passwd"]
    assert all(name.replace("_", "").isalnum() and name.isascii() and len(name) < 60 for name in names)
