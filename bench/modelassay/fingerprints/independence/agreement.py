"""Do two matchings of the same neurons, made from different matrices, agree? What finds copies that were relabelled and rotated."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from modelassay.fingerprints.independence.matching import match_units
from modelassay.fingerprints.independence.matrices import Floats, Neurons, row_products
from modelassay.fingerprints.procrustes import procrustes
from modelassay.statistics.permutations import poisson_tail_log_bound

RATE = 3.0
"""How much more often than chance the two matchings of an independent pair are allowed to agree: gate and up of a neuron share
features, so that agreement by chance is a little more frequent than one per network."""


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How many neurons two matchings sent to the same partner."""

    count: int
    of: int
    expected: float
    """One per network where all its neurons are matched, if the two matchings were independent."""
    log10_p: float
    """Of a Poisson law of `RATE` times the expected count: calibrated, not exact."""


def apart(network: Neurons) -> Floats:
    """Return each neuron's first matrix without its part along the second, [n, D]: else strangers whose gates resemble their ups agree."""
    gate_nD, up_nD = network.parts()[:2]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        share_n = np.nan_to_num(row_products(gate_nD, up_nD) / row_products(up_nD, up_nD), posinf=0, neginf=0)
        rest: Floats = gate_nD - share_n[:, None].astype(np.float32) * up_nD
    return rest


def agreement(networks: Iterable[tuple[Neurons, Neurons]], embeddings: tuple[Floats, Floats]) -> Agreement | None:
    """Turn one model's residual stream onto the other's and match its neurons twice; None where no network can be compared.

    The turn is the orthogonal Procrustes solution over the embeddings of shared tokens. Of each network the neurons are
    matched by the gate alone and by up alone (by up and by down where there is no gate), and equal partners are counted.
    What a neuron's gate has in common with its up is taken out of it before (`apart`).
    """
    turn_DD = procrustes(*embeddings)
    count, of, expected = 0, 0, 0.0
    for seed, (a, b) in enumerate(networks):
        if len(a.parts()) != len(b.parts()):
            continue
        turned, other = ([apart(network), network.parts()[1]] for network in (a, b))
        first, second = (
            match_units([turned[part] @ turn_DD], [other[part]], seed=seed, ties=part, by_cosine=True)
            for part in (0, 1)
        )  # the same units, ties not broken alike
        if first is None or second is None:
            continue
        partners = dict(zip(first.units.tolist(), first.partners.tolist(), strict=True))
        equal = [
            partners.get(unit) == partner
            for unit, partner in zip(second.units.tolist(), second.partners.tolist(), strict=True)
        ]
        count, of, expected = count + sum(equal), of + len(equal), expected + len(equal) / first.sizes[1]
    if not of:
        return None
    log_p = poisson_tail_log_bound(count, RATE * expected)
    return Agreement(count=count, of=of, expected=expected, log10_p=log_p / math.log(10))
