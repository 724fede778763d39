"""The workload of the gate: this project's operations at small sizes, each against its definition in float64.

The definitions are written here once more, so that a candidate is not judged by a reference it brought along.
"""

# N = rows, V = vocabulary, D = head or hidden dimension, B = batch, H = heads, S = positions

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

package = "modelassay_kernels"


@dataclass(frozen=True)
class Case:
    """One operation at one size and type."""

    name: str
    labels: dict[str, Any]
    make: Callable[[int], Any]
    run: Callable[[Any], Any]
    check: Callable[[Any, Any], None]


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SCALE = 16 if DEVICE == "cuda" else 1
"""A GPU has the work of so many."""


@cache
def pool() -> Tensor:
    """Return normal random numbers, made once in a process; inputs are cut out of it, turned and scaled."""
    return torch.randn(1 << 23, generator=torch.Generator().manual_seed(0))


def fresh(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return an input that no other seed gives: every element of it differs from that of another seed."""
    count = torch.Size(shape).numel()
    generator = torch.Generator().manual_seed(seed)
    start = int(torch.randint(pool().numel() - min(count, pool().numel() // 2), (), generator=generator))
    factor = 0.5 + float(torch.rand((), generator=generator))
    part = pool().roll(-start)[:count] if start + count > pool().numel() else pool()[start : start + count]
    return (part * factor).to(dtype).view(shape).to(DEVICE)


def close(got: Tensor, expected: Tensor, rtol: float, atol: float = 0.0) -> None:
    """Compare in float64.

    Raises:
        AssertionError: they differ.
    """
    torch.testing.assert_close(got.double(), expected.double().cpu(), rtol=rtol, atol=atol, check_device=False)


def layer_std(dtype: torch.dtype) -> Case:
    """Standard deviations of four matrices."""
    from modelassay_kernels import layer_std as op

    rows = 512 * SCALE

    def check(tensors: list[Tensor], got: Tensor) -> None:
        close(got, torch.stack([tensor.double().std() for tensor in tensors]), 1e-6)

    return Case(f"layer_std {name_of(dtype)}", {"op": "layer_std", "shape": f"4x {rows} x 1024", "dtype": name_of(dtype)},
                lambda seed: [fresh(seed + i, rows, 1024, dtype=dtype) for i in range(4)], op, check)  # fmt: skip


def bottom_k() -> Case:
    """The smallest logits of each row."""
    from modelassay_kernels import bottom_k as op

    num_rows, size, k = 16 * SCALE, 50_304, 664

    def check(logits: Tensor, got: tuple[Tensor, Tensor]) -> None:
        values, ids = logits.cpu().double().sort(dim=1, stable=True)
        close(got[0], values[:, :k], 0.0)
        assert torch.equal(got[1].cpu(), ids[:, :k]), "the ids differ from those of a stable sort"

    labels = {"op": "bottom_k", "shape": f"{num_rows} x {size}, k {k}", "dtype": "F32"}
    return Case("bottom_k F32", labels, lambda seed: fresh(seed, num_rows, size), lambda logits: op(logits, k), check)


def softmax_ggn() -> Case:
    """The Gauss-Newton product of cross-entropy."""
    from modelassay_kernels import softmax_ggn as op

    num_rows, size = 32 * SCALE, 32_000

    def check(inputs: tuple[Tensor, Tensor], got: Tensor) -> None:
        p, u = inputs[0].double().softmax(1), inputs[1].double()
        close(got, p * (u - (p * u).sum(1, keepdim=True)), 1e-4, 1e-9)

    labels = {"op": "softmax_ggn", "shape": f"{num_rows} x {size}", "dtype": "F32"}
    return Case("softmax_ggn F32", labels, lambda seed: (fresh(seed, num_rows, size), fresh(seed + 1, num_rows, size)),
                lambda inputs: op(*inputs), check)  # fmt: skip


def attention() -> Case:
    """Causal attention with grouped keys."""
    from modelassay_kernels import attention as op

    batch, length = SCALE, 256

    def check(inputs: tuple[Tensor, Tensor, Tensor], got: Tensor) -> None:
        q, k, v = (tensor.double() for tensor in inputs)
        k, v = (tensor.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for tensor in (k, v))
        scores = (q @ k.transpose(2, 3)) / q.shape[-1] ** 0.5
        future = torch.ones(length, length, dtype=torch.bool, device=q.device).triu(1)
        close(got, scores.masked_fill(future, -torch.inf).softmax(-1) @ v, 2e-3, 2e-3 if DEVICE == "cuda" else 1e-5)

    labels = {"op": "attention", "shape": f"B{batch} H4 K1 S{length} D64", "dtype": "F32"}
    shapes = ((batch, 4, length, 64), (batch, 1, length, 64), (batch, 1, length, 64))
    return Case("attention F32", labels, lambda seed: tuple(fresh(seed + i, *s) for i, s in enumerate(shapes)),
                lambda inputs: op(*inputs, causal=True), check)  # fmt: skip


def linear_cross_entropy() -> Case:
    """The loss of a language model's head without its logits in memory."""
    from modelassay_kernels import linear_cross_entropy as op

    num_rows, hidden, size = 64 * SCALE, 128, 8192

    def make(seed: int) -> tuple[Tensor, Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        target = torch.randint(size, (num_rows,), generator=generator).to(DEVICE)
        return fresh(seed, num_rows, hidden), fresh(seed + 1, size, hidden), target

    def check(inputs: tuple[Tensor, Tensor, Tensor], got: Tensor) -> None:
        hidden_ND, weight_VD, target_N = inputs
        loss = torch.nn.functional.cross_entropy(hidden_ND.double() @ weight_VD.double().T, target_N)
        close(got, loss, 1e-3 if DEVICE == "cuda" else 1e-5)

    labels = {"op": "linear_cross_entropy", "shape": f"{num_rows} x {hidden} x {size}", "dtype": "F32"}
    return Case("linear_cross_entropy F32", labels, make, lambda inputs: op(*inputs), check)


def name_of(dtype: torch.dtype) -> str:
    """Return the short name of an element type.

    >>> name_of(torch.bfloat16)
    'BF16'
    """
    return {torch.float32: "F32", torch.bfloat16: "BF16"}[dtype]


def cases() -> list[Case]:
    """Return all cases, the same in every process."""
    return [
        layer_std(torch.bfloat16),
        layer_std(torch.float32),
        bottom_k(),
        softmax_ggn(),
        attention(),
        linear_cross_entropy(),
    ]
