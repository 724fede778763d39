"""attention on CUDA: numbers in the interpreter and on a GPU, machine code without one."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, jvp, vmap

from modelassay_kernels import attention
from modelassay_kernels.attention import attention_over_spans, autograd, tilings
from modelassay_kernels.attention import tiled as tiled
from modelassay_kernels.attention import triton_kernels as kernels
from modelassay_kernels.attention import triton_launch as op
from modelassay_kernels.attention.spans import visible
from modelassay_kernels.optional_triton import is_interpreted
from support.attention_cases import IGNORES_TORCH_JIT, Case, directions, loss_of, relative_error
from support.synchronisations import Synchronisations

TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}


def small(*, split: bool) -> tilings.Table:
    """Tiles that the interpreter gets through; with or without a launch for each second-order gradient."""
    tile = tilings.Tiling(rows=16, keys=16, num_warps=4, num_stages=1, split=split)
    return {kernel: dict.fromkeys((2, 4), (tile,) * 5) for kernel in tilings.SMALL}


CASES = [
    Case(name="causal, odd", shape=(1, 2, 1, 19, 19, 8)),
    Case(name="soft cap, odd head dimension", shape=(1, 2, 1, 21, 21, 20), options={"softcap": 1.5, "scale": 0.7}),
    Case(name="window", shape=(1, 1, 1, 35, 35, 16), options={"window": 5}),
    Case(name="full, padding", shape=(2, 1, 1, 17, 17, 4), options={"causal": False, "lengths": torch.tensor([17, 3])}),
    Case(name="causal, padding", shape=(2, 1, 1, 18, 18, 4), options={"lengths": torch.tensor([0, 17])}),
    Case(name="fewer queries than keys", shape=(1, 2, 2, 3, 33, 8)),
    Case(name="length one", shape=(2, 2, 1, 1, 1, 16)),
]


def on(device: torch.device, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(x.to(device) for x in tensors)


def four_passes(module: Any, qkv: tuple[Tensor, ...], g: Tensor, dots: tuple[Tensor, ...], case: Case) -> list[Tensor]:
    """The outputs of all four passes, each fed from the ones before; `dots` are those of q, k, v and g."""
    scale, cap = case.options.get("scale", case.shape[-1] ** -0.5), case.options.get("softcap")
    spans = case.spans().to(qkv[0].device)
    o, lse = module.forward(*qkv, spans, scale, cap)
    gradients = module.backward(*qkv, spans, o, lse, g, scale, cap)
    o_dot, lse_dot = module.tangent(*qkv, spans, o, lse, *dots[:3], scale, cap)
    seconds = module.backward_tangent(*qkv, spans, o, lse, g, *dots[:3], o_dot, lse_dot, dots[3], scale, cap)
    if case is CASES[0]:  # the gradient held, too
        seconds += module.backward_tangent(*qkv, spans, o, lse, g, *dots[:3], o_dot, lse_dot, None, scale, cap)
    seen = lse.isfinite()
    return [o, lse.masked_fill(~seen, 0.0), *gradients, o_dot, lse_dot.masked_fill(~seen, 0.0), *seconds]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_all_four_passes(
    case: Case, dtype: torch.dtype, kernel_device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    if dtype != torch.float32 and is_interpreted(kernels.forward_kernel) and case is not CASES[0]:
        pytest.skip("one case shows in the interpreter that the type is handled")
    monkeypatch.setattr(tilings, "SMALL", small(split=case in CASES[:2]))
    poison_empty(monkeypatch)
    qkv = case.inputs(dtype)
    (g,) = directions(qkv[:1], seed=1)
    seeds = (2, 3) if case is CASES[0] else (2,)  # of several tangents one case is enough: they are many of one
    dots = tuple(torch.stack(pair) for pair in zip(*(directions((*qkv, g), seed=i) for i in seeds), strict=True))
    expected = four_passes(
        tiled, *([tuple(x.double() for x in qkv), g.double(), tuple(x.double() for x in dots)]), case
    )
    got = four_passes(op, on(kernel_device, qkv), g.to(kernel_device), on(kernel_device, dots), case)
    names = ["o", "lse", "dq", "dk", "dv", "o'", "lse'", *("dq'", "dk'", "dv'") * ((len(got) - 7) // 3)]
    for name, a, b in zip(names, got, expected, strict=True):
        error = float((a.cpu().double() - b).norm())
        assert error < TOLERANCE[dtype] * (1 + float(b.norm())), name  # the gradient of a lone key's query is zero


def poison_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs start as NaN, so that an element no program writes is seen."""
    for name in ("empty", "empty_like"):
        original = getattr(torch, name)

        def poisoned(*args: Any, original: Any = original, **options: Any) -> Tensor:
            made: Tensor = original(*args, **options)
            return made.fill_(torch.nan) if made.is_floating_point() else made

        monkeypatch.setattr(op.torch, name, poisoned)


