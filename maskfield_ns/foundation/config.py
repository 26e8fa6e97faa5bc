"""Which foundation models to use, as plain values.

These dataclasses sit inside nerfstudio's method configs: nerfstudio writes them to ``config.yml`` by import path and
tyro shows them as ``--help``. So they live in this module for good, they are frozen (an instance can be another
config's default), and nothing heavy is imported until :meth:`setup` is called.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from maskfield_ns.foundation.base import EmbedderConfig, ProposerConfig, describe

if TYPE_CHECKING:
    import torch

    from maskfield_ns.foundation.protocols import MaskProposer, RegionEmbedder


@dataclass(frozen=True)
class MaskGeneratorConfig(ProposerConfig):
    """How SAM is asked for every mask of a picture: a grid of point prompts, three masks each, then filters."""

    _speed_only: ClassVar[tuple[str, ...]] = ("points_per_batch",)

    points_per_side: int = 32
    """Point prompts along each side of the picture; their number is the square of it."""
    points_per_batch: int = 64
    """Prompts decoded at once: memory against speed, no effect on the masks."""
    crop_n_layers: int = 0
    """Look again at crops of the picture, 4^i of them in layer i, where small things are larger; 0: do not."""
    crop_overlap_ratio: float = 512 / 1500
    """How much the crops of the first layer overlap, as a share of the picture's shorter side."""
    crop_n_points_downscale_factor: int = 1
    """In layer i the points along each side are divided by this to the power i."""
    pred_iou_thresh: float = 0.7
    """Drop masks whose predicted IoU is not above this."""
    stability_thresh: float = 0.85
    """Drop masks less stable than this: IoU of the mask at a higher and at a lower cut-off of its logits."""
    stability_offset: float = 1.0
    """How far the two cut-offs of the stability score are from 0, in logits."""
    box_nms_thresh: float = 0.7
    """Of masks of one level whose boxes overlap by more than this IoU, keep the best."""
    min_region_area: int = 100
    """Fill holes and remove islands smaller than this, in pixels of the (reduced) picture; 0: off."""
    max_side: int = 1024
    """Masks are cleaned and compared on the picture reduced to this longer side, in pixels."""
    score_thresh: float = 0.7
    """Drop masks whose stability times predicted IoU is not above this."""
    overlap_thresh: float = 0.8
    """Drop a mask that overlaps a better one of its level by more than this IoU."""
    inner_thresh: float = 0.5
    """Drop a mask that lies inside another of its level: threshold on 1 - (share of it) x (share of the other) that
    they have in common; 1: keep nested masks."""


@dataclass(frozen=True)
class SamConfig(MaskGeneratorConfig):
    """Segment Anything (full size), three masks per point prompt: subpart, part, whole."""

    model_type: Literal["vit_h", "vit_l", "vit_b"] = "vit_h"
    """SAM's image encoder; checkpoints of 2.6, 1.2 and 0.4 GB."""
    checkpoint: Path | None = None
    """Official checkpoint file; None: taken from the weights folder ($MASKFIELD_HOME), downloaded on first use."""

    def identity(self) -> dict[str, Any]:
        """Name and weights. An official checkpoint has one identity wherever its file lies."""
        from maskfield_ns.foundation import weights

        official = weights.SAM_CHECKPOINTS[self.model_type]
        digest = official.sha256_prefix
        if self.checkpoint is not None:
            actual = weights.sha256_file(self.checkpoint)
            digest = digest if actual.startswith(digest) else actual
        return {"name": "sam", "revision": 1, "model": self.model_type, "sha256": digest}

    def fingerprint(self) -> dict[str, Any]:
        return describe(self.identity(), self)

    def setup(self, device: str | torch.device) -> MaskProposer:
        from maskfield_ns.foundation import weights
        from maskfield_ns.foundation.sam import SamProposer, load_sam

        checkpoint = self.checkpoint
        if checkpoint is None:
            checkpoint = weights.fetch(weights.SAM_CHECKPOINTS[self.model_type])
        sam = load_sam(self.model_type, checkpoint).to(device)
        return SamProposer(sam, self, self.identity())


@dataclass(frozen=True)
class TinySamConfig(MaskGeneratorConfig):
    """The embedded SAM: the same classes in a small configuration, weights in the package, trained on renderings."""

    points_per_side: int = 16
    """Point prompts along each side of the picture; their number is the square of it."""
    points_per_batch: int = 64
    """Prompts decoded at once: memory against speed, no effect on the masks."""
    crop_n_layers: int = 1
    """Look again at crops of the picture, 4^i of them in layer i, where small things are larger; 0: do not."""
    pred_iou_thresh: float = 0.3
    """Drop masks whose predicted IoU is not above this; lower than for the full-size models, whose masks are better."""
    stability_thresh: float = 0.2
    """Drop masks whose stability is below this."""
    box_nms_thresh: float = 0.8
    """Of masks of one level whose boxes overlap by more than this IoU, keep the best."""
    score_thresh: float = 0.1
    """Drop masks whose stability times predicted IoU is not above this."""
    min_region_area: int = 20
    """Holes and islands of fewer pixels than this (in the picture, reduced) are filled or removed."""
    overlap_thresh: float = 0.85
    """Drop a mask that overlaps a better one of its level by more than this IoU."""
    inner_thresh: float = 1.0
    """Drop a mask that lies inside another of its level (see MaskGeneratorConfig); 1: keep nested masks."""
    weights: Path | None = None
    """Weights (safetensors); None: the ones in the package."""

    def identity(self) -> dict[str, Any]:
        """Name and weights."""
        from maskfield_ns.foundation.tiny import packaged_weights
        from maskfield_ns.foundation.weights import sha256_file

        digest = sha256_file(packaged_weights("tiny_sam", self.weights))
        return {"name": "tiny-sam", "revision": 1, "sha256": digest}

    def fingerprint(self) -> dict[str, Any]:
        return describe(self.identity(), self)

    def setup(self, device: str | torch.device) -> MaskProposer:
        from maskfield_ns.foundation.sam import SamProposer
        from maskfield_ns.foundation.tiny.sam import load_tiny_sam

        return SamProposer(load_tiny_sam(self.weights, device), self, self.identity())


