"""Camera conventions of the Gaussian model against nerfstudio's."""

from __future__ import annotations

import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.models.splatfacto import get_viewmat

from maskfield_ns.cameras import unproject, world_to_camera
from maskfield_ns.models.splat import batch_ssim


def random_poses(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    rotation, _ = torch.linalg.qr(torch.randn(count, 3, 3, generator=generator))
    rotation = rotation * torch.linalg.det(rotation)[:, None, None]
    return torch.cat([rotation, torch.randn(count, 3, 1, generator=generator)], dim=2)


def test_view_matrices_are_those_of_splatfacto() -> None:
    poses = random_poses(5)
    # Its source without torch.compile, which needs a C++ compiler.
    plain = getattr(get_viewmat, "_torchdynamo_orig_callable", get_viewmat)
    torch.testing.assert_close(world_to_camera(poses), plain(poses))


def test_unprojecting_lands_on_the_rays_of_the_pixels() -> None:
    poses = random_poses(1)
    camera = Cameras(poses, fx=50.0, fy=55.0, cx=15.0, cy=11.0, width=32, height=24)
    depth = torch.rand(24, 32, generator=torch.Generator().manual_seed(0)) + 0.5
    points = unproject(depth, camera.get_intrinsics_matrices()[0], poses[0])
    rays = camera.generate_rays(camera_indices=0)
    offset = points - rays.origins
    along = offset / offset.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(along, rays.directions, atol=1e-5, rtol=1e-4)
    in_camera = torch.cat([points, torch.ones(24, 32, 1)], -1) @ world_to_camera(poses)[0].T
    torch.testing.assert_close(in_camera[..., 2], depth, atol=1e-5, rtol=1e-5)


def test_ssim_takes_batches_like_the_metric_it_replaces() -> None:
    from pytorch_msssim import SSIM

    a, b = torch.rand(2, 1, 3, 30, 40, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(batch_ssim(a, b), SSIM(data_range=1.0, channel=3)(a, b), atol=1e-5, rtol=1e-4)


def test_the_ssim_of_the_colour_loss_has_a_gradient() -> None:
    """splatfacto's loss as it is called, with the rendered picture as second argument."""
    truth, rendered = torch.rand(2, 1, 3, 20, 20, generator=torch.Generator().manual_seed(0))
    rendered.requires_grad_()
    (1 - batch_ssim(truth, rendered)).backward()
    assert rendered.grad is not None and rendered.grad.abs().sum() > 0
