"""linear_cross_entropy as a GPU multiplies: narrow types as they are, and no waiting for the device."""

import math

import pytest
import torch
from torch import Tensor
from torch.func import grad, jvp

from modelassay_kernels import cross_entropy, linear_cross_entropy
from modelassay_kernels.cross_entropy import chunks
from support.cross_entropy_cases import (
    assert_close,
    double_backward,
    make_labels,
    make_point,
    normal,
    scalar_loss,
)
from support.cross_entropy_cases import linear_cross_entropy_reference as reference
from support.synchronisations import Products, Synchronisations

ALL = (0, 1, 2)
ROUNDING = {torch.bfloat16: 8e-3, torch.float16: 1e-3}
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Products:
    """What a GPU multiplies, on a CPU: functions of autograd see no mode that would say that tensors are on one."""
    products = Products()
    monkeypatch.setattr(chunks, "has_tensor_cores", lambda device: True)
    monkeypatch.setattr(torch, "mm", products.mm)
    monkeypatch.setattr(torch, "addmm", products.addmm)
    chunks._kept.clear()
    monkeypatch.setattr(chunks, "_adds_to_wide", lambda device: True)
    return products


def rounded(point: tuple[Tensor, ...], dtype: torch.dtype) -> tuple[Tensor, ...]:
    return tuple(x.to(dtype) for x in point)


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
def test_narrow_types_are_multiplied_as_they_are(dtype: torch.dtype, device: Products) -> None:
    point, direction = rounded(make_point(), dtype), rounded(make_point(seed=10), dtype)
    loss, want = (scalar_loss(f, make_labels(), softcap=4.0) for f in (linear_cross_entropy, reference))
    gradients, product = jvp(grad(loss, ALL), point, direction)
    exact, exact_direction = rounded(point, torch.float64), rounded(direction, torch.float64)
    assert_close(gradients, grad(want, ALL)(*exact), ROUNDING[dtype])
    assert_close(product, double_backward(want, exact, exact_direction), ROUNDING[dtype])
    assert device.types == {(dtype, dtype, torch.float32)}


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
def test_under_autocast_weights_of_fp32_are_multiplied_in_its_type(
    dtype: torch.dtype, device: Products, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cross_entropy, "autocast_type", lambda device: dtype)
    hidden, weight, bias = make_point()
    point, direction = (hidden.to(dtype), weight.float(), bias.float()), rounded(make_point(seed=10), torch.float32)
    direction = (direction[0].to(dtype), *direction[1:])
    loss, want = (scalar_loss(f, make_labels()) for f in (linear_cross_entropy, reference))
    gradients, product = jvp(grad(loss, ALL), point, direction)
    exact, exact_direction = rounded(point, torch.float64), rounded(direction, torch.float64)
    assert [x.dtype for x in gradients] == [dtype, torch.float32, torch.float32]
    assert_close(gradients, grad(want, ALL)(*exact), ROUNDING[dtype])
    assert_close(product, double_backward(want, exact, exact_direction), 2 * ROUNDING[dtype])
    assert device.types == {(dtype, dtype, torch.float32)}


def test_weights_of_fp32_stay_fp32_without_autocast(device: Products) -> None:
    point = rounded(make_point(), torch.float32)
    loss, want = (scalar_loss(f, make_labels()) for f in (linear_cross_entropy, reference))
    assert_close(grad(loss, ALL)(*point), grad(want, ALL)(*rounded(point, torch.float64)), 1e-5)
    assert device.types == {(torch.float32,) * 3}


@pytest.mark.parametrize("size", [1e-30, 1e-12, 1.0, 1e30])
def test_gradients_of_logits_keep_half_precision_whatever_their_size(size: float, device: Products) -> None:
    """Of 40,000 numbers over nine decades, most of them below what float16 can tell from zero."""
    spread = torch.exp(normal(8, 5000, seed=0) * 3.0) * normal(8, 5000, seed=1)
    a = (spread * (size / float(spread.abs().max()))).float()
    half, unit = chunks._operand(a, torch.empty(0, dtype=torch.float16))
    assert unit is not None
    assert half.dtype == torch.float16
    assert 2**14 <= float(half.abs().max()) < 2**15
    error = (half.double() * unit.double() - a.double()).abs()
    assert bool((error <= a.abs().double() * 2**-11 + size * 2**-38).all())
    assert math.log2(float(unit)).is_integer()  # a power of two rounds nothing


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_stays_so(value: float, device: Products) -> None:
    a = torch.tensor([[1.0, value], [0.0, 2.0]])
    half, unit = chunks._operand(a, torch.empty(0, dtype=torch.float16))
    assert unit is not None
    assert not math.isfinite(float((half.float() * unit)[0, 1]))
    zero, unit = chunks._operand(torch.zeros(2, 2), torch.empty(0, dtype=torch.float16))
    assert unit is not None
    assert float((zero.float() * unit).abs().max()) == 0.0


def test_the_host_waits_for_labels_once(device: Products) -> None:
    """Not in a second product, but again for other labels, or the same tensor written anew."""
    point, direction, labels = make_point(), make_point(seed=10), make_labels()
    loss = scalar_loss(linear_cross_entropy, labels, chunk_rows=4)
    waits = []
    for change in (None, None, 3, None):
        if change is not None:
            labels[0] = change
        with Synchronisations() as seen:
            got = jvp(grad(loss, ALL), point, direction)[1]
        waits.append(len(seen.names))
        assert_close(got, double_backward(scalar_loss(reference, labels), point, direction), 1e-12)
    assert waits[0] > 0
    assert waits[1] == 0
    assert waits[2] > 0
    assert waits[3] == 0


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_captured_product_never_waits(reduction: str, device: Products, monkeypatch: pytest.MonkeyPatch) -> None:
    point, direction, labels = make_point(), make_point(seed=10), make_labels()
    loss = scalar_loss(linear_cross_entropy, labels, reduction=reduction, chunk_rows=4, z_loss=0.1)
    point[0][labels == -100] = math.nan  # not read
    want = [loss(*point), *grad(loss, ALL)(*point), *jvp(grad(loss, ALL), point, direction)[1]]
    monkeypatch.setattr(chunks, "capturing", lambda device: True)
    with Synchronisations() as seen:
        got = [loss(*point), *grad(loss, ALL)(*point), *jvp(grad(loss, ALL), point, direction)[1]]
    assert seen.names == []
    assert bool((labels == -100).any())
    assert_close(got, want, 1e-13)


def test_a_wrong_label_of_a_captured_product_gives_nan(device: Products, monkeypatch: pytest.MonkeyPatch) -> None:
    point, labels = make_point(), make_labels()
    labels[2] = point[1].shape[0]
    with pytest.raises(ValueError, match=r"labels\[2\] is"):
        linear_cross_entropy(*point[:2], labels)
    monkeypatch.setattr(chunks, "capturing", lambda device: True)
    assert math.isnan(linear_cross_entropy(*point[:2], labels))
    losses = linear_cross_entropy(*point[:2], labels, reduction="none")
    assert losses.isnan().nonzero().flatten().tolist() == [2]
