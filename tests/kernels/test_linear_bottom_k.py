import functools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from modelassay_kernels import linear_bottom_k, native, native_available
from modelassay_kernels.bottom_k import linear as op
from modelassay_kernels.dtypes import FLOATS
from support.bottom_k_cases import assert_is_bottom_k, normal, uniform
from support.engines import instruction_sets, require_instruction_set

DTYPES = [*FLOATS]
MODES = ["plain", *instruction_sets()]
if native_available():
    from modelassay_kernels import _native


@pytest.fixture(params=MODES)
def compute(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Tensor, Tensor]]:
    """`linear_bottom_k` with one way to keep the k, in chunks of which the last are ragged."""
    monkeypatch.setattr(op, "CPU_CHUNK", (3, 700))
    if request.param == "plain":
        monkeypatch.setattr(native, "unavailable", "hidden by the test")
    else:
        require_instruction_set(request.param)
        monkeypatch.setattr(op, "NativeRunning", functools.partial(op.NativeRunning, instruction_set=request.param))
    return linear_bottom_k


def integers(*shape: int, dtype: torch.dtype, seed: int) -> Tensor:
    """Small integers: every sum of products is exact in fp32 in any order, and many tie."""
    return (normal(*shape, seed=seed) * 3).round().to(dtype)


