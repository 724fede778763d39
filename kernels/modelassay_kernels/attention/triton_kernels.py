"""The Triton kernels of attention: forward, backward and the tangents of both; `triton_launch` launches them.

A program owns a tile of rows and walks over the tiles of the other side that its spans touch, so no result is written
twice and no atomics are needed: equal inputs give equal bits. Scores are kept in units of log 2, sums in fp32. With a soft
cap, slope is the derivative of the cap, sech^2, which keeps its digits where 1 - tanh^2 loses all, and the scores' tangents
are those after it.
"""

# B = batch, H = query heads, K = key-value heads, S = queries, J = keys, D = head dimension, T = tangents
# N = query rows of one tile, M = keys of one tile

from __future__ import annotations

from modelassay_kernels.optional_triton import constexpr, jit, tl

LOG2_E = constexpr(1.4426950408889634)
NO_KEY = constexpr(2**31 - 1)
RUNTIME = ("num_queries", "num_keys", "span_stride", "bound_stride", "heads", "group", "batch_heads")
"""Integers that must not start a compilation of their own when they are 1 or divisible by 16."""


@jit()
def _slabs(heads, group):  # type: ignore[no-untyped-def]
    """The query matrix, the sequence and the key-value matrix of a program; `group` query heads share one of these."""
    slab = tl.program_id(1)
    return slab.to(tl.int64), (slab // heads).to(tl.int64), (slab // group).to(tl.int64)


@jit()
def _rows(N: tl.constexpr):  # type: ignore[no-untyped-def]
    """The rows of a program, the last first: with causal spans they see most keys, and long work should not begin last."""
    return (tl.num_programs(0) - 1 - tl.program_id(0)) * N + tl.arange(0, N)


@jit()
def _load_tile(ptr, slab, rows, num_rows, D: tl.constexpr, BLOCK_D: tl.constexpr, UPCAST: tl.constexpr):  # type: ignore[no-untyped-def]
    """Rows of the slab-th matrix [num_rows, D], zero outside it."""
    return _load_part(ptr, slab, rows, num_rows, 0, num_rows, D, BLOCK_D, UPCAST)


@jit()
def _load_part(ptr, slab, rows, num_rows, low, high, D: tl.constexpr, BLOCK_D: tl.constexpr, UPCAST: tl.constexpr):  # type: ignore[no-untyped-def]
    """As `_load_tile`, zero also outside rows [low, high): zero probabilities would not hide a NaN."""
    cols = tl.arange(0, BLOCK_D)
    inside = ((rows >= low) & (rows < high))[:, None] & (cols[None, :] < D)
    offsets = (slab * num_rows + rows.to(tl.int64))[:, None] * D + cols[None, :]
    tile = tl.load(ptr + offsets, mask=inside, other=0.0)
    if UPCAST:  # the interpreter computes on bfloat16's bits
        tile = tile.to(tl.float32)
    return tile


@jit()
def _store_tile(ptr, slab, rows, num_rows, tile, D: tl.constexpr, BLOCK_D: tl.constexpr):  # type: ignore[no-untyped-def]
    cols = tl.arange(0, BLOCK_D)
    inside = (rows[:, None] < num_rows) & (cols[None, :] < D)
    offsets = (slab * num_rows + rows.to(tl.int64))[:, None] * D + cols[None, :]
    tl.store(ptr + offsets, tile.to(ptr.dtype.element_ty), mask=inside)


@jit()
def _load_spans(spans_ptr, batch, rows, num_queries, span_stride):  # type: ignore[no-untyped-def]
    """First and end key of each row; (NO_KEY, 0) where it sees none."""
    at = spans_ptr + batch * span_stride + rows
    first = tl.load(at, mask=rows < num_queries, other=0)
    end = tl.load(at + num_queries, mask=rows < num_queries, other=0)
    blind = first >= end
    return tl.where(blind, NO_KEY, first), tl.where(blind, 0, end)


@jit()
def _dot(a, b, PRECISION: tl.constexpr):  # type: ignore[no-untyped-def]
    return tl.dot(a, b, input_precision=PRECISION)


@jit()
def _cap(s_NM, scale, softcap, CAPPED: tl.constexpr):  # type: ignore[no-untyped-def]
    """Scale and cap raw products; return scores in units of log 2, and the cap's tanh and slope (without a cap the scores)."""
    if CAPPED:
        x_NM = s_NM * (scale / softcap)
        e_NM = tl.exp2(tl.abs(x_NM) * (-2.0 * LOG2_E))
        inverse_NM = 1.0 / (1.0 + e_NM)
        size_NM = (1.0 - e_NM) * inverse_NM
        tanh_NM = tl.where(x_NM < 0.0, -size_NM, size_NM)
        slope_NM = 4.0 * e_NM * inverse_NM * inverse_NM
        s_NM = tanh_NM * (softcap * LOG2_E)
    else:
        s_NM = s_NM * (scale * LOG2_E)
        tanh_NM = s_NM
        slope_NM = s_NM
    return s_NM, tanh_NM, slope_NM


@jit()
def _product(rows_ND, keys_MD, KEYS_FIRST: tl.constexpr, PRECISION: tl.constexpr):  # type: ignore[no-untyped-def]
    """Products of all rows with all keys, [N, M], or [M, N]: so that what sums over rows has its factor in registers."""
    first = keys_MD if KEYS_FIRST else rows_ND
    second = rows_ND if KEYS_FIRST else keys_MD
    return _dot(first, tl.trans(second), PRECISION)


@jit()
def _by_row(x_N, KEYS_FIRST: tl.constexpr):  # type: ignore[no-untyped-def]
    """A number of each row, beside the products."""
    return tl.expand_dims(x_N, 0 if KEYS_FIRST else 1)


@jit()
def _probabilities(  # type: ignore[no-untyped-def]
    q_ND, k_MD, lse_N, first_N, end_N, keys, scale, softcap, KEYS_FIRST: tl.constexpr, CAPPED: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """P = exp(S - lse), zero where a key is not seen, and the cap's tanh and slope."""
    s, tanh, slope = _cap(_product(q_ND, k_MD, KEYS_FIRST, PRECISION), scale, softcap, CAPPED)
    key = tl.expand_dims(keys, 1 if KEYS_FIRST else 0)
    seen = (key >= _by_row(first_N, KEYS_FIRST)) & (key < _by_row(end_N, KEYS_FIRST))
    return tl.where(seen, tl.exp2(s - _by_row(lse_N * LOG2_E, KEYS_FIRST)), 0.0), tanh, slope


@jit()
def _forward_tile(  # type: ignore[no-untyped-def]
    q_ND, k_ptr, v_ptr, kv_slab, start, num_keys, low, high, first_N, end_N, m_N, l_N, a_ND, scale, softcap, EDGE: tl.constexpr,
    D: tl.constexpr, BLOCK_D: tl.constexpr, M: tl.constexpr, CAPPED: tl.constexpr, UPCAST: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """The running maximum, sum and products after one more tile of keys, which at an EDGE not every row sees whole.

    Without a cap maxima are of the raw products, which exp2's argument is scaled from in one step: scale is positive.
    """
    keys = start + tl.arange(0, M)
    k_MD = _load_part(k_ptr, kv_slab, keys, num_keys, low, high, D, BLOCK_D, UPCAST)
    v_MD = _load_part(v_ptr, kv_slab, keys, num_keys, low, high, D, BLOCK_D, UPCAST)
    s_NM = _dot(q_ND, tl.trans(k_MD), PRECISION)
    unit = scale * LOG2_E
    if CAPPED:
        s_NM, _, _ = _cap(s_NM, scale, softcap, CAPPED)
        unit = 1.0
    if EDGE:
        seen_NM = (keys[None, :] >= first_N[:, None]) & (keys[None, :] < end_N[:, None])
        s_NM = tl.where(seen_NM, s_NM, float("-inf"))
    new_N = tl.maximum(m_N, tl.max(s_NM, 1))
    safe_N = tl.where(new_N == float("-inf"), 0.0, new_N) * unit  # a row may see nothing of this tile
    p_NM = tl.exp2(s_NM * unit - safe_N[:, None])
    shrink_N = tl.exp2(m_N * unit - safe_N)
    l_N = l_N * shrink_N + tl.sum(p_NM, 1)
    a_ND = a_ND * shrink_N[:, None] + _dot(p_NM.to(v_MD.dtype), v_MD, PRECISION)
    return new_N, l_N, a_ND


@jit(do_not_specialize=RUNTIME)
def forward_kernel(  # type: ignore[no-untyped-def]
    q_ptr, k_ptr, v_ptr, spans_ptr, o_ptr, lse_ptr,
    num_queries, num_keys, span_stride, heads, group, scale, softcap,
    D: tl.constexpr, BLOCK_D: tl.constexpr,
    N: tl.constexpr, M: tl.constexpr, CAPPED: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """O and lse of one tile of rows, over its keys with a running maximum: first those that all rows see, then the edges."""
    slab, batch, kv_slab = _slabs(heads, group)
    rows = _rows(N)
    first_N, end_N = _load_spans(spans_ptr, batch, rows, num_queries, span_stride)
    q_ND = _load_tile(q_ptr, slab, rows, num_queries, D, BLOCK_D, UPCAST)
    size = tl.where(scale == 0.0, 1.0, tl.abs(scale))
    if scale <= 0.0:  # the maximum of a row is that of its products, so their factor is positive; exact
        q_ND = (q_ND * tl.where(scale < 0.0, -1.0, 0.0)).to(q_ND.dtype)
    m_N = tl.full([N], float("-inf"), tl.float32)
    l_N = tl.zeros([N], tl.float32)
    a_ND = tl.zeros([N, BLOCK_D], tl.float32)
    low, high = tl.min(first_N), tl.max(end_N)
    begin = low // M * M
    whole = tl.minimum((tl.minimum(tl.max(first_N), high) + M - 1) // M * M, high)
    whole_end = tl.maximum(tl.min(end_N) // M * M, whole)
    for start in range(whole, whole_end, M):
        m_N, l_N, a_ND = _forward_tile(
            q_ND, k_ptr, v_ptr, kv_slab, start, num_keys, low, high, first_N, end_N, m_N, l_N, a_ND, size, softcap, False,
            D, BLOCK_D, M, CAPPED, UPCAST, PRECISION,
        )  # fmt: skip
    for edge in range(begin, high - (whole_end - whole), M):
        start = tl.where(edge < whole, edge, edge + (whole_end - whole))
        m_N, l_N, a_ND = _forward_tile(
            q_ND, k_ptr, v_ptr, kv_slab, start, num_keys, low, high, first_N, end_N, m_N, l_N, a_ND, size, softcap, True,
            D, BLOCK_D, M, CAPPED, UPCAST, PRECISION,
        )  # fmt: skip
    blind_N = first_N >= end_N
    l_N = tl.where(blind_N, 1.0, l_N)
    _store_tile(o_ptr, slab, rows, num_queries, a_ND / l_N[:, None], D, BLOCK_D)
    log2_N = (m_N if CAPPED else m_N * (size * LOG2_E)) + tl.log2(l_N)
    tl.store(
        lse_ptr + slab * num_queries + rows, tl.where(blind_N, float("inf"), log2_N / LOG2_E), mask=rows < num_queries
    )


@jit(do_not_specialize=RUNTIME)
def tangent_kernel(  # type: ignore[no-untyped-def]
    q_ptr, k_ptr, v_ptr, spans_ptr, o_ptr, lse_ptr, dot_q_ptr, dot_k_ptr, dot_v_ptr, dot_o_ptr, mu_ptr,
    num_queries, num_keys, span_stride, batch_heads, heads, group, scale, softcap,
    D: tl.constexpr, BLOCK_D: tl.constexpr,
    N: tl.constexpr, M: tl.constexpr, CAPPED: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """O' = (P * S') V + P V' - mu O and mu = rowsum(P * S') of one tile of rows, along one tangent."""
    slab, batch, kv_slab = _slabs(heads, group)
    t = tl.program_id(2).to(tl.int64)
    dot_slab, dot_kv_slab = t * batch_heads + slab, t * (batch_heads // group) + kv_slab
    rows = _rows(N)
    first_N, end_N = _load_spans(spans_ptr, batch, rows, num_queries, span_stride)
    lse_N = tl.load(lse_ptr + slab * num_queries + rows, mask=rows < num_queries, other=float("inf"))
    q_ND = _load_tile(q_ptr, slab, rows, num_queries, D, BLOCK_D, UPCAST)
    dot_q_ND = _load_tile(dot_q_ptr, dot_slab, rows, num_queries, D, BLOCK_D, UPCAST)
    mu_N = tl.zeros([N], tl.float32)
    a_ND = tl.zeros([N, BLOCK_D], tl.float32)
    low, high = tl.min(first_N), tl.max(end_N)
    for start in range(low // M * M, high, M):
        keys = start + tl.arange(0, M)
        k_MD = _load_part(k_ptr, kv_slab, keys, num_keys, low, high, D, BLOCK_D, UPCAST)
        dot_k_MD = _load_part(dot_k_ptr, dot_kv_slab, keys, num_keys, low, high, D, BLOCK_D, UPCAST)
        p_NM, _, slope_NM = _probabilities(
            q_ND, k_MD, lse_N, first_N, end_N, keys, scale, softcap, False, CAPPED, PRECISION
        )
        ps_NM = _dot(dot_q_ND, tl.trans(k_MD), PRECISION) + _dot(q_ND, tl.trans(dot_k_MD), PRECISION)
        ps_NM *= p_NM * scale
        if CAPPED:
            ps_NM *= slope_NM
        mu_N += tl.sum(ps_NM, 1)
        v_MD = _load_part(v_ptr, kv_slab, keys, num_keys, low, high, D, BLOCK_D, UPCAST)
        dot_v_MD = _load_part(dot_v_ptr, dot_kv_slab, keys, num_keys, low, high, D, BLOCK_D, UPCAST)
        a_ND += _dot(ps_NM.to(v_MD.dtype), v_MD, PRECISION) + _dot(p_NM.to(v_MD.dtype), dot_v_MD, PRECISION)
    o_ND = _load_tile(o_ptr, slab, rows, num_queries, D, BLOCK_D, UPCAST).to(tl.float32)
    _store_tile(dot_o_ptr, dot_slab, rows, num_queries, a_ND - mu_N[:, None] * o_ND, D, BLOCK_D)
    tl.store(mu_ptr + dot_slab * num_queries + rows, mu_N, mask=rows < num_queries)


@jit(do_not_specialize=RUNTIME)
def backward_q_kernel(  # type: ignore[no-untyped-def]
    q_ptr, k_ptr, v_ptr, spans_ptr, lse_ptr, g_ptr, d_ptr, dq_ptr,
    num_queries, num_keys, span_stride, heads, group, scale, softcap,
    D: tl.constexpr, BLOCK_D: tl.constexpr,
    N: tl.constexpr, M: tl.constexpr, CAPPED: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Give dQ = scale dS K of one tile of rows, with dS = P * (G V^T - D)."""
    slab, batch, kv_slab = _slabs(heads, group)
    rows = _rows(N)
    first_N, end_N = _load_spans(spans_ptr, batch, rows, num_queries, span_stride)
    row_ok = rows < num_queries
    lse_N = tl.load(lse_ptr + slab * num_queries + rows, mask=row_ok, other=float("inf"))
    d_N = tl.load(d_ptr + slab * num_queries + rows, mask=row_ok, other=0.0)
    q_ND = _load_tile(q_ptr, slab, rows, num_queries, D, BLOCK_D, UPCAST)
    g_ND = _load_tile(g_ptr, slab, rows, num_queries, D, BLOCK_D, UPCAST)
    dq_ND = tl.zeros([N, BLOCK_D], tl.float32)
    low, high = tl.min(first_N), tl.max(end_N)
    for start in range(low // M * M, high, M):
        keys = start + tl.arange(0, M)
        k_MD = _load_part(k_ptr, kv_slab, keys, num_keys, low, high, D, BLOCK_D, UPCAST)
        v_MD = _load_part(v_ptr, kv_slab, keys, num_keys, low, high, D, BLOCK_D, UPCAST)
        p_NM, _, slope_NM = _probabilities(
            q_ND, k_MD, lse_N, first_N, end_N, keys, scale, softcap, False, CAPPED, PRECISION
        )
        ds_NM = p_NM * (_dot(g_ND, tl.trans(v_MD), PRECISION) - d_N[:, None])
        if CAPPED:
            ds_NM *= slope_NM
        dq_ND += _dot(ds_NM.to(k_MD.dtype), k_MD, PRECISION)
    _store_tile(dq_ptr, slab, rows, num_queries, dq_ND * scale, D, BLOCK_D)


@jit(do_not_specialize=RUNTIME)
def backward_kv_kernel(  # type: ignore[no-untyped-def]
    q_ptr, k_ptr, v_ptr, spans_ptr, bounds_ptr, lse_ptr, g_ptr, d_ptr, dk_ptr, dv_ptr,
    num_queries, num_keys, span_stride, bound_stride, heads, group, scale, softcap,
    D: tl.constexpr, BLOCK_D: tl.constexpr,
    N: tl.constexpr, M: tl.constexpr, CAPPED: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Give dK = scale dS^T Q and dV = P^T G of one tile of keys, over the queries of all heads that share them."""
    kv_slab = tl.program_id(1).to(tl.int64)
    batch = kv_slab * group // heads
    keys = tl.program_id(0) * M + tl.arange(0, M)
    at = bounds_ptr + batch * bound_stride + tl.program_id(0) * 2
    low, high = tl.load(at) // N * N, tl.load(at + 1)
    k_MD = _load_tile(k_ptr, kv_slab, keys, num_keys, D, BLOCK_D, UPCAST)
    v_MD = _load_tile(v_ptr, kv_slab, keys, num_keys, D, BLOCK_D, UPCAST)
    dk_MD = tl.zeros([M, BLOCK_D], tl.float32)
    dv_MD = tl.zeros([M, BLOCK_D], tl.float32)
    for head in range(group):
        slab = kv_slab * group + head
        for start in range(low, high, N):
            rows = start + tl.arange(0, N)
            row_ok = rows < num_queries
            first_N, end_N = _load_spans(spans_ptr, batch, rows, num_queries, span_stride)
            lse_N = tl.load(lse_ptr + slab * num_queries + rows, mask=row_ok, other=float("inf"))
            d_N = tl.load(d_ptr + slab * num_queries + rows, mask=row_ok, other=0.0)
            q_ND = _load_tile(q_ptr, slab, rows, num_queries, D, BLOCK_D, UPCAST)
            g_ND = _load_tile(g_ptr, slab, rows, num_queries, D, BLOCK_D, UPCAST)
            p_MN, _, slope_MN = _probabilities(
                q_ND, k_MD, lse_N, first_N, end_N, keys, scale, softcap, True, CAPPED, PRECISION
            )
            ds_MN = p_MN * (_product(g_ND, v_MD, True, PRECISION) - d_N[None, :])
            if CAPPED:
                ds_MN *= slope_MN
            dv_MD += _dot(p_MN.to(g_ND.dtype), g_ND, PRECISION)
            dk_MD += _dot(ds_MN.to(q_ND.dtype), q_ND, PRECISION)
    _store_tile(dk_ptr, kv_slab, keys, num_keys, dk_MD * scale, D, BLOCK_D)
    _store_tile(dv_ptr, kv_slab, keys, num_keys, dv_MD, D, BLOCK_D)


@jit()
def _second_order(  # type: ignore[no-untyped-def]
    q_ND, g_ND, dot_q_ND, dot_g_ND, k_MD, v_MD, dot_k_MD, dot_v_MD,
    lse_N, mu_N, d_N, dot_d_N, first_N, end_N, keys, scale, softcap,
    KEYS_FIRST: tl.constexpr, DOT_G: tl.constexpr, CAPPED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """P, P', dS and dS' of one tile, the last two by the scores before the cap; without DOT_G, G' is zero."""
    p, tanh, slope = _probabilities(
        q_ND, k_MD, lse_N, first_N, end_N, keys, scale, softcap, KEYS_FIRST, CAPPED, PRECISION
    )
    dot_s = _product(dot_q_ND, k_MD, KEYS_FIRST, PRECISION) + _product(q_ND, dot_k_MD, KEYS_FIRST, PRECISION)
    dot_s *= scale
    if CAPPED:
        dot_s *= slope
    dot_p = p * (dot_s - _by_row(mu_N, KEYS_FIRST))
    e = _product(g_ND, v_MD, KEYS_FIRST, PRECISION) - _by_row(d_N, KEYS_FIRST)
    if DOT_G:
        dot_e = _product(dot_g_ND, v_MD, KEYS_FIRST, PRECISION) + _product(g_ND, dot_v_MD, KEYS_FIRST, PRECISION)
    else:
        dot_e = _product(g_ND, dot_v_MD, KEYS_FIRST, PRECISION)
    ds = p * e
    dot_ds = dot_p * e + p * (dot_e - _by_row(dot_d_N, KEYS_FIRST))
    if CAPPED:
        dot_ds = dot_ds * slope - ds * tanh * dot_s * (2.0 / softcap)
        ds *= slope
    return p, dot_p, ds, dot_ds


@jit(do_not_specialize=RUNTIME)
def backward_tangent_q_kernel(  # type: ignore[no-untyped-def]
    q_ptr, k_ptr, v_ptr, spans_ptr, lse_ptr, g_ptr, d_ptr,
    dot_q_ptr, dot_k_ptr, dot_v_ptr, dot_g_ptr, mu_ptr, dot_d_ptr, dq_ptr,
    num_queries, num_keys, span_stride, batch_heads, heads, group, scale, softcap,
    DOT_G: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    N: tl.constexpr, M: tl.constexpr, CAPPED: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Give dQ' = scale (dS' K + dS K') of one tile of rows, along one tangent."""
    slab, batch, kv_slab = _slabs(heads, group)
    t = tl.program_id(2).to(tl.int64)
    dot_slab, dot_kv_slab = t * batch_heads + slab, t * (batch_heads // group) + kv_slab
    rows = _rows(N)
    row_ok = rows < num_queries
    first_N, end_N = _load_spans(spans_ptr, batch, rows, num_queries, span_stride)
    lse_N = tl.load(lse_ptr + slab * num_queries + rows, mask=row_ok, other=float("inf"))
    d_N = tl.load(d_ptr + slab * num_queries + rows, mask=row_ok, other=0.0)
    mu_N = tl.load(mu_ptr + dot_slab * num_queries + rows, mask=row_ok, other=0.0)
    dot_d_N = tl.load(dot_d_ptr + dot_slab * num_queries + rows, mask=row_ok, other=0.0)
    q_ND = _load_tile(q_ptr, slab, rows, num_queries, D, BLOCK_D, UPCAST)
    g_ND = _load_tile(g_ptr, slab, rows, num_queries, D, BLOCK_D, UPCAST)
    dot_q_ND = _load_tile(dot_q_ptr, dot_slab, rows, num_queries, D, BLOCK_D, UPCAST)
    dot_g_ND = g_ND
    if DOT_G:
        dot_g_ND = _load_tile(dot_g_ptr, dot_slab, rows, num_queries, D, BLOCK_D, UPCAST)
    dq_ND = tl.zeros([N, BLOCK_D], tl.float32)
    low, high = tl.min(first_N), tl.max(end_N)
    for start in range(low // M * M, high, M):
        keys = start + tl.arange(0, M)
        k_MD = _load_part(k_ptr, kv_slab, keys, num_keys, low, high, D, BLOCK_D, UPCAST)
        v_MD = _load_part(v_ptr, kv_slab, keys, num_keys, low, high, D, BLOCK_D, UPCAST)
        dot_k_MD = _load_part(dot_k_ptr, dot_kv_slab, keys, num_keys, low, high, D, BLOCK_D, UPCAST)
        dot_v_MD = _load_part(dot_v_ptr, dot_kv_slab, keys, num_keys, low, high, D, BLOCK_D, UPCAST)
        _, _, ds_NM, dot_ds_NM = _second_order(
            q_ND, g_ND, dot_q_ND, dot_g_ND, k_MD, v_MD, dot_k_MD, dot_v_MD,
            lse_N, mu_N, d_N, dot_d_N, first_N, end_N, keys, scale, softcap, False, DOT_G, CAPPED, PRECISION,
        )  # fmt: skip
        dq_ND += _dot(dot_ds_NM.to(k_MD.dtype), k_MD, PRECISION)
        dq_ND += _dot(ds_NM.to(k_MD.dtype), dot_k_MD, PRECISION)
    _store_tile(dq_ptr, dot_slab, rows, num_queries, dq_ND * scale, D, BLOCK_D)


@jit(do_not_specialize=RUNTIME)
def backward_tangent_kv_kernel(  # type: ignore[no-untyped-def]
    q_ptr, k_ptr, v_ptr, spans_ptr, bounds_ptr, lse_ptr, g_ptr, d_ptr,
    dot_q_ptr, dot_k_ptr, dot_v_ptr, dot_g_ptr, mu_ptr, dot_d_ptr, dk_ptr, dv_ptr,
    num_queries, num_keys, span_stride, bound_stride, batch_heads, heads, group, scale, softcap,
    DK: tl.constexpr, DV: tl.constexpr, DOT_G: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    N: tl.constexpr, M: tl.constexpr, CAPPED: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Give dK' = scale (dS'^T Q + dS^T Q') and dV' = P'^T G + P^T G' of one tile of keys, along one tangent.

    With DK or DV alone the other is left to another launch: two sums and what leads to them may be more than registers hold.
    Without DOT_G, G' is zero and not read, here and for dQ': two and one of the products less.
    """
    kv_slab = tl.program_id(1).to(tl.int64)
    t = tl.program_id(2).to(tl.int64)
    batch, dot_kv_slab = kv_slab * group // heads, t * (batch_heads // group) + kv_slab
    keys = tl.program_id(0) * M + tl.arange(0, M)
    at = bounds_ptr + batch * bound_stride + tl.program_id(0) * 2
    low, high = tl.load(at) // N * N, tl.load(at + 1)
    k_MD = _load_tile(k_ptr, kv_slab, keys, num_keys, D, BLOCK_D, UPCAST)
    v_MD = _load_tile(v_ptr, kv_slab, keys, num_keys, D, BLOCK_D, UPCAST)
    dot_k_MD = _load_tile(dot_k_ptr, dot_kv_slab, keys, num_keys, D, BLOCK_D, UPCAST)
    dot_v_MD = _load_tile(dot_v_ptr, dot_kv_slab, keys, num_keys, D, BLOCK_D, UPCAST)
    dk_MD = tl.zeros([M, BLOCK_D], tl.float32)
    dv_MD = tl.zeros([M, BLOCK_D], tl.float32)
    for head in range(group):
        slab = kv_slab * group + head
        dot_slab = t * batch_heads + slab
        for start in range(low, high, N):
            rows = start + tl.arange(0, N)
            row_ok = rows < num_queries
            first_N, end_N = _load_spans(spans_ptr, batch, rows, num_queries, span_stride)
            lse_N = tl.load(lse_ptr + slab * num_queries + rows, mask=row_ok, other=float("inf"))
            d_N = tl.load(d_ptr + slab * num_queries + rows, mask=row_ok, other=0.0)
            mu_N = tl.load(mu_ptr + dot_slab * num_queries + rows, mask=row_ok, other=0.0)
            dot_d_N = tl.load(dot_d_ptr + dot_slab * num_queries + rows, mask=row_ok, other=0.0)
            q_ND = _load_tile(q_ptr, slab, rows, num_queries, D, BLOCK_D, UPCAST)
            g_ND = _load_tile(g_ptr, slab, rows, num_queries, D, BLOCK_D, UPCAST)
            dot_q_ND = _load_tile(dot_q_ptr, dot_slab, rows, num_queries, D, BLOCK_D, UPCAST)
            dot_g_ND = g_ND
            if DOT_G:
                dot_g_ND = _load_tile(dot_g_ptr, dot_slab, rows, num_queries, D, BLOCK_D, UPCAST)
            p_MN, dot_p_MN, ds_MN, dot_ds_MN = _second_order(
                q_ND, g_ND, dot_q_ND, dot_g_ND, k_MD, v_MD, dot_k_MD, dot_v_MD,
                lse_N, mu_N, d_N, dot_d_N, first_N, end_N, keys, scale, softcap, True, DOT_G, CAPPED, PRECISION,
            )  # fmt: skip
            if DK:
                dk_MD += _dot(dot_ds_MN.to(q_ND.dtype), q_ND, PRECISION)
                dk_MD += _dot(ds_MN.to(q_ND.dtype), dot_q_ND, PRECISION)
            if DV:
                dv_MD += _dot(dot_p_MN.to(g_ND.dtype), g_ND, PRECISION)
                if DOT_G:
                    dv_MD += _dot(p_MN.to(g_ND.dtype), dot_g_ND, PRECISION)
    if DK:
        _store_tile(dk_ptr, dot_kv_slab, keys, num_keys, dk_MD * scale, D, BLOCK_D)
    if DV:
        _store_tile(dv_ptr, dot_kv_slab, keys, num_keys, dv_MD, D, BLOCK_D)
