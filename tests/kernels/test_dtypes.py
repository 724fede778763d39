"""The one table of element types, and the order in which kernels number them."""

import torch

from modelassay.models.checkpoints.safetensors import TORCH_DTYPES
from modelassay_kernels.dtypes import BY_CODE, CODES, INDICES


def test_codes_and_their_numbers() -> None:
    assert {
        "BF16": torch.bfloat16,
        "F16": torch.float16,
        "F32": torch.float32,
        "F64": torch.float64,
        "F8_E4M3": torch.float8_e4m3fn,
        "F8_E5M2": torch.float8_e5m2,
    } == BY_CODE
    assert list(INDICES) == list(CODES)
    assert list(INDICES.values()) == [0, 1, 2, 3, 4, 5]


def test_weights_are_read_in_the_types_that_kernels_take() -> None:
    """The table that checkpoints are read by is free of torch, so it is another one."""
    assert {code: getattr(torch, name) for code, name in TORCH_DTYPES.items()} == BY_CODE
