"""linear_cross_entropy against float64 PyTorch: values, gradients, second order, and what it costs."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, jvp, vmap
from torch.utils._python_dispatch import TorchDispatchMode

from modelassay_kernels import linear_cross_entropy
from modelassay_kernels.cross_entropy import chunks as cross_entropy_chunks
from modelassay_kernels.cross_entropy.work import linear_cross_entropy_work
from modelassay_kernels.work import Work
from support.cross_entropy_cases import (
    HESSIAN_PRODUCTS,
    HIDDEN_SIZE,
    NUM_COLS,
    NUM_ROWS,
    REDUCTIONS,
    SETTINGS,
    Point,
    assert_close,
    double_backward,
    make_labels,
    make_point,
    normal,
    scalar_loss,
)
from support.cross_entropy_cases import linear_cross_entropy_reference as reference

ALL = (0, 1, 2)
# Torch's forward mode warns of itself when it is used for the first time.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_value_gradient_and_hessian_product_in_every_mode(settings: dict[str, Any], reduction: str) -> None:
    labels, point, direction = make_labels(), make_point(), make_point(seed=10)
    loss = scalar_loss(linear_cross_entropy, labels, reduction=reduction, chunk_rows=4, **settings)
    want = scalar_loss(reference, labels, reduction=reduction, **settings)
    assert_close(loss(*point), want(*point), 1e-12)
    assert_close(grad(loss, ALL)(*point), grad(want, ALL)(*point), 1e-12)
    assert_close(jvp(loss, point, direction)[1], jvp(want, point, direction)[1], 1e-10)
    product = double_backward(want, point, direction)
    for name, compose in HESSIAN_PRODUCTS.items():
        try:
            assert_close(compose(loss, point, direction), product, 1e-12)
        except AssertionError as error:
            raise AssertionError(name) from error


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_hessian_product_is_the_difference_of_gradients(settings: dict[str, Any]) -> None:
    point, direction = make_point(), make_point(seed=10)
    loss = scalar_loss(linear_cross_entropy, make_labels(), chunk_rows=5, **settings)
    step = 1e-5
    ahead, behind = (
        grad(loss, ALL)(*(p + sign * step * d for p, d in zip(point, direction, strict=True))) for sign in (1, -1)
    )
    difference = [(a - b) / (2 * step) for a, b in zip(ahead, behind, strict=True)]
    assert_close(jvp(grad(loss, ALL), point, direction)[1], difference, 1e-7)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize(
    ("dtype", "rtol"), [(torch.float32, 1e-5), (torch.bfloat16, 4e-3), (torch.float16, 1e-3)], ids=str
)
def test_narrow_types(dtype: torch.dtype, rtol: float, settings: dict[str, Any]) -> None:
    """fp32 within 1e-5; half types, which only round their results, within one such rounding."""
    point, direction = (tuple(p.to(dtype) for p in make_point(seed, num_rows=29, num_cols=1003)) for seed in (0, 10))
    labels = make_labels(29, 1003)
    loss = scalar_loss(linear_cross_entropy, labels, **settings)
    want = scalar_loss(reference, labels, **settings)
    exact, exact_direction = (tuple(p.double() for p in x) for x in (point, direction))
    value, gradients = loss(*point), grad(loss, ALL)(*point)
    assert (value.dtype, [g.dtype for g in gradients]) == (torch.float32, [dtype] * 3)
    assert_close(value, want(*exact), 1e-6)
    assert_close(gradients, grad(want, ALL)(*exact), rtol)
    assert_close(jvp(grad(loss, ALL), point, direction)[1], double_backward(want, exact, exact_direction), rtol)


def test_autocast_rounds_nothing() -> None:
    point, direction = (tuple(p.float() for p in make_point(seed)) for seed in (0, 10))
    loss = scalar_loss(linear_cross_entropy, make_labels(), softcap=4.0)
    want = jvp(grad(loss, ALL), point, direction)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = jvp(grad(loss, ALL), point, direction)
    for g, w in zip(got, want, strict=True):
        assert_close(g, w, 0.0)


def test_types_may_differ() -> None:
    hidden, weight, bias = make_point()
    point = (hidden.bfloat16(), weight.float(), bias.half())
    loss, want = (scalar_loss(f, make_labels()) for f in (linear_cross_entropy, reference))
    gradients = grad(loss, ALL)(*point)
    assert [g.dtype for g in gradients] == [torch.bfloat16, torch.float32, torch.float16]
    assert_close(gradients, grad(want, ALL)(*(p.double() for p in point)), 4e-3)


@pytest.mark.parametrize("chunk_rows", [1, 3, 13, 1000, None])
def test_chunks_do_not_matter(chunk_rows: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cross_entropy_chunks.BUDGET_BYTES, "cpu", 2000)
    point, direction = make_point(), make_point(seed=10)
    results = []
    for rows in (7, chunk_rows):
        loss = scalar_loss(linear_cross_entropy, make_labels(), chunk_rows=rows, softcap=5.0, z_loss=0.1)
        results.append([loss(*point), *grad(loss, ALL)(*point), *jvp(grad(loss, ALL), point, direction)[1]])
    assert_close(results[1], results[0], 1e-13)


def test_widened_blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_entropy_chunks, "UPCAST_BYTES", 5 * HIDDEN_SIZE * 4)
    point, direction = (tuple(p.bfloat16() for p in make_point(seed)) for seed in (0, 10))
    loss, want = (scalar_loss(f, make_labels()) for f in (linear_cross_entropy, reference))
    got = jvp(grad(loss, ALL), point, direction)[1]
    assert_close(got, double_backward(want, *(tuple(p.double() for p in x) for x in (point, direction))), 4e-3)


def count_products(monkeypatch: pytest.MonkeyPatch, run: Callable[[], Any]) -> float:
    """Matrix products in units of [N, V] with D."""
    done = []
    product = cross_entropy_chunks._addmm_

    def counted(out: Tensor, a: Tensor, b: Tensor, **options: Any) -> None:
        done.append(a.shape[0] * a.shape[1] * b.shape[1])
        product(out, a, b, **options)

    monkeypatch.setattr(cross_entropy_chunks, "_addmm_", counted)
    run()
    return sum(done) / (NUM_ROWS * NUM_COLS * HIDDEN_SIZE)


@pytest.mark.parametrize(
    ("mode", "units"), [("value", 1), ("gradient", 3), ("hidden alone", 2), ("tangent", 4), ("one", 10), ("eight", 52)]
)
def test_products_that_are_made(mode: str, units: int, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight, _ = make_point()
    labels = torch.zeros(NUM_ROWS, dtype=torch.int64)

    def loss(hidden: Tensor, weight: Tensor) -> Tensor:
        return linear_cross_entropy(hidden, weight, labels, chunk_rows=4)

    def product(*direction: Tensor) -> tuple[Tensor, ...]:
        return jvp(grad(loss, (0, 1)), (hidden, weight), direction)[1]

    eight = normal(8, *hidden.shape, seed=3), normal(8, *weight.shape, seed=4)
    runs: dict[str, Callable[[], Any]] = {
        "value": lambda: loss(hidden, weight),
        "gradient": lambda: grad(loss, (0, 1))(hidden, weight),
        "hidden alone": lambda: loss(hidden.clone().requires_grad_(), weight).backward(),
        "tangent": lambda: jvp(loss, (hidden, weight), (hidden, weight)),
        "one": lambda: product(hidden, weight),
        "eight": lambda: vmap(product)(*eight),
    }
    assert count_products(monkeypatch, runs[mode]) == units


class LargestTensor(TorchDispatchMode):
    """Remembers the most elements of any tensor made meanwhile."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for out in result if isinstance(result, tuple | list) else [result]:
            if isinstance(out, Tensor):
                self.elements = max(self.elements, out.numel())
        return result


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_all_logits_never_exist(reduction: str) -> None:
    num_rows, num_cols, rows = 60, 50, 4
    point, direction = (make_point(seed, num_rows, num_cols)[:2] for seed in (0, 10))
    labels = make_labels(num_rows, num_cols)

    def loss(hidden: Tensor, weight: Tensor) -> Tensor:
        losses = linear_cross_entropy(hidden, weight, labels, softcap=9.0, chunk_rows=rows, reduction=reduction)
        return losses.sum()

    with LargestTensor() as largest:
        jvp(grad(loss, (0, 1)), point, direction)
    assert largest.elements <= max(num_rows, num_cols) * HIDDEN_SIZE < num_rows * num_cols


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_many_tangents_at_one_time(reduction: str) -> None:
    point = make_point()
    loss, want = (
        scalar_loss(f, make_labels(), reduction=reduction, softcap=4.0) for f in (linear_cross_entropy, reference)
    )
    directions = tuple(normal(3, *p.shape, seed=i) for i, p in enumerate(point))

    def products(loss: Any) -> Any:
        return vmap(lambda *d: jvp(grad(loss, ALL), point, d)[1])(*directions)

    assert_close(products(loss), products(want), 1e-12)
    tangents = [vmap(lambda *d, loss=loss: jvp(loss, point, d)[1])(*directions) for loss in (loss, want)]
    assert_close(tangents[0], tangents[1], 1e-12)
    nested = vmap(vmap(lambda b: jvp(grad(loss, 2), point, (point[0], point[1], b))[1], in_dims=1))
    assert_close(nested(normal(2, NUM_COLS, 3, seed=5)[..., :2]), nested_want(want, point), 1e-12)


