"""Tensors that torch takes for ``cuda:0`` while their numbers are on the CPU.

What runs on a GPU runs here for real: device checks, autograd, autocast, optimizers. What CUDA would refuse is refused
(mixed devices, ``.numpy()`` of a CUDA tensor, a CPU generator), and what it would cost is counted by file and line:
operations, synchronizations, bytes copied between host and device. Kernels and their speed are not covered.
"""

from __future__ import annotations

import collections
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

aten = torch.ops.aten
CUDA = torch.device("cuda", 0)
_INDEXING = {aten.index.Tensor, aten._unsafe_index.Tensor}
_INDEX_PUT = {
    aten.index_put_.default,
    aten.index_put.default,
    aten._index_put_impl_.default,
    aten._unsafe_index_put.default,
}
_MAY_MIX = {aten.copy_.default, aten._to_copy.default, aten.set_.source_Tensor, aten._copy_from.default}
_WAITS = ("nonzero", "masked_select", "_unique2", "unique", "bincount", "repeat_interleave.Tensor")
"""Operations whose result has a size that the host must wait for."""
_NO_NUMPY = (
    "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory first."
)


class DeviceError(RuntimeError):
    """What CUDA would have raised."""


class Counts:
    """What happened since the last reset."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.operations = 0
        self.waits: collections.Counter[str] = collections.Counter()
        self.to_device: collections.Counter[str] = collections.Counter()
        self.to_host: collections.Counter[str] = collections.Counter()

    def summary(self, most: int = 6) -> dict[str, Any]:
        """Figures, and where most of each came from."""
        return {
            "operations": self.operations,
            "waits": sum(self.waits.values()),
            "to_device": sum(self.to_device.values()),
            "to_host": sum(self.to_host.values()),
            "where": [dict(each.most_common(most)) for each in (self.waits, self.to_device)],
        }


COUNTS = Counts()


def site() -> str:
    """File and line of the package that is responsible for the operation under way."""
    frame = sys._getframe(1)
    while frame is not None:
        if "maskfield_ns" in frame.f_code.co_filename or "/scripts/" in frame.f_code.co_filename:
            return f"{frame.f_code.co_filename.split('maskfield_ns/')[-1]}:{frame.f_lineno}"
        frame = frame.f_back
    return "elsewhere"


def nbytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


class Pretended(torch.Tensor):
    """A tensor "on the GPU"; `inner` has the numbers."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor, requires_grad: bool = False) -> Pretended:
        made = torch.Tensor._make_wrapper_subclass(
            cls, inner.size(), strides=inner.stride(), storage_offset=0,
            dtype=inner.dtype, layout=inner.layout, requires_grad=requires_grad, device=CUDA,
        )  # fmt: skip
        made.inner = inner
        return made

    def __repr__(self, *_: Any, **__: Any) -> str:
        return f"Pretended({tuple(self.shape)}, {self.dtype})"

    __str__ = __repr__

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if id(self) not in memo:
            copy: Any = Pretended(self.inner.clone(), requires_grad=self.requires_grad)
            parameter = isinstance(self, torch.nn.Parameter)
            memo[id(self)] = torch.nn.Parameter(copy, self.requires_grad) if parameter else copy
        return memo[id(self)]

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError(_NO_NUMPY)

    __array__ = numpy

    def tolist(self) -> Any:
        COUNTS.waits[f"tolist {site()}"] += 1
        COUNTS.to_host[site()] += nbytes(self.inner)
        return self.inner.tolist()

    def new_tensor(self, data: Any, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Any:
        made = torch.tensor(unwrap(data), dtype=dtype or self.dtype)
        COUNTS.to_device[site()] += nbytes(made)
        return Pretended(made) if device is None or on_cuda(device) else made

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if self.dim() == 0 else object.__format__(self, spec)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            out = func(*args, **(kwargs or {}))
            if func == torch.Tensor.data.__set__ and isinstance(args[0], Pretended):
                args[0].inner = args[1].inner if isinstance(args[1], Pretended) else args[1].detach().clone()
            return out

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


def pretended(value: Any) -> bool:
    return isinstance(value, Pretended)


def unwrap(value: Any) -> Any:
    return value.inner if isinstance(value, Pretended) else value


def on_cuda(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cuda"


def run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """One operation: checked, counted, and done on the CPU."""
    COUNTS.operations += 1
    tensors = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, torch.Tensor)]
    any_pretended, device, name = any(map(pretended, tensors)), kwargs.get("device"), str(func)
    if func is aten._to_copy.default:
        return _copy(func, args[0], kwargs)
    if func is aten.copy_.default:
        target, source = args[:2]
        if pretended(target) and not pretended(source):
            COUNTS.to_device[site()] += nbytes(source)
        if not pretended(target) and pretended(source):
            COUNTS.to_host[site()] += nbytes(source)
            COUNTS.waits[f"copy {site()}"] += 1
        unwrap(target).copy_(unwrap(source))
        return target
    if func is aten._local_scalar_dense.default:
        if pretended(args[0]):
            COUNTS.waits[f"item {site()}"] += 1
        return func(unwrap(args[0]))
    if any_pretended:
        _check(func, name, args, tensors)
    to_cuda = any_pretended if device is None else on_cuda(device)
    if kwargs.get("generator") is not None and to_cuda:
        raise DeviceError(f"Expected a 'cuda' device type for generator but found 'cpu' at {site()}")
    plain = {
        k: torch.device("cpu") if k == "device" and v is not None else tree_map(unwrap, v) for k, v in kwargs.items()
    }
    if "pin_memory" in plain:
        plain["pin_memory"] = False
    out = func(*tree_map(unwrap, args), **plain)
    own = {id(unwrap(t)): t for t in tensors}  # in-place operations hand back the same wrappers

    def back(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        return own[id(value)] if id(value) in own else Pretended(value) if to_cuda and not pretended(value) else value

    return tree_map(back, out)


def _copy(func: Any, source: torch.Tensor, kwargs: dict[str, Any]) -> torch.Tensor:
    device = kwargs.get("device")
    to_cuda = on_cuda(device) if device is not None else pretended(source)
    out = func(unwrap(source), **{k: v for k, v in kwargs.items() if k not in ("device", "non_blocking")})
    if pretended(source) and not to_cuda:
        COUNTS.to_host[site()] += nbytes(out)
        COUNTS.waits[f"copy {site()}"] += 1
    if not pretended(source) and to_cuda:
        COUNTS.to_device[site()] += nbytes(out)
    return Pretended(out) if to_cuda else out


def _check(func: Any, name: str, args: Any, tensors: list[torch.Tensor]) -> None:
    """Raises what CUDA would raise, and counts what the host would wait for."""
    short = name.removeprefix("aten.")
    if short.startswith(_WAITS) or func in (aten.equal.default, aten.is_nonzero.default):
        COUNTS.waits[f"{short} {site()}"] += 1
    if func in _INDEXING or func in _INDEX_PUT:
        if not pretended(args[0]):
            raise DeviceError(f"{name}: indices on cuda, the indexed tensor on cpu at {site()}")
        for index in args[1]:
            if index is not None and not pretended(index):
                COUNTS.to_device[f"index {site()}"] += nbytes(index)
            if index is not None and index.dtype in (torch.bool, torch.uint8):
                COUNTS.waits[f"bool index {site()}"] += 1
        if func in _INDEX_PUT and not pretended(args[2]) and args[2].dim() > 0:
            raise DeviceError(f"{name}: value on cpu, self on cuda at {site()}")
    elif func not in _MAY_MIX:
        for tensor in tensors:
            if not pretended(tensor) and tensor.dim() > 0:
                raise DeviceError(f"{name}: Expected all tensors to be on the same device at {site()}")


class PretendedGpu(TorchDispatchMode):
    """Catches factories with ``device="cuda"`` and copies between devices."""

    _mode_key = torch._C._TorchDispatchModeKey.FAKE  # so that torch does not start CUDA for device arguments

    def __init__(self) -> None:
        super().__init__()
        self._mode_key = torch._C._TorchDispatchModeKey.FAKE

    @classmethod
    def is_infra_mode(cls) -> bool:
        return True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if on_cuda(kwargs.get("device")) or any(map(pretended, tree_flatten((args, kwargs))[0])):
            return run(func, args, kwargs)
        return func(*args, **kwargs)


def constructors() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """``torch.tensor`` and ``torch.as_tensor`` for lists and numbers that go to the device."""
    plain_tensor, plain_as_tensor = torch.tensor, torch.as_tensor

    def tensor(data: Any, *args: Any, device: Any = None, **kwargs: Any) -> Any:
        if isinstance(data, Pretended):
            data, device = data.inner, device or "cuda"
        out = plain_tensor(data, *args, **kwargs)
        if not on_cuda(device):
            return out
        COUNTS.to_device[site()] += nbytes(out)
        return Pretended(out.detach()).requires_grad_(out.requires_grad)

    def as_tensor(data: Any, dtype: Any = None, device: Any = None) -> Any:
        out = data if isinstance(data, Pretended) else plain_as_tensor(data, dtype=dtype)
        out = out if dtype is None else out.to(dtype)
        return out if device is None else out.to(device)

    return tensor, as_tensor
