"""A GPU that is not there: tensors that compute on the CPU but say `cuda:0`, and refuse to be mixed with others.

    with gpu():
        weight = weight.to("cuda:0")   # or torch.zeros(4, device="cuda:0")
        weight + torch.ones(4)         # RuntimeError, as with a GPU

As with a GPU, a CPU tensor without dimensions counts as a number, `copy_` and `to` go between devices. Stricter than
torch: indices on the CPU are refused too, since each of them is a copy that the GPU waits for.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only

DEVICE = torch.device("cuda:0")
BETWEEN = {torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default}
FREE = 2**30  # bytes of its memory


class Pretended(Tensor):
    """Has its memory in common with the CPU tensor `inner`. Only Python is told where it is: C++ has no such device."""

    @staticmethod
    def __new__(cls, inner: Tensor) -> "Pretended":
        made = Tensor._make_subclass(cls, inner)
        made.inner = inner
        return made

    device = property(lambda self: DEVICE)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    def __repr__(self) -> str:
        return f"pretended {self.inner!r}"

    def __format__(self, form: str) -> str:
        return format(self.inner, form)

    def tolist(self) -> list:
        return self.inner.tolist()

    def numpy(self, **_) -> None:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.nn.functional.one_hot:  # C++ makes what it compares with
            return dispatched(func, args, kwargs)
        if func is Tensor.cpu:
            return args[0].inner.detach()
        if func is Tensor.to:
            return moved(*args, **kwargs)
        return super().__torch_function__(func, types, args, kwargs)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return dispatched(func, args, kwargs or {})


def moved(tensor: Tensor, *args, **kwargs) -> Tensor:
    """`tensor.to(...)`, where it or another tensor in the place of a device is pretended."""
    if args and isinstance(args[0], Tensor):
        args = (args[0].device, args[0].dtype, *args[1:])
    device, dtype = torch._C._nn._parse_to(*args, **kwargs)[:2]
    dtype = dtype or tensor.dtype
    if device is None or (torch.device(device).type == "cuda" and isinstance(tensor, Pretended)):
        with torch._C.DisableTorchFunctionSubclass():
            return tensor.to(dtype)
    if isinstance(tensor, Pretended):
        return tensor.inner.detach().to(dtype)
    return Pretended(tensor.to(dtype, copy=True))


class Mode(TorchDispatchMode):
    """Sees what has no pretended tensor among its arguments: `zeros(device="cuda:0")`, `to("cuda:0")`."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return dispatched(func, args, kwargs or {})


def dispatched(func, args: tuple, kwargs: dict):
    """One operation: refused, or done on the CPU with results that say where they are."""
    tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
    pretended = [each for each in tensors if isinstance(each, Pretended)]
    if pretended and func not in BETWEEN and any(each.ndim and not isinstance(each, Pretended) for each in tensors):
        raise RuntimeError(f"{func}: Expected all tensors to be on the same device, found cuda:0 and cpu.")
    wanted = kwargs.get("device")
    if wanted is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    on_gpu = bool(pretended) or (wanted is not None and torch.device(wanted).type == "cuda")
    if func is torch.ops.aten.copy_.default and not isinstance(args[0], Pretended):
        on_gpu = False
    if func is torch.ops.aten.mm.dtype:  # there is none for CPUs
        func = lambda left, right, dtype: left.to(dtype) @ right.to(dtype)  # noqa: E731
    args, kwargs = tree_map_only(Pretended, lambda each: each.inner, (args, kwargs))
    found = func(*args, **kwargs)
    given = {id(each.inner): each for each in pretended}  # what is changed in place is the same tensor afterwards
    wrapped = lambda each: given.get(id(each)) if id(each) in given else Pretended(each)  # noqa: E731
    return tree_map_only(Tensor, wrapped, found) if on_gpu else found


def tensor_there(*args, device: torch.device | None = None, make=torch.tensor, **kwargs) -> Tensor:
    """`torch.tensor`, which no mode sees."""
    return make(*args, **kwargs) if device is None else make(*args, **kwargs).to(device)


@contextmanager
def alone(disable=_disable_current_modes) -> Iterator[None]:
    """`_disable_current_modes`, after which the GPU is still there."""
    with disable(), Mode():
        yield


@contextmanager
def gpu() -> Iterator[None]:
    """Within it tensors can be put on `cuda:0`."""
    with (
        patch("torch.cuda._lazy_init"),
        patch("torch.cuda.is_available", lambda: True),
        patch("torch.cuda.memory_reserved", lambda device: 0),
        patch("torch.cuda.memory_allocated", lambda device: 0),
        patch("torch.cuda.mem_get_info", lambda device: (FREE, FREE)),
        patch("torch.version.cuda", "pretended"),
        # What an optimizer asks at every step; torch that was built for CUDA would ask the driver.
        patch("torch.accelerator.current_accelerator", lambda check_available=False: None),
        patch("torch.tensor", tensor_there),
        patch("gramprune.model.blocks._disable_current_modes", alone),
        # Modules get parameters that say where they are, instead of new values in the old ones.
        patch("torch.__future__.get_overwrite_module_params_on_conversion", lambda: True),
        Mode(),
    ):
        yield
