"""Every operation in one graph of torch.compile: what it returns and its gradient are those of eager code."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from modelassay_kernels import (
    attention,
    attention_over_spans,
    bottom_k,
    layer_std,
    linear_bottom_k,
    linear_cross_entropy,
    softmax_ggn,
)
from modelassay_kernels.attention.spans import make_spans
from support.cross_entropy_cases import normal

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
X, W, U = (normal(6, 10, seed=i, dtype=torch.float32) for i in range(3))
LABELS = torch.tensor([0, 3, -100, 5, 2, 1])
QKV = tuple(normal(2, heads, 7, 8, seed=9 + heads, dtype=torch.float32) for heads in (4, 2, 2))
VALID = torch.arange(10) != 4
LENGTHS = torch.tensor([7, 3])
FUNCTIONS: dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...]]] = {
    "softmax_ggn": (lambda u: softmax_ggn(X, u * 2), (U,)),
    "linear_cross_entropy": (lambda x, w: linear_cross_entropy(x * 2, w, LABELS, softcap=5.0), (X, W)),
    "linear_cross_entropy of each": (
        lambda x, w, b: linear_cross_entropy(x, w, LABELS, bias=b, reduction="none").square(), (X, W, U[0, :6].clone())
    ),
    "attention": (lambda q, k, v: attention(q * 2, k, v, window=4, lengths=LENGTHS), QKV),
    "attention_over_spans": (
        lambda q, k, v: attention_over_spans(q, k, v, make_spans(7, 7, causal=True), softcap=2.0), QKV
    ),
}  # fmt: skip
WITHOUT_GRADIENT: dict[str, Callable[[Tensor], tuple[Tensor, ...]]] = {
    "layer_std": lambda x: (layer_std([x * 2, W], scales=[None, U[:3, :5].abs()], blocks=[None, (2, 2)]),),
    "bottom_k": lambda x: bottom_k(x * 2, 3, valid=VALID, largest=True),
    "linear_bottom_k": lambda x: linear_bottom_k(x * 2, W, 3, softcap=4.0),
}


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch._dynamo.reset()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_values_and_gradients(name: str) -> None:
    function, inputs = FUNCTIONS[name]
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    results = []
    for run in (function, compiled):
        leaves = [x.clone().requires_grad_() for x in inputs]
        value = run(*leaves)
        results.append((value.detach(), *torch.autograd.grad(value.square().sum(), leaves)))
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-6)
    assert all(bool((x != 0).any()) for x in results[0])


@pytest.mark.parametrize("name", WITHOUT_GRADIENT)
def test_values(name: str) -> None:
    function = WITHOUT_GRADIENT[name]
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(X), function(X), rtol=0.0, atol=0.0)


def test_a_node_checks_as_the_function_does() -> None:
    compiled = torch.compile(lambda x, labels: linear_cross_entropy(x, W, labels), fullgraph=True, backend="aot_eager")
    with pytest.raises(ValueError, match=r"labels\[1\] is 6; expected a row of the weight"):
        compiled(X, torch.tensor([0, 6, 1, 1, 1, 1]))
    spans = torch.tensor([[[0] * 7, [8] * 7]], dtype=torch.int32)
    with pytest.raises(ValueError, match=r"is \[0, 8\); expected 0 <= first <= end <= 7"):
        torch.compile(attention_over_spans, fullgraph=True, backend="aot_eager")(*QKV, spans)
