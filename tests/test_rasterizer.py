"""The CPU rasteriser against a dense float64 renderer: images and gradients."""

from dataclasses import replace

import pytest
import torch
from splat_reference import sh_basis
from splat_scenes import NAMES, awkward, check_against_reference, cloud, ours, reference, relative

from maskfield_ns.splatting import rasterize


@pytest.mark.parametrize("channels", [1, 2, 3, 5, 7, 16, 19, 32])
def test_images_and_gradients(channels):
    check_against_reference(cloud(channels=channels, seed=channels))


def test_512_channels():
    check_against_reference(cloud(50, channels=512, width=18, height=17))


@pytest.mark.parametrize("size", [(16, 16), (1, 1), (17, 33), (48, 15), (5, 40)])
def test_image_sizes(size):
    check_against_reference(cloud(60, width=size[0], height=size[1], seed=2))


def test_awkward_gaussians():
    check_against_reference(awkward(), tolerance=3e-4)


def test_ties_in_depth_keep_the_order_of_the_gaussians():
    scene = cloud(40, seed=5)
    means = scene.means.clone()
    means[:, 2] = 4.0
    check_against_reference(replace(scene, means=means))


@pytest.mark.parametrize("n", [0, 1])
def test_hardly_any_gaussians(n):
    scene = replace(cloud(n, seed=4), backgrounds=torch.tensor([[0.2, 0.5, 0.9]]))
    if n:
        scene = replace(scene, means=torch.tensor([[0.0, 0.0, 3.0]]))
        return check_against_reference(scene)
    leaves = scene.leaves()
    image, alphas, info = ours(scene, leaves, render_mode="RGB+ED", absgrad=True)
    assert torch.equal(image[0, :, :, :3], scene.backgrounds.expand(scene.height, scene.width, 3))
    assert not alphas.any() and not image[..., 3].any() and info["radii"].shape == (1, 0)
    image.sum().backward()
    assert all(leaf.grad.shape == leaf.shape for leaf in leaves.values())


def test_nothing_visible():
    scene = cloud(30)
    scene = replace(scene, means=scene.means * torch.tensor([1.0, 1.0, -1.0]))
    leaves = scene.leaves()
    image, _, info = ours(scene, leaves)
    image.sum().backward()
    assert not image.any() and not info["radii"].any()
    assert not any(leaf.grad.any() for leaf in leaves.values())


@pytest.mark.parametrize("mode", ["D", "ED", "RGB+D", "RGB+ED"])
def test_depth_modes(mode):
    check_against_reference(cloud(seed=6), render_mode=mode)


def test_background_and_its_gradient():
    scene = cloud(40, seed=8)
    background = torch.tensor([[0.3, 0.6, 0.1]], requires_grad=True)
    check_against_reference(replace(scene, backgrounds=background.detach()), render_mode="RGB+D")
    image, alphas, _ = ours(replace(scene, backgrounds=background), scene.leaves())
    pull = torch.randn(image.shape)
    (image * pull).sum().backward()
    expected = ((1 - alphas) * pull).sum((1, 2))
    assert relative(background.grad, expected.detach()) < 1e-5


@pytest.mark.parametrize("per_camera", [False, True])
def test_two_cameras(per_camera):
    scene = cloud(80, seed=9, cameras=2)
    if per_camera:
        scene = replace(scene, colors=torch.randn(2, 80, 4))
    check_against_reference(scene, render_mode="RGB+D")


def test_antialiased():
    scene = cloud(seed=10)
    check_against_reference(replace(scene, scales=scene.scales * 0.3), rasterize_mode="antialiased")


def test_image_plane_gradients():
    """means2d.grad and .absgrad: the sum over pixels of the gradient and of its absolute value."""
    scene = cloud(40, seed=11)
    image, _, info = ours(scene, scene.leaves(), absgrad=True)
    info["means2d"].retain_grad()
    pull = torch.randn(image.shape)
    (image * pull).sum().backward()
    exact = scene.leaves(torch.float64)
    centre = reference(scene, exact)[2]["centre"].detach()
    per_pixel = centre.expand(scene.height * scene.width, -1, -1).clone().requires_grad_()
    expected, _, _ = reference(scene, exact, centres=per_pixel)
    (expected * pull[0]).sum().backward()
    assert relative(info["means2d"].grad[0], per_pixel.grad.sum(0)) < 1e-4
    assert relative(info["means2d"].absgrad[0], per_pixel.grad.abs().sum(0)) < 1e-4
    assert relative(info["means2d"][0].detach(), centre * (info["radii"][0] > 0)[:, None]) < 1e-5


