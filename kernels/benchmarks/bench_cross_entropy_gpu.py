"""linear_cross_entropy on a GPU: gradient and Hessian-vector products against PyTorch, time and peak memory.

    ci/benchmark-kernels -k bench_cross_entropy_gpu

Not measured yet: no GPU has run this file. 8192 tokens, a vocabulary of 151,936 and a hidden size of 4096 in bf16: on an H100 the
bare products of a gradient are known to take 42 ms, the layers apart 59 ms and 19.9 GiB, the best-known chunked kernel 192 ms
and 6.1 GiB. Rates and shares as in bench_cross_entropy.py; a provider that runs out of memory is skipped with that reason.
"""

# N = tokens, V = vocabulary, D = hidden size, K = tangents

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, jvp, vmap

from modelassay_kernels import linear_cross_entropy
from modelassay_kernels.cross_entropy import minimum_work

pytestmark = pytest.mark.gpu

N, V, D = 8192, 151936, 4096
NEEDED_BYTES = 64 * 2**30


def _peer(hidden_ND: Tensor, weight_VD: Tensor, labels_N: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(hidden_ND, weight_VD).float(), labels_N)


PROVIDERS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "modelassay": linear_cross_entropy,
    "F.cross_entropy": _peer,
}
MODES = {"gradient": 0, "hessian product": 1, "4 hessian products": 4}


def make_run(provider: str, num_tangents: int, num_rows: int = N) -> Callable[[], tuple[Tensor, ...]]:
    """Return a function whose results are ready when it returns: gradients, or tangents of them."""
    generator = torch.Generator("cuda").manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, device="cuda", generator=generator, dtype=torch.bfloat16)

    point = normal(num_rows, D), normal(V, D) * 0.02
    directions = [(normal(num_rows, D), normal(V, D) * 0.02) for _ in range(num_tangents)]
    stacked = [torch.stack(column) for column in zip(*directions, strict=True)]
    labels = torch.randint(V, (num_rows,), device="cuda", generator=generator)

    def gradients(*point: Tensor) -> tuple[Tensor, ...]:
        return grad(lambda h, w: PROVIDERS[provider](h, w, labels), (0, 1))(*point)  # type: ignore[no-any-return]

    def product(*direction: Tensor) -> tuple[Tensor, ...]:
        return jvp(gradients, point, direction)[1]  # type: ignore[no-any-return]

    def run() -> tuple[Tensor, ...]:
        if num_tangents == 0:
            results = gradients(*point)
        else:
            results = product(*directions[0]) if num_tangents == 1 else vmap(product)(*stacked)
        torch.cuda.synchronize()
        return results

    return run


def bare_products_gbps(size_bytes: int, num_products: int) -> float:
    """GB/s of ``size_bytes`` in the time of so many products of N V D in bf16."""
    hidden = torch.randn(N, D, device="cuda", dtype=torch.bfloat16)
    weight = torch.randn(V, D, device="cuda", dtype=torch.bfloat16)
    logits = hidden @ weight.t()
    runs: list[Callable[[], Tensor]] = [
        lambda: hidden @ weight.t(),
        lambda: logits @ weight,
        lambda: logits.t() @ hidden,
    ]
    for run in runs:
        run()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    start.record()
    for i in range(num_products):
        runs[i % 3]()
    end.record()
    end.synchronize()
    return size_bytes / start.elapsed_time(end) / 1e6


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("provider", PROVIDERS)
def test_linear_cross_entropy(measure: Any, provider: str, mode: str) -> None:
    """Checked against the peer on 512 of the tokens, by norms."""
    if torch.cuda.mem_get_info()[0] < NEEDED_BYTES:
        pytest.skip("needs 64 GiB of free device memory")
    num_tangents = MODES[mode]
    for got, want in zip(
        make_run(provider, num_tangents, 512)(), make_run("F.cross_entropy", num_tangents, 512)(), strict=True
    ):
        assert bool((got.float() - want.float()).norm() <= 0.03 * want.float().norm())
    run = make_run(provider, num_tangents)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    try:
        run()
    except torch.OutOfMemoryError as error:
        pytest.skip(f"{provider} runs out of memory: {str(error).splitlines()[0]}")
    peak_bytes = torch.cuda.max_memory_allocated() - before
    size_bytes, flops = minimum_work(N, V, D, itemsize=2, tangents=num_tangents)

    def check(got: tuple[Tensor, ...]) -> None:
        assert all(bool(x.isfinite().all()) for x in got)

    measure(
        f"linear_cross_entropy {mode}", provider, run, check=check, size_bytes=size_bytes, rounds=7,
        ceiling=lambda: bare_products_gbps(size_bytes, flops // (2 * N * V * D)), dtype=f"BF16 {N}x{V}x{D}",
        flops=flops, extra_memory_bytes=peak_bytes,
    )  # fmt: skip
