"""Import less: workarounds for what nerfstudio 1.1.5, torchvision, torchmetrics and timm load and do not use here.

Seconds of every command. Each of these leaves the program as it would be, only later: what is put off is imported when
it is first called.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, NamedTuple


def skip_source_lookups() -> None:
    """Let nerfstudio list its external methods without reading the source file of every caller (no issue known).

    Each of 26 placeholders asks ``inspect.stack()`` which function is building it. That reads and searches the source
    of all frames, 1.5 CPU-seconds for every ns-* command, of which only the functions' names are used. The module gets
    a stand-in whose ``stack`` gives just these.
    """
    external_methods: Any = importlib.import_module("nerfstudio.configs.external_methods")
    if not isinstance(external_methods.inspect, _FunctionNames):
        external_methods.inspect = _FunctionNames()


class _FunctionNames:
    """Stands in for the module ``inspect`` where only names of functions are looked at."""

    class Caller(NamedTuple):
        """One entry of the call stack."""

        function: str

    @classmethod
    def stack(cls) -> list[Caller]:
        """Callers of this function, the innermost first, as ``inspect.stack()`` orders them."""
        callers, frame = [], sys._getframe(1)
        while frame is not None:
            callers.append(cls.Caller(frame.f_code.co_name))
            frame = frame.f_back
        return callers


@contextmanager
def without_wandb() -> Iterator[None]:
    """Import timm or OpenCLIP without Weights & Biases, which timm looks for and nobody here uses (no issue known).

    wandb is a dependency of nerfstudio, so it is always found, and importing it takes 1 to 4 seconds. Inside this
    context an import of it fails, which timm is prepared for; a wandb that is in use already stays.
    """
    if "wandb" in sys.modules:
        yield
        return
    sys.modules["wandb"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        sys.modules.pop("wandb", None)


@contextmanager
def _stand_ins(*modules: ModuleType) -> Iterator[None]:
    """Lets imports find these modules instead of those of their names, which are imported later."""
    sys.modules.update({module.__name__: module for module in modules})
    try:
        yield
    finally:
        for module in modules:
            if sys.modules.get(module.__name__) is module:
                del sys.modules[module.__name__]


def import_trainer() -> None:
    """Import nerfstudio's trainer, as reading any config.yml does, in half the time.

    torchvision imports ``torch._dynamo`` for one function that says whether a GPU can compile, nerfstudio calls
    ``torch.compile`` on functions of splatfacto, which imports the rest of the compilers, and it imports tensorboard
    and tensorly (with scipy's optimizers) for writers and grids that an opened run has not (no issues known). All are
    imported when they are called.
    """
    if "nerfstudio.engine.trainer" in sys.modules:
        return
    _import_torchvision()
    import torch

    compile_now = torch.compile

    def compile_later(model: Any = None, **options: Any) -> Any:
        if model is None:
            return functools.partial(compile_later, **options)
        compiled: list[Callable[..., Any]] = []

        @functools.wraps(model)
        def call(*args: Any, **kwargs: Any) -> Any:
            if not compiled:
                compiled.append(compile_now(model, **options))
            return compiled[0](*args, **kwargs)

        return call

    writers = ModuleType("torch.utils.tensorboard")
    writers.SummaryWriter = _LaterFunction(writers.__name__, "SummaryWriter")  # type: ignore[attr-defined]
    torch.compile = compile_later  # type: ignore[assignment]
    try:
        with _stand_ins(*(m for m in (writers, _LaterTensorly()) if m.__name__ not in sys.modules)):
            importlib.import_module("nerfstudio.engine.trainer")
            importlib.import_module("nerfstudio.models.splatfacto")
    finally:
        torch.compile = compile_now
    tensor_dataclass = importlib.import_module("nerfstudio.utils.tensor_dataclass")
    tensor_dataclass.torch = _TorchWithPlainShapes()  # type: ignore[attr-defined]


class _LaterTensorly(ModuleType):
    """tensorly, whose backend nerfstudio sets as soon as it is imported."""

    def __init__(self) -> None:
        super().__init__("tensorly")
        self._backend: str | None = None

    def set_backend(self, name: str) -> None:
        """Remembers it for the library."""
        self._backend = name

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        tensorly = importlib.import_module("tensorly")
        if tensorly is self:
            raise AttributeError(name)
        if self._backend is not None:
            tensorly.set_backend(self._backend)
            self._backend = None
        return getattr(tensorly, name)


class _TorchWithPlainShapes(ModuleType):
    """torch as nerfstudio's tensor dataclasses see it; broadcasting shapes does not import sympy for it.

    ``torch.broadcast_shapes`` makes itself ready for symbolic shapes, which cameras do not have (no issue known).
    """

    def __init__(self) -> None:
        super().__init__("torch")

    def __getattr__(self, name: str) -> Any:
        import torch

        return getattr(torch, name)

    def broadcast_shapes(self, *shapes: Any) -> Any:
        """torch's function for shapes of integers."""
        import numpy as np
        import torch

        return torch.Size(np.broadcast_shapes(*map(tuple, shapes)))


def _import_torchvision() -> None:
    """Import torchvision while ``torch._dynamo`` is a stand-in with the one function that it asks for."""
    if "torchvision" in sys.modules or "torch._dynamo" in sys.modules:
        return
    dynamo, utilities = ModuleType("torch._dynamo"), ModuleType("torch._dynamo.utils")

    def is_compile_supported(device_type: str) -> bool:
        return importlib.import_module("torch._dynamo.utils").is_compile_supported(device_type)

    utilities.is_compile_supported = is_compile_supported  # type: ignore[attr-defined]
    with _stand_ins(dynamo, utilities), contextlib.suppress(ImportError):
        importlib.import_module("torchvision")
        return
    # Another version that wants more of it: begin again, with everything.
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]


