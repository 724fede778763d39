"""The rows of linear_cross_entropy on CUDA: numbers in the interpreter and on a GPU, machine code without one."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, jvp

from modelassay_kernels import linear_cross_entropy
from modelassay_kernels.cross_entropy import chunks as cross_entropy_chunks
from modelassay_kernels.cross_entropy import rows as torch_rows
from modelassay_kernels.cross_entropy import triton_kernels as op
from modelassay_kernels.cross_entropy.rows import Spec
from support.cross_entropy_cases import (
    SETTINGS,
    assert_close,
    double_backward,
    make_labels,
    make_point,
    normal,
    scalar_loss,
)
from support.cross_entropy_cases import linear_cross_entropy_reference as reference
from support.pairwise import pairwise

ALL = (0, 1, 2)
SPAN = 64
quiet = pytest.mark.filterwarnings("ignore:(overflow|invalid value|All-NaN slice|divide by zero):RuntimeWarning")
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")


def run(rows: Any, inputs: list[Tensor | None], spec: Spec, **options: int) -> list[Tensor]:
    """Return losses, their tangents, and what became of logits and tangents."""
    z, zt, labels, g, gt = (x if x is None else x.clone() for x in inputs)
    losses, losses_t = rows.tangents_(z, zt, labels, g, gt, spec, **options)
    return [losses, losses_t] + ([] if g is None else [z, zt])


@quiet
@pytest.mark.parametrize(
    ("softcap", "smoothing", "z_loss", "num_cols"), pairwise([None, 3.0], [0.0, 0.1], [0.0, 0.01], [1, 64, 150])
)
def test_rows_match_float64(
    softcap: float | None, smoothing: float, z_loss: float, num_cols: int, kernel_device: torch.device
) -> None:
    """With two tangents, and with and without the tangents of the rows' weights."""
    spec = Spec(softcap=softcap, label_smoothing=smoothing, z_loss=z_loss)
    z, zt = normal(3, num_cols, seed=0) * 4, normal(2, 3, num_cols, seed=1)
    labels = (torch.arange(3) * 31) % num_cols
    g, gt = normal(3, seed=2), normal(2, 3, seed=3)
    for inputs in ([z, zt, labels, g, gt], [z, zt, labels, g, None], [z, zt, labels, None, None]):
        want = run(torch_rows, inputs, spec)
        narrow = [x if x is None else (x.float() if x.is_floating_point() else x).to(kernel_device) for x in inputs]
        for got, expected in zip(run(op, narrow, spec, span=SPAN), want, strict=True):
            torch.testing.assert_close(got.cpu().double(), expected, rtol=1e-5, atol=1e-5)
    inputs = [z.float().to(kernel_device), labels.to(kernel_device), g.float().to(kernel_device)]
    losses = op.primal_(*inputs, spec, SPAN)
    exact = z.clone()
    torch.testing.assert_close(losses.cpu().double(), torch_rows.primal_(exact, labels, g, spec), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(inputs[0].cpu().double(), exact, rtol=1e-5, atol=1e-6)


@quiet
@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_bad_numbers_stay_in_their_row(poison: float, kernel_device: torch.device) -> None:
    z, zt = normal(3, 150, seed=0, dtype=torch.float32), normal(1, 3, 150, seed=1, dtype=torch.float32)
    z[1, 140] = poison
    z[2, :100] = -math.inf
    labels, g = torch.tensor([0, 1, 120]), torch.ones(3)
    losses, losses_t, z, zt = run(op, [x.to(kernel_device) for x in (z, zt, labels, g)] + [None], Spec(), span=SPAN)
    for result in (losses, losses_t[0], z.sum(1), zt[0].sum(1)):
        assert result.isnan().tolist() == [False, True, False]


@quiet
@pytest.mark.parametrize("settings", [SETTINGS[0], SETTINGS[-1]], ids=str)
def test_hessian_product_by_the_kernels(
    settings: dict[str, Any], kernel_device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole path in fp32, with the rows of every chunk done by Triton."""
    used = []

    class Rows:
        @staticmethod
        def primal_(*args: Any) -> Tensor:
            used.append("primal")
            return op.primal_(*args, span=SPAN)

        @staticmethod
        def tangents_(*args: Any) -> tuple[Tensor, Tensor]:
            used.append("tangents")
            return op.tangents_(*args, span=SPAN)

    monkeypatch.setattr(cross_entropy_chunks, "torch_rows", Rows)
    monkeypatch.setattr(cross_entropy_chunks, "triton_rows", Rows, raising=True)
    monkeypatch.setattr(Rows, "available", staticmethod(lambda: True), raising=False)
    point, direction = make_point(), make_point(seed=10)
    narrow = [tuple(p.float().to(kernel_device) for p in x) for x in (point, direction)]
    labels = make_labels()
    loss = scalar_loss(linear_cross_entropy, labels.to(kernel_device), chunk_rows=5, **settings)
    want = scalar_loss(reference, labels, **settings)
    value, product = jvp(grad(loss, ALL), *narrow)
    assert set(used) == {"primal", "tangents"}
    assert_close([x.cpu() for x in value], grad(want, ALL)(*point), 2e-6)
    assert_close([x.cpu() for x in product], double_backward(want, point, direction), 1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("dtype", "rtol"), [(torch.bfloat16, 2e-2), (torch.float16, 5e-3), (torch.float32, 1e-4)], ids=str
)
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_on_a_gpu(settings: dict[str, Any], dtype: torch.dtype, rtol: float) -> None:
    """Vendor products of narrow types accumulated in fp32, several chunks, against float64 on the CPU."""
    point, direction = (tuple(p.to(dtype) for p in make_point(seed, num_rows=100, num_cols=5003)) for seed in (0, 10))
    labels = make_labels(100, 5003)
    loss = scalar_loss(linear_cross_entropy, labels.cuda(), chunk_rows=48, **settings)
    want = scalar_loss(reference, labels, **settings)
    exact, exact_direction = (tuple(p.double() for p in x) for x in (point, direction))
    on_gpu = [tuple(p.cuda() for p in x) for x in (point, direction)]
    value, product = jvp(grad(loss, ALL), *on_gpu)
    assert_close([x.cpu() for x in value], grad(want, ALL)(*exact), rtol)
    assert_close([x.cpu() for x in product], double_backward(want, exact, exact_direction), rtol)
