"""Asking with pictures and clicks: which queries mean the same as an image embedding, and what a clicked thing is."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from maskfield_ns.answers.assignments import Memberships
from maskfield_ns.answers.decision import DecisionRule

SAME_THING = 0.4
"""Likeness from which parts under a click are taken for one thing. Best of 0.33 to 0.73 on two rendered scenes."""


def likeness(
    embeddings: Float[Tensor, "Q C"], valid: Bool[Tensor, " Q"], examples: Float[Tensor, "T C"]
) -> Float[Tensor, "T Q"]:
    """How much queries look like examples: 1 the same, 0 as much as any two things of the scene.

    Image embeddings of unrelated things are alike to a degree that depends on the model, so cosines mean little until
    they are compared with those among the scene's own queries (their median). Without labels, for any model.
    """
    unit = F.normalize(embeddings.float(), dim=-1)
    examples = F.normalize(examples.to(unit), dim=-1)
    own = unit[valid]
    pairs = (own @ own.T)[~torch.eye(len(own), dtype=torch.bool, device=own.device)]
    usual = pairs.median().clamp(max=0.95) if len(pairs) else pairs.new_zeros(())
    return (examples @ unit.T - usual) / (1 - usual)


def patch_relevancy(
    embeddings: Float[Tensor, "Q C"], valid: Bool[Tensor, " Q"], patches: Float[Tensor, "T C"], rule: DecisionRule
) -> Float[Tensor, "T Q"]:
    """Relevancy of every query to image patches, in [0, 1] on the scale of a phrase's; 0 for invalid queries.

    Words cannot be a patch's negatives (any picture is closer to a picture than words are), so 0.5 means half way
    between any two things and the very same.
    """
    return torch.sigmoid(rule.temperature * (likeness(embeddings, valid, patches) - 0.5)) * valid


def thing_at(
    view: Memberships,
    row: int,
    column: int,
    embeddings: Float[Tensor, "Q C"],
    valid: Bool[Tensor, " Q"],
    rule: DecisionRule,
) -> tuple[Bool[Tensor, " Q"], Bool[Tensor, "H W"]]:
    """The thing under a pixel: its queries, and its mask in this view; both empty where nothing is.

    Levels often cut a thing differently. So: what the pixel may belong to has a meaning (the mean of the queries'
    embeddings by share); the queries of like meaning are one heap; the connected part of the heap under the pixel is
    the thing, and queries that lie mostly in it are its own.
    """
    none = torch.zeros_like(valid), torch.zeros(view.size, dtype=torch.bool, device=valid.device)
    unit = F.normalize(embeddings.float(), dim=-1)
    meaning = torch.zeros_like(unit[0])
    pixel = row * view.size[1] + column
    for part in view.by_level:
        entries = slice(*torch.searchsorted(part.pixels, part.pixels.new_tensor([pixel, pixel + 1])).tolist())
        queries = part.queries[entries].long()
        meaning += ((part.shares[entries] * valid[queries])[:, None] * unit[queries]).sum(0)
    if not meaning.any():
        return none
    alike = (likeness(embeddings, valid, meaning[None])[0] >= SAME_THING) & valid
    heap = view.heat(alike[None].float(), rule)[0] > 0.5
    thing = connected_part(heap, row, column)
    if not thing.any():
        return none
    inside = thing.flatten()
    queries = torch.zeros_like(valid)
    for part in view.by_level:
        sure = part.best_share > 0.5
        everywhere = torch.bincount(part.best[sure].long(), minlength=len(valid))
        here = torch.bincount(part.best[sure & inside].long(), minlength=len(valid))
        queries |= (here > 0.5 * everywhere) & alike
    return queries, thing


def connected_part(mask: Bool[Tensor, "H W"], row: int, column: int) -> Bool[Tensor, "H W"]:
    """The pixels of a mask that are connected (by edges) to one of them; none where that pixel is outside."""
    from scipy import ndimage

    if not mask[row, column]:
        return torch.zeros_like(mask)
    labelled: Any = ndimage.label(mask.cpu().numpy())
    parts = labelled[0]
    return torch.from_numpy(parts == parts[row, column]).to(mask.device)
