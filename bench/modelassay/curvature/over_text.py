"""The Hessian's ends and width on a text in pieces, so that one measurement also tells how far another text would move it.

Around twenty products a checkpoint, where `spectrum` takes 130: enough for lambda_max and for the standard deviation of *all*
eigenvalues, not for a bulk without its outliers. The interval holds both what the probes leave open and what the text does.
"""

# P = parameters, C = pieces of text, M = Lanczos steps, K = probes, D = resamples

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from modelassay.curvature.estimators import Moments, deflated_moments
from modelassay.curvature.lanczos import extend, krylov, ritz_ends, ritz_estimate
from modelassay.curvature.operators import Hessian
from modelassay.errors import UsageError
from modelassay.statistics.estimate import LEVEL, Estimate, undefined
from modelassay.statistics.intervals import student_quantile

Array = NDArray[np.float64]
REMOVED = {"all": 0, "without_1": 1, "without_5": 5}
"""Definitions of sigma_bulk by how many Ritz values of largest magnitude are taken out; the first is the one to be tested."""
TESTED = "all"
DRAWS = 999


class HessianOverText(Hessian):
    """The Hessian, each microbatch a piece of the text, which tells what each piece adds to a product.

    Keeps C vectors of the model's size while it multiplies.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        """As `Hessian`.

        Raises:
            UsageError: also fewer than two microbatches with counted tokens, or bf16, whose products by piece are no better than itself.
        """
        super().__init__(*args, **options)
        if self.precision == "bf16":
            raise UsageError(
                "HessianOverText: bf16 products are off by a percent; give precision='fp32', whatever the model's weights are in"
            )
        if len(self._batches) < 2:
            raise UsageError(
                f"HessianOverText: needs two microbatches with counted tokens at least, got {len(self._batches)}"
            )
        counts = np.array([batch.num_tokens for batch in self._batches], dtype=np.float64)
        self.share_C: Array = counts / counts.sum()
        """Share of the counted tokens in each piece."""
        self.inner_C: list[Array] = []
        """Of each product so far v^T H_c v by piece."""
        self.square_C: list[Array] = []
        """Of each product so far (H v)^T H_c v by piece."""

    def _multiply(self, vectors_KP: Tensor) -> Tensor:
        self.loss()
        rows = [self._product_in_pieces(vector_P) for vector_P in vectors_KP]
        return torch.stack(rows)

    def _product_in_pieces(self, vector_P: Tensor) -> Tensor:
        parts_CP = torch.zeros(len(self._batches), self.size, dtype=self.dtype, device=self.device)
        with self._passes():
            tangents = self.parameters.unflatten(vector_P[None], self._compute)
            for piece, batch in enumerate(self._batches):
                with self._timed(batch, 1):
                    self.parameters.add_flat(parts_CP[piece : piece + 1], self._batch_products(batch, tangents))
                    parts_CP[piece] /= batch.num_tokens
        whole_P = torch.from_numpy(self.share_C).to(parts_CP) @ parts_CP
        self.inner_C.append((parts_CP @ vector_P).double().cpu().numpy())
        self.square_C.append((parts_CP @ whole_P).double().cpu().numpy())
        return whole_P


@dataclass(frozen=True, kw_only=True)
class TextSpectrum:
    """What about twenty products tell of a Hessian's spectrum on one text."""

    lambda_max: Estimate
    """The largest eigenvalue on this text, with its residual bound."""
    sigma_bulk: Mapping[str, float]
    """For each definition in `REMOVED`, the standard deviation of the eigenvalues that stay."""
    ratio: Mapping[str, Estimate]
    """lambda_max / sigma_bulk by definition; that of `TESTED` with an interval over probes and text together."""
    trace: float
    probe_sd: float
    """Standard error of the tested ratio from the probes alone."""
    text_sd: float
    """Its standard error from the sampling of the text alone."""
    products: int
    nodes: tuple[float, ...] = ()
    """Ritz values, ascending: with ``weights`` the Lanczos quadrature of the spectral density, from one start vector."""
    weights: tuple[float, ...] = ()
    """Of the nodes; they sum to 1. One start vector tells no shares: average over some."""


