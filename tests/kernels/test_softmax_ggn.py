"""softmax_ggn against its float64 reference, on each instruction set that it is compiled for."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.func import grad, jvp, vmap

from modelassay_kernels import native, native_available, softmax_ggn
from modelassay_kernels.softmax_ggn.cpu import softmax_ggn_native
from modelassay_kernels.softmax_ggn.reference import softmax_ggn_reference, softmax_ggn_torch
from modelassay_kernels.softmax_ggn.work import softmax_ggn_work
from support.cross_entropy_cases import assert_close, normal
from support.engines import by_instruction_set
from support.pairwise import pairwise

ENGINES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"torch": softmax_ggn_torch}
if native_available():
    from modelassay_kernels import _native

    ENGINES |= by_instruction_set(softmax_ggn_native)

# Of the largest |u| in a row times p, with the one rounding of the result.
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}
needs_native = pytest.mark.skipif(not native_available(), reason="needs the compiled extension")
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Callable[[Tensor, Tensor], Tensor]:
    return ENGINES[request.param]


def assert_matches(got: Tensor, logits: Tensor, u: Tensor) -> None:
    """Compare each element; where fp16 is subnormal, by its smallest step."""
    assert got.dtype == logits.dtype
    want = softmax_ggn_reference(logits, u)
    p = logits.double().softmax(1)
    allowed = TOLERANCE[got.dtype] * p * u.double().abs().amax(1, keepdim=True) * 2
    smallest = 2**-25 if got.dtype == torch.float16 else 1e-37
    assert bool(((got.double() - want).abs() <= allowed + smallest).all())


SIZES = [1, 2, 3, 15, 16, 17, 63, 64, 65, 127, 1000, 1025, 4099]


@pytest.mark.parametrize(("engine", "dtype", "num_cols"), pairwise(ENGINES, TOLERANCE, SIZES), indirect=["engine"])
def test_sizes(engine: Callable[[Tensor, Tensor], Tensor], dtype: torch.dtype, num_cols: int) -> None:
    logits = (normal(5, num_cols, seed=0) * 4).to(dtype)
    u = normal(5, num_cols, seed=1, dtype=dtype)
    assert_matches(engine(logits, u), logits, u)


def test_reference_is_the_hessian_of_logsumexp() -> None:
    logits, u = normal(3, 7, seed=0), normal(3, 7, seed=1)
    want = jvp(grad(lambda x: x.logsumexp(1).sum()), (logits,), (u,))[1]
    assert_close(softmax_ggn_reference(logits, u), want, 1e-12)
    assert_close(softmax_ggn(logits, u), want, 1e-12)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_a_constant_u_gives_nothing(engine: Callable[[Tensor, Tensor], Tensor], dtype: torch.dtype) -> None:
    logits = normal(4, 777, seed=0, dtype=dtype)
    assert float(engine(logits, torch.full_like(logits, 3.0)).abs().max()) <= 3.0 * 2**-22


@pytest.mark.parametrize("shift", [-3e4, 3e4])
@pytest.mark.parametrize("spread", [0.0, 1.0, 60.0])
def test_logits_far_from_zero(engine: Callable[[Tensor, Tensor], Tensor], shift: float, spread: float) -> None:
    logits = (normal(4, 333, seed=0) * spread + shift).float()
    u = normal(4, 333, seed=1, dtype=torch.float32)
    assert_matches(engine(logits, u), logits, u)


def test_every_narrow_result_is_rounded_to_nearest(engine: Callable[[Tensor, Tensor], Tensor]) -> None:
    """One-hot rows of two columns with p = 1/2: y = (u0 - u1) / 4 takes every magnitude, subnormal and overflowing."""
    for dtype in (torch.bfloat16, torch.float16):
        codes = torch.arange(1 << 16).to(torch.int16).view(dtype)
        u0 = codes[codes.isfinite()]
        u = torch.stack([u0, torch.zeros_like(u0)], 1)
        want = (u0.float() / 4).to(dtype)
        got = engine(torch.zeros_like(u), u)
        assert torch.equal(got[:, 0], want)
        assert torch.equal(got[:, 1], -want)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_bad_number_spoils_its_row_alone(
    engine: Callable[[Tensor, Tensor], Tensor], dtype: torch.dtype, poison: float
) -> None:
    logits, u = normal(6, 200, seed=0, dtype=dtype), normal(6, 200, seed=1, dtype=dtype)
    logits[1, 3], logits[2, 199] = poison, poison
    u[3, 70] = math.nan
    logits[4] = -math.inf
    got = engine(logits, u)
    assert got.isnan().all(1).tolist() == got.isnan().any(1).tolist() == [False, True, True, True, True, False]
    assert_matches(got[[0, 5]], logits[[0, 5]], u[[0, 5]])


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_a_logit_of_minus_infinity_weighs_nothing(
    engine: Callable[[Tensor, Tensor], Tensor], dtype: torch.dtype
) -> None:
    logits, u = normal(3, 300, seed=0, dtype=dtype), normal(3, 300, seed=1, dtype=dtype)
    logits[:, ::2] = -math.inf
    got = engine(logits, u)
    assert_matches(got, logits, u)
    assert bool((got[:, ::2] == 0).all())


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0, 0)])
def test_nothing(shape: tuple[int, int]) -> None:
    assert softmax_ggn(torch.ones(shape), torch.ones(shape)).shape == shape


@needs_native
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_views(dtype: torch.dtype) -> None:
    logits, u = normal(8, 900, seed=0, dtype=dtype), normal(900, 8, seed=1, dtype=dtype)
    for left, right in [(logits[:, 3:500], u.t()[:, 3:500]), (logits[::2], logits[:1].expand(4, -1)), (u.t(), logits)]:
        want = softmax_ggn(left.contiguous(), right.contiguous())
        assert torch.equal(softmax_ggn(left, right), want)


@needs_native
def test_same_bits_for_any_number_of_threads() -> None:
    logits, u = normal(41, 2000, seed=0, dtype=torch.float32), normal(41, 2000, seed=1, dtype=torch.float32)
    before = torch.get_num_threads()
    results = []
    try:
        for num_threads in (1, 2, 5):
            torch.set_num_threads(num_threads)
            results.append(softmax_ggn(logits, u))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_without_the_extension(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, u = normal(4, 130, seed=0, dtype=torch.bfloat16), normal(4, 130, seed=1, dtype=torch.bfloat16)
    monkeypatch.setattr(native, "unavailable", "hidden by the test")
    assert_matches(softmax_ggn(logits, u), logits, u)


@pytest.mark.parametrize("dtype", [*TOLERANCE, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(3, 9001), (70, 32768)], ids=["in the caches", "past them"])
def test_out_is_written_and_returned(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    """Also in place of an input; a result above 4 MiB is written past the caches. Several pieces of a row, the last ragged."""
    logits, u = normal(*shape, seed=0, dtype=dtype), normal(*shape, seed=1, dtype=dtype)
    expected = softmax_ggn(logits, u)
    out = torch.full_like(u, math.nan)
    assert softmax_ggn(logits, u, out=out) is out
    assert torch.equal(out, expected)
    for place in (u, logits):
        before = logits.clone(), u.clone()
        assert torch.equal(softmax_ggn(logits, u, out=place), expected)
        logits, u = before


def test_pieces_far_apart_are_merged() -> None:
    """The largest logit of a row stands in a later piece than many that are much smaller, and than some of minus infinity."""
    logits = torch.linspace(-200, 60, 20_001).repeat(2, 1)
    logits[1, :9000] = -math.inf
    u = normal(2, 20_001, seed=1, dtype=torch.float32)
    assert_matches(softmax_ggn(logits, u), logits, u)
    assert_matches(softmax_ggn(logits.flip(1), u), logits.flip(1), u)


def test_an_out_that_cannot_take_the_result_is_an_error() -> None:
    x = torch.ones(4, 6)
    storage = torch.ones(60)
    logits = storage[:24].view(4, 6)
    for out, message in [
        (torch.ones(4, 5), r"out must be torch.float32 \[4, 6\] on cpu, got torch.float32 \[4, 5\]"),
        (torch.ones(4, 6, dtype=torch.float64), "got torch.float64"),
        (torch.ones(6, 4).t(), r"out has strides \(1, 4\); give a contiguous tensor"),
        (storage[5:29].view(4, 6), "shares memory with an input in other places than its own"),
    ]:
        with pytest.raises(ValueError, match=message):
            softmax_ggn(logits, x, out=out)
    with pytest.raises(ValueError, match="out carries no gradient"):
        softmax_ggn(x, x.clone().requires_grad_(), out=torch.ones(4, 6))
    with torch.no_grad():
        softmax_ggn(x, x.clone().requires_grad_(), out=torch.ones(4, 6))


def test_it_is_its_own_derivative_in_u() -> None:
    logits, u, v = (normal(4, 9, seed=i) for i in range(3))
    want = softmax_ggn(logits, v)
    assert_close(grad(lambda u: (softmax_ggn(logits, u) * v).sum())(u), want, 1e-14)
    assert_close(jvp(lambda u: softmax_ggn(logits, u), (u,), (v,))[1], want, 1e-14)
    mapped = vmap(softmax_ggn, in_dims=(None, 1))(logits, torch.stack([u, v], 1))
    assert_close(mapped, torch.stack([softmax_ggn(logits, u), want]), 1e-14)
    mapped = vmap(softmax_ggn, in_dims=(2, 0))(torch.stack([logits, u], 2), torch.stack([u, v]))
    assert_close(mapped, torch.stack([softmax_ggn(logits, u), softmax_ggn(u, v)]), 1e-14)


def test_the_derivative_in_the_logits_is_an_error() -> None:
    logits, u = normal(4, 9, seed=0), normal(4, 9, seed=1)
    with pytest.raises(NotImplementedError, match="third derivative of the loss.*detach the logits"):
        grad(lambda x: softmax_ggn(x, u).square().sum())(logits)
    with pytest.raises(NotImplementedError, match="detach the logits"):
        jvp(lambda x: softmax_ggn(x, u), (logits,), (u,))


@pytest.mark.parametrize(
    ("logits", "u", "error", "message"),
    [
        (torch.ones(3), torch.ones(3), ValueError, r"logits of shape \(3,\)"),
        (torch.ones(2, 3), torch.ones(2, 4), ValueError, r"u of shape \(2, 4\)"),
        (torch.ones(2, 3).long(), torch.ones(2, 3).long(), TypeError, "dtype torch.int64"),
        (torch.ones(2, 3), torch.ones(2, 3).double(), ValueError, "u is torch.float64 on cpu"),
        (torch.ones(2, 3), torch.ones(2, 3, device="meta"), ValueError, "on meta"),
    ],
)
def test_bad_calls(logits: Tensor, u: Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        softmax_ggn(logits, u)


@needs_native
def test_binding_checks_before_memory() -> None:
    x = torch.ones(4, 6)
    for logits, u, y, code in [
        (x, x, x.clone(), "BF16"),
        (x, x[:, :5], x.clone(), "F32"),
        (x, x.half(), x.clone(), "F32"),
        (x, torch.ones(6, 4).t(), x.clone(), "F32"),
        (x, x, torch.ones(1, 6).expand(4, 6), "F32"),
        (x.double(), x.double(), x.double(), "F64"),
    ]:
        with pytest.raises(ValueError, match="^softmax_ggn: "):
            _native.softmax_ggn(logits, u, y, code, 1)
    with pytest.raises(ValueError, match="^softmax_ggn: instruction set 'sse9'"):
        _native.softmax_ggn(x, x, x.clone(), "F32", 1, "sse9")


def test_work_counts_what_is_moved() -> None:
    logits = torch.ones(3, 7, dtype=torch.bfloat16)
    assert softmax_ggn_work(3, 7, itemsize=2).bytes == 2 * logits.nbytes + softmax_ggn(logits, logits).nbytes