def test_padding_that_is_nan(kernel_device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tilings, "SMALL", small(split=False))
    q, k, v = CASES[0].inputs(torch.float32)
    k[:, :, 11:], v[:, :, 11:] = torch.nan, torch.inf
    case = Case(name="padded", shape=CASES[0].shape, options={"lengths": torch.tensor([11])})
    clean = tuple(x[:, :, :11] for x in (q, k, v))
    got, _ = op.forward(*on(kernel_device, (q, k, v)), case.spans().to(kernel_device), 0.5, None)
    expected, _ = tiled.forward(*clean, CASES[0].spans()[:, :, :11].contiguous(), 0.5, None)
    assert relative_error([got[:, :, :11].cpu()], [expected]) < 1e-6


def test_nan_is_not_lost(kernel_device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tilings, "SMALL", small(split=False))
    q, k, v = CASES[0].inputs(torch.float32)
    k[0, 0, 4, 2] = torch.nan
    got, _ = op.forward(*on(kernel_device, (q, k, v)), CASES[0].spans().to(kernel_device), 0.5, None)
    assert bool(got[0, :, 4:].isnan().all())


@pytest.mark.parametrize("scale", [-0.4, 0.0, 2.0])
def test_any_scale(scale: float, kernel_device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """The forward pass scales after the maximum; of 40 rows and 56 keys in a window some tiles are whole, some edges."""
    monkeypatch.setattr(tilings, "SMALL", small(split=False))
    case = Case(name="scale", shape=(1, 1, 1, 40, 56, 8), options={"window": 37})
    q, k, v = (x * 3 for x in case.inputs(torch.float32))
    spans = case.spans()
    got = op.forward(*on(kernel_device, (q, k, v)), spans.to(kernel_device), scale, None)
    expected = tiled.forward(q.double(), k.double(), v.double(), spans, scale, None)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a.cpu().double(), b, rtol=1e-5, atol=1e-5)


