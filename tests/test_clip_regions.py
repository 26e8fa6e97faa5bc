"""Region and text embeddings: crops, dense features and the text cache, against OpenCLIP's own passes."""

import subprocess
import sys

import numpy as np
import open_clip
import pytest
import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg, CustomTextCLIP
from torch.nn import functional as F

from maskfield_ns.errors import WeightsError
from maskfield_ns.foundation.clip import ClipEmbedder, load_open_clip
from maskfield_ns.foundation.config import OpenClipConfig, TinyClipConfig
from maskfield_ns.foundation.crops import masked_crops
from maskfield_ns.foundation.dense import dense_features, pool_features
from maskfield_ns.foundation.protocols import RegionEmbedder

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def tokenizer(texts):
    rows = [[1 + ord(c) % 50 for c in text[:6]] for text in texts]
    return torch.tensor([row + [60] + [0] * (7 - len(row)) for row in rows])


def small_clip(kind=CLIP, **vision):
    torch.manual_seed(0)
    vision_cfg = CLIPVisionCfg(
        **{"layers": 3, "width": 32, "head_width": 8, "patch_size": 8, "image_size": 32, **vision}
    )
    text_cfg = CLIPTextCfg(context_length=8, vocab_size=61, width=24, heads=2, layers=2)
    model = kind(16, vision_cfg, text_cfg).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 and "logit" not in name:
                parameter.add_(0.1 * torch.randn_like(parameter))  # zero biases would hide a forgotten one
    return model


def embedder(model=None, **config):
    return ClipEmbedder(model or small_clip(), tokenizer, MEAN, STD, 32, OpenClipConfig(**config), {"name": "t"})


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)


def normalised(pixels):
    return (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


# --- crops --------------------------------------------------------------------------------------------------------


def test_crop_shows_the_region_centred_and_nothing_else():
    image = np.full((40, 60, 3), 255, np.uint8)
    image[10:20, 30:50] = (255, 0, 0)
    masks = np.zeros((1, 40, 60), bool)
    masks[0, 10:20, 30:50] = True
    crop = masked_crops(image, masks, 48, (0.0, 0.0, 1.0), margin=0.1)[0].numpy()
    # The box is 20 x 10, the square 24 pixels wide: factor 2, so the region spans 40 x 20 in the middle.
    expected = np.zeros((3, 48, 48), np.float32)
    expected[2] = 1
    expected[:, 14:34, 4:44] = np.array([1, 0, 0], np.float32)[:, None, None]
    inner = np.abs(crop - expected).max(0) < 1e-5
    assert inner[15:33, 5:43].all() and inner[:13].all() and inner[35:].all() and inner[:, :3].all()


def test_crop_of_the_same_size_is_the_picture(image):
    square = image[:32, :32]
    crop = masked_crops(square, np.ones((1, 32, 32), bool), 32, MEAN, margin=0.0)[0]
    np.testing.assert_allclose(crop.numpy(), square.transpose(2, 0, 1) / np.float32(255), atol=1e-6)


def test_shrinking_averages_instead_of_skipping():
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = 255
    crop = masked_crops(stripes, np.ones((1, 256, 256), bool), 16, MEAN, margin=0.0)
    assert (crop - 0.5).abs().max() < 0.02


def test_odd_masks(image):
    masks = np.zeros((3, 48, 64), bool)
    masks[1, 47, 63] = True  # a single pixel in the corner
    masks[2, 5] = True  # a line across
    crops = masked_crops(image, masks, 16, (0.1, 0.2, 0.3))
    assert torch.equal(crops[0], torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1).expand(3, 16, 16))
    np.testing.assert_allclose(crops[1, :, 8, 8].numpy(), image[47, 63] / 255, atol=1e-5)
    assert crops.shape == (3, 3, 16, 16) and crops.isfinite().all()
    assert masked_crops(image, masks[:0], 16, MEAN).shape == (0, 3, 16, 16)


# --- regions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [CLIP, CustomTextCLIP])
def test_region_is_embedded_like_its_crop_by_open_clip(kind, image):
    model = small_clip(kind)
    masks = np.zeros((5, 48, 64), bool)
    for k in range(5):
        masks[k, 4 * k : 4 * k + 12, 8 * k : 8 * k + 20] = True
    found = embedder(model, batch_size=2).embed_regions(image, masks)
    with torch.no_grad():
        expected = model.encode_image(normalised(masked_crops(image, masks, 32, MEAN)), normalize=True).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


def test_only_the_region_matters(image):
    masks = np.zeros((1, 48, 64), bool)
    masks[0, 10:30, 10:30] = True
    changed = image.copy()
    changed[~masks[0]] = 255 - changed[~masks[0]]
    e = embedder()
    np.testing.assert_array_equal(e.embed_regions(image, masks), e.embed_regions(changed, masks))


@pytest.mark.parametrize("mode", ["masked_crops", "dense"])
def test_no_regions(image, mode):
    found = embedder(region_mode=mode).embed_regions(image, np.zeros((0, 48, 64), bool))
    assert found.shape == (0, 16) and found.dtype == np.float32


