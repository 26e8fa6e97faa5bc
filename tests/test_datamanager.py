"""The datamanager on a small synthetic capture, with foundation models that are a few lines of arithmetic."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import yaml
from captures import make_capture, read_transforms, write_image, write_transforms
from nerfstudio.cameras.camera_optimizers import CameraOptimizerConfig
from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManagerConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.data.datasets.base_dataset import InputDataset
from nerfstudio.models.nerfacto import NerfactoModel, NerfactoModelConfig
from nerfstudio.pipelines.base_pipeline import VanillaPipelineConfig
from PIL import Image

from maskfield_ns import compat
from maskfield_ns.data.datamanager import MaskfieldDataManager, MaskfieldDataManagerConfig
from maskfield_ns.data.mask_source import extract
from maskfield_ns.data.mask_views import MaskViews, reduce_masks
from maskfield_ns.data.run_info import RunInfo
from maskfield_ns.errors import CacheError, CaptureError
from maskfield_ns.foundation.base import EmbedderConfig, ProposerConfig
from maskfield_ns.foundation.config import RegionsConfig
from maskfield_ns.foundation.protocols import MaskProposals, mask_boxes

SEEN: list[tuple[str, tuple[int, ...]]] = []
"""What the fake models were shown: (who, image shape)."""


@dataclass(frozen=True)
class RedConfig(ProposerConfig):
    """Proposes what is red (a whole), its left half (a part), and one pixel (a subpart)."""

    nothing: bool = False

    def fingerprint(self) -> dict[str, Any]:
        return {"name": "red", "nothing": self.nothing}

    def setup(self, device: Any) -> RedProposer:
        return RedProposer(self)


@dataclass
class RedProposer:
    config: RedConfig

    def fingerprint(self) -> dict[str, Any]:
        return self.config.fingerprint()

    def propose(self, image: np.ndarray) -> MaskProposals:
        SEEN.append(("proposer", image.shape))
        red = image[..., 0] > 128
        half, dot = red.copy(), np.zeros_like(red)
        half[:, red.shape[1] // 2 :] = False
        dot[0, 0] = True
        masks = np.stack([dot, half, red])[: 0 if self.config.nothing else 3]
        count = len(masks)
        scores = np.full(count, 0.8, np.float32)
        return MaskProposals(
            masks, np.arange(count, dtype=np.int8), scores, np.full(count, 0.5, np.float32), mask_boxes(masks)
        )


@dataclass(frozen=True)
class AreaConfig(EmbedderConfig):
    """Embeds regions by whether they are larger than a pixel."""

    dim: ClassVar[int] = 3

    def fingerprint(self) -> dict[str, Any]:
        return {"name": "area"}

    def setup(self, device: Any) -> AreaEmbedder:
        return AreaEmbedder()


class AreaEmbedder:
    dim = 3

    def fingerprint(self) -> dict[str, Any]:
        return {"name": "area"}

    def embed_texts(self, texts: list[str]) -> np.ndarray:
        return np.eye(3, dtype=np.float32)[[len(text) % 3 for text in texts]]

    def embed_regions(self, image: np.ndarray, masks: np.ndarray) -> np.ndarray:
        SEEN.append(("embedder", image.shape))
        return np.eye(3, dtype=np.float32)[np.where(masks.sum((1, 2)) > 1, 2, 0)]


@pytest.fixture(autouse=True)
def forget() -> None:
    SEEN.clear()
    torch.manual_seed(0)


def config_for(capture: Path, **options: Any) -> MaskfieldDataManagerConfig:
    parser = options.pop("dataparser", {})
    defaults: dict[str, Any] = {
        "proposer": RedConfig(),
        "embedder": AreaConfig(),
        "mask_start": 2,
        "mask_max_side": 20,
        "train_num_rays_per_batch": 16,
        "eval_num_rays_per_batch": 16,
    }
    return MaskfieldDataManagerConfig(
        data=capture, dataparser=NerfstudioDataParserConfig(**parser), **(defaults | options)
    )


def build(capture: Path, mode: str = "val", **options: Any) -> MaskfieldDataManager:
    return config_for(capture, **options).setup(test_mode=mode)


def test_training_serves_colours_then_views(tmp_path: Path) -> None:
    manager = build(make_capture(tmp_path))
    rays, batch = manager.next_train(1)
    assert rays.shape == (16,)
    assert batch["image"].shape == (16, 3)
    assert "mask_view" not in batch
    rays, batch = manager.next_train(2)
    assert rays.shape == (15 * 20,)
    assert "image" not in batch
    assert batch["indices"].shape == (15 * 20, 3)
    assert (batch["indices"][:, 0] == batch["mask_view"]).all()
    assert manager.get_train_rays_per_batch() == 16
    assert manager.next_eval(5)[1]["image"].shape == (16, 3)
    assert manager.next_eval_image(5)[1]["image"].shape == (30, 40, 3)


def test_targets_are_the_cached_masks_on_the_grid(tmp_path: Path) -> None:
    manager = build(make_capture(tmp_path))
    views = manager.mask_views
    assert isinstance(views, MaskViews)
    assert (len(views), views.num_masks, views.embedding_dim) == (6, 12, 3)
    view = views[4]
    assert view.levels.tolist() == [1, 2]  # the one-pixel subpart is under a cell and dropped
    np.testing.assert_allclose(view.scores, 0.4, rtol=1e-3)
    np.testing.assert_allclose(view.embeddings, [[0, 0, 1]] * 2, atol=1e-3)
    with Image.open(manager.train_dataset.image_filenames[4]) as image:
        red = np.asarray(image)[..., 0] > 128
    np.testing.assert_allclose(view.dense()[1], red.reshape(15, 2, 20, 2).mean((1, 3)), atol=2e-3)
    assert view.areas[1] == pytest.approx(red.mean(), rel=1e-3)


def test_held_out_images_are_never_shown_to_the_models(tmp_path: Path) -> None:
    make_capture(tmp_path, held_out=None)
    meta = read_transforms(tmp_path)
    names = [frame["file_path"] for frame in meta["frames"]]
    for name in names[5:]:  # held out, and recognisable by its shape to the models
        write_image(tmp_path / name, 44, 30)
    camera = {key: meta.pop(key) for key in ("w", "h", "fl_x", "fl_y", "cx", "cy")}
    for frame in meta["frames"]:
        frame |= camera | ({"w": 44} if frame["file_path"] in names[5:] else {})
    meta |= {"train_filenames": names[:5], "val_filenames": names[5:6], "test_filenames": names[6:]}
    write_transforms(tmp_path, meta)
    manager = build(tmp_path)
    assert SEEN.count(("proposer", (30, 40, 3))) == 5
    assert all(shape == (30, 40, 3) for _, shape in SEEN)
    assert manager.train_view_names == names[:5]


def test_the_cache_is_built_once(tmp_path: Path) -> None:
    make_capture(tmp_path)
    first = build(tmp_path)
    assert (tmp_path / "maskfield_cache").is_dir()
    shown = len(SEEN)
    assert shown == 12
    again = build(tmp_path)
    assert len(SEEN) == shown
    assert again.mask_views is not None
    assert first.mask_views is not None
    for old, new in zip(first.mask_views, again.mask_views, strict=True):
        for name, array in vars(old).items():
            np.testing.assert_array_equal(getattr(new, name), array)
    build(tmp_path, cache_dir=tmp_path / "elsewhere")
    assert len(SEEN) == 2 * shown


def test_targets_are_reduced_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are kept beside the cache; what they depend on makes other files, and damage is mended."""
    first = build(make_capture(tmp_path)).mask_views
    made: list[tuple[int, int]] = []

    def reduce(*arguments: Any, grid: tuple[int, int], **options: Any) -> Any:
        made.append(grid)
        return reduce_masks(*arguments, grid=grid, **options)

    monkeypatch.setattr("maskfield_ns.data.mask_source.reduce_masks", reduce)
    again = build(tmp_path).mask_views
    assert made == []
    assert first is not None and again is not None
    for old, new in zip(first, again, strict=True):
        for name, array in vars(old).items():
            np.testing.assert_array_equal(getattr(new, name), array)
            assert getattr(new, name).dtype == array.dtype
    build(tmp_path, mask_max_side=10)
    assert len(made) == 6
    files = sorted((tmp_path / "maskfield_cache").rglob("*.targets"))
    assert len(files) == 12
    for file in files:
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
    build(tmp_path)
    assert len(made) == 12
    frame = read_transforms(tmp_path)["frames"][0]["file_path"]
    with Image.open(tmp_path / frame) as image:
        Image.fromarray(255 - np.asarray(image)).save(tmp_path / frame)
    build(tmp_path)
    assert len(made) == 13


