"""Dense features: the decoder, the code book, and what is taught; against loops and scikit-learn."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.cluster import KMeans
from sklearn.decomposition import TruncatedSVD

from maskfield_ns.answers.ask import ask
from maskfield_ns.answers.decision import DecisionRule
from maskfield_ns.answers.render import answer_view, class_votes
from maskfield_ns.data.dense_maps import DenseMaps, on_grid
from maskfield_ns.data.mask_views import MaskViews, reduce_masks
from maskfield_ns.errors import CacheError, WeightsError
from maskfield_ns.systems.base import Space
from maskfield_ns.systems.dense.code_book import CodeBook, k_means, nearest
from maskfield_ns.systems.dense.system import DenseConfig, masks_as_maps, principal_directions

DIM = 6
GRID = (4, 6)


def blobs(seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(5, 8, generator=generator)
    return (centers[:, None] + 0.05 * torch.randn(5, 40, 8, generator=generator)).flatten(0, 1)


def test_k_means_is_as_good_as_scikit_learns() -> None:
    points = blobs()
    codes = k_means(points, 5)
    own = (points - codes[nearest(points, codes)]).square().sum()
    reference = KMeans(5, n_init=10, random_state=0).fit(points.numpy())
    assert float(own) == pytest.approx(reference.inertia_, rel=1e-3)


def test_k_means_finds_no_more_codes_than_there_are_points() -> None:
    assert len(k_means(torch.eye(3).repeat(4, 1), 9)) == 3
    assert len(k_means(torch.zeros(0, 4), 9)) == 0


def test_the_decoder_keeps_as_much_as_any_of_its_width() -> None:
    vectors = torch.nn.functional.normalize(blobs(), dim=-1)
    basis = principal_directions(vectors, 3)
    torch.testing.assert_close(basis @ basis.T, torch.eye(3))
    lost = (vectors - vectors @ basis.T @ basis).square().sum()
    reference = TruncatedSVD(3, algorithm="arpack", random_state=0).fit(vectors.double().numpy())
    kept = np.square(reference.singular_values_).sum()
    assert float(vectors.square().sum() - lost) == pytest.approx(kept, rel=1e-4)
    wide = principal_directions(vectors, 20)
    assert wide.shape == (20, 8) and not wide[8:].any()
    torch.testing.assert_close(vectors @ wide.T @ wide, vectors)


def views(count: int = 4) -> MaskViews:
    """Views with a thing on the left, another on the right, and one in the right one's corner; columns 2 are bare."""
    masks = np.zeros((3, *GRID), bool)
    masks[0, :, :2] = masks[1, :, 3:] = masks[2, :2, 4:] = True
    vectors = np.eye(DIM, dtype=np.float32)[:3]
    levels, scores = np.array([2, 2, 1], np.int8), np.array([1.0, 1.0, 0.5], np.float32)
    targets = [reduce_masks(masks, levels, scores, vectors, grid=GRID) for _ in range(count)]
    return MaskViews([f"{i}.png" for i in range(count)], targets, DIM)


def test_masks_teach_the_mean_of_what_covers_a_pixel() -> None:
    taught, known = masks_as_maps(views().tensors(0, "cpu"))
    taught, known = taught.unflatten(0, GRID), known.unflatten(0, GRID)
    assert known[:, 2].eq(0).all() and known[:, [0, 1, 3, 4, 5]].eq(1).all()
    torch.testing.assert_close(taught[3, 0], torch.eye(DIM)[0])
    corner = torch.tensor([0.0, 1.0, 0.5, 0, 0, 0])
    torch.testing.assert_close(taught[0, 5], corner / corner.norm(), atol=5e-3, rtol=0)


