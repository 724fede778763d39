"""Which tensors of two checkpoints are the same bits: certain evidence, and the cheapest."""

from __future__ import annotations

import math
import re
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from modelassay.models.checkpoints import Checkpoint
from modelassay.models.checkpoints.safetensors import DTYPE_BITS, TensorInfo
from modelassay.models.parts import ensure

MIN_BYTES = 256
"""Smaller tensors are alike in strangers too."""
MIN_DENSITY = 0.1
"""Of a tensor's bytes that remain after zlib, at least: norms of ones, biases of zeros, norms of ones padded with zeros, identities and
causal masks pack to less than 0.07, ternary weights stored as bf16 to 0.17, other trained ones to more."""
WINDOW_BYTES = 4096
COMPUTED = re.compile(
    r"position_ids|inv_freq|(attn|attention)\.(masked_)?bias$|sinusoid|embed_positions\.weights$|alibi|slopes|relative_position_index|g_idx"
)
"""Names of tables that code computes, alike in all models of a kind: no training and no seed made them."""
CHUNK_BYTES = 1 << 24
FIRST_BYTES = 1 << 16
"""Of what is compared first: tensors that differ mostly do so there."""
NORM = re.compile(r"norm|(^|\.)ln_\w+\.", re.IGNORECASE)
"""Names of tensors of norms."""


@dataclass(frozen=True, kw_only=True)
class SameBits:
    """Tensors that two checkpoints have in common, of those that say something."""

    equal: tuple[str, ...]
    """Names of tensors with one dtype, one shape and the same bits in both, in order."""
    total: int
    """Tensors of both checkpoints that are large and varied enough to say something."""
    num_small_differences: int = 0
    """Tensors that say nothing where they are equal, and are not."""

    @property
    def norms(self) -> tuple[str, ...]:
        """Equal tensors of norms: they begin as constants, so that what they share came from training and from no seed."""
        return tuple(name for name in self.equal if NORM.search(name))

    @property
    def all_equal(self) -> bool:
        """Whether every one of them is the same, and no other tensor of both differs."""
        return self.total > 0 and len(self.equal) == self.total and not self.num_small_differences


def same_bits(a: Checkpoint, b: Checkpoint) -> SameBits:
    """Compare the tensors of two checkpoints by name, dtype, shape and bits; each is read up to the first difference.

    Raises:
        CheckpointError: a file ends before a tensor does.
    """
    names_a, names_b = set(a.tensors.names()), set(b.tensors.names())
    equal, total, num_small_differences = [], 0, 0
    for name in sorted(names_a | names_b):
        places = [checkpoint.tensors.find(name) for checkpoint, names in ((a, names_a), (b, names_b)) if name in names]
        says_something = any(_is_varied(name, *place) for place in places)
        is_equal = len(places) == 2 and _is_same(*places)
        total += says_something
        if is_equal and says_something:
            equal.append(name)
        num_small_differences += len(places) == 2 and not says_something and not is_equal
    return SameBits(equal=tuple(equal), total=total, num_small_differences=num_small_differences)


def _is_same(place: tuple[Path, TensorInfo], other_place: tuple[Path, TensorInfo]) -> bool:
    (path, info), (other_path, other) = place, other_place
    return equal_bits(path, info, other_path, other)


def _size(info: TensorInfo) -> int:
    return math.prod(info.shape) * DTYPE_BITS[info.dtype] // 8


def _is_varied(name: str, path: Path, info: TensorInfo) -> bool:
    """Return whether a tensor was trained or drawn, as far as its name, its size and three pieces of it tell."""
    size = _size(info)
    if size < MIN_BYTES or info.dtype in ("BOOL", "I64") or COMPUTED.search(name):
        return False
    count = min(size, WINDOW_BYTES)
    pieces = (_read(path, info.offset + at, count) for at in (0, (size - count) // 2, size - count))
    return any(len(zlib.compress(piece.tobytes(), 6)) >= MIN_DENSITY * count for piece in pieces)


def equal_bits(path: Path, info: TensorInfo, other_path: Path, other: TensorInfo) -> bool:
    """Return whether two stored tensors have one dtype, one shape and the same bits; they are read up to the first difference."""
    if (info.dtype, info.shape) != (other.dtype, other.shape):
        return False
    size, start, count = _size(info), 0, FIRST_BYTES
    while start < size:
        count = min(count, size - start)
        if not np.array_equal(_read(path, info.offset + start, count), _read(other_path, other.offset + start, count)):
            return False
        start, count = start + count, CHUNK_BYTES
    return True


def _read(path: Path, offset: int, count: int) -> NDArray[np.uint8]:
    ensure(path, offset, count)
    return np.fromfile(path, dtype=np.uint8, count=count, offset=offset)
