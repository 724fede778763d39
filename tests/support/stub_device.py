"""A pytest plug-in that stands in for a GPU: what takes one runs in Triton's interpreter and PyTorch's CPU code, at small sizes.

    TRITON_INTERPRET=1 python -m modelassay_kernels.benchmarking -p support.stub_device

Tensors say that they are on CUDA and lie in ordinary memory. It shows that a benchmark walks from its inputs through its check
to its record, on the path a GPU takes; what it times means nothing. Needs numpy, as Triton's interpreter does.
"""

from __future__ import annotations

import contextlib
import functools
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._ops import HigherOrderOperator, _compute_keyset
from torch.autograd.function import BackwardCFunction
from torch.overrides import TorchFunctionMode

CUDA = torch.device("cuda", 0)
HOST = torch.device("cpu")
PRODUCTS = {torch.mm, torch.addmm}
SMALL: dict[str, dict[str, Any]] = {
    "attention": {"PRODUCT_SIZE": {"cuda": 64}},
    "bottom_k": {
        "VOCABULARY": 3001,
        "K": 40,
        "ROWS": {"cuda": 5},
        "SWEEP_ROWS": {"cuda": 3},
        "HEADS": {"cuda": (5, 16)},
    },
    "cross_entropy": {"SIZES": {"cuda": (9, 300, 16)}, "CHECKED_ROWS": 4},
    "layer_std": {"LAYERS": {"cuda": [(64, 96), (1, 96)]}, "TOTAL_BYTES": {"cuda": 1 << 15}},
    "softmax_ggn": {},
}
"""What replaces the constants of each operation's benchmark."""
PARAMETERS = {"attention": {"shape": (1, 2, 1, 24, 16)}, "softmax_ggn": {"shape": [3, 5000]}}
MOST_KEPT = 100


def _host(value: Any) -> Any:
    """Return the CPU where CUDA is named."""
    if isinstance(value, torch.device):
        return HOST if value.type == "cuda" else value
    return HOST if isinstance(value, str) and value.partition(":")[0] == "cuda" else value


