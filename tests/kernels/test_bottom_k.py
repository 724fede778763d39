import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from modelassay_kernels import bottom_k, native, native_available
from modelassay_kernels.bottom_k.cpu import bottom_k_native
from modelassay_kernels.bottom_k.reference import bottom_k_reference
from support.bottom_k_cases import DTYPES, assert_is_bottom_k, hard_rows, normal, uniform
from support.engines import by_instruction_set
from support.pairwise import pairwise
from support.sparse_rows import far_apart

Engine = Callable[..., tuple[Tensor, Tensor]]
ENGINES: dict[str, Engine] = {"reference": bottom_k_reference}
if native_available():
    from modelassay_kernels import _native

    ENGINES |= by_instruction_set(bottom_k_native)

needs_native = pytest.mark.skipif(not native_available(), reason="needs the compiled extension")


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Engine:
    return ENGINES[request.param]


@pytest.fixture
def restore_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


SIZES = [1, 3, 65, 2047, 20_011]
HARD = pairwise(ENGINES, SIZES, DTYPES, [False, True])


@pytest.mark.parametrize(("engine", "num_cols", "dtype", "largest"), HARD, indirect=["engine"])
def test_hard_rows(engine: Engine, num_cols: int, dtype: torch.dtype, largest: bool) -> None:
    x_NV = torch.stack(list(hard_rows(num_cols).values())).to(dtype)
    for k in sorted({0, 1, num_cols // 70, num_cols // 2, num_cols}):
        assert_is_bottom_k(engine(x_NV, k, largest=largest), x_NV, k, largest=largest)
    k = num_cols // 3
    assert_is_bottom_k(engine(x_NV, k, largest=largest, sort=False), x_NV, k, largest=largest, sort=False)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_vocabulary(engine: Engine, dtype: torch.dtype) -> None:
    x_NV = normal(2, 151_936, dtype=dtype)
    valid = torch.arange(151_936) < 151_643
    x_NV[:, 151_643:] = -100.0  # padding is the extreme
    for k in (10, 2000):
        assert_is_bottom_k(engine(x_NV, k, valid=valid), x_NV, k, valid)
        assert_is_bottom_k(engine(x_NV, k, sort=False), x_NV, k, sort=False)


@pytest.mark.parametrize("num_cols", [0, 1, 300, 700, 2500])
def test_many_rows(engine: Engine, num_cols: int) -> None:
    x_NV = normal(70, num_cols, seed=num_cols)
    assert_is_bottom_k(engine(x_NV, num_cols // 9), x_NV, num_cols // 9)


def test_rows_that_fall_all_along_refill_the_buffer(engine: Engine) -> None:
    x_NV = torch.stack([torch.arange(30_000, 0, -1.0), torch.arange(30_000, 0, -1.0).div(7).floor()])
    x_NV[:, ::470] += 60_000  # lines a sample would be taken from say nothing of the rest
    assert_is_bottom_k(engine(x_NV, 500), x_NV, 500)


@pytest.mark.parametrize("share", [0.0005, 0.1, 0.9])
def test_masks(engine: Engine, share: float) -> None:
    valid = uniform(20_011, seed=5) < share
    num_valid = int(valid.sum())
    x_NV = torch.stack(list(hard_rows(20_011).values()))
    for k in (1, num_valid // 2, num_valid):
        assert_is_bottom_k(engine(x_NV, k, valid=valid), x_NV, k, valid)
        assert_is_bottom_k(engine(x_NV, k, valid=valid, largest=True), x_NV, k, valid, largest=True)


VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "rows cut short": lambda x: x[:, 5:2990],
    "every second row": lambda x: x[::2],
    "one row many times": lambda x: x[1:2].expand(5, -1),
    "transposed": lambda x: x[:, :40].t(),
    "every third column": lambda x: x[:, ::3],
    "one column": lambda x: x[:, 7:8],
    "no rows": lambda x: x[:0],
}


@pytest.mark.parametrize(("engine", "dtype", "view"), pairwise(ENGINES, DTYPES, VIEWS), indirect=["engine"])
def test_views(engine: Engine, dtype: torch.dtype, view: str) -> None:
    x_NV = VIEWS[view](normal(6, 3001, dtype=dtype))
    k = (x_NV.shape[1] + 2) // 3
    assert_is_bottom_k(engine(x_NV, k), x_NV, k)


def test_random_cases(engine: Engine) -> None:
    draw = random.Random(7)
    for case in range(150):
        num_rows, num_cols = draw.randint(0, 5), draw.choice([draw.randint(0, 200), draw.randint(0, 9000)])
        levels = draw.choice([2, 5, 100, 10**6])  # few levels: many ties
        x_NV = (normal(num_rows, num_cols, seed=case) * levels).round() / levels * draw.choice([1.0, 1e-39, 1e4])
        x_NV = x_NV.to(draw.choice(DTYPES))
        if draw.random() < 0.3:
            x_NV[uniform(num_rows, num_cols, seed=case) < 0.2] = draw.choice([float("nan"), 0.0, float("-inf")])
        valid = uniform(num_cols, seed=case) < draw.random() if draw.random() < 0.5 else None
        k = draw.randint(0, num_cols if valid is None else int(valid.sum()))
        largest, sort = draw.random() < 0.5, draw.random() < 0.5
        got = engine(x_NV, k, valid=valid, largest=largest, sort=sort)
        assert_is_bottom_k(got, x_NV, k, valid, largest=largest, sort=sort)


def test_zeros_of_both_signs_tie_and_stay_as_they_are(engine: Engine) -> None:
    x_NV = torch.tensor([[0.0, -0.0, 1.0, -0.0, 0.0]])
    values_NK, ids_NK = engine(x_NV, 4)
    assert ids_NK.tolist() == [[0, 1, 3, 4]]
    assert values_NK.signbit().tolist() == [[False, True, True, False]]


@needs_native
@pytest.mark.usefixtures("restore_threads")
def test_same_result_for_any_number_of_threads() -> None:
    x_NV = normal(37, 20_011, dtype=torch.bfloat16)
    results = []
    for num_threads in (1, 2, 3, 7):
        torch.set_num_threads(num_threads)
        results.append([part.tolist() for sort in (True, False) for part in bottom_k(x_NV, 300, sort=sort)])
    assert results[1:] == results[:1] * 3


def test_without_the_extension(monkeypatch: pytest.MonkeyPatch) -> None:
    x_NV = torch.stack(list(hard_rows(501).values()))
    monkeypatch.setattr(native, "unavailable", "hidden by the test")
    assert_is_bottom_k(bottom_k(x_NV, 100), x_NV, 100)


def test_public_function_takes_what_the_engines_take() -> None:
    for dtype in (*DTYPES, torch.float64):
        x_NV = torch.nn.Parameter(normal(3, 1000, dtype=dtype))
        got = bottom_k(x_NV, 10, largest=True)
        assert not got[0].requires_grad
        assert_is_bottom_k(got, x_NV.detach(), 10, largest=True)


MASK = torch.tensor([True, False, True])


@pytest.mark.parametrize(
    ("logits", "k", "valid", "error", "message"),
    [
        (torch.ones(3), 1, None, ValueError, r"got shape \[3\]; flatten"),
        (torch.ones(2, 3, dtype=torch.int64), 1, None, TypeError, "dtype torch.int64; expected one of"),
        (torch.ones(2, 3), 4, None, ValueError, "k = 4, but 3 of 3 ids are valid; ask for 0 to 3"),
        (torch.ones(2, 3), 3, MASK, ValueError, "k = 3, but 2 of 3 ids are valid"),
        (torch.ones(2, 3), -1, None, ValueError, "k = -1"),
        (torch.ones(2, 3), 1, MASK[:2], ValueError, r"bool \[3\] on cpu, got torch.bool \[2\]"),
        (torch.ones(2, 3), 1, MASK.int(), ValueError, "got torch.int32"),
        (torch.ones(2, 3), 1, MASK.to("meta"), ValueError, "on meta"),
    ],
)
def test_what_cannot_be_answered_is_an_error(
    logits: Tensor, k: int, valid: Tensor | None, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        bottom_k(logits, k, valid=valid)


@needs_native
def test_addresses_beyond_two_to_the_31(tmp_path: Path) -> None:
    values_NV = normal(3, 20_011, dtype=torch.bfloat16)
    assert_is_bottom_k(bottom_k(far_apart(values_NV, tmp_path / "sparse"), 300), values_NV, 300)


@needs_native
def test_more_than_two_to_the_31_elements() -> None:
    row = normal(1, 1_000_003)
    values_NK, ids_NK = bottom_k(row.expand(2200, -1), 3, sort=True)
    assert_is_bottom_k((values_NK[:1], ids_NK[:1]), row, 3)
    assert (ids_NK == ids_NK[0]).all()
    assert (values_NK == values_NK[0]).all()


@needs_native
def test_binding_checks_sizes_before_memory() -> None:
    x, values, ids = torch.ones(4, 6), torch.empty(4, 2), torch.empty(4, 2, dtype=torch.int64)
    mask = torch.ones(6, dtype=torch.uint8)
    for message, arguments in {
        "does not hold": (x, "BF16", values, ids, None),
        "one row per row": (x, "F32", values[:3], ids, None),
        "the rows' type": (x, "F32", values.half(), ids, None),
        "another length": (x, "F32", values, ids, mask[:5]),
        "k is not in": (x, "F32", values, ids, mask * torch.tensor([1, 0, 0, 0, 0, 0], dtype=torch.uint8)),
        "only BF16, F16 and F32": (x.double(), "F64", values.double(), ids, None),
    }.items():
        with pytest.raises(ValueError, match=message):
            _native.bottom_k(*arguments, False, True, 1)
    with pytest.raises(ValueError, match="instruction set 'sse9'"):
        _native.bottom_k(x, "F32", values, ids, None, False, True, 1, "sse9")


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
def test_out_is_written_and_returned(dtype: torch.dtype) -> None:
    logits = normal(6, 3001, seed=0).to(dtype).requires_grad_()
    expected = bottom_k(logits, 40)
    out = torch.full((6, 40), 7.0, dtype=dtype), torch.full((6, 40), -1)
    got = bottom_k(logits, 40, out=out)
    for part, to, right in zip(got, out, expected, strict=True):
        assert part is to
        assert torch.equal(part, right)
    with pytest.raises(ValueError, match=r"bottom_k: out\[0\] must be .* \[6, 41\]"):
        bottom_k(logits, 41, out=out)
    with pytest.raises(ValueError, match=r"out\[0\] shares memory with an input"):
        bottom_k(
            logits.detach().view(-1)[:240].view(40, 6).t(),
            6,
            out=(logits.detach().view(-1)[:36].view(6, 6), out[1][:, :6].clone()),
        )


@pytest.mark.skipif(not native_available(), reason="needs the compiled extension")
def test_threads_are_as_many_as_the_bytes_are_worth() -> None:
    """A thread costs about as long as reading a MiB: of 96, a chunk of 512 x 2048 in fp32 gets four."""
    assert _native.threads_for(512 * 2048 * 4, 96) == 4
    assert [_native.threads_for(count, 96) for count in (0, (1 << 21) - 1, 1 << 21, 1 << 40)] == [1, 1, 2, 96]
    assert _native.threads_for(1 << 40, 0) == 1


def test_valid_ids_are_counted_once_for_a_mask_that_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []
    count = Tensor.sum
    monkeypatch.setattr(Tensor, "sum", lambda *args, **options: counts.append(1) or count(*args, **options))
    logits, valid = torch.arange(6.0)[None], torch.tensor([True, False, True, True, True, True])
    for _ in range(3):
        assert bottom_k(logits, 2, valid=valid)[1].tolist() == [[0, 2]]
    assert len(counts) == 1
    valid[2:] = False
    with pytest.raises(ValueError, match="k = 2, but 1 of 6 ids are valid"):
        bottom_k(logits, 2, valid=valid)
    assert len(counts) == 2
