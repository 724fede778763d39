"""linear_cross_entropy on a CPU: gradient and Hessian-vector product against PyTorch, time and peak memory.

    ci/benchmark-kernels -k bench_cross_entropy

1024 tokens, a vocabulary of 32,768 and a hidden size of 64 in fp32: logits of 134 MB. Rates are in bytes that cannot be
avoided; the ceiling is the rate at which the bare matrix products of a gradient (3) or a Hessian-vector product (9) would pass
them, so `share_of_ceiling` is the share of the bare products' speed. `peak_growth_kib` is what one call adds to the peak of a
process of its own, with everything it returns.
"""

# N = tokens, V = vocabulary, D = hidden size

from __future__ import annotations

import functools
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, jvp

from modelassay_kernels import linear_cross_entropy
from modelassay_kernels.cross_entropy import minimum_work

N, V, D = 1024, 32768, 64
CHUNK_ROWS = 128

Pair = tuple[Tensor, Tensor]


def _peer(hidden_ND: Tensor, weight_VD: Tensor, labels_N: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(hidden_ND, weight_VD), labels_N)


PROVIDERS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "modelassay": linear_cross_entropy,
    f"modelassay, {CHUNK_ROWS} rows": functools.partial(linear_cross_entropy, chunk_rows=CHUNK_ROWS),
    "F.cross_entropy": _peer,
}


@functools.lru_cache(maxsize=1)
def problem() -> tuple[Pair, Pair, Tensor]:
    """Return hidden states and weight, a direction for them, and labels."""
    generator = torch.Generator().manual_seed(0)
    point = torch.randn(N, D, generator=generator), torch.randn(V, D, generator=generator) * 0.1
    direction = torch.randn(N, D, generator=generator), torch.randn(V, D, generator=generator)
    return point, direction, torch.randint(V, (N,), generator=generator)


def gradient(provider: str) -> Pair:
    """Return the gradients by `backward`, as training does."""
    (hidden, weight), _, labels = problem()
    leaves = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    PROVIDERS[provider](*leaves, labels).backward()  # type: ignore[no-untyped-call]
    assert leaves[0].grad is not None
    assert leaves[1].grad is not None
    return leaves[0].grad, leaves[1].grad


def hessian_product(provider: str) -> Pair:
    """Forward over reverse; for the peer double backward, which is its usual way."""
    point, direction, labels = problem()
    if provider == "F.cross_entropy":
        leaves = [p.clone().requires_grad_() for p in point]
        gradients = torch.autograd.grad(_peer(leaves[0], leaves[1], labels), leaves, create_graph=True)
        return torch.autograd.grad(gradients, leaves, direction)  # type: ignore[return-value]

    def loss(hidden: Tensor, weight: Tensor) -> Tensor:
        return PROVIDERS[provider](hidden, weight, labels)

    product: Pair = jvp(grad(loss, (0, 1)), point, direction)[1]
    return product


MODES = {"gradient": (gradient, 0), "hessian product": (hessian_product, 1)}


def bare_products_gbps(size_bytes: int, num_products: int) -> float:
    """GB/s of ``size_bytes`` in the time of so many products of N V D."""
    (hidden, weight), _, _ = problem()
    logits = hidden @ weight.t()
    runs: list[Callable[[], Tensor]] = [
        lambda: hidden @ weight.t(),
        lambda: logits @ weight,
        lambda: logits.t() @ hidden,
    ]
    start = time.perf_counter()
    for i in range(num_products):
        runs[i % 3]()
    return size_bytes / (time.perf_counter() - start) / 1e9


def peak_kib() -> int:
    """Peak resident memory of this process."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def peak_growth_kib(provider: str, mode: str) -> int | None:
    """Return what one call adds to the peak of a fresh process; None where /proc does not tell it."""
    if not Path("/proc/self/status").exists():
        return None
    command = [sys.executable, __file__, provider, mode]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("provider", PROVIDERS)
def test_linear_cross_entropy(measure: Any, provider: str, mode: str) -> None:
    """Checked against the peer, by norms."""
    run, tangents = MODES[mode]
    size_bytes, flops = minimum_work(N, V, D, itemsize=4, tangents=tangents)

    def check(got: Pair) -> None:
        for g, w in zip(got, run("F.cross_entropy"), strict=True):
            assert bool((g - w).norm() <= 1e-4 * w.norm())

    measure(
        f"linear_cross_entropy {mode}", provider, lambda: run(provider), check=check, size_bytes=size_bytes,
        ceiling=lambda: bare_products_gbps(size_bytes, flops // (2 * N * V * D)), rounds=3, dtype=f"F32 {N}x{V}x{D}",
        flops=flops, peak_growth_kib=peak_growth_kib(provider, mode),
    )  # fmt: skip


if __name__ == "__main__":
    problem()
    before_kib = peak_kib()
    kept = MODES[sys.argv[2]][0](sys.argv[1])
    print(peak_kib() - before_kib)
