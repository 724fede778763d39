"""Standard deviation of many tensors at once, the scalar behind sigma-curves.

sigma = sqrt(sum (x - mean)^2 / (E - correction)) over all E elements of a tensor, each multiplied by its scale where
there is one. The definition everywhere, whatever computes it:

- the result is float64, not rounded to the tensor's type (`torch.std` of bfloat16 is off by 1e-3 for that alone);
- any NaN or infinity among the elements, or in a scale that meets one, gives NaN for that tensor and no other;
- no elements, or not more than ``correction``, gives NaN (as in torch, without its warning);
- equal elements give exactly 0;
- squares do not overflow or underflow: elements near 1e30, and doubles near 1e200, have their true deviation.
"""

# T = tensors, E = elements of one tensor, R = rows, C = columns, r, c = rows and columns of a scale

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from modelassay_kernels.native import native_available, require_native

DTYPE_CODES = {
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}
"""The element types of `layer_std`, by the names safetensors gives them."""

_FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)
_COMMON_BLOCK = 128  # of DeepSeek-V3 and Qwen3 fp8 checkpoints, whose last block is ragged


def _layer_std_reference(
    tensors: Sequence[Tensor], scales: Sequence[Tensor | None] | None = None, correction: int = 1
) -> Tensor:
    """Standard deviations in float64 [T] by two passes: the mean first, then the centred squares.

    Costs one float64 copy of the largest tensor, and of its expanded scale.
    """
    pairs = zip(tensors, scales or [None] * len(tensors), strict=True)
    stds = [_std(dequantise(tensor, scale).flatten(), correction) for tensor, scale in pairs]
    return torch.stack(stds) if stds else torch.empty(0, dtype=torch.float64)


def _std(x_E: Tensor, correction: int) -> Tensor:
    if x_E.numel() <= correction or x_E.numel() == 0:
        return x_E.new_tensor(math.nan)
    exponent = torch.frexp(x_E.abs().max()).exponent.clamp(-1000, 1000)
    x_E = torch.ldexp(x_E, -exponent)  # by a power of two, so exact; no square overflows
    x_E = x_E - x_E[0]  # so that equal elements give exactly 0
    centred_E = x_E - x_E.mean()
    return torch.ldexp((centred_E.square().sum() / (x_E.numel() - correction)).sqrt(), exponent)


def dequantise(tensor: Tensor, scale: Tensor | None) -> Tensor:
    """Return the float64 values ``tensor`` stands for: each element times the scale of its block.

    >>> dequantise(torch.ones(2, 3), torch.tensor([[2.0, 3.0, 4.0]]))
    tensor([[2., 3., 4.],
            [2., 3., 4.]], dtype=torch.float64)
    """
    if scale is None:
        return tensor.double()
    if scale.numel() == 1:
        return tensor.double() * scale.double().reshape(())
    scale_rc, block_rows, block_cols = split_scale(tuple(tensor.shape), scale)
    rows = torch.arange(tensor.shape[0], device=scale.device) // block_rows
    cols = torch.arange(tensor.shape[1], device=scale.device) // block_cols
    return tensor.double() * scale_rc.double()[rows[:, None], cols]


def split_scale(shape: tuple[int, ...], scale: Tensor) -> tuple[Tensor, int, int]:
    """Return a scale as fp32 [r, c] and the rows and columns of a block of a matrix of ``shape`` [R, C].

    Along a dimension of length L with s scales the block is L for one scale and 1 for L of them; otherwise 128 (ragged
    at the end) if that gives s blocks, else L / s if whole, else the power of two that gives s. A scale of one
    dimension and length R counts as [R, 1].

    >>> split_scale((300, 512), torch.ones(3, 4))[1:]
    (128, 128)
    >>> split_scale((96, 512), torch.ones(96))[1:]
    (1, 512)

    Raises:
        ValueError: the tensor is not a matrix, or no block fits.
    """
    if len(shape) != 2:
        raise ValueError(
            f"layer_std: a scale of shape {tuple(scale.shape)} needs a matrix, got a tensor of shape {shape}; "
            "pass the matrices of a stack one by one"
        )
    scale_rc = scale.detach().to(torch.float32)
    if scale_rc.ndim == 1:
        scale_rc = scale_rc[:, None]
    if scale_rc.ndim == 2:
        block_rows = _block_length(shape[0], scale_rc.shape[0])
        block_cols = _block_length(shape[1], scale_rc.shape[1])
        if block_rows and block_cols:
            return scale_rc.contiguous(), block_rows, block_cols
    raise ValueError(
        f"layer_std: a scale of shape {tuple(scale.shape)} fits no blocks of a matrix of shape {shape}; "
        "expected [ceil(R / b), ceil(C / b)], [R, 1], [1, C] or one element"
    )


