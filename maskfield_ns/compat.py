"""Every workaround for nerfstudio 1.1.5, torch, viser and torchmetrics defects, each with its upstream issue.

Nothing is patched by importing this module. :func:`apply` installs what has to be in place before a command
looks at a run; ``configs.py`` calls it once. The rest are plain functions that the package calls where it needs them.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import math
import os
import sys
import threading
import traceback
import urllib.parse
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from maskfield_ns.errors import CaptureError, MaskfieldError
from maskfield_ns.old_addresses import answer_old_names
from maskfield_ns.startup import lazy_metrics, skip_source_lookups

if TYPE_CHECKING:
    from nerfstudio.configs.base_config import ViewerConfig
    from torch import Tensor

LOCALHOST = "127.0.0.1"
EVERY_INTERFACE = "0.0.0.0"
TRACEBACK_VARIABLE = "MASKFIELD_TRACEBACK"
_NETWORK_PATIENCE = 3.0
"""Seconds to wait for the weight server before a metric is given up; DNS alone can hang for half a minute."""
_LPIPS_MIN_SIDE = 31
"""Pixels; AlexNet's pooling leaves nothing of smaller pictures."""


def apply() -> None:
    """Install the process-wide workarounds. Cheap (no import beyond what nerfstudio needs) and idempotent."""
    answer_old_names()
    allow_numpy_scalars_in_checkpoints()
    install_error_hook()
    keep_viewer_local()
    quiet_known_warnings()
    skip_source_lookups()


def quiet_known_warnings() -> None:
    """Keeps warnings out of users' terminals that they cannot do anything about.

    nerfstudio 1.1.5 indexes camera tensors with lists, scripts and autocasts by names that newer torch calls
    deprecated, and is warned about at every command (no issues upstream that we know of; the results are those
    intended).
    """
    for message, category in (
        ("Using a non-tuple sequence for multidimensional indexing", UserWarning),
        ("`torch.jit.script` is deprecated", FutureWarning),
        (r"`torch.cuda.amp.(custom_fwd|custom_bwd|GradScaler|autocast)", FutureWarning),
    ):
        warnings.filterwarnings("ignore", message=message, category=category)


# --- devices and defaults ---------------------------------------------------------------------------------------------


def default_device_type() -> Literal["cpu", "cuda"]:
    """``cuda`` where torch can use it, else ``cpu``.

    nerfstudio's own default is ``cuda`` everywhere, and training without a GPU then ends in a torch RuntimeError
    (nerfstudio#2993: nerfacto runs on a CPU once the device is named).
    """
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def default_implementation() -> Literal["tcnn", "torch"]:
    """``tcnn`` where tiny-cuda-nn is installed, else ``torch``, which nerfstudio would warn about (nerfstudio#3495)."""
    return "tcnn" if importlib.util.find_spec("tinycudann") is not None else "torch"


def default_viewer_config(**overrides: Any) -> ViewerConfig:
    """Viewer settings that listen on the loopback interface only.

    nerfstudio listens on every interface without authentication: whoever can connect sees the scene, moves sliders and
    writes exports.
    """
    from nerfstudio.configs.base_config import ViewerConfig

    return ViewerConfig(**{"websocket_host": LOCALHOST, **overrides})


def whole_downscale_factor(factor: float | None) -> int | None:
    """A dataparser's downscale factor as an integer.

    ``ns-render dataset --downscale-factor 4`` sets the float 4.0, and nerfstudio 1.1.5 then looks for ``images_4.0``
    (no upstream issue known).
    """
    if factor is None:
        return None
    if factor < 1 or factor != int(factor):
        raise CaptureError(f"The downscale factor must be a whole number from 1 on, not {factor}.")
    return int(factor)


# --- torch >= 2.6 and nerfstudio's checkpoints ------------------------------------------------------------------------


