"""Attention and its derivatives in tiles of PyTorch: what CPU tensors and float64 take.

Vendor matrix products over tiles that stay in the cache; no S x S tensor exists. Everything is computed in fp32 (fp64
for fp64) and returned in the inputs' type. Formulas: see `attention`; x' is the tangent of x.
"""

# B = batch, H = query heads, K = key-value heads, R = H / K, S = queries, J = keys, D = head dimension, T = tangents
# C = the (batch, key-value head) pairs at a time, N = rows of one tile: its queries times R, M = keys of one tile

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from modelassay_kernels.attention.spans import END, FIRST, visible
from modelassay_kernels.softcap import slope_of_tanh

LOG2_E = math.log2(math.e)
MIN_ROWS, MAX_ROWS = 32, 256
ROW_TILES = 4
"""Row tiles that a short sequence is cut into: fewer compute more of what causality hides, more are slower products."""
TILE_KEYS = 512
TILE_ELEMENTS = 1 << 18
"""Scores in one tile: 1 MiB in fp32. These four were the best of six sets on S = 128 ... 1024, D = 32 and 64."""


Place = tuple[torch.dtype, torch.device]
"""Where and as what the masks are kept."""


@dataclass(frozen=True, kw_only=True)
class Tile:
    """The scores of some rows with some keys, and which of them are masked."""

    keys: slice
    masks: tuple[tuple[slice, Tensor], ...]
    """Columns of the tile, and what hides some rows from them: [1, N, columns] of 0 and -inf."""


class Cap(NamedTuple):
    """Of a tile's scores before the soft cap, divided by it."""

    tanh_CNM: Tensor
    slope_CNM: Tensor
    """Of the tanh: sech^2."""


@dataclass(frozen=True, kw_only=True)
class RowTile:
    """Rows of some (batch, key-value head) pairs, and the tiles of keys they see."""

    pairs: slice
    rows: slice
    tiles: tuple[Tile, ...]


def _row_tiles(spans_B2S: Tensor, num_pairs: int, heads: int, ratio: int, place: Place) -> Iterable[RowTile]:
    """Give all rows that see a key, with the keys they see; pairs share a tile where they share their spans."""
    spans_B2S = spans_B2S.cpu()
    if spans_B2S.shape[0] > 1 and bool((spans_B2S == spans_B2S[:1]).all()):
        spans_B2S = spans_B2S[:1]
    if spans_B2S.shape[0] == 1:
        return _shared_row_tiles(tuple(map(tuple, spans_B2S[0].tolist())), num_pairs, ratio, place)
    return itertools.chain.from_iterable(
        _generate(spans_2S, range(b * heads, (b + 1) * heads), ratio, place) for b, spans_2S in enumerate(spans_B2S)
    )


@functools.lru_cache(maxsize=4)
def _shared_row_tiles(
    spans: tuple[tuple[int, ...], ...], num_pairs: int, ratio: int, place: Place
) -> Sequence[RowTile]:
    """Keep the tiles of the last few spans: the passes of all layers ask for the same ones."""
    spans_2S = torch.tensor(spans, dtype=torch.int32).reshape(2, -1)
    return tuple(_generate(spans_2S, range(num_pairs), ratio, place))


