"""softmax_ggn for a runner: logits of a vocabulary, and u."""

# N is rows, V is vocabulary

from __future__ import annotations

import torch
from torch import Tensor

from modelassay_kernels.benchmarking.workload import (
    Provider,
    Sizes,
    Tensors,
    Workload,
    assert_near,
    compiled,
    normal,
    some,
)
from modelassay_kernels.softmax_ggn import softmax_ggn
from modelassay_kernels.softmax_ggn.reference import softmax_ggn_reference
from modelassay_kernels.softmax_ggn.work import softmax_ggn_work

TOLERANCE = {torch.bfloat16: 2**-7, torch.float16: 2**-9, torch.float32: 1e-5}


def eager(logits_NV: Tensor, u_NV: Tensor) -> Tensor:
    """Compute as one writes it: softmax in float32, the rest in it too."""
    p_NV = torch.softmax(logits_NV, 1, dtype=torch.float32)
    return (p_NV * (u_NV - (p_NV * u_NV).sum(1, keepdim=True))).to(logits_NV.dtype)


def double_backward(logits_NV: Tensor, u_NV: Tensor) -> Tensor:
    """Compute as autograd does, through logsumexp twice."""
    leaf = logits_NV.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(leaf.logsumexp(1).sum(), leaf, create_graph=True)
    return torch.autograd.grad(gradient, leaf, u_NV)[0]


def workload(sizes: Sizes, rows: int, dtype: torch.dtype, device: str) -> Workload:
    """Return the product with the Hessian of ``rows`` losses over the vocabulary."""
    num_cols = sizes.vocabulary

    def fill(seed: int) -> Tensors:
        return tuple(normal(seed + part, device, dtype, rows, num_cols, scale=3 - 2 * part) for part in (0, 1))

    def check(inputs: Tensors, y_NV: Tensor, seed: int, loose: float) -> None:
        chosen = some(rows, 4, seed).to(device)
        expected = softmax_ggn_reference(*(x[chosen] for x in inputs))
        for row, right in zip(y_NV[chosen], expected, strict=True):
            assert_near(row, right, loose * TOLERANCE[dtype])

    providers = {
        "modelassay": Provider(load=lambda: softmax_ggn),
        "torch": Provider(
            load=lambda: eager, loose=4
        ),  # its sum over a whole vocabulary is not compensated: up to 1.3e-5 was seen
        "torch double backward": Provider(load=lambda: double_backward, loose=16),  # the gradient between is rounded
        "torch.compile": Provider(load=compiled(eager, device).load, loose=4),
    }
    return Workload(operation="softmax_ggn", sizes={"rows": rows, "vocabulary": num_cols}, fill=fill, check=check,
                    work=softmax_ggn_work(rows, num_cols, itemsize=dtype.itemsize), providers=providers)  # fmt: skip