def nested_want(want: Any, point: Point) -> Tensor:
    biases = normal(2, NUM_COLS, 3, seed=5)[..., :2]
    rows = []
    for i in range(2):
        columns = [jvp(grad(want, 2), point, (point[0], point[1], biases[i, :, j]))[1] for j in range(2)]
        rows.append(torch.stack(columns))
    return torch.stack(rows)


def test_points_may_be_mapped_too() -> None:
    hidden, weight, _ = make_point()
    labels = make_labels(ignored=100).clamp(min=0)

    def per_token(function: Any) -> Any:
        def loss(hidden_D: Tensor, label: Tensor) -> Tensor:
            return function(hidden_D[None], weight, label[None], z_loss=0.1)

        return loss

    got = vmap(grad(per_token(linear_cross_entropy)))(hidden, labels)
    want = [grad(per_token(reference))(h, y) for h, y in zip(hidden, labels, strict=True)]
    assert_close(got, torch.stack(want), 1e-12)
    full = torch.func.hessian(lambda h: linear_cross_entropy(h, weight, labels))(hidden)
    assert_close(full, torch.func.hessian(lambda h: reference(h, weight, labels))(hidden), 1e-12)


def test_tied_embeddings() -> None:
    tokens = torch.arange(NUM_ROWS) % NUM_COLS
    weight, direction = normal(NUM_COLS, HIDDEN_SIZE, seed=0), normal(NUM_COLS, HIDDEN_SIZE, seed=1)

    def model(function: Any) -> Any:
        return lambda weight: function(torch.tanh(weight[tokens] * 2.0), weight, make_labels())

    got, want = (jvp(grad(model(f)), (weight,), (direction,)) for f in (linear_cross_entropy, reference))
    assert_close(got, want, 1e-12)


