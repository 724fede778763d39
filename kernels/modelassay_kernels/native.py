"""The compiled extension: whether it is there, what to do when it is not, and how fast it can read memory."""

from __future__ import annotations

import statistics
import time

import torch
from torch import Tensor

try:
    import modelassay_kernels._native as _native
except ImportError as error:
    unavailable: str | None = str(error)
    """Why the extension cannot be used, None where it can."""
else:
    unavailable = None


def native_available() -> bool:
    """Whether the compiled extension can be used; without it CPU tensors go to the PyTorch reference."""
    return unavailable is None


def require_native() -> None:
    """Do nothing if the compiled extension is there.

    Raises:
        ImportError: it is not; the message says why and how to get it.
    """
    if unavailable is not None:
        raise ImportError(
            f"modelassay_kernels._native: the compiled extension is missing ({unavailable}); install a C++20 compiler "
            "(GCC 12 or Clang 15, or later) and run `pip install --force-reinstall --no-deps .` in the source tree, "
            "with MODELASSAY_SKIP_CPP unset"
        )


def read_all(data: Tensor, num_threads: int, pattern: int) -> int:
    """Read every byte of a contiguous CPU tensor of bytes once, by the pattern of that number in csrc, and return a digest."""
    return _native.read_bytes(data, num_threads, "", pattern)


def instruction_set() -> str | None:
    """Return the name of the one that the extension's operations choose here; None without the extension."""
    return _native.instruction_sets()[0] if unavailable is None else None


def ask_for_large_pages(tensor: Tensor) -> None:
    """Ask the system for pages of 2 MiB behind a contiguous CPU tensor that nobody has written yet; nothing without the extension."""
    if unavailable is None:
        _native.ask_for_large_pages(tensor.view(-1).view(torch.uint8))


def read_bandwidth(tensor: Tensor, *, num_reads: int = 5) -> float:
    """GB/s at which all of a contiguous CPU tensor is read by `torch.get_num_threads()` threads: the median of ``num_reads``.

    The same tiles, threads and vector width as `layer_std`, with one XOR per vector as the only work; the denominator
    of "share of the read bandwidth". Use a tensor several times the last-level cache.

    Raises:
        ImportError: the extension is missing.
        ValueError: the tensor is not contiguous or not on the CPU.
    """
    require_native()
    if not tensor.is_contiguous() or tensor.device.type != "cpu":
        raise ValueError(
            f"read_bandwidth: needs a contiguous CPU tensor, got one on {tensor.device} with strides {tensor.stride()}"
        )
    data = tensor.detach().reshape(-1).view(torch.uint8)
    seconds = []
    for _ in range(num_reads):
        start = time.perf_counter()
        _native.read_bytes(data, torch.get_num_threads())
        seconds.append(time.perf_counter() - start)
    return data.numel() / statistics.median(seconds) / 1e9
