"""bottom_k on CUDA: numbers in the interpreter and on a GPU, machine code without one."""

from pathlib import Path

import pytest
import torch

from modelassay_kernels.bottom_k import triton_kernels as op
from modelassay_kernels.bottom_k.triton_kernels import LaunchConfig, Plan, bottom_k_triton
from support.bottom_k_cases import DTYPES, assert_is_bottom_k, expected_ids, hard_rows, normal, uniform

NIGHTLY = pytest.mark.nightly
SMALL = LaunchConfig(block=256, finish_block=128, sample=64, num_warps=4)  # so that a few hundred columns are filtered


HARD = [(torch.bfloat16, False), (torch.float32, True)]  # views have fp16
REST = [(torch.bfloat16, True), (torch.float16, False), (torch.float16, True), (torch.float32, False)]


@pytest.mark.parametrize(("dtype", "largest"), [*HARD, *(pytest.param(*case, marks=NIGHTLY) for case in REST)])
def test_hard_rows(dtype: torch.dtype, largest: bool, kernel_device: torch.device) -> None:
    x_NV = torch.stack(list(hard_rows(1031).values())).to(dtype).to(kernel_device)
    assert Plan.make(*x_NV.shape, 31, SMALL).num_segments == 1  # one row per program
    assert_is_bottom_k(bottom_k_triton(x_NV, 31, largest=largest, config=SMALL), x_NV, 31, largest=largest)


@pytest.mark.parametrize("k", [1, pytest.param(7, marks=NIGHTLY), 300])
def test_few_long_rows_are_cut_into_segments(k: int, kernel_device: torch.device) -> None:
    x_NV = torch.stack([normal(2048, seed=1), normal(2048, seed=2).round()]).to(kernel_device)
    assert Plan.make(2, 2048, k, SMALL).num_segments == 2
    for sort in (True, False):
        assert_is_bottom_k(bottom_k_triton(x_NV, k, sort=sort, config=SMALL), x_NV, k, sort=sort)


@pytest.mark.parametrize("num_cols", [1, 2, 127, 255, 257, 700])
def test_odd_sizes_and_all_of_a_row(num_cols: int, kernel_device: torch.device) -> None:
    x_NV = normal(2, num_cols, seed=num_cols).round().to(kernel_device)
    for k in sorted({1, num_cols}):
        assert_is_bottom_k(bottom_k_triton(x_NV, k, config=SMALL), x_NV, k)


@pytest.mark.parametrize("share", [0.05, 0.5])
def test_masks(share: float, kernel_device: torch.device) -> None:
    valid = uniform(1031, seed=5) < share
    x_NV = torch.stack(list(hard_rows(1031).values()))[::4].to(kernel_device)
    for k in (5, int(valid.sum())):
        got = bottom_k_triton(x_NV, k, valid=valid.to(kernel_device), config=SMALL)
        assert_is_bottom_k(got, x_NV, k, valid)


def test_a_sample_that_misleads_costs_only_time(kernel_device: torch.device) -> None:
    x_NV = normal(3, 1000, seed=6)
    for start in (0, 500):  # the two runs of 32 a sample of 64 consists of
        x_NV[0, start : start + 32] -= 50  # the limit lets too few pass
        x_NV[1, start : start + 32] += 50  # and here all but those, more than the buffer has room for
    assert Plan.make(3, 1000, 70, SMALL).rank > 0
    assert_is_bottom_k(bottom_k_triton(x_NV.to(kernel_device), 70, config=SMALL), x_NV, 70)


def test_more_than_a_buffer_holds(kernel_device: torch.device) -> None:
    x_NV = torch.zeros(2, 2048)
    x_NV[1, 100:200] = -1.0
    assert Plan.make(2, 2048, 3, SMALL).capacity < 2048
    assert_is_bottom_k(bottom_k_triton(x_NV.to(kernel_device), 3, config=SMALL), x_NV, 3)


@pytest.mark.parametrize(
    "dtype", [pytest.param(dtype, marks=NIGHTLY if dtype is torch.float16 else ()) for dtype in DTYPES], ids=str
)
def test_views(dtype: torch.dtype, kernel_device: torch.device) -> None:
    x_NV = normal(20, 1200, seed=8, dtype=dtype).to(kernel_device)
    for view in (x_NV[::7, 3:700], x_NV[:2, ::3], x_NV[:, :3].t(), x_NV[1:2].expand(3, -1)):
        assert_is_bottom_k(bottom_k_triton(view, 9, config=SMALL), view, 9)


def test_addresses_beyond_two_to_the_31(kernel_device: torch.device, tmp_path: Path) -> None:
    if kernel_device.type == "cuda":
        pytest.skip("the file is mapped to a CPU; test_a_vocabulary has the GPU's")
    stride = 3 * 2**29  # row 2 is beyond 2^31 elements
    values_NV = normal(3, 600, seed=9, dtype=torch.bfloat16)
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        for i in range(3):
            file.seek(i * stride * 2)
            file.write(values_NV[i].view(torch.uint8).numpy().tobytes())
        file.truncate(3 * stride * 2)
    sparse = torch.from_file(str(path), shared=True, size=3 * stride, dtype=torch.bfloat16).view(3, stride)[:, :600]
    assert_is_bottom_k(bottom_k_triton(sparse, 5, config=SMALL), values_NV, 5)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_vocabulary(dtype: torch.dtype) -> None:
    pool = torch.randn(151_936, device="cuda", generator=torch.Generator("cuda").manual_seed(0)).to(dtype)
    valid = torch.arange(151_936, device="cuda") < 151_643
    x_NV = torch.stack([pool.roll(i * 997) for i in range(64)])
    far = pool.expand(1, -1).as_strided((2, 151_936), (0, 1))
    if torch.cuda.mem_get_info()[0] > 2**33:
        whole = torch.empty(2, 2**31 + 64, dtype=torch.bfloat16, device="cuda")[:, :151_936]
        far = whole.copy_(x_NV[:2])
    for x, k in ((x_NV, 2000), (x_NV[:3], 20_000), (x_NV, 10), (far, 100)):
        assert_is_bottom_k(bottom_k_triton(x, k, valid=valid), x, k, valid)
        again = bottom_k_triton(x, k, valid=valid, sort=False)
        assert torch.equal(again[1], bottom_k_triton(x, k, valid=valid, sort=False)[1])


def test_cpu_tensors_are_turned_away() -> None:
    with pytest.raises(ValueError, match="logits are on cpu; move them to a CUDA device"):
        bottom_k_triton(torch.ones(2, 3), 1)


def test_too_many_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(op, "is_interpreted", lambda kernel: True)
    with pytest.raises(ValueError, match="2147483648 columns are more than 2147418112; split"):
        bottom_k_triton(torch.ones(1, 1).expand(1, 2**31), 1)


def test_expected_ids_is_the_textbook_answer() -> None:
    x = torch.tensor([[0.0, float("nan"), -0.0, -1.0, float("inf")]])
    assert expected_ids(x, 5).tolist() == [[3, 0, 2, 4, 1]]
    assert expected_ids(x, 5, largest=True).tolist() == [[4, 0, 2, 3, 1]]
