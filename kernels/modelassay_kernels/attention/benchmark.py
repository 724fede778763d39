"""attention and its derivatives against PyTorch's gradient of scaled_dot_product_attention and its only second order.

    python -m modelassay_kernels.benchmarking -k attention

The ceiling is a large matrix product on the same device: `ceiling_gbps` is the rate at which the operation would move its bytes
if its products (see `attention_work`) ran as fast as that, so `share_of_ceiling` is the share of its speed. Providers take turns
with nobody, so compare medians within one run: "hvp" is all four passes, what jvp of grad costs, and with 8 tangents it is
to be divided by 8. CPU: fp32. Memory is the peak that a process of its own adds, at lengths S that double.

GPU, not measured yet: causal, in BF16 and F32; the mark is 3.2 gradients for one vector and 2.5 for each of eight. "sdpa MATH hvp"
is jvp of grad through SDPBackend.MATH, which holds S x S and is left out where that does not fit.
"""

# B = batch, H = query heads, K = key-value heads, S = positions, D = head dimension, T = tangents

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, jvp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from modelassay_kernels.attention import attention
from modelassay_kernels.attention.reference import attention_reference
from modelassay_kernels.attention.spans import make_spans, num_visible
from modelassay_kernels.attention.work import Pass, attention_work
from modelassay_kernels.benchmarking.ceilings import product_ceiling
from modelassay_kernels.benchmarking.measure import require
from modelassay_kernels.benchmarking.memory import STATUS, peak_growth_kib
from modelassay_kernels.dtypes import CODES
from modelassay_kernels.work import Work

Tensors = tuple[Tensor, ...]
SHAPES = {
    "cpu": [(4, 4, 4, 128, 32), (2, 8, 2, 256, 64), (1, 4, 4, 512, 64), (1, 4, 1, 1024, 64)],
    "cuda": [(2, 16, 4, length, dim) for dim in (64, 128) for length in (1024, 4096, 16384)],
}
"""B, H, K, S and D."""
DTYPES = {"cpu": [torch.float32], "cuda": [torch.bfloat16, torch.float32]}
TOLERANCE = {torch.bfloat16: 5e-2, torch.float32: 1e-4}
LONGEST_QUADRATIC = 4096
"""The longest sequence whose scores are held at one time: by the reference and by SDPBackend.MATH."""
PRODUCT_SIZE = {"cpu": 1024, "cuda": 8192}
ALL_PASSES: tuple[Pass, ...] = ("forward", "tangent", "backward", "backward_tangent")
WORK: dict[str, tuple[tuple[Pass, ...], int]] = {
    "gradient": (("forward", "backward"), 0),
    "hvp, 1 tangent": (ALL_PASSES, 1),
    "hvp, 8 tangents": (ALL_PASSES, 8),
}
SDPA_GRADIENT, MATH_HVP = "torch sdpa gradient", "torch sdpa MATH hvp"
PROVIDERS = {
    **{f"modelassay {name}": name for name in WORK},
    SDPA_GRADIENT: "gradient",
    MATH_HVP: "hvp, 1 tangent",
}
"""Each with what it computes."""


def cases() -> list[Any]:
    """Return (device, shape, dtype), those of a GPU marked."""
    marks = {"cpu": (), "cuda": (pytest.mark.gpu,)}
    return [
        pytest.param(device, shape, dtype, id=f"{device}-{name_of(shape)}-{CODES[dtype]}", marks=marks[device])
        for device, shapes in SHAPES.items()
        for shape in shapes
        for dtype in DTYPES[device]
    ]


def name_of(shape: tuple[int, ...]) -> str:
    """Spell a shape."""
    return " ".join(f"{letter}{size}" for letter, size in zip("BHKSD", shape, strict=True))


@functools.lru_cache(maxsize=1)
def inputs(device: str, shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensors, Tensors]:
    """Return random normal q, k and v, and eight tangents of each."""
    batch, heads, kv_heads, length, dim = shape
    generator = torch.Generator(device).manual_seed(0)
    sizes = [(batch, heads, length, dim), *[(batch, kv_heads, length, dim)] * 2]
    at = tuple(torch.randn(size, device=device, generator=generator).to(dtype) for size in sizes)
    return at, tuple(torch.randn(8, *size, device=device, generator=generator).to(dtype) for size in sizes)


def work_of(name: str, device: str, shape: tuple[int, ...], dtype: torch.dtype) -> Work:
    """Sum the work of all passes."""
    passes, num_tangents = WORK[name]
    (q, k, _), _ = inputs(device, shape, dtype)
    num_scores = int(num_visible(make_spans(shape[3], shape[3], causal=True))) * shape[0] * shape[1]
    total = Work(bytes=0, flops=0)
    for which in passes:
        count = num_tangents if "tangent" in which else 0
        total += attention_work(which, q, k, num_scores=num_scores, num_tangents=count)
    return total