def _block_length(length: int, num_scales: int) -> int | None:
    if num_scales == 1:
        return max(length, 1)
    if num_scales < 1 or num_scales > length:
        return None
    candidates = [1 if num_scales == length else _COMMON_BLOCK]
    if length % num_scales == 0:
        candidates.append(length // num_scales)
    candidates += [1 << power for power in range(1, length.bit_length())]
    return next((block for block in candidates if -(-length // block) == num_scales), None)


def rows_of(tensor: Tensor) -> Tensor:
    """Return the elements of ``tensor`` as a view [R, C] whose rows are contiguous, in any order; a copy if there is none.

    A standard deviation does not ask for an order, so transposed tensors need no copy.

    >>> rows_of(torch.ones(6, 4).t()[:3]).stride()
    (4, 1)
    """
    if tensor.is_contiguous():
        return tensor.view(1, -1)
    dims = sorted((stride, size) for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if size != 1)
    merged: list[tuple[int, int]] = []  # (stride, size), innermost first
    for stride, size in dims:
        if merged and stride == merged[-1][0] * merged[-1][1]:
            merged[-1] = (merged[-1][0], merged[-1][1] * size)
        else:
            merged.append((stride, size))
    repeated = merged.pop(0) if merged and merged[0][0] == 0 else None
    if not merged or merged[0][0] != 1:
        merged.insert(0, (1, 1))
    if repeated is not None:
        merged.append(repeated)
    if len(merged) > 2:
        return tensor.contiguous().view(1, -1)
    (_, num_cols), (row_stride, num_rows) = merged[0], merged[1] if len(merged) == 2 else (merged[0][1], 1)
    return tensor.as_strided((num_rows, num_cols), (row_stride, 1))


def _layer_std_native(
    tensors: Sequence[Tensor],
    scales: Sequence[Tensor | None] | None = None,
    correction: int = 1,
    instruction_set: str = "",
) -> Tensor:
    require_native()
    from modelassay_kernels import _native

    items = []
    factors_T = torch.ones(len(tensors), dtype=torch.float64)
    for i, tensor in enumerate(tensors):
        scale = scales[i] if scales is not None else None
        tensor = tensor.detach()
        if scale is None or scale.numel() == 1:
            block, matrix = None, rows_of(tensor)
            factors_T[i] = whole_factor(scale)
        else:
            block = split_scale(tuple(tensor.shape), scale)
            matrix = tensor if tensor.stride(1) == 1 else tensor.contiguous()
        items.append((matrix.view(torch.uint8) if tensor.dtype in _FP8 else matrix, DTYPE_CODES[tensor.dtype], block))
    std_T = torch.empty(len(tensors), dtype=torch.float64)
    _native.layer_std(items, std_T, correction, torch.get_num_threads(), instruction_set)
    return std_T * factors_T


def whole_factor(scale: Tensor | None) -> float:
    """Return what a scale of one element multiplies a deviation by; NaN where it is not finite."""
    factor = 1.0 if scale is None else abs(float(scale))
    return factor if math.isfinite(factor) else math.nan


def _check(tensors: Sequence[Tensor], scales: Sequence[Tensor | None] | None) -> str:
    devices = sorted({tensor.device.type for tensor in tensors})
    if len(devices) > 1:
        raise ValueError(
            f"layer_std: all tensors must be on one kind of device, got {', '.join(devices)}; move them first"
        )
    for i, tensor in enumerate(tensors):
        if tensor.dtype not in DTYPE_CODES:
            raise TypeError(f"layer_std: tensor {i} has dtype {tensor.dtype}; expected one of {[*DTYPE_CODES]}")
    if scales is not None and len(scales) != len(tensors):
        raise ValueError(
            f"layer_std: got {len(scales)} scales for {len(tensors)} tensors; give None where there is none"
        )
    return devices[0] if devices else "cpu"


def layer_std(
    tensors: Sequence[Tensor], *, scales: Sequence[Tensor | None] | None = None, correction: int = 1
) -> Tensor:
    """Return the standard deviation of all elements of each tensor: float64 [T], on the tensors' device.

    Tensors of any shape in bfloat16, float16, float32, float64, float8_e4m3fn or float8_e5m2. ``scales`` holds for each
    tensor None or the factors its stored elements are multiplied by: one element for the tensor, [R, 1] or [R] for
    rows, [1, C] for columns, or one per block, [ceil(R / b), ceil(C / b)] (see `split_scale` for how b is found).

    Costs one read of each element. CUDA tensors: one Triton launch. CPU tensors: C++ with `torch.get_num_threads()`
    threads, the result the same to the bit for any number of them; matrices with strided rows, and transposed ones, are
    read in place. Without the compiled extension, and on other devices: PyTorch in float64, slower by an order of
    magnitude and with a float64 copy of each tensor in turn. All agree to 1e-6.

    >>> layer_std([torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.0, 2.0])])
    tensor([1.0000, 1.4142], dtype=torch.float64)

    Raises:
        ValueError: tensors on different devices, or a scale that fits no blocks.
        TypeError: an element type that is not among the six.
    """
    device = _check(tensors, scales)
    if device == "cuda":
        triton_half = importlib.import_module("modelassay_kernels.layer_std_triton")
        result: Tensor = triton_half.layer_std_triton(tensors, scales=scales, correction=correction)
        return result
    if device == "cpu" and native_available():
        return _layer_std_native(tensors, scales, correction)
    return _layer_std_reference(tensors, scales, correction)
