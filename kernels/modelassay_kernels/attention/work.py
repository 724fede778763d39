"""What attention and its derivatives cannot avoid."""

# B = batch, H = query heads, K = key-value heads, S = queries, J = keys, D = head dimension

from __future__ import annotations

from typing import Literal

from torch import Tensor

from modelassay_kernels.work import Work

Pass = Literal["forward", "backward", "tangent", "backward_tangent"]
PRODUCTS: dict[Pass, tuple[int, int]] = {
    "forward": (2, 0),
    "backward": (5, 0),
    "tangent": (1, 4),
    "backward_tangent": (2, 10),
}
"""Matrix products over the scores that each pass cannot do without: in all, and again for every tangent."""


def attention_work(which: Pass, q_BHSD: Tensor, k_BKJD: Tensor, *, num_scores: int, num_tangents: int = 1) -> Work:
    """Every input and output of a pass once, and its matrix products.

    ``num_scores`` is the number of (query, key) pairs that are not masked, of all sequences and query heads.

    >>> import torch
    >>> q = torch.ones(1, 1, 4, 8)
    >>> attention_work("forward", q, q, num_scores=10)
    Work(bytes=528, flops=320)
    """
    once, each = PRODUCTS[which]
    flops = 2 * q_BHSD.shape[-1] * num_scores * (once + each * num_tangents)
    rows, keys = {"forward": (2, 2), "backward": (4, 4), "tangent": (2, 2), "backward_tangent": (3, 2)}[which]
    dot_rows, dot_keys = {"tangent": (2, 2), "backward_tangent": (4, 4)}.get(which, (0, 0))
    row_bytes, key_bytes = (x.numel() * x.element_size() for x in (q_BHSD, k_BKJD))
    lse_bytes = q_BHSD.shape[:3].numel() * max(4, q_BHSD.element_size())
    primal = rows * row_bytes + keys * key_bytes + lse_bytes
    tangents = dot_rows * row_bytes + dot_keys * key_bytes + (lse_bytes if each else 0)
    return Work(bytes=primal + num_tangents * tangents, flops=flops)
