"""The tables of scripts/measure.py."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from maskfield_ns.errors import MaskfieldError

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def measure() -> ModuleType:
    spec = importlib.util.spec_from_file_location("measure", ROOT / "scripts" / "measure.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["measure"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def known() -> dict:
    """What figures.json holds after a labelled and an unlabelled capture."""
    versions = {"python": "3.11.7", "torch": "2.15.0", "nerfstudio": "1.1.5", "cores": "2"}
    steps = [{"name": "train", "seconds": 130.0, "peak_mb": 1500}, {"name": "evaluate", "seconds": 40, "peak_mb": 2040}]
    cache = {"name": "cache", "seconds": 61.0, "peak_mb": 900}
    entry = {"pictures": 72, "size": [240, 180], "proposer": "preset", "cache": cache, "versions": versions}

    def run(rule: str, figures: dict) -> dict:
        return {"method": "maskfield-lite", "rule": rule, "figures": figures, "steps": steps}

    labelled = {"psnr": 24.06, "ssim": 0.812, "query_miou": 0.7654}
    return {
        "captures": {
            "table": entry | {"runs": {"maskfield-lite, consensus": run("consensus", labelled)}},
            "photos": entry | {"runs": {"maskfield-lite, reference": run("reference", {"agreement": 0.5})}},
        }
    }


def rows(table: str) -> list[dict[str, str]]:
    """The first Markdown table, as one dictionary per row."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line[:1] == "|"]
    return [dict(zip(lines[0], line, strict=True)) for line in lines[2:]]


def test_each_run_is_a_row_with_its_own_figures_and_blanks_elsewhere(measure: ModuleType) -> None:
    photos, table = rows(measure.markdown(known()))  # in the order of their names
    assert (table["capture"], table["method"], table["query mIoU"]) == ("table", "maskfield-lite", "0.765")
    assert (table["PSNR"], table["train"], table["peak memory"]) == ("24.1", "2 min 10 s", "2.0 GB")
    assert table["agreement"] == ""
    assert (photos["method"], photos["agreement"], photos["query mIoU"]) == ("maskfield-lite", "0.500", "")


def test_what_figures_depend_on_is_said(measure: ModuleType) -> None:
    text = measure.markdown(known())
    for part in ("72 pictures", "240x180", "2 CPU cores", "torch 2.15.0", "Python 3.11.7", "1 min 01 s"):
        assert part in text


def test_the_embedded_pair_has_tables_of_its_own(measure: ModuleType) -> None:
    masks = {"mean_best_iou": 0.8123, "share_above_0.5": 0.9, "share_above_0.75": 0.7}
    words = {"class_accuracy": 0.91, "colour_accuracy": 0.99, "phrases": 18, "regions": 600}
    pair = {"pictures": 100, "SAM": masks | {"masks_per_picture": 41.6, "seconds_per_picture": 0.5}, "crops": words}
    text = measure.markdown({"pair": pair})
    (row,) = rows(text.split("\n\n")[0])
    assert (row["automatic masks"], row["mean best IoU"], row["masks a picture"]) == ("SAM", "0.812", "42")
    (row,) = rows(text.split("\n\n")[1])
    assert (row["regions"], row["class accuracy"], row["colour accuracy"]) == ("crops", "0.910", "0.990")
    assert "100 rendered pictures" in text and "18 class phrases" in text


def test_the_block_alone_is_replaced_and_again(measure: ModuleType) -> None:
    text = f"before\n{measure.BEGIN}\nold\n{measure.END}\nafter\n"
    once = measure.replace_block(text, "new | table")
    assert once == f"before\n{measure.BEGIN}\nnew | table\n{measure.END}\nafter\n"
    assert measure.replace_block(once, "new | table") == once


def test_lost_markers_are_named(measure: ModuleType) -> None:
    with pytest.raises(MaskfieldError, match="figures:begin"):
        measure.replace_block("no markers", "table")


def test_the_readme_has_its_markers(measure: ModuleType) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert measure.BEGIN in text
    assert measure.replace_block(text, "x").count(measure.END) == 1
