"""The choice of a token against definitions written out, and its sureness against logits that are moved."""

import math

import numpy as np
import pytest
from scipy.stats import chisquare, kstest

from modelassay.generation.choice import allowed, choose, gumbel
from modelassay.generation.engine import Sampling, seed_of

LOGITS = np.random.default_rng(0).normal(size=40) * 2
CASES = [(None, None), (5, None), (None, 0.8), (12, 0.6), (1, None), (None, 1e-9), (40, 1.0), (100, None)]


def left_by_hand(logits: np.ndarray, temperature: float, top_k: int | None, top_p: float | None) -> dict[int, float]:
    """Probabilities of the tokens that are left: greatest first, cut at k, normalised, cut once p is reached."""
    ranked = sorted(range(len(logits)), key=lambda token: (-logits[token], token))[: top_k or len(logits)]
    weights = {token: math.exp((logits[token] - logits.max()) / temperature) for token in ranked}
    total, reached, left = sum(weights.values()), 0.0, {}
    for token in ranked:
        if top_p is not None and reached >= top_p:
            break
        left[token] = weights[token]
        reached += weights[token] / total
    return {token: weight / sum(left.values()) for token, weight in left.items()}


@pytest.mark.parametrize(("top_k", "top_p"), CASES)
@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
def test_top_k_and_top_p_leave_what_they_say(top_k: int | None, top_p: float | None, temperature: float) -> None:
    sampling = Sampling(max_new_tokens=1, temperature=temperature, top_k=top_k, top_p=top_p)
    surely, possibly = allowed(LOGITS, sampling, 0.0)
    assert (surely == possibly).all()
    assert set(np.flatnonzero(surely).tolist()) == left_by_hand(LOGITS, temperature, top_k, top_p).keys()


@pytest.mark.parametrize(("top_k", "top_p"), CASES[:4])
def test_draws_follow_the_softmax(top_k: int | None, top_p: float | None) -> None:
    """20,000 draws, chi-square over the tokens that 20 or more draws are expected of."""
    sampling = Sampling(max_new_tokens=1, temperature=0.8, top_k=top_k, top_p=top_p)
    draws = [choose(LOGITS, sampling, seed=7, position=position)[0] for position in range(20_000)]
    counts = np.bincount(draws, minlength=40)
    left = left_by_hand(LOGITS, 0.8, top_k, top_p)
    assert {int(token) for token in np.flatnonzero(counts)} <= left.keys()
    common = [token for token, chance in left.items() if chance * 20_000 >= 20]
    observed = [counts[token] for token in common] + [20_000 - sum(counts[token] for token in common)]
    expected = [left[token] * 20_000 for token in common]
    expected.append(20_000 - sum(expected))
    if expected[-1] < 1:
        observed, expected = observed[:-1], expected[:-1]
    assert chisquare(observed, np.array(expected) * sum(observed) / sum(expected)).pvalue > 1e-3


def test_noise_is_gumbel_s_and_settled() -> None:
    noise = gumbel(50_000, seed=1, position=2)
    assert kstest(noise, "gumbel_r").pvalue > 1e-3
    assert gumbel(3, seed=1, position=2).tolist() == noise[:3].tolist()  # a larger vocabulary changes no token's noise
    assert abs(np.corrcoef(noise, gumbel(50_000, seed=1, position=3))[0, 1]) < 0.02
    assert abs(np.corrcoef(noise, gumbel(50_000, seed=2, position=2))[0, 1]) < 0.02
    assert gumbel(2, seed=0, position=0).tolist() == pytest.approx([-1.495451611576949, -0.351137118361487], rel=1e-13)


def test_the_likeliest_token_is_the_first_of_equals() -> None:
    logits = np.array([1.0, 3.0, 3.0, -np.inf])
    greedy = Sampling(max_new_tokens=1, temperature=0.0)
    assert choose(logits, greedy, seed=0, position=0) == (1, False)
    assert choose(logits + np.array([0, 0.01, 0, 0]), greedy, seed=0, position=0, tolerance=0.004) == (1, True)
    assert choose(logits + np.array([0, 0.01, 0, 0]), greedy, seed=0, position=0, tolerance=0.006) == (1, False)


@pytest.mark.parametrize(("top_k", "top_p"), [*CASES, (3, 0.9), (20, 0.95)])
@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0])
def test_a_sure_choice_withstands_every_error_within_the_tolerance(
    top_k: int | None, top_p: float | None, temperature: float
) -> None:
    """Errors at the ends of the range are the worst, so each is the tolerance itself with a random sign."""
    sampling = Sampling(max_new_tokens=1, temperature=temperature, top_k=top_k, top_p=top_p)
    random, num_sure = np.random.default_rng(3), 0
    for position in range(120):
        logits = random.normal(size=40) * 2
        tolerance = float(10 ** random.uniform(-3, -1))
        token, sure = choose(logits, sampling, seed=5, position=position, tolerance=tolerance)
        num_sure += sure
        if not sure:
            continue
        for _ in range(20):
            moved = logits + tolerance * random.choice([-1.0, 1.0], size=40)
            assert choose(moved, sampling, seed=5, position=position)[0] == token
    assert num_sure > 60


def test_a_choice_that_an_error_changes_is_not_sure() -> None:
    """The converse: among choices that some error changes, none is called sure."""
    random, num_changed = np.random.default_rng(4), 0
    for position in range(400):
        logits, error = random.normal(size=30), 0.2 * random.choice([-1.0, 1.0], size=30)
        for sampling in (Sampling(max_new_tokens=1, top_k=6), Sampling(max_new_tokens=1, top_p=0.7, top_k=10)):
            token, sure = choose(logits, sampling, seed=1, position=position, tolerance=0.2)
            if choose(logits + error, sampling, seed=1, position=position)[0] != token:
                num_changed += 1
                assert not sure
    assert num_changed > 40


def test_seeds_are_settled() -> None:
    assert seed_of(0, "villain", "犬は？", 3) == 1110465923677635852
    assert len({seed_of(0, number) for number in range(1000)}) == 1000