def spectrum_over_text(operator: HessianOverText, *, steps: int = 12, probes: int = 8, seed: int = 0, level: float = LEVEL,
                       draws: int = DRAWS) -> TextSpectrum:  # fmt: skip
    """Measure lambda_max, the width of the spectrum and their ratio, with a bootstrap over the pieces of text.

    ``steps`` + ``probes`` + 1 products. Resampling the text anew would take as many for each resample. To first order a sum over
    pieces moves with them: d lambda_max = u^T dH u at the top eigenvector, d tr H^2 = 2 tr(H dH), d tr H = tr dH, and every
    term is known by piece from the products that were made. Where the pieces differ much from each other, which turns the top eigenvector,
    that is too wide (by a factor of two on pieces of four rows of random tokens). Pieces of the bootstrap are few, so its deviations are stretched by
    sqrt(C / (C - 1)). The error of the probes is the jackknife's over them. Both are added as independent.

    Raises:
        UsageError: fewer than two probes, or more steps than parameters.
    """
    if not 1 <= steps < operator.size:
        raise UsageError(
            f"spectrum_over_text: steps must be at least 1 and below {operator.size} parameters, got {steps}"
        )
    before, first = operator.products, len(operator.inner_C)
    space = extend(krylov(operator, seed=seed), operator, steps)
    values, _, rows = space.ritz()
    ends = ritz_ends(space, operator, [0])
    top = ritz_estimate(space, operator, *ends[0], upward=True)
    deflated = deflated_moments(operator, space, num_probes=probes, seed=seed + 1)
    inner_XC, square_XC = np.array(operator.inner_C[first:]), np.array(operator.square_C[first:])
    operator.matvec(space.vectors(rows[:1])[0])
    top_C = operator.inner_C[-1]
    trace_C, square_C = (_by_piece(values_XC, deflated) for values_XC in (inner_XC, square_XC))
    trace, square = float(operator.share_C @ trace_C), float(operator.share_C @ square_C)
    by_size = values[np.argsort(-np.abs(values))]
    sigmas = {name: _width(trace, square, by_size[:count], operator.size) for name, count in REMOVED.items()}
    ratios = {name: _plain(top.value, sigma) for name, sigma in sigmas.items()}
    text_sd = _text_sd(operator, top_C, trace_C, square_C, seed=seed, draws=draws)
    probe_sd = _probe_sd(deflated, top.value)
    if ratios[TESTED].defined:
        half = math.hypot(text_sd, probe_sd) * student_quantile(min(probes, len(operator.share_C)) - 1, level)
        value = ratios[TESTED].value
        ratios[TESTED] = Estimate(value=value, low=value - half, high=value + half, level=level, n=len(operator.share_C),
                                  method="probes and pieces of text, first order")  # fmt: skip
    return TextSpectrum(lambda_max=top, sigma_bulk=sigmas, ratio=ratios, trace=trace, probe_sd=probe_sd, text_sd=text_sd,
                        products=operator.products - before, nodes=tuple(values[::-1].tolist()),
                        weights=tuple((rows[::-1, 0] ** 2).tolist()))  # fmt: skip


def _by_piece(values_XC: Array, deflated: Moments) -> Array:
    """Return a trace by piece: the sum over the Krylov space's basis, and off it the ratio estimate of `Moments`."""
    steps, left = deflated.steps, deflated.size - deflated.steps
    off_C = values_XC[steps:].sum(axis=0) / float(deflated.lengths_K.sum()) * left
    result: Array = values_XC[:steps].sum(axis=0) + off_C
    return result


def _width(trace: float, square: float, removed: Array, size: int) -> float:
    left = size - len(removed)
    mean = (trace - float(removed.sum())) / left
    return math.sqrt(max((square - float((removed**2).sum())) / left - mean**2, 0.0))


def _plain(top: float, sigma: float) -> Estimate:
    return Estimate(value=top / sigma, method="ratio", note="no interval for this definition") if sigma else undefined("sigma_bulk is 0")  # fmt: skip


def _text_sd(
    operator: HessianOverText, top_C: Array, trace_C: Array, square_C: Array, *, seed: int, draws: int
) -> float:
    pieces = len(operator.share_C)
    counts_DC = np.random.default_rng(seed).multinomial(pieces, np.full(pieces, 1 / pieces), size=draws)
    weights_DC = counts_DC * operator.share_C
    weights_DC = weights_DC / weights_DC.sum(axis=1, keepdims=True)
    square = float(operator.share_C @ square_C)
    squares_D = square + 2 * (weights_DC @ square_C - square)
    variances_D = squares_D / operator.size - (weights_DC @ trace_C / operator.size) ** 2
    kept_D = variances_D > 0
    if kept_D.sum() < 2:
        return math.nan
    ratios_D = (weights_DC @ top_C)[kept_D] / np.sqrt(variances_D[kept_D])
    return float(ratios_D.std(ddof=1)) * math.sqrt(pieces / (pieces - 1))


def _probe_sd(deflated: Moments, top: float) -> float:
    """Jackknife over the probes of top / sigma (all eigenvalues)."""
    left, probes = deflated.size - deflated.steps, len(deflated.lengths_K)
    inside_trace, inside_square = float(deflated.values_M.sum()), deflated.square
    ratios = np.empty(probes)
    for probe in range(probes):
        keep = np.arange(probes) != probe
        length = float(deflated.lengths_K[keep].sum())
        trace = inside_trace + float(deflated.first_K[keep].sum()) / length * left
        square = inside_square + float(deflated.second_K[keep].sum()) / length * left
        variance = square / deflated.size - (trace / deflated.size) ** 2
        ratios[probe] = top / math.sqrt(variance) if variance > 0 else math.nan
    return float(ratios.std()) * math.sqrt(probes - 1)
