"""Which weights a step can move in the type that they are stored in: a number format's share in what training does.

A weight is stored on a grid whose points lie about 2^-8 (bfloat16) or 2^-11 (float16) of the weight apart. A step that is smaller than half
of that distance is rounded away, each time anew. AdamW's steps are about as large as the learning rate, whatever the gradient, so that the
share of weights that can move follows from weights, type and learning rate alone, before anything is trained.
"""

# W = weights of one tensor

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

LEAST = 0.05
"""Share of movable weights below which a training is said to stall."""
_CHUNK = 1 << 20
"""Weights looked at together."""
_WIDER = {torch.float64: torch.float64, torch.float32: torch.float64}
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True, kw_only=True)
class Mobility:
    """What a step of one size can do in one tensor."""

    num_weights: int
    num_movable: int
    """Weights that the step, up or down, rounds to another value."""
    num_decaying: int
    """Weights that decay alone, of the rate that goes with the step, rounds to another value."""
    dtype: str

    @property
    def share(self) -> float:
        """Movable weights as a share; an upper bound of those that move, since most steps are smaller."""
        return self.num_movable / self.num_weights if self.num_weights else 0.0


def mobility(weights_W: Tensor, step: float, *, decay: float = 0.0) -> Mobility:
    """Return what a step of absolute size ``step`` can move in the type of the weights, and decay by ``decay`` of each weight.

    Exact: the step is added in a wider type and rounded to the nearest, as optimisers do it (fused ones once, others after each
    operation). Zeros always move: numbers near 0 are dense.

    >>> ones = torch.ones(4, dtype=torch.bfloat16)          # the grid below 1 has steps of 2^-8: half of one is 0.00195
    >>> mobility(ones, 0.0019).share, mobility(ones, 0.002).share
    (0.0, 1.0)
    >>> mobility(ones, 0.0, decay=1e-5).num_decaying
    0
    """
    flat = weights_W.detach().reshape(-1)
    wider = _WIDER.get(flat.dtype, torch.float32)
    num_movable = num_decaying = 0
    for chunk in torch.split(flat, _CHUNK):
        values = chunk.to(wider)
        if step:
            changed = ((values + step).to(flat.dtype) != chunk) | ((values - step).to(flat.dtype) != chunk)
            num_movable += int(changed.sum())
        if decay:
            num_decaying += int(((values * (1 - decay)).to(flat.dtype) != chunk).sum())
    dtype = str(flat.dtype).removeprefix("torch.")
    return Mobility(num_weights=flat.numel(), num_movable=num_movable, num_decaying=num_decaying, dtype=dtype)


def total(parts: Iterable[Mobility]) -> Mobility:
    """Return several tensors as one; ``mixed`` is the type of tensors of more than one type."""
    listed = list(parts)
    types = {part.dtype for part in listed}
    return Mobility(
        num_weights=sum(part.num_weights for part in listed),
        num_movable=sum(part.num_movable for part in listed),
        num_decaying=sum(part.num_decaying for part in listed),
        dtype=types.pop() if len(types) == 1 else "mixed",
    )


def stalling(by_tensor: Mapping[str, Mobility], *, least: float = LEAST) -> str | None:
    """Return a sentence about tensors of which less than ``least`` can move at a learning rate; None where there are none."""
    stuck = {name: part for name, part in by_tensor.items() if part.share < least}
    if not stuck:
        return None
    whole, part = total(by_tensor.values()), total(stuck.values())
    return (
        f"a step of this learning rate can move less than {least:.0%} of the weights of {len(stuck)} of {len(by_tensor)} tensors "
        f"({part.num_weights / whole.num_weights:.0%} of all weights) in {part.dtype}; of all weights it can move {whole.share:.2%}. Keep a "
        "float32 copy of the weights (autocast over float32 weights, or a master copy), round stochastically, or raise the learning rate"
    )


def num_changed_bits(now_W: Tensor, before_W: Tensor) -> int:
    """Return how many weights differ in any bit: no tolerance, and -0, NaN and infinities count as what they are.

    >>> num_changed_bits(torch.tensor([0.0, 1.0, float("nan")]), torch.tensor([-0.0, 1.0, float("nan")]))
    1

    Raises:
        ValueError: shapes or types differ.
    """
    if now_W.shape != before_W.shape or now_W.dtype != before_W.dtype:
        raise ValueError(
            f"weights of one tensor have one shape and type, got {tuple(now_W.shape)} {now_W.dtype} and "
            f"{tuple(before_W.shape)} {before_W.dtype}"
        )
    bits = _BITS[now_W.element_size()]
    return int((now_W.detach().contiguous().view(bits) != before_W.contiguous().view(bits)).sum())
