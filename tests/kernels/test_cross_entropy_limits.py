"""linear_cross_entropy at its limits: no tokens, one word, bad numbers, views, and calls that are errors."""

import math
from typing import Any

import pytest
import torch
from torch.func import grad, jvp

from modelassay_kernels import linear_cross_entropy
from support.cross_entropy_cases import (
    NUM_COLS,
    NUM_ROWS,
    SETTINGS,
    assert_close,
    make_labels,
    make_point,
    normal,
    scalar_loss,
)
from support.cross_entropy_cases import linear_cross_entropy_reference as reference

ALL = (0, 1, 2)
# Torch's forward mode warns of itself when it is used for the first time.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")


@pytest.mark.parametrize(("reduction", "value"), [("mean", math.nan), ("sum", 0.0)])
@pytest.mark.parametrize("num_rows", [0, 3])
def test_no_token_counts(num_rows: int, reduction: str, value: float) -> None:
    """As in torch: the mean is NaN and its gradients are 0."""
    labels = torch.full((num_rows,), -100)
    point = make_point(num_rows=num_rows)
    results = []
    for function in (linear_cross_entropy, reference):
        leaves = [p.clone().requires_grad_() for p in point]
        loss = function(*leaves[:2], labels, bias=leaves[2], reduction=reduction)
        loss.backward()
        results.append((loss.detach(), [leaf.grad for leaf in leaves]))
    torch.testing.assert_close(results[0][0], torch.tensor(value, dtype=torch.float64), equal_nan=True)
    assert [bool((g == 0).all()) for g in results[0][1]] == [True] * 3
    logits = normal(num_rows, NUM_COLS, seed=0).requires_grad_()
    theirs = torch.nn.functional.cross_entropy(logits, labels, reduction=reduction)
    torch.testing.assert_close(results[0][0], theirs.detach(), equal_nan=True)


def test_ignored_tokens_are_not_read() -> None:
    hidden, weight, bias = make_point()
    labels = make_labels()
    poisoned = torch.where((labels == -100)[:, None], math.nan, hidden)
    loss = scalar_loss(linear_cross_entropy, labels)
    assert_close(loss(poisoned, weight, bias), loss(hidden, weight, bias), 0.0)
    gradients = grad(loss, ALL)(poisoned, weight, bias)
    assert_close(gradients, grad(loss, ALL)(hidden, weight, bias), 0.0)
    assert bool((gradients[0][labels == -100] == 0).all())


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_one_word(settings: dict[str, Any]) -> None:
    point, direction = (make_point(seed, num_cols=1) for seed in (0, 10))
    labels = torch.zeros(NUM_ROWS, dtype=torch.int64)
    loss, want = (scalar_loss(f, labels, **settings) for f in (linear_cross_entropy, reference))
    got, expected = (
        torch.cat([f(*point)[None], *(x.flatten() for x in jvp(grad(f, ALL), point, direction)[1])])
        for f in (loss, want)
    )
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_bad_numbers_come_through(poison: float) -> None:
    hidden, weight, bias = make_point()
    spoiled = bias.clone()
    spoiled[3] = poison
    labels = make_labels()
    loss = linear_cross_entropy(hidden, weight, labels, bias=spoiled)
    assert loss.isnan()
    assert reference(hidden, weight, labels, bias=spoiled).isnan()
    hidden[1, 2] = poison
    per_token = linear_cross_entropy(hidden, weight, labels, bias=bias, reduction="none", chunk_rows=4)
    assert per_token.isnan().tolist() == [i == 1 for i in range(NUM_ROWS)]


def test_a_logit_of_minus_infinity_is_no_word() -> None:
    hidden, weight, bias = make_point()
    bias[3] = -math.inf
    labels = torch.where(make_labels() == 3, 4, make_labels())
    loss, want = (scalar_loss(f, labels) for f in (linear_cross_entropy, reference))
    assert_close([loss(hidden, weight, bias), *grad(loss, ALL)(hidden, weight, bias)],
                 [want(hidden, weight, bias), *grad(want, ALL)(hidden, weight, bias)], 1e-12)  # fmt: skip


