"""bottom_k against torch.topk and the speed at which the same threads read; linear_bottom_k against the bare product.

    ci/benchmark-kernels

Logits of Qwen2.5's vocabulary: 151,936 ids, 512 rows (156 or 311 MB, several times a last-level cache), k = 2000; the sweep
over k takes 64 rows. The head is that of Qwen2.5-0.5B. The marks: 8 times torch.topk sorted in F32 and BF16,
0.6 of the ceiling unsorted, never slower than torch at any k.
"""

# N = rows, D = hidden size, V = size of the vocabulary, K = kept of each row

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from modelassay_kernels import bottom_k, linear_bottom_k, native_available, read_bandwidth
from modelassay_kernels.bottom_k import DTYPE_CODES, _bottom_k_reference, bottom_k_bytes
from modelassay_kernels.linear_bottom_k import linear_bottom_k_work

pytestmark = pytest.mark.skipif(not native_available(), reason="needs the compiled extension")

VOCABULARY, ROWS, K = 151_936, 512, 2000
SWEEP_ROWS = 64
CHECKED_ROWS = 4  # by the reference, which takes 50 ms for one
HEAD_ROWS, HEAD_HIDDEN = 256, 896


@functools.lru_cache(maxsize=1)
def logits(dtype: torch.dtype) -> Tensor:
    """Return normal noise, of another scale in each row."""
    generator = torch.Generator().manual_seed(0)
    logits_NV = torch.empty(ROWS, VOCABULARY, dtype=dtype)
    for row in logits_NV:
        row.copy_(torch.randn(VOCABULARY, generator=generator) * (1 + 3 * torch.rand((), generator=generator)))
    return logits_NV


def check_against(logits_NV: Tensor, k: int, *, ids: bool, sort: bool) -> Callable[[tuple[Tensor, Tensor]], None]:
    """Compare the first rows with the reference: values, and ids where ties have an order."""
    want_values, want_ids = _bottom_k_reference(logits_NV[:CHECKED_ROWS], k)

    def check(got: tuple[Tensor, Tensor]) -> None:
        values, order = got[0][:CHECKED_ROWS].sort(dim=1, stable=True)
        torch.testing.assert_close(values, want_values, rtol=0.0, atol=0.0)
        torch.testing.assert_close(values, logits_NV.gather(1, got[1][:CHECKED_ROWS].gather(1, order)))
        if ids:
            got_ids = got[1][:CHECKED_ROWS]
            torch.testing.assert_close(
                got_ids if sort else got_ids.sort(dim=1).values, want_ids if sort else want_ids.sort(dim=1).values
            )

    return check


def run_and_measure(
    measure: Any, provider: str, dtype: torch.dtype, *, num_rows: int, k: int, sort: bool, rounds: int, **facts: Any
) -> None:
    """Time one provider on the first rows of the logits."""
    logits_NV = logits(dtype)[:num_rows]
    own = provider == "modelassay"

    def run() -> tuple[Tensor, Tensor]:
        if own:
            return bottom_k(logits_NV, k, sort=sort)
        found = torch.topk(logits_NV, k, dim=1, largest=False, sorted=sort)
        return found.values, found.indices

    measure(
        "bottom_k", provider, run, check=check_against(logits_NV, k, ids=own, sort=sort),
        size_bytes=bottom_k_bytes(logits_NV, k), ceiling=lambda: read_bandwidth(logits_NV, num_reads=1),
        dtype=DTYPE_CODES[dtype], k=k, rows=num_rows, sorted=sort, rounds=rounds, **facts,
    )  # fmt: skip


PEAK = """
import sys, torch
from modelassay_kernels import bottom_k
def peak_kib():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
torch.set_num_threads(int(sys.argv[1]))
logits = torch.zeros(64, 151936)
logits.normal_()
bottom_k(logits[:1], 10)
before = peak_kib()
values, ids = bottom_k(logits, int(sys.argv[2]))
print(peak_kib() - before - (values.nbytes + ids.nbytes) // 1024)
"""


