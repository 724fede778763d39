"""A workload of small operations, whose time is of a core and its caches and not of memory that others use too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

package = "modelassay_kernels"


@dataclass(frozen=True)
class Case:
    name: str
    labels: dict[str, Any]
    make: Any
    run: Any
    check: Any


def fresh(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def cases() -> list[Case]:
    import modelassay_kernels as ours

    def check_std(tensors: list[torch.Tensor], got: torch.Tensor) -> None:
        torch.testing.assert_close(got, torch.stack([t.double().std() for t in tensors]), rtol=1e-6, atol=0)

    def check_ggn(inputs: tuple[torch.Tensor, torch.Tensor], got: torch.Tensor) -> None:
        p, u = inputs[0].double().softmax(1), inputs[1].double()
        torch.testing.assert_close(got.double(), p * (u - (p * u).sum(1, keepdim=True)), rtol=1e-4, atol=1e-7)

    def check_bottom(logits: torch.Tensor, got: tuple[torch.Tensor, torch.Tensor]) -> None:
        values, ids = logits.double().sort(dim=1, stable=True)
        torch.testing.assert_close(got[0].double(), values[:, :30], rtol=0, atol=0)
        assert torch.equal(got[1], ids[:, :30])

    return [
        Case("layer_std", {"op": "layer_std"}, lambda seed: [fresh(seed + i, 64, 256) for i in range(4)],
             lambda tensors: ours.layer_std(tensors), check_std),
        Case("softmax_ggn", {"op": "softmax_ggn"}, lambda seed: (fresh(seed, 16, 2048), fresh(seed + 1, 16, 2048)),
             lambda inputs: ours.softmax_ggn(*inputs), check_ggn),
        Case("bottom_k", {"op": "bottom_k"}, lambda seed: fresh(seed, 8, 8192),
             lambda logits: ours.bottom_k(logits, 30), check_bottom),
    ]  # fmt: skip
