"""Attention for a runner: the gradient of a loss of causal attention over one sequence."""

# H = query heads, K = key-value heads, S = positions, D = head dimension

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from modelassay_kernels.attention import attention
from modelassay_kernels.attention.reference import attention_reference
from modelassay_kernels.attention.spans import make_spans
from modelassay_kernels.attention.work import attention_work
from modelassay_kernels.benchmarking.workload import (
    Provider,
    Run,
    Sizes,
    Tensors,
    Workload,
    assert_near,
    library,
    normal,
    on_gpu_alone,
)
from modelassay_kernels.work import Work

TOLERANCE = {torch.bfloat16: 5e-2, torch.float16: 1e-2, torch.float32: 1e-4}
BACKENDS = {
    "sdpa math": SDPBackend.MATH,
    "sdpa flash": SDPBackend.FLASH_ATTENTION,
    "sdpa efficient": SDPBackend.EFFICIENT_ATTENTION,
    "sdpa cudnn": SDPBackend.CUDNN_ATTENTION,
}


def gradient_of(forward: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Run:
    """Return what gives the gradients of the sum of squares of an attention's output."""

    def run(*inputs: Tensor) -> Tensors:
        q, k, v = leaves = [x.detach().requires_grad_() for x in inputs]
        return torch.autograd.grad(forward(q, k, v).float().square().sum(), leaves)

    return run


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Let PyTorch choose its backend."""
    return scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])


def _backend(backend: SDPBackend) -> Run:
    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return sdpa(q, k, v)

    return gradient_of(run)


def _flash_attention() -> Run:
    function = library("flash_attn", "flash_attn_func")
    return gradient_of(lambda q, k, v: function(*(x.transpose(1, 2) for x in (q, k, v)), causal=True).transpose(1, 2))


def workload(sizes: Sizes, rows: int, dtype: torch.dtype, device: str) -> Workload:
    """Return the gradients of one sequence of ``rows`` positions."""

    def shape(heads: int) -> tuple[int, int, int, int]:
        return 1, heads, rows, sizes.head_dim

    def fill(seed: int) -> Tensors:
        heads = (sizes.heads, sizes.kv_heads, sizes.kv_heads)
        return tuple(normal(seed + i, device, dtype, *shape(count)) for i, count in enumerate(heads))

    def check(inputs: Tensors, result: Tensors, seed: int, loose: float) -> None:
        q, k, v = leaves = [x.double().requires_grad_() for x in inputs]
        output = attention_reference(q, k, v, make_spans(rows, rows, causal=True, device=torch.device(device)))
        for part, right in zip(result, torch.autograd.grad(output.square().sum(), leaves), strict=True):
            assert_near(part, right, loose * TOLERANCE[dtype])

    num_scores = sizes.heads * rows * (rows + 1) // 2
    q, k = (torch.empty(shape(count), dtype=dtype, device="meta") for count in (sizes.heads, sizes.kv_heads))
    work = Work(bytes=0, flops=0)
    for which in ("forward", "backward"):
        work += attention_work(which, q, k, num_scores=num_scores, num_tangents=0)
    providers = {
        "modelassay": Provider(load=lambda: gradient_of(attention)),
        "sdpa": Provider(load=lambda: gradient_of(sdpa)),
        **{name: Provider(load=partial(_backend, backend)) for name, backend in BACKENDS.items()},
        "flash-attention": Provider(load=on_gpu_alone(device, _flash_attention)),
    }
    return Workload(operation="attention", fill=fill, check=check, products=True, providers=providers, work=work,
                    sizes={"positions": rows, "heads": sizes.heads, "kv_heads": sizes.kv_heads, "head_dim": sizes.head_dim})  # fmt: skip
