"""Attention with exact second derivatives in O(S) memory.

With S = scale QK^T (capped: cap tanh(S / cap)), P = softmax(S) over the keys a query sees, and O = PV. Each of the four
passes (forward, backward, and the tangent of both) recomputes P in tiles from the log-sum-exp of its rows.
"""

# B = batch, H = query heads, K = key-value heads, R = H / K, S = queries, J = keys, D = head dimension

from __future__ import annotations

import math

import torch
from torch import Tensor

from modelassay_kernels.attention_autograd import Attention
from modelassay_kernels.attention_spans import make_spans, num_visible, visible

MAX_HEAD_DIM = 256
DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def _attention_reference(
    q_BHSD: Tensor,
    k_BKJD: Tensor,
    v_BKJD: Tensor,
    spans_B2S: Tensor,
    scale: float | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Attention as it is written down, in float64 and O(S J) memory; differentiable any number of times."""
    ratio = q_BHSD.shape[1] // k_BKJD.shape[1]
    k_BHJD, v_BHJD = (x.double().repeat_interleave(ratio, dim=1) for x in (k_BKJD, v_BKJD))
    s_BHSJ = q_BHSD.double() @ k_BHJD.mT * (q_BHSD.shape[-1] ** -0.5 if scale is None else scale)
    if softcap is not None:
        s_BHSJ = softcap * torch.tanh(s_BHSJ / softcap)
    seen_B1SJ = visible(spans_B2S, 0, k_BKJD.shape[2])[:, None]
    p_BHSJ = torch.softmax(s_BHSJ.masked_fill(~seen_B1SJ, torch.finfo(torch.float64).min), dim=-1)
    return p_BHSJ.masked_fill(~seen_B1SJ, 0.0) @ v_BHJD


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
    spans_B2S = make_spans(
        q_BHSD.shape[2], k_BKJD.shape[2], causal=causal, window=window, lengths_B=lengths, device=q_BHSD.device
    )
    return attention_over_spans(q_BHSD, k_BKJD, v_BKJD, spans_B2S, scale=scale, softcap=softcap)


def attention_over_spans(
    q_BHSD: Tensor,
    k_BKJD: Tensor,
    v_BKJD: Tensor,
    spans_B2S: Tensor,
    *,
    scale: float | None = None,
    softcap: float | None = None,
) -> Tensor:
    scale = q_BHSD.shape[-1] ** -0.5 if scale is None else scale
    output: Tensor = Attention.apply(q_BHSD, k_BKJD, v_BKJD, spans_B2S, scale, softcap)[0]
    return output
