"""softmax_ggn by the compiled extension."""

# N is rows, V is vocabulary

from __future__ import annotations

import torch
from torch import Tensor

from modelassay_kernels.dtypes import CODES
from modelassay_kernels.native import require_native
from modelassay_kernels.outputs import fresh


def softmax_ggn_native(
    logits_NV: Tensor, u_NV: Tensor, instruction_set: str = "", *, out: Tensor | None = None
) -> Tensor:
    """Compute bfloat16, float16 or float32 rows that were checked, with `torch.get_num_threads()` threads."""
    require_native()
    from modelassay_kernels import _native

    y_NV = fresh(logits_NV.shape, logits_NV.dtype) if out is None else out
    logits_NV, u_NV = (x if x.stride(1) == 1 else x.contiguous() for x in (logits_NV, u_NV))
    code = CODES[logits_NV.dtype]
    _native.softmax_ggn(logits_NV.detach(), u_NV.detach(), y_NV, code, torch.get_num_threads(), instruction_set)
    return y_NV