def _generate(spans_2S: Tensor, pairs: range, ratio: int, place: Place) -> Iterator[RowTile]:
    num_queries = spans_2S.shape[1]
    step = max(1, min(MAX_ROWS, max(MIN_ROWS, num_queries * ratio // ROW_TILES)) // ratio)
    for start in range(0, num_queries, step):
        part_2S = spans_2S[:, start : start + step]
        tiles = tuple(_key_tiles(part_2S, ratio, place))
        if not tiles:
            continue
        rows = slice(start * ratio, (start + part_2S.shape[1]) * ratio)
        widest = max(tile.keys.stop - tile.keys.start for tile in tiles)
        at_once = max(1, TILE_ELEMENTS // ((rows.stop - rows.start) * widest))
        for pair in range(pairs.start, pairs.stop, at_once):
            yield RowTile(pairs=slice(pair, min(pair + at_once, pairs.stop)), rows=rows, tiles=tiles)


def _key_tiles(spans_2S: Tensor, ratio: int, place: Place) -> Iterator[Tile]:
    dtype, device = place
    seen_2S = spans_2S[:, spans_2S[FIRST] < spans_2S[END]]
    if not seen_2S.numel():
        return
    (first, last_first), (first_end, end) = ((int(row.min()), int(row.max())) for row in seen_2S)
    if seen_2S.shape[1] < spans_2S.shape[1]:
        last_first = end
    for start in range(first, end, TILE_KEYS):
        stop = min(start + TILE_KEYS, end)
        split, rest = min(max(start, last_first), stop), max(start, min(first_end, stop))
        parts = [(start, split), (rest, stop)] if split < rest else [(start, stop)]
        masks = []
        for low, high in parts:
            if low < high:
                seen_1SM = visible(spans_2S[None], low, high).repeat_interleave(ratio, dim=1)
                bias_1NM = torch.zeros(seen_1SM.shape, dtype=dtype).masked_fill_(~seen_1SM, -torch.inf)
                bias_1NM = bias_1NM.to(device)
                masks.append((slice(low - start, high - start), bias_1NM))
        yield Tile(keys=slice(start, stop), masks=tuple(masks))


class _Rows:
    """Tensors [..., B, H, S, D] as contiguous rows [..., B * K, S * R, D] and back.

    Heads that share keys become neighbours, so that the rows of any queries are one slab of memory.
    """

    def __init__(self, like_BHSD: Tensor, ratio: int) -> None:
        self.shape, self.ratio, self.dtype = like_BHSD.shape, ratio, like_BHSD.dtype
        self.compute_dtype = torch.float64 if self.dtype == torch.float64 else torch.float32

    def take(self, x: Tensor) -> Tensor:
        lead = x.shape[: x.ndim - len(self.shape)]
        batch, heads, queries = self.shape[:3]
        pairs, dim = heads // self.ratio, x.shape[-1]
        split = x.to(self.compute_dtype).reshape(*lead, batch, pairs, self.ratio, queries, dim).transpose(-2, -3)
        return split.reshape(*lead, batch * pairs, queries * self.ratio, dim)

    def give(self, rows: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        lead = rows.shape[:-3]
        batch, heads, queries = self.shape[:3]
        split = rows.view(*lead, batch, heads // self.ratio, queries, self.ratio, rows.shape[-1]).transpose(-2, -3)
        return split.reshape(*lead, batch, heads, queries, rows.shape[-1]).to(dtype or self.dtype)


class _Problem:
    """The inputs as rows, and the probabilities of their tiles."""

    def __init__(
        self, q_BHSD: Tensor, k_BKJD: Tensor, v_BKJD: Tensor, spans_B2S: Tensor, scale: float, softcap: float | None
    ) -> None:
        ratio = q_BHSD.shape[1] // k_BKJD.shape[1]
        self.query_rows, self.key_rows = _Rows(q_BHSD, ratio), _Rows(k_BKJD, 1)
        self.scale, self.softcap = scale, softcap
        self.q, self.k, self.v = self.scaled(q_BHSD), self.key_rows.take(k_BKJD), self.key_rows.take(v_BKJD)
        heads = k_BKJD.shape[1]
        self._q_log2 = self.q * LOG2_E
        self.row_tiles = _row_tiles(spans_B2S, q_BHSD.shape[0] * heads, heads, ratio, (self.q.dtype, self.q.device))

    def scaled(self, q: Tensor) -> Tensor:
        """Rows of queries or of their tangents, times the scale."""
        return self.query_rows.take(q) * self.scale

    def scores(self, at: RowTile, tile: Tile, *, derive: bool = False) -> tuple[Tensor, Cap | None]:
        """Scores [C, N, M] in units of log 2, -inf where hidden, and, to ``derive``, the soft cap's tanh and slope.

        Units of log 2 because torch.exp2 takes 0.4 of torch.exp's time, and a sum of -inf 0.1 of a masked fill's.
        """
        k_CDM = self.k[at.pairs, tile.keys].mT
        cap = None
        if self.softcap is None:
            s_CNM = torch.bmm(self._q_log2[at.pairs, at.rows], k_CDM)
        else:
            scaled_CNM = torch.bmm(self.q[at.pairs, at.rows], k_CDM).div_(self.softcap)
            slope_CNM = slope_of_tanh(scaled_CNM) if derive else None
            tanh_CNM = scaled_CNM.tanh_()
            cap = None if slope_CNM is None else Cap(tanh_CNM, slope_CNM)
            s_CNM = tanh_CNM * (self.softcap * LOG2_E)
        for columns, bias_1NM in tile.masks:
            s_CNM[:, :, columns] += bias_1NM
        return s_CNM, cap

    def probabilities(self, at: RowTile, tile: Tile, lse_log2: Tensor) -> tuple[Tensor, Cap | None]:
        """P = exp(S - lse) and the soft cap's tanh and slope."""
        s_CNM, cap = self.scores(at, tile, derive=True)
        return s_CNM.sub_(lse_log2[at.pairs, at.rows]).exp2_(), cap

    def lse_log2(self, lse_BHS: Tensor) -> Tensor:
        """Rows of the log-sum-exp in the scores' units."""
        return self.query_rows.take(lse_BHS[..., None]) * LOG2_E


def forward(
    q_BHSD: Tensor, k_BKJD: Tensor, v_BKJD: Tensor, spans_B2S: Tensor, scale: float, softcap: float | None
) -> tuple[Tensor, Tensor]:
    """Return the output in the inputs' type and the log-sum-exp of each row's scores, fp32 or fp64 [B, H, S].

    The running maximum m is that of the tiles seen so far: l = sum exp(S - m), a = sum exp(S - m) V, o = a / l,
    lse = m + log l. A row that sees no key has o = 0 and lse = inf, which makes its probabilities zero later on.
    """
    x = _Problem(q_BHSD, k_BKJD, v_BKJD, spans_B2S, scale, softcap)
    o, lse = torch.zeros_like(x.q), x.q.new_full((*x.q.shape[:2], 1), torch.inf)
    lowest = torch.finfo(x.q.dtype).min
    for at in x.row_tiles:
        rows = (at.pairs, at.rows)
        m_CN1 = torch.full_like(lse[rows], lowest)
        l_CN1, a_CND = torch.zeros_like(m_CN1), o[rows]
        for i, tile in enumerate(at.tiles):
            s_CNM, _ = x.scores(at, tile)
            old_CN1, m_CN1 = m_CN1, torch.maximum(m_CN1, s_CNM.amax(-1, keepdim=True))  # a row may see nothing here
            p_CNM = s_CNM.sub_(m_CN1).exp2_()
            shrink_CN1 = old_CN1.sub_(m_CN1).exp2_()
            l_CN1 = l_CN1.mul_(shrink_CN1).add_(p_CNM.sum(-1, keepdim=True))
            part_CND = torch.bmm(p_CNM, x.v[at.pairs, tile.keys])
            a_CND = part_CND.addcmul_(a_CND, shrink_CN1) if i else part_CND
        o[rows] = a_CND.div_(l_CN1)
        lse[rows] = l_CN1.log2_().add_(m_CN1).div_(LOG2_E)
    blind_BS = spans_B2S[:, FIRST] >= spans_B2S[:, END]
    o_BHSD, lse_BHS = x.query_rows.give(o), x.query_rows.give(lse, lse.dtype).squeeze(-1)
    if blind_BS.any():
        o_BHSD.masked_fill_(blind_BS[:, None, :, None], 0.0)
        lse_BHS.masked_fill_(blind_BS[:, None], torch.inf)
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
    """Return the gradients of q, k and v.

    D = rowsum(G * O), dS = P * (G V^T - D), dQ = scale dS K, dK = scale dS^T Q, dV = P^T G.
    """
    x = _Problem(q_BHSD, k_BKJD, v_BKJD, spans_B2S, scale, softcap)
    g, lse = x.query_rows.take(g_BHSD), x.lse_log2(lse_BHS)
    d = (g * x.query_rows.take(o_BHSD)).sum(-1, keepdim=True)
    dq, dk, dv = torch.zeros_like(x.q), torch.zeros_like(x.k), torch.zeros_like(x.v)
    for at in x.row_tiles:
        q_CND, g_CND = x.q[at.pairs, at.rows], g[at.pairs, at.rows]
        for tile in at.tiles:
            k_CMD, v_CMD = x.k[at.pairs, tile.keys], x.v[at.pairs, tile.keys]
            p_CNM, cap = x.probabilities(at, tile, lse)
            ds_CNM = torch.bmm(g_CND, v_CMD.mT).sub_(d[at.pairs, at.rows]).mul_(p_CNM)
            if cap is not None:
                ds_CNM.mul_(cap.slope_CNM)
            dv[at.pairs, tile.keys].baddbmm_(p_CNM.mT, g_CND)
            dk[at.pairs, tile.keys].baddbmm_(ds_CNM.mT, q_CND)
            dq[at.pairs, at.rows].baddbmm_(ds_CNM, k_CMD)
    return x.query_rows.give(dq.mul_(scale)), x.key_rows.give(dk), x.key_rows.give(dv)


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
    """Return the tangents of the output [T, B, H, S, D] and of lse [T, B, H, S] along T directions.

    S' = scale (Q'K^T + QK'^T), mu = rowsum(P * S') = lse', O' = (P * S') V + P V' - mu * O.
    """
    x = _Problem(q_BHSD, k_BKJD, v_BKJD, spans_B2S, scale, softcap)
    lse, o = x.lse_log2(lse_BHS), x.query_rows.take(o_BHSD)
    dot_q, dot_k, dot_v = x.scaled(q_dot), x.key_rows.take(k_dot), x.key_rows.take(v_dot)
    dot_o, mu = torch.zeros_like(dot_q), dot_q.new_zeros((*dot_q.shape[:3], 1))
    for at in x.row_tiles:
        q_CND = x.q[at.pairs, at.rows]
        for tile in at.tiles:
            k_CMD, v_CMD = x.k[at.pairs, tile.keys], x.v[at.pairs, tile.keys]
            p_CNM, cap = x.probabilities(at, tile, lse)
            weight_CNM = p_CNM if cap is None else p_CNM * cap.slope_CNM
            for t in range(dot_q.shape[0]):
                ps_CNM = torch.bmm(dot_q[t, at.pairs, at.rows], k_CMD.mT)
                ps_CNM.baddbmm_(q_CND, dot_k[t, at.pairs, tile.keys].mT).mul_(weight_CNM)
                mu[t, at.pairs, at.rows].add_(ps_CNM.sum(-1, keepdim=True))
                dot_o_CND = dot_o[t, at.pairs, at.rows]
                dot_o_CND.baddbmm_(ps_CNM, v_CMD).baddbmm_(p_CNM, dot_v[t, at.pairs, tile.keys])
    dot_o.addcmul_(mu, o, value=-1)
    return x.query_rows.give(dot_o), x.query_rows.give(mu, mu.dtype).squeeze(-1)


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
    """Return the tangents of the gradients of q, k and v, [T, B, H or K, S or J, D]; ``g_dot`` None: G' = 0.

    P' = P * (S' - mu), D' = rowsum(G'*O + G*O'), dS' = P' * (G V^T - D) + P * (G'V^T + G V'^T - D'),
    dQ' = scale (dS'K + dS K'), dK' = scale (dS'^T Q + dS^T Q'), dV' = P'^T G + P^T G'. With a soft cap of tanh t the
    scores before it have dS c, c = 1 - t^2, whose tangent is dS' c - 2 dS t S' / cap, S' being that after the cap.
    """
    x = _Problem(q_BHSD, k_BKJD, v_BKJD, spans_B2S, scale, softcap)
    take, take_keys = x.query_rows.take, x.key_rows.take
    g, lse, o = take(g_BHSD), x.lse_log2(lse_BHS), take(o_BHSD)
    dot_q, dot_k, dot_v = x.scaled(q_dot), take_keys(k_dot), take_keys(v_dot)
    dot_g, mu = None if g_dot is None else take(g_dot), take(lse_dot[..., None])
    d = (g * o).sum(-1, keepdim=True)
    dot_d = (take(o_dot) * g).sum(-1, keepdim=True)
    if dot_g is not None:
        dot_d += (dot_g * o).sum(-1, keepdim=True)
    dq, dk, dv = torch.zeros_like(dot_q), torch.zeros_like(dot_k), torch.zeros_like(dot_v)
    for at in x.row_tiles:
        q_CND, g_CND, d_CN1 = x.q[at.pairs, at.rows], g[at.pairs, at.rows], d[at.pairs, at.rows]
        for tile in at.tiles:
            keys, rows = (at.pairs, tile.keys), (at.pairs, at.rows)
            k_CMD, v_CMD = x.k[keys], x.v[keys]
            p_CNM, cap = x.probabilities(at, tile, lse)
            e_CNM = torch.bmm(g_CND, v_CMD.mT).sub_(d_CN1)
            ds_CNM = p_CNM * e_CNM
            slope_CNM = bend_CNM = None
            if cap is not None and softcap is not None:
                slope_CNM = cap.slope_CNM
                bend_CNM = cap.tanh_CNM.mul_(-2 / softcap).mul_(ds_CNM)
                ds_CNM.mul_(slope_CNM)
            for t in range(dot_q.shape[0]):
                dot_q_CND, dot_k_CMD, dot_v_CMD = dot_q[t][rows], dot_k[t][keys], dot_v[t][keys]
                dot_s_CNM = torch.bmm(dot_q_CND, k_CMD.mT).baddbmm_(q_CND, dot_k_CMD.mT)
                if slope_CNM is not None:
                    dot_s_CNM.mul_(slope_CNM)
                dot_ds_CNM = torch.bmm(g_CND, dot_v_CMD.mT)
                if dot_g is not None:
                    dot_ds_CNM.baddbmm_(dot_g[t][rows], v_CMD.mT)
                dot_ds_CNM.sub_(dot_d[t][rows]).mul_(p_CNM)
                dot_p_CNM = (dot_s_CNM - mu[t][rows]).mul_(p_CNM)
                dot_ds_CNM.addcmul_(dot_p_CNM, e_CNM)
                if slope_CNM is not None and bend_CNM is not None:
                    dot_ds_CNM.mul_(slope_CNM).addcmul_(bend_CNM, dot_s_CNM)
                dq[t][rows].baddbmm_(dot_ds_CNM, k_CMD).baddbmm_(ds_CNM, dot_k_CMD)
                dk[t][keys].baddbmm_(dot_ds_CNM.mT, q_CND).baddbmm_(ds_CNM.mT, dot_q_CND)
                dv_CMD = dv[t][keys].baddbmm_(dot_p_CNM.mT, g_CND)
                if dot_g is not None:
                    dv_CMD.baddbmm_(p_CNM.mT, dot_g[t][rows])
    return x.query_rows.give(dq.mul_(scale)), x.key_rows.give(dk), x.key_rows.give(dv)
