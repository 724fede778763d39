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

from collections.abc import Sequence

import torch
from torch import Tensor

from modelassay_kernels.dtypes import CODES
from modelassay_kernels.layer_std.cpu import layer_std_native
from modelassay_kernels.layer_std.file import FileSpan, layer_std_file
from modelassay_kernels.layer_std.reference import layer_std_reference
from modelassay_kernels.layer_std.scales import Block, blocks_of
from modelassay_kernels.native import native_available

__all__ = ["FileSpan", "layer_std", "layer_std_file"]


def _check(
    tensors: Sequence[Tensor], scales: Sequence[Tensor | None] | None, blocks: Sequence[Block | None] | None
) -> str:
    devices = sorted({tensor.device.type for tensor in tensors})
    if len(devices) > 1:
        raise ValueError(
            f"layer_std: all tensors must be on one kind of device, got {', '.join(devices)}; move them first"
        )
    for i, tensor in enumerate(tensors):
        if tensor.dtype not in CODES:
            raise TypeError(f"layer_std: tensor {i} has dtype {tensor.dtype}; expected one of {[*CODES]}")
    if scales is not None and len(scales) != len(tensors):
        raise ValueError(
            f"layer_std: got {len(scales)} scales for {len(tensors)} tensors; give None where there is none"
        )
    blocks_of(blocks, len(tensors))
    return devices[0] if devices else "cpu"


def layer_std(
    tensors: Sequence[Tensor],
    *,
    scales: Sequence[Tensor | None] | None = None,
    blocks: Sequence[Block | None] | None = None,
    correction: int = 1,
) -> Tensor:
    """Return the standard deviation of all elements of each tensor: float64 [T], on the tensors' device.

    Tensors of any shape in bfloat16, float16, float32, float64, float8_e4m3fn or float8_e5m2. ``scales`` holds for each
    tensor None or the factors its stored elements are multiplied by: one element for the tensor, [R, 1] or [R] for
    rows, [1, C] for columns, or one per block, [ceil(R / rows), ceil(C / columns)]. ``blocks`` states for each tensor the
    (rows, columns) of such a block, (128, 128) say; it may be None only where the shapes leave one reading (`split_scale`):
    3 scales for 300 rows may be blocks of 100 or of 128, and a guess would be a wrong number without a word.

    Costs one read of each element. CUDA tensors: one Triton launch. CPU tensors: C++ with `torch.get_num_threads()`
    threads, the result the same to the bit for any number of them; matrices with strided rows, and transposed ones, are
    read in place. Without the compiled extension, and on other devices: PyTorch in float64, slower by an order of
    magnitude and with a float64 copy of each tensor in turn. All agree to 1e-6.

    >>> import torch
    >>> layer_std([torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.0, 2.0])])
    tensor([1.0000, 1.4142], dtype=torch.float64)

    Raises:
        ValueError: tensors on different devices, or a scale that does not fit its block, or fits several and none is stated.
        TypeError: an element type that is not among the six.
    """
    if torch.compiler.is_compiling():  # see modelassay_kernels.compiled
        flat = [size for block in blocks_of(blocks, len(tensors)) for size in block or (-1, -1)]
        std_T: Tensor = torch.ops.modelassay.layer_std(
            list(tensors), list(scales or [None] * len(tensors)), flat, correction
        )
        return std_T
    device = _check(tensors, scales, blocks)
    if device == "cuda":
        from modelassay_kernels.layer_std.triton_kernels import layer_std_triton

        return layer_std_triton(tensors, scales=scales, blocks=blocks, correction=correction)
    if device == "cpu" and native_available():
        return layer_std_native(tensors, scales, correction, blocks=blocks)
    return layer_std_reference(tensors, scales, correction, blocks=blocks)