def test_extraction_ahead_of_training_leaves_nothing_to_do(tmp_path: Path) -> None:
    report = extract(config_for(make_capture(tmp_path)), "cpu", progress=False)
    assert (report.total, report.built) == (6, 6)
    SEEN.clear()
    build(tmp_path)
    assert SEEN == []


def test_a_damaged_entry_is_made_again(tmp_path: Path) -> None:
    build(make_capture(tmp_path))
    entry = next((tmp_path / "maskfield_cache").rglob("*frame-03*.safetensors"))
    entry.write_bytes(entry.read_bytes()[:-9])
    SEEN.clear()
    assert build(tmp_path).mask_views is not None
    assert len(SEEN) == 2


@pytest.mark.parametrize("mode", ["test", "inference"])
def test_opening_a_run_needs_no_cache_and_no_models(tmp_path: Path, mode: str) -> None:
    manager = build(make_capture(tmp_path), mode)
    info = RunInfo.of(manager.train_dataset.metadata)
    assert SEEN == []
    assert not (tmp_path / "maskfield_cache").exists()
    assert info.mask_views is None
    assert info.embedding_dim is None
    assert info.eval_image_names == ("images/frame_02.png", "images/frame_05.png")
    assert manager.eval_image_name(1) == "images/frame_05.png"