@contextmanager
def lazy_metrics() -> Iterator[None]:
    """Let ``populate_modules`` of nerfstudio's models make its metrics without importing torchmetrics yet.

    torchmetrics brings matplotlib, pandas and scipy's signal processing (no issue known); a model that renders and
    answers measures nothing. Plain functions and objects take the metrics' places in the model: nothing is added to its
    modules or checkpoints, as torchmetrics adds nothing either. Where torchmetrics is there already it is used.
    """
    if "torchmetrics" in sys.modules:
        yield
        return
    stand_ins = {name: ModuleType(name) for name in ("torchmetrics", *_METRICS)}
    for name, (attribute, stand_in) in _METRICS.items():
        setattr(stand_ins[name], attribute, stand_in(name, attribute))
    with _stand_ins(*stand_ins.values()):
        yield


class _LaterFunction:
    """A function that is imported when it is called."""

    def __init__(self, module: str, name: str) -> None:
        self._place = module, name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        module, name = self._place
        return getattr(importlib.import_module(module), name)(*args, **kwargs)


class _LaterMetric(_LaterFunction):
    """A class of metrics: its metric is made at the first call, on the device of what is measured."""

    class Metric:
        """In place of a torchmetrics metric, called as a function."""

        def __init__(self, make: Callable[[], Any]) -> None:
            self._make, self._metric = make, None

        def __call__(self, prediction: Any, target: Any) -> Any:
            if self._metric is None:
                self._metric = self._make()
            return self._metric.to(prediction.device)(prediction, target)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.Metric(lambda: super(_LaterMetric, self).__call__(*args, **kwargs))


class _Psnr(_LaterFunction):
    """In place of the class of torchmetrics' PSNR, whose formula does not need the library."""

    def __call__(self, data_range: float) -> Callable[[Any, Any], Any]:
        def psnr(prediction: Any, target: Any) -> Any:
            return 10 * (data_range**2 / (prediction - target).square().mean()).log10()

        return psnr


_METRICS: dict[str, tuple[str, type[_LaterFunction]]] = {
    "torchmetrics.functional": ("structural_similarity_index_measure", _LaterFunction),
    "torchmetrics.image": ("PeakSignalNoiseRatio", _Psnr),
    "torchmetrics.image.lpip": ("LearnedPerceptualImagePatchSimilarity", _LaterMetric),
}
"""What nerfstudio's models import, by module."""
