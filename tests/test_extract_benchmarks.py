"""``maskfield extract`` with a dataparser: the cache is the one that training with the same words reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fixtures_on_disk import scene, source
from oracle import Command

from maskfield_ns import cli
from maskfield_ns.commands.extract import dataparser_config, method_config
from maskfield_ns.data import mask_source
from maskfield_ns.data.dataparsers.indexed import ScanNetOvDataParserConfig
from maskfield_ns.errors import MaskfieldError

pytest_plugins = ("oracle",)


@pytest.mark.parametrize(
    ("kind", "words", "folder", "count"),
    [
        ("lerf-ovs", ["lerf-ovs-data", "--split", "strict"], "images", 4),
        ("3d-ovs", ["ovs3d-data", "--downscale-factor", "4"], "images_4", 6),
    ],
)
def test_training_finds_every_entry(
    kind: str,
    words: list[str],
    folder: str,
    count: int,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    data = scene(tmp_path, kind, source(frames=6, labelled=2, scale=0.25))
    reports: list[Any] = []
    build = mask_source._build_cache
    monkeypatch.setattr(mask_source, "_build_cache", lambda *a, **k: reports.append(build(*a, **k)) or reports[-1])
    method = ["--method", "maskfield-lite", "--proposer", "regions"]
    printed = command("extract", "--data", data, *method, *words)
    assert printed.splitlines()[-1] == (
        f"train with it: ns-train maskfield-lite --data {data} --pipeline.datamanager.proposer-kind regions "
        + " ".join(words)
    )
    assert (reports[0].total, reports[0].built) == (count, count)

    # What ns-train does with those words.
    config = method_config("maskfield-lite").pipeline.datamanager
    config.data, config.proposer_kind = data, "regions"
    config.dataparser = dataparser_config(words[0], words[1:])
    manager = config.setup(device="cpu", test_mode="val", world_size=1, local_rank=0)
    assert (reports[1].total, reports[1].built) == (count, 0)
    assert reports[1].folder == reports[0].folder and manager.cache_dir == data / mask_source.CACHE_FOLDER
    assert len(manager.mask_views) == count
    assert all(path.parent.name == folder for path in manager.train_dataset.image_filenames)


def test_the_first_word_that_is_no_value_names_the_dataparser() -> None:
    for words, wanted in (
        (["extract", "--data", "d", "lerf-ovs-data", "--split", "strict"], 4),
        (["extract", "--data=d", "lerf-ovs-data", "--help"], 3),
        (["extract", "--data", "lerf-ovs-data"], 3),
        (["extract", "--data", "d", "--help"], 4),
        (["extract", "lerf-ovs-data", "--data", "d"], 2),
        (["query", "--text", "a", "b"], 4),
        ([], 0),
    ):
        assert cli.split_arguments(words) == (words[:wanted], words[wanted:])


def test_options_are_read_as_ns_train_reads_them() -> None:
    config = dataparser_config("scannet-semantic-data", ["--blank-competes", "False", "--templates", "ov-nerf"])
    assert isinstance(config, ScanNetOvDataParserConfig)
    assert config.blank_competes is False and config.templates == "ov-nerf"
    assert dataparser_config("scannet-semantic-data").blank_competes is True, "a copy"
    with pytest.raises(MaskfieldError, match=r"no dataparser 'lerf'.*lerf-ovs-data"):
        dataparser_config("lerf")
    with pytest.raises(SystemExit):
        dataparser_config("lerf-ovs-data", ["--colour", "red"])


def test_help_tells_how(command: Command, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["maskfield", "extract", "--help"])
    with pytest.raises(SystemExit) as exit_:
        cli.entrypoint()
    assert exit_.value.code == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "maskfield extract --data lerf_ovs/figurines lerf-ovs-data --split strict" in text
    assert "dataparser-options" not in text.lower().replace("_", "-")
