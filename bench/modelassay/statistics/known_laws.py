"""Are the p-values of exact tests uniform on the steps that each of them can take? Their laws are known, so nothing is estimated."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from modelassay.statistics.calibration import Uniformity
from modelassay.statistics.estimate import Estimate
from modelassay.statistics.ranks import TIE, rank_p
from modelassay.statistics.resampling import Floats

# M = p-values, T = values that any of them can take, S = simulations

SIMULATIONS = 1_999


def uniformity_on_steps(p: Sequence[float], steps: Sequence[Floats], *, simulations: int = SIMULATIONS, seed: int = 0) -> Uniformity:  # fmt: skip
    """Return how far p-values are from uniform on their own steps, and how often chance makes a larger distance.

    ``steps[m]`` are the values that p-value m can take, ascending, the last 1; of a discrete exact test P(p <= t) = t on each
    of them. The distance is max over t of |share of p <= t - mean over m of P(p_m <= t)|: Kolmogorov and Smirnov's, with the staircase
    in place of the diagonal, whose own law is simulated (their table is of continuous p-values and far too lenient here).

    >>> coin = np.array([0.25, 0.75, 1.0])  # heads of two tosses, at least two, one, none
    >>> fair = uniformity_on_steps([0.25, 0.75, 0.75, 1.0], [coin] * 4, simulations=99)
    >>> fair.ks.value, fair.ks.p
    (0.0, 1.0)

    Raises:
        ValueError: no p-values, or not as many staircases, or a p-value that is no step of its own.
    """
    p_M = np.asarray(p, dtype=np.float64)
    if not p_M.size or p_M.size != len(steps):
        message = f"uniformity: needs as many staircases as p-values and one at least, got {len(steps)} and {p_M.size}"
        raise ValueError(message)
    laws = {id(law): np.asarray(law, dtype=np.float64) for law in steps}
    members = {
        key: np.array([place for place, law in enumerate(steps) if id(law) == key], dtype=np.intp) for key in laws
    }
    for key, law in laws.items():
        off = np.abs(p_M[members[key], None] - law[None]).min(axis=1)
        if (off > 1e-6).any() or abs(law[-1] - 1) > 1e-9:
            message = f"uniformity: p = {p_M[members[key]][off.argmax()]:g} is no step of its own law, or the law does not end at 1"
            raise ValueError(message)
    at_T = np.unique(np.concatenate(list(laws.values())))
    expected_T = sum(
        (len(members[key]) / p_M.size * np.append(0.0, law)[np.searchsorted(law, at_T + TIE, side="right")] for key, law in laws.items()),
        start=np.zeros(at_T.size),
    )  # fmt: skip

    def distances(p_SM: Floats) -> Floats:
        below_ST = np.stack([np.searchsorted(row, at_T + 1e-6, side="right") for row in np.sort(p_SM, axis=1)])
        return np.asarray(np.abs(below_ST / p_M.size - expected_T).max(axis=1))

    drawn_SM = np.empty((simulations, p_M.size))
    random = np.random.default_rng(seed)
    for key, law in laws.items():
        uniform = random.random((simulations, len(members[key])))
        drawn_SM[:, members[key]] = law[np.searchsorted(law, uniform).clip(max=law.size - 1)]
    distance = float(distances(p_M[None])[0])
    place = rank_p(distance, distances(drawn_SM))
    ks = Estimate(value=distance, n=p_M.size, p=place.p, min_p=place.min_p,
                  note=f"reference: {simulations} simulations from the tests' own laws")  # fmt: skip
    share_M = (np.arange(p_M.size) + 0.5) / p_M.size
    quantiles = at_T[np.searchsorted(expected_T, share_M - TIE).clip(max=at_T.size - 1)]
    return Uniformity(ks=ks, intraclass_correlation=None, expected=quantiles, observed=np.sort(p_M))
