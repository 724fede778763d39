"""Crossings keep their false-alarm rate whatever the noise; a planted lead is found, a planted null is not."""

import math
import os

import numpy as np
import pytest
from numpy.typing import NDArray

from modelassay.statistics.crossings import first_crossings, lead
from modelassay.statistics.forecasts import log_scores
from modelassay.statistics.groups import sign_change

SEEDS, GENERATIONS = 6, 8
FEW = int(os.environ.get("SIMULATIONS", "60"))


def noise(rng: np.random.Generator, scale: float, memory: float) -> NDArray[np.float64]:
    """Autocorrelated trends: AR(1) about a random slope of each seed."""
    values = np.zeros((SEEDS, GENERATIONS))
    values[:, 0] = rng.normal(0, 1, SEEDS)
    for at in range(1, GENERATIONS):
        values[:, at] = memory * values[:, at - 1] + rng.normal(0, 1, SEEDS)
    return scale * (values + rng.normal(0, 0.3, (SEEDS, 1)) * np.arange(GENERATIONS))


def false_alarms(simulations: int, scale: float, memory: float) -> float:
    rng = np.random.default_rng(round(1000 * scale + 10 * memory))
    crossed = 0
    for _ in range(simulations):
        found = first_crossings(noise(rng, scale, memory), noise(rng, scale, memory), rises=True)
        crossed += found.num_crossed
    return crossed / (simulations * SEEDS)


@pytest.mark.nightly
@pytest.mark.parametrize(("scale", "memory"), [(1.0, 0.0), (20.0, 0.0), (1.0, 0.9), (0.01, 0.9)])
def test_the_false_alarm_rate_does_not_depend_on_the_noise(scale: float, memory: float) -> None:
    """1 in 6 for all: 500 simulations, whose own trajectories share controls; a standard error of some 1.5 points."""
    assert abs(false_alarms(500, scale, memory) - 1 / SEEDS) < 0.05


def test_the_false_alarm_rate_of_a_few_simulations() -> None:
    rates = [false_alarms(FEW, scale, memory) for scale, memory in ((1.0, 0.0), (20.0, 0.9))]
    assert all(abs(rate - 1 / SEEDS) < 0.09 for rate in rates)
    assert first_crossings(np.ones((4, 3)), np.ones((4, 3)), rises=True).num_crossed == 0  # nothing moves


def planted(rng: np.random.Generator, onset: float, size: float) -> NDArray[np.float64]:
    rise = size * np.maximum(0.0, np.arange(GENERATIONS) - onset)
    return noise(rng, 1.0, 0.5) + rise


def leads(simulations: int, early: float, late: float, size: float, seed: int) -> tuple[float, float]:
    """Share of simulations in which a lead is called at 5 %, and the mean lead."""
    rng = np.random.default_rng(seed)
    called, means = 0, []
    for _ in range(simulations):
        crossed = [
            first_crossings(scale * planted(rng, onset, size), scale * noise(rng, 1.0, 0.5), rises=True)
            for scale, onset in ((1.0, early), (30.0, late))
        ]  # fmt: skip
        found = lead(*crossed)
        if found.p is not None:
            called += found.p <= 0.05 and found.value > 0
            means.append(found.value)
    return called / simulations, float(np.mean(means))


@pytest.mark.nightly
def test_a_planted_lead_is_found_and_a_planted_null_is_not_in_500_simulations() -> None:
    power, mean = leads(500, early=0.0, late=3.0, size=12.0, seed=1)
    assert power > 0.8
    assert 2.0 < mean < 4.0
    false, middle = leads(500, early=2.0, late=2.0, size=12.0, seed=2)
    assert false <= 0.05
    assert abs(middle) < 0.2


def test_a_planted_lead_is_found_and_a_planted_null_is_not() -> None:
    power, mean = leads(FEW, early=0.0, late=3.0, size=12.0, seed=1)
    assert power > 0.7
    assert 2.0 < mean < 4.0
    assert leads(FEW, early=2.0, late=2.0, size=12.0, seed=2)[0] <= 0.1


def test_the_threshold_is_the_farthest_control_and_nothing_else() -> None:
    control = np.array([[0.0, 1.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    # Of seed 1 the controls are rows 0, 2 and 3: the farthest is 1 above the others' mean, scaled by sqrt((4/3) / (3/2)).
    limit = math.sqrt((4 / 3) / (3 / 2))
    for above, crossed in ((1e-6, True), (-1e-6, False)):
        treated = np.zeros((4, 2))
        treated[1, 1] = 1 / 3 + limit + above
        assert bool(np.isfinite(first_crossings(treated, control, rises=True).first_S[1])) is crossed
    fallen = first_crossings(-np.full((4, 2), 9.0), control, rises=False)
    assert fallen.first_S.tolist() == [0.0] * 4
    assert first_crossings(np.full((4, 2), 9.0), control, rises=False).num_crossed == 0


def test_what_never_crosses_is_censored_at_the_end() -> None:
    flat = np.random.default_rng(0).normal(0, 1e-3, (6, 5))
    early = np.where(np.arange(5) >= 1, 5.0, 0.0) + flat
    found = lead(first_crossings(early, flat, rises=True), first_crossings(np.zeros((6, 5)), flat * 100, rises=True))
    assert found.value == 4.0  # the second would have crossed at 5 at the soonest
    assert "the second in 6" in found.note
    assert not lead(*[first_crossings(np.zeros((6, 5)), flat, rises=True)] * 2).defined


@pytest.mark.parametrize("bad", [np.zeros((3, 4)), np.full((6, 4), np.nan), np.zeros(4)])
def test_what_cannot_be_judged_is_refused(bad: NDArray[np.float64]) -> None:
    with pytest.raises(ValueError, match="crossings: "):
        first_crossings(bad, bad, rises=True)


def test_a_forecast_is_judged_on_seeds_it_has_not_seen() -> None:
    """By hand for one predictor: least squares on the other seeds, Student's density of a new observation."""
    from scipy import stats

    rng = np.random.default_rng(5)
    x, y = rng.normal(size=(4, 3)), rng.normal(size=(4, 3))
    ours = log_scores([x], y)
    for seed in range(4):
        others = np.arange(4) != seed
        a, b = x[others].ravel(), y[others].ravel()
        line = stats.linregress(a, b)
        s2 = ((b - line.intercept - line.slope * a) ** 2).sum() / (a.size - 2)
        scale = np.sqrt(s2 * (1 + 1 / a.size + (x[seed] - a.mean()) ** 2 / ((a - a.mean()) ** 2).sum()))
        expected = stats.t.logpdf(y[seed], a.size - 2, loc=line.intercept + line.slope * x[seed], scale=scale).mean()
        assert ours[seed] == pytest.approx(expected, rel=1e-9)


def test_noise_does_not_help_a_forecast() -> None:
    rng = np.random.default_rng(1)
    gains = []
    for _ in range(FEW):
        now = rng.normal(size=(6, 24))
        later = now + 0.3 * rng.normal(size=now.shape)
        noisy = log_scores([now, rng.normal(size=now.shape)], later) - log_scores([now], later)
        gains.append(sign_change(noisy))
    assert np.mean([gain.p is not None and gain.p <= 0.05 and gain.value > 0 for gain in gains]) <= 0.05
