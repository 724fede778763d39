"""layer_std against PyTorch and against the speed at which the same device reads the same memory.

    python -m modelassay_kernels.benchmarking -k layer_std

CPU: the matrices of four layers of a 1.5B model (and their norm weights), at least 256 MiB in each type: several times a
last-level cache. The ceiling is `read_bandwidth` over the same bytes; of a file that is not in the page cache, the plain
reading of it. The marks: 0.8 of the ceiling in BF16, F16 and F32, and 25 times `t.float().std()` in BF16.

GPU, not measured yet: the weights of an 8B model, 16 GB in each type, hundreds of times any L2 cache, in one launch. The ceiling
sums the same bytes in 16-byte words; the mark is 0.9 of it. `torch.std` is called for each tensor; `torch._foreach_norm` needs no
mean, so it does less work than asked.
"""

# T = tensors, E = elements of all of them

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from modelassay_kernels.benchmarking.ceilings import read_ceiling
from modelassay_kernels.benchmarking.measure import DEVICES, require
from modelassay_kernels.benchmarking.memory import peak_growth_kib
from modelassay_kernels.dtypes import CODES
from modelassay_kernels.layer_std import FileSpan, layer_std, layer_std_file
from modelassay_kernels.layer_std import triton_kernels as on_gpu
from modelassay_kernels.layer_std.reference import layer_std_reference
from modelassay_kernels.layer_std.scales import Block
from modelassay_kernels.layer_std.work import layer_std_work

LAYERS = {
    "cpu": [(2048, 2048), (256, 2048), (256, 2048), (2048, 2048), (8960, 2048), (8960, 2048), (2048, 8960), (1, 2048)],
    "cuda": [(4096, 4096), (1024, 4096), (1024, 4096), (4096, 4096), (14336, 4096), (14336, 4096), (4096, 14336)]
    + [(1, 4096), (1, 4096)],
}
"""Shapes of one layer, repeated until they are enough: of a 1.5B model, and of an 8B model."""
TOTAL_BYTES = {"cpu": 256 << 20, "cuda": 16 * 10**9}
FREE_BYTES = 24 * 10**9
BLOCK = 128
PEERS: dict[str, tuple[Callable[[list[Tensor]], Tensor], float]] = {
    "torch t.float().std()": (lambda tensors: torch.stack([t.float().std() for t in tensors]), 1e-4),
    "torch t.std()": (lambda tensors: torch.stack([t.std() for t in tensors]), 1e-2),
}
"""Loops over the tensors in PyTorch, with the same threads, and how far their rounding may take them."""


