"""Attention and its derivatives on CUDA tensors: launches `triton_kernels`, with the tiles of each head dimension.

The same four functions as `tiled`, for bf16, fp16 and fp32 (float64 goes there). Products are of the inputs'
type with fp32 sums; those of fp32 are split in three tf32 products, which keeps 1e-6. All tangents go in one launch, one
program each: the primal tiles of a program's neighbours come from L2, the scores are computed again. Products per key
and query: forward 2, tangent 5, backward 7 (dQ and dK, dV are launches of their own), its tangent 18.

No GPU has run these kernels yet: they are checked in the interpreter and compiled for sm_80, sm_90 and sm_100.
"""

# B = batch, H = query heads, K = key-value heads, S = queries, J = keys, D = head dimension, T = tangents

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from modelassay_kernels.attention import triton_kernels as kernels
from modelassay_kernels.attention.spans import END, FIRST
from modelassay_kernels.optional_triton import HAS_TRITON, is_interpreted


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """The tile of one kernel."""

    rows: int
    keys: int
    num_warps: int
    num_stages: int


def _tiling(rows: int, keys: int, num_warps: int, num_stages: int) -> Tiling:
    return Tiling(rows=rows, keys=keys, num_warps=num_warps, num_stages=num_stages)


HEAD_BLOCKS = (16, 32, 64, 128, 256)
"""Head dimensions are padded with zeros to the next of these."""

_BIG, _HALF, _MID, _LITTLE = _tiling(64, 64, 8, 2), _tiling(64, 32, 8, 1), _tiling(32, 32, 8, 1), _tiling(16, 16, 4, 1)
TILINGS: dict[str, dict[int, tuple[Tiling, ...]]] = {
    "forward": {2: (_BIG, _BIG, _BIG, _HALF, _HALF), 4: (_MID,) * 4},
    "backward": {2: (_BIG, _BIG, _BIG, _MID, _MID), 4: (_MID, _MID, _MID, _LITTLE)},
    "tangent": {2: (_HALF, _HALF, _HALF, _MID, _MID), 4: (_MID, _MID, _LITTLE, _LITTLE)},
    "backward_tangent": {2: (_HALF, _HALF, _HALF, _MID, _LITTLE), 4: (_LITTLE,) * 4},
}
"""By kernel and bytes of an element, one per padded head dimension: of those that fit 99 KiB of shared memory on every
architecture, the largest that spill few registers when compiled. Not tuned by time: no GPU has run them."""


def tiling(kernel: str, itemsize: int, head_dim: int) -> tuple[Tiling, int]:
    """Return a kernel's tile and the padded head dimension."""
    index = next(i for i, block in enumerate(HEAD_BLOCKS) if head_dim <= block)
    return TILINGS[kernel][itemsize][index], HEAD_BLOCKS[index]