def test_logits_far_from_zero_lose_no_digits() -> None:
    hidden, weight, _ = (p.float() for p in make_point())
    far = torch.full((NUM_COLS,), 3e4)
    loss = scalar_loss(linear_cross_entropy, make_labels())
    assert_close(loss(hidden * 0, weight, far), torch.tensor(math.log(NUM_COLS)), 1e-7)


HUGE = {torch.float32: 1.9e19, torch.float64: 1.4e154}
"""Just above the root of the largest number: a logsumexp of this size has an infinite square."""


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("dtype", HUGE, ids=str)
def test_a_logsumexp_without_a_square(dtype: torch.dtype, smoothing: float, sign: float) -> None:
    """Without z_loss the loss is log V and its derivatives those of equal logits, as in torch."""
    bias = torch.full((NUM_COLS,), sign * HUGE[dtype], dtype=dtype)
    weight = torch.zeros(NUM_COLS, 2, dtype=dtype)
    hidden = torch.ones(3, 2, dtype=dtype)
    labels = torch.tensor([0, 5, -100])
    losses = [
        scalar_loss(linear_cross_entropy, labels, label_smoothing=smoothing),
        lambda h, w, b: torch.nn.functional.cross_entropy(h @ w.T + b, labels, label_smoothing=smoothing),
    ]
    point, direction = (hidden, weight, bias), tuple(torch.ones_like(x) for x in (hidden, weight, bias))
    got, expected = ([f(*point), *grad(f, ALL)(*point), *jvp(grad(f, ALL), point, direction)[1]] for f in losses)
    torch.testing.assert_close(got[0], torch.tensor(math.log(NUM_COLS), dtype=dtype))
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    per_token = linear_cross_entropy(*point[:2], labels, bias=bias, label_smoothing=smoothing, reduction="none")
    assert per_token.isfinite().all()


def test_z_loss_overflows_only_where_it_is_too_large_itself() -> None:
    bias = torch.full((NUM_COLS,), 2e19)
    loss = linear_cross_entropy(torch.zeros(1, 2), torch.zeros(NUM_COLS, 2), torch.tensor([1]), bias=bias, z_loss=1e-4)
    torch.testing.assert_close(loss, torch.tensor(4e34))


@pytest.mark.parametrize("smoothing", [0.1, 0.5, 0.9, 1.0])
def test_a_label_of_minus_infinity_is_infinitely_unlikely(smoothing: float) -> None:
    bias = torch.zeros(NUM_COLS)
    bias[3] = -math.inf
    arguments = (torch.zeros(2, 2), torch.zeros(NUM_COLS, 2), torch.tensor([3, 4]))
    losses = linear_cross_entropy(*arguments, bias=bias, label_smoothing=smoothing, reduction="none")
    assert losses.tolist() == [math.inf, math.inf]  # the mean of the row holds the infinity, whatever the label


def test_strides_do_not_matter() -> None:
    hidden, weight, bias = make_point()
    loss = scalar_loss(linear_cross_entropy, make_labels(), chunk_rows=4)
    strided = (hidden.t().contiguous().t(), weight.repeat_interleave(2, 0)[::2], bias.expand(2, -1)[0])
    assert_close(grad(loss, ALL)(*strided), grad(loss, ALL)(hidden, weight, bias), 1e-14)
    repeated = hidden[:1].expand(NUM_ROWS, -1)
    assert_close(grad(loss)(repeated, weight, bias), grad(loss)(repeated.clone(), weight, bias), 1e-14)


@pytest.mark.parametrize("label", [-1, NUM_COLS, -101])
def test_a_label_out_of_range(label: int) -> None:
    hidden, weight, _ = make_point()
    labels = make_labels().int()
    labels[5] = label
    with pytest.raises(ValueError, match=rf"labels\[5\] is {label}; expected a row of the weight, 0 to {NUM_COLS - 1}"):
        linear_cross_entropy(hidden, weight, labels)