@functools.lru_cache(maxsize=1)
def matrices(device: str, dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
    """Return one buffer of all elements, and the matrices that are its parts."""
    generator = torch.Generator(device).manual_seed(0)
    pool = torch.randn(1 << 22, device=device, generator=generator) * 0.02
    shapes: list[tuple[int, int]] = []
    while sum(rows * cols for rows, cols in shapes) * dtype.itemsize < TOTAL_BYTES[device]:
        shapes += LAYERS[device]
    all_E = torch.empty(sum(rows * cols for rows, cols in shapes), dtype=dtype, device=device)
    for part in torch.split(all_E, pool.numel()):
        factor = 0.5 + torch.rand((), device=device, generator=generator)
        part.copy_(pool[: part.numel()] * factor)
    parts = torch.split(all_E, [rows * cols for rows, cols in shapes])
    return all_E, [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


def check_against(
    tensors: list[Tensor],
    scales: list[Tensor] | None = None,
    rtol: float = 1e-6,
    *,
    blocks: list[Block | None] | None = None,
) -> Callable[[Tensor], None]:
    """Compare with the float64 reference; baselines that round their result get the tolerance of their type."""
    expected_T = layer_std_reference(tensors, scales, blocks=blocks)
    return lambda std_T: torch.testing.assert_close(std_T.double(), expected_T, rtol=rtol, atol=0.0)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", CODES, ids=CODES.values())
def test_memory(measure: Any, dtype: torch.dtype, device: str) -> None:
    """All six types."""
    require(device, native=True, free_bytes=FREE_BYTES)
    all_E, tensors = matrices(device, dtype)
    measure(
        "layer_std",
        "modelassay",
        lambda: layer_std(tensors),
        check=check_against(tensors),
        work=layer_std_work(tensors),
        ceiling=read_ceiling(all_E),
        device=device,
        dtype=CODES[dtype],
    )


@pytest.mark.parametrize("device", DEVICES)
def test_memory_with_block_scales(measure: Any, device: str) -> None:
    """fp8 with a scale per 128 x 128 elements, as in published checkpoints."""
    require(device, native=True, free_bytes=FREE_BYTES)
    all_E, tensors = matrices(device, torch.float8_e4m3fn)
    generator = torch.Generator(device).manual_seed(1)
    scales = [
        torch.rand(-(-t.shape[0] // BLOCK), -(-t.shape[1] // BLOCK), device=device, generator=generator) + 0.5
        for t in tensors
    ]
    blocks: list[Block | None] = [(BLOCK, BLOCK)] * len(tensors)
    measure(
        "layer_std",
        "modelassay",
        lambda: layer_std(tensors, scales=scales, blocks=blocks),
        check=check_against(tensors, scales, blocks=blocks),
        work=layer_std_work(tensors, scales),
        ceiling=read_ceiling(all_E),
        device=device,
        dtype="F8_E4M3 128x128 scales",
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=["BF16", "F16", "F32"])
@pytest.mark.parametrize("provider", PEERS)
def test_baseline(measure: Any, provider: str, dtype: torch.dtype, device: str) -> None:
    """What one writes in PyTorch."""
    require(device, native=True, free_bytes=FREE_BYTES)
    all_E, tensors = matrices(device, dtype)
    peer, rtol = PEERS[provider]
    measure(
        "layer_std",
        provider,
        lambda: peer(tensors),
        check=check_against(tensors, rtol=rtol),
        work=layer_std_work(tensors),
        ceiling=read_ceiling(all_E),
        device=device,
        rounds=3,
        dtype=CODES[dtype],
    )


def norms(tensors: list[Tensor]) -> Tensor:
    """Return the Euclidean norms in one call of torch."""
    return torch.stack(torch._foreach_norm(tensors))


@pytest.mark.gpu
@pytest.mark.parametrize("config", [*on_gpu.CONFIGS, None], ids=str)
def test_one_launch(measure: Any, config: on_gpu.LaunchConfig | None) -> None:
    """Every configuration over a table that was built before, and (None) `torch._foreach_norm`."""
    require("cuda", free_bytes=FREE_BYTES)
    all_E, tensors = matrices("cuda", torch.bfloat16)
    if config is None:
        provider = "torch._foreach_norm"
        run: Callable[[], Tensor] = functools.partial(norms, tensors)
        expected_T = torch.stack([x.double().norm() for x in tensors])
    else:
        table = on_gpu.build_work_table(tensors, None, config)
        provider = f"modelassay {config}"
        run = functools.partial(on_gpu.layer_std_from_table, table)
        expected_T = layer_std_reference(tensors)
    rtol = 1e-2 if config is None else 1e-6  # a norm is rounded to BF16
    measure(
        "layer_std in one launch",
        provider,
        run,
        check=lambda result_T: torch.testing.assert_close(result_T.double(), expected_T, rtol=rtol, atol=0.0),
        work=layer_std_work(tensors),
        ceiling=read_ceiling(all_E),
        device="cuda",
        dtype="BF16",
        is_default=config == on_gpu.default_config(all_E.device),
    )


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[FileSpan], Tensor]:
    """Give the BF16 matrices as one file, with their deviations."""
    require("cpu", native=True)
    all_E, tensors = matrices("cpu", torch.bfloat16)
    path = tmp_path_factory.mktemp("weights") / "weights.bin"
    torch.from_file(str(path), shared=True, size=all_E.numel(), dtype=all_E.dtype).copy_(all_E)
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
        while count := file.readinto(buffer):
            size += count
    return size / (time.perf_counter() - start) / 1e9


def resident_growth_kib(spans: list[FileSpan]) -> int | None:
    """Peak resident memory a whole pass adds in a process of its own."""
    setup = [
        "from modelassay_kernels import FileSpan, layer_std_file",
        f"spans = {spans!r}",
        "layer_std_file(spans[-1:])",
    ]
    return peak_growth_kib("\n".join(setup), "layer_std_file(spans)")


@pytest.mark.parametrize("cache", ["warm", "cold"])
def test_file(measure: Any, weights: tuple[list[FileSpan], Tensor], cache: str) -> None:
    """One pass over a file that is, or is not, in the page cache; memory stays under 64 MiB."""
    spans, expected_T = weights
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
        "layer_std_file",
        "modelassay",
        lambda: layer_std_file(spans),
        check=lambda std_T: torch.testing.assert_close(std_T, expected_T, rtol=0.0, atol=0.0),
        work=layer_std_work(matrices("cpu", torch.bfloat16)[1]),
        ceiling=ceiling,
        before=forget,
        rounds=7,
        dtype=f"BF16 {cache}",
        resident_growth_kib=growth_kib,
    )
