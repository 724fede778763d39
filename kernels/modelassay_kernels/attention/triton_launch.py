"""Attention and its derivatives on CUDA tensors: launches `triton_kernels`, with the tiles of each head dimension.

The same four functions as `tiled`, for bf16, fp16 and fp32 (float64 goes there). Products are of the inputs'
type with fp32 sums; those of fp32 are split in three tf32 products, which keeps 1e-6. All tangents go in one launch, one
program each: the primal tiles of a program's neighbours come from L2, the scores are computed again.

Products per key and query, those that the formulas need in brackets: forward 2 (2), tangent 5 (5), backward 7 (5), its tangent 18
(12), or 15 (10) where G is held; 32 (24) for a Hessian-vector product, of which 9 (7) are once for all vectors on one graph. What is
done twice are scores and G V^T, with their tangents: dQ is the sum over keys, dK and dV are over queries, and a program that gave all
three would add to a dQ that others add to, in no fixed order, or keep one for every tile of keys. Where dK' and dV' have a launch
each, because one has too few registers for both, a tangent of the backward pass does 21.

No GPU has run these kernels yet: they are checked in the interpreter and compiled for sm_80, sm_90 and sm_100.
"""

# B = batch, H = query heads, K = key-value heads, S = queries, J = keys, D = head dimension, T = tangents

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from modelassay_kernels.attention import triton_kernels as kernels
from modelassay_kernels.attention.tilings import tiling
from modelassay_kernels.attention.triton_preludes import bounds_kernel, row_dots_kernel
from modelassay_kernels.optional_triton import HAS_TRITON, is_interpreted
from modelassay_kernels.products import capturing, stream_of
from modelassay_kernels.remembered import Remembered

PRECISION = "tf32x3"
"""How fp32 is multiplied: split in three products of tf32."""
MAX_GRID = 65535
"""CUDA's limit on the second and third dimension of a grid."""
DOT_ROWS, BOUND_ROWS = 32, 1024
"""Rows of one tile of the two preludes."""


