"""The GPU's half of linear_bottom_k: numbers in the interpreter and on a GPU, machine code without one."""

import pytest
import torch

from modelassay_kernels.bottom_k.linear_triton import TritonRunning
from modelassay_kernels.bottom_k.triton_kernels import LaunchConfig
from support.bottom_k_cases import assert_is_bottom_k, hard_rows, uniform

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
