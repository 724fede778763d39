"""The Hessian of a language model's loss as a linear operator, exact, and by finite differences where that is asked for."""

# P = selected parameters, K = vectors

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator
from torch import Tensor

from modelassay.curvature.agreement import CALL_ERRORS, check_agreement, check_callable
from modelassay.curvature.graph import Graph, free_bytes
from modelassay.curvature.language_model import check_model, parameter_dtype, vocabulary_size
from modelassay.curvature.layers import StandIns, replacements
from modelassay.curvature.loss import (
    Attention,
    CausalLoss,
    Microbatch,
    TargetBatch,
    attention_for,
    count_tokens,
    model_loss,
    second_order,
)
from modelassay.curvature.parameters import ParameterSubset, select_parameters
from modelassay.curvature.second_derivative import check_second_derivative
from modelassay.errors import Diverged, UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Precision = Literal["bf16", "fp32", "fp64"]
_COMPUTE = {"bf16": torch.bfloat16, "fp32": torch.float32, "fp64": torch.float64}
_NAMES: dict[torch.dtype, Precision] = {torch.bfloat16: "bf16", torch.float32: "fp32", torch.float64: "fp64"}

Unit = Callable[..., AbstractContextManager[object]]
"""``Meter.microbatch``: called with a stage, ``tokens`` and ``vectors``, times what happens inside."""