def test_whole_image_is_padded_not_cut(image):
    e = embedder()
    assert isinstance(e, RegionEmbedder)
    square = image[:32, :32]
    with torch.no_grad():
        pixels = torch.from_numpy(square).permute(2, 0, 1)[None] / 255
        expected = e.model.encode_image(normalised(pixels), normalize=True)[0].numpy()
    np.testing.assert_allclose(e.embed_image(square), expected, atol=1e-5)
    changed = image.copy()
    changed[:, 0] = 0  # the outermost column of a wide picture counts
    assert np.abs(e.embed_image(image) - e.embed_image(changed)).max() > 1e-4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("mode", ["masked_crops", "dense"])
def test_cuda_agrees_with_the_cpu(image, mode):
    masks = np.zeros((2, 48, 64), bool)
    masks[0, 10:30, 10:30], masks[1, 20:] = True, True
    on_cpu = embedder(region_mode=mode).embed_regions(image, masks)
    on_cuda = embedder(small_clip().cuda(), region_mode=mode).embed_regions(image, masks)
    np.testing.assert_allclose(on_cuda, on_cpu, atol=5e-3)


# --- dense --------------------------------------------------------------------------------------------------------


def dense_by_self_attention(model, pixels):
    """An attention in which every token sees only itself is the value path: OpenCLIP's own modules, own masking."""
    visual = model.visual
    x = visual._embeds(pixels)
    for block in visual.transformer.resblocks[:-1]:
        x = block(x)
    last = visual.transformer.resblocks[-1]
    only_self = torch.full((x.shape[1], x.shape[1]), float("-inf")).fill_diagonal_(0.0)
    x = last.ls_1(last.attention(last.ln_1(x), attn_mask=only_self))
    return F.normalize(visual.ln_post(x)[:, 1:] @ visual.proj, dim=-1)


@pytest.mark.parametrize("vision", [{}, {"ls_init_value": 0.1}, {"patch_dropout": 0.5}, {"no_ln_pre": True}])
def test_dense_features_are_the_value_path(vision):
    model = small_clip(**vision)
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        found = dense_features(model.visual, pixels)
        expected = dense_by_self_attention(model, pixels)
    assert found.shape == (2, 16, 4, 4)
    np.testing.assert_allclose(found.flatten(2).transpose(1, 2).numpy(), expected.numpy(), atol=2e-5)


def test_dense_features_of_another_aspect_ratio(image):
    e = embedder(region_mode="dense")
    features = e.dense_map(image)  # 48 x 64 -> 32 x 43 -> 4 x 5 patches of 8
    assert features.shape == (16, 4, 5)
    np.testing.assert_allclose(features.norm(dim=0).cpu().numpy(), 1, atol=1e-5)


def test_pooling_is_a_mean_over_the_mask():
    features = torch.zeros(3, 2, 4)
    features[0, :, :2], features[1, :, 2:] = 1.0, 1.0
    masks = torch.zeros(3, 200, 400, dtype=torch.bool)
    masks[0, :, :100], masks[1, :, 300:], masks[2] = True, True, True
    pooled = pool_features(features, masks)
    np.testing.assert_allclose(pooled.numpy(), [[1, 0, 0], [0, 1, 0], [0.5**0.5, 0.5**0.5, 0]], atol=1e-2)
    speck = torch.zeros(1, 200, 400, dtype=torch.bool)
    speck[0, 17, 390] = True
    np.testing.assert_allclose(pool_features(features, speck).numpy(), [[0, 1, 0]], atol=1e-5)


def test_dense_regions_are_unit_and_local():
    image = np.zeros((32, 32, 3), np.uint8)
    image[:, 16:] = 255
    masks = np.zeros((2, 32, 32), bool)
    masks[0, :, :8], masks[1, :, 24:] = True, True
    found = embedder(region_mode="dense").embed_regions(image, masks)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    assert found[0] @ found[1] < 0.99


def test_dense_features_of_a_resnet_pool_one_place():
    """Of a map with one place the attention pooling with a single key is the value path itself."""
    model = small_clip(layers=(1, 1, 1, 1), width=8)
    visual = model.visual
    pixels = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        found = dense_features(visual, pixels)
        maps = visual.layer4(visual.layer3(visual.layer2(visual.layer1(visual.stem(pixels)))))
        assert found.shape == (2, 16, 2, 3) == (2, 16, *maps.shape[2:])
        visual.attnpool.positional_embedding.zero_()
        for row in range(2):
            for column in range(3):
                alone = maps[:, :, row : row + 1, column : column + 1]
                expected = F.normalize(visual.attnpool(alone), dim=-1)
                np.testing.assert_allclose(found[:, :, row, column].numpy(), expected.numpy(), atol=1e-5)


def test_dense_map_of_a_resnet_sees_more_than_its_input_size(image):
    e = embedder(small_clip(layers=(1, 1, 1, 1), width=8), region_mode="dense")
    assert e.dense_map(image).shape == (16, 4, 5)  # 48 x 64 -> 128 x 171, reduced 32-fold


