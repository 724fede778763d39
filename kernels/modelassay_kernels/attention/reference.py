"""The definition of attention, with every score at one time."""

# B = batch, H = query heads, K = key-value heads, S = queries, J = keys, D = head dimension

from __future__ import annotations

import torch
from torch import Tensor

from modelassay_kernels.attention.spans import visible


def attention_reference(
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
