"""The training scripts of the embedded pair: they run, repeat exactly, resume, and export what the package loads."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pictures of a red ball on a grey table, in the layout of render_scenes.py."""
    folder = tmp_path_factory.mktemp("pictures")
    rows, columns = np.mgrid[:192, :256]
    images, instances, metas = [], [], []
    for centre in (90, 150):
        ball = (rows - 96) ** 2 + (columns - centre) ** 2 < 40**2
        images.append(np.where(ball[..., None], (200, 30, 30), (120, 120, 120)).astype(np.uint8))
        instances.append(np.where(ball, 2, 1).astype(np.uint8))
        table = {"class": "table", "colour": "grey", "colours": ["grey"], "texture": None}
        metas.append({"instances": {"1": table, "2": table | {"class": "ball", "colour": "red", "colours": ["red"]}}})
    np.savez(
        folder / "shard_00000.npz",
        image=np.stack(images),
        instance=np.stack(instances),
        part=np.stack(instances),
        meta=np.frombuffer(json.dumps(metas).encode(), np.uint8),
    )
    return folder


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(SCRIPTS), *sys.path])


def read(path: Path) -> dict:
    return torch.load(path, weights_only=True)


def test_sam_training_repeats_and_resumes(pictures: Path, tmp_path: Path, scripts: None) -> None:
    from tiny_sam_training import SamTrainingConfig, train

    small = {"images_per_step": 1, "prompts_per_image": 2, "dense_steps": 1, "warmup": 1}
    first = read(train(SamTrainingConfig(steps=2, **small), pictures, tmp_path / "a", "cpu"))
    again = read(train(SamTrainingConfig(steps=2, **small), pictures, tmp_path / "b", "cpu"))
    assert first["step"] == 2
    for name, tensor in first["model"].items():
        assert torch.equal(tensor, again["model"][name]), name
    resumed = read(train(SamTrainingConfig(steps=3, **small), pictures, tmp_path / "a", "cpu"))
    assert resumed["step"] == 3
    moved = [n for n, tensor in resumed["model"].items() if not torch.equal(tensor, first["model"][n])]
    assert any(n.startswith("mask_decoder") for n in moved) and any(n.startswith("image_encoder") for n in moved)


def test_batched_decoder_equals_the_stock_one(scripts: None) -> None:
    from tiny_sam_training import IMAGE_SIZE, decode, encode

    from maskfield_ns.foundation.tiny.sam import build_tiny_sam

    torch.manual_seed(0)
    sam = build_tiny_sam().eval()
    image = torch.rand(2, 3, IMAGE_SIZE, IMAGE_SIZE) * 255
    points = torch.rand(2, 3, 2) * IMAGE_SIZE
    with torch.no_grad():
        embedding = encode(sam, image, torch.zeros(2, IMAGE_SIZE, IMAGE_SIZE, dtype=torch.bool))
        logits, iou, _ = decode(sam, embedding, points)
        for i in range(2):
            sparse, dense = sam.prompt_encoder((points[i][:, None], torch.ones(3, 1)), None, None)
            stock, stock_iou = sam.mask_decoder(
                sam.image_encoder(sam.preprocess(image[i])[None]),
                sam.prompt_encoder.get_dense_pe(),
                sparse,
                dense,
                multimask_output=True,
            )
            torch.testing.assert_close(logits[i, :, 1:], stock, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(iou[i, :, 1:], stock_iou, rtol=1e-4, atol=1e-4)


def test_pixel_pairs_prefer_embeddings_that_follow_instances(scripts: None) -> None:
    from tiny_sam_training import LOW_RES, dense_loss

    ids = torch.zeros(1, LOW_RES, LOW_RES, dtype=torch.long)
    ids[:, :, LOW_RES // 2 :] = 1
    ids[:, -5:] = -1
    follows = torch.stack([ids == 0, ids == 1], dim=1).float()
    wrong = follows.transpose(2, 3)
    right_loss, wrong_loss = (float(dense_loss(f, ids, torch.Generator().manual_seed(0))) for f in (follows, wrong))
    assert right_loss < 0.1 < 1.0 < wrong_loss
    follows[:, :, -5:] = 7.0  # padding says nothing
    assert float(dense_loss(follows, ids, torch.Generator().manual_seed(0))) == pytest.approx(right_loss)


def test_clip_training_repeats_and_exports(pictures: Path, tmp_path: Path, scripts: None) -> None:
    from tiny_clip_training import ClipTrainingConfig, train
    from train_tiny import Export

    from maskfield_ns.foundation.tiny.clip import load_tiny_clip

    config = ClipTrainingConfig(steps=2, regions_per_step=4, random_phrases=8, warmup=1)
    first = read(train(config, pictures, tmp_path / "a", "cpu"))
    again = read(train(config, pictures, tmp_path / "b", "cpu"))
    assert all(torch.equal(tensor, again["model"][name]) for name, tensor in first["model"].items())
    Export(work=tmp_path / "a", output=tmp_path).run()
    model, tokenizer, *_ = load_tiny_clip(tmp_path / "tiny_clip.safetensors")
    assert torch.isfinite(model.encode_text(tokenizer(["red ball", "elephant"]))).all()


def test_words_never_met_fall_into_buckets_that_training_met(scripts: None) -> None:
    from tiny_phrases import ABSENT

    from maskfield_ns.foundation.tiny.clip import UNTRAINED_BUCKETS, load_tiny_clip

    model, tokenizer, *_ = load_tiny_clip()
    first = tokenizer.vocab_size - 2 - 128
    met = {row - first for word in ABSENT for row in tokenizer.encode(word) if row >= first}
    assert met | set(UNTRAINED_BUCKETS) == set(range(128)) and not met & set(UNTRAINED_BUCKETS)
    # "basket" would fall into one that training never met, whose noise is half a floor.
    strange = ["sunflower", "gray plane", "basket", "harp", "quokka", "xylophone"]
    known = ["mug", "duck", "soccer ball", "toy brick", "robot", "floor", "plate"]
    with torch.no_grad():
        texts = torch.nn.functional.normalize(model.encode_text(tokenizer([*strange, *known])), dim=-1)
    assert (texts[: len(strange)] @ texts[len(strange) :].T).max() < 0.3
