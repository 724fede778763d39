"""The element types of all kernels: one table, in the order of `DType` in csrc/common/dtype.hpp."""

from __future__ import annotations

import torch

CODES = {
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}
"""Every type a kernel takes, by the name that safetensors gives it."""

BY_CODE = {code: dtype for dtype, code in CODES.items()}
"""The other way round."""

INDICES = {dtype: index for index, dtype in enumerate(CODES)}
"""The number of each type where a kernel tells them apart by one."""

FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)
"""Types that few libraries know yet: they are handed on as bytes."""

UP_TO_FP32 = (torch.bfloat16, torch.float16, torch.float32)
"""What is computed in fp32."""

FLOATS = (*UP_TO_FP32, torch.float64)
"""Types that have arithmetic in PyTorch."""
