"""Time bottom_k and linear_bottom_k on a GPU against torch.topk, the bare product and the read bandwidth of the same run.

    python -m pytest kernels/benchmarks/bench_bottom_k_gpu.py --benchmark-json=out.json

Needs torch, triton, pytest-benchmark and modelassay_kernels, a CUDA device and 24 GB of its memory; skips otherwise.
Not measured yet: no GPU has run this file. The marks: 3 times torch.topk in bf16 and 4 times in fp32, 60 % of the time one read
takes; linear_bottom_k within 1.15 times the bare product from 1024 rows on, with memory of the order N k.

Providers take turns in every round, timed by CUDA events; medians and all samples go to `extra_info`. `read` sums the logits as
16-byte words and is the ceiling. The logits are 25 times larger than any L2 cache, so every round reads device memory.
pytest-benchmark's own columns time the default configuration on the host's clock.
"""

# N = rows, D = hidden size, V = size of the vocabulary, K = kept of each row

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from modelassay_kernels import bottom_k, linear_bottom_k
from modelassay_kernels import bottom_k_triton as op
from modelassay_kernels._triton import jit, tl
from modelassay_kernels.bottom_k import _bottom_k_reference, bottom_k_bytes
from modelassay_kernels.linear_bottom_k import linear_bottom_k_work

ROUNDS, WARMUP = 20, 3
ROWS, VOCABULARY, K = 8192, 151_936, 2000
HIDDEN = 4096
CHECKED_ROWS = 16
PROBE_WORDS = 32768  # int32 words of one program of the read probe
NEEDED_BYTES = 24 * 10**9
CONFIGS = (
    op.DEFAULT,
    op.LaunchConfig(block=1024, num_warps=4),
    op.LaunchConfig(block=1024, num_warps=4, sample=2048),
    op.LaunchConfig(num_stages=3, sample=2048),
)


@jit()
def _read_kernel(x_ptr: tl.tensor, out_ptr: tl.tensor, WORDS: tl.constexpr, BLOCK: tl.constexpr) -> None:
    """out[program] = sum of WORDS consecutive int32: nothing but loads."""
    program = tl.program_id(0).to(tl.int64)
    sum_B = tl.zeros([BLOCK], tl.int32)
    for start in tl.range(0, WORDS, BLOCK, num_stages=4):
        sum_B += tl.load(x_ptr + program * WORDS + start + tl.arange(0, BLOCK))
    tl.store(out_ptr + program, tl.sum(sum_B))


def time_in_turns(providers: dict[str, Callable[[], object]]) -> dict[str, list[float]]:
    """Milliseconds of every provider in every round, one after the other within a round."""
    samples: dict[str, list[float]] = {name: [] for name in providers}
    for round_index in range(WARMUP + ROUNDS):
        for name, provider in providers.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            torch.cuda.synchronize()
            start.record()
            provider()
            end.record()
            end.synchronize()
            if round_index >= WARMUP:
                samples[name].append(start.elapsed_time(end))
    return samples


def synchronised_clock() -> float:
    """Host seconds after all device work has ended."""
    torch.cuda.synchronize()
    return time.perf_counter()


