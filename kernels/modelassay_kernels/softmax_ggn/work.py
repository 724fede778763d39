"""What softmax_ggn cannot avoid."""

from __future__ import annotations

from modelassay_kernels.work import Work


def softmax_ggn_work(num_rows: int, num_cols: int, *, itemsize: int) -> Work:
    """Logits and u read, y written, once; an exponential counts as one operation.

    >>> softmax_ggn_work(2, 5, itemsize=2)
    Work(bytes=60, flops=80)
    """
    return Work(bytes=3 * num_rows * num_cols * itemsize, flops=8 * num_rows * num_cols)
