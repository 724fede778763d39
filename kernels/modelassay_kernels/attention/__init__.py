"""Attention with exact second derivatives in O(S) memory.

With S = scale QK^T (capped: cap tanh(S / cap)), P = softmax(S) over the keys a query sees, O = PV, G the incoming gradient and
x' the tangent of x:

    forward             O, lse = log sum exp S
    its tangent         S' = scale (Q'K^T + QK'^T),  mu = rowsum(P * S') = lse',  O' = (P * S') V + P V' - mu O
    backward            P = exp(S - lse),  D = rowsum(G * O),  dS = P * (G V^T - D)
                        dQ = scale dS K,  dK = scale dS^T Q,  dV = P^T G
    its tangent         P' = P * (S' - mu),  D' = rowsum(G' * O + G * O')
                        dS' = P' * (G V^T - D) + P * (G'V^T + G V'^T - D')
                        dQ' = scale (dS'K + dS K'),  dK' = scale (dS'^T Q + dS^T Q'),  dV' = P'^T G + P^T G'

Each pass computes P again, tile by tile, from lse; nothing of size S J is kept. `autograd` makes the four compose;
CUDA tensors take Triton (`triton_launch`), all others, and float64, tiles of PyTorch (`tiled`).
"""

# B = batch, H = query heads, K = key-value heads, S = queries, J = keys, D = head dimension, T = tangents

from __future__ import annotations

import torch
from torch import Tensor

from modelassay_kernels.attention.autograd import attend
from modelassay_kernels.attention.spans import check_lengths, checked_spans, make_spans
from modelassay_kernels.dtypes import FLOATS
from modelassay_kernels.softcap import check_softcap

MAX_HEAD_DIM = 256
INTEGERS = (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8)


