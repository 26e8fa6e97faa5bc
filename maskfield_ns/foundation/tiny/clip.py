"""A small ``open_clip.model.CLIP``: 64 px crops, a compact vocabulary cut out of OpenCLIP's own BPE."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Int64
from torch import Tensor

from maskfield_ns.errors import WeightsError
from maskfield_ns.foundation.tiny import packaged_weights

if TYPE_CHECKING:
    from open_clip.model import CLIP

IMAGE_SIZE = 64
EMBED_DIM = 128
VISION_LAYERS = (2, 2, 2, 2)
VISION_WIDTH = 16
CONTEXT_LENGTH = 16
UNKNOWN_BUCKETS = 128
UNTRAINED_BUCKETS = (9, 11, 25, 38, 39, 43, 53, 55, 56, 65, 73, 98, 109, 110, 115, 120, 127)
"""Buckets that no word of the training met: what they would say of a picture is noise."""
_TRAINED_BUCKETS = tuple(sorted(set(range(UNKNOWN_BUCKETS)) - set(UNTRAINED_BUCKETS)))
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


class CompactTokenizer:
    """OpenCLIP's BPE with its 49,408 ids folded into a small table, so that the embedding matrix stays small.

    BPE ids of the training grammar keep rows of their own; every other id shares one of ``UNKNOWN_BUCKETS`` rows (not
    one of ``UNTRAINED_BUCKETS``), which training used for words that name nothing in a picture. Row 0 pads, the last
    two rows start and end a text (the end has the highest id because OpenCLIP pools the text tower at the arg-max id).
    """

    def __init__(self, known_ids: Sequence[int]) -> None:
        from open_clip.tokenizer import SimpleTokenizer

        self._bpe = SimpleTokenizer()
        self.known_ids = sorted(set(int(i) for i in known_ids))
        self._row = {bpe_id: row for row, bpe_id in enumerate(self.known_ids, start=1)}
        self._first_unknown = 1 + len(self.known_ids)
        self.sot = self._first_unknown + UNKNOWN_BUCKETS
        self.eot = self.sot + 1
        self.vocab_size = self.eot + 1

    @staticmethod
    def ids_of(texts: Iterable[str]) -> list[int]:
        """The BPE ids that occur in some texts: the argument of the constructor."""
        from open_clip.tokenizer import SimpleTokenizer

        bpe = SimpleTokenizer()
        return sorted({int(i) for text in texts for i in bpe.encode(bpe.clean_fn(text)) if i is not None})

    def encode(self, text: str) -> list[int]:
        """Rows of one text without start and end."""
        ids: list[int] = self._bpe.encode(self._bpe.clean_fn(text))
        return [self._row.get(i, self._first_unknown + _bucket(i)) for i in ids]

    def __call__(self, texts: str | list[str]) -> Int64[Tensor, "T L"]:
        """Token rows, padded with 0 and cut to the context length."""
        texts = [texts] if isinstance(texts, str) else texts
        tokens = torch.zeros(len(texts), CONTEXT_LENGTH, dtype=torch.long)
        for row, text in zip(tokens, texts, strict=True):
            ids = [self.sot, *self.encode(text)[: CONTEXT_LENGTH - 2], self.eot]
            row[: len(ids)] = torch.tensor(ids)
        return tokens


def _bucket(bpe_id: int) -> int:
    bucket = bpe_id % UNKNOWN_BUCKETS
    return _TRAINED_BUCKETS[bpe_id % len(_TRAINED_BUCKETS)] if bucket in UNTRAINED_BUCKETS else bucket


def build_tiny_clip(vocab_size: int) -> CLIP:
    """The architecture with random weights, on the CPU."""
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    return CLIP(
        embed_dim=EMBED_DIM,
        vision_cfg=CLIPVisionCfg(layers=VISION_LAYERS, width=VISION_WIDTH, image_size=IMAGE_SIZE),  # pyright: ignore[reportArgumentType]
        text_cfg=CLIPTextCfg(context_length=CONTEXT_LENGTH, vocab_size=vocab_size, width=96, heads=4, layers=2),
    )


def load_tiny_clip(
    weights: Path | None = None, device: str | torch.device = "cpu"
) -> tuple[CLIP, CompactTokenizer, tuple[float, ...], tuple[float, ...], int]:
    """The embedded CLIP with trained weights: (model, tokenizer, RGB mean, RGB std, input side in pixels).

    Raises:
        WeightsError: the file is missing or holds another architecture.
    """
    from safetensors.torch import load_file

    path = packaged_weights("tiny_clip", weights)
    try:
        state = load_file(path)
        tokenizer = CompactTokenizer(state.pop("tokenizer.known_ids").tolist())
        model = build_tiny_clip(tokenizer.vocab_size)
        model.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    except Exception as error:
        raise WeightsError(f"{path} does not hold weights of the embedded CLIP: {error}") from error
    return model.to(device).eval(), tokenizer, MEAN, STD, IMAGE_SIZE
