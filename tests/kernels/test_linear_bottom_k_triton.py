"""The GPU's half of linear_bottom_k: numbers in the interpreter and on a GPU, machine code without one."""

from pathlib import Path

import pytest
import torch

from modelassay_kernels.bottom_k import linear_triton as op
from modelassay_kernels.bottom_k.linear_triton import TritonRunning
from modelassay_kernels.bottom_k.triton_kernels import DEFAULT, LaunchConfig
from support.bottom_k_cases import assert_is_bottom_k, hard_rows, uniform
from support.triton_checks import CAPABILITIES, compile_ahead

SMALL = LaunchConfig(finish_block=128, fold_block=64)


@pytest.mark.parametrize("largest", [False, pytest.param(True, marks=pytest.mark.nightly)])
def test_columns_that_come_in_chunks(largest: bool, kernel_device: torch.device) -> None:
    x_NV = torch.stack([row for name, row in hard_rows(900).items() if name not in {"specials", "zeros of both signs"}])
    valid = uniform(900, seed=10) < 0.8
    k = 40
    running = TritonRunning(len(x_NV), k, 128, largest, kernel_device, SMALL)
    for start in range(0, 900, 128):
        chunk, mask = x_NV[:, start : start + 128].to(kernel_device), valid[start : start + 128].to(kernel_device)
        running.fold(chunk, start, mask)
    values_NK = torch.empty(len(x_NV), k, device=kernel_device)
    ids_NK = torch.empty(len(x_NV), k, dtype=torch.int64, device=kernel_device)
    running.finish(values_NK, ids_NK)
    assert_is_bottom_k((values_NK, ids_NK), x_NV, k, valid, largest=largest)


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_fold_compiles(capability: int, tmp_path: Path) -> None:
    buffers = {"entries_ptr": "*i64", "counts_ptr": "*i32", "limits_ptr": "*i32"}
    sizes = {
        "num_cols": "i32",
        "row_stride": "i32",
        "first_id": "i32",
        "k": "i32",
        "capacity": "i32",
        "max_cols": "i32",
    }
    constants = {"BLOCK": DEFAULT.finish_block, "LARGEST": True, "HAS_VALID": True}
    compiled = compile_ahead(
        op.fold_kernel, signature={"x_ptr": "*fp32", "valid_ptr": "*u8", **buffers, **sizes}, constants=constants,
        capability=capability, cache=tmp_path, num_warps=DEFAULT.finish_warps,
    )  # fmt: skip
    assert compiled.spilled_bytes <= 16  # a few scalars
    assert compiled.count(r"\batom\.global|\bred\.global") == 0