def test_camera_gradient():
    scene = cloud(60, seed=12)
    view = scene.viewmats.clone().requires_grad_()
    image, _, _ = rasterize(**scene.leaves(), viewmats=view, Ks=scene.Ks, width=scene.width, height=scene.height)
    pull = torch.randn(image.shape)
    (image * pull).sum().backward()
    exact = replace(scene, viewmats=scene.viewmats.double().requires_grad_())
    expected, _, _ = reference(exact, scene.leaves(torch.float64))
    (expected * pull[0]).sum().backward()
    assert relative(view.grad[:, :3], exact.viewmats.grad[:, :3]) < 1e-4


@pytest.mark.parametrize("degree", [0, 1, 2, 3, 4])
def test_spherical_harmonics(degree):
    scene = cloud(60, seed=13)
    table = torch.randn(60, (degree + 1) ** 2 + 2, 3)
    leaves, exact = scene.leaves() | {"colors": table.clone().requires_grad_()}, scene.leaves(torch.float64)
    view, exact_view = scene.viewmats.clone().requires_grad_(), scene.viewmats[0].double().requires_grad_()
    image, _, _ = rasterize(
        **leaves, viewmats=view, Ks=scene.Ks, width=scene.width, height=scene.height, sh_degree=degree
    )
    exact_table = table.double().requires_grad_()
    centre = torch.linalg.inv(exact_view)[:3, 3]
    basis = sh_basis(exact["means"] - centre, degree)
    exact["colors"] = torch.einsum("nk,nkc->nc", basis, exact_table[:, : (degree + 1) ** 2]) + 0.5
    expected, _, _ = reference(
        replace(scene, viewmats=exact_view[None]), exact | {"colors": exact["colors"].clamp(min=0)}
    )
    assert relative(image[0], expected) < 3e-5
    pull = torch.randn(image.shape)
    wanted = [exact["means"], exact_table, exact_view]
    expected_gradients = torch.autograd.grad((expected * pull[0]).sum(), wanted)
    gradients = torch.autograd.grad((image * pull).sum(), [leaves["means"], leaves["colors"], view])
    for name, value, reference_value in zip(("means", "colors", "view"), gradients, expected_gradients, strict=True):
        value = value[0, :3] if name == "view" else value
        reference_value = reference_value[:3] if name == "view" else reference_value
        assert relative(value, reference_value) < 1e-4, name


def test_planes_and_small_gaussians_are_left_out():
    scene = cloud(80, seed=14)
    _, _, everything = ours(scene, scene.leaves())
    depths = (scene.means @ scene.viewmats[0, :3, :3].T + scene.viewmats[0, :3, 3])[:, 2]
    _, _, info = ours(scene, scene.leaves(), near_plane=3.5, far_plane=4.5)
    assert torch.equal(info["radii"][0] > 0, (everything["radii"][0] > 0) & (depths >= 3.5) & (depths <= 4.5))
    _, _, info = ours(scene, scene.leaves(), radius_clip=4.0)
    assert torch.equal(info["radii"] > 0, everything["radii"] > 4)


def test_other_memory_layouts_and_types():
    scene = cloud(50, seed=15)
    image, _, _ = ours(scene, scene.leaves())
    strided = {n: torch.stack([getattr(scene, n)] * 2, -1)[..., 0] for n in NAMES}
    assert not strided["means"].is_contiguous()
    assert torch.equal(ours(scene, strided)[0], image)
    double = {n: getattr(scene, n).double().requires_grad_() for n in NAMES}
    again, _, _ = ours(scene, double)
    assert torch.equal(again, image)
    again.permute(0, 3, 1, 2).contiguous().sum().backward()
    assert double["means"].grad.dtype == torch.float64


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("mode", ["RGB", "RGB+ED"])
@pytest.mark.parametrize("channels", [3, 16])
def test_same_as_gsplat_on_cuda(mode, channels):
    scene = cloud(400, channels=channels, width=70, height=51, seed=16, cameras=2)
    results = []
    for device in ("cpu", "cuda"):
        leaves = {n: getattr(scene, n).to(device).requires_grad_() for n in NAMES}
        image, alphas, info = rasterize(
            **leaves, viewmats=scene.viewmats.to(device), Ks=scene.Ks.to(device), width=70, height=51,
            render_mode=mode, absgrad=True,
        )  # fmt: skip
        info["means2d"].retain_grad()
        pull = torch.randn(image.shape, generator=torch.Generator().manual_seed(0)).to(device)
        (image * pull).sum().backward()
        seen = (info["radii"] > 0)[..., None]
        plane = [info["means2d"].grad * seen, info["means2d"].absgrad * seen]
        results.append([t.detach().cpu() for t in (image, alphas, *(leaves[n].grad for n in NAMES), *plane)])
    for value, expected in zip(*results, strict=True):
        assert relative(value, expected) < 1e-3
