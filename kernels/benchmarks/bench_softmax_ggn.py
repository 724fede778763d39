"""softmax_ggn against PyTorch on a CPU, in bytes that cannot be avoided: logits and u read, y written.

    ci/benchmark-kernels -k softmax_ggn

A vocabulary of 151,936 (Qwen2.5), as many rows as make 64 MiB of logits: several times a last-level cache with u and y. The
ceiling is `read_bandwidth` over the logits; writing costs more than reading, so 1 cannot be reached.
"""

# N is rows, V is vocabulary

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from modelassay_kernels import native_available, read_bandwidth, softmax_ggn
from modelassay_kernels.softmax_ggn import _softmax_ggn_reference, minimum_work

pytestmark = pytest.mark.skipif(not native_available(), reason="needs the compiled extension")

NUM_COLS = 151936
LOGITS_BYTES = 64 << 20
TOLERANCE = {torch.bfloat16: 2**-7, torch.float16: 2**-9, torch.float32: 1e-5}


@functools.lru_cache(maxsize=1)
def inputs(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return logits with a spread of 3, and u."""
    generator = torch.Generator().manual_seed(0)
    shape = (LOGITS_BYTES // (NUM_COLS * dtype.itemsize), NUM_COLS)
    return (torch.randn(shape, generator=generator) * 3).to(dtype), torch.randn(shape, generator=generator).to(dtype)


def eager(logits_NV: Tensor, u_NV: Tensor) -> Tensor:
    """Compute as one writes it: softmax in float32, the rest in it too."""
    p_NV = torch.softmax(logits_NV, 1, dtype=torch.float32)
    return (p_NV * (u_NV - (p_NV * u_NV).sum(1, keepdim=True))).to(logits_NV.dtype)


def double_backward(logits_NV: Tensor, u_NV: Tensor) -> Tensor:
    """Compute as autograd does, through logsumexp twice."""
    leaf = logits_NV.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(leaf.logsumexp(1).sum(), leaf, create_graph=True)
    return torch.autograd.grad(gradient, leaf, u_NV)[0]


PROVIDERS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "modelassay": softmax_ggn,
    "torch": eager,
    "torch double backward of logsumexp": double_backward,
}


@pytest.mark.parametrize("dtype", TOLERANCE, ids=["BF16", "F16", "F32"])
@pytest.mark.parametrize("provider", PROVIDERS)
def test_softmax_ggn(measure: Any, dtype: torch.dtype, provider: str) -> None:
    """Each row's error is measured against the float64 reference, by norms."""
    logits, u = inputs(dtype)

    def check(got: Tensor) -> None:
        want = _softmax_ggn_reference(logits[:4], u[:4])
        loose = 16 if provider.startswith("torch double") else 1  # the gradient in between is rounded to the type
        assert bool(((got[:4].double() - want).norm(dim=1) <= loose * TOLERANCE[dtype] * want.norm(dim=1)).all())

    measure(
        "softmax_ggn",
        provider,
        lambda: PROVIDERS[provider](logits, u),
        check=check,
        size_bytes=minimum_work(*logits.shape, itemsize=dtype.itemsize)[0],
        ceiling=lambda: read_bandwidth(logits, num_reads=1),
        dtype=str(dtype).removeprefix("torch."),
        rounds=9 if provider == "modelassay" else 3,
    )