def test_rays_go_through_cell_centres(tmp_path: Path) -> None:
    """At full resolution the grid's rays are nerfstudio's own rays of the whole image, distortion included."""
    manager = build(make_capture(tmp_path, k1=0.1, k2=-0.05, p1=0.01), mask_max_side=40)
    reference = manager.train_dataset.cameras.generate_rays(camera_indices=3, keep_shape=True)
    rays = manager.look(3)
    torch.testing.assert_close(rays.directions, reference.directions.reshape(-1, 3))
    torch.testing.assert_close(rays.origins, reference.origins.reshape(-1, 3))
    assert (rays.camera_indices == 3).all()
    coarse = build(tmp_path, mask_max_side=20)
    # The centre of a 2x2 block is half way between its pixels' rays, up to the curvature of the lens.
    block = reference.directions.reshape(15, 2, 20, 2, 3).mean(dim=(1, 3)).reshape(-1, 3)
    cosine = torch.nn.functional.cosine_similarity(coarse.look(3).directions, block)
    assert cosine.min() > 1 - 1e-5


def test_view_order_depends_on_seed_and_step_alone(tmp_path: Path) -> None:
    make_capture(tmp_path)
    manager = build(tmp_path)
    order = [manager.mask_view_at(step) for step in range(2, 2 + 24)]
    for epoch in range(4):
        assert sorted(order[6 * epoch : 6 * epoch + 6]) == list(range(6))
    assert len({tuple(order[i : i + 6]) for i in range(0, 24, 6)}) > 1
    resumed = build(tmp_path)
    resumed.next_train(0)
    assert [resumed.mask_view_at(step) for step in range(10, 26)] == order[8:]
    assert int(resumed.next_train(11)[1]["mask_view"]) == order[9]
    torch.manual_seed(7)
    assert [build(tmp_path).mask_view_at(step) for step in range(2, 26)] != order


