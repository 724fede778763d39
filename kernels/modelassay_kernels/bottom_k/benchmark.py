"""bottom_k against torch.topk and the speed at which the same device reads; linear_bottom_k against the bare product.

    python -m modelassay_kernels.benchmarking -k bottom_k

Logits of Qwen2.5's vocabulary: 151,936 ids, k = 2000. CPU: 512 rows (156 or 311 MB, several times a last-level cache), of which
the sweep over k takes 64; the head is that of Qwen2.5-0.5B. The marks: 8 times torch.topk sorted in F32 and BF16, 0.6 of the
ceiling unsorted, never slower than torch at any k.

GPU, not measured yet: 8192 rows, 25 times any L2 cache. The marks: 3 times torch.topk in BF16 and 4 times in F32, 0.6 of the
ceiling; linear_bottom_k within 1.15 times the bare product from 1024 rows on, with memory of the order N k.
"""

# N = rows, D = hidden size, V = size of the vocabulary, K = kept of each row

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from modelassay_kernels.benchmarking.ceilings import read_ceiling
from modelassay_kernels.benchmarking.measure import DEVICES, require
from modelassay_kernels.benchmarking.memory import peak_growth_kib
from modelassay_kernels.bottom_k import bottom_k, linear_bottom_k
from modelassay_kernels.bottom_k import triton_kernels as on_gpu
from modelassay_kernels.bottom_k.reference import bottom_k_reference
from modelassay_kernels.bottom_k.work import bottom_k_work, linear_bottom_k_work
from modelassay_kernels.dtypes import CODES, UP_TO_FP32

VOCABULARY, K = 151_936, 2000
ROWS = {"cpu": 512, "cuda": 8192}
SWEEP_ROWS = {"cpu": 64, "cuda": 1024}
HEADS = {"cpu": (256, 896), "cuda": (4096, 4096)}
"""Rows and hidden size of the linear operation."""
FREE_BYTES = 24 * 10**9
CHECKED_ROWS = 4  # by the reference, which takes 50 ms for one
SCRATCH_ROWS = 64
DTYPE_IDS = [CODES[dtype] for dtype in UP_TO_FP32]
CONFIGS = (
    on_gpu.DEFAULT,
    on_gpu.LaunchConfig(block=1024, num_warps=4),
    on_gpu.LaunchConfig(block=1024, num_warps=4, sample=2048),
    on_gpu.LaunchConfig(num_stages=3, sample=2048),
)
Result = tuple[Tensor, Tensor]


@functools.lru_cache(maxsize=1)
def logits(device: str, dtype: torch.dtype) -> Tensor:
    """Return normal noise, of another scale in each row."""
    generator = torch.Generator(device).manual_seed(0)
    logits_NV = torch.empty(ROWS[device], VOCABULARY, dtype=dtype, device=device)
    for row in logits_NV:
        scale = 1 + 3 * torch.rand((), device=device, generator=generator)
        row.copy_(torch.randn(VOCABULARY, device=device, generator=generator) * scale)
    return logits_NV


def check_against(logits_NV: Tensor, k: int, *, ids: bool, sort: bool) -> Callable[[Result], None]:
    """Compare the first rows with the reference: values, and ids where ties have an order."""
    expected_values, expected_ids = bottom_k_reference(logits_NV[:CHECKED_ROWS], k)

    def check(result: Result) -> None:
        values, order = result[0][:CHECKED_ROWS].sort(dim=1, stable=True)
        checked_ids = result[1][:CHECKED_ROWS]
        torch.testing.assert_close(values, expected_values, rtol=0.0, atol=0.0)
        torch.testing.assert_close(values, logits_NV[:CHECKED_ROWS].gather(1, checked_ids.gather(1, order)))
        if ids:
            pair = (checked_ids, expected_ids) if sort else (checked_ids.sort(1).values, expected_ids.sort(1).values)
            torch.testing.assert_close(*pair)

    return check


def run_and_measure(
    measure: Any, provider: str, run: Callable[[], Result], logits_NV: Tensor, *, k: int, sort: bool, **facts: Any
) -> None:
    """Time one provider on these logits."""
    measure(
        "bottom_k",
        provider,
        run,
        check=check_against(logits_NV, k, ids=not provider.startswith("torch"), sort=sort),
        work=bottom_k_work(logits_NV, k),
        ceiling=read_ceiling(logits_NV),
        device=logits_NV.device.type,
        dtype=CODES[logits_NV.dtype],
        k=k,
        rows=logits_NV.shape[0],
        sorted=sort,
        **facts,
    )


def topk(logits_NV: Tensor, k: int, sort: bool) -> Result:
    """Take torch's answer."""
    result = torch.topk(logits_NV, k, dim=1, largest=False, sorted=sort)
    return result.values, result.indices


