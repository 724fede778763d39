"""Attention and its derivatives on CUDA tensors: launches `triton_kernels`, with the tiles of each head dimension.

The same four functions as `tiled`, for bf16, fp16 and fp32 (float64 goes there). Products are of the inputs'
type with fp32 sums; those of fp32 are split in three tf32 products, which keeps 1e-6. All tangents go in one launch, one
program each: the primal tiles of a program's neighbours come from L2, the scores are computed again. Products per key
and query: forward 2, tangent 5, backward 7 (dQ and dK, dV are launches of their own), its tangent 18 or, where dK' and dV' are too, 21.

No GPU has run these kernels yet: they are checked in the interpreter and compiled for sm_80, sm_90 and sm_100.
"""

# B = batch, H = query heads, K = key-value heads, S = queries, J = keys, D = head dimension, T = tangents

from __future__ import annotations

import weakref
from collections import deque
from typing import Any

import torch
from torch import Tensor

from modelassay_kernels.attention import triton_kernels as kernels
from modelassay_kernels.attention.tilings import tiling
from modelassay_kernels.attention.triton_preludes import bounds_kernel, row_dots_kernel
from modelassay_kernels.optional_triton import HAS_TRITON, is_interpreted

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

    def over_rows(self, kernel: Any, num_tangents: int, *arguments: Any) -> None:
        """One program for each tile of rows, head and tangent."""
        tile = self._tile(kernel)
        self._run(kernel, (-(-self.num_queries // tile.rows), self.slabs, num_tangents), arguments)

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
        bounds = _remembered(self.spans, self.num_keys, tile)
        if bounds is None:
            bounds = torch.empty(self.spans.shape[0], num_tiles, 2, dtype=torch.int32, device=self.spans.device)
            if bounds.numel():
                bounds_kernel[(num_tiles, self.spans.shape[0])](
                    self.spans, bounds, *self.lengths, M=tile, BLOCK=BOUND_ROWS, num_warps=4
                )
            _remember(self.spans, self.num_keys, tile, bounds)
        return bounds, 0 if bounds.shape[0] == 1 else 2 * num_tiles

    def row_dots(self, g: Tensor, o: Tensor) -> Tensor:
        """D = rowsum(G * O) in fp32."""
        d_BHS = torch.empty(g.shape[:3], dtype=torch.float32, device=g.device)
        self._row_dots(1, g, o, g, o, d_BHS, d_BHS, tangents=False)
        return d_BHS

    def row_dot_tangents(self, g: Tensor, o: Tensor, g_dot: Tensor, o_dot: Tensor) -> tuple[Tensor, Tensor]:
        """D, and D' = rowsum(G' * O + G * O') of each tangent."""
        d_BHS, dot_d = (torch.empty(x.shape[:-1], dtype=torch.float32, device=g.device) for x in (g, g_dot))
        self._row_dots(g_dot.shape[0], g, o, g_dot, o_dot, d_BHS, dot_d, tangents=True)
        return d_BHS, dot_d

    def _row_dots(self, num_tangents: int, *tensors: Tensor, tangents: bool) -> None:
        num_rows, block_dim = (
            self.slabs * self.num_queries,
            tiling("", self.itemsize, self.head_dim, self.capability)[1],
        )
        if num_rows and num_tangents:
            row_dots_kernel[(-(-num_rows // DOT_ROWS), num_tangents)](
                *tensors, num_rows, TANGENTS=tangents, D=self.head_dim, BLOCK_D=block_dim, N=DOT_ROWS, num_warps=4
            )


_bounds: deque[tuple[weakref.ref[Tensor], tuple[int, int, int], Tensor]] = deque(maxlen=16)
"""The last spans whose bounds were made: the tensor, (its version, number of keys, keys of a tile), and the bounds."""


def _remembered(spans_B2S: Tensor, num_keys: int, tile: int) -> Tensor | None:
    if spans_B2S.is_inference():  # such tensors have no version
        return None
    key = (spans_B2S._version, num_keys, tile)
    return next((bounds for ref, of, bounds in _bounds if of == key and ref() is spans_B2S), None)


def _remember(spans_B2S: Tensor, num_keys: int, tile: int, bounds: Tensor) -> None:
    if not spans_B2S.is_inference():
        _bounds.append((weakref.ref(spans_B2S), (spans_B2S._version, num_keys, tile), bounds))


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
    """As `tiled.backward_tangent`; dQ' in one call, dK' and dV' in another. Multiplies by a G' of zeros too."""
    g_dot = torch.zeros_like(q_dot) if g_dot is None else g_dot
    q, k, v, o, lse, g = (x.contiguous() for x in (q_BHSD, k_BKJD, v_BKJD, o_BHSD, lse_BHS, g_BHSD))
    dots = [x.contiguous() for x in (q_dot, k_dot, v_dot, g_dot)]
    call = _Call(q, k, spans_B2S, scale, softcap)
    d_BHS, dot_d = call.row_dot_tangents(g, o, dots[3], o_dot.contiguous())
    rows = (*dots, lse_dot.contiguous(), dot_d)
    dq, dk, dv = (torch.empty_like(x) for x in dots[:3])
    call.over_rows(
        kernels.backward_tangent_q_kernel, dq.shape[0],
        q, k, v, call.spans, lse, g, d_BHS, *rows, dq, *call.lengths, call.slabs,
    )  # fmt: skip
    kernel = kernels.backward_tangent_kv_kernel
    bounds, bound_stride = call.query_bounds(kernel)
    for wanted in ((True, False), (False, True)) if call.splits(kernel) else ((True, True),):
        call.over_keys(
            kernel, dq.shape[0],
            q, k, v, call.spans, bounds, lse, g, d_BHS, *rows, dk, dv, *call.lengths, bound_stride, call.slabs,
            DK=wanted[0], DV=wanted[1],
        )  # fmt: skip
    return dq, dk, dv