def test_views_without_masks_are_passed_over_and_none_at_all_is_an_error(tmp_path: Path) -> None:
    make_capture(tmp_path)
    pixels = np.zeros((30, 40, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "images/frame_00.png")  # nothing red
    manager = build(tmp_path)
    assert {manager.mask_view_at(step) for step in range(2, 20)} == {1, 2, 3, 4, 5}
    with pytest.raises(CacheError, match="No masks were proposed in any of the 6 training images"):
        build(tmp_path, proposer=RedConfig(nothing=True))


def test_excluded_pixels_of_the_capture(tmp_path: Path) -> None:
    make_capture(tmp_path)
    meta = read_transforms(tmp_path)
    keep = np.zeros((30, 40), np.uint8)
    keep[:, :30] = 255
    (tmp_path / "masks").mkdir()
    for index, frame in enumerate(meta["frames"]):
        frame["mask_path"] = f"masks/{index}.png"
        Image.fromarray(keep).save(tmp_path / frame["mask_path"])
    write_transforms(tmp_path, meta)
    manager = build(tmp_path)
    assert manager.mask_views is not None
    np.testing.assert_array_equal(manager.mask_views[0].valid, np.arange(20)[None].repeat(15, 0) < 15)


def test_downscaled_copies_are_what_models_see(tmp_path: Path) -> None:
    make_capture(tmp_path)
    build(tmp_path)
    for index in range(8):
        write_image(tmp_path / "images_2" / f"frame_{index:02d}.png", 20, 15)
    SEEN.clear()
    manager = build(tmp_path, dataparser={"downscale_factor": 2})
    assert {shape for _, shape in SEEN} == {(15, 20, 3)}
    assert manager.train_view_names[0] == "images/frame_00.png"
    assert manager.mask_views is not None
    assert manager.mask_views[0].grid == (15, 20)
    SEEN.clear()
    build(tmp_path)  # neither size drives the other out of the cache
    assert SEEN == []
    with pytest.raises(CaptureError, match="no folder"):
        build(tmp_path, dataparser={"downscale_factor": 4})


def test_names_with_folders_spaces_and_unicode(tmp_path: Path) -> None:
    names = ["images/left/a b.png", "images/right/a b.png", "images/Küche 厨房.png", "x.png"]
    manager = build(make_capture(tmp_path, names, held_out=(3,)))
    assert sorted(manager.train_view_names) == sorted(names[:3])
    assert len([who for who, _ in SEEN if who == "proposer"]) == 3


@pytest.mark.parametrize("mode", ["val", "test"])
def test_broken_captures_are_refused_before_nerfstudio_reads_them(tmp_path: Path, mode: str) -> None:
    make_capture(tmp_path)
    (tmp_path / "images/frame_03.png").unlink()
    with pytest.raises(CaptureError, match="frame_03"):
        build(tmp_path, mode)
    with pytest.raises(CaptureError, match="No such capture"):
        build(tmp_path / "nowhere", mode)


def test_rendering_a_path_needs_no_images(tmp_path: Path) -> None:
    make_capture(tmp_path)
    shutil.rmtree(tmp_path / "images")
    assert len(build(tmp_path, "inference").train_dataset) == 6


def test_a_capture_without_held_out_images_trains_and_says_so_in_evaluation(tmp_path: Path) -> None:
    make_capture(tmp_path, held_out=None)  # fewer than ten images: nerfstudio keeps none for evaluation
    manager = build(tmp_path)
    assert len(manager.train_dataset) == 8
    manager.next_train(5)
    with pytest.raises(CaptureError, match="no held-out images"):
        next(iter(build(tmp_path, "test").fixed_indices_eval_dataloader))


def test_nerfstudios_shared_list_is_left_alone(tmp_path: Path) -> None:
    before = list(InputDataset.exclude_batch_keys_from_device)
    build(make_capture(tmp_path), "test", images_on_gpu=True, masks_on_gpu=True)
    assert InputDataset.exclude_batch_keys_from_device == before


def test_config_survives_nerfstudios_yaml(tmp_path: Path) -> None:
    config = config_for(tmp_path, proposer=RegionsConfig(sigma=1.5), cache_dir=tmp_path / "c")
    again = yaml.load(yaml.dump(config), Loader=yaml.Loader)
    assert again.get_proposer() == RegionsConfig(sigma=1.5)
    assert again.cache_dir == tmp_path / "c"
    assert config_for(tmp_path, proposer_kind="regions").get_proposer() == RegionsConfig()


def test_runs_saved_before_a_field_existed_can_be_opened(tmp_path: Path) -> None:
    """nerfstudio's yaml skips __init__, so a field's default must be found on the class."""
    inherited = {entry.name for entry in fields(VanillaDataManagerConfig)}
    own = {entry.name for entry in fields(MaskfieldDataManagerConfig)} - inherited
    saved = yaml.dump(config_for(tmp_path))
    old = yaml.load(saved, Loader=yaml.Loader)
    for name in own:
        del vars(old)[name]
    fresh = MaskfieldDataManagerConfig()
    assert {name: getattr(old, name) for name in own} == {name: getattr(fresh, name) for name in own}


# --- inside nerfstudio's pipeline -------------------------------------------------------------------------------------


@dataclass
class SmallModelConfig(NerfactoModelConfig):
    _target: type = field(default_factory=lambda: SmallModel)


class SmallModel(NerfactoModel):
    """Stands in for the real one: only what reaches a model is of interest here."""

    def populate_modules(self) -> None:
        with compat.lazy_lpips():
            super().populate_modules()


def test_the_pipeline_hands_the_views_to_the_model_itself(tmp_path: Path) -> None:
    model = SmallModelConfig(
        num_levels=2,
        log2_hashmap_size=8,
        num_proposal_iterations=1,
        num_proposal_samples_per_ray=(4,),
        num_nerf_samples_per_ray=4,
        camera_optimizer=CameraOptimizerConfig(mode="off"),
        implementation="torch",
    )
    pipeline = VanillaPipelineConfig(datamanager=config_for(make_capture(tmp_path)), model=model).setup(device="cpu")
    info = RunInfo.of(pipeline.model.kwargs["metadata"])
    assert info.mask_views is pipeline.datamanager.mask_views  # no copy
    assert info.embedding_dim == 3
    assert info.embedder == AreaConfig()
    assert info.capture_dir == tmp_path
    assert not [name for name in pipeline.state_dict() if "mask" in name or "lpips" in name]
    _, losses, _ = pipeline.get_train_loss_dict(0)
    assert torch.isfinite(losses["rgb_loss"])