@dataclass(frozen=True)
class RegionsConfig(ProposerConfig):
    """Graph-based regions (Felzenszwalb & Huttenlocher 2004) at several scales: no weights, any photograph."""

    scales: tuple[float, ...] = (200.0, 600.0, 1800.0, 5400.0)
    """Scales of observation, ascending: larger values, larger regions. Spread over the levels, smallest: subpart."""
    sigma: float = 0.8
    """Gaussian smoothing before segmentation, in pixels of the (reduced) picture."""
    min_region_area: int = 70
    """Smaller regions are merged into a neighbour, in pixels of the (reduced) picture."""
    max_side: int = 320
    """Regions are computed on the picture reduced to this longer side, in pixels."""
    overlap_thresh: float = 0.8
    """Of two regions of one level that overlap by more than this IoU, keep the more stable."""

    def fingerprint(self) -> dict[str, Any]:
        return describe({"name": "regions", "revision": 1}, self)

    def setup(self, device: str | torch.device) -> MaskProposer:
        from maskfield_ns.foundation.regions import RegionProposer

        return RegionProposer(self)


@dataclass(frozen=True)
class MergedConfig(ProposerConfig):
    """Embedded SAM and graph-based regions together; of near-duplicates SAM's mask is kept."""

    sam: TinySamConfig = TinySamConfig(points_per_side=12, crop_n_layers=0, overlap_thresh=0.8, inner_thresh=0.5)
    """The embedded SAM; without crops, because regions find small things at a tenth of the cost."""
    regions: RegionsConfig = RegionsConfig()
    """The graph-based regions."""
    overlap_thresh: float = 0.8
    """Drop a region that overlaps a mask of its level by more than this IoU."""

    def fingerprint(self) -> dict[str, Any]:
        return {
            "name": "merged",
            "revision": 1,
            "sources": [self.sam.fingerprint(), self.regions.fingerprint()],
            "parameters": {"overlap_thresh": self.overlap_thresh},
        }

    def setup(self, device: str | torch.device) -> MaskProposer:
        from maskfield_ns.foundation.merged import MergedProposer

        return MergedProposer([self.sam.setup(device), self.regions.setup(device)], self.overlap_thresh)


@dataclass(frozen=True)
class OpenClipConfig(EmbedderConfig):
    """Any OpenCLIP model."""

    model: str = "ViT-B-16"
    """Architecture, as `open_clip.list_models()` names it."""
    pretrained: str = "laion2b_s34b_b88k"
    """Pretrained tag (downloaded on first use), or the path of a local checkpoint."""
    region_mode: Literal["masked_crops", "dense"] = "masked_crops"
    """One network pass per mask on its masked crop, or one per picture with last-block values pooled per mask."""
    batch_size: int = 32
    """Crops or phrases per network pass."""

    def identity(self) -> dict[str, Any]:
        """Name and weights: the pretrained tag, or the content hash of a local file."""
        from maskfield_ns.foundation import weights

        local = weights.as_local_file(self.pretrained)
        pretrained = self.pretrained if local is None else f"sha256:{weights.sha256_file(local)}"
        return {"name": "open-clip", "revision": 1, "model": self.model, "pretrained": pretrained}

    def fingerprint(self) -> dict[str, Any]:
        return describe(self.identity(), self)

    def setup(self, device: str | torch.device) -> RegionEmbedder:
        from maskfield_ns.foundation.clip import ClipEmbedder, load_open_clip

        return ClipEmbedder(*load_open_clip(self.model, self.pretrained, device), self, self.identity())


@dataclass(frozen=True)
class TinyClipConfig(EmbedderConfig):
    """The embedded CLIP: OpenCLIP's own class in a small configuration, weights in the package."""

    weights: Path | None = None
    """Weights (safetensors); None: the ones in the package."""
    region_mode: Literal["masked_crops", "dense"] = "masked_crops"
    """One network pass per mask on its masked crop, or one per picture with last-block values pooled per mask."""
    batch_size: int = 64
    """Crops or phrases per network pass."""

    def identity(self) -> dict[str, Any]:
        """Name and weights."""
        from maskfield_ns.foundation.tiny import packaged_weights
        from maskfield_ns.foundation.weights import sha256_file

        digest = sha256_file(packaged_weights("tiny_clip", self.weights))
        return {"name": "tiny-clip", "revision": 1, "sha256": digest}

    def fingerprint(self) -> dict[str, Any]:
        return describe(self.identity(), self)

    def setup(self, device: str | torch.device) -> RegionEmbedder:
        from maskfield_ns.foundation.clip import ClipEmbedder
        from maskfield_ns.foundation.tiny.clip import load_tiny_clip

        return ClipEmbedder(*load_tiny_clip(self.weights, device), self, self.identity())
