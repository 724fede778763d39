"""Counts what would make a host wait for its GPU: values and sizes that come from a tensor."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

ATEN = torch.ops.aten
WAITS = {
    ATEN._local_scalar_dense, ATEN.equal, ATEN.is_nonzero, ATEN.masked_select, ATEN.nonzero, ATEN._unique2, ATEN.unique_dim,
    ATEN.unique_consecutive, ATEN.repeat_interleave,
}  # fmt: skip


class Synchronisations(TorchDispatchMode):
    """Within this, `names` lists the operations that wait. Copies to the host are not seen."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        masks = [x for x in args[1] if x is not None and x.dtype == torch.bool] if func is ATEN.index.Tensor else []
        if func.overloadpacket in WAITS or masks:
            self.names.append(str(func))
        return func(*args, **(kwargs or {}))


class Products:
    """Stands for a GPU's `torch.mm` and `torch.addmm`, which sum narrow factors in fp32; `types` has those of factors and result."""

    def __init__(self) -> None:
        self.types: set[tuple[torch.dtype, torch.dtype, torch.dtype]] = set()
        self._mm, self._addmm = torch.mm, torch.addmm

    def mm(self, a: Tensor, b: Tensor, *, out_dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
        """Return a b."""
        self.types.add((a.dtype, b.dtype, out_dtype))
        result = self._mm(a.to(out_dtype), b.to(out_dtype))
        return result if out is None else out.copy_(result)

    def addmm(self, c: Tensor, a: Tensor, b: Tensor, *, out: Tensor, out_dtype: Any = None, beta: int = 1) -> Tensor:
        """Return c + a b in ``out``."""
        assert a.dtype == b.dtype
        self.types.add((a.dtype, b.dtype, out_dtype or a.dtype))
        return self._addmm(c, a.to(c.dtype), b.to(c.dtype), beta=beta, out=out)
