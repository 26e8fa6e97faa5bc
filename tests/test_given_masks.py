"""Masks that users bring, as files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from maskfield_ns.errors import CaptureError, WeightsError
from maskfield_ns.foundation.config import TinySamConfig
from maskfield_ns.foundation.given_masks import GivenMasks, GivenMasksConfig
from maskfield_ns.foundation.protocols import LEVELS, NamedMaskProposer, propose
from maskfield_ns.foundation.registry import proposer_config

IMAGE = np.zeros((40, 60, 3), np.uint8)


def ids() -> np.ndarray:
    plane = np.zeros((40, 60), np.uint16)
    plane[5:15, 5:20], plane[20:35, 30:50] = 7, 1000
    return plane


def given(path: Path) -> GivenMasks:
    proposer = proposer_config(f"given:{path}", TinySamConfig()).setup("cpu")
    assert isinstance(proposer, GivenMasks) and isinstance(proposer, NamedMaskProposer)
    return proposer


def test_id_images_of_levels(tmp_path: Path) -> None:
    Image.fromarray(ids()).save(tmp_path / "frame_1.png")
    (tmp_path / "subpart").mkdir()
    Image.fromarray((ids() > 0).astype(np.uint8)).save(tmp_path / "subpart" / "frame_1.png")
    found = propose(given(tmp_path), IMAGE, "images/frame_1.jpg")
    assert [LEVELS[level] for level in found.levels] == ["whole", "whole", "subpart"]
    assert (found.masks[0] == (ids() == 7)).all() and (found.masks[1] == (ids() == 1000)).all()
    assert found.boxes[0].tolist() == [5, 5, 20, 15]
    assert len(propose(given(tmp_path), IMAGE, "images/other.jpg")) == 0
    assert len(given(tmp_path).propose(IMAGE)) == 0


def test_masks_of_another_size_are_resized_and_of_another_shape_refused(tmp_path: Path) -> None:
    Image.fromarray(ids()).save(tmp_path / "a.png")
    found = propose(given(tmp_path), np.zeros((80, 120, 3), np.uint8), "a.jpg")
    assert (found.masks[0][::2, ::2] == (ids() == 7)).all()
    with pytest.raises(CaptureError, match="another shape"):
        propose(given(tmp_path), np.zeros((60, 60, 3), np.uint8), "a.jpg")


@pytest.mark.parametrize("kind", ["compressed", "counts", "polygon"])
def test_coco_json(tmp_path: Path, kind: str) -> None:
    mask = ids() == 7
    lengths = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    if kind == "compressed":
        shape: object = {"size": lengths["size"], "counts": lengths["counts"].decode()}
    elif kind == "counts":
        flat = mask.flatten(order="F").astype(np.int8)
        edges = np.flatnonzero(np.diff(flat)) + 1
        shape = {"size": [40, 60], "counts": np.diff([0, *edges, len(flat)]).tolist()}
    else:
        shape = [[5, 5, 20, 5, 20, 15, 5, 15]]
    data = {
        "images": [{"id": 3, "file_name": "images/a.jpg", "height": 40, "width": 60}],
        "annotations": [{"id": 1, "image_id": 3, "segmentation": shape, "level": "part"}],
    }
    path = tmp_path / "masks.json"
    path.write_text(json.dumps(data), encoding="utf-8")
    found = propose(given(path), IMAGE, "a.jpg")
    assert found.levels.tolist() == [LEVELS.index("part")]
    assert (found.masks[0] == mask).all()


def test_the_cache_notices_changed_files(tmp_path: Path) -> None:
    Image.fromarray(ids()).save(tmp_path / "a.png")
    before = GivenMasksConfig(tmp_path).fingerprint()
    assert GivenMasksConfig(tmp_path).fingerprint() == before
    Image.fromarray(ids() * 2).save(tmp_path / "a.png")
    assert GivenMasksConfig(tmp_path).fingerprint() != before


def test_what_is_no_mask_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="given:PATH"):
        proposer_config("given", TinySamConfig()).fingerprint()
    with pytest.raises(WeightsError, match="no masks at"):
        given(tmp_path)
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(CaptureError, match="one channel"):
        propose(given(tmp_path), IMAGE, "a.jpg")
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(CaptureError, match="cannot read"):
        propose(given(tmp_path), IMAGE, "a.jpg")
    path = tmp_path / "masks.json"
    for data in ({"images": []}, {"images": [{"id": 1}], "annotations": []}, []):
        path.write_text(json.dumps(data), encoding="utf-8")
        with pytest.raises(CaptureError, match="COCO"):
            propose(given(path), IMAGE, "a.jpg")
    bad = {"images": [{"id": 1, "file_name": "a.jpg", "height": 40, "width": 60}], "annotations": [{"image_id": 1}]}
    path.write_text(json.dumps(bad), encoding="utf-8")
    with pytest.raises(CaptureError, match="annotation"):
        propose(given(path), IMAGE, "a.jpg")