def test_gradients_through_a_cap_that_binds(kernel_device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores of ten times the cap have slopes near 1e-8, of which 1 - tanh^2 would be 0 or a rounding error."""
    monkeypatch.setattr(tilings, "SMALL", small(split=False))
    case = Case(name="saturated", shape=(1, 1, 1, 20, 20, 8))
    q, k, v = case.inputs(torch.float32)
    q, k = q.abs() + 2, k.abs() + 2  # every score is 32 and more
    g, spans, cap = torch.ones_like(v) * torch.arange(8), case.spans(), 4.5
    inputs = on(kernel_device, (q, k, v))
    o, lse = op.forward(*inputs, spans.to(kernel_device), 1.0, cap)
    got = op.backward(*inputs, spans.to(kernel_device), o, lse, g.to(kernel_device), 1.0, cap)[:2]
    exact = (q.double(), k.double(), v.double())
    o, lse = tiled.forward(*exact, spans, 1.0, cap)
    expected = tiled.backward(*exact, spans, o, lse, g.double(), 1.0, cap)[:2]
    assert 0 < float(expected[0].norm()) < 1e-3
    for a, b in zip(got, expected, strict=True):
        assert float((a.cpu().double() - b).norm()) < 1e-4 * float(b.norm())


def test_products_do_not_wait_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """After the first, which reads the spans; kernels are launched on nothing."""
    pytest.importorskip("triton")
    launched: list[str] = []
    monkeypatch.setattr(op._Call, "_run", lambda self, kernel, *_, **__: launched.append(kernel.__name__))
    monkeypatch.setattr(op._Call, "_row_dots", lambda *_, **__: launched.append("row_dots_kernel"))
    bounds = torch.zeros(1, 1, 2, dtype=torch.int32)
    monkeypatch.setattr(op._Call, "query_bounds", lambda *_: (bounds, 0))
    monkeypatch.setattr(autograd, "kernel_module", lambda *_: "triton_launch")
    q, k, v = CASES[0].inputs(torch.float32)
    spans = CASES[0].spans()

    def loss(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention_over_spans(q, k, v, spans).square().sum()

    waits = []
    for _ in range(2):
        with Synchronisations() as seen:
            jvp(grad(loss, (0, 1, 2)), (q, k, v), (q, k, v))
        waits.append(len(seen.names))
    assert launched.count("backward_tangent_q_kernel") == 2
    assert waits[0] > 0
    assert waits[1] == 0


@pytest.mark.gpu
@pytest.mark.filterwarnings(IGNORES_TORCH_JIT)
@pytest.mark.parametrize("dim", [32, 64, 80, 128, 256])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 5e-2)])
def test_hessian_vector_products_on_the_gpu(dim: int, dtype: torch.dtype, tolerance: float) -> None:
    case = Case(name="gpu", shape=(2, 4, 2, 301, 301, dim), options={"window": 130})
    qkv = case.inputs(dtype)
    many = [directions(qkv, seed=seed) for seed in range(3)]
    expected_gradient = grad(loss_of(case.reference), (0, 1, 2))
    gradient = grad(loss_of(lambda *x: attention(*x, **case.options).float()), (0, 1, 2))
    stacked = tuple(torch.stack(parts).cuda() for parts in zip(*many, strict=True))
    at = on(torch.device("cuda"), qkv)
    got = vmap(lambda *u: jvp(gradient, at, u)[1])(*stacked)
    for i, u in enumerate(many):
        exact, along = tuple(x.double() for x in qkv), tuple(x.double() for x in u)
        expected = jvp(expected_gradient, exact, along)[1]
        assert relative_error([x[i].cpu() for x in got], expected) < tolerance


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_equal_inputs_give_equal_bits_on_the_gpu(dtype: torch.dtype) -> None:
    qkv = on(torch.device("cuda"), Case(name="gpu", shape=(2, 8, 2, 777, 777, 64)).inputs(dtype))
    gradient = grad(lambda *x: attention(*x).float().square().sum(), (0, 1, 2))
    first, second = gradient(*qkv), gradient(*qkv)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_rows_that_see_a_tile(kernel_device: torch.device) -> None:
    """Spans in any order, of which some see nothing, against the definition; made once for one tensor of spans."""
    start = torch.randint(0, 40, (3, 53), generator=torch.Generator().manual_seed(0))
    length = torch.randint(-3, 12, (3, 53), generator=torch.Generator().manual_seed(1)).clamp(min=0)
    spans = torch.stack([start, (start + length).clamp(max=45)], 1).int().to(kernel_device)
    spans[2, 1] = spans[2, 0]  # a sequence that sees nothing
    q, k = torch.zeros(3, 1, 53, 8, device=kernel_device), torch.zeros(3, 1, 45, 8, device=kernel_device)
    kernel = kernels.backward_kv_kernel
    bounds, stride = op._Call(q, k, spans, 1.0, None).query_bounds(kernel)
    assert op._Call(q, k, spans, 2.0, None).query_bounds(kernel)[0] is bounds
    tile = tilings.tiling(kernel.__name__, 4, 8, (8, 0))[0].keys
    assert (tuple(bounds.shape), stride) == ((3, -(-45 // tile), 2), 2 * -(-45 // tile))
    seen = visible(spans, 0, 45)  # [sequence, query, key]
    for b in range(3):
        for i in range(bounds.shape[1]):
            rows = seen[b, :, i * tile : (i + 1) * tile].any(1).nonzero().flatten().tolist()
            assert bounds[b, i].tolist() == ([rows[0], rows[-1] + 1] if rows else [0, 0])
    spans += 0  # written: another version
    assert op._Call(q, k, spans, 1.0, None).query_bounds(kernel)[0] is not bounds


def test_wide_heads_in_fp32_and_float64_take_the_tiles_of_pytorch() -> None:
    from modelassay_kernels.attention.autograd import kernel_module  # noqa: PLC0415

    chosen = {
        (device, dtype, dim): kernel_module(device, dtype, dim)
        for device in ("cuda", "cpu", "mps")
        for dtype in (torch.bfloat16, torch.float32, torch.float64)
        for dim in (128, 256)
    }
    on_triton = {key for key, module in chosen.items() if module == "triton_launch"}
    assert on_triton == {("cuda", torch.bfloat16, 128), ("cuda", torch.bfloat16, 256), ("cuda", torch.float32, 128)}
