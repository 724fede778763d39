"""What bottom_k and linear_bottom_k cannot avoid."""

# N = rows, D = hidden size, V = size of the vocabulary, K = kept of each row

from __future__ import annotations

from torch import Tensor

from modelassay_kernels.work import Work

ID_BYTES = 8


def bottom_k_work(logits_NV: Tensor, k: int) -> Work:
    """Every logit read once, k values and int64 ids of each row written; comparisons do not count.

    >>> import torch
    >>> bottom_k_work(torch.zeros(2, 100, dtype=torch.bfloat16), k=10)
    Work(bytes=600, flops=0)
    """
    itemsize = logits_NV.dtype.itemsize
    return Work(bytes=logits_NV.numel() * itemsize + logits_NV.shape[0] * k * (itemsize + ID_BYTES), flops=0)


def linear_bottom_k_work(hidden_ND: Tensor, weight_VD: Tensor, k: int) -> Work:
    """Both inputs read, k fp32 values and ids of each row written; the product.

    >>> import torch
    >>> linear_bottom_k_work(torch.zeros(2, 8), torch.zeros(100, 8), k=10)
    Work(bytes=3504, flops=3200)
    """
    (num_rows, hidden), num_cols = hidden_ND.shape, weight_VD.shape[0]
    result_bytes = num_rows * k * (4 + ID_BYTES)
    return Work(bytes=hidden_ND.nbytes + weight_VD.nbytes + result_bytes, flops=2 * num_rows * num_cols * hidden)