def _wide_product(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    """Multiply narrow types into fp32, which only a GPU's PyTorch can."""
    dtype, out = kwargs.pop("out_dtype"), kwargs.pop("out", None)
    result = function(*(x.to(dtype) for x in args), **kwargs)
    return result if out is None else out.copy_(result)


class StubDevice(TorchFunctionMode):
    """Every tensor is on CUDA, as it says.

    PyTorch leaves a mode while it handles a function, and with it what that calls back: the body of an autograd function within
    a transform of torch.func, whose operator is therefore dispatched with the mode, and its backward pass (`pytest_configure`).
    """

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if isinstance(func, HigherOrderOperator):
            keys = _compute_keyset(args, kwargs, func.non_fallthrough_keys)
            with self:
                return func.dispatch(keys.highestPriorityTypeId(), *args, **kwargs)
        if func == torch.Tensor.device.__get__:  # not the same object twice
            return func(*args) if args[0].is_meta else CUDA
        if func == torch.Tensor.is_cuda.__get__:
            return True
        if func in {torch.Tensor.cuda, torch.Tensor.pin_memory}:
            return args[0]
        if func in PRODUCTS and "out_dtype" in kwargs:
            return _wide_product(func, args, kwargs)
        if func is torch.Tensor.to or "device" in kwargs:
            args = tuple(_host(value) for value in args)
            kwargs = {name: _host(value) for name, value in kwargs.items()}
        return func(*args, **kwargs)


class Event:
    """Tells a time that means nothing."""

    def __init__(self, **_: Any) -> None: ...
    def record(self) -> None: ...
    def synchronize(self) -> None: ...
    def elapsed_time(self, other: Event) -> float:
        """Milliseconds."""
        return 1.0


GENERATOR = torch.Generator


class HostGenerator:
    """Makes generators of the CPU, whatever is asked for; a class, since annotations name it."""

    def __new__(cls, device: Any = "cpu") -> torch.Generator:
        """Return one."""
        return GENERATOR(_host(device))


PROPERTIES = SimpleNamespace(
    name="stub", multi_processor_count=4, L2_cache_size=1 << 20, total_memory=1 << 34, major=9, minor=0
)
STUBS: dict[str, Any] = {
    "is_available": lambda: True,
    "is_current_stream_capturing": lambda: False,
    "mem_get_info": lambda *_: (1 << 40, 1 << 40),
    "synchronize": lambda *_: None,
    "reset_peak_memory_stats": lambda *_: None,
    "memory_allocated": lambda *_: 0,
    "max_memory_allocated": lambda *_: 0,
    "current_device": lambda: 0,
    "current_stream": lambda *_: SimpleNamespace(cuda_stream=0),
    "device": lambda _: contextlib.nullcontext(),
    "get_device_name": lambda *_: "stub",
    "get_device_capability": lambda *_: (9, 0),
    "get_device_properties": lambda *_: PROPERTIES,
    "Event": Event,
}


def _places_that_see_a_cpu() -> list[str]:
    """Return where a tensor of the stub does not say that it is on CUDA: here, or in what an autograd function does."""
    seen: dict[str, bool] = {}

    class Square(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(x: torch.Tensor) -> torch.Tensor:
            seen[f"the body of an autograd function {how}"] = x.is_cuda
            return x * x

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
            ctx.save_for_backward(*inputs)
            ctx.save_for_forward(*inputs)

        @staticmethod
        def backward(ctx: Any, g: torch.Tensor) -> torch.Tensor:
            seen[f"its backward pass {how}"] = g.is_cuda
            return 2 * g * ctx.saved_tensors[0]

        @staticmethod
        def jvp(ctx: Any, x_dot: torch.Tensor) -> torch.Tensor:
            seen[f"its tangent {how}"] = x_dot.is_cuda
            return 2 * x_dot * ctx.saved_tensors[0]

    def square(x: torch.Tensor) -> torch.Tensor:
        return Square.apply(x).sum()  # type: ignore[no-any-return, no-untyped-call]

    with StubDevice():
        x = torch.ones(1, device="cuda", requires_grad=True)
        seen["a test"] = x.is_cuda
        how = "under autograd"
        torch.autograd.grad(square(x), x)
        how = "under torch.func"
        torch.func.jvp(torch.func.grad(square), (x.detach(),), (x.detach(),))
    return [place for place, on_gpu in seen.items() if not on_gpu]


def pytest_configure() -> None:
    """Put the stubs in place."""
    for name, stub in STUBS.items():
        setattr(torch.cuda, name, stub)
    torch.Generator = HostGenerator  # type: ignore[assignment, misc]
    backward = BackwardCFunction.apply

    def backward_with_stub(self: Any, *gradients: Any) -> Any:
        with StubDevice():
            return backward(self, *gradients)

    BackwardCFunction.apply = backward_with_stub  # type: ignore[method-assign]
    if unseen := _places_that_see_a_cpu():
        raise pytest.UsageError(
            f"the stub is not taken for a GPU in {', '.join(unseen)}: what walks there is the CPU's code"
        )
    torch.compile = lambda function, **_: function  # type: ignore[assignment]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Make everything small, and leave out what then differs from nothing before it."""
    kept: dict[str, pytest.Item] = {}
    for item in items:
        _shrink(item)
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        kept.setdefault(f"{item.path}::{item.name.partition('[')[0]}{sorted(parameters.items(), key=str)}", item)
    config.hook.pytest_deselected(items=[item for item in items if item not in kept.values()])
    items[:] = kept.values()
    _shrink_measurements()


def _shrink(item: pytest.Item) -> None:
    operation = item.path.parent.name
    if operation not in SMALL:
        return
    module = item.module  # type: ignore[attr-defined]
    for name, value in SMALL[operation].items():
        if not hasattr(module, name):
            raise pytest.UsageError(f"{module.__name__} has no {name}: tests/support/stub_device.py names it")
        setattr(module, name, value)
    if hasattr(module, "FREE_BYTES"):
        module.FREE_BYTES = 0
    parameters = item.callspec.params  # type: ignore[attr-defined]
    parameters |= {name: value for name, value in PARAMETERS.get(operation, {}).items() if name in parameters}
    if "k" in parameters:
        parameters["k"] = min(parameters["k"], MOST_KEPT)


def _shrink_measurements() -> None:
    from modelassay_kernels.benchmarking import ceilings, measure  # noqa: PLC0415 - not before the stubs

    ceilings.COPY_BYTES, ceilings.PROBE_WORDS, measure.WARM_UP_RUNS = 1 << 16, 1024, 1
    call = measure.Measure.__call__

    @functools.wraps(call)
    def once(*args: Any, **kwargs: Any) -> None:
        call(*args, **{**kwargs, "rounds": 1})

    measure.Measure.__call__ = once  # type: ignore[method-assign]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Any:
    """Run each benchmark with the stub."""
    with StubDevice():
        return (yield)
