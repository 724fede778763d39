"""What the numbers of quantised weights stand for: integers of a few bits, floats of four, and what multiplies them.

Each function is a format's definition, in float32; who stored what under which name is told by `quantisers`.
"""

# R = rows and C = columns of a weight, G = groups of columns that share a scale

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from torch import Tensor

FP4: Final = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
"""E2M1: the sixteen floats of four bits."""

AWQ_ORDER: Final = (0, 4, 1, 5, 2, 6, 3, 7)
"""Place among the eight numbers of an integer that the first, second ... column of eight has."""

NAN_EXPONENT: Final = 255


def integers(packed: Tensor, bits: int, *, dim: int) -> Tensor:
    """Return the unsigned numbers that 32-bit integers hold along ``dim``, the lowest bits first, as int64.

    >>> import torch
    >>> integers(torch.tensor([[0x21, -1]], dtype=torch.int32), 4, dim=1)[0, :10].tolist()
    [1, 2, 0, 0, 0, 0, 0, 0, 15, 15]
    """
    import torch

    words = packed.to(torch.int64) & 0xFFFFFFFF
    shifts = torch.arange(0, 32, bits)
    numbers: Tensor
    if dim == 0:
        numbers = ((words[:, None, :] >> shifts[None, :, None]) & (2**bits - 1)).reshape(-1, words.shape[1])
    else:
        numbers = ((words[:, :, None] >> shifts) & (2**bits - 1)).reshape(words.shape[0], -1)
    return numbers


def nibbles(packed: Tensor, *, high_first: bool = False) -> Tensor:
    """Return the two numbers of four bits in each byte along the last extent, the low ones first unless ``high_first``, as int64."""
    import torch

    low, high = (packed & 15).to(torch.int64), (packed >> 4).to(torch.int64)
    pair = (high, low) if high_first else (low, high)
    return torch.stack(pair, -1).reshape(*packed.shape[:-1], -1)


def fp4(packed: Tensor) -> Tensor:
    """Return the floats of four bits in each byte along the last extent, the low ones first."""
    import torch

    return torch.tensor(FP4)[nibbles(packed)]


def exponents(stored: Tensor) -> Tensor:
    """Return the powers of two that bytes stand for (E8M0); 255 is NaN."""
    import torch

    powers = torch.ldexp(torch.ones(stored.shape, dtype=torch.float64), stored.to(torch.int64) - 127).float()
    return torch.where(stored == NAN_EXPONENT, torch.nan, powers)


def by_group(values_RC: Tensor, scales_RG: Tensor) -> Tensor:
    """Return the values multiplied, each group of columns by its scale."""
    return (values_RC.reshape(values_RC.shape[0], scales_RG.shape[1], -1) * scales_RG[:, :, None]).reshape(
        values_RC.shape
    )


def gptq(qweight: Tensor, qzeros: Tensor, scales: Tensor, groups_C: Tensor, *, bits: int, zero: int) -> Tensor:
    """Return [outputs, inputs] of GPTQ's integers along the inputs; ``zero`` is what was taken from zero points before they were packed."""
    codes = integers(qweight, bits, dim=0)
    zeros = integers(qzeros, bits, dim=1)[:, : scales.shape[1]] + zero
    return ((codes - zeros[groups_C]).float() * scales.float()[groups_C]).T.contiguous()


def awq(qweight: Tensor, qzeros: Tensor, scales: Tensor) -> Tensor:
    """Return [outputs, inputs] of AWQ's 4-bit integers along the outputs, of which eight stand in its own order."""
    import torch

    order = torch.tensor(AWQ_ORDER)
    codes, zeros = (
        integers(packed, 4, dim=1).reshape(packed.shape[0], -1, 8)[:, :, order].flatten(1)
        for packed in (qweight, qzeros)
    )
    group = codes.shape[0] // scales.shape[0]
    zeros, factors = zeros.repeat_interleave(group, 0), scales.float().repeat_interleave(group, 0)
    return ((codes - zeros).float() * factors).T.contiguous()


def nf4(packed: Tensor, levels: Tensor, absmax: Tensor, *, block: int, shape: tuple[int, int]) -> Tensor:
    """Return the weights of bitsandbytes' 4-bit codes, the high ones first: a level times the largest of its block."""
    values = levels.float()[nibbles(packed.reshape(-1), high_first=True)][: shape[0] * shape[1]]
    return (values * absmax.repeat_interleave(block)[: values.numel()]).reshape(shape)


def nested(codes: Tensor, levels: Tensor, absmax: Tensor, offset: float, *, block: int) -> Tensor:
    """Return bitsandbytes' largest values where they were quantised again, around their mean."""
    return levels.float()[codes.long()] * absmax.float().repeat_interleave(block)[: codes.numel()] + offset