def peak_bytes(provider: Callable[[], object]) -> int:
    """Device memory one call takes beside what was there, its result included."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    provider()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def record(benchmark: Any, samples_ms: dict[str, list[float]], **facts: Any) -> None:
    """Keep medians, samples and where they were taken."""
    benchmark.extra_info.update(
        device=torch.cuda.get_device_name(),
        versions={"torch": torch.__version__, "cuda": torch.version.cuda},
        median_ms={name: statistics.median(ms) for name, ms in samples_ms.items()},
        samples_ms=samples_ms,
        **facts,
    )


@pytest.fixture(autouse=True)
def _needs_a_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device; torch.cuda.is_available() is False")
    if torch.cuda.mem_get_info()[0] < NEEDED_BYTES:
        pytest.skip(f"needs {NEEDED_BYTES / 1e9:.0f} GB of free device memory")


@pytest.mark.benchmark(timer=synchronised_clock)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["BF16", "F32"])
def test_bottom_k_of_a_vocabulary(dtype: torch.dtype, benchmark: Any) -> None:
    """Every configuration against the reference, then all providers in turns."""
    generator = torch.Generator("cuda").manual_seed(0)
    logits_NV = torch.empty(ROWS, VOCABULARY, dtype=dtype, device="cuda")
    for part in logits_NV.split(512):
        part.copy_(torch.randn(part.shape, device="cuda", generator=generator))
    want = _bottom_k_reference(logits_NV[:CHECKED_ROWS], K)
    for config in CONFIGS:  # no time without the right result
        got = op.bottom_k_triton(logits_NV, K, config=config)
        assert torch.equal(got[1][:CHECKED_ROWS], want[1])
        assert torch.equal(got[0][:CHECKED_ROWS], want[0])

    words = logits_NV.view(-1).view(torch.int32)
    programs = words.numel() // PROBE_WORDS
    sums = torch.empty(programs, dtype=torch.int32, device="cuda")

    def read() -> None:
        _read_kernel[(programs,)](words, sums, WORDS=PROBE_WORDS, BLOCK=1024, num_warps=4)

    providers: dict[str, Callable[[], object]] = {"read": read}
    for config in CONFIGS:
        for sort in (True, False):
            name = f"bottom_k {'sorted' if sort else 'unsorted'} {config}"
            providers[name] = lambda config=config, sort=sort: op.bottom_k_triton(  # type: ignore[misc]
                logits_NV, K, sort=sort, config=config
            )
    for sort in (True, False):
        name = f"torch.topk {'sorted' if sort else 'unsorted'}"
        providers[name] = lambda sort=sort: torch.topk(logits_NV, K, largest=False, sorted=sort)  # type: ignore[misc]
    samples_ms = time_in_turns(providers)
    read_ms = statistics.median(samples_ms["read"])
    record(
        benchmark, samples_ms, dtype=str(dtype), rows=ROWS, k=K, bytes=bottom_k_bytes(logits_NV, K),
        percent_of_one_read={name: 100 * read_ms / statistics.median(ms) for name, ms in samples_ms.items()},
        peak_bytes={"bottom_k": peak_bytes(lambda: bottom_k(logits_NV, K)), "logits": logits_NV.nbytes},
    )  # fmt: skip
    benchmark.pedantic(bottom_k, args=(logits_NV, K), rounds=ROUNDS, warmup_rounds=WARMUP)


@pytest.mark.benchmark(timer=synchronised_clock)
@pytest.mark.parametrize("num_rows", [1024, 4096, 8192])
def test_linear_bottom_k_of_a_head(num_rows: int, benchmark: Any) -> None:
    """Against the bare bf16 product with its logits in bf16, which needs less than is asked, and in fp32."""
    generator = torch.Generator("cuda").manual_seed(0)
    hidden_ND = torch.randn(num_rows, HIDDEN, device="cuda", generator=generator).bfloat16()
    weight_VD = (torch.randn(VOCABULARY, HIDDEN, device="cuda", generator=generator) * 0.02).bfloat16()
    values_NK, ids_NK = linear_bottom_k(hidden_ND, weight_VD, K)
    some_NV = torch.mm(hidden_ND[:CHECKED_ROWS].float(), weight_VD.float().t())
    want_NK = _bottom_k_reference(some_NV, K)[0]
    torch.testing.assert_close(values_NK[:CHECKED_ROWS], want_NK, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(values_NK[:CHECKED_ROWS], some_NV.gather(1, ids_NK[:CHECKED_ROWS]), rtol=1e-3, atol=1e-3)

    def product(dtype: torch.dtype) -> Tensor:
        return torch.mm(hidden_ND, weight_VD.t(), out_dtype=dtype)

    providers: dict[str, Callable[[], object]] = {
        "linear_bottom_k": lambda: linear_bottom_k(hidden_ND, weight_VD, K),
        "product bf16": lambda: product(torch.bfloat16),
        "product fp32": lambda: product(torch.float32),
        "product bf16 and torch.topk": lambda: torch.topk(product(torch.bfloat16), K, largest=False),
        "product bf16 and bottom_k": lambda: bottom_k(product(torch.bfloat16), K),
    }
    samples_ms = time_in_turns(providers)
    size_bytes, flops = linear_bottom_k_work(hidden_ND, weight_VD, K)
    record(
        benchmark, samples_ms, rows=num_rows, k=K, bytes=size_bytes, flops=flops,
        tflops={name: flops / statistics.median(ms) / 1e9 for name, ms in samples_ms.items()},
        peak_bytes={name: peak_bytes(provider) for name, provider in providers.items()},
    )  # fmt: skip
    benchmark.pedantic(linear_bottom_k, args=(hidden_ND, weight_VD, K), rounds=ROUNDS, warmup_rounds=WARMUP)
