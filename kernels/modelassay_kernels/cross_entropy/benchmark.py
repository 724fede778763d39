"""linear_cross_entropy: gradient and Hessian-vector products against PyTorch, time and peak memory.

    python -m modelassay_kernels.benchmarking -k cross_entropy

Rates are in bytes that cannot be avoided; the ceiling is the rate at which the bare matrix products of a gradient (3) or a
Hessian-vector product (9) would pass them, so `share_of_ceiling` is the share of the bare products' speed.

CPU: 1024 tokens, a vocabulary of 32,768 and a hidden size of 64 in fp32: logits of 134 MB. `peak_growth_kib` is what one call
adds to the peak of a process of its own, with everything it returns.

GPU, not measured yet: 8192 tokens, a vocabulary of 151,936 and a hidden size of 4096 in bf16: on an H100 the bare products of a
gradient are known to take 42 ms, the layers apart 59 ms and 19.9 GiB, the best-known chunked kernel 192 ms and 6.1 GiB. A
provider that runs out of memory is skipped with that reason.
"""

# N = tokens, V = vocabulary, D = hidden size, K = tangents

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, jvp, vmap

from modelassay_kernels.benchmarking.ceilings import product_ceiling
from modelassay_kernels.benchmarking.measure import require
from modelassay_kernels.benchmarking.memory import peak_growth_kib
from modelassay_kernels.cross_entropy import linear_cross_entropy
from modelassay_kernels.cross_entropy.work import linear_cross_entropy_work
from modelassay_kernels.dtypes import CODES

Tensors = tuple[Tensor, ...]
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
SIZES = {"cpu": (1024, 32768, 64), "cuda": (8192, 151936, 4096)}
"""N, V and D."""
DTYPES = {"cpu": torch.float32, "cuda": torch.bfloat16}
TOLERANCE = {"cpu": 1e-4, "cuda": 3e-2}
CHECKED_ROWS = 512
FREE_BYTES = 64 * 2**30
CHUNK_ROWS = 512
"""What a Hessian product used to take on a CPU; now the default is 128."""


def peer_loss(hidden_ND: Tensor, weight_VD: Tensor, labels_N: Tensor) -> Tensor:
    """Compute the loss with all logits at one time."""
    return F.cross_entropy(F.linear(hidden_ND, weight_VD).float(), labels_N)


PEER = "F.cross_entropy"
PROVIDERS: dict[str, Loss] = {
    "modelassay": linear_cross_entropy,
    f"modelassay, {CHUNK_ROWS} rows": functools.partial(linear_cross_entropy, chunk_rows=CHUNK_ROWS),
    PEER: peer_loss,
}
NUM_TANGENTS = {"gradient": 0, "hessian product": 1, "4 hessian products": 4}
MODES = {"cpu": ["gradient", "hessian product"], "cuda": [*NUM_TANGENTS]}


def cases() -> list[Any]:
    """Return (provider, mode, device), those of a GPU marked."""
    marks = {"cpu": (), "cuda": (pytest.mark.gpu,)}
    return [
        pytest.param(provider, mode, device, id=f"{provider}-{mode}-{device}", marks=marks[device])
        for provider in PROVIDERS
        for device, modes in MODES.items()
        for mode in modes
    ]


@functools.lru_cache(maxsize=1)
def problem(device: str) -> tuple[Tensors, Tensors, Tensor]:
    """Return hidden states and weight, four directions for them, and labels."""
    num_rows, num_cols, hidden_size = SIZES[device]
    generator = torch.Generator(device).manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, device=device, generator=generator, dtype=DTYPES[device])

    scale = hidden_size**-0.5
    point = normal(num_rows, hidden_size), normal(num_cols, hidden_size) * scale
    directions = normal(4, num_rows, hidden_size), normal(4, num_cols, hidden_size) * scale
    return point, directions, torch.randint(num_cols, (num_rows,), device=device, generator=generator)


def derivative(provider: str, mode: str, device: str, rows: int | None = None) -> Tensors:
    """Return gradients as training takes them, or Hessian-vector products; of the first ``rows`` tokens."""
    (hidden, weight), directions, labels = problem(device)
    point, labels = (hidden[:rows], weight), labels[:rows]
    directions = (directions[0][:, :rows], directions[1])
    num_tangents = NUM_TANGENTS[mode]
    if num_tangents == 0 or (provider == PEER and num_tangents == 1):
        leaves = [x.detach().requires_grad_() for x in point]
        gradients = torch.autograd.grad(
            PROVIDERS[provider](leaves[0], leaves[1], labels), leaves, create_graph=num_tangents == 1
        )
        if num_tangents == 0:
            return gradients
        return torch.autograd.grad(gradients, leaves, [x[0] for x in directions])  # its usual way

    def gradient(*at: Tensor) -> Tensors:
        return tuple(grad(lambda h, w: PROVIDERS[provider](h, w, labels), (0, 1))(*at))

    def product(*along: Tensor) -> Tensors:
        return tuple(jvp(gradient, point, along)[1])

    return product(*(x[0] for x in directions)) if num_tangents == 1 else tuple(vmap(product)(*directions))


def bare_products(device: str) -> list[Callable[[], Tensor]]:
    """Return the three products of a gradient."""
    (hidden, weight), _, _ = problem(device)
    logits = hidden @ weight.t()
    return [lambda: hidden @ weight.t(), lambda: logits @ weight, lambda: logits.t() @ hidden]


def growth_kib(provider: str, mode: str) -> int | None:
    """Return what one call adds to the peak of a process of its own."""
    setup = "from modelassay_kernels.cross_entropy.benchmark import derivative, problem\nproblem('cpu')"
    return peak_growth_kib(setup, f"result = derivative({provider!r}, {mode!r}, 'cpu')")


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
@pytest.mark.parametrize(("provider", "mode", "device"), cases())
def test_linear_cross_entropy(measure: Any, provider: str, mode: str, device: str) -> None:
    """Compared with the peer on some of the tokens, by norms."""
    require(device, free_bytes=FREE_BYTES)
    num_rows, num_cols, hidden_size = SIZES[device]
    dtype, num_tangents = DTYPES[device], NUM_TANGENTS[mode]
    expected = derivative(PEER, mode, device, CHECKED_ROWS)
    for x, y in zip(derivative(provider, mode, device, CHECKED_ROWS), expected, strict=True):
        assert bool((x.double() - y.double()).norm() <= TOLERANCE[device] * y.double().norm())
    del expected

    def check(result: Tensors) -> None:
        assert all(bool(x.isfinite().all()) for x in result)

    try:
        derivative(provider, mode, device)
    except torch.OutOfMemoryError as error:
        pytest.skip(f"{provider} runs out of memory: {str(error).splitlines()[0]}")
    work = linear_cross_entropy_work(num_rows, num_cols, hidden_size, itemsize=dtype.itemsize, tangents=num_tangents)
    facts = {"peak_growth_kib": growth_kib(provider, mode)} if device == "cpu" else {}
    product_flops = 2 * num_rows * num_cols * hidden_size
    measure(
        f"linear_cross_entropy {mode}",
        provider,
        lambda: derivative(provider, mode, device),
        check=check,
        work=work,
        ceiling=product_ceiling(work, bare_products(device), product_flops, device),
        device=device,
        rounds=3 if device == "cpu" else 7,
        dtype=CODES[dtype],
        shape=[num_rows, num_cols, hidden_size],
        **facts,
    )
