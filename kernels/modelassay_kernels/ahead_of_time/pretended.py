"""A CUDA device that is not there: host code runs on tensors without memory, and what it launches is compiled.

Nothing is described a second time: the op's own launching code chooses tiles, warps and constants, and Triton's own binder
decides from the tensors what it would on a GPU: which pointers and sizes are multiples of 16, which are 1.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode

ALIGNED_ADDRESS = 1 << 20
"""Where every pretended storage begins: CUDA's allocator gives multiples of 512."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """A GPU as its maker describes it; rates are of one multiprocessor and clock cycle."""

    name: str
    capability: int
    multiprocessors: int
    read_bytes: float
    """Of device memory, at the peak of the data sheet."""

    tensor_flops: int
    """Dense bf16 or fp16 with fp32 sums; tf32 has half."""

    l2_bytes: int
    shared_limit: int
    """Bytes of shared memory that one program may use: the least of all cards that run this code."""


CARDS = {
    card.capability: card
    for card in (
        Card(
            name="A100 80 GB", capability=80, multiprocessors=108, read_bytes=2039e9 / (108 * 1.41e9), tensor_flops=2048,
            l2_bytes=40 << 20, shared_limit=99 << 10,
        ),
        Card(
            name="H200", capability=90, multiprocessors=132, read_bytes=4800e9 / (132 * 1.83e9), tensor_flops=4096,
            l2_bytes=50 << 20, shared_limit=227 << 10,
        ),
        Card(
            name="B200", capability=100, multiprocessors=148, read_bytes=8000e9 / (148 * 1.85e9), tensor_flops=8192,
            l2_bytes=126 << 20, shared_limit=227 << 10,
        ),
    )
}  # fmt: skip
"""By capability. Peaks of NVIDIA's data sheets over the multiprocessors and boost clocks they give; sm_80 code also runs on
sm_86 and sm_89, which have less shared memory than an A100."""


@dataclass(frozen=True)
class Launch:
    """One launch that the host code made."""

    name: str
    grid: tuple[int, ...]
    compiled: Any
    """Triton's CompiledKernel."""


@contextlib.contextmanager
def pretended_gpu(capability: int) -> Iterator[list[Launch]]:
    """Within this, tensors on "cuda" have shapes but no memory, and kernels are compiled, not run; yields the launches.

    Values cannot be read: host code that asks a tensor for a number raises torch's DataDependentOutputException. Not for
    threads, nor under TRITON_INTERPRET=1. Compiled code is cached where Triton keeps its own.
    """
    from triton.backends.compiler import GPUTarget  # noqa: PLC0415 - only where triton is
    from triton.runtime.driver import driver  # noqa: PLC0415
    from triton.runtime.jit import JITFunction  # noqa: PLC0415

    card = CARDS[capability]
    launches: list[Launch] = []
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        compiled = run(self, *args, grid=grid, warmup=True, **options)
        launches.append(Launch(self.__name__, tuple(grid), compiled))
        return compiled

    target = SimpleNamespace(
        get_current_target=lambda: GPUTarget("cuda", capability, 32),
        get_current_device=lambda: -capability,  # so that no real device's kernels are mixed with these
        get_current_stream=lambda device: 0,
    )
    properties = SimpleNamespace(L2_cache_size=card.l2_bytes, multi_processor_count=card.multiprocessors)
    patches: list[Any] = [
        mock.patch.object(JITFunction, "run", compile_only),
        mock.patch.object(driver, "_active", target),
        mock.patch.object(FakeTensor, "data_ptr", _address),
        mock.patch.object(torch.cuda, "device", return_value=contextlib.nullcontext()),
        mock.patch.object(torch.cuda, "current_stream", return_value=SimpleNamespace(cuda_stream=0)),
        mock.patch.object(torch.cuda, "is_current_stream_capturing", return_value=False),
        mock.patch.object(torch.cuda, "get_device_capability", return_value=divmod(capability, 10)),
        mock.patch.object(torch.cuda, "get_device_properties", return_value=properties),
    ]
    with contextlib.ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch)
        stack.enter_context(FakeTensorMode())
        stack.enter_context(_WithoutGuards())
        yield launches


class _WithoutGuards(TorchFunctionMode):
    """Index and copy by operators: their methods ask for a guard of the device, which a torch without CUDA has not."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.__getitem__:
            return _index(*args)
        if func is torch.Tensor.copy_:
            return torch.ops.aten.copy_(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _index(x: torch.Tensor, index: Any) -> torch.Tensor:
    items = list(index) if isinstance(index, tuple) else [index]
    if Ellipsis in items:
        at = items.index(Ellipsis)
        named = sum(item is not None and item is not Ellipsis for item in items)
        items[at : at + 1] = [slice(None)] * (x.ndim - named)
    dim = 0
    for item in items:
        if item is None:
            x = x.unsqueeze(dim)
        elif isinstance(item, slice):
            x = torch.ops.aten.slice(x, dim, item.start, item.stop, item.step or 1)
        else:
            x = x.select(dim, int(item))
            continue
        dim += 1
    return x


def _address(tensor: torch.Tensor) -> int:
    return ALIGNED_ADDRESS + int(tensor.storage_offset()) * tensor.itemsize
