"""What the passes of attention need of their inputs before they begin, each in one launch: row dots, and bounds of queries."""

# B = batch, S = queries, D = head dimension, T = tangents, N = rows of one tile

from __future__ import annotations

from modelassay_kernels.optional_triton import jit, tl


@jit(do_not_specialize=("num_rows",))
def row_dots_kernel(g_ptr, o_ptr, dot_g_ptr, dot_o_ptr, d_ptr, dot_d_ptr, num_rows, TANGENTS: tl.constexpr,  # type: ignore[no-untyped-def]
                    DOT_G: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, N: tl.constexpr):  # fmt: skip
    """D = rowsum(G * O) of a tile of rows and, with TANGENTS, D' = rowsum(G' * O + G * O') along one tangent, G' zero without DOT_G."""
    t = tl.program_id(1).to(tl.int64)
    rows = tl.program_id(0).to(tl.int64) * N + tl.arange(0, N)
    cols = tl.arange(0, BLOCK_D)
    inside = (rows < num_rows)[:, None] & (cols < D)[None, :]
    at = rows[:, None] * D + cols[None, :]
    g_ND = tl.load(g_ptr + at, mask=inside, other=0.0).to(tl.float32)
    o_ND = tl.load(o_ptr + at, mask=inside, other=0.0).to(tl.float32)
    if TANGENTS:
        dot_at = t * num_rows * D + at
        dot_d_ND = g_ND * tl.load(dot_o_ptr + dot_at, mask=inside, other=0.0).to(tl.float32)
        if DOT_G:
            dot_d_ND += o_ND * tl.load(dot_g_ptr + dot_at, mask=inside, other=0.0).to(tl.float32)
        tl.store(dot_d_ptr + t * num_rows + rows, tl.sum(dot_d_ND, 1), mask=rows < num_rows)
    tl.store(d_ptr + rows, tl.sum(g_ND * o_ND, 1), mask=(rows < num_rows) & (t == 0))


@jit(do_not_specialize=("num_queries", "num_keys", "span_stride"))
def bounds_kernel(spans_ptr, bounds_ptr, num_queries, num_keys, span_stride, M: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """bounds[sequence, tile] = rows [low, high) outside which none sees a key of one tile of M keys; [0, 0) if none does."""
    tile, sequence = tl.program_id(0), tl.program_id(1).to(tl.int64)
    spans_ptr += sequence * span_stride
    begin = tile * M
    stop = tl.minimum(begin + M, num_keys)
    low_B = tl.full([BLOCK], 0x7FFFFFFF, tl.int32)
    high_B = tl.zeros([BLOCK], tl.int32)
    for start in range(0, num_queries, BLOCK):
        row_B = start + tl.arange(0, BLOCK)
        first_B = tl.load(spans_ptr + row_B, mask=row_B < num_queries, other=0)
        end_B = tl.load(spans_ptr + num_queries + row_B, mask=row_B < num_queries, other=0)
        sees_B = (first_B < end_B) & (first_B < stop) & (end_B > begin)
        low_B = tl.minimum(low_B, tl.where(sees_B, row_B, 0x7FFFFFFF))
        high_B = tl.maximum(high_B, tl.where(sees_B, row_B + 1, 0))
    high = tl.max(high_B)
    at = bounds_ptr + (sequence * tl.num_programs(0) + tile) * 2
    tl.store(at, tl.where(high > 0, tl.min(low_B), 0))
    tl.store(at + 1, high)
