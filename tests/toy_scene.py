"""A scene whose every part is known: a red ball and a blue box on a grey ground, as Gaussians and as a radiance field.

Nothing is trained: Gaussians are put on the surfaces, the field is written down, and the query head is told its three
things. What selections, boxes and edits make of it can be checked against the figures below.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.scene_box import SceneBox
from nerfstudio.field_components.field_heads import FieldHeadNames
from torch import Tensor

from maskfield_ns.data.run_info import RunInfo
from maskfield_ns.fields.mask_field import MaskFieldConfig
from maskfield_ns.models.maskfield import MaskfieldModelConfig
from maskfield_ns.models.splat import MaskfieldSplatModelConfig
from maskfield_ns.scene import Scene
from maskfield_ns.selection.transform import axis_rotation
from maskfield_ns.systems.mask_field.mask_stage import MaskStageConfig

BALL_CENTRE, BALL_RADIUS = np.array([-0.25, 0.0, 0.0]), 0.15
BOX_CENTRE, BOX_SIZE, BOX_YAW = np.array([0.28, 0.05, 0.0]), np.array([0.24, 0.16, 0.3]), 30.0
GROUND = -0.16
COLOURS = {"ball": (0.85, 0.1, 0.1), "box": (0.1, 0.2, 0.85), "ground": (0.5, 0.5, 0.5)}
NAMES = tuple(COLOURS)
NOTHING_LIKE_IT = "elephant"
TRANSFORM, SCALE = np.array([[0.0, -1, 0, 0.3], [1, 0, 0, -0.2], [0, 0, 1, 0.1]]), 0.5
"""The capture's coordinates: turned by 90 degrees, shifted, twice as large."""
_QUERIES = 12
_ALL_LEVELS = {"ball": (0, 4, 8), "box": (1, 5, 9), "ground": (2, 6, 10)}


class ToyText:
    """Stands in for the text and picture model: one direction per thing, negatives between all of them."""

    config = None

    def __call__(self, phrases: Any) -> Tensor:
        vectors = torch.zeros(len(phrases), 8)
        for row, phrase in enumerate(phrases):
            words = [k for k, name in enumerate(NAMES) if name in phrase]
            if words:
                vectors[row, words] = 1.0
            elif phrase in ("object", "things", "stuff", "texture"):
                vectors[row, :3] = 1.0
            else:
                vectors[row, 5] = 1.0
        return torch.nn.functional.normalize(vectors, dim=-1)

    def image(self, image: np.ndarray) -> Tensor:
        mean = image.reshape(-1, 3).mean(0) / 255
        distance = [np.abs(mean - COLOURS[name]).sum() for name in NAMES]
        return torch.eye(8)[int(np.argmin(distance))]


def gaussian_scene(folder: Path, seed: int = 0, degree: int = 1) -> Scene:
    """The scene of Gaussians; the run's folder is ``folder`` (with no files)."""
    config = MaskfieldSplatModelConfig(
        num_random=10, sh_degree=degree, sh_degree_interval=1, background_color="black", system=_stage()
    )
    model = config.setup(scene_box=_box(), num_train_data=4, metadata={}, seed_points=None, device="cpu")
    generator = np.random.default_rng(seed)
    points, things, spacing = surface_points(generator)
    count = len(points)
    with torch.no_grad():
        head = _teach(model)
        codes = head.feature_vectors / 10
        features = torch.zeros(count, head.channels)
        for name, queries in _ALL_LEVELS.items():
            features[torch.from_numpy(things == name)] = codes[list(queries)].sum(0)
        dc = np.array([COLOURS[name] for name in things])
        rest = 0.15 * generator.standard_normal((count, (degree + 1) ** 2 - 1, 3))
        tensors = {
            "means": points,
            "scales": np.log(spacing)[:, None] + np.zeros((1, 3)),
            "quats": generator.standard_normal((count, 4)),
            "opacities": np.full((count, 1), 4.0),
            "features_dc": (dc - 0.5) / 0.28209479177387814 if degree else np.log(dc / (1 - dc)),
            "features_rest": rest,
            "mask_features": features,
        }
        model.load_gaussians({name: torch.as_tensor(values).float() for name, values in tensors.items()})
    return _scene(model, folder)


def field_scene(folder: Path) -> Scene:
    """The scene as a radiance field."""
    config = MaskfieldModelConfig(
        implementation="torch",
        num_levels=2,
        log2_hashmap_size=6,
        hidden_dim=8,
        hidden_dim_color=8,
        num_proposal_iterations=1,
        num_proposal_samples_per_ray=(96,),
        num_nerf_samples_per_ray=48,
        samples_per_ray=24,
        proposal_net_args_list=[{"hidden_dim": 8, "log2_hashmap_size": 6, "num_levels": 2, "max_res": 16}],
        use_appearance_embedding=False,
        background_color="black",
        near_plane=0.3,
        far_plane=6.0,
        mask_field=MaskFieldConfig(num_levels=2, log2_hashmap_size=6, hidden_dim=8, implementation="torch"),
        system=_stage(),
    )
    model = config.setup(scene_box=_box(), num_train_data=4, metadata={}, device="cpu")
    with torch.no_grad():
        head = _teach(model)
    model.field = _KnownField()
    model.density_fns = [lambda positions, times=None: _density(positions)[..., None]]
    model.mask_field = _KnownMasks(head.feature_vectors.detach() / 10)
    return _scene(model, folder)


