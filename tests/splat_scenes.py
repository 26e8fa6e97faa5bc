"""Small sets of Gaussians for the rasteriser's tests, and the comparison with the float64 reference."""

from dataclasses import dataclass, replace

import torch
from splat_reference import render
from torch import Tensor

from maskfield_ns.splatting import rasterize

NAMES = ("means", "quats", "scales", "opacities", "colors")


@dataclass(frozen=True)
class Scene:
    means: Tensor
    quats: Tensor
    scales: Tensor
    opacities: Tensor
    colors: Tensor
    viewmats: Tensor
    Ks: Tensor
    width: int
    height: int
    backgrounds: Tensor | None = None

    def leaves(self, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        return {name: getattr(self, name).to(dtype, copy=True).requires_grad_() for name in NAMES}


def cloud(n: int = 120, channels: int = 3, width: int = 37, height: int = 29, seed: int = 0, cameras: int = 1) -> Scene:
    """Gaussians of a few pixels around (0, 0, 4), seen from the origin; some are outside the image."""
    g = torch.Generator().manual_seed(seed)
    means = torch.randn(n, 3, generator=g) * torch.tensor([1.5, 1.2, 1.0]) + torch.tensor([0.0, 0.0, 4.0])
    views = torch.eye(4).repeat(cameras, 1, 1)
    for c in range(cameras):
        angle = torch.tensor(0.3 * c)
        turn = torch.tensor([[angle.cos(), 0, angle.sin()], [0, 1, 0], [-angle.sin(), 0, angle.cos()]])
        views[c, :3, :3] = turn
        views[c, :3, 3] = torch.tensor([0.1 - 1.1 * c, -0.1, 0.2 * c])
    K = torch.tensor([[0.8 * width, 0, width / 2 + 1.3], [0, 0.9 * width, height / 2 - 0.4], [0, 0, 1]])
    return Scene(
        means=means,
        quats=torch.randn(n, 4, generator=g),
        scales=torch.exp(torch.randn(n, 3, generator=g) * 0.6 - 2),
        opacities=torch.rand(n, generator=g) * 0.98 + 0.01,
        colors=torch.randn(n, channels, generator=g),
        viewmats=views,
        Ks=K.repeat(cameras, 1, 1),
        width=width,
        height=height,
    )


def awkward() -> Scene:
    """The cloud with Gaussians that rasterisers get wrong mixed in."""
    scene = cloud(64, seed=3)
    means, scales, opacities = scene.means.clone(), scene.scales.clone(), scene.opacities.clone()
    means[:6, 2] = torch.tensor([-3.0, -0.5, 0.0, 0.005, 0.3, 0.5])  # behind, at and just before the camera
    means[6:9] = torch.tensor([[40.0, 0, 4], [0, -40, 4], [-7.0, 0, 2]])  # off screen
    scales[9:11] = torch.tensor([[8.0, 6, 9], [3, 3, 3]])  # huge
    scales[11:15] = torch.tensor([[2.0, 1e-4, 1e-4], [1e-5, 1.5, 1e-5], [0.8, 1e-6, 0.8], [1e-7, 1e-7, 1e-7]])  # thin
    opacities[15:18] = torch.tensor([0.0, 0.003, 0.0045])  # transparent, around 1/255
    opacities[18:40] = 1.0  # opaque: clamped, and pixels that stop early
    scales[18:24] = 0.6
    return replace(scene, means=means, scales=scales, opacities=opacities)


def reference(scene: Scene, leaves: dict[str, Tensor], camera: int = 0, **options):
    values = [leaves[name] for name in NAMES]
    if values[4].dim() == 3:
        values[4] = values[4][camera]
    if scene.backgrounds is not None:
        options["background"] = scene.backgrounds[camera].double()
    view, K = scene.viewmats[camera].double(), scene.Ks[camera].double()
    return render(values[0], values[1], values[2], values[3], values[4], view, K, scene.width, scene.height, **options)


def ours(scene: Scene, leaves: dict[str, Tensor], **options):
    return rasterize(
        **leaves,
        viewmats=scene.viewmats,
        Ks=scene.Ks,
        width=scene.width,
        height=scene.height,
        backgrounds=scene.backgrounds,
        **options,
    )


def relative(value: Tensor, expected: Tensor) -> float:
    """Largest deviation, in units of the expected tensor's largest entry."""
    if not expected.numel():
        return 0.0
    value, expected = value.detach().double(), expected.detach().double()
    return float((value - expected).abs().max() / expected.abs().max().clamp(min=1e-12))


def check_against_reference(scene: Scene, image_tolerance: float = 3e-5, tolerance: float = 1e-4, **options) -> None:
    """Images, alphas and all gradients of every camera, for a random cotangent."""
    mine, exact = scene.leaves(), scene.leaves(torch.float64)
    mode = options.get("render_mode", "RGB")
    image, alphas, info = ours(scene, mine, **options)
    cameras = scene.viewmats.shape[0]
    assert image.shape[:3] == alphas.shape[:3] == (cameras, scene.height, scene.width)
    expected, expected_alphas = [], []
    for c in range(cameras):
        antialiased = options.get("rasterize_mode") == "antialiased"
        one, alpha, extras = reference(scene, exact, c, add_depth="D" in mode, antialiased=antialiased)
        if mode in ("D", "ED"):
            one = one[..., -1:]
        if mode in ("ED", "RGB+ED"):
            one = torch.cat([one[..., :-1], one[..., -1:] / alpha[..., None].clamp(min=1e-10)], -1)
        expected.append(one)
        expected_alphas.append(alpha[..., None])
        assert torch.equal(info["radii"][c] > 0, extras["radius"] > 0)
    expected, expected_alphas = torch.stack(expected), torch.stack(expected_alphas)
    assert image.shape == expected.shape
    assert relative(image, expected) < image_tolerance
    assert (alphas - expected_alphas).abs().max() < 1e-5
    g = torch.Generator().manual_seed(7)
    pull, pull_alpha = torch.randn(image.shape, generator=g), torch.randn(alphas.shape, generator=g)
    used = [name for name in NAMES if not (name == "colors" and mode in ("D", "ED"))]
    gradients = torch.autograd.grad((image * pull).sum() + (alphas * pull_alpha).sum(), [mine[n] for n in used])
    loss = (expected * pull).sum() + (expected_alphas * pull_alpha).sum()
    exact_gradients = torch.autograd.grad(loss, [exact[n] for n in used])
    for name, value, wanted in zip(used, gradients, exact_gradients, strict=True):
        assert torch.isfinite(value).all(), name
        error = relative(value, wanted)
        assert error < tolerance, f"gradient of {name}: {error:.1e}"
