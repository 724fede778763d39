"""bottom_k and linear_bottom_k for a runner: logits of a vocabulary, or hidden states and the head that makes them."""

# N = rows, D = hidden size, V = vocabulary, K = kept of each row

from __future__ import annotations

import torch
from torch import Tensor

from modelassay_kernels.benchmarking.workload import (
    Provider,
    Run,
    Sizes,
    Tensors,
    Workload,
    assert_near,
    compiled,
    library,
    normal,
    on_gpu_alone,
    some,
)
from modelassay_kernels.bottom_k import bottom_k, linear_bottom_k
from modelassay_kernels.bottom_k.reference import bottom_k_reference
from modelassay_kernels.bottom_k.work import bottom_k_work, linear_bottom_k_work

SHARE = 0.0132
"""Kept of a vocabulary: 2,000 of Qwen2.5's 151,936."""
CHECKED_ROWS = 2


def topk(logits_NV: Tensor, k: int) -> Tensors:
    """Take torch's answer."""
    return tuple(torch.topk(logits_NV, k, dim=1, largest=False, sorted=True))


def product(hidden_ND: Tensor, weight_VD: Tensor) -> Tensor:
    """Return logits in fp32, as `linear_bottom_k` promises them."""
    if hidden_ND.is_cuda and hidden_ND.dtype != torch.float32:
        return torch.mm(hidden_ND, weight_VD.t(), out_dtype=torch.float32)
    return hidden_ND.float() @ weight_VD.float().t()


def workload(sizes: Sizes, rows: int, dtype: torch.dtype, device: str) -> Workload:
    """Return the smallest of each of ``rows`` rows, sorted."""
    num_cols = sizes.vocabulary
    k = round(SHARE * num_cols)

    def fill(seed: int) -> Tensors:
        return (normal(seed, device, dtype, rows, num_cols, scale=3.0),)

    def check(inputs: Tensors, result: Tensors, seed: int, loose: float) -> None:
        chosen = some(rows, CHECKED_ROWS, seed).to(device)
        logits = inputs[0][chosen]
        expected, _ = bottom_k_reference(logits, k)
        values, ids = (part[chosen] for part in result)
        torch.testing.assert_close(values, expected, rtol=0.0, atol=0.0)
        torch.testing.assert_close(logits.gather(1, ids), expected, rtol=0.0, atol=0.0)
        if bool((ids.sort(1).values.diff(dim=1) == 0).any()):
            raise AssertionError("an id stands twice in a row")

    def flashinfer() -> Run:
        top_k = library("flashinfer", "top_k")

        def run(logits_NV: Tensor) -> Tensors:
            values, ids = top_k(-logits_NV, k, sorted=True)
            return -values, ids.long()

        return run

    providers = {
        "modelassay": Provider(load=lambda: lambda logits: bottom_k(logits, k)),
        "torch.topk": Provider(load=lambda: lambda logits: topk(logits, k)),
        "torch.compile": compiled(lambda logits: topk(logits, k), device),
        "flashinfer": Provider(load=on_gpu_alone(device, flashinfer)),
    }
    logits = torch.empty(rows, num_cols, dtype=dtype, device="meta")
    return Workload(operation="bottom_k", sizes={"rows": rows, "vocabulary": num_cols, "k": k}, fill=fill, check=check,
                    work=bottom_k_work(logits, k), providers=providers)  # fmt: skip


def linear_workload(sizes: Sizes, rows: int, dtype: torch.dtype, device: str) -> Workload:
    """Return the smallest logits of ``rows`` hidden states, without the logits."""
    num_cols, hidden = sizes.vocabulary, sizes.hidden
    k = round(SHARE * num_cols)

    def fill(seed: int) -> Tensors:
        weight = normal(seed + 1, device, dtype, num_cols, hidden, scale=0.02)
        return normal(seed, device, dtype, rows, hidden), weight

    def check(inputs: Tensors, result: Tensors, seed: int, loose: float) -> None:
        chosen = some(rows, CHECKED_ROWS, seed).to(device)
        logits = inputs[0][chosen].double() @ inputs[1].double().t()
        expected = logits.sort(dim=1).values[:, :k]
        values, ids = (part[chosen] for part in result)
        for numbers in (values.sort(dim=1).values, logits.gather(1, ids).sort(dim=1).values):
            assert_near(numbers, expected, loose * 1e-4)

    def apart(hidden_ND: Tensor, weight_VD: Tensor) -> Tensors:
        return topk(product(hidden_ND, weight_VD), k)

    providers = {
        "modelassay": Provider(load=lambda: lambda hidden, weight: linear_bottom_k(hidden, weight, k)),
        "torch.topk": Provider(load=lambda: apart),
        "torch.compile": compiled(apart, device),
    }
    meta = [torch.empty(count, hidden, dtype=dtype, device="meta") for count in (rows, num_cols)]
    return Workload(operation="linear_bottom_k", fill=fill, check=check, products=True, providers=providers,
                    sizes={"rows": rows, "hidden": hidden, "vocabulary": num_cols, "k": k},
                    work=linear_bottom_k_work(meta[0], meta[1], k))  # fmt: skip
