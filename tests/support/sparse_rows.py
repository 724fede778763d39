"""Few rows, far apart: what lies beyond 2^31 elements, in little memory."""

from pathlib import Path

import torch
from torch import Tensor

STRIDE = 1 << 30
"""Elements from one row to the next: the third row of two-byte elements begins 4 GiB after the first."""


def far_apart(values_NV: Tensor, path: Path) -> Tensor:
    """Return rows of two-byte elements at `STRIDE` from each other, mapped from a sparse file at ``path``."""
    rows, cols = values_NV.shape
    with path.open("wb") as file:
        for i, row_V in enumerate(values_NV):
            file.seek(i * STRIDE * 2)
            file.write(bytes(row_V.view(torch.uint8).tolist()))
        file.truncate(rows * STRIDE * 2)
    return torch.from_file(str(path), shared=True, size=rows * STRIDE, dtype=values_NV.dtype).view(rows, STRIDE)[
        :, :cols
    ]
