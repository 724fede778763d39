"""One cell: Lanczos on one operator, random probes off its space, and what both tell."""

from __future__ import annotations

import math
import resource
import sys
from contextlib import AbstractContextManager

import torch
import transformers  # noqa: F401 - 4 s, imported once before cells are forked

from modelassay.curvature.estimate import Cost, Estimate
from modelassay.curvature.estimators import moments
from modelassay.curvature.operators import CurvatureOperator, Hessian
from modelassay.curvature.spectrum import Spectrum, check_size, summary
from modelassay.experiments.spectral.measure import BLOCK, dense_eigenvalues, exact_numbers, operator_of
from modelassay.experiments.spectral.params import Params
from modelassay.experiments.spectral.sitting import Counted, Sitting, empty_store
from modelassay.meter import Meter
from modelassay.state import State


def run(params: Params, meter: Meter, state: State) -> None:
    """Record ``loss``, ``gradient_norm``, each quantity of `Spectrum` with its interval, the ``ritz`` values and ``weight``s.

    Units are ``hvp``: one product over all microbatches. Goes on after any product; the numbers do not depend on where it
    was interrupted.

    Raises:
        Diverged: a loss or a product that is not finite: a finding about the model.
    """
    operator = operator_of(params, store=state.store)
    check_size(operator.size, params.steps)
    sitting = Sitting(timed := Counted(operator, lambda: _unit(params, operator, meter)), state)
    probed = len(sitting.payload["samples"]) == params.probes
    first = sitting.lanczos(0, steps=params.steps, seed=params.seed, basis_wanted=not probed)
    samples_K3 = sitting.probes(first, params.probes, seed=params.seed + 1)
    first.basis = empty_store(timed)  # M vectors of the model's size, which nothing needs any more
    others = [
        sitting.lanczos(number, steps=params.steps, seed=params.seed + 1, basis_wanted=False)
        for number in range(1, params.runs)
    ]
    vector_bytes = (params.steps + 1) * operator.size * operator.dtype.itemsize
    cost = Cost(products=params.products, vector_bytes=vector_bytes, device_peak_bytes=None)
    found = moments(first, samples_K3, size=operator.size, cost=cost)
    _record(summary(timed, first, found, cost=cost, num_vectors=0), meter)
    for number, space in enumerate([first, *others]):
        values, residuals, rows = space.ritz()
        for index, (value, residual, row) in enumerate(zip(values, residuals, rows, strict=True)):
            meter.metric("ritz", value, run=number, at=index)
            meter.metric("residual", residual, run=number, at=index)
            meter.metric("weight", row[0] ** 2, run=number, at=index)
    meter.metric("loss", operator.loss())
    meter.metric("gradient_norm", float(operator.gradient().norm()))
    for name, count in (("parameters", operator.size), ("tokens", operator.num_tokens), ("products", cost.products),
                         ("vector_bytes", vector_bytes)):  # fmt: skip
        meter.metric(name, count)
    if params.dense:
        values_P = dense_eigenvalues(timed)
        for name, exact in exact_numbers(values_P).items():
            meter.metric("exact", exact, quantity=name)
        for index, value in enumerate(values_P):
            meter.metric("eigenvalue", float(value), at=index)
    sitting.close()


def _unit(params: Params, operator: CurvatureOperator, meter: Meter) -> AbstractContextManager[object]:
    """One product, or one block of the whole matrix, with the memory that the process had reached before it; says how far the cell is."""
    number = meter.counters.get("hvp", 0) + 1
    blocks = math.ceil(operator.size / BLOCK) if params.dense else 0
    print(f"hvp {number} of {params.products + blocks}", flush=True)
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    device = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    graphs = operator.bytes_kept if isinstance(operator, Hessian) else 0
    return meter.microbatch("hvp", tokens=operator.num_tokens, host_peak_bytes=host, device_peak_bytes=device,
                            graph_bytes=graphs)  # fmt: skip


def _record(spectrum: Spectrum, meter: Meter) -> None:
    estimates: dict[str, Estimate] = {
        name: getattr(spectrum, name)
        for name in ("lambda_max", "lambda_min", "centre", "spread", "gap", "outliers", "ratio", "trace")
    }
    estimates |= {f"sigma_bulk {name}": sigma for name, sigma in spectrum.sigma_bulk.items()}
    for name, estimate in estimates.items():
        quantity, _, definition = name.partition(" ")
        labels = {"definition": definition} if definition else {}
        for bound in ("value", "low", "high"):
            meter.metric(quantity, getattr(estimate, bound), bound=bound, **labels)
