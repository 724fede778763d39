"""Quantising as ggml does: blocks of 32 weights with a scale, and an offset where the type ends in 1.

The definitions are those of ggml's reference quantisers (ggml-quants.c, `quantize_row_*_ref`), whose last step, a product and a sum,
compilers may fuse into one operation that rounds once. Both ways are made here, since files of both are about.
"""

# N = blocks, B = weights of one

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

WEIGHTS: Final = 32
"""Of one block."""


def quantise(type_name: str, weights: Floats, *, fused: bool) -> Bytes:
    """Return the blocks [N, bytes] of weights that are a multiple of 32.

    Raises:
        KeyError: a type without a definition here.

    >>> quantise("Q8_0", np.full(32, 127.0, dtype=np.float32), fused=False)[0, :4].tolist()      # 1.0 as float16, then 127s
    [0, 60, 127, 127]
    """
    blocks_NB = np.ascontiguousarray(weights, dtype=np.float32).reshape(-1, WEIGHTS)
    return _QUANTISERS[type_name](blocks_NB, fused)


def _q8_0(blocks: Floats, _fused: bool) -> Bytes:
    scale_N1 = np.abs(blocks).max(1, keepdims=True) / np.float32(127)
    scaled = blocks * _inverse(scale_N1)
    codes = np.trunc(scaled + np.copysign(np.float32(0.5), scaled))  # half away from zero; exact below 2**22
    return np.concatenate([_halves(scale_N1), codes.astype(np.int8).view(np.uint8)], 1)


def _symmetric(bits: int) -> Callable[[Floats, bool], Bytes]:
    """Return the quantiser with one scale: the weight of largest magnitude becomes the lowest code."""
    half = 1 << (bits - 1)

    def quantiser(blocks: Floats, fused: bool) -> Bytes:
        largest_N1 = np.take_along_axis(blocks, np.abs(blocks).argmax(1)[:, None], 1)
        scale_N1 = largest_N1 / np.float32(-half)
        codes = _codes(blocks, _inverse(scale_N1), half + 0.5, 2 * half - 1, fused)
        return np.concatenate([_halves(scale_N1), *_packed(codes, bits)], 1)

    return quantiser


def _affine(bits: int) -> Callable[[Floats, bool], Bytes]:
    """Return the quantiser with a scale and an offset: the smallest weight becomes 0, the largest the highest code."""
    top = (1 << bits) - 1

    def quantiser(blocks: Floats, fused: bool) -> Bytes:
        low_N1 = blocks.min(1, keepdims=True)
        scale_N1 = (blocks.max(1, keepdims=True) - low_N1) / np.float32(top)
        codes = _codes(blocks - low_N1, _inverse(scale_N1), 0.5, top, fused)
        return np.concatenate([_halves(scale_N1), _halves(low_N1), *_packed(codes, bits)], 1)

    return quantiser


_QUANTISERS: Final = {
    "Q8_0": _q8_0,
    "Q4_0": _symmetric(4),
    "Q5_0": _symmetric(5),
    "Q4_1": _affine(4),
    "Q5_1": _affine(5),
}

TYPES: Final = tuple(_QUANTISERS)
"""What can be made again. The k- and i-quants search their scales, with sums whose order compilers choose: they cannot."""


def _inverse(scale: Floats) -> Floats:
    with np.errstate(divide="ignore"):
        return np.where(scale == 0, np.float32(0), np.float32(1) / scale)


def _codes(blocks: Floats, inverse_N1: Floats, shift: float, top: int, fused: bool) -> Bytes:
    """Return blocks * inverse + shift, cut off to whole numbers up to ``top``: rounded twice in float32, or once if ``fused``."""
    if fused:  # the product of two float32 is exact in float64
        shifted = (blocks.astype(np.float64) * inverse_N1.astype(np.float64) + shift).astype(np.float32)
    else:
        shifted = blocks * inverse_N1 + np.float32(shift)
    return np.minimum(shifted.astype(np.int16), top).astype(np.uint8)


def _packed(codes: Bytes, bits: int) -> list[Bytes]:
    """Return codes packed: of five bits the highest ones first, bit i that of weight i; then two weights a byte, 16 apart."""
    low = np.bitwise_and(codes, 0xF)
    nibbles: Bytes = (low[:, :16] + 16 * low[:, 16:]).astype(np.uint8)
    return [nibbles] if bits == 4 else [np.packbits(codes >> 4, axis=1, bitorder="little"), nibbles]


def _halves(values_N1: Floats) -> Bytes:
    with np.errstate(over="ignore"):
        return values_N1.astype("<f2").view(np.uint8)