def attention(
    q_BHSD: Tensor,
    k_BKJD: Tensor,
    v_BKJD: Tensor,
    *,
    causal: bool = True,
    scale: float | None = None,
    lengths: Tensor | None = None,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Return softmax(scale QK^T) V: [B, H, S, D] in the inputs' type, with exact first and second derivatives.

    H is a multiple of K: H / K neighbouring query heads share one key-value head. The queries are the last S positions
    of the J keys. ``causal`` hides later keys; ``window`` leaves the last ``window`` keys of these, or, if not causal,
    those less than ``window`` positions away. Of sequence b only its first ``lengths[b]`` keys are there; what stands
    behind them has no influence. ``scale`` is D^-0.5 unless given. ``softcap`` c makes scores c tanh(score / c), as Gemma 2
    does. A query that sees no key gives zero. NaN or infinity among the inputs makes the queries of its head that see it NaN,
    and may do so to the head's others, but never to other heads or sequences.

    `torch.func.grad`, `jvp`, `vjp`, `vmap` and `torch.autograd` compose over it up to the second derivative, in the orders
    jvp of grad, grad of grad and grad of jvp; anything further is a NotImplementedError. `torch.func.vmap` over the tangents of
    jvp(grad) shares the primal work. Memory is O(S + J) per head in all of them. Flops: see `work.attention_work`.

    >>> x = torch.tensor([[[[0.0], [0.0], [6.0]]]])
    >>> attention(torch.zeros_like(x), x, x).flatten().tolist()
    [0.0, 0.0, 2.0]

    Args:
        q_BHSD: bfloat16, float16, float32 or float64; the others alike. Computed in fp32, float64 in float64.
        k_BKJD: keys; D at most 256.
        v_BKJD: values.
        causal: whether a query sees only keys up to its own position; then S may not exceed J.
        scale: what scores are multiplied by.
        lengths: int [B], each from 0 to J; read from the tensor, so keep it on the CPU where waiting for a GPU matters.
        window: at least 1.
        softcap: 1e-30 to 1e30.

    Raises:
        ValueError: shapes, devices or numbers that do not fit together.
        TypeError: an element type that is not among the four, or not the same in all.
    """
    _check(q_BHSD, k_BKJD, v_BKJD, softcap)
    (batch, _, num_queries, _), num_keys = q_BHSD.shape, k_BKJD.shape[2]
    _require(not causal or num_queries <= num_keys, f"causal needs S <= J, got {num_queries} queries, {num_keys} keys")
    _require(window is None or window >= 1, f"window must be at least 1, got {window}; None means no window")
    if lengths is not None:
        fits = tuple(lengths.shape) == (batch,) and lengths.dtype in INTEGERS
        _require(fits, f"lengths must be {batch} integers, got {lengths.dtype} of shape {tuple(lengths.shape)}")
        if not torch.compiler.is_compiling():  # then the spans are checked where they are used
            check_lengths(lengths, num_keys)
        lengths = lengths.to(q_BHSD.device)
    spans_B2S = make_spans(num_queries, num_keys, causal=causal, window=window, lengths_B=lengths, device=q_BHSD.device)
    return _attend(q_BHSD, k_BKJD, v_BKJD, spans_B2S, _scale(scale, q_BHSD), softcap)


def attention_over_spans(
    q_BHSD: Tensor,
    k_BKJD: Tensor,
    v_BKJD: Tensor,
    spans_B2S: Tensor,
    *,
    scale: float | None = None,
    softcap: float | None = None,
) -> Tensor:
    """As `attention`, for any mask that is one interval of keys per query: int32 spans [1 or B, 2, S].

    Query s of sequence b sees the keys from ``spans[b, 0, s]`` up to, not including, ``spans[b, 1, s]``: within 0 to J, and
    none where both are equal. That is read from the tensor, which on a GPU waits for the work before it: once for each
    tensor of spans, not once for each layer that it is given to. While a CUDA graph is captured nothing is read, and spans are
    cut to the keys instead.

    Raises:
        ValueError: shapes, devices or numbers that do not fit together, or a span that is not within the keys.
        TypeError: an element type that is not supported, or spans that are not int32.
    """
    _check(q_BHSD, k_BKJD, v_BKJD, softcap)
    if spans_B2S.dtype != torch.int32:
        raise TypeError(f"attention: spans must be int32, got {spans_B2S.dtype}")
    _check_spans_shape(q_BHSD, spans_B2S)
    if not torch.compiler.is_compiling():
        spans_B2S = checked_spans(spans_B2S, k_BKJD.shape[2])
    return _attend(q_BHSD, k_BKJD, v_BKJD, spans_B2S, _scale(scale, q_BHSD), softcap)


def attend_in_range(
    q_BHSD: Tensor,
    k_BKJD: Tensor,
    v_BKJD: Tensor,
    spans_B2S: Tensor,
    *,
    scale: float | None = None,
    softcap: float | None = None,
) -> Tensor:
    """As `attention_over_spans`, for int32 spans that are known to lie within the keys: nothing is read from a GPU."""
    _check(q_BHSD, k_BKJD, v_BKJD, softcap)
    _check_spans_shape(q_BHSD, spans_B2S)
    return _attend(q_BHSD, k_BKJD, v_BKJD, spans_B2S, _scale(scale, q_BHSD), softcap)


def _attend(q: Tensor, k: Tensor, v: Tensor, spans: Tensor, scale: float, softcap: float | None) -> Tensor:
    if torch.compiler.is_compiling():  # see modelassay_kernels.compiled
        compiled: Tensor = torch.ops.modelassay.attention(q, k, v, spans, scale, softcap)[0]
        return compiled
    return attend(q, k, v, spans, scale, softcap)


def _scale(scale: float | None, q_BHSD: Tensor) -> float:
    return q_BHSD.shape[3] ** -0.5 if scale is None else scale


def _check_spans_shape(q_BHSD: Tensor, spans_B2S: Tensor) -> None:
    batch, num_queries = q_BHSD.shape[0], q_BHSD.shape[2]
    fits = spans_B2S.ndim == 3 and tuple(spans_B2S.shape[1:]) == (2, num_queries) and spans_B2S.shape[0] in {1, batch}
    _require(fits, f"spans must be [1 or {batch}, 2, {num_queries}], got {tuple(spans_B2S.shape)}")
    _require(
        spans_B2S.device == q_BHSD.device, f"spans are on {spans_B2S.device}, queries on {q_BHSD.device}; move them"
    )


def _require(fits: bool, problem: str) -> None:
    if not fits:
        raise ValueError(f"attention: {problem}")


def _check(q_BHSD: Tensor, k_BKJD: Tensor, v_BKJD: Tensor, softcap: float | None) -> None:
    shapes = ", ".join(str(tuple(x.shape)) for x in (q_BHSD, k_BKJD, v_BKJD))
    inputs = (q_BHSD, k_BKJD, v_BKJD)
    if q_BHSD.dtype not in FLOATS or any(x.dtype != q_BHSD.dtype for x in inputs):
        raise TypeError(
            f"attention: q, k, v are {', '.join(str(x.dtype) for x in inputs)}; give all three one of {[*FLOATS]}"
        )
    _require(all(x.ndim == 4 for x in inputs), f"q, k and v must be [batch, heads, positions, D], got {shapes}")
    _require(k_BKJD.shape == v_BKJD.shape, f"k and v must have one shape, got {shapes}")
    alike = q_BHSD.shape[0] == k_BKJD.shape[0] and q_BHSD.shape[3] == k_BKJD.shape[3]
    _require(alike, f"q, k and v must share batch and head dimension, got {shapes}")
    heads, kv_heads, head_dim = q_BHSD.shape[1], k_BKJD.shape[1], q_BHSD.shape[3]
    whole = kv_heads > 0 and heads > 0 and heads % kv_heads == 0
    _require(whole, f"query heads must be a multiple of key-value heads, got {heads} and {kv_heads}")
    _require(1 <= head_dim <= MAX_HEAD_DIM, f"the head dimension must be 1 to {MAX_HEAD_DIM}, got {head_dim}")
    _require(
        all(x.device == q_BHSD.device for x in inputs), f"q, k, v are on {[str(x.device) for x in inputs]}; move them"
    )
    check_softcap("attention", softcap)
