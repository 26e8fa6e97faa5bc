"""How well an embedding answers a phrase: LERF's relevancy and class probabilities, pure functions on tensors.

Source of the definition: Kerr et al., "LERF: Language Embedded Radiance Fields", ICCV 2023, section 3.4.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

CANONICAL_NEGATIVES = ("object", "things", "stuff", "texture")
"""LERF's canonical phrases, what any pixel answers to a little; embedded verbatim, in LERF's order."""

DEFAULT_TEMPERATURE = 10.0
"""LERF's factor on cosine similarities. It is a multiplier (an inverse temperature): larger means sharper."""


def cosine_similarity(
    embeddings: Float[Tensor, "*batch C"], phrases: Float[Tensor, "T C"]
) -> Float[Tensor, "*batch T"]:
    """Cosine of every embedding with every phrase, in [-1, 1] up to rounding.

    Neither input needs unit length. A zero vector has no direction: its similarity is 0 to everything.
    Half-precision inputs are computed in float32, because a difference of two cosines is what matters later.

    Raises:
        ValueError: the two inputs have different numbers of channels, or ``phrases`` is not a matrix.
    """
    if phrases.ndim != 2 or embeddings.ndim < 1 or embeddings.shape[-1] != phrases.shape[-1]:
        raise ValueError(
            f"embeddings [..., C] and phrases [T, C] do not fit: {tuple(embeddings.shape)} and {tuple(phrases.shape)}"
        )
    dtype = torch.promote_types(torch.promote_types(embeddings.dtype, phrases.dtype), torch.float32)
    return _unit(embeddings.to(dtype)) @ _unit(phrases.to(dtype)).T


def pairwise_relevancy(
    embeddings: Float[Tensor, "*batch C"],
    phrases: Float[Tensor, "T C"],
    negatives: Float[Tensor, "K C"],
    temperature: float = DEFAULT_TEMPERATURE,
) -> Float[Tensor, "*batch T K"]:
    """Softmax of each phrase against each negative alone, in (0, 1); 0.5 is a tie.

    ``exp(t e.q) / (exp(t e.q) + exp(t e.n))`` is the sigmoid of ``t (e.q - e.n)``, which cannot overflow.

    Raises:
        ValueError: as :func:`cosine_similarity`.
    """
    positive = cosine_similarity(embeddings, phrases)
    negative = cosine_similarity(embeddings, negatives)
    return torch.sigmoid(temperature * (positive[..., :, None] - negative[..., None, :]))


def relevancy(
    embeddings: Float[Tensor, "*batch C"],
    phrases: Float[Tensor, "T C"],
    negatives: Float[Tensor, "K C"],
    temperature: float = DEFAULT_TEMPERATURE,
) -> Float[Tensor, "*batch T"]:
    """LERF relevancy in (0, 1): the smallest pairwise softmax of a phrase over the negatives.

    0.5 means "as close to the phrase as to the nearest negative". Each phrase is scored alone: other phrases never
    compete. All inputs are normalised here; a zero embedding, which answers nothing, gets 0.5. Equal to
    ``pairwise_relevancy(...).amin(-1)``, without the [..., T, K] intermediate.

    Raises:
        ValueError: as :func:`cosine_similarity`, or there is no negative (the minimum would be undefined).
    """
    if len(negatives) == 0:
        raise ValueError("relevancy needs at least one negative phrase")
    positive = cosine_similarity(embeddings, phrases)
    # The sigmoid rises monotonically, so the smallest pair is the one with the most similar negative.
    hardest = cosine_similarity(embeddings, negatives).amax(dim=-1, keepdim=True)
    return torch.sigmoid(temperature * (positive - hardest))


def class_probabilities(
    embeddings: Float[Tensor, "*batch C"],
    classes: Float[Tensor, "T C"],
    negatives: Float[Tensor, "K C"] | None = None,
    temperature: float = DEFAULT_TEMPERATURE,
) -> Float[Tensor, "*batch T"]:
    """Probability of each class of a list: softmax over the classes together with the negatives.

    The result has no column for the negatives: it sums to at most 1, and what is missing is the probability of
    "none of these classes". Without negatives it sums to 1.

    Raises:
        ValueError: as :func:`cosine_similarity`.
    """
    logits = cosine_similarity(embeddings, classes)
    if negatives is not None and len(negatives):
        logits = torch.cat([logits, cosine_similarity(embeddings, negatives)], dim=-1)
    return torch.softmax(temperature * logits, dim=-1)[..., : len(classes)]


def _unit(vectors: Tensor) -> Tensor:
    # The tiny eps keeps zero vectors at zero and still normalises vectors as short as 1e-10.
    return F.normalize(vectors, dim=-1, eps=1e-12)