def fitted() -> tuple[CodeBook, torch.Tensor]:
    """The code book of a scene that was learnt perfectly, and the features of a view [h, w, D]."""
    system = DenseConfig(teacher="masks", feature_dim=4, num_codes=5).setup(DIM)
    found = views()
    empty = Space(lambda view: torch.zeros(0), 0, lambda view: system.targets(view, torch.device("cpu"))[0])
    assert "5 codes" not in system.begin(found, empty, resuming=False)  # there are only three kinds of pixels
    features = system.start(0, torch.device("cpu")).values
    losses, _ = system.losses(0, features)
    assert float(losses["feature_loss"]) < 1e-10
    system.end(empty)
    return system.query_head, features.unflatten(0, GRID)


def test_pixels_answer_by_what_they_decode_to_and_codes_agree() -> None:
    head, features = fitted()
    rule, negatives = DecisionRule(), torch.ones(1, DIM) / DIM**0.5
    active = ask(head, ["left", "right", "absent"], torch.eye(DIM)[[0, 1, 4]], negatives, rule)
    assert head.support.tolist()[:3] == [4, 4, 4] and int((head.support > 0).sum()) == 3
    answer = answer_view(features, head, active, torch.eye(DIM)[:3], rule)
    assert answer.masks[0][:, :2].all() and not answer.masks[0][:, 2:].any()
    assert answer.masks[1][2:, 3:].all() and not answer.masks[1][:, :3].any()
    assert not answer.masks[2].any()
    assert (answer.classes[:, :2] == 0).all() and (answer.classes[2:, 3:] == 1).all()
    assert (answer.classes[:, 2] == -1).all(), "nothing is known there"
    by_codes = head.probabilities(features.flatten(0, 1))
    expected = by_codes @ active.scores.T
    shown = features.flatten(0, 1).norm(dim=-1) > 0
    heat = torch.from_numpy(answer.relevancy).flatten(1).T
    torch.testing.assert_close(expected[shown], heat[shown], atol=0.02, rtol=0)


def test_classes_compete_by_a_soft_max_over_cosines() -> None:
    head, features = fitted()
    rule, classes, negatives = DecisionRule(), torch.eye(DIM)[:2], torch.eye(DIM)[5:]
    temperature = 10.0
    votes = class_votes(features[0, 0], head, classes, negatives, rule, temperature)
    cosines = np.array([1.0, 0.0, 0.0])  # of the left thing with both classes and the negative
    expected = np.exp(temperature * cosines)
    np.testing.assert_allclose(votes.numpy(), (expected / expected.sum())[:2], atol=1e-4)


class Painter:
    """An embedder whose map is the picture itself, made smaller."""

    dim = 3
    made = 0

    def fingerprint(self) -> dict:
        return {"name": "painter"}

    def embed_texts(self, texts: list[str]) -> np.ndarray:
        return np.zeros((len(texts), 3), np.float32)

    def dense_map(self, image: np.ndarray) -> torch.Tensor:
        Painter.made += 1
        return torch.from_numpy(image[::2, ::2].copy()).permute(2, 0, 1).float() / 255


def test_maps_are_made_once_and_named_when_damaged(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (8, 12, 3), np.uint8)
    image = tmp_path / "a.png"
    Image.fromarray(pixels).save(image)
    config = SimpleNamespace(fingerprint=lambda: {"name": "painter"}, setup=lambda device: Painter())
    Painter.made = 0
    for _ in range(2):
        maps = DenseMaps(tmp_path / "cache", config)  # type: ignore[arg-type]
        maps.build([image], "cpu")
    assert Painter.made == 1
    grid = on_grid(maps.read(image), (4, 6), None)
    np.testing.assert_allclose(grid.numpy(), pixels[::2, ::2].reshape(-1, 3) / 255, atol=1e-3)
    maps.path_of(image).write_bytes(b"torn")
    with pytest.raises(CacheError, match="delete it"):
        maps.read(image)
    other = SimpleNamespace(fingerprint=lambda: {"name": "words"}, setup=lambda device: object())
    with pytest.raises(WeightsError, match="teacher masks"):
        DenseMaps(tmp_path / "cache", other).build([image], "cpu")  # type: ignore[arg-type]
