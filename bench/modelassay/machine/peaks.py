"""How fast this device reads, copies and multiplies: the best of several probes is the ceiling of what is timed beside them.

A probe is one measurement, to be interleaved with what it judges. On a CPU the reads are those of the compiled extension (each
pattern) and PyTorch's own; on a GPU 16-byte loads and PyTorch's. Datasheet figures stand apart and judge nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

import modelassay_kernels.native as native
from modelassay.statistics.estimate import Estimate
from modelassay.statistics.intervals import median_interval
from modelassay_kernels.benchmarking.ceilings import read_ceiling, seconds_of

Probe = Callable[[], float]

PATTERNS = ("read", "read, prefetch 512 B", "read, prefetch 2 KiB", "read, 4 streams", "read, 4 streams, prefetch")
"""Of the extension's reads, in its order."""

DATASHEET_GBPS: Mapping[str, float] = {"H200": 4800.0, "H100 80GB HBM3": 3350.0, "H100 PCIe": 2000.0, "A100-SXM4-80GB": 2039.0,
                                       "A100-SXM4-40GB": 1555.0}  # fmt: skip
"""Memory bandwidth by a part of the device's name: NVIDIA's product pages."""
DATASHEET_TFLOPS: Mapping[str, float] = {"H200": 989.4, "H100 80GB HBM3": 989.4, "A100-SXM4": 312.0}
"""Dense BF16 and FP16 products, of the same pages."""


def memory_probes(buffer: Tensor) -> dict[str, Probe]:
    """Return measurements in GB/s of reading all of a contiguous ``buffer`` and of copying it (read plus written)."""
    data = buffer.detach().reshape(-1).view(torch.uint8)
    words = data[: data.numel() // 8 * 8].view(torch.int64)
    target = torch.empty_like(words)
    device = buffer.device.type
    probes: dict[str, Probe] = {
        "copy": _rate(lambda: target.copy_(words), 2 * words.nbytes / 1e9, device),
        "torch sum": _rate(words.sum, words.nbytes / 1e9, device),
    }
    floats = data[: data.numel() // 4 * 4].view(torch.float32)
    probes["torch max"] = _rate(floats.amax, floats.nbytes / 1e9, device)
    if device == "cuda":
        probes["read, 16-byte loads"] = read_ceiling(data)
    elif native.native_available():
        threads = torch.get_num_threads()
        for number, name in enumerate(PATTERNS):
            probes[name] = _rate(_reader(data, threads, number), data.nbytes / 1e9, device)
    return probes


def _reader(data: Tensor, threads: int, pattern: int) -> Callable[[], object]:
    return lambda: native.read_all(data, threads, pattern)


def product_probes(dtype: torch.dtype, device: str, *, size: int | None = None) -> dict[str, Probe]:
    """Return measurements in TFLOP/s of square products, of one size and of half of it."""
    probes: dict[str, Probe] = {}
    largest = size or {"cpu": 1024, "cuda": 8192}[device]
    for side in (largest, largest // 2):
        factor = torch.randn(side, side, device=device).to(dtype)
        probes[f"product {side}"] = _rate(_square(factor), 2 * side**3 / 1e12, device)
    return probes


def _square(factor: Tensor) -> Callable[[], object]:
    out = torch.empty_like(factor)
    return lambda: torch.mm(factor, factor, out=out)


def _rate(run: Callable[[], object], amount: float, device: str) -> Probe:
    """Return amount per second of a call, which has run once before."""
    run()
    return lambda: amount / seconds_of(run, device)


def ceiling(samples: Mapping[str, Sequence[float]]) -> tuple[str, Estimate]:
    """Return the probe with the highest median, and that median with its interval.

    >>> ceiling({"read": [1.0, 1.1, 1.2], "copy": [2.0, 2.1, 1.9]})[0]
    'copy'
    """
    estimates = {name: median_interval(values) for name, values in samples.items()}
    best = max(estimates, key=lambda name: estimates[name].value)
    return best, estimates[best]


def implausible(rate: Estimate, best: Estimate) -> bool:
    """Return whether a rate lies above its ceiling by more than both intervals: then it is no rate of this work.

    >>> implausible(Estimate(value=2.0, low=1.9, high=2.1), Estimate(value=1.8, low=1.7, high=1.95))
    False
    """
    return (rate.value if rate.low is None else rate.low) > (best.value if best.high is None else best.high)


def datasheet(device_name: str) -> tuple[float | None, float | None]:
    """Return the GB/s and BF16 TFLOP/s of a device's datasheet, None where we have none.

    >>> datasheet("NVIDIA H200")
    (4800.0, 989.4)
    """

    def of(table: Mapping[str, float]) -> float | None:
        return next((value for part, value in table.items() if part in device_name), None)

    return of(DATASHEET_GBPS), of(DATASHEET_TFLOPS)
