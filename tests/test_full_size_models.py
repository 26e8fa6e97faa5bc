"""The path of the real checkpoints, proven without them: official layouts with random weights, loaded and run once."""

import gc
import re

import numpy as np
import open_clip
import pytest
import torch
from segment_anything import sam_model_registry

from maskfield_ns.errors import WeightsError
from maskfield_ns.foundation.clip import load_open_clip
from maskfield_ns.foundation.config import OpenClipConfig, SamConfig
from maskfield_ns.foundation.sam import load_sam
from maskfield_ns.foundation.weights import SAM_CHECKPOINTS

PICTURE = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)

SAM_SIZES = {"vit_b": (768, 12, 12, 314), "vit_l": (1024, 24, 16, 482), "vit_h": (1280, 32, 16, 594)}
"""Width, blocks and heads of the image encoder, and tensors in the state dict."""


@pytest.mark.parametrize("model_type", list(SAM_SIZES))
def test_sam_layouts(model_type):
    """Names and shapes that :func:`load_sam` insists on are those of the official checkpoints."""
    width, depth, heads, tensors = SAM_SIZES[model_type]
    with torch.device("meta"):
        state = sam_model_registry[model_type]().state_dict()
    blocks = {int(match[1]) for name in state if (match := re.match(r"image_encoder\.blocks\.(\d+)\.", name))}
    assert blocks == set(range(depth)) and len(state) == tensors
    assert state["image_encoder.pos_embed"].shape == (1, 64, 64, width)
    assert state["image_encoder.patch_embed.proj.weight"].shape == (width, 3, 16, 16)
    assert state["image_encoder.blocks.0.attn.rel_pos_h"].shape == (27, width // heads)
    assert state["prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"].shape == (2, 128)
    assert state["mask_decoder.mask_tokens.weight"].shape == (4, 256)
    assert not any("pixel_" in name for name in state)
    # The published file sizes are float32 tensors plus a little zip and pickle overhead.
    payload = 4 * sum(tensor.numel() for tensor in state.values())
    assert 0 < SAM_CHECKPOINTS[model_type].size - payload < 500_000


@pytest.mark.slow
def test_sam_vit_b_runs_from_an_official_layout(tmp_path):
    path = tmp_path / "sam_vit_b.pth"
    torch.manual_seed(0)
    built = sam_model_registry["vit_b"]()
    reference = {name: tensor.clone() for name, tensor in list(built.state_dict().items())[::40]}
    pixel_mean, pixel_std = built.pixel_mean, built.pixel_std
    torch.save(built.state_dict(), path)
    del built
    gc.collect()

    sam = load_sam("vit_b", path)
    state = sam.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in reference.items())
    assert not any(t.is_meta for t in [*sam.parameters(), *sam.buffers()])
    assert torch.equal(sam.pixel_mean, pixel_mean) and torch.equal(sam.pixel_std, pixel_std)
    with pytest.raises(WeightsError, match="vit_l"):
        load_sam("vit_l", path)
    del sam, state
    gc.collect()

    config = SamConfig(
        model_type="vit_b",
        checkpoint=path,
        points_per_side=2,
        pred_iou_thresh=-1e9,
        stability_thresh=0.0,
        score_thresh=-1e9,
    )
    proposer = config.setup("cpu")
    assert proposer.fingerprint() == config.fingerprint()
    found = proposer.propose(PICTURE)
    assert found.masks.shape[1:] == (48, 64) and len(found) >= 1
    assert set(found.levels) <= {0, 1, 2}


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["masked_crops", "dense"])
def test_open_clip_runs_from_a_local_file(tmp_path, mode):
    path = tmp_path / "clip.pt"
    torch.manual_seed(0)
    model = open_clip.create_model("ViT-B-16", pretrained=None)
    torch.save(model.state_dict(), path)
    embedder = OpenClipConfig(pretrained=str(path), region_mode=mode).setup("cpu")
    assert embedder.image_size == 224 and embedder.dim == 512
    assert embedder.mean == open_clip.OPENAI_DATASET_MEAN and embedder.std == open_clip.OPENAI_DATASET_STD
    masks = np.zeros((2, 48, 64), bool)
    masks[0, 10:30, 10:40], masks[1, :, 50:] = True, True
    regions = embedder.embed_regions(PICTURE, masks)
    np.testing.assert_allclose(np.linalg.norm(regions, axis=1), 1, atol=1e-4)
    phrases = ["a red mug", "duck"]
    with torch.no_grad():
        expected = model.eval().encode_text(open_clip.get_tokenizer("ViT-B-16")(phrases), normalize=True).numpy()
    np.testing.assert_allclose(embedder.embed_texts(phrases), expected, atol=1e-4)
    assert embedder.fingerprint() == OpenClipConfig(pretrained=str(path), region_mode=mode).fingerprint()


@pytest.mark.slow
def test_open_clip_file_of_another_architecture(tmp_path):
    path = tmp_path / "clip.pt"
    torch.save({"visual.proj": torch.zeros(2, 2)}, path)
    with pytest.raises(WeightsError, match="does not hold weights of ViT-B-16"):
        load_open_clip("ViT-B-16", str(path))