def test_any_label_can_be_the_ignored_one() -> None:
    hidden, weight, bias = make_point()
    labels = make_labels(ignored=100).clamp(min=0)
    for ignore_index in (0, 7, -1):
        got, want = (
            f(hidden, weight, labels, bias=bias, ignore_index=ignore_index) for f in (linear_cross_entropy, reference)
        )
        assert_close(got, want, 1e-12)


BAD_CALLS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "three dimensions": ({"hidden_ND": torch.ones(2, 3, 5)}, ValueError, r"shape \(2, 3, 5\).*flatten"),
    "other width": ({"weight_VD": torch.ones(7, 4)}, ValueError, r"shape \(7, 4\) do not fit"),
    "no words": ({"weight_VD": torch.ones(0, 5)}, ValueError, "V > 0"),
    "labels too few": ({"labels_N": torch.zeros(2, dtype=torch.int64)}, ValueError, r"shape \(2,\) for 3 tokens"),
    "labels of floats": ({"labels_N": torch.zeros(3)}, TypeError, "labels have dtype torch.float32"),
    "bias": ({"bias": torch.ones(6)}, ValueError, r"bias of shape \(6,\) for 7 rows"),
    "integers": ({"weight_VD": torch.ones(7, 5, dtype=torch.int64)}, TypeError, "weight has dtype torch.int64"),
    "devices": ({"weight_VD": torch.ones(7, 5, device="meta")}, ValueError, "weight is on meta and the labels on cpu"),
    "reduction": ({"reduction": "average"}, ValueError, "reduction is 'average'; expected 'mean'"),
    "softcap": ({"softcap": 0.0}, ValueError, "softcap must be above 0, .* got 0.0; None means no cap"),
    "softcap of infinity": ({"softcap": math.inf}, ValueError, "softcap must be above 0, from 1e-30 to 1e.30, got inf"),
    "softcap beyond fp32": ({"softcap": 1e39}, ValueError, r"got 1e\+39"),
    "softcap below fp32": ({"softcap": 1e-40}, ValueError, "got 1e-40"),
    "softcap of NaN": ({"softcap": math.nan}, ValueError, "got nan"),
    "smoothing": ({"label_smoothing": 1.5}, ValueError, "label_smoothing is 1.5; expected 0 to 1"),
    "z_loss": ({"z_loss": -1.0}, ValueError, "z_loss is -1.0; expected 0 or more"),
    "chunk": ({"chunk_rows": 0}, ValueError, "chunk_rows is 0; expected 1 or more"),
}


@pytest.mark.parametrize("case", BAD_CALLS)
def test_bad_calls(case: str) -> None:
    changes, error, message = BAD_CALLS[case]
    good = {"hidden_ND": torch.ones(3, 5), "weight_VD": torch.ones(7, 5), "labels_N": torch.zeros(3, dtype=torch.int64)}
    with pytest.raises(error, match=message):
        linear_cross_entropy(**(good | changes))


def test_a_saturated_cap_keeps_its_slope() -> None:
    """At z = 13 softcap the slope is 2e-11, which 1 - tanh^2 in fp32 calls 0; compared element by element."""
    cap = 3.0
    logits = torch.tensor([[39.0, -39.0, 20.0, 38.5, 1.0], [-25.0, 30.0, 0.0, 36.0, 36.5]])
    labels = torch.tensor([2, 0])
    eye = torch.eye(5)
    exact = logits.double().requires_grad_()
    loss = torch.nn.functional.cross_entropy(cap * torch.tanh(exact / cap), labels)
    (expected,) = torch.autograd.grad(loss, exact, create_graph=True)
    (expected_tangent,) = torch.autograd.grad(expected, exact, torch.ones_like(exact))
    gradient = grad(lambda z: linear_cross_entropy(z, eye, labels, softcap=cap))
    got, got_tangent = jvp(gradient, (logits,), (torch.ones_like(logits),))
    torch.testing.assert_close(got.double(), expected.detach(), rtol=3e-5, atol=0.0)
    torch.testing.assert_close(got_tangent.double(), expected_tangent, rtol=3e-4, atol=0.0)