def allow_numpy_scalars_in_checkpoints() -> None:
    """Let ``torch.load``'s safe mode read nerfstudio's checkpoints (nerfstudio#3683, nerfstudio#3702).

    nerfstudio's ExponentialDecayScheduler leaves numpy scalars in its state, which torch >= 2.6 refuses by default:
    resuming, ns-eval, ns-viewer, ns-render and ns-export all fail. The three types registered here carry numbers only.
    """
    import numpy as np
    import torch

    try:
        from numpy._core.multiarray import scalar  # numpy 2
    except ImportError:
        from numpy.core.multiarray import scalar  # numpy 1
    # Files name it by the module of the numpy that wrote them, which need not be the numpy that reads them.
    names = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    types = [np.dtype, type(np.dtype("float64")), type(np.dtype("float32"))]
    torch.serialization.add_safe_globals([*names, *types])


# --- one clear message for the user -----------------------------------------------------------------------------------


def install_error_hook() -> None:
    """Print only the message of an uncaught :class:`MaskfieldError`, as ``error: ...`` on stderr.

    ns-train, ns-eval, ns-render and ns-viewer let exceptions reach the interpreter, which prints 40 lines of their
    call stack before the message and exits with code 1. The exit code stays; ``MASKFIELD_TRACEBACK=1`` brings the call
    stack back. All other exceptions go to the hook that was installed before.
    """
    previous = sys.excepthook
    if getattr(previous, "_is_maskfield_hook", False):
        return

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not issubclass(kind, MaskfieldError):
            previous(kind, error, trace)
            return
        sys.stdout.flush()
        if os.environ.get(TRACEBACK_VARIABLE, "") not in ("", "0"):
            traceback.print_exception(kind, error, trace)
        print(f"error: {error}", file=sys.stderr, flush=True)

    hook._is_maskfield_hook = True  # type: ignore[attr-defined]
    sys.excepthook = hook


# --- the viewer's address ---------------------------------------------------------------------------------------------


