"""Which tensors of two checkpoints are the same bits: certain evidence, and the cheapest."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from modelassay.models.checkpoints import Checkpoint
from modelassay.models.checkpoints.safetensors import DTYPE_BITS, TensorInfo

MIN_BYTES = 256
"""Smaller tensors, and those of one repeated byte pattern (norms of ones, biases of zeros), are alike in strangers too."""
CHUNK_BYTES = 1 << 24
NORM = re.compile(r"norm|(^|\.)ln_\w+\.", re.IGNORECASE)
"""Names of tensors of norms."""


@dataclass(frozen=True, kw_only=True)
class SameBits:
    """Tensors that two checkpoints have in common, of those that say something."""

    equal: tuple[str, ...]
    """Names of tensors with one dtype, one shape and the same bits in both, in order."""
    total: int
    """Tensors of the checkpoint with more of them that are large and varied enough to say something."""

    @property
    def norms(self) -> tuple[str, ...]:
        """Equal tensors of norms: they begin as constants, so that what they share came from training and from no seed."""
        return tuple(name for name in self.equal if NORM.search(name))

    @property
    def all_equal(self) -> bool:
        """Whether every one of them is the same."""
        return self.total > 0 and len(self.equal) == self.total


def same_bits(a: Checkpoint, b: Checkpoint) -> SameBits:
    """Compare the tensors of two checkpoints by name, dtype, shape and bits; each is read up to the first difference.

    Raises:
        CheckpointError: a file ends before a tensor does.
    """
    names_a, names_b = set(a.tensors.names()), set(b.tensors.names())
    informative = {name: place for name in sorted(names_a) if _is_varied(*(place := a.tensors.find(name)))}
    only_b = sum(_is_varied(*b.tensors.find(name)) for name in names_b - names_a)
    equal = []
    for name, (path, info) in informative.items():
        if name in names_b:
            other_path, other = b.tensors.find(name)
            if (info.dtype, info.shape) == (other.dtype, other.shape) and _equal(path, info, other_path, other):
                equal.append(name)
    return SameBits(equal=tuple(equal), total=len(informative) + only_b)


def _size(info: TensorInfo) -> int:
    return math.prod(info.shape) * DTYPE_BITS[info.dtype] // 8


def _is_varied(path: Path, info: TensorInfo) -> bool:
    """Return whether a tensor is large enough and its first elements are not all alike."""
    size, width = _size(info), max(DTYPE_BITS[info.dtype] // 8, 1)
    if size < MIN_BYTES:
        return False
    head = _read(path, info.offset, min(size, 4096) // width * width).reshape(-1, width)
    return bool((head != head[0]).any())


def _equal(path: Path, info: TensorInfo, other_path: Path, other: TensorInfo) -> bool:
    size = _size(info)
    for start in range(0, size, CHUNK_BYTES):
        count = min(CHUNK_BYTES, size - start)
        if not np.array_equal(_read(path, info.offset + start, count), _read(other_path, other.offset + start, count)):
            return False
    return True


def _read(path: Path, offset: int, count: int) -> NDArray[np.uint8]:
    return np.fromfile(path, dtype=np.uint8, count=count, offset=offset)
