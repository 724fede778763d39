"""Rows that are hard to choose from, and the one comparison of the tests of bottom_k, whatever computes it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from modelassay_kernels.dtypes import UP_TO_FP32

DTYPES = [*UP_TO_FP32]
BITS = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32, torch.float64: torch.int64}


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def cluster_at_the_threshold(num_cols: int) -> Tensor:
    """About 1 % below, 60 % equal, the rest above."""
    u = uniform(num_cols, seed=3)
    return torch.where(u < 0.01, -1.0 - u, torch.where(u < 0.6, torch.tensor(-1.0), u))


def specials(num_cols: int) -> Tensor:
    """Both zeros, both infinities, NaN of both signs, the smallest and largest numbers, in an order by chance."""
    values = torch.tensor([
        0.0,
        -0.0,
        math.inf,
        -math.inf,
        math.nan,
        -math.nan,
        1e-41,
        -1e-41,
        6e-8,
        -6e-8,
        3e38,
        -3e38,
    ])
    return values[(uniform(num_cols, seed=4) * len(values)).long()]


def hard_rows(num_cols: int) -> dict[str, Tensor]:
    """One row of each kind, in fp32."""
    rising = torch.arange(num_cols, dtype=torch.float32) - num_cols / 3
    noise = normal(num_cols, seed=1)
    return {
        "normal": noise,
        "all equal": torch.full((num_cols,), -2.5),
        "sorted": rising,
        "reversed": rising.flip(0),
        "two values": (noise > 0).float() - 0.5,
        "denormals": noise * 1e-40,
        "zeros of both signs": torch.copysign(torch.zeros(num_cols), noise),
        "infinities": torch.where(noise.abs() > 1, noise * math.inf, noise),
        "NaN among numbers": torch.where(noise > 0.5, torch.tensor(math.nan), noise),
        "NaN almost everywhere": torch.where(noise > -2, torch.tensor(-math.nan), noise),
        "NaN everywhere": torch.full((num_cols,), math.nan),
        "cluster at the threshold": cluster_at_the_threshold(num_cols),
        "specials": specials(num_cols),
        "far out where a sample looks": torch.where(torch.arange(num_cols) % 32 < 16, noise - 100, noise),
    }


def expected_ids(x_NV: Tensor, k: int, valid: Tensor | None = None, largest: bool = False) -> Tensor:
    """Sort by (is NaN, value, id) in float64, another way than the reference does: by Python, key after key from the last."""
    ids_V = range(x_NV.shape[1]) if valid is None else valid.cpu().nonzero().flatten().tolist()
    rows = []
    for row in x_NV.detach().cpu().double().tolist():
        order = sorted(ids_V, key=lambda i, row=row: 0.0 if row[i] != row[i] else -row[i] if largest else row[i])
        rows.append(sorted(order, key=lambda i, row=row: row[i] != row[i])[:k])
    return torch.tensor(rows, dtype=torch.int64).reshape(x_NV.shape[0], k)


def assert_is_bottom_k(
    got: tuple[Tensor, Tensor],
    x_NV: Tensor,
    k: int,
    valid: Tensor | None = None,
    *,
    largest: bool = False,
    sort: bool = True,
) -> None:
    """Demand the ids of a float64 sort, and the elements themselves to the bit."""
    values_NK, ids_NK = (part.cpu() for part in got)
    x_NV = x_NV.cpu()
    want_NK = expected_ids(x_NV, k, valid, largest)
    if sort:
        assert torch.equal(ids_NK, want_NK)
    else:
        assert torch.equal(ids_NK.sort(dim=1).values, want_NK.sort(dim=1).values)
    assert values_NK.dtype == x_NV.dtype
    want_values_NK = x_NV.gather(1, want_NK if sort else ids_NK)
    assert bool((values_NK.isnan() == want_values_NK.isnan()).all())
    bits = BITS[x_NV.dtype]  # so that the signs of zeros count; those of NaN do not, which gather may change
    torch.testing.assert_close(values_NK.nan_to_num(7).view(bits), want_values_NK.nan_to_num(7).view(bits))
