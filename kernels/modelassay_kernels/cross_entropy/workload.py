"""linear_cross_entropy for a runner: the gradient of the mean loss of hidden states through a head."""

# N = tokens, V = vocabulary, D = hidden size

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
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
)
from modelassay_kernels.cross_entropy import linear_cross_entropy
from modelassay_kernels.cross_entropy.work import linear_cross_entropy_work

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
TOLERANCE = {torch.bfloat16: 3e-2, torch.float16: 1e-2, torch.float32: 1e-4}


def all_logits(hidden_ND: Tensor, weight_VD: Tensor, labels_N: Tensor) -> Tensor:
    """Compute the loss with all logits at one time."""
    return F.cross_entropy(F.linear(hidden_ND, weight_VD).float(), labels_N)


def gradient_of(loss: Loss) -> Run:
    """Return what gives the gradients of a loss, as training takes them."""

    def run(hidden_ND: Tensor, weight_VD: Tensor, labels_N: Tensor) -> Tensors:
        leaves = [x.detach().requires_grad_() for x in (hidden_ND, weight_VD)]
        return torch.autograd.grad(loss(leaves[0], leaves[1], labels_N), leaves)

    return run


def workload(sizes: Sizes, rows: int, dtype: torch.dtype, device: str) -> Workload:
    """Return the gradients of ``rows`` tokens' mean loss."""
    num_cols, hidden = sizes.vocabulary, sizes.hidden

    def fill(seed: int) -> Tensors:
        labels = torch.randint(num_cols, (rows,), generator=torch.Generator().manual_seed(seed)).to(device)
        weight = normal(seed + 1, device, dtype, num_cols, hidden, scale=hidden**-0.5)
        return normal(seed, device, dtype, rows, hidden), weight, labels

    def check(inputs: Tensors, result: Tensors, seed: int, loose: float) -> None:
        hidden_ND, weight_VD, labels_N = inputs
        leaves = [x.double().requires_grad_() for x in (hidden_ND, weight_VD)]
        expected = torch.autograd.grad(F.cross_entropy(leaves[0] @ leaves[1].t(), labels_N), leaves)
        for part, right in zip(result, expected, strict=True):
            assert_near(part, right, loose * TOLERANCE[dtype])

    def compile_loss() -> Run:
        return gradient_of(compiled(all_logits, device).load())

    def liger() -> Run:
        loss = library("liger_kernel.transformers", "LigerFusedLinearCrossEntropyLoss")()
        return gradient_of(lambda hidden, weight, labels: loss(weight, hidden, labels))

    def cut() -> Run:
        return gradient_of(library("cut_cross_entropy", "linear_cross_entropy"))

    providers = {
        "modelassay": Provider(load=lambda: gradient_of(linear_cross_entropy)),
        "torch": Provider(load=lambda: gradient_of(all_logits)),
        "torch.compile": Provider(load=compile_loss),
        "liger": Provider(load=on_gpu_alone(device, liger)),
        "cut-cross-entropy": Provider(load=on_gpu_alone(device, cut)),
    }
    work = linear_cross_entropy_work(rows, num_cols, hidden, itemsize=dtype.itemsize)
    return Workload(operation="linear_cross_entropy", fill=fill, check=check, products=True, providers=providers, work=work,
                    sizes={"rows": rows, "hidden": hidden, "vocabulary": num_cols})  # fmt: skip
