"""What a device can do at best, measured beside what is timed: reading, copying, multiplying."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from modelassay_kernels.native import read_bandwidth
from modelassay_kernels.optional_triton import jit, tl
from modelassay_kernels.work import Work

PROBE_WORDS = 32768
"""int32 words that one program of the GPU's read probe reads."""
COPY_BYTES = 2**32


def seconds_of(run: Callable[[], object], device: str) -> float:
    """Time of one call with all device work it starts: by CUDA's events there, else by the host's clock."""
    if device != "cuda":
        start_s = time.perf_counter()
        run()
        return time.perf_counter() - start_s
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    start.record()
    run()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3


@jit()
def read_kernel(x_ptr: tl.tensor, out_ptr: tl.tensor, WORDS: tl.constexpr, BLOCK: tl.constexpr) -> None:
    """out[program] = XOR of WORDS consecutive int32: nothing but loads."""
    program = tl.program_id(0).to(tl.int64)
    xor_B = tl.zeros([BLOCK], tl.int32)
    for start in tl.range(0, WORDS, BLOCK, num_stages=4):
        xor_B ^= tl.load(x_ptr + program * WORDS + start + tl.arange(0, BLOCK))
    tl.store(out_ptr + program, tl.xor_sum(xor_B))


def read_ceiling(tensor: Tensor) -> Callable[[], float]:
    """Return a measurement of the GB/s at which all of a contiguous tensor is read; on a GPU in 16-byte words."""
    if not tensor.is_cuda:
        return lambda: read_bandwidth(tensor, num_reads=1)
    words = tensor.detach().view(-1).view(torch.uint8)
    words = words[: words.numel() // (4 * PROBE_WORDS) * 4 * PROBE_WORDS].view(torch.int32)
    digests = torch.empty(words.numel() // PROBE_WORDS, dtype=torch.int32, device=tensor.device)

    def read() -> None:
        read_kernel[(digests.numel(),)](words, digests, WORDS=PROBE_WORDS, BLOCK=1024, num_warps=4)

    read()
    return lambda: words.nbytes / seconds_of(read, "cuda") / 1e9


def copy_ceiling() -> Callable[[], float]:
    """Return a measurement of the GB/s, read plus written, of a copy on the GPU by the vendor."""
    source = torch.empty(COPY_BYTES, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    target.copy_(source)
    return lambda: 2 * COPY_BYTES / seconds_of(lambda: target.copy_(source), "cuda") / 1e9


def product_ceiling(
    work: Work, products: Sequence[Callable[[], Tensor]], product_flops: int, device: str
) -> Callable[[], float]:
    """Return a measurement of the GB/s of an operation that did its flops as fast as ``products`` do theirs.

    They are done in turns, as many as ``work`` has the flops for, each having ``product_flops``.
    """
    count = max(1, work.flops // product_flops)
    for product in products:
        product()

    def measure_once() -> float:
        seconds = seconds_of(lambda: [products[i % len(products)]() for i in range(count)], device)
        return work.bytes / (seconds * work.flops / (count * product_flops)) / 1e9

    return measure_once