def scratch_kib(k: int) -> int | None:
    """Peak resident memory beside the result, in a process of its own; None where /proc does not tell it."""
    if not Path("/proc/self/status").exists():
        return None
    command = [sys.executable, "-c", PEAK, str(torch.get_num_threads()), str(k)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.parametrize("sort", [True, False], ids=["sorted", "unsorted"])
@pytest.mark.parametrize("dtype", DTYPE_CODES, ids=DTYPE_CODES.values())
def test_vocabulary(measure: Any, dtype: torch.dtype, sort: bool) -> None:
    """The mark: 8 times torch.topk sorted, 0.6 of the ceiling unsorted; scratch memory does not grow with V."""
    scratch = scratch_kib(K)
    assert scratch is None or scratch < 4096 + torch.get_num_threads() * K * 64 // 1024
    run_and_measure(
        measure, "modelassay", dtype, num_rows=ROWS, k=K, sort=sort, rounds=15, scratch_kib=scratch
    )  # fmt: skip


@pytest.mark.parametrize("sort", [True, False], ids=["sorted", "unsorted"])
@pytest.mark.parametrize("dtype", DTYPE_CODES, ids=DTYPE_CODES.values())
def test_baseline(measure: Any, dtype: torch.dtype, sort: bool) -> None:
    """torch.topk with the same threads, by rows as it does itself."""
    run_and_measure(measure, "torch.topk", dtype, num_rows=ROWS, k=K, sort=sort, rounds=3)


@pytest.mark.parametrize("provider", ["modelassay", "torch.topk"])
@pytest.mark.parametrize("k", [10, 100, 1000, 5000, 20_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["F32", "BF16"])
def test_sweep_over_k(measure: Any, dtype: torch.dtype, k: int, provider: str) -> None:
    """The mark: never slower than torch."""
    rounds = 7 if provider == "modelassay" else 3
    run_and_measure(measure, provider, dtype, num_rows=SWEEP_ROWS, k=k, sort=True, rounds=rounds)


@functools.lru_cache(maxsize=1)
def head(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return hidden states and weights."""
    generator = torch.Generator().manual_seed(0)
    hidden_ND = torch.randn(HEAD_ROWS, HEAD_HIDDEN, generator=generator).to(dtype)
    return hidden_ND, (torch.randn(VOCABULARY, HEAD_HIDDEN, generator=generator) * 0.02).to(dtype)


@pytest.mark.parametrize("provider", ["modelassay", "product alone", "product and torch.topk"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["F32", "BF16"])
def test_linear(measure: Any, dtype: torch.dtype, provider: str) -> None:
    """The whole head; both products in fp32, as `linear_bottom_k` promises, are given whole matrices."""
    hidden_ND, weight_VD = head(dtype)
    size_bytes, flops = linear_bottom_k_work(hidden_ND, weight_VD, K)
    want_NK = (hidden_ND[:CHECKED_ROWS].float() @ weight_VD.float().t()).sort(dim=1).values[:, :K]

    def run() -> tuple[Tensor, ...]:
        if provider == "modelassay":
            return linear_bottom_k(hidden_ND, weight_VD, K)
        logits_NV = hidden_ND.float() @ weight_VD.float().t()
        return (logits_NV,) if "alone" in provider else tuple(torch.topk(logits_NV, K, dim=1, largest=False))

    def check(got: tuple[Tensor, ...]) -> None:
        values_NK = got[0][:CHECKED_ROWS].sort(dim=1).values[:, :K]
        torch.testing.assert_close(values_NK, want_NK, rtol=1e-4, atol=1e-4)

    measure(
        "linear_bottom_k", provider, run, check=check, size_bytes=size_bytes,
        ceiling=lambda: read_bandwidth(weight_VD, num_reads=1), dtype=DTYPE_CODES[dtype], k=K, rows=HEAD_ROWS,
        hidden=HEAD_HIDDEN, flops=flops, rounds=3,
    )  # fmt: skip
