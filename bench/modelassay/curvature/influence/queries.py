"""Preconditioned query gradients, compressed to a stated rank with what that loses."""

# Q = queries, O = outputs of a layer, J = inputs, R = rank

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from modelassay.curvature.ekfac.capture import Capture, Trace, Traces
from modelassay.curvature.ekfac.examples import MAX_TOKENS, Example, batches_of, num_targets
from modelassay.curvature.ekfac.factors import Factors
from modelassay.curvature.ekfac.inverse import DAMPING, Strategy, precondition
from modelassay.curvature.ekfac.modules import LinearModule
from modelassay.curvature.ekfac.sums import rotated_traces
from modelassay.curvature.language_model import vocabulary_size
from modelassay.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_OVERSAMPLED, _POWER_ITERATIONS = 8, 2
"""Of the randomised decomposition; Halko et al. 2011 advise 5 to 10 and 1 or 2."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerQueries:
    """Of one layer: whole matrices, or their best approximation of a rank."""

    module: LinearModule
    whole_QOJ: Tensor | None = None
    left_QOR: Tensor | None = None
    right_QRJ: Tensor | None = None
    rotated: bool = False
    """Whether they are in the eigenbasis of the factors, to be scored against rows that are too."""
    fidelity_Q: Tensor | None = None
    """Cosine between each matrix and its approximation, in fp64; None where it is whole."""

    def dense(self) -> Tensor:
        """Return the matrices, or those that the approximations stand for, [Q, O, J]."""
        if self.whole_QOJ is not None:
            return self.whole_QOJ
        assert self.left_QOR is not None
        assert self.right_QRJ is not None
        return self.left_QOR @ self.right_QRJ

    def rows(self, part: slice) -> LayerQueries:
        """Return some of the queries."""
        tensors: dict[str, Any] = {
            name: tensor[part] for name, tensor in vars(self).items() if isinstance(tensor, Tensor)
        }
        return replace(self, **tensors)

    @property
    def num_queries(self) -> int:
        """Q."""
        tensor = self.left_QOR if self.whole_QOJ is None else self.whole_QOJ
        assert tensor is not None
        return len(tensor)


class QueryGradients(Mapping[str, Tensor]):
    """Gradients of queries, {layer: [Q, O, J]}, each layer's made when it is asked for, again each time.

    Until then the traces take T (O + J) numbers of a query and layer; where that is more than O J the matrices are there from the start.
    """

    def __init__(self, num_queries: int, modules: Sequence[LinearModule], *, rotated: bool = False) -> None:
        """Begin with nothing of any query; ``rotated`` says whether the traces will be in the eigenbasis of factors."""
        self.rotated = rotated
        self._num_queries, self._modules = num_queries, {module.name: module for module in modules}
        self._parts: dict[str, list[tuple[list[int], Trace | Tensor]]] = {name: [] for name in self._modules}

    def add(self, numbers: Sequence[int], traces: Traces) -> None:
        """Take the traces of some queries."""
        for name in self._modules:
            trace = traces[name]
            compact = trace.inputs_BTJ[0].numel() + trace.gradients_BTO[0].numel() < trace.size
            self._parts[name].append((list(numbers), trace if compact else trace.row_gradients()))

    def __getitem__(self, name: str) -> Tensor:
        """Return the gradients of a layer, [Q, O, J]."""
        first = self._parts[name][0][1]
        like = first.inputs_BTJ if isinstance(first, Trace) else first
        result_QOJ = like.new_zeros(self._num_queries, *self._modules[name].shape)
        for numbers, part in self._parts[name]:
            result_QOJ[numbers] = part.row_gradients() if isinstance(part, Trace) else part
        return result_QOJ

    def __iter__(self) -> Iterator[str]:
        """Layers."""
        return iter(self._modules)

    def __len__(self) -> int:
        """Number of layers."""
        return len(self._modules)


def raw_gradients(model: PreTrainedModel, queries: Sequence[Example], modules: Sequence[LinearModule], *,
                  max_tokens: int = MAX_TOKENS) -> QueryGradients:  # fmt: skip
    """Return the gradient of each query's summed loss.

    Raises:
        UsageError: a query without a counted token: its gradient is zero, and so would be every score.
        Diverged: a loss or gradient that is not finite.
    """
    result = QueryGradients(len(queries), modules)
    for numbers, traces in _passed(model, queries, modules, max_tokens):
        result.add(numbers, traces)
    return result


def rotated_gradients(
    model: PreTrainedModel, queries: Sequence[Example], factors: Factors, *, max_tokens: int = MAX_TOKENS
) -> QueryGradients:
    """Return the gradient of each query's summed loss in the eigenbasis of ``factors``: to be scored against `train.FittedRows`.

    Costs T (O^2 + J^2) products of a query and layer, and spares `prepared` its 2 O J (O + J).

    Raises:
        UsageError: as `raw_gradients`.
        Diverged: a loss or gradient that is not finite.
    """
    result = QueryGradients(len(queries), factors.modules, rotated=True)
    bases: dict[str, tuple[Tensor, Tensor]] = {}
    for numbers, traces in _passed(model, queries, factors.modules, max_tokens):
        if not bases:
            device = next(model.parameters()).device
            owns = [(module.name, factors[module.name]) for module in factors.modules]
            bases = {name: (own.basis_OO.to(device), own.basis_JJ.to(device)) for name, own in owns}
        result.add(numbers, rotated_traces(traces, bases))
    return result


def _passed(
    model: PreTrainedModel, queries: Sequence[Example], modules: Sequence[LinearModule], max_tokens: int
) -> Iterator[tuple[tuple[int, ...], Traces]]:
    if not queries:
        raise UsageError("influence: no queries; give at least one")
    if empty := [number for number, query in enumerate(queries) if not num_targets(query)]:
        raise UsageError(f"influence: query {empty[0]} has no token that carries loss ({len(empty)} of {len(queries)} have none); an empty answer has no influences, leave it out")  # fmt: skip
    capture = Capture(model, modules)
    batches = batches_of(queries, vocabulary=vocabulary_size(model), device=capture.device, max_tokens=max_tokens)
    for batch in batches:
        with capture.passes():
            traces = capture.traces(batch)
        yield batch.numbers, traces


def prepared(gradients: Mapping[str, Tensor], factors: Factors, *, strategy: Strategy = "ekfac", damping: float = DAMPING,
             rank: int | None = None, seed: int = 0) -> list[LayerQueries]:  # fmt: skip
    """Return (C + d)^-1 g of each query, compressed to ``rank`` if it is given; of rotated gradients in the eigenbasis.

    Raises:
        UsageError: what `inverse.precondition` or `compressed` refuses.
    """
    layers, rotated = [], isinstance(gradients, QueryGradients) and gradients.rotated
    for module in factors.modules:
        # Of identity nothing is read: factors of a large model stay on the disk.
        whole_QOJ = gradients[module.name]
        if strategy != "identity":
            own = factors[module.name]
            whole_QOJ = precondition(whole_QOJ, own, strategy=strategy, damping=damping, rotated=rotated)
        layers.append(replace(compressed(whole_QOJ, module, rank=rank, seed=seed), rotated=rotated))
    return layers


def compressed(whole_QOJ: Tensor, module: LinearModule, *, rank: int | None, seed: int = 0) -> LayerQueries:
    """Return the best approximation of a rank, by a randomised decomposition with two power iterations and a fixed seed.

    A rank at or above the smaller side of the matrix compresses nothing: the matrices are kept whole.

    Raises:
        UsageError: a rank below 1.
    """
    if rank is not None and rank < 1:
        raise UsageError(
            f"influence: the rank of query gradients must be at least 1, got {rank}; None keeps them whole"
        )
    if rank is None or rank >= min(module.shape):
        return LayerQueries(module=module, whole_QOJ=whole_QOJ)
    width = min(rank + _OVERSAMPLED, *module.shape)
    generator = torch.Generator().manual_seed(seed)
    start_JW = torch.randn(module.shape[1], width, generator=generator, dtype=torch.float64).to(whole_QOJ)
    basis_QOW = torch.linalg.qr(whole_QOJ @ start_JW).Q
    for _ in range(_POWER_ITERATIONS):
        basis_QOW = torch.linalg.qr(whole_QOJ @ torch.linalg.qr(whole_QOJ.mT @ basis_QOW).Q).Q
    u, s, v = torch.linalg.svd(basis_QOW.mT @ whole_QOJ, full_matrices=False)
    left_QOR, right_QRJ = basis_QOW @ (u[..., :rank] * s[:, None, :rank]), v[:, :rank]
    fidelity_Q = torch.stack([
        _cosine(whole_OJ, left_OR @ right_RJ)
        for whole_OJ, left_OR, right_RJ in zip(whole_QOJ, left_QOR, right_QRJ, strict=True)
    ])
    return LayerQueries(module=module, left_QOR=left_QOR, right_QRJ=right_QRJ.contiguous(), fidelity_Q=fidelity_Q)


def _cosine(a_OJ: Tensor, b_OJ: Tensor) -> Tensor:
    """Return the cosine of two matrices, 1 if the first is zero.

    In fp64: PyTorch adds the squares of a norm in fp32 one after the other, which at a million of entries comes out 1e-5 too small, and so a
    cosine that much above 1.
    """
    a_D, b_D = a_OJ.flatten().double(), b_OJ.flatten().double()
    norm = a_D.norm()
    return torch.where(norm > 0, (a_D @ b_D / (norm * b_D.norm())).clamp(max=1.0), 1.0)  # clamp: the last bit of fp64


def fidelity_of(layers: Sequence[LayerQueries]) -> dict[str, float | None]:
    """Return the mean cosine between query gradients and their approximations by layer; None where nothing was compressed."""
    return {layer.module.name: None if layer.fidelity_Q is None else float(layer.fidelity_Q.mean()) for layer in layers}
