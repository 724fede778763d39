"""What linear_cross_entropy and its derivatives cannot avoid."""

from __future__ import annotations

from modelassay_kernels.work import Work


def linear_cross_entropy_work(
    num_rows: int, num_cols: int, hidden_size: int, *, itemsize: int, tangents: int = 0
) -> Work:
    """Loss and gradient, with ``tangents`` Hessian-vector products.

    Bytes: hidden states, weight and their gradients once, and for each tangent its direction and its result. Flops: three
    products of 2 N V D, and six more for each tangent (a tangent of a product is two products).

    >>> linear_cross_entropy_work(10, 100, 8, itemsize=4, tangents=1)
    Work(bytes=14080, flops=144000)
    """
    parameters = (num_rows + num_cols) * hidden_size
    return Work(
        bytes=(2 + 2 * tangents) * parameters * itemsize,
        flops=(3 + 6 * tangents) * 2 * num_rows * num_cols * hidden_size,
    )
