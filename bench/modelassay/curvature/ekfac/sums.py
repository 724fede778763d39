"""What a microbatch adds to the sums that factors are made of."""

# B = rows, T = positions, P = positions of all rows, O = outputs of a layer, J = inputs, N = columns of any matrix

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from modelassay.curvature.ekfac.capture import Trace, Traces
from modelassay.curvature.ekfac.modules import LinearModule

_LEAF = 96
"""Columns below which halving a Gram matrix again costs more than it saves."""

Sums = dict[str, Tensor]
Bases = Mapping[str, tuple[Tensor, Tensor]]
"""Q_S and Q_A of each layer; layers that share Q_A share the tensor."""


def gram(x_PN: Tensor) -> Tensor:
    """Return x^T x, symmetric to the bit; one of its two halves is computed, by blocks.

    >>> gram(torch.tensor([[1.0, 2.0]]))
    tensor([[1., 2.],
            [2., 4.]])
    """
    result_NN = x_PN.new_empty(x_PN.shape[1], x_PN.shape[1])
    _fill_upper(x_PN, result_NN)
    return result_NN.triu_().add_(result_NN.triu(1).T)


def _fill_upper(x_PN: Tensor, out_NN: Tensor) -> None:
    size = x_PN.shape[1]
    if size <= _LEAF:
        torch.mm(x_PN.T, x_PN, out=out_NN)
        return
    half = size // 2
    first, second = x_PN[:, :half], x_PN[:, half:]
    _fill_upper(first, out_NN[:half, :half])
    _fill_upper(second, out_NN[half:, half:])
    torch.mm(first.T, second, out=out_NN[:half, half:])


def add_covariances(
    sums: Sums, traces: Traces, real_BT: Tensor, modules: Iterable[LinearModule], *, diagonal: bool
) -> None:
    """Add ``LAYER/inputs`` (sum of a a^T over positions that are no padding), ``LAYER/outputs`` (of g g^T) and, if asked for, ``LAYER/diagonal``
    (of G_s^2, entry by entry).
    """  # noqa: D205
    shared: tuple[int, Tensor] | None = None  # gate and up are given the same inputs
    for module in modules:
        trace = traces[module.name]
        if shared is None or shared[0] != trace.inputs_BTJ.data_ptr():
            real = real_BT.repeat(1, trace.inputs_BTJ.shape[1] // real_BT.shape[1])
            inputs = trace.inputs_BTJ
            shared = inputs.data_ptr(), gram(inputs.flatten(0, 1) if bool(real.all()) else inputs[real])
        _add(sums, f"{module.name}/inputs", shared[1])
        _add(sums, f"{module.name}/outputs", gram(trace.gradients_BTO.flatten(0, 1)))
        if diagonal:
            add_squares(sums, f"{module.name}/diagonal", trace)


def add_squares(sums: Sums, name: str, trace: Trace) -> None:
    """Add the squares of the row gradients, entry by entry."""
    for part in trace.chunks():
        _add(sums, name, part.row_gradients().square_().sum(0))


def add_rotated_squares(sums: Sums, name: str, trace: Trace, basis_OO: Tensor, basis_JJ: Tensor) -> None:
    """Add the squares of the row gradients in the eigenbasis, entry by entry."""
    if trace.rotates_by_position:
        add_squares(sums, name, trace.rotated(basis_OO, basis_JJ))
        return
    for part in trace.chunks():
        _add(sums, name, part.rotated_row_gradients(basis_OO, basis_JJ).square_().sum(0))


def rotated_traces(traces: Traces, bases: Bases) -> dict[str, Trace]:
    """Return the traces in the eigenbasis; layers that share inputs and basis share the rotated inputs."""
    result: dict[str, Trace] = {}
    shared: tuple[int, int, Tensor] | None = None
    for layer, (basis_OO, basis_JJ) in bases.items():
        trace = traces[layer]
        key = trace.inputs_BTJ.data_ptr(), basis_JJ.data_ptr()
        if shared is None or shared[:2] != key:
            shared = *key, trace.inputs_BTJ @ basis_JJ
        result[layer] = Trace(inputs_BTJ=shared[2], gradients_BTO=trace.gradients_BTO @ basis_OO)
    return result


def _add(sums: Sums, name: str, tensor: Tensor) -> None:
    if name in sums:
        sums[name].add_(tensor)
    else:
        sums[name] = tensor.clone()