def scratch_kib(k: int) -> int | None:
    """Peak resident memory beside the result, in a process of its own."""
    setup = [
        "from modelassay_kernels import bottom_k",
        f"logits = torch.zeros({SCRATCH_ROWS}, {VOCABULARY}).normal_()",
        "bottom_k(logits[:1], 10)",
    ]
    growth_kib = peak_growth_kib("\n".join(setup), f"result = bottom_k(logits, {k})")
    return None if growth_kib is None else growth_kib - SCRATCH_ROWS * k * (4 + 8) // 1024


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("sort", [True, False], ids=["sorted", "unsorted"])
@pytest.mark.parametrize("dtype", UP_TO_FP32, ids=DTYPE_IDS)
def test_vocabulary(measure: Any, dtype: torch.dtype, sort: bool, device: str) -> None:
    """Scratch memory does not grow with V."""
    require(device, native=True, free_bytes=FREE_BYTES)
    scratch = scratch_kib(K) if device == "cpu" else None
    assert scratch is None or scratch < 4096 + torch.get_num_threads() * K * 64 // 1024
    logits_NV = logits(device, dtype)
    facts = {} if scratch is None else {"scratch_kib": scratch}
    run_and_measure(
        measure, "modelassay", lambda: bottom_k(logits_NV, K, sort=sort), logits_NV, k=K, sort=sort, **facts
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("sort", [True, False], ids=["sorted", "unsorted"])
@pytest.mark.parametrize("dtype", UP_TO_FP32, ids=DTYPE_IDS)
def test_baseline(measure: Any, dtype: torch.dtype, sort: bool, device: str) -> None:
    """torch.topk with the same threads, by rows as it does itself."""
    require(device, native=True, free_bytes=FREE_BYTES)
    logits_NV = logits(device, dtype)
    run_and_measure(measure, "torch.topk", lambda: topk(logits_NV, K, sort), logits_NV, k=K, sort=sort, rounds=3)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("provider", ["modelassay", "torch.topk"])
@pytest.mark.parametrize("k", [10, 100, 1000, 5000, 20_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["F32", "BF16"])
def test_sweep_over_k(measure: Any, dtype: torch.dtype, k: int, provider: str, device: str) -> None:
    """The mark: never slower than torch."""
    require(device, native=True, free_bytes=FREE_BYTES)
    logits_NV = logits(device, dtype)[: SWEEP_ROWS[device]]
    ours = provider == "modelassay"
    run = functools.partial(bottom_k, logits_NV, k) if ours else functools.partial(topk, logits_NV, k, True)
    run_and_measure(measure, provider, run, logits_NV, k=k, sort=True, rounds=7 if ours else 3)


@pytest.mark.gpu
@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["F32", "BF16"])
def test_configurations(measure: Any, dtype: torch.dtype, config: on_gpu.LaunchConfig) -> None:
    """How the work is cut on a GPU."""
    require("cuda", free_bytes=FREE_BYTES)
    logits_NV = logits("cuda", dtype)
    run = functools.partial(on_gpu.bottom_k_triton, logits_NV, K, config=config)
    run_and_measure(measure, f"modelassay {config}", run, logits_NV, k=K, sort=True)


@functools.lru_cache(maxsize=1)
def head(device: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return hidden states and weights."""
    num_rows, hidden = HEADS[device]
    generator = torch.Generator(device).manual_seed(0)
    hidden_ND = torch.randn(num_rows, hidden, device=device, generator=generator).to(dtype)
    return hidden_ND, (torch.randn(VOCABULARY, hidden, device=device, generator=generator) * 0.02).to(dtype)


def product(hidden_ND: Tensor, weight_VD: Tensor) -> Tensor:
    """Return logits in fp32, as `linear_bottom_k` promises them."""
    if hidden_ND.is_cuda and hidden_ND.dtype != torch.float32:
        return torch.mm(hidden_ND, weight_VD.t(), out_dtype=torch.float32)
    return hidden_ND.float() @ weight_VD.float().t()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("provider", ["modelassay", "product alone", "product and torch.topk"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["F32", "BF16"])
def test_linear(measure: Any, dtype: torch.dtype, provider: str, device: str) -> None:
    """The whole head; the products are given whole matrices."""
    require(device, native=True, free_bytes=FREE_BYTES)
    hidden_ND, weight_VD = head(device, dtype)
    num_rows, hidden = HEADS[device]
    expected_NK = (hidden_ND[:CHECKED_ROWS].double() @ weight_VD.double().t()).sort(dim=1).values[:, :K].float()

    def run() -> tuple[Tensor, ...]:
        if provider == "modelassay":
            return linear_bottom_k(hidden_ND, weight_VD, K)
        logits_NV = product(hidden_ND, weight_VD)
        return (logits_NV,) if "alone" in provider else topk(logits_NV, K, True)

    def check(result: tuple[Tensor, ...]) -> None:
        values_NK = result[0][:CHECKED_ROWS].sort(dim=1).values[:, :K]
        tolerance = 1e-3 if device == "cuda" else 1e-4
        torch.testing.assert_close(values_NK, expected_NK, rtol=tolerance, atol=tolerance)

    measure(
        "linear_bottom_k",
        provider,
        run,
        check=check,
        work=linear_bottom_k_work(hidden_ND, weight_VD, K),
        ceiling=read_ceiling(weight_VD),
        device=device,
        rounds=3,
        dtype=CODES[dtype],
        k=K,
        rows=num_rows,
        hidden=hidden,
    )
