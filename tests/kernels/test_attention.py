"""attention on the CPU: values, first and second derivatives against the definition in float64, and what it refuses."""

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, jvp, vjp, vmap

from modelassay_kernels import attention, attention_over_spans
from modelassay_kernels.attention import tiled as tiled
from modelassay_kernels.attention.autograd import deferring
from modelassay_kernels.attention.spans import make_spans, visible
from modelassay_kernels.attention.work import attention_work
from modelassay_kernels.dtypes import FLOATS
from support.attention_cases import CASES, IGNORES_TORCH_JIT, Case, directions, flat, loss_of, relative_error

pytestmark = pytest.mark.filterwarnings(IGNORES_TORCH_JIT)
QKV = (0, 1, 2)
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
every_case = pytest.mark.parametrize("case", CASES, ids=str)


def gradient_of(case: Case) -> Callable[..., tuple[Tensor, ...]]:
    return grad(loss_of(lambda *qkv: attention(*qkv, **case.options)), QKV)  # type: ignore[no-any-return]


def expected_gradient_of(case: Case) -> Callable[..., tuple[Tensor, ...]]:
    return grad(loss_of(case.reference), QKV)  # type: ignore[no-any-return]


def hvp(gradient: Callable[..., Any], at: tuple[Tensor, ...], along: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return jvp(gradient, at, along)[1]  # type: ignore[no-any-return]


@every_case
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_the_output_and_its_gradient(case: Case, dtype: torch.dtype) -> None:
    qkv = case.inputs(dtype)
    exact = tuple(x.double() for x in qkv)
    output = attention(*qkv, **case.options)
    assert output.dtype == dtype
    assert relative_error([output], [case.reference(*exact)]) < TOLERANCE[dtype]
    (g,) = directions([output], seed=1)
    got = vjp(lambda *x: attention(*x, **case.options), *qkv)[1](g)
    expected = vjp(case.reference, *exact)[1](g.double())
    assert relative_error(got, expected) < 2 * TOLERANCE[dtype]


@every_case
def test_second_derivatives_in_every_order(case: Case) -> None:
    qkv = case.inputs()
    u = directions(qkv, seed=2)
    expected = hvp(expected_gradient_of(case), qkv, u)
    gradient = gradient_of(case)
    loss = loss_of(lambda *x: attention(*x, **case.options))
    orders = {
        "forward over reverse": hvp(gradient, qkv, u),
        "reverse over reverse": vjp(gradient, *qkv)[1](u),
        "reverse over forward": grad(lambda *x: jvp(loss, x, u)[1], QKV)(*qkv),
    }
    leaves = tuple(x.clone().requires_grad_() for x in qkv)
    first = torch.autograd.grad(loss(*leaves), leaves, create_graph=True)
    orders["torch.autograd twice"] = torch.autograd.grad(first, leaves, u)
    for order, got in orders.items():
        assert relative_error(got, expected) < 1e-11, order


@every_case
def test_the_tangent(case: Case) -> None:
    qkv = case.inputs()
    u = directions(qkv, seed=3)
    _, got = jvp(lambda *x: attention(*x, **case.options), qkv, u)
    _, expected = jvp(case.reference, qkv, u)
    assert relative_error([got], [expected]) < 1e-12


@pytest.mark.parametrize("case", [CASES[1], CASES[4], CASES[6]], ids=str)
def test_the_second_derivative_in_fp32(case: Case) -> None:
    qkv = case.inputs(torch.float32)
    u = directions(qkv, seed=4)
    expected = hvp(expected_gradient_of(case), tuple(x.double() for x in qkv), tuple(x.double() for x in u))
    assert relative_error(hvp(gradient_of(case), qkv, u), expected) < 1e-5


@every_case
def test_the_second_derivative_is_symmetric(case: Case) -> None:
    qkv = case.inputs()
    u, v = directions(qkv, seed=5), directions(qkv, seed=6)
    left = torch.dot(flat(u), flat(hvp(gradient_of(case), qkv, v)))
    right = torch.dot(flat(v), flat(hvp(gradient_of(case), qkv, u)))
    scale = float(flat(u).norm() * flat(hvp(gradient_of(case), qkv, v)).norm())
    assert abs(float(left - right)) <= 1e-12 * scale


@pytest.mark.parametrize("seed", range(8))
def test_central_differences_agree(seed: int) -> None:
    """Random shapes and options; (g(x + hu) - g(x - hu)) / 2h is off by O(h^2) and by rounding over h."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    kv_heads, ratio, keys = draw(1, 3), draw(1, 3), draw(1, 40)
    queries = draw(1, keys)
    case = Case(
        name=str(seed),
        shape=(draw(1, 3), kv_heads * ratio, kv_heads, queries, keys, draw(1, 9)),
        options={
            "causal": bool(draw(0, 1)),
            "window": draw(1, keys) if draw(0, 1) else None,
            "softcap": 0.5 + draw(0, 3) if draw(0, 1) else None,
        },
    )
    qkv = case.inputs(seed=seed)
    u = directions(qkv, seed=100 + seed)
    gradient, h = gradient_of(case), 1e-5
    ahead, behind = (gradient(*(x + sign * h * y for x, y in zip(qkv, u, strict=True))) for sign in (1.0, -1.0))
    differences = [(a - b) / (2 * h) for a, b in zip(ahead, behind, strict=True)]
    assert relative_error(hvp(gradient, qkv, u), differences) < 1e-7


@pytest.mark.parametrize("case", [CASES[1], CASES[2], CASES[6]], ids=str)
def test_several_tangents_share_one_pass(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    from modelassay_kernels.attention import tiled as attention_tiled  # noqa: PLC0415 - patched below

    qkv = case.inputs()
    many = [directions(qkv, seed=seed) for seed in range(3)]
    stacked = tuple(torch.stack(parts) for parts in zip(*many, strict=True))
    calls: list[str] = []
    for name in ("forward", "backward", "tangent", "backward_tangent"):
        original = getattr(attention_tiled, name)

        def counted(*args: Any, name: str = name, original: Any = original) -> Any:
            calls.append(name)
            return original(*args)

        monkeypatch.setattr(attention_tiled, name, counted)
    got = vmap(lambda *u: hvp(gradient_of(case), qkv, u))(*stacked)
    assert sorted(calls) == ["backward", "backward_tangent", "forward", "tangent"]
    for i, u in enumerate(many):
        expected = hvp(expected_gradient_of(case), qkv, u)
        assert relative_error([x[i] for x in got], expected) < 1e-11


def test_vmap_over_the_inputs_is_a_larger_batch() -> None:
    case = CASES[1]
    several = [case.inputs(seed=seed) for seed in range(3)]
    q, k, v = (torch.stack(parts) for parts in zip(*several, strict=True))
    u = directions(several[0], seed=7)
    got = vmap(lambda q, k, v: hvp(gradient_of(case), (q, k, v), u), in_dims=(1, 0, 0))(q.transpose(0, 1), k, v)
    for i, qkv in enumerate(several):
        assert relative_error([x[i] for x in got], hvp(expected_gradient_of(case), qkv, u)) < 1e-11
    shared_keys = vmap(lambda q: attention(q, *several[0][1:], causal=False))(q)
    for i, qkv in enumerate(several):
        assert relative_error([shared_keys[i]], [case.reference(qkv[0], *several[0][1:])]) < 1e-12


def test_vmap_over_lengths() -> None:
    case = CASES[6]
    qkv = case.inputs()
    lengths = torch.tensor([[23, 0, 9], [1, 2, 3]])
    got = vmap(lambda n: attention(*qkv, lengths=n))(lengths)
    for i in range(2):
        assert relative_error([got[i]], [attention(*qkv, lengths=lengths[i])]) < 1e-14


def test_third_derivatives_are_refused() -> None:
    qkv = CASES[0].inputs()
    u = directions(qkv, seed=8)
    gradient = gradient_of(CASES[0])
    with pytest.raises(NotImplementedError, match="third derivative"):
        jvp(lambda *x: hvp(gradient, x, u), qkv, u)
    with pytest.raises(NotImplementedError, match="third derivative"):
        vjp(lambda *x: hvp(gradient, x, u), *qkv)[1](u)
    with pytest.raises(NotImplementedError, match="forward mode over forward mode"):
        jvp(lambda *x: jvp(lambda *y: attention(*y), x, u)[1], qkv, u)


def test_what_is_padding_has_no_influence() -> None:
    q, k, v = CASES[0].inputs()
    lengths = torch.tensor([11, 17])
    clean = attention(q, k, v)
    k[0, :, 11:], v[0, :, 11:] = torch.nan, torch.inf
    u = directions((q, k, v), seed=9)
    output = attention(q, k, v, lengths=lengths)
    torch.testing.assert_close(output[0, :, :11], clean[0, :, :11])
    second = hvp(grad(loss_of(lambda *x: attention(*x, lengths=lengths)), QKV), (q, k, v), u)
    assert all(bool(x.isfinite().all()) for x in (output, *second))
    assert float(second[1][0, :, 11:].abs().max()) == 0.0


@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf])
def test_nan_and_infinity_reach_those_who_see_them(poison: float) -> None:
    q, k, v = CASES[0].inputs()
    v[0, 1, 9] = poison
    k[1, 0, 4, 2] = torch.nan
    u = directions((q, k, v), seed=12)
    output = attention(q, k, v)
    assert not bool(output[0, 1, 9:].isfinite().any())
    assert bool(output[1, 0, 4:].isnan().all())
    assert bool(output[0, 0].isfinite().all())
    second = hvp(gradient_of(CASES[0]), (q, k, v), u)
    assert not bool(second[0][0, 1, 9:].isfinite().any())
    assert bool(second[0][1, 0, 4:].isnan().all())
    assert bool(second[0][0, 0].isfinite().all())


@pytest.mark.parametrize("shape", [(0, 2, 1, 5, 5, 4), (2, 2, 1, 0, 5, 4), (2, 2, 1, 0, 0, 4), (2, 2, 1, 3, 0, 4)])
def test_nothing_to_attend_to(shape: tuple[int, ...]) -> None:
    qkv = Case(name="empty", shape=shape).inputs()  # type: ignore[arg-type]
    output, dots = jvp(lambda *x: attention(*x, causal=False), qkv, directions(qkv, seed=1))
    assert output.shape == dots.shape == qkv[0].shape
    assert float(output.sum()) == float(dots.sum()) == 0.0
    second = hvp(grad(loss_of(lambda *x: attention(*x, causal=False)), QKV), qkv, directions(qkv, seed=2))
    assert [x.shape for x in second] == [x.shape for x in qkv]


def test_any_strides() -> None:
    case = CASES[1]
    qkv = case.inputs()
    strided = tuple(x.transpose(1, 2).contiguous().transpose(1, 2) for x in qkv)
    expanded = tuple(x[..., :1].expand_as(x) for x in qkv)
    u = directions(qkv, seed=10)
    assert not strided[0].is_contiguous()
    assert relative_error(hvp(gradient_of(case), strided, u), hvp(gradient_of(case), qkv, u)) < 1e-14
    got, expected = attention(*expanded, **case.options), case.reference(*expanded)
    assert relative_error([got], [expected]) < 1e-12


def test_scores_far_apart_do_not_overflow() -> None:
    q, k, v = CASES[3].inputs(torch.float32)
    got = attention(q * 1e4, k * 1e4, v)
    expected = CASES[3].reference(*(x.double() for x in (q * 1e4, k * 1e4, v)))
    assert relative_error([got], [expected]) < 1e-3  # scores near 1e8, whose fp32 steps are 8: rows with ties differ


def test_equal_inputs_give_equal_bits() -> None:
    qkv = CASES[3].inputs(torch.float32)
    u = directions(qkv, seed=11)
    first, second = (hvp(gradient_of(CASES[3]), qkv, u) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_spans_of_packed_sequences() -> None:
    q, k, v = CASES[0].inputs()
    starts, ends = torch.tensor([0] * 6 + [6] * 11), torch.arange(1, 18)
    spans = torch.stack([starts, ends])[None].to(torch.int32)
    got = attention_over_spans(q, k, v, spans)
    parts = [attention(*(x[:, :, part] for x in (q, k, v))) for part in (slice(0, 6), slice(6, 17))]
    assert relative_error([got], [torch.cat(parts, dim=2)]) < 1e-14
    assert torch.equal(visible(spans, 5, 8)[0, 6], torch.tensor([False, True, False]))


@every_case
def test_deferring_changes_nothing_but_the_number_of_walks(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    walks: list[str] = []
    for name in ("backward", "backward_tangent"):
        made = getattr(tiled, name)
        monkeypatch.setattr(tiled, name, lambda *args, made=made, name=name: (walks.append(name), made(*args))[1])
    qkv = tuple(x.requires_grad_() for x in case.inputs())
    u, found, walked = directions(qkv, seed=5), [], []
    for context in (nullcontext([]), deferring()):
        with context as shares:
            loss = loss_of(lambda *qkv: attention(*qkv, **case.options))(*qkv)
            gradient = torch.autograd.grad(loss, qkv, create_graph=True)
        walks.clear()
        found += [torch.autograd.grad(gradient, qkv, u, retain_graph=True) for _ in range(2)]
        walked.append(list(walks))
        assert not any(shares)
    for other in found[1:]:
        assert relative_error(other, found[0]) < 1e-12
    assert walked == [["backward_tangent", "backward"] * 2, ["backward_tangent"] * 2]


def test_two_gradients_of_one_deferring_attention_are_both_counted() -> None:
    qkv = tuple(x.requires_grad_() for x in CASES[0].inputs())
    found = []
    for context in (nullcontext(), deferring()):
        with context:
            output = attention(*qkv, **CASES[0].options)
            first, second = (
                torch.autograd.grad(f(output).sum(), qkv, create_graph=True) for f in (torch.sin, torch.exp)
            )
        parts = [*first, *second]
        found.append(torch.autograd.grad([part.square().sum() for part in parts], qkv))
    assert relative_error(found[1], found[0]) < 1e-12


def test_what_a_broken_pass_left_is_cleared_by_whoever_defers() -> None:
    qkv = tuple(x.requires_grad_() for x in CASES[0].inputs())
    u = directions(qkv, seed=5)
    with deferring() as shares:
        gradient = torch.autograd.grad(attention(*qkv, **CASES[0].options).square().sum(), qkv, create_graph=True)
    expected = torch.autograd.grad(gradient, qkv, u, retain_graph=True)
    handle = gradient[0].grad_fn.register_hook(_interrupt)
    with pytest.raises(KeyboardInterrupt):
        torch.autograd.grad(gradient, qkv, u, retain_graph=True)
    handle.remove()
    assert any(shares)
    for mine in shares:
        mine.clear()
    assert relative_error(torch.autograd.grad(gradient, qkv, u), expected) < 1e-14


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("softcap", [None, 3.0])
def test_a_held_gradient_is_one_without_a_tangent(softcap: float | None) -> None:
    q, k, v = (torch.randn(2, heads, 70, 8, dtype=torch.float64) for heads in (4, 2, 2))
    spans = make_spans(70, 70, causal=True)
    o, lse = tiled.forward(q, k, v, spans, 0.5, softcap)
    dots = [torch.randn(3, *x.shape, dtype=torch.float64) for x in (q, k, v)]
    moved = tiled.tangent(q, k, v, spans, o, lse, *dots, 0.5, softcap)
    held, still = (
        tiled.backward_tangent(q, k, v, spans, o, lse, o, *dots, *moved, g_dot, 0.5, softcap)
        for g_dot in (None, torch.zeros_like(dots[0]))
    )
    assert relative_error(held, still) < 1e-14


def test_no_quadratic_tensor_exists() -> None:
    """The largest tensor any pass makes, at a length where S x S would be far larger."""
    length, largest = 4096, 0
    qkv = tuple(torch.randn(1, 1, length, 4, generator=torch.Generator().manual_seed(i)) for i in range(3))

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for x in out if isinstance(out, (tuple, list)) else [out]:
                if isinstance(x, Tensor):
                    largest = max(largest, x.numel())
            return out

    q, k, v = qkv
    spans = make_spans(length, length, causal=True)
    with Watch():
        o, lse = tiled.forward(q, k, v, spans, 0.5, None)
        tiled.backward(q, k, v, spans, o, lse, o, 0.5, None)
        o_dot, lse_dot = tiled.tangent(q, k, v, spans, o, lse, q[None], k[None], v[None], 0.5, None)
        dots = (q[None], k[None], v[None], o_dot, lse_dot, o[None])
        tiled.backward_tangent(q, k, v, spans, o, lse, o, *dots, 0.5, None)
    assert 0 < largest <= tiled.TILE_ELEMENTS < length**2 / 32


def test_the_declared_work() -> None:
    q, k = torch.empty(2, 4, 6, 8), torch.empty(2, 2, 10, 8)
    matrices = {"q": 2 * 4 * 6 * 8 * 4, "k": 2 * 2 * 10 * 8 * 4, "row": 2 * 4 * 6 * 4}
    work = attention_work("backward_tangent", q, k, num_scores=100, num_tangents=3)
    assert work.flops == 2 * 8 * 100 * (2 + 3 * 10)
    assert work.bytes == 15 * matrices["q"] + 14 * matrices["k"] + 4 * matrices["row"]


A = torch.zeros(2, 4, 5, 8)
MISTAKES: list[tuple[tuple[Tensor, Tensor, Tensor], dict[str, Any], type[Exception], str]] = [
    ((A[0], A, A), {}, ValueError, r"must be \[batch, heads, positions, D\]"),
    ((A, A, A[..., :7]), {}, ValueError, "one shape"),
    ((A, A[:1], A[:1]), {}, ValueError, "share batch and head dimension"),
    ((A, A[:, :3], A[:, :3]), {}, ValueError, "multiple of key-value heads, got 4 and 3"),
    ((A.int(), A.int(), A.int()), {}, TypeError, "torch.int32"),
    ((A, A.double(), A), {}, TypeError, "torch.float64"),
    ((A.repeat(1, 1, 1, 33),) * 3, {}, ValueError, "1 to 256, got 264"),
    ((A, A[:, :, :4], A[:, :, :4]), {}, ValueError, "got 5 queries, 4 keys"),
    ((A, A, A), {"window": 0}, ValueError, "window must be at least 1"),
    ((A, A, A), {"softcap": 0.0}, ValueError, "softcap must be above 0"),
    ((A, A, A), {"softcap": math.inf}, ValueError, "softcap must be above 0, from 1e-30 to 1e.30, got inf"),
    ((A, A, A), {"lengths": torch.tensor([1])}, ValueError, "lengths must be 2 integers"),
    ((A, A, A), {"lengths": torch.tensor([True, False])}, ValueError, "2 integers, got torch.bool"),
    ((A, A, A), {"lengths": torch.tensor([5, -1])}, ValueError, r"lengths\[1\] is -1; expected 0 to 5"),
    ((A, A, A), {"lengths": torch.tensor([6, 5])}, ValueError, r"lengths\[0\] is 6; expected 0 to 5"),
    ((A, A, A), {"lengths": torch.tensor([5, 2**32 + 3])}, ValueError, r"lengths\[1\] is 4294967299"),
    ((A, A.to("meta"), A), {}, ValueError, "move them"),
]  # fmt: skip


@pytest.mark.parametrize(("qkv", "options", "error", "message"), MISTAKES)
def test_mistakes_are_named(
    qkv: tuple[Tensor, Tensor, Tensor], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"attention: .*{message}"):
        attention(*qkv, **options)


def test_spans_must_fit() -> None:
    with pytest.raises(TypeError, match="spans must be int32, got torch.int64"):
        attention_over_spans(A, A, A, torch.zeros(1, 2, 5, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"spans must be \[1 or 2, 2, 5\], got \(3, 2, 5\)"):
        attention_over_spans(A, A, A, torch.zeros(3, 2, 5, dtype=torch.int32))
    with pytest.raises(TypeError, match="spans must be int32, got torch.float32"):
        attention_over_spans(A, A, A, torch.zeros(1, 2, 5))


SPANS = torch.tensor([[[0, 0, 1, 2, 5], [0, 5, 4, 3, 5]]], dtype=torch.int32)
OUTSIDE = [
    ((0, 0, 1), -1),
    ((0, 1, 1), 6),
    ((0, 1, 2), 0),
    ((0, 0, 4), 6),
    ((0, 1, 4), 2**31 - 1),
    ((0, 0, 0), -(2**31)),
]


@pytest.mark.parametrize("num_sequences", [1, 2])
@pytest.mark.parametrize(("at", "value"), OUTSIDE)
def test_spans_must_lie_within_the_keys(at: tuple[int, int, int], value: int, num_sequences: int) -> None:
    spans = SPANS.repeat(num_sequences, 1, 1)
    attention_over_spans(A, A, A, spans)
    sequence = num_sequences - 1
    spans[(sequence, *at[1:])] = value  # in place: what was checked before counts no longer
    first, end = spans[sequence, :, at[2]].tolist()
    message = rf"sequence {sequence}, query {at[2]} is \[{first}, {end}\); expected 0 <= first <= end <= 5"
    with pytest.raises(ValueError, match=message):
        attention_over_spans(A, A, A, spans)
    with pytest.raises(ValueError, match=message), torch.inference_mode():
        attention_over_spans(A, A, A, spans.clone())


def test_spans_are_checked_again_for_other_keys() -> None:
    spans = SPANS.clone()
    attention_over_spans(A, A, A, spans)
    with pytest.raises(ValueError, match=r"query 1 is \[0, 5\); expected 0 <= first <= end <= 4"):
        attention_over_spans(A, A[:, :, :4], A[:, :, :4], spans)


def test_spans_are_checked_under_vmap_and_grad() -> None:
    q, k, v = (torch.randn(3, *A.shape[:1], 4, 5, 8, generator=torch.Generator().manual_seed(i)) for i in range(3))
    spans = SPANS.repeat(3, 1, 1, 1)
    got = vmap(attention_over_spans)(q, k, v, spans)
    torch.testing.assert_close(got[1], attention_over_spans(q[1], k[1], v[1], SPANS))
    spans[2, 0, 1, 0] = 9
    with pytest.raises(ValueError, match=r"query 0 is \[0, 9\)"):
        vmap(attention_over_spans)(q, k, v, spans)
    with pytest.raises(ValueError, match=r"query 0 is \[0, 9\)"):
        grad(lambda x: attention_over_spans(x, k[0], v[0], spans[2]).sum())(q[0])