def keep_viewer_local() -> None:
    """Make ``ns-viewer`` on one of our runs listen on the loopback interface unless told otherwise.

    ns-viewer replaces the viewer settings saved with the run by its own defaults, which listen on every interface
    (see :func:`default_viewer_config` for why that matters). The user's word counts: ``--viewer.websocket-host`` is
    left as given, and so are other methods' runs and viewers started by a training, whose settings are the config's.
    """
    from nerfstudio.viewer.viewer import Viewer

    original = Viewer.__init__
    if getattr(original, "_is_maskfield_patch", False):
        return

    @functools.wraps(original)
    def init(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        bound = dict(zip(("log_filename", "datapath", "pipeline", "trainer"), args, strict=False)) | kwargs
        ours = type(getattr(bound.get("pipeline"), "model", None)).__module__.split(".")[0] == "maskfield_ns"
        if ours and bound.get("trainer") is None and config.websocket_host == EVERY_INTERFACE and not _host_given():
            config.websocket_host = LOCALHOST
        original(self, config, *args, **kwargs)

    init._is_maskfield_patch = True  # type: ignore[attr-defined]
    Viewer.__init__ = init


def _host_given() -> bool:
    """Whether the command line names the viewer's host (tyro takes dashes and underscores alike)."""
    flags = (argument.split("=")[0].replace("_", "-") for argument in sys.argv[1:])
    return any(flag.startswith("--") and flag.endswith("websocket-host") for flag in flags)


# --- LPIPS ------------------------------------------------------------------------------------------------------------


class LazyLPIPS:
    """Stands in for torchmetrics' LPIPS and builds it on the first call, if its weights can be had.

    A plain object, not a module: it adds nothing to the module tree, the state dict or the checkpoint. Without the
    weights, and for pictures too small for AlexNet, a call returns NaN; :func:`image_metrics` then removes the
    entry, since any number in its place would be a false result.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._arguments = (args, kwargs)
        self._metric: Any = None
        self._available: bool | None = None

    def __call__(self, prediction: Tensor, target: Tensor) -> Tensor:
        """LPIPS of two batches of pictures, float in [0, 1] and shaped [B, 3, H, W]; NaN when it cannot be had."""
        import torch

        missing = torch.tensor(math.nan, device=prediction.device)
        if min(prediction.shape[-2:]) < _LPIPS_MIN_SIDE:
            return missing
        if self._available is None:
            self._available = self._build()
        if not self._available:
            return missing
        self._metric.to(prediction.device).eval()
        with torch.no_grad():
            value = self._metric(prediction, target)
        self._metric.reset()  # called as a function: pictures must not pile up in the metric's state
        return value

    def _build(self) -> bool:
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

        if not _alexnet_at_hand():
            warnings.warn(
                "LPIPS is left out of the metrics: AlexNet's weights are neither in torch's hub folder nor reachable. "
                f"To have it, put {_alexnet_file().name} into {_alexnet_file().parent}.",
                stacklevel=3,
            )
            return False
        args, kwargs = self._arguments
        try:
            self._metric = LearnedPerceptualImagePatchSimilarity(*args, **kwargs)
        except (OSError, RuntimeError, EOFError) as error:  # a failed download, a damaged or foreign file
            warnings.warn(f"LPIPS is left out of the metrics: {error}", stacklevel=3)
            return False
        return True


@contextmanager
def tolerant_cuda_calls() -> Iterator[None]:
    """Let ``Tensor.cuda()`` return the tensor where there is no CUDA (nerfstudio#3290, nerfstudio#3750).

    splatfacto 1.1.5 calls it on the colours of SfM points while it is being built; nothing else of it is needed here.
    """
    import torch

    if torch.cuda.is_available():
        yield
        return
    original = torch.Tensor.cuda
    torch.Tensor.cuda = lambda self, *args, **kwargs: self  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        torch.Tensor.cuda = original  # type: ignore[method-assign]


@contextmanager
def metrics_when_needed() -> Iterator[None]:
    """:func:`lazy_lpips`, and no metric is imported before it is used; wrap ``super().populate_modules()`` in it."""
    with lazy_metrics(), lazy_lpips():
        yield


@contextmanager
def lazy_lpips() -> Iterator[None]:
    """Keep ``populate_modules`` of nerfstudio's models from downloading AlexNet (nerfstudio#2415).

    Wrap ``super().populate_modules()`` in it: ``self.lpips`` becomes a :class:`LazyLPIPS`. The class is imported
    inside nerfstudio's method, so replacing it where it comes from, while the method runs, is the only seam.
    """
    lpip: Any = importlib.import_module("torchmetrics.image.lpip")
    original = lpip.LearnedPerceptualImagePatchSimilarity
    lpip.LearnedPerceptualImagePatchSimilarity = LazyLPIPS
    try:
        yield
    finally:
        lpip.LearnedPerceptualImagePatchSimilarity = original


def image_metrics(
    compute: Callable[..., tuple[dict[str, float], dict[str, Tensor]]], *arguments: Any
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """What a model's ``get_image_metrics_and_images`` returns, without ``lpips`` where it could not be had.

    :class:`LazyLPIPS` says so with NaN, which nerfstudio would average and write into a JSON file as it is.
    """
    metrics, images = compute(*arguments)
    return {key: value for key, value in metrics.items() if key != "lpips" or not math.isnan(value)}, images


def _alexnet_file() -> Path:
    """Where torchvision keeps AlexNet's weights."""
    import torch
    from torchvision.models import AlexNet_Weights

    return Path(torch.hub.get_dir()) / "checkpoints" / Path(AlexNet_Weights.IMAGENET1K_V1.url).name


def _alexnet_at_hand() -> bool:
    """Whether AlexNet's weights are on disk or their server answers within a few seconds."""
    from torchvision.models import AlexNet_Weights

    if _alexnet_file().is_file():
        return True
    return _reachable(AlexNet_Weights.IMAGENET1K_V1.url, _NETWORK_PATIENCE)


def _reachable(url: str, patience: float) -> bool:
    """Whether a HEAD request to the URL succeeds within ``patience`` seconds, proxies of the environment included.

    Asked on a daemon thread, because name resolution takes no time limit.
    """
    answers: list[bool] = []

    def ask() -> None:
        try:
            request = urllib.request.Request(url, method="HEAD")
            with urllib.request.urlopen(request, timeout=patience) as response:
                answers.append(response.status == 200)
        except (OSError, ValueError):
            answers.append(False)

    thread = threading.Thread(target=ask, daemon=True, name="maskfield-reachable")
    thread.start()
    thread.join(patience)
    return bool(answers and answers[0])
