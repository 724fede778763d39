"""The k smallest logits of each row with their ids: what the endings of a vocabulary say about a model.

The order everywhere, whatever computes it: by value, and by the smaller id where values compare equal (so -0.0 and +0.0
tie); NaN after every number. With ``largest`` the largest come first, NaN still last. Ids that are not ``valid`` are never
chosen: padded vocabulary rows are exactly the extremes.
"""

# N = rows, V = size of the vocabulary, K = kept of each row

from __future__ import annotations

import torch
from torch import Tensor

from modelassay_kernels.bottom_k.cpu import bottom_k_native
from modelassay_kernels.bottom_k.linear import linear_bottom_k
from modelassay_kernels.bottom_k.reference import bottom_k_reference
from modelassay_kernels.bottom_k.request import check_outs, check_request, copied
from modelassay_kernels.dtypes import FLOATS, UP_TO_FP32
from modelassay_kernels.native import native_available

__all__ = ["bottom_k", "linear_bottom_k"]


def _check(logits_NV: Tensor, k: int, valid: Tensor | None) -> None:
    if logits_NV.ndim != 2:
        raise ValueError(
            f"bottom_k: logits must be [rows, vocabulary], got shape {[*logits_NV.shape]}; flatten the leading dimensions"
        )
    if logits_NV.dtype not in FLOATS:
        raise TypeError(f"bottom_k: logits have dtype {logits_NV.dtype}; expected one of {[*FLOATS]}")
    check_request("bottom_k", logits_NV.shape[1], logits_NV.device, k, valid)


def bottom_k(
    logits_NV: Tensor,
    k: int,
    *,
    valid: Tensor | None = None,
    largest: bool = False,
    sort: bool = True,
    out: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the k smallest logits of each row and their ids: values [N, K] of the logits' type, ids int64 [N, K].

    Exact. Equal values come by the smaller id; -0.0 and +0.0 are equal, and each is given as it is; NaN comes last.
    Without ``sort`` the same k in no promised order, still the same on every call. Gradients are not carried.

    Costs `bottom_k_work`: one read of each logit (a limit taken from a sample lets a few more than k pass; where the
    sample misled, that row is read again). Beside the result, a CPU needs 32 bytes per kept element and
    0.1 MB for each thread, a GPU, for as many rows at once as 256 MiB hold, 16 bytes per kept element, one bit per element
    and 8 KB. CPU: C++ with `torch.get_num_threads()` threads, rows of any strides read in place. CUDA: Triton. float64, other devices, and CPUs without the compiled extension: a sort in PyTorch.

    >>> import torch
    >>> bottom_k(torch.tensor([[3.0, -1.0, 2.0, -1.0]]), 3)
    (tensor([[-1., -1.,  2.]]), tensor([[1, 3, 2]]))
    >>> bottom_k(torch.tensor([[3.0, -1.0, 2.0, -1.0]]), 2, valid=torch.tensor([True, False, True, True]))[1]
    tensor([[3, 2]])

    Args:
        logits_NV: bfloat16, float16, float32 or float64.
        k: how many of each row, 0 to the number of valid ids.
        valid: bool [V], False for ids that are never chosen; None: all may be. On a GPU they are counted once for each mask, which
            waits for the work before; not while a CUDA graph is captured, where too large a k leaves the end of each row undefined.
        largest: whether to give the k largest instead, by the same code.
        sort: whether the k are ordered.
        out: contiguous values and ids to write to instead of fresh memory.

    Raises:
        ValueError: logits that are not a matrix, a mask that does not fit, a k that cannot be had, or an ``out`` that cannot
            take the result.
        TypeError: another element type.
    """
    if out is None and torch.compiler.is_compiling():  # see modelassay_kernels.compiled
        values, ids = torch.ops.modelassay.bottom_k(logits_NV, k, valid, largest, sort)
        return values, ids
    _check(logits_NV, k, valid)
    if out is not None:
        check_outs("bottom_k", out, (logits_NV.shape[0], k), logits_NV.dtype, (logits_NV,))
    with_kernel = logits_NV.dtype in UP_TO_FP32 and k > 0 and logits_NV.shape[0] > 0
    if logits_NV.is_cuda and with_kernel:
        from modelassay_kernels.bottom_k.triton_kernels import bottom_k_triton

        return copied(bottom_k_triton(logits_NV, k, valid=valid, largest=largest, sort=sort), out)
    if logits_NV.device.type == "cpu" and with_kernel and native_available():
        return bottom_k_native(logits_NV, k, valid=valid, largest=largest, sort=sort, out=out)
    return copied(bottom_k_reference(logits_NV.detach(), k, valid=valid, largest=largest, sort=sort), out)