class _Launch:
    """What the launches of one call share."""

    def __init__(
        self, kernel: str, q_BHSD: Tensor, k_BKJD: Tensor, spans_B2S: Tensor, scale: float, softcap: float | None
    ) -> None:
        if not HAS_TRITON:
            raise RuntimeError(
                "attention: CUDA tensors need Triton, which is not installed here; install the `triton` package (Linux "
                "only), or move the tensors to the CPU"
            )
        self.batch, self.heads, self.num_queries, head_dim = q_BHSD.shape
        self.kv_heads, self.num_keys = k_BKJD.shape[1:3]
        self.tile, block_dim = tiling(kernel, q_BHSD.element_size(), head_dim)
        self.spans = spans_B2S.to(device=q_BHSD.device, dtype=torch.int32).contiguous()
        self.lengths = (self.num_queries, self.num_keys, 0 if self.spans.shape[0] == 1 else 2 * self.num_queries)
        self.numbers = (scale, 1.0 if softcap is None else softcap)
        self.constants = {
            "H": self.heads, "K": self.kv_heads, "D": head_dim, "BLOCK_D": block_dim, "N": self.tile.rows,
            "M": self.tile.keys, "CAPPED": softcap is not None, "PRECISION": PRECISION,
            "UPCAST": q_BHSD.dtype == torch.bfloat16 and is_interpreted(kernels.forward_kernel),
        }  # fmt: skip

    @property
    def slabs(self) -> int:
        """Number of query matrices: the dimension that tangents repeat."""
        return self.batch * self.heads

    def over_rows(self, kernel: Any, num_tangents: int, *arguments: Any) -> None:
        """One program for each tile of rows, head and tangent."""
        self._run(kernel, (-(-self.num_queries // self.tile.rows), self.slabs, num_tangents), arguments)

    def over_keys(self, kernel: Any, num_tangents: int, *arguments: Any) -> None:
        """One program for each tile of keys, key-value head and tangent."""
        grid = (-(-self.num_keys // self.tile.keys), self.batch * self.kv_heads, num_tangents)
        self._run(kernel, grid, arguments)

    def _run(self, kernel: Any, grid: tuple[int, int, int], arguments: tuple[Any, ...]) -> None:
        if 0 in grid:
            return
        for limited, what in ((grid[1], "batch * heads"), (grid[2], "tangents")):
            if limited > MAX_GRID:
                raise ValueError(
                    f"attention: {what} = {limited} is above CUDA's grid limit {MAX_GRID}; split the batch"
                )
        kernel[grid](*arguments, **self.constants, num_warps=self.tile.num_warps, num_stages=self.tile.num_stages)

    def query_bounds(self) -> Tensor:
        """The rows [low, high) that see any key of each tile of keys: int32 [1 or B, tiles, 2]."""
        first_BS, end_BS = self.spans[:, FIRST], self.spans[:, END]
        blind_BS = first_BS >= end_BS
        end_BS = end_BS.masked_fill(blind_BS, 0).cummax(-1).values
        first_BS = first_BS.masked_fill(blind_BS, self.num_keys).flip(-1).cummin(-1).values.flip(-1)
        start = torch.arange(0, self.num_keys, self.tile.keys, dtype=torch.int32, device=self.spans.device)
        stop = (start + self.tile.keys).clamp(max=self.num_keys)
        starts, stops = (x.expand(self.spans.shape[0], -1).contiguous() for x in (start, stop))
        low = torch.searchsorted(end_BS.contiguous(), starts, right=True)
        high = torch.searchsorted(first_BS.contiguous(), stops, right=False)
        return torch.stack([low, high], dim=-1).to(torch.int32).contiguous()


PRECISION = "tf32x3"
"""How fp32 is multiplied: split in three products of tf32."""
MAX_GRID = 65535
"""CUDA's limit on the second and third dimension of a grid."""


def _row_dots(a: Tensor, b: Tensor) -> Tensor:
    return (a.float() * b.float()).sum(-1)


def forward(
    q_BHSD: Tensor, k_BKJD: Tensor, v_BKJD: Tensor, spans_B2S: Tensor, scale: float, softcap: float | None
) -> tuple[Tensor, Tensor]:
    """As `tiled.forward`."""
    q, k, v = (x.contiguous() for x in (q_BHSD, k_BKJD, v_BKJD))
    launch = _Launch("forward", q, k, spans_B2S, scale, softcap)
    o_BHSD, lse_BHS = torch.empty_like(q), torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
    launch.over_rows(
        kernels.forward_kernel, 1, q, k, v, launch.spans, o_BHSD, lse_BHS, *launch.lengths, *launch.numbers
    )
    return o_BHSD, lse_BHS


def backward(
    q_BHSD: Tensor,
    k_BKJD: Tensor,
    v_BKJD: Tensor,
    spans_B2S: Tensor,
    o_BHSD: Tensor,
    lse_BHS: Tensor,
    g_BHSD: Tensor,
    scale: float,
    softcap: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `tiled.backward`; dQ in one launch, dK and dV in another."""
    q, k, v, lse, g = (x.contiguous() for x in (q_BHSD, k_BKJD, v_BKJD, lse_BHS, g_BHSD))
    launch = _Launch("backward", q, k, spans_B2S, scale, softcap)
    d_BHS = _row_dots(g, o_BHSD)
    dq, dk, dv = (torch.empty_like(x) for x in (q, k, v))
    launch.over_rows(
        kernels.backward_q_kernel, 1,
        q, k, v, launch.spans, lse, g, d_BHS, dq, *launch.lengths, *launch.numbers,
    )  # fmt: skip
    bounds = launch.query_bounds()
    launch.over_keys(
        kernels.backward_kv_kernel, 1,
        q, k, v, launch.spans, bounds, lse, g, d_BHS, dk, dv, *launch.lengths, _batch_stride(bounds), *launch.numbers,
    )  # fmt: skip
    return dq, dk, dv


def _batch_stride(bounds: Tensor) -> int:
    return 0 if bounds.shape[0] == 1 else bounds[0].numel()


def tangent(
    q_BHSD: Tensor,
    k_BKJD: Tensor,
    v_BKJD: Tensor,
    spans_B2S: Tensor,
    o_BHSD: Tensor,
    lse_BHS: Tensor,
    q_dot: Tensor,
    k_dot: Tensor,
    v_dot: Tensor,
    scale: float,
    softcap: float | None,
) -> tuple[Tensor, Tensor]:
    """As `tiled.tangent`."""
    q, k, v, o, lse = (x.contiguous() for x in (q_BHSD, k_BKJD, v_BKJD, o_BHSD, lse_BHS))
    dots = [x.contiguous() for x in (q_dot, k_dot, v_dot)]
    launch = _Launch("tangent", q, k, spans_B2S, scale, softcap)
    dot_o, mu = torch.empty_like(dots[0]), torch.empty(dots[0].shape[:4], dtype=torch.float32, device=q.device)
    launch.over_rows(
        kernels.tangent_kernel, dot_o.shape[0],
        q, k, v, launch.spans, o, lse, *dots, dot_o, mu, *launch.lengths, launch.slabs, *launch.numbers,
    )  # fmt: skip
    return dot_o, mu


def backward_tangent(
    q_BHSD: Tensor,
    k_BKJD: Tensor,
    v_BKJD: Tensor,
    spans_B2S: Tensor,
    o_BHSD: Tensor,
    lse_BHS: Tensor,
    g_BHSD: Tensor,
    q_dot: Tensor,
    k_dot: Tensor,
    v_dot: Tensor,
    o_dot: Tensor,
    lse_dot: Tensor,
    g_dot: Tensor | None,
    scale: float,
    softcap: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `tiled.backward_tangent`; dQ' in one launch, dK' and dV' in another. Multiplies by a G' of zeros too."""
    g_dot = torch.zeros_like(q_dot) if g_dot is None else g_dot
    q, k, v, lse, g = (x.contiguous() for x in (q_BHSD, k_BKJD, v_BKJD, lse_BHS, g_BHSD))
    dots = [x.contiguous() for x in (q_dot, k_dot, v_dot, g_dot)]
    launch = _Launch("backward_tangent", q, k, spans_B2S, scale, softcap)
    d_BHS = _row_dots(g, o_BHSD)
    rows = (*dots, lse_dot.contiguous(), _row_dots(g_dot, o_BHSD) + _row_dots(g, o_dot))
    dq, dk, dv = (torch.empty_like(x) for x in dots[:3])
    launch.over_rows(
        kernels.backward_tangent_q_kernel, dq.shape[0],
        q, k, v, launch.spans, lse, g, d_BHS, *rows, dq, *launch.lengths, launch.slabs, *launch.numbers,
    )  # fmt: skip
    bounds = launch.query_bounds()
    launch.over_keys(
        kernels.backward_tangent_kv_kernel, dq.shape[0],
        q, k, v, launch.spans, bounds, lse, g, d_BHS, *rows, dk, dv,
        *launch.lengths, _batch_stride(bounds), launch.slabs, *launch.numbers,
    )  # fmt: skip
    return dq, dk, dv
