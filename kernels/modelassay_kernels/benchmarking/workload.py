"""What a runner times: inputs made anew from a seed, a check against float64, the least work, and who computes it.

Needs torch alone; each operation's ``workload.py`` makes them of a model's shape.
"""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from modelassay_kernels.work import Work

Tensors = tuple[Tensor, ...]
Run = Callable[..., Any]


class Absent(Exception):
    """A provider cannot run here; the message is the reason."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The shape of a model, as its configuration has it."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int


@dataclass(frozen=True, kw_only=True)
class Provider:
    """Somebody who computes an operation."""

    load: Callable[[], Run]
    """Return the function of the inputs; raises `Absent` where it cannot run."""
    loose: float = 1.0
    """How many times the tolerance of its type it is allowed, where it is known to round in between."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """One operation of one size and type on one device."""

    operation: str
    sizes: Mapping[str, int]
    """What decides the work, for people and for the comparison of two runs."""
    work: Work
    fill: Callable[[int], Tensors]
    """Return the inputs of a seed; every call makes new contents."""
    check: Callable[[Tensors, Any, int, float], None]
    """Compare a result with float64, by inputs, result, a seed that chooses the compared parts, and how many times the tolerance is
    allowed. Raises AssertionError."""
    providers: Mapping[str, Provider] = field(default_factory=dict)
    products: bool = False
    """Whether products of matrices are most of it, so that their rate is a ceiling of its flops."""


def normal(seed: int, device: str, dtype: torch.dtype, *shape: int, scale: float = 1.0) -> Tensor:
    """Return normal numbers; large tensors repeat a pool at another scale, which is cheaper to make and as new."""
    generator = torch.Generator(device).manual_seed(seed)
    count = torch.Size(shape).numel()
    pool = torch.randn(min(count, 1 << 20), generator=generator, device=device)
    out = torch.empty(count, dtype=dtype, device=device)
    for part in torch.split(out, pool.numel()):
        factor = scale * (0.5 + torch.rand((), generator=generator, device=device))
        part.copy_(pool[: part.numel()] * factor)
    return out.view(shape)


def some(count: int, chosen: int, seed: int) -> Tensor:
    """Return ``chosen`` of the numbers below ``count``, or all, sorted; other ones by each seed."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:chosen].sort().values


def assert_near(result: Tensor, expected: Tensor, tolerance: float) -> None:
    """Compare with float64 by the norm of the difference."""
    difference = (result.double() - expected).norm()
    if not bool(difference <= tolerance * expected.norm()):
        error = float(difference / expected.norm())
        raise AssertionError(f"differs from float64 by {error:.2g} of its norm, allowed are {tolerance:.2g}")


def library(module: str, name: str) -> Any:
    """Return a name of an optional library.

    Raises:
        Absent: it is not installed, or not with that name.
    """
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, OSError, RuntimeError) as error:
        raise Absent(f"{module}.{name}: {str(error).splitlines()[0]}") from None


def on_gpu_alone(device: str, load: Callable[[], Run]) -> Callable[[], Run]:
    """Return ``load`` for a library that needs a CUDA device."""

    def load_there() -> Run:
        if device != "cuda":
            raise Absent("needs a CUDA device")
        return load()

    return load_there


def compiled(function: Run, device: str) -> Provider:
    """Return torch.compile of ``function``, which needs a compiler on a CPU."""

    def load() -> Run:
        if device == "cpu" and not any(map(shutil.which, ("g++", "clang++", "c++"))):
            raise Absent("torch.compile needs a C++ compiler, and there is none on PATH")
        return torch.compile(function, dynamic=False)

    return Provider(load=load)
