"""Comparing what was made anew with what is stored, unit by unit."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from modelassay.fingerprints.rederived.result import Remade
from modelassay.models.checkpoints.factors import is_plain
from modelassay.models.checkpoints.safetensors import DTYPE_BITS, read_elements
from modelassay.models.checkpoints.tensors import TensorTable
from modelassay.models.parts import ensure

FLOATS: Final = frozenset({"F64", "F32", "BF16", "F16"})
"""Formats that a tensor is cast to, without scales."""

ABSENT: Final = "not in the quantised model under this name"
OTHER_SHAPE: Final = "of another shape"
"""Why a tensor could not be made again for reasons that are not its format's."""

_MIN_BYTES: Final = 256
"""Smaller tensors, and those whose first elements are all alike, are the same bits in strangers too."""
_NUM_LOOKED_AT: Final = 1024

Units = Tensor
"""Bytes [units, bytes of one]."""

Way = tuple[str, list[tuple[Units, Units]]]
"""A recipe, and what it makes beside what is stored."""

Outcome = tuple[list[Remade], list[tuple[str, int]]]
"""What was made again; and of each tensor that could not be the reason, and its weights."""


def units(tensor: Tensor) -> Units:
    """Return the elements of a tensor as bytes."""
    return tensor.contiguous().reshape(-1, 1).view(torch.uint8)


def closest(name: str, stored_as: str, ways: Iterable[Way], *, num_weights: int, is_narrower: bool) -> Remade:
    """Return the way with the most units that are the same bits; the first one where all are."""
    best = None
    for recipe, pairs in ways:
        equal = sum(int((made == stored).all(1).sum()) for made, stored in pairs)
        remade = Remade(name=name, format=stored_as, recipe=recipe, equal=equal, of=sum(len(stored) for _, stored in pairs),
                        num_weights=num_weights, is_narrower=is_narrower)  # fmt: skip
        best = remade if best is None or remade.equal > best.equal else best
        if best.is_equal:
            break
    assert best is not None, name
    return best


def is_narrower(source: str, stored: str) -> bool:
    """Tell whether a stored dtype has fewer bits than the source's, or is the other one of 16."""
    return DTYPE_BITS[stored] < DTYPE_BITS[source] or (
        source != stored and DTYPE_BITS[stored] == DTYPE_BITS[source] == 16
    )


def read_source(a: TensorTable, name: str) -> Tensor | None:
    """Return a tensor of the source; None where it says nothing: small, alike throughout, or no plain floats itself."""
    path, info = a.find(name)
    if not is_plain(a, name, info) or info.size_bytes < _MIN_BYTES:
        return None
    head = read_elements(path, info.dtype, info.offset, min(_NUM_LOOKED_AT, math.prod(info.shape)))
    if not bool((head != head[0]).any()):
        return None
    return read_elements(path, info.dtype, info.offset, math.prod(info.shape)).reshape(info.shape)


def read_bytes(path: Path, offset: int, count: int) -> NDArray[np.uint8]:
    """Return bytes of a file."""
    ensure(path, offset, count)
    return np.fromfile(path, dtype=np.uint8, count=count, offset=offset)
