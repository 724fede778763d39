"""How a gradient depends on the parameters, written down once and walked through for each vector."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from modelassay.curvature.layers import in_place_of
from modelassay.machine.memory import available_bytes
from modelassay_kernels.attention.autograd import deferring


class Graph:
    """The gradient of one microbatch's loss as a function of the parameters."""

    num_bytes: int
    """Of the tensors that the graph keeps alive."""

    def __init__(self, loss: Callable[[dict[str, Tensor]], Tensor], selected: dict[str, Tensor],
                 stand_ins: dict[nn.Module, Callable[..., Tensor]], *, held: Iterable[Tensor]) -> None:  # fmt: skip
        """Take the gradient of ``loss`` at ``selected``.

        Args:
            loss: of the selected parameters, by name.
            selected: where the gradient is taken.
            stand_ins: modules, and what computes them instead (`layers.replacements`).
            held: tensors that are in memory anyway and not counted.
        """
        self._leaves = {name: tensor.detach().requires_grad_() for name, tensor in selected.items()}
        saved: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            saved[storage.data_ptr()] = storage.nbytes()
            return tensor

        hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
        with torch.enable_grad(), in_place_of(stand_ins), hooks, deferring() as self._shares:
            gradient = torch.autograd.grad(
                loss(self._leaves), list(self._leaves.values()), create_graph=True, materialize_grads=True
            )
        self._gradient = dict(zip(self._leaves, gradient, strict=True))
        elsewhere = {tensor.untyped_storage().data_ptr() for tensor in held}
        self.num_bytes = sum(size for place, size in saved.items() if place not in elsewhere)

    def product(self, vector: dict[str, Tensor], *, last: bool) -> dict[str, Tensor]:
        """Return the gradient of <gradient, vector>; the ``last`` gives memory back on its way."""
        for shares in self._shares:
            shares.clear()  # of a product that was broken off
        names = [name for name, part in self._gradient.items() if part.requires_grad]  # the others are constant
        if not names:
            return {name: torch.zeros_like(part) for name, part in self._leaves.items()}
        products = torch.autograd.grad(
            [self._gradient[name] for name in names], list(self._leaves.values()), [vector[name] for name in names],
            retain_graph=not last, materialize_grads=True,
        )  # fmt: skip
        return dict(zip(self._leaves, products, strict=True))


def free_bytes(device: torch.device) -> int:
    """Return the memory that can still be taken, of the device or of the host."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return available_bytes()
