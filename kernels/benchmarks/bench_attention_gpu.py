"""Time attention's Hessian-vector product on a GPU against SDPA's gradient and against PyTorch's only second order.

    python -m pytest kernels/benchmarks/bench_attention_gpu.py --benchmark-json=out.json

Needs torch, triton, pytest-benchmark and modelassay_kernels and a CUDA device; skips otherwise. Not measured yet: no GPU has
run this file. Causal, batch 2, 16 query and 4 key-value heads, in bf16 and fp32. Providers take turns in every round, timed
by CUDA events; medians, all samples, TFLOP/s of the least work and each provider's peak memory go to `extra_info`.
`math` is jvp of grad through SDPBackend.MATH, which holds S x S and is left out where that does not fit.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, jvp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from modelassay_kernels import attention
from modelassay_kernels.attention import PRODUCTS

ROUNDS, WARMUP = 20, 3
BATCH, HEADS, KV_HEADS = 2, 16, 4
LONGEST_MATH = 4096
TOLERANCE = {torch.bfloat16: 5e-2, torch.float32: 1e-4}


def synchronised_clock() -> float:
    """Host seconds after all device work has ended."""
    torch.cuda.synchronize()
    return time.perf_counter()


def ours(*qkv: Tensor) -> Tensor:
    """Loss with a Hessian that is not constant."""
    return attention(*qkv).float().square().sum()


def with_math(*qkv: Tensor) -> Tensor:
    """The same through PyTorch's own operations."""
    with sdpa_kernel(SDPBackend.MATH):
        return scaled_dot_product_attention(*qkv, is_causal=True, enable_gqa=True).float().square().sum()


def hvp_of(
    loss: Callable[..., Tensor], x: tuple[Tensor, ...], u: tuple[Tensor, ...]
) -> Callable[[], tuple[Tensor, ...]]:
    """One Hessian-vector product."""
    return lambda: jvp(grad(loss, (0, 1, 2)), x, u)[1]


def time_in_turns(providers: dict[str, Callable[[], object]]) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Milliseconds of every provider in every round, and the bytes its peak lies above what was there."""
    samples: dict[str, list[float]] = {name: [] for name in providers}
    peaks: dict[str, int] = {}
    for round_index in range(WARMUP + ROUNDS):
        for name, provider in providers.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            start.record()
            result = provider()
            end.record()
            end.synchronize()
            del result
            peaks[name] = torch.cuda.max_memory_allocated() - before
            if round_index >= WARMUP:
                samples[name].append(start.elapsed_time(end))
    return samples, peaks


@pytest.mark.benchmark(timer=synchronised_clock)
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("length", [1024, 4096, 16384])
def test_hessian_vector_product(benchmark: Any, dtype: torch.dtype, dim: int, length: int) -> None:
    """No time without the right result; the mark is 3.2 gradients for one vector and 2.5 for each of eight."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device; torch.cuda.is_available() is False")
    generator = torch.Generator("cuda").manual_seed(0)
    shapes = [(BATCH, HEADS, length, dim), *[(BATCH, KV_HEADS, length, dim)] * 2]
    x, u = (tuple(torch.randn(s, generator=generator, device="cuda", dtype=dtype) for s in shapes) for _ in range(2))
    many = tuple(torch.stack([y * (i + 1) for i in range(8)]) for y in u)
    hvp = hvp_of(ours, x, u)
    if length <= LONGEST_MATH:
        expected = hvp_of(with_math, tuple(y.float() for y in x), tuple(y.float() for y in u))()
        for got, want in zip(hvp(), expected, strict=True):
            assert float((got.float() - want).norm() / want.norm()) < TOLERANCE[dtype]

    leaves = [y.clone().requires_grad_() for y in x]

    def sdpa_gradient() -> object:
        output = scaled_dot_product_attention(*leaves, is_causal=True, enable_gqa=True)
        return torch.autograd.grad(output.float().square().sum(), leaves)

    providers: dict[str, Callable[[], object]] = {
        "sdpa gradient": sdpa_gradient,
        "gradient": lambda: grad(ours, (0, 1, 2))(*x),
        "hvp": hvp,
        "hvp of 8": lambda: vmap(lambda *v: hvp_of(ours, x, v)())(*many),
    }
    if length <= LONGEST_MATH:
        providers["math hvp"] = hvp_of(with_math, x, u)
    samples_ms, peaks = time_in_turns(providers)
    product_flops = 2 * dim * BATCH * HEADS * length * (length + 1) // 2
    once, each = (sum(PRODUCTS[name][i] for name in PRODUCTS) for i in (0, 1))
    products = {
        "sdpa gradient": 7,
        "gradient": 7,
        "hvp": once + each,
        "hvp of 8": once + 8 * each,
        "math hvp": once + each,
    }
    median_ms = {name: statistics.median(ms) for name, ms in samples_ms.items()}
    benchmark.extra_info.update(
        device=torch.cuda.get_device_name(),
        versions={"torch": torch.__version__, "cuda": torch.version.cuda},
        shape=[BATCH, HEADS, KV_HEADS, length, dim],
        median_ms=median_ms,
        tflops={name: products[name] * product_flops / ms / 1e9 for name, ms in median_ms.items()},
        gradients={name: ms / median_ms["sdpa gradient"] for name, ms in median_ms.items()},
        peak_bytes=peaks,
        samples_ms=samples_ms,
    )
    benchmark.pedantic(hvp, rounds=ROUNDS, warmup_rounds=WARMUP)
