"""What was found out about a tensor and holds until it changes: so that a number has to come to the host once, not each time."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from torch import Tensor

Found = TypeVar("Found")


class Remembered(Generic[Found]):
    """Of the last tensors, by the tensor itself, its version and a key; no tensor is kept alive by it.

    >>> import torch
    >>> sums = Remembered[float]()
    >>> x = torch.ones(3)
    >>> sums.put(x, "sum", 3.0)
    >>> sums.get(x, "sum"), sums.get(x, "mean"), sums.get(x.clone(), "sum"), sums.get(x.zero_(), "sum")
    (3.0, None, None, None)
    """

    def __init__(self, num_kept: int = 16) -> None:
        self._last: deque[tuple[weakref.ref[Tensor], int, Hashable, Found]] = deque(maxlen=num_kept)

    def get(self, tensor: Tensor, key: Hashable) -> Found | None:
        """Return what was put for the tensor as it is; None where nothing was."""
        if tensor.is_inference():  # such a tensor has no version
            return None
        of = (tensor._version, key)
        return next(
            (found for ref, version, name, found in self._last if (version, name) == of and ref() is tensor), None
        )

    def put(self, tensor: Tensor, key: Hashable, found: Found) -> None:
        """Remember it; of a tensor of inference mode, which may change unseen, nothing."""
        if not tensor.is_inference():
            self._last.append((weakref.ref(tensor), tensor._version, key, found))

    def of(self, tensor: Tensor, key: Hashable, find: Callable[[], Found]) -> Found:
        """Return what was put, else what is found now, which is put."""
        found = self.get(tensor, key)
        if found is None:
            found = find()
            self.put(tensor, key, found)
        return found

    def clear(self) -> None:
        """Forget all."""
        self._last.clear()
