"""softmax_ggn on CUDA: numbers, in the interpreter and on a GPU."""

import math

import pytest
import torch

from modelassay_kernels.softmax_ggn import triton_kernels as op
from modelassay_kernels.softmax_ggn.reference import softmax_ggn_reference
from support.cross_entropy_cases import normal

# bfloat16 is truncated in the interpreter, so it may be a whole step off.
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2**-10, torch.bfloat16: 2**-7}
SMALL = op.LaunchConfig(span=512, vectors=1, num_warps=1)  # 128 columns of fp32 at one time, 256 of a narrow type
quiet = pytest.mark.filterwarnings("ignore:(overflow|invalid value|All-NaN slice|divide by zero):RuntimeWarning")


@pytest.mark.parametrize("shape", [(1, 1), (1, 512), (5, 129), (3, 513), (2, 1801)])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_sizes(dtype: torch.dtype, shape: tuple[int, int], kernel_device: torch.device) -> None:
    logits, u = (normal(*shape, seed=0) * 4).to(dtype), normal(*shape, seed=1, dtype=dtype)
    want = softmax_ggn_reference(logits, u)
    got = op.softmax_ggn_triton(logits.to(kernel_device), u.to(kernel_device), SMALL).cpu()
    assert got.dtype == dtype
    allowed = TOLERANCE[dtype] * logits.double().softmax(1) * u.double().abs().amax(1, keepdim=True)
    assert bool(((got.double() - want).abs() <= allowed + 2**-24).all())


def test_views_are_read_in_place_and_nothing_is_left_unwritten(kernel_device: torch.device) -> None:
    x = normal(6, 700, seed=0, dtype=torch.float32).to(kernel_device)
    for logits, u in [(x[::2, 7:650], x[1:4, :643]), (x[:1].expand(4, -1), x[:4]), (x[:, ::2], x[:, 1::2])]:
        got = op.softmax_ggn_triton(logits, u, SMALL).cpu()
        torch.testing.assert_close(got.double(), softmax_ggn_reference(logits, u).cpu(), rtol=1e-4, atol=1e-7)


@quiet
@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_bad_number_spoils_its_row_alone(poison: float, kernel_device: torch.device) -> None:
    logits, u = normal(5, 1250, seed=0, dtype=torch.float32), normal(5, 1250, seed=1, dtype=torch.float32)
    logits[1, 1249] = poison
    logits[2] = -math.inf
    logits[3, :700] = -math.inf  # a whole split, and a part of the next
    u[3, 5] = 1e30  # where p is 0
    logits[4] += 1e4  # which float32 has in steps of 0.001
    got = op.softmax_ggn_triton(logits.to(kernel_device), u.to(kernel_device), SMALL).cpu()
    assert got.isnan().all(1).tolist() == got.isnan().any(1).tolist() == [False, True, True, False, False]
    torch.testing.assert_close(got[3:].double(), softmax_ggn_reference(logits, u)[3:], rtol=1e-4, atol=1e-7)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_a_whole_vocabulary_twice_with_equal_bits(dtype: torch.dtype) -> None:
    logits = (torch.randn(700, 151936, device="cuda") * 3).to(dtype)
    u = torch.randn(700, 151936, device="cuda").to(dtype)
    got = op.softmax_ggn_triton(logits, u)
    assert torch.equal(got, op.softmax_ggn_triton(logits, u))
    for rows in torch.arange(700, device="cuda").split(100):
        want = softmax_ggn_reference(logits[rows], u[rows])
        assert bool(((got[rows].double() - want).norm(dim=1) <= TOLERANCE[dtype] * want.norm(dim=1)).all())


@pytest.mark.gpu
def test_addresses_beyond_int32() -> None:
    num_rows, num_cols = 14200, 151936  # more than 2^31 elements
    if torch.cuda.mem_get_info()[0] < 3 * num_rows * num_cols * 2 + 2**32:
        pytest.skip("needs 17 GB of free device memory")
    logits = torch.zeros(num_rows, num_cols, dtype=torch.bfloat16, device="cuda")
    u = torch.zeros_like(logits)
    logits[-1] = torch.randn(num_cols, device="cuda")
    u[-1] = torch.randn(num_cols, device="cuda")
    got = op.softmax_ggn_triton(logits, u)
    want = softmax_ggn_reference(logits[-1:], u[-1:])
    assert bool((got[-1:].double() - want).norm() <= 2**-7 * want.norm())
    assert float(got[:-1].abs().max()) == 0.0


def test_cpu_tensors_are_turned_away() -> None:
    with pytest.raises(ValueError, match="tensors are on cpu; move them to a CUDA device"):
        op.softmax_ggn_triton(torch.ones(1, 3), torch.ones(1, 3))