def loss_of(output: Tensor) -> Tensor:
    """Return a loss whose Hessian is not constant."""
    return output.float().square().sum()


def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Compute the loss of ours."""
    return loss_of(attention(q, k, v))


def by_math(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Compute it by PyTorch's own operations."""
    with sdpa_kernel(SDPBackend.MATH):
        return loss_of(scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True))


def by_reference(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Compute it by the definition, in float64."""
    spans = make_spans(q.shape[2], k.shape[2], causal=True, device=q.device)
    return attention_reference(q, k, v, spans).square().sum()


def sdpa_gradient(at: Tensors) -> Tensors:
    """Do what an ordinary training step does; it has no second derivative."""
    q, k, v = leaves = [x.detach().requires_grad_() for x in at]
    output = scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])
    return torch.autograd.grad(loss_of(output), leaves)


def derivative(loss: Callable[..., Tensor], name: str, at: Tensors, along: Tensors) -> Tensors:
    """Return the gradient, or Hessian-vector products along one tangent or all."""
    gradient = grad(loss, (0, 1, 2))
    if name == "gradient":
        return tuple(gradient(*at))
    if WORK[name][1] == 1:
        return tuple(jvp(gradient, at, tuple(x[0] for x in along))[1])
    return tuple(vmap(lambda *direction: jvp(gradient, at, direction)[1])(*along))


def runner(provider: str, at: Tensors, along: Tensors) -> Callable[[], Tensors]:
    """Return what is timed."""
    if provider == SDPA_GRADIENT:
        return functools.partial(sdpa_gradient, at)
    return functools.partial(derivative, by_math if provider == MATH_HVP else ours, PROVIDERS[provider], at, along)


def product_of(device: str, dtype: torch.dtype) -> tuple[Callable[[], Tensor], int]:
    """Return a square product, and its flops."""
    size = PRODUCT_SIZE[device]
    factor = torch.randn(size, size, device=device).to(dtype)
    return lambda: factor @ factor, 2 * size**3


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
@pytest.mark.parametrize(("device", "shape", "dtype"), cases())
@pytest.mark.parametrize("provider", PROVIDERS)
def test_derivatives(measure: Any, provider: str, device: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Causal; of several tangents the first is compared with the definition."""
    require(device)
    name, length = PROVIDERS[provider], shape[3]
    if provider == MATH_HVP and length > LONGEST_QUADRATIC:
        pytest.skip(f"{provider} holds {length} x {length} scores for each head")
    at, along = inputs(device, shape, dtype)

    def check(result: Tensors) -> None:
        if length > LONGEST_QUADRATIC:
            assert all(bool(x.isfinite().all()) for x in result)
            return
        first = "gradient" if name == "gradient" else "hvp, 1 tangent"
        exact, exact_along = (tuple(x.double() for x in tensors) for tensors in (at, along))
        for x, y in zip(result, derivative(by_reference, first, exact, exact_along), strict=True):
            x = x[0] if WORK[name][1] > 1 else x
            assert float((x.double() - y).norm() / y.norm()) < TOLERANCE[dtype]

    work = work_of(name, device, shape, dtype)
    product, product_flops = product_of(device, dtype)
    measure(
        f"attention {name_of(shape)}",
        provider,
        runner(provider, at, along),
        check=check,
        work=work,
        ceiling=product_ceiling(work, [product], product_flops, device),
        device=device,
        dtype=CODES[dtype],
        num_tangents=WORK[name][1],
    )


def hessian_product(provider: str, length: int) -> Tensors:
    """Return a Hessian-vector product of B1 H4 S D64 in fp32."""
    at = tuple(torch.randn(1, 4, length, 64) for _ in range(3))
    return tuple(jvp(grad(ours if provider == "modelassay" else by_math, (0, 1, 2)), at, at)[1])


@pytest.mark.skipif(not STATUS.exists(), reason="needs /proc to tell the peak memory")
@pytest.mark.parametrize("provider", ["modelassay", "torch sdpa MATH"])
def test_peak_memory_of_a_hessian_vector_product(benchmark: Any, provider: str) -> None:
    """Linear in S for one, quadratic for the other."""
    lengths = (512, 1024, 2048, 4096) if provider == "modelassay" else (512, 1024, 2048)
    setup = f"from modelassay_kernels.attention.benchmark import hessian_product\nhessian_product({provider!r}, 64)"
    growth_kib: dict[int, int | None] = {}

    def measure_all() -> None:
        for length in lengths:
            growth_kib[length] = peak_growth_kib(setup, f"result = hessian_product({provider!r}, {length})")

    benchmark.pedantic(measure_all, rounds=1)  # its time is that of four processes, and says nothing
    benchmark.extra_info |= {
        "operation": "attention hvp memory",
        "provider": provider,
        "growth_kib_by_length": growth_kib,
    }
