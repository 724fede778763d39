"""Products of fp32 are exact whatever precision the process has asked for, and its wish is there again afterwards."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, jvp
from torch.utils._python_dispatch import TorchDispatchMode

from modelassay_kernels import linear_bottom_k, linear_cross_entropy
from support.cross_entropy_cases import normal

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
BACKENDS = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)


def precisions() -> list[str]:
    return [backend.fp32_precision for backend in BACKENDS]


class SeenByProducts(TorchDispatchMode):
    """Notes the precision that each product meets."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[list[str]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in {torch.ops.aten.mm, torch.ops.aten.addmm}:
            self.seen.append(precisions())
        return func(*args, **(kwargs or {}))


@pytest.fixture(params=["high", "medium"])
def asked(request: pytest.FixtureRequest) -> Iterator[list[str]]:
    before = precisions()
    torch.set_float32_matmul_precision(request.param)
    yield precisions()
    torch.set_float32_matmul_precision("highest")
    for backend, precision in zip(BACKENDS, before, strict=True):
        backend.fp32_precision = precision


def test_a_wish_for_speed_does_not_reach_them(asked: list[str]) -> None:
    hidden, weight = (normal(n, 8, seed=n, dtype=torch.float32) for n in (4, 9))
    labels = torch.tensor([0, 8, -100, 3])
    assert "tf32" in asked

    def gradient(x: Tensor) -> Tensor:
        return grad(lambda h: linear_cross_entropy(h, weight, labels))(x)

    with SeenByProducts() as products:
        linear_bottom_k(hidden, weight, 2)
        jvp(gradient, (hidden,), (hidden,))
    assert len(products.seen) > 4
    assert all(seen == ["ieee", "ieee"] for seen in products.seen)
    assert precisions() == asked
    with pytest.raises(ValueError, match="labels"):
        linear_cross_entropy(hidden, weight, torch.tensor([0, 9, 0, 0]))
    assert precisions() == asked