class Operator(ABC):
    """A symmetric linear operator over flat vectors; everything the estimators need to know."""

    size: int
    """P."""
    dtype: torch.dtype
    """Of the vectors that go in and come out."""
    device: torch.device
    products: int = 0
    """Vectors multiplied so far."""
    device_peak_bytes: int | None = None
    """Highest allocation seen on a CUDA device since its counters were last reset; None elsewhere."""

    def matvec(self, vector_P: Tensor) -> Tensor:
        """Return the product with one vector, [P]."""
        return self.matmat(vector_P[None])[0]

    def matmat(self, vectors_KP: Tensor) -> Tensor:
        """Return the products with the rows of ``vectors_KP``, as rows, [K, P].

        Raises:
            UsageError: vectors of another length.
            Diverged: a product that is not finite, although the vectors are.
        """
        if vectors_KP.dim() != 2 or vectors_KP.shape[1] != self.size:
            raise UsageError(
                f"curvature: vectors must be rows of {self.size} entries, got shape {tuple(vectors_KP.shape)}"
            )
        vectors_KP = vectors_KP.to(self.device, self.dtype)
        result_KP = self._multiply(vectors_KP)
        self.products += len(vectors_KP)
        if self.device.type == "cuda":
            self.device_peak_bytes = max(self.device_peak_bytes or 0, torch.cuda.max_memory_allocated(self.device))
        # A sum is finite only if all entries are; asking each costs a twentieth of a gradient.
        if not torch.isfinite(result_KP.sum()) and not torch.isfinite(result_KP).all():
            if not torch.isfinite(vectors_KP).all():
                raise UsageError("curvature: a vector to be multiplied holds NaN or infinity; give finite vectors")
            raise Diverged(f"curvature: {type(self).__name__} times a finite vector is not finite")
        return result_KP

    def precise(self) -> Operator | None:
        """Return an operator of the same matrix whose products are exact up to rounding in ``dtype``; None if there is none.

        What an estimate says is certain, it must take from products of this one.
        """
        return self

    def precise_matvec(self, vector_P: Tensor) -> Tensor:
        """Return the product with one vector by `precise`, by this operator if there is none."""
        precise = self.precise() or self
        product_P = precise.matvec(vector_P)
        if precise is not self:
            self.products += 1
        return product_P

    def to_scipy(self) -> LinearOperator:
        """Return the operator for SciPy, over NumPy vectors on the host."""
        kind = np.dtype(str(self.dtype).removeprefix("torch."))

        def multiply(columns: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
            rows_KP = torch.from_numpy(np.ascontiguousarray(columns.reshape(self.size, -1).T, dtype=kind))
            product: np.ndarray[Any, Any] = self.matmat(rows_KP).cpu().numpy().T.reshape(columns.shape)
            return product

        return LinearOperator((self.size, self.size), dtype=kind, matvec=multiply, rmatvec=multiply, matmat=multiply)

    @abstractmethod
    def _multiply(self, vectors_KP: Tensor) -> Tensor: ...


class DenseOperator(Operator):
    """A symmetric matrix [P, P] as an operator: for tests, and for spectra that are known.

    >>> DenseOperator(torch.diag(torch.tensor([1.0, 2.0]))).matvec(torch.ones(2))
    tensor([1., 2.])
    """

    def __init__(self, matrix_PP: Tensor) -> None:
        """Keep the matrix as it is."""
        self.matrix_PP, self.size = matrix_PP, len(matrix_PP)
        self.dtype, self.device = matrix_PP.dtype, matrix_PP.device

    def _multiply(self, vectors_KP: Tensor) -> Tensor:
        return vectors_KP @ self.matrix_PP


class CurvatureOperator(Operator):
    """What the Hessian, the Gauss-Newton matrix and the Fisher matrices have in common.

    With l_t the negative log-likelihood of counted token t and N their number over all microbatches, the loss is
    L = (1/N) sum_t l_t: a ragged last microbatch weighs what its tokens weigh, and the operator does not depend on the
    split. It belongs to the parameters at its making (kept by reference where the precision is theirs): make a new one
    after a training step.
    """

    exact: ClassVar[bool] = True
    """False where a product is an approximation of what the class is named after."""
    most_per_pass: ClassVar[int] = 1
    """Vectors that share a primal pass unless told otherwise: one where each costs memory."""

    def __init__(self, model: PreTrainedModel, batches: Sequence[Microbatch], *, parameters: ParameterSubset | None = None,
                 precision: Precision | None = None, vectors_per_pass: int | None = None, unit: Unit | None = None) -> None:  # fmt: skip
        """Look at ``model`` on ``batches``; nothing is computed yet.

        Args:
            model: a causal language model of transformers, in evaluation mode, on one device; in PEFT's wrapper or compiled
                by torch.compile if it is. What a model detaches is constant, as in its own training (DoRA's norms).
            batches: see `loss.microbatches`.
            parameters: the subset acted on, from `select_parameters`; all if None. The others are held fixed.
            precision: of weights and activations in the passes; the model's own if None. Losses, softmax, sums over
                microbatches and vectors are fp32, or fp64 under fp64. Relative error of a product of the Hessian
                against fp64: fp32 4e-7, bf16 9e-3 (Qwen2, double backward).
            vectors_per_pass: vectors that share one primal pass, ``most_per_pass`` if None. In all but the Hessian each keeps its own
                tangents of all activations in memory.
            unit: times each microbatch, such as ``meter.microbatch``.

        Raises:
            UsageError: a model that `check_model` refuses or of a precision without a policy, or batches that `count_tokens` refuses.
        """
        inner = check_model(model)
        if vectors_per_pass is not None and vectors_per_pass < 1:
            raise UsageError(f"curvature: vectors_per_pass must be at least 1, got {vectors_per_pass}")
        dtype = parameter_dtype(model)
        if precision is None and dtype not in _NAMES:
            raise UsageError(f"curvature: no precision policy for a model in {dtype}; give precision='fp32'")
        self.precision: Precision = precision or _NAMES[dtype]
        self.parameters = parameters or select_parameters(model)
        self.size, self.device = self.parameters.size, next(model.parameters()).device
        self.dtype = torch.float64 if self.precision == "fp64" else torch.float32
        self._batches = count_tokens(batches, vocabulary=vocabulary_size(inner), device=self.device)
        self.num_tokens = sum(batch.num_tokens for batch in self._batches)
        self._module, self._unit = CausalLoss(model), unit
        self._vectors_per_pass = vectors_per_pass or self.most_per_pass
        self._compute = _COMPUTE[self.precision]
        self._selected, self._fixed = self._point(self._compute)
        self.attention: Attention = attention_for(model)
        """Eager where the model, or a mask among its batches, asks for what ours cannot do: seen at the first pass."""
        self._loss: float | None = None
        self._precise: CurvatureOperator | None = None

    def precise(self) -> CurvatureOperator | None:
        """Return itself; in bf16, whose products are off by a percent, the same over the model's own weights in fp32."""
        if self.precision != "bf16":
            return self
        if self._precise is None:
            self._precise = self._in_fp32()
        return self._precise

    def _in_fp32(self) -> CurvatureOperator:
        other = copy(self)
        other.precision, other._compute, other._loss = "fp32", torch.float32, None
        other._selected, other._fixed = self._point(torch.float32)
        return other

    def _point(self, dtype: torch.dtype) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the selected parameters, and all other parameters and buffers as ``model.<name>``, in ``dtype``."""
        # Only fp64 asks more of a buffer than it has: rotary frequencies stay fp32 under bf16, as transformers loads them.
        wide = dtype == torch.float64
        model = self._module.model
        tensors = {name: parameter.detach().to(dtype) for name, parameter in model.named_parameters()}
        selected = {name: tensors.pop(name) for name in self.parameters.names}
        for name, buffer in model.named_buffers():
            tensors[name] = buffer.double() if wide and buffer.is_floating_point() else buffer
        return selected, {f"model.{name}": tensor for name, tensor in tensors.items()}

    def loss(self) -> float:
        """Return L; the first call compares it with the model's own (`agreement`), before any product is made.

        Raises:
            Diverged: a loss that is NaN or infinite, with the microbatch it comes from.
            UsageError: a model that computes something else than what is differentiated here.
        """
        if self._loss is None:
            try:
                self._loss = self._first_loss()
            except CALL_ERRORS as error:
                if not isinstance(error, torch.OutOfMemoryError):
                    check_callable(self._module, *self._precise_point(), self._batches[0], attention=self.attention)
                raise
            self._check_agreement()
        return self._loss

    def _first_loss(self) -> float:
        try:
            return self._mean_loss()
        except ValueError:
            if self.attention == "eager":
                raise
            self.attention = "eager"
            return self._mean_loss()

    def _check_agreement(self) -> None:
        check_agreement(
            self._module,
            *self._precise_point(),
            self._batches,
            attention=self.attention,
            stand_ins=self._replacements(),
        )

    def _precise_point(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        dtype = torch.float64 if self.precision == "fp64" else torch.float32
        return (self._selected, self._fixed) if dtype == self._compute else self._point(dtype)

    def _replacements(self) -> StandIns:
        """Return what products compute in place of modules."""
        return {}

    def _mean_loss(self) -> float:
        total = 0.0
        with self._passes():
            for index, batch in enumerate(self._batches):
                part = float(model_loss(self._module, self._tensors(self._selected), batch))
                if not np.isfinite(part):
                    raise Diverged(f"curvature: the loss of microbatch {index} (of those with counted tokens) is {part}; a model that has blown up has no curvature")  # fmt: skip
                total += part
        return total / self.num_tokens

    def gradient(self) -> Tensor:
        """Return the gradient of L, [P]."""
        self.loss()
        return self._gradient(self._selected)

    def _multiply(self, vectors_KP: Tensor) -> Tensor:
        self.loss()
        result_KP = torch.zeros_like(vectors_KP)
        with self._passes():
            for start in range(0, len(vectors_KP), self._vectors_per_pass):
                rows = slice(start, start + self._vectors_per_pass)
                tangents = self.parameters.unflatten(vectors_KP[rows], self._compute)
                for batch in self._batches:
                    with self._timed(batch, len(vectors_KP[rows])):
                        self.parameters.add_flat(result_KP[rows], self._batch_products(batch, tangents))
        return result_KP.div_(self.num_tokens)

    @abstractmethod
    def _batch_products(self, batch: TargetBatch, tangents: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the products with the tangents {name: [K, *shape]}, summed over the tokens of one microbatch."""

    def _gradient(self, selected: dict[str, Tensor]) -> Tensor:
        result_1P = torch.zeros(1, self.size, dtype=self.dtype, device=self.device)
        with self._passes():
            for batch in self._batches:
                with self._timed(batch, 1):
                    self.parameters.add_flat(result_1P, self._batch_gradient(batch, selected))
        return result_1P[0].div_(self.num_tokens)

    def _batch_gradient(self, batch: TargetBatch, selected: dict[str, Tensor]) -> dict[str, Tensor]:
        # By autograd itself: torch.func refuses functions whose backward pass is written without it.
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in selected.items()}
        with torch.enable_grad():
            loss = self._batch_loss(batch)(leaves)
            gradient = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
        return dict(zip(leaves, gradient, strict=True))

    def _batch_loss(self, batch: TargetBatch) -> Callable[[dict[str, Tensor]], Tensor]:
        return lambda selected: model_loss(self._module, self._tensors(selected), batch)

    def _tensors(self, selected: dict[str, Tensor]) -> dict[str, Tensor]:
        return self._fixed | {f"model.{name}": tensor for name, tensor in selected.items()}

    def _passes(self) -> AbstractContextManager[None]:
        return second_order(self._module.model, self._compute, self.attention)

    def _timed(self, batch: TargetBatch, num_vectors: int) -> AbstractContextManager[object]:
        if self._unit is None:
            return nullcontext()
        return self._unit(type(self).__name__, tokens=batch.num_tokens, vectors=num_vectors)


