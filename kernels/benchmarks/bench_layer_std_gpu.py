"""Time layer_std over the weights of an 8B model on a GPU: % of the read bandwidth measured in the same run.

    python -m pytest kernels/benchmarks/bench_layer_std_gpu.py --benchmark-json=out.json

Needs torch, triton, pytest-benchmark and modelassay_kernels, a CUDA device and 20 GB of its memory; skips otherwise.
Not measured yet: no GPU has run this file. The mark is >= 90 % of measured read bandwidth in one launch.

What runs: 291 bf16 tensors, 16.06 GB, each byte needed once. Providers take turns in every round, timed by CUDA events;
medians and all samples go to `extra_info`. `read` sums a 4 GiB buffer in 16-byte words and is the ceiling; `copy` counts bytes
read plus written. `torch.std` is called per tensor; `torch._foreach_norm` needs no mean, so it does less work than asked.
The inputs are hundreds of times larger than any L2 cache, so every round reads device memory.
pytest-benchmark's own columns time the default configuration on the host's clock, table and both launches included.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from modelassay_kernels import layer_std_triton as op
from modelassay_kernels._triton import jit, tl

ROUNDS, WARMUP = 20, 3
PROBE_BYTES = 2**32
PROBE_WORDS = 32768  # int32 words of one program of the read probe
NEEDED_BYTES = 20 * 10**9


@jit()
def _read_kernel(x_ptr: tl.tensor, out_ptr: tl.tensor, WORDS: tl.constexpr, BLOCK: tl.constexpr) -> None:
    """out[program] = sum of WORDS consecutive int32: nothing but loads."""
    program = tl.program_id(0).to(tl.int64)
    sum_B = tl.zeros([BLOCK], tl.int32)
    for start in tl.range(0, WORDS, BLOCK, num_stages=4):
        sum_B += tl.load(x_ptr + program * WORDS + start + tl.arange(0, BLOCK))
    tl.store(out_ptr + program, tl.sum(sum_B))


def model_shapes() -> list[tuple[int, ...]]:
    """Shapes of a Llama-3-8B-like checkpoint: 32 layers, hidden 4096, FFN 14336, 8 key-value heads of 128, vocabulary 128256."""
    hidden, ffn, kv, vocabulary = 4096, 14336, 1024, 128256
    layer: list[tuple[int, ...]] = [(hidden, hidden), (kv, hidden), (kv, hidden), (hidden, hidden)]
    layer += [(ffn, hidden), (ffn, hidden), (hidden, ffn), (hidden,), (hidden,)]
    return [(vocabulary, hidden), *layer * 32, (hidden,), (vocabulary, hidden)]


def reference_std(x: Tensor, part: int = 2**26) -> Tensor:
    """Two passes in float64, in parts that fit beside the model."""
    flat = x.flatten()
    parts = [flat[start : start + part] for start in range(0, flat.numel(), part)]
    mean = torch.stack([p.double().sum() for p in parts]).sum() / x.numel()
    return (torch.stack([(p.double() - mean).square().sum() for p in parts]).sum() / (x.numel() - 1)).sqrt()


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


@pytest.fixture(scope="module")
def weights() -> list[Tensor]:
    """Random weights, norms around one; never zeros."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device; torch.cuda.is_available() is False")
    if torch.cuda.mem_get_info()[0] < NEEDED_BYTES + PROBE_BYTES * 2:
        pytest.skip(f"needs {(NEEDED_BYTES + PROBE_BYTES * 2) / 1e9:.0f} GB of free device memory")
    generator = torch.Generator("cuda").manual_seed(0)
    noise = (torch.randn(s, device="cuda", dtype=torch.bfloat16, generator=generator) for s in model_shapes())
    return [x * 0.02 + (1.0 if x.ndim == 1 else 0.0) for x in noise]


@pytest.mark.benchmark(timer=synchronised_clock)
def test_layer_std_of_an_8b_model(weights: list[Tensor], benchmark: Any) -> None:
    """Every configuration against a float64 reference, then all providers in turns."""
    expected = torch.stack([reference_std(x) for x in weights])
    tables = {f"layer_std {config}": op.build_work_table(weights, None, config) for config in op.CONFIGS}
    for table in tables.values():  # no time without the right result
        torch.testing.assert_close(op.layer_std_from_table(table), expected, rtol=1e-6, atol=0.0)

    buffer = torch.randint(2**15, (PROBE_BYTES // 4,), dtype=torch.int32, device="cuda")  # sums fit int32
    target = torch.empty_like(buffer)
    programs = buffer.numel() // PROBE_WORDS
    sums = torch.empty(programs, dtype=torch.int32, device="cuda")

    def read() -> None:
        _read_kernel[(programs,)](buffer, sums, WORDS=PROBE_WORDS, BLOCK=1024, num_warps=4)

    read()
    assert torch.equal(sums, buffer.view(programs, -1).sum(1, dtype=torch.int32))
    providers: dict[str, Callable[[], object]] = {"read": read, "copy": lambda: target.copy_(buffer)}
    for name, table in tables.items():
        providers[name] = lambda table=table: op.layer_std_from_table(table)  # type: ignore[misc]
    providers["torch.std per tensor"] = lambda: [x.std() for x in weights]
    providers["torch._foreach_norm"] = lambda: torch._foreach_norm(weights)
    samples_ms = time_in_turns(providers)

    model_bytes = sum(x.numel() * x.element_size() for x in weights)
    moved = dict.fromkeys(providers, model_bytes) | {"read": PROBE_BYTES, "copy": 2 * PROBE_BYTES}
    gb_per_s = {name: moved[name] / statistics.median(ms) / 1e6 for name, ms in samples_ms.items()}
    benchmark.extra_info.update(
        device=torch.cuda.get_device_name(),
        versions={"torch": torch.__version__, "cuda": torch.version.cuda},
        default_config=str(op.default_config(weights[0].device)),
        bytes=model_bytes,
        median_ms={name: statistics.median(ms) for name, ms in samples_ms.items()},
        gb_per_s=gb_per_s,
        percent_of_read={name: 100 * rate / gb_per_s["read"] for name, rate in gb_per_s.items()},
        samples_ms=samples_ms,
    )
    benchmark.pedantic(op.layer_std_triton, args=(weights,), rounds=ROUNDS, warmup_rounds=WARMUP)
