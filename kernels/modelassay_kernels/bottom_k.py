"""The k smallest logits of each row with their ids: what the endings of a vocabulary say about a model.

The order everywhere, whatever computes it: by value, and by the smaller id where values compare equal (so -0.0 and +0.0
tie); NaN after every number. With ``largest`` the largest come first, NaN still last. Ids that are not ``valid`` are never
chosen: padded vocabulary rows are exactly the extremes.
"""

# N = rows, V = size of the vocabulary, K = kept of each row

from __future__ import annotations

import importlib

import torch
from torch import Tensor

from modelassay_kernels.native import native_available, require_native

DTYPE_CODES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}
"""The element types that have kernels; float64 goes to the reference."""


def _bottom_k_reference(
    logits_NV: Tensor, k: int, *, valid: Tensor | None = None, largest: bool = False, sort: bool = True
) -> tuple[Tensor, Tensor]:
    """A stable sort of every row, of which the first k stay; always sorted. Costs several copies of the logits."""
    ids_V = torch.arange(logits_NV.shape[1], device=logits_NV.device)
    if valid is not None:
        ids_V = ids_V[valid]
        logits_NV = logits_NV[:, valid]
    order_NV = (-logits_NV if largest else logits_NV).sort(dim=1, stable=True).indices  # ascending: NaN is last
    order_NK = order_NV[:, :k]
    return logits_NV.gather(1, order_NK), ids_V[order_NK]


def bottom_k_bytes(logits_NV: Tensor, k: int) -> int:
    """Bytes that cannot be avoided: every logit read once, k values and int64 ids of each row written.

    >>> bottom_k_bytes(torch.zeros(2, 100, dtype=torch.bfloat16), k=10)
    600
    """
    itemsize = logits_NV.dtype.itemsize
    return logits_NV.numel() * itemsize + logits_NV.shape[0] * k * (itemsize + 8)


def _bottom_k_native(
    logits_NV: Tensor,
    k: int,
    *,
    valid: Tensor | None = None,
    largest: bool = False,
    sort: bool = True,
    instruction_set: str = "",
) -> tuple[Tensor, Tensor]:
    require_native()
    from modelassay_kernels import _native

    logits_NV = logits_NV.detach()
    values_NK = torch.empty(logits_NV.shape[0], k, dtype=logits_NV.dtype)
    ids_NK = torch.empty(logits_NV.shape[0], k, dtype=torch.int64)
    _native.bottom_k(
        logits_NV, DTYPE_CODES[logits_NV.dtype], values_NK, ids_NK, mask_bytes(valid), largest, sort,
        torch.get_num_threads(), instruction_set,
    )  # fmt: skip
    return values_NK, ids_NK


def mask_bytes(valid: Tensor | None) -> Tensor | None:
    """Return a mask as the bytes the compiled extension takes."""
    return None if valid is None else valid.contiguous().view(torch.uint8)


def check_request(name: str, num_cols: int, device: torch.device, k: int, valid: Tensor | None) -> None:
    """Check what `bottom_k` and `linear_bottom_k` are asked for; counting the valid ids waits for a GPU.

    Raises:
        ValueError: a mask of another length, device or type, or k outside 0 ... number of valid ids.
    """
    num_valid = num_cols
    if valid is not None:
        if valid.dtype != torch.bool or tuple(valid.shape) != (num_cols,) or valid.device != device:
            raise ValueError(
                f"{name}: valid must be bool [{num_cols}] on {device}, got {valid.dtype} {[*valid.shape]} on {valid.device}"
            )
        num_valid = int(valid.sum())
    if not 0 <= k <= num_valid:
        raise ValueError(f"{name}: k = {k}, but {num_valid} of {num_cols} ids are valid; ask for 0 to {num_valid}")


def _check(logits_NV: Tensor, k: int, valid: Tensor | None) -> None:
    if logits_NV.ndim != 2:
        raise ValueError(
            f"bottom_k: logits must be [rows, vocabulary], got shape {[*logits_NV.shape]}; flatten the leading dimensions"
        )
    if logits_NV.dtype not in DTYPE_CODES and logits_NV.dtype != torch.float64:
        raise TypeError(
            f"bottom_k: logits have dtype {logits_NV.dtype}; expected one of {[*DTYPE_CODES, torch.float64]}"
        )
    check_request("bottom_k", logits_NV.shape[1], logits_NV.device, k, valid)


def bottom_k(
    logits_NV: Tensor, k: int, *, valid: Tensor | None = None, largest: bool = False, sort: bool = True
) -> tuple[Tensor, Tensor]:
    """Return the k smallest logits of each row and their ids: values [N, K] of the logits' type, ids int64 [N, K].

    Exact. Equal values come by the smaller id; -0.0 and +0.0 are equal, and each is given as it is; NaN comes last.
    Without ``sort`` the same k in no promised order, still the same on every call. Gradients are not carried.

    Costs `bottom_k_bytes`: one read of each logit (a limit taken from a sample lets a few more than k pass; where the
    sample misled, that row is read again). Beside the result, a CPU needs 32 bytes per kept element and
    0.1 MB for each thread, a GPU 20 bytes per kept element and 8 KB for each row. CPU: C++ with `torch.get_num_threads()` threads, rows of any strides read in
    place. CUDA: Triton. float64, other devices, and CPUs without the compiled extension: a sort in PyTorch.

    >>> bottom_k(torch.tensor([[3.0, -1.0, 2.0, -1.0]]), 3)
    (tensor([[-1., -1.,  2.]]), tensor([[1, 3, 2]]))
    >>> bottom_k(torch.tensor([[3.0, -1.0, 2.0, -1.0]]), 2, valid=torch.tensor([True, False, True, True]))[1]
    tensor([[3, 2]])

    Args:
        logits_NV: bfloat16, float16, float32 or float64.
        k: how many of each row, 0 to the number of valid ids.
        valid: bool [V], False for ids that are never chosen; None: all may be.
        largest: whether to give the k largest instead, by the same code.
        sort: whether the k are ordered.

    Raises:
        ValueError: logits that are not a matrix, a mask that does not fit, or a k that cannot be had.
        TypeError: another element type.
    """
    _check(logits_NV, k, valid)
    with_kernel = logits_NV.dtype in DTYPE_CODES and k > 0 and logits_NV.shape[0] > 0
    if logits_NV.is_cuda and with_kernel:
        triton_half = importlib.import_module("modelassay_kernels.bottom_k_triton")
        result: tuple[Tensor, Tensor] = triton_half.bottom_k_triton(
            logits_NV, k, valid=valid, largest=largest, sort=sort
        )
        return result
    if logits_NV.device.type == "cpu" and with_kernel and native_available():
        return _bottom_k_native(logits_NV, k, valid=valid, largest=largest, sort=sort)
    return _bottom_k_reference(logits_NV.detach(), k, valid=valid, largest=largest, sort=sort)
