"""Generalised Gauss-Newton and Fisher matrices: J^T M J with J the Jacobian of some outputs and M what weighs them."""

# N = counted tokens, V = vocabulary, S = labels drawn per token, K = vectors

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from modelassay.curvature.loss import TargetBatch, model_logits, token_losses
from modelassay.curvature.operators import CurvatureOperator, over_vectors
from modelassay.errors import UsageError
from modelassay_kernels import softmax_ggn

_ROWS = 256  # rows of [rows, V] in fp64 while labels are drawn: 311 MB at V = 151,936


class JacobianOperator(CurvatureOperator):
    """J^T M J / N by a forward tangent and a pull-back.

    Costs 6 units against 3 of a gradient (the forward pass is made twice: once with tangents, once kept for the
    pull-back), and 4/3 + 2/(3k) of a gradient each when k vectors share the primal passes.
    """

    def _batch_products(self, batch: TargetBatch, tangents: dict[str, Tensor]) -> dict[str, Tensor]:
        outputs = self._outputs(batch)
        changes_K = over_vectors(lambda tangent: torch.func.jvp(outputs, (self._selected,), (tangent,))[1], tangents)
        output, pulled = torch.func.vjp(outputs, self._selected)[:2]
        weighed_K = torch.stack([self._weighed(output, change) for change in changes_K])
        products: dict[str, Tensor] = over_vectors(lambda change: pulled(change)[0], weighed_K)
        return products

    @abstractmethod
    def _outputs(self, batch: TargetBatch) -> Callable[[dict[str, Tensor]], Tensor]:
        """Return the function of the selected parameters whose Jacobian is J."""

    def _weighed(self, output: Tensor, change: Tensor) -> Tensor:
        """Return M times ``change``."""
        return change


class GaussNewton(JacobianOperator):
    """The generalised Gauss-Newton matrix (1/N) sum_t J_t^T (diag(p_t) - p_t p_t^T) J_t, J_t the Jacobian of the logits.

    It is the Hessian of L without the curvature of the network itself; positive semidefinite. Logits and their tangents,
    [N, V] and [K, N, V] in fp32, are in memory: keep microbatches small where V is large. Schraudolph 2002.
    """

    def _outputs(self, batch: TargetBatch) -> Callable[[dict[str, Tensor]], Tensor]:
        return lambda selected: model_logits(self._module, self._tensors(selected), batch)

    def _weighed(self, output: Tensor, change: Tensor) -> Tensor:
        return softmax_ggn(output, change)


class ExactFisher(GaussNewton):
    """The true Fisher matrix (1/N) sum_t E_{y ~ p_t}[g_t(y) g_t(y)^T], the expectation over all V labels taken exactly.

    For softmax and cross-entropy it *is* the generalised Gauss-Newton matrix, and is computed as such (Martens 2014).
    The contexts are those of the data; only the predicted labels are the model's.
    """


class SampledFisher(JacobianOperator):
    """The true Fisher matrix with labels drawn from the model: (1/NS) sum_t sum_s g_t(y_ts) g_t(y_ts)^T, y_ts ~ p_t.

    Unbiased for `ExactFisher` over the draws; within one operator the draws are fixed, so it is one linear operator. They
    come from one stream of uniform numbers over the counted tokens in reading order, inverted through the distribution in
    fp64: another split into microbatches draws the same labels, up to a uniform number within rounding of a step.
    """

    def __init__(self, *args: Any, num_samples: int = 1, seed: int = 0, **options: Any) -> None:
        """As `CurvatureOperator`; draws ``num_samples`` labels per token, at the price of one forward pass.

        Raises:
            UsageError: fewer than one sample.
        """
        super().__init__(*args, **options)
        if num_samples < 1:
            raise UsageError(f"SampledFisher: num_samples must be at least 1, got {num_samples}")
        self.loss()  # labels of a model that has blown up would mean nothing
        self._labels: dict[int, Tensor] = {}
        # From logits that are exact, so that bf16 draws what fp32 does: its operator is an approximation of the same matrix.
        exact = self.precise() or self
        generator = torch.Generator().manual_seed(seed)
        with exact._passes():
            for batch in self._batches:
                logits_NV = model_logits(exact._module, exact._tensors(exact._selected), batch)
                uniform_NS = torch.rand(batch.num_tokens, num_samples, generator=generator, dtype=torch.float64)
                self._labels[id(batch)] = draw_labels(logits_NV, uniform_NS.to(self.device)).T

    def _outputs(self, batch: TargetBatch) -> Callable[[dict[str, Tensor]], Tensor]:
        labels_SN = self._labels[id(batch)]
        scale = len(labels_SN) ** -0.5  # twice through it, once on each side: the mean over samples

        def losses_SN(selected: dict[str, Tensor]) -> Tensor:
            logits_NV = model_logits(self._module, self._tensors(selected), batch)
            return torch.stack([token_losses(logits_NV, labels_N) * scale for labels_N in labels_SN])

        return losses_SN


class EmpiricalFisher(JacobianOperator):
    """The empirical Fisher matrix, from the gradients of the data's own labels, per token or per sequence.

    * ``per="token"``: (1/N) sum_t g_t g_t^T, g_t the gradient of token t's loss; what an optimiser's squared gradients
      would be at one token per step.
    * ``per="sequence"``: (1/N) sum_s (sum_{t in s} g_t)(sum_{t in s} g_t)^T, one outer product per sequence, as
      influence functions use. Also divided by tokens: under the model's own distribution the cross terms of a sequence
      have mean zero, so that both forms, and the true Fisher, are curvature per token and can be compared.

    Neither is the true Fisher, nor the Hessian, unless the model fits the data. A zero gradient gives the zero matrix.
    """

    def __init__(self, *args: Any, per: Literal["token", "sequence"] = "token", **options: Any) -> None:
        """As `CurvatureOperator`; ``per`` says whose gradients are multiplied out.

        Raises:
            UsageError: another ``per``.
        """
        super().__init__(*args, **options)
        if per not in {"token", "sequence"}:
            raise UsageError(f"EmpiricalFisher: per must be 'token' or 'sequence', got {per!r}")
        self.per = per

    def _outputs(self, batch: TargetBatch) -> Callable[[dict[str, Tensor]], Tensor]:
        def losses(selected: dict[str, Tensor]) -> Tensor:
            losses_N = token_losses(model_logits(self._module, self._tensors(selected), batch), batch.targets_N)
            if self.per == "token":
                return losses_N
            sums_B = losses_N.new_zeros(len(batch.input_ids_BT))
            return sums_B.index_add(0, batch.sequences_N, losses_N)

        return losses


def draw_labels(logits_NV: Tensor, uniform_NS: Tensor) -> Tensor:
    """Return for each uniform number the label at which the distribution function passes it, [N, S]."""
    drawn = [torch.searchsorted(torch.softmax(rows.double(), -1).cumsum(-1), uniform, right=True)
             for rows, uniform in zip(torch.split(logits_NV, _ROWS), torch.split(uniform_NS, _ROWS), strict=True)]  # fmt: skip
    return torch.cat(drawn).clamp_(max=logits_NV.shape[1] - 1)  # the last step may fall short of 1 by rounding
