"""layer_std against PyTorch and against the speed at which the same threads read the same memory.

    ci/benchmark-kernels

The matrices of four layers of a 1.5B model (and their norm weights), at least 256 MiB in each type: several times a
last-level cache. The ceiling is `read_bandwidth` over the same bytes; of a file that is not in the page cache, the
plain reading of it.
"""

# T = tensors, E = elements of all of them

from __future__ import annotations

import functools
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from modelassay_kernels import FileSpan, layer_std, layer_std_file, native_available, read_bandwidth
from modelassay_kernels.layer_std import DTYPE_CODES, _layer_std_reference

pytestmark = pytest.mark.skipif(not native_available(), reason="needs the compiled extension")

LAYER = [(2048, 2048), (256, 2048), (256, 2048), (2048, 2048), (8960, 2048), (8960, 2048), (2048, 8960), (1, 2048)]
TOTAL_BYTES = 256 << 20
BLOCK = 128


@functools.lru_cache(maxsize=1)
def matrices(dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
    """Return one buffer of all elements, and the matrices that are its parts."""
    generator = torch.Generator().manual_seed(0)
    pool = torch.randn(1 << 22, generator=generator) * 0.02
    shapes: list[tuple[int, int]] = []
    while sum(rows * cols for rows, cols in shapes) * dtype.itemsize < TOTAL_BYTES:
        shapes += LAYER
    all_E = torch.empty(sum(rows * cols for rows, cols in shapes), dtype=dtype)
    for part in torch.split(all_E, pool.numel()):
        part.copy_(pool[: part.numel()] * (0.5 + torch.rand((), generator=generator)))
    parts = torch.split(all_E, [rows * cols for rows, cols in shapes])
    return all_E, [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


def check_against(
    tensors: list[Tensor], scales: list[Tensor] | None = None, rtol: float = 1e-6
) -> Callable[[Tensor], None]:
    """Compare with the float64 reference; baselines that round their result get the tolerance of their type."""
    want_T = _layer_std_reference(tensors, scales)
    return lambda got_T: torch.testing.assert_close(got_T.double(), want_T, rtol=rtol, atol=0.0)


@pytest.mark.parametrize("dtype", DTYPE_CODES, ids=DTYPE_CODES.values())
def test_memory(measure: Any, dtype: torch.dtype) -> None:
    """All six types; the mark is 0.8 of the ceiling in BF16, F16 and F32."""
    all_E, tensors = matrices(dtype)
    measure(
        "layer_std", "modelassay", lambda: layer_std(tensors), check=check_against(tensors),
        size_bytes=all_E.nbytes, ceiling=lambda: read_bandwidth(all_E, num_reads=1), dtype=DTYPE_CODES[dtype],
    )  # fmt: skip


def test_memory_with_block_scales(measure: Any) -> None:
    """fp8 with a scale per 128 x 128 elements, as in published checkpoints."""
    all_E, tensors = matrices(torch.float8_e4m3fn)
    generator = torch.Generator().manual_seed(1)
    scales = [torch.rand(-(-t.shape[0] // BLOCK), t.shape[1] // BLOCK, generator=generator) + 0.5 for t in tensors]
    measure(
        "layer_std", "modelassay", lambda: layer_std(tensors, scales=scales), check=check_against(tensors, scales),
        size_bytes=all_E.nbytes, ceiling=lambda: read_bandwidth(all_E, num_reads=1), dtype="F8_E4M3 128x128 scales",
    )  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=["BF16", "F16", "F32"])
@pytest.mark.parametrize("provider", ["torch t.float().std()", "torch t.std()"])
def test_baseline(measure: Any, dtype: torch.dtype, provider: str) -> None:
    """A loop over the tensors in PyTorch, with the same threads; the mark is 25 times `t.float().std()` in BF16."""
    all_E, tensors = matrices(dtype)
    as_float = "float" in provider
    measure(
        "layer_std", provider,
        lambda: torch.stack([(t.float() if as_float else t).std() for t in tensors]),
        check=check_against(tensors, rtol=1e-4 if as_float else 1e-2),
        size_bytes=all_E.nbytes, ceiling=lambda: read_bandwidth(all_E, num_reads=1), dtype=DTYPE_CODES[dtype], rounds=3,
    )  # fmt: skip


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[FileSpan], Tensor]:
    """Give the BF16 matrices as one file, with their deviations."""
    all_E, tensors = matrices(torch.bfloat16)
    path = tmp_path_factory.mktemp("weights") / "weights.bin"
    all_E.view(torch.uint8).numpy().tofile(path)
    spans = []
    offset = 0
    for tensor in tensors:
        spans.append(FileSpan(str(path), offset, "BF16", tensor.shape[0], tensor.shape[1], tensor.shape[1]))
        offset += tensor.nbytes
    return spans, layer_std(tensors)


def drop_from_cache(path: str) -> None:
    """Ask the system to forget the file's pages; a hint, honoured for clean pages by Linux."""
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def read_plainly(path: str) -> float:
    """GB/s of one thread that reads the file into one buffer and forgets it."""
    buffer = bytearray(1 << 20)
    size = 0
    start = time.perf_counter()
    with Path(path).open("rb", buffering=0) as file:
        while got := file.readinto(buffer):
            size += got
    return size / (time.perf_counter() - start) / 1e9


PEAK = """
import sys, torch
from modelassay_kernels import FileSpan, layer_std_file
def peak_kib():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
torch.set_num_threads(int(sys.argv[1]))
spans = eval(sys.argv[2], {"FileSpan": FileSpan})
layer_std_file(spans[-1:])
before = peak_kib()
layer_std_file(spans)
print(peak_kib() - before)
"""


def resident_growth_kib(spans: list[FileSpan]) -> int | None:
    """Peak resident memory a whole pass adds in a process of its own; None where /proc does not tell it."""
    if not Path("/proc/self/status").exists():
        return None
    command = [sys.executable, "-c", PEAK, str(torch.get_num_threads()), repr(spans)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.parametrize("cache", ["warm", "cold"])
def test_file(measure: Any, weights: tuple[list[FileSpan], Tensor], cache: str) -> None:
    """One pass over a file that is, or is not, in the page cache; memory stays under 64 MiB."""
    spans, want_T = weights
    path = spans[0].path

    def forget() -> None:
        if cache == "cold":
            drop_from_cache(path)

    def ceiling() -> float:
        forget()
        return read_plainly(path)

    growth_kib = resident_growth_kib(spans)
    assert growth_kib is None or growth_kib < 64 * 1024
    measure(
        "layer_std_file", "modelassay", lambda: layer_std_file(spans),
        check=lambda got_T: torch.testing.assert_close(got_T, want_T, rtol=0.0, atol=0.0),
        size_bytes=spans[-1].end, ceiling=ceiling, before=forget, rounds=7,
        dtype=f"BF16 {cache}", resident_growth_kib=growth_kib,
    )  # fmt: skip
