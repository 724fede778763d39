"""attention on CUDA: numbers in the interpreter and on a GPU, machine code without one."""

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, jvp, vmap

from modelassay_kernels import attention
from modelassay_kernels.attention import tiled as tiled
from modelassay_kernels.attention import triton_kernels as kernels
from modelassay_kernels.attention import triton_launch as op
from modelassay_kernels.optional_triton import is_interpreted
from support.attention_cases import IGNORES_TORCH_JIT, Case, directions, loss_of, relative_error
from support.triton_checks import compile_ahead

TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}
SMALL = {
    pass_: {size: (op.Tiling(rows=16, keys=16, num_warps=4, num_stages=1),) * 5 for size in (2, 4)}
    for pass_ in op.TILINGS
}

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
    monkeypatch.setattr(op, "TILINGS", SMALL)
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
    monkeypatch.setattr(op, "TILINGS", SMALL)
    q, k, v = CASES[0].inputs(torch.float32)
    k[:, :, 11:], v[:, :, 11:] = torch.nan, torch.inf
    case = Case(name="padded", shape=CASES[0].shape, options={"lengths": torch.tensor([11])})
    clean = tuple(x[:, :, :11] for x in (q, k, v))
    got, _ = op.forward(*on(kernel_device, (q, k, v)), case.spans().to(kernel_device), 0.5, None)
    expected, _ = tiled.forward(*clean, CASES[0].spans()[:, :, :11].contiguous(), 0.5, None)
    assert relative_error([got[:, :, :11].cpu()], [expected]) < 1e-6


def test_nan_is_not_lost(kernel_device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(op, "TILINGS", SMALL)
    q, k, v = CASES[0].inputs(torch.float32)
    k[0, 0, 4, 2] = torch.nan
    got, _ = op.forward(*on(kernel_device, (q, k, v)), CASES[0].spans().to(kernel_device), 0.5, None)
    assert bool(got[0, :, 4:].isnan().all())


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


KERNELS = {
    "forward": (kernels.forward_kernel,),
    "tangent": (kernels.tangent_kernel,),
    "backward": (kernels.backward_q_kernel, kernels.backward_kv_kernel),
    "backward_tangent": (kernels.backward_tangent_q_kernel, kernels.backward_tangent_kv_kernel),
}
FP32_POINTERS = {"lse_ptr", "d_ptr", "mu_ptr", "dot_d_ptr"}
INT32_POINTERS = {"spans_ptr", "bounds_ptr"}
CONFIGS = [
    (which, element, dim)
    for element, dims in (("bf16", (32, 64, 128, 256)), ("fp32", (32, 64, 128)))
    for dim in dims
    for which in KERNELS
]


def compiled_kernels(which: str, element: str, dim: int, capability: int, cache: Path) -> None:
    """Compile all kernels of a pass with its tile; shared memory is checked within, atomics here."""
    tile, block = op.tiling(which, 2 if element == "bf16" else 4, dim)
    constants = {
        "H": 4, "K": 2, "D": dim, "BLOCK_D": block, "N": tile.rows, "M": tile.keys,
        "CAPPED": True, "UPCAST": False, "PRECISION": op.PRECISION,
    }  # fmt: skip
    for kernel in KERNELS[which]:
        names = [name for name in inspect.signature(kernel.fn).parameters if name not in constants]
        signature = {}
        for name in names:
            pointed = "fp32" if name in FP32_POINTERS else "i32" if name in INT32_POINTERS else element
            signature[name] = (
                f"*{pointed}" if name.endswith("_ptr") else "fp32" if name in {"scale", "softcap"} else "i32"
            )
        compiled = compile_ahead(
            kernel, signature=signature, constants=constants, capability=capability, cache=cache,
            num_warps=tile.num_warps, num_stages=tile.num_stages,
        )  # fmt: skip
        assert compiled.count(r"\batom\.|\bred\.") == 0
        assert compiled.count(r"\bmma\.sync|wgmma\.mma_async|tcgen05\.mma") > 0


@pytest.mark.parametrize(("which", "element", "dim"), [(which, "bf16", 64) for which in KERNELS])
def test_compiles_for_hopper(which: str, element: str, dim: int, tmp_path: Path) -> None:
    compiled_kernels(which, element, dim, 90, tmp_path)


@pytest.mark.nightly
@pytest.mark.parametrize(("which", "element", "dim"), CONFIGS)
@pytest.mark.parametrize("capability", [80, 90, 100])
def test_every_configuration_compiles(which: str, element: str, dim: int, capability: int, tmp_path: Path) -> None:
    compiled_kernels(which, element, dim, capability, tmp_path)


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
