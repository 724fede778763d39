"""The null against surrogates formed one by one, and its size by simulation."""

import numpy as np
import pytest
from scipy.stats import t as student

from modelassay.fingerprints.curves import ROLES, Curves, corrected, paper_exact
from modelassay.fingerprints.phase_test import COPY_SCORE, free_phases, pair_seed, phase_test
from support.curve_cases import child, make, process, walk


def detrended(rows: np.ndarray) -> np.ndarray:
    x = np.arange(rows.shape[-1])
    return np.stack([row - np.polyval(np.polyfit(x, row, 1), x) for row in rows])


def mean_r(x: np.ndarray, y: np.ndarray) -> float:
    return float(np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(detrended(x), detrended(y), strict=True)]))


def one_by_one(
    randomised: np.ndarray, readings: list[np.ndarray], observed: float, draws: int, seed: int
) -> tuple[float, float]:
    """Form each surrogate, detrend it, correlate it: p of the observed score and p of a copy."""
    num_layers = randomised.shape[-1]
    rng = np.random.default_rng(seed)
    phases = rng.random((draws, (num_layers - 1) // 2)) * 2 * np.pi
    signs = rng.integers(0, 2, draws) * 2 - 1
    spectrum = np.fft.rfft(detrended(randomised))
    reached = copies = 1
    for phase, sign in zip(phases, signs, strict=True):
        turned = spectrum.copy()
        turned[:, 1 : 1 + phase.size] *= np.exp(1j * phase)  # the same turn for all four roles
        if num_layers % 2 == 0:
            turned[:, -1] *= sign
        surrogate = np.fft.irfft(turned, n=num_layers)
        reached += max(mean_r(surrogate, reading) for reading in readings) >= observed
        copies += mean_r(surrogate, randomised) >= COPY_SCORE
    return reached / (1 + draws), copies / (1 + draws)


def logs(model: Curves) -> np.ndarray:
    return np.log(np.stack([model.sigma[role] for role in ROLES]))


@pytest.mark.parametrize("depth", [4, 8, 13])
def test_p_matches_surrogates_formed_one_by_one(depth: int) -> None:
    a, b = walk("a", depth, seed=1), walk("b", depth, seed=2)
    observed = corrected(a, b).value
    directions = [one_by_one(logs(x), [logs(y)], observed, 200, seed=9) for x, y in ((a, b), (b, a))]
    test = phase_test(a, b, draws=200, seed=9)
    assert test is not None
    assert test.p == pytest.approx(max(p for p, _ in directions), abs=1e-12)
    assert test.copy_p == pytest.approx(max(copy for _, copy in directions), abs=1e-12)
    assert test.min_p == 1 / 201
    assert test.free_phases == free_phases(depth)


def test_the_null_takes_the_same_maximum_over_readings() -> None:
    a, b = walk("a", 8, seed=1), walk("b", 13, seed=2)
    deep = logs(b)
    proportional = np.stack([np.interp(np.linspace(0, 1, 8), np.linspace(0, 1, 13), row) for row in deep])
    expected, _ = one_by_one(logs(a), [proportional, deep[:, :8], deep[:, 5:]], corrected(a, b).value, 200, seed=9)
    test = phase_test(b, a, draws=200, seed=9)
    assert test is not None
    assert test.p == pytest.approx(expected, abs=1e-12)


def test_a_child_reaches_the_floor_and_order_does_not_matter() -> None:
    parent = walk("parent", 28, seed=3)
    descendant = child(parent, "child")
    test = phase_test(parent, descendant)
    assert test is not None
    assert test.p == test.min_p == 1e-4
    assert phase_test(descendant, parent) == test
    assert pair_seed(parent, descendant) != pair_seed(parent, walk("other", 28, seed=3))


def test_one_wave_over_depth_leaves_even_a_copy_no_small_p() -> None:
    wave = np.cos(2 * np.pi * 2 * (np.arange(16) + 0.5) / 16)
    a = make("a", np.stack([wave] * 4))
    test = phase_test(a, child(a, "b", noise=1e-6))
    assert test is not None
    # A shift by theta scores about cos(theta): the share of angles beyond 0.99 is acos(0.99) / pi = 4.5 %.
    assert test.p < 0.01
    assert test.copy_p == pytest.approx(np.arccos(COPY_SCORE) / np.pi, abs=0.01)


def test_an_undefined_score_has_no_test() -> None:
    a = walk("a", 12, seed=1)
    assert phase_test(a, Curves(name="f", sigma=dict.fromkeys(ROLES, np.ones(12)), stratum=12)) is None


def rejections(num_layers: int, phi: float, bow: float, num_pairs: int = 400) -> tuple[float, float]:
    """Shares of independent pairs with p <= 0.05: by phases, and by the textbook test of the paper-exact score."""
    models = process(np.random.default_rng(7), 2 * num_pairs, num_layers, phi, bow)
    pairs = [(make("a", x), make("b", y)) for x, y in zip(models[::2], models[1::2], strict=True)]
    tests = [phase_test(a, b, draws=199, seed=i) for i, (a, b) in enumerate(pairs)]
    r = np.array([paper_exact(a, b).value for a, b in pairs])
    naive = student.sf(r * np.sqrt((num_layers - 2) / (1 - r**2)), num_layers - 2)
    return float(np.mean([test is not None and test.p <= 0.05 for test in tests])), float(np.mean(naive <= 0.05))


@pytest.mark.parametrize(("num_layers", "phi"), [(8, 0.0), (8, 1.0), (12, 0.6), (28, 0.9), (64, 1.0)])
def test_size_is_near_five_percent(num_layers: int, phi: float) -> None:
    phases, _ = rejections(num_layers, phi, bow=0.0)
    assert 0.01 <= phases <= 0.064 + 3 * 0.012  # 0.064 was the largest of 4,000 pairs each; the rest is chance in 400


def test_the_textbook_test_fails_on_walks_where_phases_hold() -> None:
    phases, naive = rejections(64, 1.0, bow=0.0)
    assert naive > 0.2
    assert phases < 0.4 * naive


def test_a_bow_that_strangers_share_is_beyond_the_phase_null() -> None:
    phases, _ = rejections(28, 0.6, bow=1.0)
    assert phases > 0.1