def surface_points(generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(points [N, 3], name of the thing of each, distance between neighbours)."""
    ball = generator.standard_normal((700, 3))
    ball = BALL_CENTRE + BALL_RADIUS * ball / np.linalg.norm(ball, axis=1, keepdims=True)
    box = generator.uniform(-1, 1, (900, 3))
    areas = np.array([BOX_SIZE[1] * BOX_SIZE[2], BOX_SIZE[0] * BOX_SIZE[2], BOX_SIZE[0] * BOX_SIZE[1]])
    side = generator.choice(3, 900, p=areas / areas.sum())
    box[np.arange(900), side] = np.sign(box[np.arange(900), side])
    box = BOX_CENTRE + (box * BOX_SIZE / 2) @ axis_rotation((0, 0, 1), BOX_YAW).T
    ground = np.concatenate([generator.uniform(-0.9, 0.9, (1500, 2)), np.full((1500, 1), GROUND)], axis=1)
    points = np.concatenate([ball, box, ground])
    sizes = (len(ball), len(box), len(ground))
    return points, np.repeat(NAMES, sizes), np.repeat((0.012, 0.012, 0.03), sizes)


def cameras(size: tuple[int, int] = (64, 48), count: int = 12) -> Cameras:
    """A ring of cameras [N] that look at the scene."""
    angles = np.linspace(0, 2 * np.pi, count, endpoint=False)
    height = np.where(np.arange(count) % 2, 0.55, 1.1)
    eyes = np.stack([np.cos(angles), np.sin(angles), height], axis=1)
    return look_at(eyes, size)


def look_at(eyes: np.ndarray, size: tuple[int, int] = (64, 48)) -> Cameras:
    """Cameras [N] at some places that look at the scene's middle."""
    back = eyes / np.linalg.norm(eyes, axis=1, keepdims=True)
    right = np.cross([0.0, 0, 1], back)
    right /= np.linalg.norm(right, axis=1, keepdims=True)
    poses = np.stack([right, np.cross(back, right), back, eyes], axis=2)
    width, height = size
    focal = 1.1 * width
    return Cameras(torch.from_numpy(poses).float(), focal, focal, width / 2, height / 2, width, height)


def box_holds(points: np.ndarray) -> np.ndarray:
    """Whether points lie in the blue box."""
    local = (points - BOX_CENTRE) @ axis_rotation((0, 0, 1), BOX_YAW)
    return (np.abs(local) <= BOX_SIZE / 2).all(axis=-1)


def _stage() -> MaskStageConfig:
    return MaskStageConfig(num_queries=_QUERIES)


def _box() -> SceneBox:
    return SceneBox(aabb=torch.tensor([[-1.0, -1, -1], [1, 1, 1]]))


def _teach(model: Any) -> Any:
    head = model.query_head
    head.semantic_table.data = torch.zeros(_QUERIES, 8)
    for k, name in enumerate(NAMES):
        for query in _ALL_LEVELS[name]:
            head.adopt(query, torch.eye(8)[k], 12.0, 12.0)
    model.text = ToyText()
    return head


def _scene(model: Any, folder: Path) -> Scene:
    model.eval()
    views = cameras()
    outputs = SimpleNamespace(
        dataparser_transform=torch.from_numpy(TRANSFORM).float(), dataparser_scale=SCALE, metadata={}
    )
    names = [f"view_{i}.png" for i in range(len(views))]
    info = RunInfo(train_image_names=tuple(names), eval_image_names=tuple(names))
    dataset = SimpleNamespace(cameras=views)
    manager = SimpleNamespace(info=info, train_dataset=dataset, eval_dataset=dataset, train_dataparser_outputs=outputs)
    return Scene(SimpleNamespace(model=model, datamanager=manager), folder / "config.yml", 7)


def _things(points: Tensor) -> list[Tensor]:
    """Whether points are in the ball, the box and the ground."""
    ball = (points - torch.from_numpy(BALL_CENTRE).to(points)).norm(dim=-1) <= BALL_RADIUS
    box = torch.from_numpy(box_holds(points.detach().double().numpy()))
    ground = (points[..., 2] <= GROUND) & (points[..., 2] > GROUND - 0.3) & (points[..., :2].abs().amax(-1) < 0.9)
    return [ball, box, ground]


def _density(points: Tensor) -> Tensor:
    return 150.0 * torch.stack(_things(points)).any(dim=0).float()


class _KnownField(torch.nn.Module):
    def get_density(self, samples: Any) -> tuple[Tensor, Tensor]:
        points = samples.frustums.get_positions()
        return _density(points)[..., None], points

    def get_outputs(self, samples: Any, density_embedding: Tensor) -> dict:
        rgb = torch.zeros_like(density_embedding)
        for inside, name in zip(_things(density_embedding), NAMES, strict=True):
            rgb[inside] = torch.tensor(COLOURS[name]).to(rgb)
        return {FieldHeadNames.RGB: rgb}

    def forward(self, samples: Any, compute_normals: bool = False) -> dict:
        density, points = self.get_density(samples)
        return {FieldHeadNames.DENSITY: density, **self.get_outputs(samples, points)}


class _KnownMasks(torch.nn.Module):
    """Right at surfaces and a little beyond, as a trained mask field is; wrong ("ball") deep inside and far away."""

    def __init__(self, codes: Tensor) -> None:
        super().__init__()
        self.codes = codes

    def forward(self, cube: Tensor) -> Tensor:
        points = 4 * cube - 2
        result = self.codes[list(_ALL_LEVELS["ball"])].sum(0).expand(*points.shape[:-1], -1).clone()
        near_ground = points[..., 2] < GROUND + 0.012
        near_box = torch.from_numpy(box_holds(BOX_CENTRE + (points.double().numpy() - BOX_CENTRE) / 1.1)) & ~near_ground
        result[near_ground] = self.codes[list(_ALL_LEVELS["ground"])].sum(0)
        result[near_box] = self.codes[list(_ALL_LEVELS["box"])].sum(0)
        return result