class Hessian(CurvatureOperator):
    """The Hessian of L, exact: the gradient of <grad L, v> (reverse over reverse).

    In units of one matrix product with the weights, a gradient costs 3. Writing the gradient down as a graph costs 2 (its values for
    weights are not formed, see `layers`), and each vector's walk through that graph 6: 2.67 gradients for a vector alone,
    2 for each one more; measured are 3.1 and 2.2 (8 layers of 128, 4 x 128 tokens, fp32, one thread). The graph of a microbatch is
    kept for later products while there is room, and costs them nothing then.
    """

    most_per_pass = sys.maxsize

    def __init__(self, *args: Any, graph_bytes: int | None = None, **options: Any) -> None:
        """As `CurvatureOperator`; all vectors of one call share a graph unless ``vectors_per_pass`` says otherwise.

        Args:
            *args: of `CurvatureOperator`.
            graph_bytes: how much memory graphs may hold between products; a quarter of what is free at the first product if
                None, 0 keeps none. A graph is counted by the tensors it saves.
            **options: of `CurvatureOperator`.
        """
        super().__init__(*args, **options)
        self._graph_bytes = graph_bytes
        self._graphs: dict[int, Graph] = {}
        self._stand_ins: StandIns | None = None

    def _in_fp32(self) -> CurvatureOperator:
        other: Any = super()._in_fp32()
        other._graphs, other._stand_ins, other._graph_bytes = {}, None, 0
        return other  # type: ignore[no-any-return]

    @property
    def bytes_kept(self) -> int:
        """Bytes that the graphs kept so far hold."""
        return sum(graph.num_bytes for graph in self._graphs.values())

    def _check_agreement(self) -> None:
        super()._check_agreement()
        check_second_derivative(self._module, self._point, self._batches[0], attention=self.attention,
                                stand_ins=self._replacements())  # fmt: skip

    def _batch_products(self, batch: TargetBatch, tangents: dict[str, Tensor]) -> dict[str, Tensor]:
        graph = self._graphs.get(id(batch)) or self._graph_of(batch)
        rows = range(len(next(iter(tangents.values()))))
        columns = [
            graph.product({name: part[k] for name, part in tangents.items()},
                          last=k == rows[-1] and id(batch) not in self._graphs)
            for k in rows
        ]  # fmt: skip
        if len(columns) == 1:
            return {name: part[None] for name, part in columns[0].items()}  # no copy
        return {name: torch.stack([column[name] for column in columns]) for name in tangents}

    def _graph_of(self, batch: TargetBatch) -> Graph:
        if self._graph_bytes is None:
            self._graph_bytes = free_bytes(self.device) // 4
        held = [*self._selected.values(), *self._fixed.values()]
        graph = Graph(self._batch_loss(batch), self._selected, self._replacements(), held=held)
        if self.bytes_kept + graph.num_bytes <= self._graph_bytes:
            self._graphs[id(batch)] = graph
        return graph

    def _replacements(self) -> StandIns:
        if self._stand_ins is None:
            with self._passes():
                self._stand_ins = replacements(self._module)
        return self._stand_ins