@pytest.mark.parametrize("learned", [(0,), (1,), (2,), (0, 2)])
def test_some_inputs_are_frozen(learned: tuple[int, ...]) -> None:
    """Also where what needs a gradient is only found out later, as under reverse over forward."""
    point, direction = make_point(), make_point(seed=10)
    loss, want = (scalar_loss(f, make_labels()) for f in (linear_cross_entropy, reference))
    leaves = [p.clone().requires_grad_(i in learned) for i, p in enumerate(point)]
    loss(*leaves).backward()
    expected = grad(want, ALL)(*point)
    for i, leaf in enumerate(leaves):
        assert (leaf.grad is None) == (i not in learned)
        if leaf.grad is not None:
            assert_close(leaf.grad, expected[i], 1e-12)
    chosen = tuple(direction[i] for i in learned)

    def along(function: Any, *values: Tensor) -> Tensor:
        def inner(*moved: Tensor) -> Tensor:
            full = list(point)
            for i, value in zip(learned, moved, strict=True):
                full[i] = value
            return function(*full)

        return jvp(inner, values, chosen)[1]

    values = tuple(point[i] for i in learned)
    arguments = tuple(range(1, 1 + len(learned)))
    assert_close(grad(along, arguments)(loss, *values), grad(along, arguments)(want, *values), 1e-12)


def test_a_gradient_that_was_not_foreseen() -> None:
    """The weight learns its need of a gradient at another level than the hidden states."""
    hidden, weight, bias = make_point()
    outer = weight.clone().requires_grad_()
    loss, want = (scalar_loss(f, make_labels()) for f in (linear_cross_entropy, reference))
    results = []
    for function in (loss, want):
        inner = grad(lambda h, function=function: function(h, outer, bias))(hidden)
        results.append(torch.autograd.grad(inner.square().sum(), outer)[0])
    assert_close(results[0], results[1], 1e-12)


def test_raw_dual_numbers() -> None:
    point, direction = make_point(), make_point(seed=10)
    loss, want = (scalar_loss(f, make_labels()) for f in (linear_cross_entropy, reference))
    expected = jvp(want, point, direction)[1], double_backward(want, point, direction)
    with torch.autograd.forward_ad.dual_level():
        pairs = zip(point, direction, strict=True)
        duals = [torch.autograd.forward_ad.make_dual(p.clone().requires_grad_(), d) for p, d in pairs]
        value = loss(*duals)
        gradients = torch.autograd.grad(value, duals)
        unpack = torch.autograd.forward_ad.unpack_dual
        assert_close(unpack(value).tangent.detach(), expected[0], 1e-12)
        assert_close([unpack(g).tangent for g in gradients], expected[1], 1e-12)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_third_derivative_is_an_error(reduction: str) -> None:
    hidden, weight, _ = make_point()

    def loss(hidden: Tensor) -> Tensor:
        return linear_cross_entropy(hidden, weight, make_labels(), reduction=reduction).sum()

    def second(hidden: Tensor) -> Tensor:
        return grad(lambda h: grad(loss)(h).square().sum())(hidden).sum()

    with pytest.raises(NotImplementedError, match="third derivatives.*not implemented"):
        grad(second)(hidden)
    with pytest.raises(NotImplementedError, match="not implemented"):
        jvp(second, (hidden,), (hidden,))
    with pytest.raises(NotImplementedError, match="forward over forward"):
        jvp(lambda h: jvp(loss, (h,), (hidden,))[1], (hidden,), (hidden,))


def test_work_counts_what_is_moved() -> None:
    hidden, weight, _ = make_point()
    moved = 2 * (hidden.nbytes + weight.nbytes)
    flops = 6 * NUM_ROWS * NUM_COLS * HIDDEN_SIZE
    work = linear_cross_entropy_work(NUM_ROWS, NUM_COLS, HIDDEN_SIZE, itemsize=8)
    assert work == Work(bytes=moved, flops=flops)
