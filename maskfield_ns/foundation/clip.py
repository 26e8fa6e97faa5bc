"""Regions and phrases as vectors from OpenCLIP."""

from __future__ import annotations

import difflib
import pickle
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float32, UInt8
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from maskfield_ns.errors import WeightsError
from maskfield_ns.foundation.base import describe
from maskfield_ns.foundation.crops import masked_crops
from maskfield_ns.foundation.dense import dense_features, dense_input, pool_features, supports_dense
from maskfield_ns.foundation.weights import as_local_file
from maskfield_ns.startup import without_wandb

with without_wandb():
    import open_clip
    from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model

if TYPE_CHECKING:
    from maskfield_ns.foundation.config import OpenClipConfig, TinyClipConfig

Tokenizer = Callable[[list[str]], Tensor]
TEXT_CACHE_SIZE = 4096


class ClipEmbedder:
    """Embeds regions, pictures and phrases with any OpenCLIP model.

    Args:
        model: `open_clip` model, with or without a text tower of its own, on the device to use.
        tokenizer: phrases -> token ids [T, L].
        mean: RGB mean of the model's normalisation, for colours in [0, 1]; also fills what is outside a region.
        std: RGB standard deviation of the same.
        image_size: side of the model's square input in pixels.
        config: `region_mode` and `batch_size`.
        identity: name and weights, for the fingerprint.

    Raises:
        WeightsError: `region_mode="dense"` with an image tower that is neither a plain vision transformer nor a ResNet.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Tokenizer,
        mean: Sequence[float],
        std: Sequence[float],
        image_size: int,
        config: OpenClipConfig | TinyClipConfig,
        identity: Mapping[str, Any] | None = None,
    ) -> None:
        self.model: Any = model.eval()
        self.tokenizer = tokenizer
        self.mean, self.std, self.image_size = tuple(mean), tuple(std), image_size
        self.config = config
        self.identity = {"name": "open-clip"} if identity is None else dict(identity)
        if self.config.region_mode == "dense" and not supports_dense(self.model.visual):
            raise WeightsError(
                "region_mode 'dense' needs an OpenCLIP vision transformer (such as ViT-B-16) or ResNet as image tower, "
                f"not {type(model.visual).__name__}: use region_mode 'masked_crops' with this model"
            )
        self._texts: OrderedDict[str, Float32[np.ndarray, " C"]] = OrderedDict()
        self._dim: int | None = None

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    @property
    def dim(self) -> int:
        """C, the size of an embedding."""
        dim = self._dim
        if dim is None:
            dim = self._dim = int(self._encode_texts(["object"]).shape[1])
        return dim

    def fingerprint(self) -> dict[str, Any]:
        """JSON-serialisable description that changes when embeddings would."""
        return describe(self.identity, self.config)

    def embed_texts(self, texts: list[str]) -> Float32[np.ndarray, "T C"]:
        """Unit-length embeddings of phrases, taken verbatim; recently used phrases are remembered."""
        if not texts:
            return np.zeros((0, self.dim), np.float32)
        known = {text: self._texts[text] for text in texts if text in self._texts}
        new = list(dict.fromkeys(text for text in texts if text not in known))
        if new:
            known.update(zip(new, self._encode_texts(new), strict=True))
        for text in texts:
            self._texts[text] = known[text]
            self._texts.move_to_end(text)
        while len(self._texts) > TEXT_CACHE_SIZE:
            self._texts.popitem(last=False)
        return np.stack([known[text] for text in texts])

    def embed_regions(
        self, image: UInt8[np.ndarray, "H W 3"], masks: Bool[np.ndarray, "M H W"]
    ) -> Float32[np.ndarray, "M C"]:
        """Unit-length embeddings of the masked regions of one RGB picture."""
        if len(masks) == 0:
            return np.zeros((0, self.dim), np.float32)
        if self.config.region_mode == "dense":
            return self._pooled(image, masks)
        parts = []
        for start in range(0, len(masks), self.config.batch_size):
            batch = masks[start : start + self.config.batch_size]
            parts.append(
                self._encode_images(masked_crops(image, batch, self.image_size, self.mean, device=self.device))
            )
        return np.concatenate(parts)

    def embed_image(self, image: UInt8[np.ndarray, "H W 3"]) -> Float32[np.ndarray, " C"]:
        """Unit-length embedding of a whole RGB picture or patch, padded to a square, neither cut nor distorted."""
        everything = np.ones((1, *image.shape[:2]), bool)
        crops = masked_crops(image, everything, self.image_size, self.mean, margin=0.0, device=self.device)
        return self._encode_images(crops)[0]

    @torch.inference_mode()
    def dense_map(self, image: UInt8[np.ndarray, "H W 3"]) -> Float32[Tensor, "C h w"]:
        """Unit-length patch features of one RGB picture, in about its aspect ratio (see :mod:`.dense`).

        The shorter side becomes the model's input size, or four times that for a residual network.
        """
        side, (patch_rows, patch_columns) = dense_input(self.model.visual, self.image_size)
        scale = side / min(image.shape[:2])
        height = max(1, round(image.shape[0] * scale / patch_rows)) * patch_rows
        width = max(1, round(image.shape[1] * scale / patch_columns)) * patch_columns
        resized = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.array(resized)).to(self.device).permute(2, 0, 1)[None].float() / 255
        return dense_features(self.model.visual, self._normalise(pixels))[0]

    @torch.inference_mode()
    def _pooled(
        self, image: UInt8[np.ndarray, "H W 3"], masks: Bool[np.ndarray, "M H W"]
    ) -> Float32[np.ndarray, "M C"]:
        return pool_features(self.dense_map(image), torch.from_numpy(masks).to(self.device)).cpu().numpy()

    @torch.inference_mode()
    def _encode_images(self, pixels: Float32[Tensor, "B 3 S S"]) -> Float32[np.ndarray, "B C"]:
        features = self.model.encode_image(self._normalise(pixels))
        return F.normalize(features.float(), dim=-1).cpu().numpy()

    @torch.inference_mode()
    def _encode_texts(self, texts: list[str]) -> Float32[np.ndarray, "T C"]:
        parts = []
        for start in range(0, len(texts), self.config.batch_size):
            tokens = self.tokenizer(texts[start : start + self.config.batch_size]).to(self.device)
            parts.append(F.normalize(self.model.encode_text(tokens).float(), dim=-1).cpu().numpy())
        return np.concatenate(parts)

    def _normalise(self, pixels: Float32[Tensor, "B 3 H W"]) -> Float32[Tensor, "B 3 H W"]:
        mean = torch.tensor(self.mean, device=pixels.device).view(3, 1, 1)
        std = torch.tensor(self.std, device=pixels.device).view(3, 1, 1)
        return (pixels - mean) / std


def load_open_clip(
    model: str, pretrained: str, device: str | torch.device = "cpu"
) -> tuple[nn.Module, Tokenizer, tuple[float, ...], tuple[float, ...], int]:
    """An OpenCLIP model with its weights: (model, tokenizer, RGB mean, RGB std, input side in pixels).

    Args:
        model: architecture, as `open_clip.list_models()` names it.
        pretrained: tag of published weights, or the path of a local checkpoint.
        device: where to put the model.

    Raises:
        WeightsError: no such architecture, tag or file; the weights cannot be downloaded or do not fit.
    """
    name = model.replace("/", "-")
    if name not in open_clip.list_models():
        close = difflib.get_close_matches(name, open_clip.list_models(), n=3)
        hint = f"did you mean {' or '.join(close)}? " if close else ""
        raise WeightsError(f"OpenCLIP knows no model {model!r}: {hint}`open_clip.list_models()` has all names")
    local = as_local_file(pretrained)
    tags = list_pretrained_tags_by_model(name)
    if local is None and pretrained not in tags:
        known = ", ".join(tags) if tags else "none"
        raise WeightsError(
            f"OpenCLIP has no weights {pretrained!r} for {model} (it has: {known}): "
            "pass one of these, or the path of a local checkpoint"
        )
    quick_gelu = local is None and bool(get_pretrained_cfg(name, pretrained).get("quick_gelu", False))
    try:
        clip = open_clip.create_model(
            name,
            pretrained=pretrained if local is None else str(local),
            device=device,
            # The published weights know which activation they were trained with; the architecture's name may not.
            force_quick_gelu=quick_gelu,
        )
        tokenizer = open_clip.get_tokenizer(name)
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if local is not None:
            raise WeightsError(
                f"{local} does not hold weights of {model} ({reason}): expected an OpenCLIP checkpoint of this "
                "architecture; check `model` and the path"
            ) from error
        raise WeightsError(
            f"cannot download the OpenCLIP weights {pretrained!r} of {model}{_size_hint(name)}: {reason}\n"
            "Either pass the path of a local checkpoint as `pretrained`,\n"
            "or work offline with the embedded models: `ns-train maskfield-lite`."
        ) from error
    preprocess = open_clip.get_model_preprocess_cfg(clip)
    mean, std = preprocess["mean"], preprocess["std"]
    if local is not None:
        mean, std = _usual_normalisation(name, tags, mean, std)
    size = preprocess["size"]
    side = size if isinstance(size, int) else size[0]
    if not isinstance(size, int) and len(set(size)) != 1:
        raise WeightsError(f"{model} takes pictures of {size[0]} x {size[1]} pixels; only square inputs are supported")
    return clip.eval().requires_grad_(False), tokenizer, tuple(mean), tuple(std), side


def _usual_normalisation(
    name: str, tags: list[str], mean: Sequence[float], std: Sequence[float]
) -> tuple[Sequence[float], Sequence[float]]:
    """A local file does not say how pictures were normalised: if all published weights of the model agree, as they."""
    published = [get_pretrained_cfg(name, tag) for tag in tags]
    used = {(tuple(cfg.get("mean") or mean), tuple(cfg.get("std") or std)) for cfg in published}
    return used.pop() if len(used) == 1 else (mean, std)


def _size_hint(name: str) -> str:
    """`` (599 MB)``: the size of the float32 weights, from the architecture alone; empty if that cannot be told."""
    config = open_clip.get_model_config(name) or {}
    if not {"embed_dim", "vision_cfg", "text_cfg"} <= config.keys() or "hf_model_name" in config["text_cfg"]:
        return ""
    try:
        with torch.device("meta"):
            clip = open_clip.CLIP(config["embed_dim"], config["vision_cfg"], config["text_cfg"])
    except Exception:  # only a hint: an architecture this class cannot build has no size here
        return ""
    return f" ({sum(p.numel() for p in clip.parameters()) * 4 / 1e6:,.0f} MB)"
