"""Closed-form mask features against loops, and on a scene where the right answer is known."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from maskfield_ns.splatting import accumulate, rasterize_features
from maskfield_ns.systems.mask_field.closed_form import neighbours, pixel_codes, solve_features
from maskfield_ns.systems.query_head import spread_codes

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"


def test_pixel_codes_against_a_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    queries, levels = torch.tensor([4, 1, 2, 4]), torch.tensor([0, 0, 1, 0])
    codes = torch.randn(5, 6, generator=generator)
    masks = torch.rand(4, 9, generator=generator) * (torch.rand(4, 9, generator=generator) > 0.4)
    belief = torch.tensor([1.0, 4.0, 2.0, 3.0])
    image, covered = pixel_codes(codes, queries, levels, masks, belief, num_levels=3)
    for pixel in range(9):
        expected = torch.zeros(6)
        for level in range(3):
            own = [k for k in range(4) if levels[k] == level]
            cover = max((masks[k, pixel].item() for k in own), default=0.0)
            assert covered[pixel, level].item() == pytest.approx(cover)
            total = sum(masks[k, pixel].item() * belief[k].item() for k in own)
            for k in own:
                if total > 0:
                    expected += cover * masks[k, pixel] * belief[k] / total * codes[queries[k]]
        torch.testing.assert_close(image[pixel], expected)


def test_features_are_weighted_means_and_fade_without_evidence() -> None:
    sums = torch.tensor([[2.0, 4.0, 0.0, 0.0], [0.1, 0.0, 3.0, 3.0], [0.0, 0.0, 0.0, 0.0]])
    covered, seen = torch.tensor([[2.0, 0.0], [0.1, 3.0], [0.0, 0.0]]), torch.tensor([2.0, 10.0, 0.0])
    features = solve_features(sums, covered, seen, min_share=0.2)
    torch.testing.assert_close(features[0], torch.tensor([1.0, 2.0, 0.0, 0.0]))
    # Level 0 of the second is covered on a hundredth of what is seen: a twentieth of min_share.
    torch.testing.assert_close(features[1], torch.tensor([0.05, 0.0, 1.0, 1.0]))
    assert torch.equal(features[2], torch.zeros(4))


def test_neighbours_are_the_nearest_known_ones() -> None:
    positions = torch.rand(60, 3, generator=torch.Generator().manual_seed(1))
    known = torch.arange(60) % 3 != 0
    unknown, nearest = neighbours(positions, known, k=4)
    assert unknown.tolist() == list(range(0, 60, 3))
    for row, chosen in zip(unknown.tolist(), nearest.tolist(), strict=True):
        distance = (positions - positions[row]).norm(dim=1)
        distance[~known] = float("inf")
        assert sorted(chosen) == sorted(distance.argsort()[:4].tolist())
    few, nearest = neighbours(positions, torch.arange(60) < 2, k=8)
    assert len(few) == 58 and nearest.shape == (58, 2)
    for mask in (torch.ones(60, dtype=torch.bool), torch.zeros(60, dtype=torch.bool)):
        assert len(neighbours(positions, mask)[0]) == 0


def test_rendered_features_give_the_masks_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exact masks of blobs on a table, lifted in one pass and rendered from a view that was left out."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    from synthetic_scene import make_scene

    scene = make_scene(4000, 9, 8, (60, 80), torch.device("cpu"))
    sys.modules.pop("synthetic_scene", None)
    codes = spread_codes(scene.num_things, 16)
    sums, covered = torch.zeros(4000, 16), torch.zeros(4000, 1)
    seen = torch.zeros(4000)
    for v in range(7):
        view, target = scene.views[v], scene.targets[v]
        own = torch.from_numpy(target.levels == 0)
        masks = torch.from_numpy(target.dense()).flatten(1)[own]
        names = torch.from_numpy(target.__dict__["things"])[own]
        image, cover = pixel_codes(
            codes, names, torch.zeros(len(names), dtype=torch.long), masks, torch.ones(len(names)), 1
        )
        more, weights = accumulate(view, torch.cat([image, cover], 1).unflatten(0, (60, 80)))
        sums, covered, seen = sums + more[:, :16], covered + more[:, 16:], seen + weights
    # What is left to be desired is the scene's fuzziness, not the features': knowing every Gaussian is hardly better.
    ours = iou_with_masks(scene, solve_features(sums, covered, seen), codes)
    ideal = iou_with_masks(scene, codes[scene.thing_of], codes)
    assert ours > 0.6
    assert ours > 0.93 * ideal


def iou_with_masks(scene: Any, features: torch.Tensor, codes: torch.Tensor) -> float:
    """Mean IoU of the last view's masks with the pixels whose rendered feature is nearest to the thing's code."""
    rendered, alpha = rasterize_features(scene.views[7], features)
    best = (F.normalize(rendered, dim=-1) @ codes.T).argmax(-1).numpy()
    target, ious = scene.targets[7], []
    for mask, name, level in zip(target.dense() > 0, target.__dict__["things"], target.levels, strict=True):
        if level == 0:
            predicted = (best == name) & (alpha[..., 0] > 0.5).numpy()
            ious.append((predicted & mask).sum() / (predicted | mask).sum())
    assert len(ious) >= 6
    return float(sum(ious) / len(ious))