class _Call:
    """What the launches of one call share."""

    def __init__(self, q_BHSD: Tensor, k_BKJD: Tensor, spans_B2S: Tensor, scale: float, softcap: float | None) -> None:
        if not HAS_TRITON:
            raise RuntimeError(
                "attention: CUDA tensors need Triton, which is not installed here; install the `triton` package (Linux "
                "only), or move the tensors to the CPU"
            )
        self.batch, self.heads, self.num_queries, self.head_dim = q_BHSD.shape
        self.kv_heads, self.num_keys = k_BKJD.shape[1:3]
        self.itemsize = q_BHSD.element_size()
        self.capability = torch.cuda.get_device_capability(q_BHSD.device) if q_BHSD.is_cuda else (8, 0)
        self.spans = spans_B2S.to(device=q_BHSD.device, dtype=torch.int32).contiguous()
        self.lengths = (self.num_queries, self.num_keys, 0 if self.spans.shape[0] == 1 else 2 * self.num_queries)
        self.groups = (self.heads, self.heads // self.kv_heads)
        self.numbers = (scale, 1.0 if softcap is None else softcap)
        self.constants = {
            "CAPPED": softcap is not None, "PRECISION": PRECISION,
            "UPCAST": q_BHSD.dtype == torch.bfloat16 and is_interpreted(kernels.forward_kernel),
        }  # fmt: skip

    @property
    def slabs(self) -> int:
        """Number of query matrices: the dimension that tangents repeat."""
        return self.batch * self.heads

    def over_rows(self, kernel: Any, num_tangents: int, *arguments: Any, **constants: bool) -> None:
        """One program for each tile of rows, head and tangent."""
        tile = self._tile(kernel)
        self._run(kernel, (-(-self.num_queries // tile.rows), self.slabs, num_tangents), arguments, **constants)

    def over_keys(self, kernel: Any, num_tangents: int, *arguments: Any, **constants: bool) -> None:
        """One program for each tile of keys, key-value head and tangent."""
        tile = self._tile(kernel)
        grid = (-(-self.num_keys // tile.keys), self.batch * self.kv_heads, num_tangents)
        self._run(kernel, grid, arguments, **constants)

    def _tile(self, kernel: Any) -> Any:
        return tiling(kernel.__name__, self.itemsize, self.head_dim, self.capability)[0]

    def splits(self, kernel: Any) -> bool:
        """Whether a kernel's results are computed in a launch each."""
        return bool(self._tile(kernel).split)

    def _run(self, kernel: Any, grid: tuple[int, int, int], arguments: tuple[Any, ...], **constants: bool) -> None:
        if 0 in grid:
            return
        for limited, what in ((grid[1], "batch * heads"), (grid[2], "tangents")):
            if limited > MAX_GRID:
                raise ValueError(
                    f"attention: {what} = {limited} is above CUDA's grid limit {MAX_GRID}; split the batch"
                )
        tile, block_dim = tiling(kernel.__name__, self.itemsize, self.head_dim, self.capability)
        kernel[grid](
            *arguments, *self.groups, *self.numbers, D=self.head_dim, BLOCK_D=block_dim, N=tile.rows, M=tile.keys,
            **constants, **self.constants, num_warps=tile.num_warps, num_stages=tile.num_stages,
        )  # fmt: skip

    def query_bounds(self, kernel: Any) -> tuple[Tensor, int]:
        """The rows [low, high) that see any key of each tile of keys: int32 [1 or B, tiles, 2], and its batch's stride.

        Made once for spans that several layers and passes share.
        """
        tile = self._tile(kernel).keys
        num_tiles = -(-self.num_keys // tile)
        device = self.spans.device
        key = (self.num_keys, tile, stream_of(device))
        bounds = _bounds.get(self.spans, key)
        if bounds is None:
            bounds = torch.empty(self.spans.shape[0], num_tiles, 2, dtype=torch.int32, device=device)
            if bounds.numel():
                bounds_kernel[(num_tiles, self.spans.shape[0])](
                    self.spans, bounds, *self.lengths, M=tile, BLOCK=BOUND_ROWS, num_warps=4
                )
            if not capturing(device):  # then they are there only when the graph is replayed
                _bounds.put(self.spans, key, bounds)
        return bounds, 0 if bounds.shape[0] == 1 else 2 * num_tiles

    def row_dots(self, g: Tensor, o: Tensor) -> Tensor:
        """D = rowsum(G * O) in fp32."""
        d_BHS = torch.empty(g.shape[:3], dtype=torch.float32, device=g.device)
        self._row_dots(1, g, o, g, o, d_BHS, d_BHS, TANGENTS=False, DOT_G=False)
        return d_BHS

    def row_dot_tangents(self, g: Tensor, o: Tensor, g_dot: Tensor | None, o_dot: Tensor) -> tuple[Tensor, Tensor]:
        """D, and D' = rowsum(G' * O + G * O') of each tangent; ``g_dot`` None: G' = 0."""
        d_BHS, dot_d = (torch.empty(x.shape[:-1], dtype=torch.float32, device=g.device) for x in (g, o_dot))
        tensors = (g, o, o_dot if g_dot is None else g_dot, o_dot, d_BHS, dot_d)
        self._row_dots(o_dot.shape[0], *tensors, TANGENTS=True, DOT_G=g_dot is not None)
        return d_BHS, dot_d

    def _row_dots(self, num_tangents: int, *tensors: Tensor, **constants: bool) -> None:
        num_rows, block_dim = (
            self.slabs * self.num_queries,
            tiling("", self.itemsize, self.head_dim, self.capability)[1],
        )
        if num_rows and num_tangents:
            row_dots_kernel[(-(-num_rows // DOT_ROWS), num_tangents)](
                *tensors, num_rows, **constants, D=self.head_dim, BLOCK_D=block_dim, N=DOT_ROWS, num_warps=4
            )


_bounds = Remembered[Tensor]()
"""The bounds of spans, by (number of keys, keys of a tile, stream)."""


def forward(
    q_BHSD: Tensor, k_BKJD: Tensor, v_BKJD: Tensor, spans_B2S: Tensor, scale: float, softcap: float | None
) -> tuple[Tensor, Tensor]:
    """As `tiled.forward`."""
    q, k, v = (x.contiguous() for x in (q_BHSD, k_BKJD, v_BKJD))
    call = _Call(q, k, spans_B2S, scale, softcap)
    o_BHSD, lse_BHS = torch.empty_like(q), torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
    call.over_rows(kernels.forward_kernel, 1, q, k, v, call.spans, o_BHSD, lse_BHS, *call.lengths)
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
    """As `tiled.backward`; dQ in one call, dK and dV in another."""
    q, k, v, o, lse, g = (x.contiguous() for x in (q_BHSD, k_BKJD, v_BKJD, o_BHSD, lse_BHS, g_BHSD))
    call = _Call(q, k, spans_B2S, scale, softcap)
    d_BHS = call.row_dots(g, o)
    dq, dk, dv = (torch.empty_like(x) for x in (q, k, v))
    call.over_rows(
        kernels.backward_q_kernel, 1,
        q, k, v, call.spans, lse, g, d_BHS, dq, *call.lengths,
    )  # fmt: skip
    bounds, bound_stride = call.query_bounds(kernels.backward_kv_kernel)
    call.over_keys(
        kernels.backward_kv_kernel, 1,
        q, k, v, call.spans, bounds, lse, g, d_BHS, dk, dv, *call.lengths, bound_stride,
    )  # fmt: skip
    return dq, dk, dv


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
    call = _Call(q, k, spans_B2S, scale, softcap)
    dot_o, mu = torch.empty_like(dots[0]), torch.empty(dots[0].shape[:4], dtype=torch.float32, device=q.device)
    call.over_rows(
        kernels.tangent_kernel, dot_o.shape[0],
        q, k, v, call.spans, o, lse, *dots, dot_o, mu, *call.lengths, call.slabs,
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
    """As `tiled.backward_tangent`; dQ' in one call, dK' and dV' in another."""
    q, k, v, o, lse, g = (x.contiguous() for x in (q_BHSD, k_BKJD, v_BKJD, o_BHSD, lse_BHS, g_BHSD))
    dots = [x.contiguous() for x in (q_dot, k_dot, v_dot)]
    moves_g, g_dot = g_dot is not None, None if g_dot is None else g_dot.contiguous()
    call = _Call(q, k, spans_B2S, scale, softcap)
    d_BHS, dot_d = call.row_dot_tangents(g, o, g_dot, o_dot.contiguous())
    rows = (*dots, dots[0] if g_dot is None else g_dot, lse_dot.contiguous(), dot_d)
    dq, dk, dv = (torch.empty_like(x) for x in dots)
    call.over_rows(
        kernels.backward_tangent_q_kernel, dq.shape[0],
        q, k, v, call.spans, lse, g, d_BHS, *rows, dq, *call.lengths, call.slabs, DOT_G=moves_g,
    )  # fmt: skip
    kernel = kernels.backward_tangent_kv_kernel
    bounds, bound_stride = call.query_bounds(kernel)
    for wanted in ((True, False), (False, True)) if call.splits(kernel) else ((True, True),):
        call.over_keys(
            kernel, dq.shape[0],
            q, k, v, call.spans, bounds, lse, g, d_BHS, *rows, dk, dv, *call.lengths, bound_stride, call.slabs,
            DK=wanted[0], DV=wanted[1], DOT_G=moves_g,
        )  # fmt: skip
    return dq, dk, dv