def test_dense_needs_a_tower_it_can_take_apart():
    model = small_clip(layers=(1, 1, 1, 1), width=8)
    model.visual.attnpool = None
    with pytest.raises(WeightsError, match="masked_crops"):
        embedder(model, region_mode="dense")


# --- text ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [CLIP, CustomTextCLIP])
def test_phrases_match_open_clip_in_any_order_and_batch(kind):
    model = small_clip(kind)
    e = embedder(model, batch_size=2)
    phrases = ["red mug", "duck", "red mug", "a", "tray"]
    with torch.no_grad():
        expected = model.encode_text(tokenizer(phrases), normalize=True).numpy()
    np.testing.assert_allclose(e.embed_texts(phrases), expected, atol=1e-5)
    np.testing.assert_allclose(e.embed_texts(phrases[::-1]), expected[::-1], atol=1e-5)
    assert e.dim == 16
    assert e.embed_texts([]).shape == (0, 16)


def test_known_phrases_are_not_encoded_again(monkeypatch):
    e = embedder()
    first = e.embed_texts(["duck", "mug"])
    seen = []
    encode = e.model.encode_text
    monkeypatch.setattr(e.model, "encode_text", lambda tokens: seen.append(len(tokens)) or encode(tokens))
    np.testing.assert_array_equal(e.embed_texts(["mug", "duck"]), first[::-1])
    e.embed_texts(["mug", "new"])
    assert seen == [1]


def test_text_cache_is_bounded_and_forgets_the_oldest(monkeypatch):
    monkeypatch.setattr("maskfield_ns.foundation.clip.TEXT_CACHE_SIZE", 2)
    e = embedder()
    found = e.embed_texts(["a", "b", "c", "d"])
    assert found.shape == (4, 16)
    assert list(e._texts) == ["c", "d"]
    np.testing.assert_allclose(e.embed_texts(["a"])[0], found[0], atol=1e-6)


# --- loading and configs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "pretrained", "says"),
    [
        ("ViT-B-61", "laion2b_s34b_b88k", "did you mean"),
        ("ViT-B-16", "laion9b", "laion2b_s34b_b88k"),
        ("ViT-B-16", "nowhere/weights.pt", "no weight file"),
        ("ViT-B-16", "weights.safetensors", "no weight file"),
    ],
)
def test_wrong_names_are_explained_at_once(model, pretrained, says):
    with pytest.raises(WeightsError, match=says):
        load_open_clip(model, pretrained)


def test_offline_is_explained(monkeypatch):
    def offline(*args, **kwargs):
        raise FileNotFoundError("Failed to download file (open_clip_pytorch_model.bin)")

    monkeypatch.setattr(open_clip, "create_model", offline)
    with pytest.raises(WeightsError) as error:
        load_open_clip("ViT-B-16", "laion2b_s34b_b88k")
    for part in ("laion2b_s34b_b88k", "598 MB", "`pretrained`", "maskfield-lite"):
        assert part in str(error.value)


def test_openai_weights_get_their_activation(monkeypatch):
    seen = {}
    monkeypatch.setattr(
        open_clip, "create_model", lambda *a, **k: seen.update(k) or (_ for _ in ()).throw(OSError("x"))
    )
    for tag, expected in (("openai", True), ("laion2b_s34b_b88k", False)):
        with pytest.raises(WeightsError):
            load_open_clip("ViT-B-16", tag)
        assert seen["force_quick_gelu"] is expected


def test_fingerprints_say_what_changes_embeddings(tmp_path):
    base = OpenClipConfig()
    assert base.fingerprint() == OpenClipConfig(batch_size=1).fingerprint()
    assert base.fingerprint() != OpenClipConfig(region_mode="dense").fingerprint()
    assert base.fingerprint() != OpenClipConfig(pretrained="openai").fingerprint()
    a, b, c = (tmp_path / name for name in ("a.pt", "b.pt", "c.pt"))
    a.write_bytes(b"1"), b.write_bytes(b"1"), c.write_bytes(b"2")
    prints = [OpenClipConfig(pretrained=str(path)).fingerprint() for path in (a, b, c)]
    assert prints[0] == prints[1] != prints[2]
    assert str(tmp_path) not in str(prints)
    tiny = [TinyClipConfig(weights=path).fingerprint() for path in (a, b, c)]
    assert tiny[0] == tiny[1] != tiny[2]
    e = ClipEmbedder(small_clip(), tokenizer, MEAN, STD, 32, base, base.identity())
    assert e.fingerprint() == base.fingerprint()


def test_configs_import_nothing_heavy():
    code = (
        "import sys, maskfield_ns.foundation.config as c;"
        "c.SamConfig().fingerprint(); c.OpenClipConfig().fingerprint();"
        "c.RegionsConfig().fingerprint();"
        "print([m for m in ('torch', 'segment_anything', 'open_clip', 'skimage', 'scipy', 'nerfstudio') "
        "if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
