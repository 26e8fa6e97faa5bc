"""SSIM against pytorch_msssim, values and gradients."""

from __future__ import annotations

import pytest
import torch
from pytorch_msssim import ssim as reference

from maskfield_ns.splatting.ssim import ssim


def _reference(image: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return reference(image.permute(2, 0, 1)[None], target.permute(2, 0, 1)[None], data_range=1.0)


@pytest.mark.parametrize("size", [(11, 11, 3), (37, 52, 3), (24, 19, 1), (60, 13, 4)])
@pytest.mark.parametrize("kind", ["random", "similar", "equal", "black"])
def test_value_and_gradient(size: tuple[int, int, int], kind: str) -> None:
    generator = torch.Generator().manual_seed(3)
    target = torch.rand(size, generator=generator)
    image = {
        "random": torch.rand(size, generator=generator),
        "similar": (target + 0.1 * torch.rand(size, generator=generator)).clamp(0, 1),
        "equal": target.clone(),
        "black": torch.zeros(size),
    }[kind]
    ours, theirs = image.clone().requires_grad_(), image.double().requires_grad_()
    value, expected = ssim(ours, target), _reference(theirs, target.double())
    assert value.item() == pytest.approx(expected.item(), abs=2e-5)
    (3 * value).backward()
    (3 * expected).backward()
    assert theirs.grad is not None and ours.grad is not None
    scale = theirs.grad.abs().max().item()
    torch.testing.assert_close(ours.grad.double(), theirs.grad, atol=1e-3 * scale + 1e-6, rtol=0)


def test_the_gradient_reaches_whichever_picture_wants_it() -> None:
    """Losses differ in the order of their arguments: splatfacto's has the rendered picture second."""
    a, b = torch.rand(2, 20, 30, 3, generator=torch.Generator().manual_seed(5))
    first, second = a.clone().requires_grad_(), a.clone().requires_grad_()
    ssim(first, b).backward()
    ssim(b, second).backward()
    assert first.grad is not None and second.grad is not None
    assert first.grad.abs().sum() > 0
    torch.testing.assert_close(first.grad, second.grad)
    with pytest.raises(ValueError, match="detach"):
        ssim(first, b.requires_grad_())


def test_threads_do_not_change_the_result() -> None:
    image = torch.rand(50, 40, 3, generator=torch.Generator().manual_seed(0))
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            x = image.clone().requires_grad_()
            value = ssim(x, image.flip(0))
            value.backward()
            results.append((value.item(), x.grad))
    finally:
        torch.set_num_threads(before)
    assert results[0][0] == results[1][0]
    assert torch.equal(results[0][1], results[1][1])


@pytest.mark.parametrize("sizes", [((10, 30, 3), (10, 30, 3)), ((20, 30, 3), (20, 31, 3)), ((20, 30), (20, 30))])
def test_what_does_not_fit_is_refused(sizes: tuple) -> None:
    with pytest.raises(ValueError, match="11 pixels"):
        ssim(torch.zeros(sizes[0]), torch.zeros(sizes[1]))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_agrees() -> None:
    image, target = torch.rand(2, 40, 50, 3, generator=torch.Generator().manual_seed(1))
    assert ssim(image.cuda(), target.cuda()).item() == pytest.approx(ssim(image, target).item(), abs=1e-5)