@pytest.mark.parametrize("largest", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_exact_sums(compute: Callable[..., tuple[Tensor, Tensor]], dtype: torch.dtype, largest: bool) -> None:
    hidden_ND, weight_VD = integers(7, 8, dtype=dtype, seed=1), integers(9011, 8, dtype=dtype, seed=2)
    valid, bias_V = uniform(9011, seed=3) < 0.9, integers(9011, dtype=dtype, seed=4)
    logits_NV = hidden_ND.double() @ weight_VD.double().t() + bias_V.double()
    logits_NV = logits_NV.to(torch.float64 if dtype == torch.float64 else torch.float32) + 0.0  # no negative zeros
    for k in (0, 1, 300, int(valid.sum())):
        got = compute(hidden_ND, weight_VD, k, valid=valid, bias=bias_V, largest=largest)
        assert_is_bottom_k(got, logits_NV, k, valid, largest=largest)


def test_nan_comes_last(compute: Callable[..., tuple[Tensor, Tensor]]) -> None:
    hidden_ND, weight_VD = integers(2, 4, dtype=torch.float32, seed=5), integers(2000, 4, dtype=torch.float32, seed=6)
    weight_VD[::3] = float("nan")
    logits_NV = hidden_ND @ weight_VD.t() + 0.0
    for k in (10, 1990):
        assert_is_bottom_k(compute(hidden_ND, weight_VD, k), logits_NV, k)


def test_falling_logits_refill_the_buffer(compute: Callable[..., tuple[Tensor, Tensor]]) -> None:
    weight_VD = torch.arange(20_011, 0, -1.0)[:, None]
    hidden_ND = torch.tensor([[1.0], [-1.0]])
    assert_is_bottom_k(compute(hidden_ND, weight_VD, 100), hidden_ND @ weight_VD.t(), 100)


@pytest.mark.parametrize("dtype", DTYPES)
def test_softcap_of_a_random_head(compute: Callable[..., tuple[Tensor, Tensor]], dtype: torch.dtype) -> None:
    hidden_ND, weight_VD = normal(4, 64, seed=7, dtype=dtype), normal(5003, 64, seed=8, dtype=dtype)
    values_NK, ids_NK = compute(hidden_ND, weight_VD, 40, softcap=30.0)
    logits_NV = 30.0 * torch.tanh(hidden_ND.double() @ weight_VD.double().t() / 30.0)
    tolerance = {"rtol": 1e-5, "atol": 1e-4} if dtype != torch.float64 else {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(values_NK.double(), logits_NV.sort(dim=1).values[:, :40], **tolerance)
    torch.testing.assert_close(values_NK.double(), logits_NV.gather(1, ids_NK), **tolerance)
    assert float(values_NK.min()) >= -30.0


class LargestTensor(TorchDispatchMode):
    """Remembers the most elements any result of an operation had."""

    num_elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.num_elements = max(self.num_elements, result.numel())
        return result


@pytest.mark.skipif(not native_available(), reason="needs the compiled extension")
def test_logits_never_exist() -> None:
    hidden_ND, weight_VD = normal(1100, 4, seed=9), normal(30_000, 4, seed=10)
    with LargestTensor() as largest:
        linear_bottom_k(hidden_ND, weight_VD, 5)
    rows, cols = op.CPU_CHUNK
    assert largest.num_elements <= max(rows * cols, rows * _native.bottom_k_capacity(5)) < 1100 * 30_000 / 10


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
def test_on_a_gpu(dtype: torch.dtype) -> None:
    hidden_ND = integers(5000, 64, dtype=dtype, seed=1).cuda()
    weight_VD = integers(20_011, 64, dtype=dtype, seed=2).cuda()
    valid = uniform(20_011, seed=3).cuda() < 0.9
    values_NK, ids_NK = linear_bottom_k(hidden_ND, weight_VD, 2000, valid=valid)
    some = slice(4090, 4100)  # of two chunks of rows
    logits_NV = (hidden_ND[some].double() @ weight_VD.double().t()).float() + 0.0
    assert_is_bottom_k((values_NK[some], ids_NK[some]), logits_NV, 2000, valid)


HIDDEN, WEIGHT = torch.ones(2, 4), torch.ones(6, 4)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"hidden_ND": torch.ones(1, 2, 4)}, ValueError, r"got \[1, 2, 4\] and \[6, 4\]; flatten"),
        ({"weight_VD": torch.ones(6, 5)}, ValueError, r"got \[2, 4\] and \[6, 5\]"),
        ({"weight_VD": WEIGHT.int()}, TypeError, "weight has dtype torch.int32; expected one of"),
        ({"weight_VD": WEIGHT.to("meta")}, ValueError, "weight is on meta, hidden on cpu; move one"),
        ({"bias": torch.ones(5)}, ValueError, r"bias must be \[6\] on cpu, got \[5\]"),
        ({"softcap": 0.0}, ValueError, "softcap must be above 0, from 1e-30 to 1e\\+30, got 0.0"),
        ({"k": 7}, ValueError, "linear_bottom_k: k = 7, but 6 of 6 ids are valid"),
        ({"valid": torch.ones(5, dtype=torch.bool)}, ValueError, r"linear_bottom_k: valid must be bool \[6\]"),
    ],
)
def test_what_cannot_be_answered_is_an_error(arguments: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        linear_bottom_k(**{"hidden_ND": HIDDEN, "weight_VD": WEIGHT, "k": 1} | arguments)


@pytest.mark.skipif(not native_available(), reason="needs the compiled extension")
def test_binding_checks_sizes_before_memory() -> None:
    x, counts, limits = torch.ones(4, 6), torch.zeros(4, dtype=torch.int64), torch.full((4,), 0xFFFFFFFF)
    entries = torch.empty(4, _native.bottom_k_capacity(3), dtype=torch.int64)
    for message, fold in {
        "too small for k": (x, "F32", 0, 3, entries[:, :100].contiguous(), counts, limits),
        "as many as the rows": (x, "F32", 0, 3, entries, counts[:3], limits),
        "within the capacity": (x, "F32", 0, 3, entries, counts + 10**6, limits),
        "ids leave": (x, "F32", 2**32 - 3, 3, entries, counts, limits),
    }.items():
        with pytest.raises(ValueError, match=message):
            _native.bottom_k_fold(*fold, None, False, 1)
    values, ids = torch.empty(4, 3), torch.empty(4, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match="fewer than k"):
        _native.bottom_k_finish(entries, counts, limits, values, ids, False, True, 1)


def test_out_is_written_and_returned(compute: Callable[..., tuple[Tensor, Tensor]]) -> None:
    hidden, weight = normal(5, 8, seed=0).float(), normal(2003, 8, seed=1).float()
    expected = compute(hidden, weight, 7)
    out = torch.full((5, 7), -1.0), torch.full((5, 7), -1)
    got = compute(hidden, weight, 7, out=out)
    for part, to, right in zip(got, out, expected, strict=True):
        assert part is to
        assert torch.equal(part, right)
    with pytest.raises(ValueError, match=r"linear_bottom_k: out\[1\] must be torch.int64 \[5, 7\]"):
        compute(hidden, weight, 7, out=(out[0], out[0]))
