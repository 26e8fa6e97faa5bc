"""What is imported later: that it works when it is needed, and that it is not there before."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

from maskfield_ns import startup

pytest_plugins = ("untrained",)


def test_placeholders_of_external_methods_are_built_without_reading_sources() -> None:
    from nerfstudio.configs import external_methods

    startup.skip_source_lookups()
    with mock.patch("inspect.stack", side_effect=AssertionError("sources are read")):
        configs, _ = external_methods.get_external_methods()
    assert len(configs) > 20


def test_naming_an_external_method_still_says_how_to_install_it(capsys: pytest.CaptureFixture[str]) -> None:
    """nerfstudio tells by the caller's name whether a user has asked for the method."""
    from nerfstudio.configs import external_methods

    startup.skip_source_lookups()
    method = external_methods.ExternalMethod("how to install it", [("some-method", "")], pip_package=None)
    with pytest.raises(SystemExit):
        external_methods.ExternalMethodDummyTrainerConfig(method_name="some-method", method=method)
    assert "how to install it" in capsys.readouterr().out


def test_functions_are_named_as_inspect_does() -> None:
    ours = [caller.function for caller in startup._FunctionNames.stack()]
    assert ours == [caller.function for caller in inspect.stack()]


def test_timm_is_imported_without_wandb() -> None:
    code = (
        "import sys\n"
        "import maskfield_ns.foundation.clip\n"
        "assert 'timm' in sys.modules and 'wandb' not in sys.modules, sorted(m for m in sys.modules if 'wandb' in m)\n"
        "import importlib.util\n"
        "assert importlib.util.find_spec('wandb'), 'wandb is there, as nerfstudio wants it'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


OPENING = """
import sys
from pathlib import Path
from maskfield_ns.runs import open_run
run = open_run(Path(sys.argv[1]))
heavy = ("torch._dynamo", "torch._inductor.compile_fx", "sympy", "torchmetrics", "sklearn", "pandas", "wandb", "open3d")
heavy += ("tensorboard", "tensorly")
print("loaded:", [name for name in heavy if name in sys.modules])
import torch
from nerfstudio.models import splatfacto
pose = torch.eye(4)[None]
print("compiled later:", splatfacto.get_viewmat.__name__, callable(splatfacto.get_viewmat))
from torchvision.ops import roi_align
print("regions:", tuple(roi_align(torch.ones(1, 1, 8, 8), torch.tensor([[0.0, 0, 0, 4, 4]]), 2).shape))
from nerfstudio.model_components import lib_bilagrid
from nerfstudio.utils import writer
grid = lib_bilagrid.BilateralGrid(1, 2, 2, 2)
print("grid:", lib_bilagrid.tl.get_backend(), tuple(grid.grids.shape), float(grid.tv_loss()))
print("writer:", type(writer.SummaryWriter(log_dir=sys.argv[2])).__module__)
model = run.pipeline.model
image = torch.full((1, 3, 40, 40), 0.5)
print("psnr:", round(float(model.psnr(image, image + 0.1)), 2))
"""


def test_opening_a_run_imports_what_it_uses_and_the_rest_when_asked(untrained_run: Path, tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", OPENING, str(untrained_run), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    assert "loaded: []" in result.stdout
    assert "compiled later: get_viewmat True" in result.stdout
    assert "regions: (1, 1, 2, 2)" in result.stdout
    assert "psnr: 20.0" in result.stdout
    assert "grid: pytorch (1, 12, 2, 2, 2) 0.0" in result.stdout
    assert "writer: torch.utils.tensorboard.writer" in result.stdout


def test_shapes_are_broadcast_as_torch_does() -> None:
    import torch

    ours = startup._TorchWithPlainShapes()
    for shapes in ([(3, 1), (1, 4)], [(2, 3), (3,)], [torch.Size([5, 1]), (5, 1)], [()], [(1,), (0,)]):
        assert ours.broadcast_shapes(*shapes) == torch.broadcast_shapes(*shapes)
    assert isinstance(ours.broadcast_shapes((1,)), torch.Size)
    assert ours.Tensor is torch.Tensor


def test_metrics_made_later_measure_as_torchmetrics_does() -> None:
    code = (
        "import sys, torch\n"
        "from maskfield_ns import startup\n"
        "with startup.lazy_metrics():\n"
        "    from torchmetrics.functional import structural_similarity_index_measure as ssim\n"
        "    from torchmetrics.image import PeakSignalNoiseRatio\n"
        "    psnr = PeakSignalNoiseRatio(data_range=1.0)\n"
        "assert not [m for m in sys.modules if m.startswith('torchmetrics')]\n"
        "torch.manual_seed(0)\n"
        "a, b = torch.rand(2, 1, 3, 32, 32)\n"
        "from torchmetrics import functional, image\n"
        "assert ssim(a, b) == functional.structural_similarity_index_measure(a, b)\n"
        "assert torch.isclose(psnr(a, b), image.PeakSignalNoiseRatio(data_range=1.0)(a, b), rtol=1e-6)\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=300)
