"""softmax_ggn against PyTorch, in bytes that cannot be avoided: logits and u read, y written.

    python -m modelassay_kernels.benchmarking -k softmax_ggn

CPU: a vocabulary of 151,936 (Qwen2.5), as many rows as make 64 MiB of logits: several times a last-level cache with u and y.
The ceiling is `read_bandwidth` over the logits; writing costs more than reading, so 1 cannot be reached.

GPU, not measured yet: the ceiling is a copy on the same card. The mark is under 4 N V elements moved where the known incumbent
moves 6, that is more than 0.75 of the copy's rate counted in 3 N V. Inputs are many times any L2 cache. The shape of
16,384 x 50,304 in fp32 is the incumbent's own: 14.5 ms on an A100-40GB, where 3 N V take 6.4 ms.
"""

# N is rows, V is vocabulary

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from modelassay_kernels.benchmarking.ceilings import copy_ceiling, read_ceiling
from modelassay_kernels.benchmarking.measure import require
from modelassay_kernels.dtypes import CODES
from modelassay_kernels.softmax_ggn import softmax_ggn
from modelassay_kernels.softmax_ggn.reference import softmax_ggn_reference
from modelassay_kernels.softmax_ggn.work import softmax_ggn_work

NUM_COLS = 151936
LOGITS_BYTES = 64 << 20
TOLERANCE = {torch.bfloat16: 2**-7, torch.float16: 2**-9, torch.float32: 1e-5}
SHAPES = {
    "cpu": [(LOGITS_BYTES // (NUM_COLS * dtype.itemsize), NUM_COLS, dtype) for dtype in TOLERANCE],
    "cuda": [(8192, NUM_COLS, torch.bfloat16), (16384, 50304, torch.float32)],
}


@functools.lru_cache(maxsize=1)
def inputs(device: str, num_rows: int, num_cols: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return logits with a spread of 3, and u."""
    generator = torch.Generator(device).manual_seed(0)
    logits, u = (torch.randn(num_rows, num_cols, device=device, generator=generator) for _ in range(2))
    return (logits * 3).to(dtype), u.to(dtype)


def eager(logits_NV: Tensor, u_NV: Tensor) -> Tensor:
    """Compute as one writes it: softmax in float32, the rest in it too."""
    p_NV = torch.softmax(logits_NV, 1, dtype=torch.float32)
    return (p_NV * (u_NV - (p_NV * u_NV).sum(1, keepdim=True))).to(logits_NV.dtype)


def double_backward(logits_NV: Tensor, u_NV: Tensor) -> Tensor:
    """Compute as autograd does, through logsumexp twice."""
    leaf = logits_NV.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(leaf.logsumexp(1).sum(), leaf, create_graph=True)
    return torch.autograd.grad(gradient, leaf, u_NV)[0]


def reuse() -> Callable[[Tensor, Tensor], Tensor]:
    """Return what writes to the memory of the first result again."""
    out: list[Tensor] = []

    def run(logits_NV: Tensor, u_NV: Tensor) -> Tensor:
        if not out:
            out.append(torch.empty_like(logits_NV))
        return softmax_ggn(logits_NV, u_NV, out=out[0])

    return run


DOUBLE_BACKWARD = "torch double backward of logsumexp"
PROVIDERS: dict[str, Callable[[], Callable[[Tensor, Tensor], Tensor]]] = {
    "modelassay": lambda: softmax_ggn,
    "modelassay, out=": reuse,
    "torch": lambda: eager,
    DOUBLE_BACKWARD: lambda: double_backward,
    "torch.compile": lambda: torch.compile(eager),
}
LEFT_OUT = {"cpu": "torch.compile", "cuda": DOUBLE_BACKWARD}
"""What needs a compiler on the machine, or more memory than the others."""


def cases() -> list[Any]:
    """Return (provider, device, shape, dtype), those of a GPU marked."""
    marks = {"cpu": (), "cuda": (pytest.mark.gpu,)}
    return [
        pytest.param(provider, device, shape, dtype, id=f"{provider}-{device}-{CODES[dtype]}", marks=marks[device])
        for provider in PROVIDERS
        for device, shapes in SHAPES.items()
        for *shape, dtype in shapes
        if provider != LEFT_OUT[device]
    ]


@pytest.mark.parametrize(("provider", "device", "shape", "dtype"), cases())
def test_softmax_ggn(measure: Any, provider: str, device: str, shape: list[int], dtype: torch.dtype) -> None:
    """Rows of both ends are compared with float64, by norms."""
    num_rows, num_cols = shape
    require(device, native=True, free_bytes=8 * num_rows * num_cols * 4)
    logits, u = inputs(device, num_rows, num_cols, dtype)
    function = PROVIDERS[provider]()
    loose = 16 if provider == DOUBLE_BACKWARD else 1  # the gradient in between is rounded to the type

    def check(y: Tensor) -> None:
        for rows in (slice(0, 4), slice(-4, None)):
            expected = softmax_ggn_reference(logits[rows], u[rows])
            allowed = loose * TOLERANCE[dtype] * expected.norm(dim=1)
            assert bool(((y[rows].double() - expected).norm(dim=1) <= allowed).all())

    measure(
        "softmax_ggn",
        provider,
        lambda: function(logits, u),
        check=check,
        work=softmax_ggn_work(num_rows, num_cols, itemsize=dtype.itemsize),
        ceiling=read_ceiling(logits) if device == "cpu" else copy_ceiling(),
        device=device,
        rounds=9 if provider.startswith("modelassay") else 3,
        dtype=CODES[dtype],
        shape=shape,
    )
