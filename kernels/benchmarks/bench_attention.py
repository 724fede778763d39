"""attention and its derivatives on the CPU, against PyTorch's gradient of scaled_dot_product_attention.

    ci/benchmark-kernels

The ceiling is one large matrix product with the same threads: `ceiling_gbps` is the rate at which the operation would move
its bytes if its products (see `attention_work`) ran as fast as that, so `share_of_ceiling` is the share of its speed.
Providers take turns with nobody, so compare medians within one run: "hvp" is all four passes, what jvp of grad costs, and
with 8 tangents it is to be divided by 8. Memory is the peak that a process of its own adds, at lengths S that double.
"""

# B = batch, H = query heads, K = key-value heads, S = positions, D = head dimension, T = tangents

from __future__ import annotations

import functools
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from modelassay_kernels import attention_tiled as tiled
from modelassay_kernels.attention import Pass, _attention_reference, attention_work
from modelassay_kernels.attention_spans import make_spans, num_visible

SHAPES = {
    "B4 H4 K4 S128 D32": (4, 4, 4, 128, 32),
    "B2 H8 K2 S256 D64": (2, 8, 2, 256, 64),
    "B1 H4 K4 S512 D64": (1, 4, 4, 512, 64),
    "B1 H4 K1 S1024 D64": (1, 4, 1, 1024, 64),
}
WORK: dict[str, tuple[tuple[Pass, ...], int]] = {
    "gradient": (("forward", "backward"), 0),
    "hvp, 1 tangent": (("forward", "tangent", "backward", "backward_tangent"), 1),
    "hvp, 8 tangents": (("forward", "tangent", "backward", "backward_tangent"), 8),
}


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Inputs, incoming gradient, and tangents of all four."""

    q: Tensor
    k: Tensor
    v: Tensor
    g: Tensor
    spans: Tensor
    dots: tuple[Tensor, ...]

    @property
    def scale(self) -> float:
        """The usual one."""
        return float(self.q.shape[-1] ** -0.5)

    def passes(self) -> tuple[Tensor, ...]:
        """The gradient, and its tangents if there are any."""
        o, lse = tiled.forward(self.q, self.k, self.v, self.spans, self.scale, None)
        primal = (self.q, self.k, self.v, self.spans, o, lse)
        if not self.dots:
            return tiled.backward(*primal, self.g, self.scale, None)
        o_dot, lse_dot = tiled.tangent(*primal, *self.dots[:3], self.scale, None)
        tiled.backward(*primal, self.g, self.scale, None)
        dots = (*self.dots[:3], o_dot, lse_dot, self.dots[3])
        return tiled.backward_tangent(*primal, self.g, *dots, self.scale, None)

    def expected(self) -> tuple[Tensor, ...]:
        """The same by the definition in float64; of several tangents, the first."""
        leaves = [x.double().requires_grad_() for x in (self.q, self.k, self.v, self.g)]
        output = _attention_reference(*leaves[:3], self.spans)
        gradient = torch.autograd.grad(output, leaves[:3], leaves[3], create_graph=bool(self.dots))
        if not self.dots:
            return gradient
        u = [torch.zeros_like(x, requires_grad=True) for x in gradient]
        adjoint = torch.autograd.grad(
            gradient, leaves, u, create_graph=True
        )  # linear in u: its own adjoint is the tangent
        return torch.autograd.grad(adjoint, u, [x[0].double() for x in self.dots])

    def check(self, got: tuple[Tensor, ...]) -> None:
        """Compare with the definition."""
        for x, y in zip(got, self.expected(), strict=True):
            torch.testing.assert_close((x[0] if self.dots else x).double(), y, rtol=1e-4, atol=1e-4)


@functools.cache
def problem(shape: str, num_tangents: int) -> Problem:
    """Random normal inputs."""
    batch, heads, kv_heads, length, dim = SHAPES[shape]
    generator = torch.Generator().manual_seed(0)
    sizes = [(batch, heads, length, dim), *[(batch, kv_heads, length, dim)] * 2, (batch, heads, length, dim)]
    q, k, v, g = (torch.randn(size, generator=generator) for size in sizes)
    dots = tuple(torch.randn(num_tangents, *size, generator=generator) for size in sizes) if num_tangents else ()
    return Problem(q=q, k=k, v=v, g=g, spans=make_spans(length, length, causal=True), dots=dots)


def work_of(shape: str, name: str) -> tuple[int, int]:
    """Least bytes and flops."""
    passes, num_tangents = WORK[name]
    x = problem(shape, num_tangents)
    num_scores = int(num_visible(x.spans)) * x.q.shape[0] * x.q.shape[1]
    parts = [
        attention_work(which, x.q, x.k, num_scores=num_scores, num_tangents=num_tangents if "tangent" in which else 0)
        for which in passes
    ]
    return sum(part[0] for part in parts), sum(part[1] for part in parts)


def product_ceiling(size_bytes: int, flops: int) -> Callable[[], float]:
    """GB/s of an operation of these sizes at the speed of a 1024 x 1024 x 1024 product."""
    a, out = torch.randn(1024, 1024), torch.empty(1024, 1024)

    def measure_once() -> float:
        start = time.perf_counter()
        torch.mm(a, a, out=out)
        flops_per_s = 2 * 1024**3 / (time.perf_counter() - start)
        return size_bytes / (flops / flops_per_s) / 1e9

    return measure_once


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", WORK)
def test_ours(measure: Any, shape: str, name: str) -> None:
    """All passes of the gradient, or of the Hessian-vector product, in fp32, causal."""
    size_bytes, flops = work_of(shape, name)
    x = problem(shape, WORK[name][1])
    measure(
        f"attention {shape}", f"modelassay {name}", x.passes, check=x.check, size_bytes=size_bytes,
        ceiling=product_ceiling(size_bytes, flops), dtype="F32", flops=flops, num_tangents=WORK[name][1],
    )  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_gradient_of_sdpa(measure: Any, shape: str) -> None:
    """What an ordinary training step does; it has no second derivative."""
    x = problem(shape, 0)
    size_bytes, flops = work_of(shape, "gradient")

    def gradient() -> tuple[Tensor, ...]:
        leaves = [y.detach().requires_grad_() for y in (x.q, x.k, x.v)]
        output = scaled_dot_product_attention(*leaves, is_causal=True, enable_gqa=x.q.shape[1] != x.k.shape[1])
        return torch.autograd.grad(output, leaves, x.g)

    measure(
        f"attention {shape}", "torch sdpa gradient", gradient, check=x.check, size_bytes=size_bytes,
        ceiling=product_ceiling(size_bytes, flops), dtype="F32", flops=flops, num_tangents=0,
    )  # fmt: skip


PEAK = """
import sys, torch, warnings
from torch.func import grad, jvp
from modelassay_kernels import attention
warnings.simplefilter("ignore")
def peak_kib():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
torch.set_num_threads(int(sys.argv[1]))
def loss(q, k, v):
    if sys.argv[3] == "modelassay":
        return attention(q, k, v).square().sum()
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).square().sum()
def hvp(length):
    x = tuple(torch.randn(1, 4, length, 64) for _ in range(3))
    return jvp(grad(loss, (0, 1, 2)), x, x)
hvp(64)
before = peak_kib()
hvp(int(sys.argv[2]))
print(peak_kib() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc to tell the peak memory")
@pytest.mark.parametrize("provider", ["modelassay", "torch sdpa MATH"])
def test_peak_memory_of_a_hessian_vector_product(benchmark: Any, provider: str) -> None:
    """B1 H4 S D64 in fp32: linear in S for one, quadratic for the other."""
    lengths = (512, 1024, 2048, 4096) if provider == "modelassay" else (512, 1024, 2048)
    growth_kib: dict[int, int] = {}

    def measure_all() -> None:
        for length in lengths:
            command = [sys.executable, "-c", PEAK, str(torch.get_num_threads()), str(length), provider]
            growth_kib[length] = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    benchmark.pedantic(measure_all, rounds=1)  # its time is that of four processes, and says nothing
    benchmark.extra_info |= {
        "operation": "attention hvp memory",
        "provider": provider,
        "growth_kib_by_length": growth_kib,
    }