class FiniteDifferenceHessian(CurvatureOperator):
    """The Hessian of L by central differences of the gradient: an approximation, at two gradients per product.

    H v = |v| (g(theta + h v/|v|) - g(theta - h v/|v|)) / 2h + O(h^2) + O(rounding / h), with
    h = eps^(1/3) (1 + |theta|), eps the machine precision: the two errors then are of one size, about eps^(2/3) (fp32
    2e-5, fp64 4e-11, times the ratio of the third to the second derivative along v). It needs first derivatives only.
    """

    exact = False

    def __init__(self, *args: Any, step: float | None = None, **options: Any) -> None:
        """As `CurvatureOperator`; ``step`` is h, by the formula above if None.

        Raises:
            UsageError: bf16, whose eight bits leave nothing of a difference, or a step that is not positive.
        """
        super().__init__(*args, **options)
        if self.precision == "bf16":
            raise UsageError(
                "FiniteDifferenceHessian: bf16 rounds the step away; give precision='fp32', or use Hessian"
            )
        if step is not None and not step > 0:
            raise UsageError(f"FiniteDifferenceHessian: step must be positive, got {step}")
        norm = float(sum(tensor.double().square().sum() for tensor in self._selected.values()) ** 0.5)
        self.step = step or torch.finfo(self.dtype).eps ** (1 / 3) * (1 + norm)

    def precise(self) -> None:
        """Return nothing: how far a difference is from a derivative is not known."""

    def _multiply(self, vectors_KP: Tensor) -> Tensor:
        self.loss()
        return torch.stack([self._difference(vector_P) for vector_P in vectors_KP])

    def _difference(self, vector_P: Tensor) -> Tensor:
        norm = float(vector_P.norm())
        if norm == 0:
            return torch.zeros_like(vector_P)
        step = self.parameters.unflatten(vector_P[None] * (self.step / norm), self.dtype)
        ahead = self._gradient({name: tensor + step[name][0] for name, tensor in self._selected.items()})
        behind = self._gradient({name: tensor - step[name][0] for name, tensor in self._selected.items()})
        return (ahead - behind) * (norm / (2 * self.step))

    def _batch_products(self, batch: TargetBatch, tangents: dict[str, Tensor]) -> dict[str, Tensor]:
        raise NotImplementedError  # differences are taken of the whole gradient, once per sign


def over_vectors(function: Callable[[Any], Any], stacked: Any) -> Any:
    """Apply ``function`` to each row of tensors [K, ...], in one pass that shares what does not depend on the row.

    One row goes without vmap, whose rules cost time and not every kernel has.
    """
    leaves = list(stacked.values()) if isinstance(stacked, dict) else [stacked]
    if len(leaves[0]) > 1:
        return torch.func.vmap(function)(stacked)
    row = {name: part[0] for name, part in stacked.items()} if isinstance(stacked, dict) else stacked[0]
    result = function(row)
    return {name: part[None] for name, part in result.items()} if isinstance(result, dict) else result[None]
