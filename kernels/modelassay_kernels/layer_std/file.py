"""Standard deviation of tensors that stay in their files: safetensors byte ranges, read in pieces and never kept.

The same definition, and in the compiled extension the same arithmetic to the bit, as `layer_std` of the loaded tensor.
"""

# T = spans, R = rows, C = columns, B = elements of one piece

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from modelassay_kernels.dtypes import BY_CODE
from modelassay_kernels.layer_std.scales import Block, is_whole, split_scale, whole_factor
from modelassay_kernels.native import native_available, require_native

_PIECE_BYTES = 1 << 20  # of the fallback; a float64 copy of a piece is up to eight times this


class FileSpan(NamedTuple):
    """A matrix in a file: rows of neighbouring elements at a fixed distance. Little-endian, as safetensors demands."""

    path: str
    """The file."""
    offset: int
    """Byte of the first element, counted from the start of the file."""
    dtype: str
    """Its safetensors code: BF16, F16, F32, F64, F8_E4M3 or F8_E5M2."""
    num_rows: int
    """R; 1 for a tensor of any other shape that is read whole."""
    num_cols: int
    """C, the elements of a row that are read."""
    row_stride: int
    """Elements from the start of a row to the start of the next; ``num_cols`` when nothing lies between."""
    scale: Tensor | None = None
    """Factors of the stored elements, as in `layer_std`, their blocks counted from the first element; None for none."""
    block: Block | None = None
    """Rows and columns that one factor holds for; None where the scale's shape leaves one reading (`split_scale`)."""

    @property
    def end(self) -> int:
        """Byte after the last element."""
        if self.num_rows == 0 or self.num_cols == 0:
            return self.offset
        last = (self.num_rows - 1) * self.row_stride + self.num_cols
        return self.offset + last * BY_CODE[self.dtype].itemsize


def layer_std_file(spans: Sequence[FileSpan], *, correction: int = 1) -> Tensor:
    """Return the standard deviation of the elements of each span: float64 [T].

    Costs one read of each byte (strided rows nearer than 16 KiB to each other are read with what lies between) by
    `torch.get_num_threads()` threads; keeps 0.6 MiB per thread, whatever the size of the files, and maps nothing. Without
    the compiled extension one thread does it, by pieces, in PyTorch.

    Raises:
        ValueError: a span that no file could hold, or one that reaches past the end of its file.
        TypeError: an element type that is not among the six.
        OSError: a file that cannot be found or opened.
        RuntimeError: a file that fails or shrinks while it is read.
    """
    sizes: dict[str, int] = {}
    for i, span in enumerate(spans):
        _check(i, span, sizes)
    if native_available():
        return _layer_std_file_native(spans, correction)
    return torch.tensor([_std_in_pieces(span, correction) for span in spans], dtype=torch.float64)


def _check(index: int, span: FileSpan, sizes: dict[str, int]) -> None:
    if span.dtype not in BY_CODE:
        raise TypeError(f"{span.path}: span {index} has dtype {span.dtype!r}; expected one of {', '.join(BY_CODE)}")
    overlap = span.num_rows > 1 and span.row_stride < span.num_cols
    if min(span.offset, span.num_rows, span.num_cols, span.row_stride) < 0 or overlap:
        raise ValueError(f"{span.path}: span {index}: negative sizes or overlapping rows: {span._replace(scale=None)}")
    if span.path not in sizes:
        sizes[span.path] = Path(span.path).stat().st_size
    if span.end > sizes[span.path]:
        raise ValueError(
            f"{span.path}: span {index} needs bytes {span.offset} to {span.end}, but the file has {sizes[span.path]}; "
            "it was cut short (fetch it again), or its header belongs to another file"
        )


def _layer_std_file_native(spans: Sequence[FileSpan], correction: int, instruction_set: str = "") -> Tensor:
    require_native()
    from modelassay_kernels import _native

    items = []
    factors_T = torch.ones(len(spans), dtype=torch.float64)
    for i, span in enumerate(spans):
        scaled = None
        if is_whole(span.scale, span.block):
            factors_T[i] = whole_factor(span.scale)
        else:
            assert span.scale is not None
            scaled = split_scale((span.num_rows, span.num_cols), span.scale.cpu(), span.block)
        items.append((*span[:6], scaled))
    std_T = torch.empty(len(spans), dtype=torch.float64)
    _native.layer_std_file(items, std_T, correction, torch.get_num_threads(), instruction_set)
    return std_T * factors_T


def _std_in_pieces(span: FileSpan, correction: int) -> float:
    """Merge (count, mean, M2) of pieces in their order, in float64 (Chan, Golub, LeVeque 1979).

    Elements beyond 1e150 overflow here, and only here.
    """
    count, mean, m2 = 0, 0.0, 0.0
    for x_B in _pieces(span):
        piece_mean = float(x_B.mean())
        piece_m2 = float((x_B - piece_mean).square().sum())
        delta = piece_mean - mean
        share = x_B.numel() / (count + x_B.numel())
        mean += delta * share
        m2 += piece_m2 + delta * delta * count * share
        count += x_B.numel()
    return math.sqrt(m2 / (count - correction)) if count > max(correction, 0) else math.nan


def _pieces(span: FileSpan) -> Iterator[Tensor]:
    dtype = BY_CODE[span.dtype]
    if span.num_rows == 0 or span.num_cols == 0:
        return
    scale = None if is_whole(span.scale, span.block) else span.scale
    factor = span.scale.double().item() if span.scale is not None and scale is None else 1.0
    full_scale = split_scale((span.num_rows, span.num_cols), scale, span.block) if scale is not None else None
    if full_scale is None and span.row_stride == span.num_cols:
        span = span._replace(num_rows=1, num_cols=span.num_rows * span.num_cols)
    cols_per_piece = min(span.num_cols, _PIECE_BYTES // dtype.itemsize)
    with Path(span.path).open("rb") as file:
        for row in range(span.num_rows):
            for col in range(0, span.num_cols, cols_per_piece):
                num_cols = min(cols_per_piece, span.num_cols - col)
                file.seek(span.offset + (row * span.row_stride + col) * dtype.itemsize)
                raw = bytearray(file.read(num_cols * dtype.itemsize))
                piece_B = torch.frombuffer(raw, dtype=dtype).double() * factor
                if full_scale is not None:
                    scale_rc, block_rows, block_cols = full_scale
                    cols = torch.arange(col, col + num_cols) // block_cols
                    piece_B = piece_B * scale_rc[row // block_rows, cols].double()
                yield piece_B
