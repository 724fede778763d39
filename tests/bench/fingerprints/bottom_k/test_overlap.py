"""Overlaps of bottom-k sets on made-up answers, each against a plain float64 count."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from modelassay.fingerprints.bottom_k.overlap import (
    Overlap,
    overlap_corrected,
    overlap_exact,
    persistence,
    rank_biased,
    rank_biased_overlap,
)
from modelassay.models.vocabulary import MIN_SHARED
from modelassay.statistics.intervals import student_mean
from support.behaviour_cases import answers, normal, vocabulary, words

P, V, D = 6, 2000, 16


def counted(logits_a: Tensor, logits_b: Tensor, k: int) -> list[float]:
    """Overlaps by sorting whole rows, ties by the smaller id."""
    sets = [[set(row.argsort(stable=True)[:k].tolist()) for row in logits.double()] for logits in (logits_a, logits_b)]
    return [len(x & y) / k for x, y in zip(*sets, strict=True)]


def test_overlaps_are_those_of_whole_rows_sorted_in_float64() -> None:
    hidden, weight = normal(0, P, D), normal(1, V + 48, D)
    other = weight + 0.4 * normal(2, V + 48, D)
    a, b = answers(hidden, weight, num_tokens=V), answers(hidden, other, num_tokens=V)
    logits = [hidden.double() @ w.double().T for w in (weight, other)]
    exact, ours = overlap_exact(a, b), overlap_corrected(a, b)
    assert (exact.k, ours.k) == (27, 26)  # 2000 / 151,936 x 2048 and 0.0132 x 2000
    assert exact.per_prompt == pytest.approx(counted(*logits, 27), abs=1e-12)
    assert ours.per_prompt == pytest.approx(counted(*(x[:, :V] for x in logits), 26), abs=1e-12)
    assert ours.value == pytest.approx(np.mean(ours.per_prompt))
    assert 0.1 < ours.value < 0.9
    assert (ours.tied, ours.untied, ours.chance) == (0, pytest.approx(ours.value), 26 / V)
    assert ours.mean == student_mean(ours.per_prompt, bounds=(0, 1))
    assert ours.mean.level == 0.95


def test_k_of_the_published_model() -> None:
    """Qwen2.5: 151,936 rows, 151,665 tokens."""
    weight = torch.zeros(151_936, 1).index_fill_(0, torch.arange(5000), -1.0)
    both = answers(torch.ones(1, 1), weight, num_tokens=151_665)
    assert overlap_exact(both, both).k == 2000
    assert overlap_corrected(both, both).k == 2002


def test_independent_models_overlap_by_chance() -> None:
    values, rbo = [], []
    for seed in range(60):
        a, b = (answers(normal(9 * seed + i, P, D), normal(9 * seed + i + 4, V, D)) for i in (0, 1))
        values += overlap_corrected(a, b).per_prompt
        rbo += rank_biased(a, b).per_prompt
    for shares in (values, rbo):
        error = np.std(shares) / math.sqrt(len(shares))
        assert abs(np.mean(shares) - 26 / V) < 4 * error + (0 if shares is values else 26 / V / 2)
    assert error < 0.003


def test_padding_makes_strangers_of_a_model_and_its_copy_and_twins_of_strangers() -> None:
    """Rows that no text contains are the extremes: what is left in them by chance decides the unmasked set."""
    hidden = normal(0, P, D)
    hidden[:, 0] = 5.0  # common to all contexts, as in real models
    weight, padding = normal(1, V, D), torch.zeros(48, D)

    def padded(tokens: Tensor, seed: int) -> Tensor:
        low = padding.clone()
        low[:, 0] = -20 - normal(seed, 48)
        return torch.cat((tokens, low))

    model, copy = (answers(hidden, padded(weight, seed), num_tokens=V) for seed in (2, 3))
    assert overlap_exact(model, copy).padded == 1
    assert overlap_exact(model, copy).value < 0.8  # only padding was drawn anew: they are one model
    assert overlap_corrected(model, copy).value == 1
    stranger = answers(hidden, padded(normal(4, V, D), 2), num_tokens=V)
    assert overlap_exact(model, stranger).value == 1  # nothing but padding is shared
    assert overlap_corrected(model, stranger).value < 0.1


def test_ties_of_bfloat16_broken_by_id_inflate_the_overlap_of_strangers() -> None:
    """Logits near -200 lie 1 apart in bfloat16, so sets are filled by id, in both models alike."""
    a, b = (answers(normal(i, P, D), 0.05 * normal(i + 4, V, D), bias_V=torch.full((V,), -200.0)) for i in (0, 1))
    fine, coarse = overlap_corrected(a, b), overlap_corrected(a, b, rounded_to=torch.bfloat16)
    assert (fine.tied, fine.untied) == (0, pytest.approx(fine.value))
    assert fine.value < 0.05
    assert coarse.tied > 0.5
    assert coarse.value > 0.3
    assert coarse.untied < 0.08


def test_expected_overlap_is_the_mean_over_random_ties() -> None:
    a, b = (answers(normal(i, 2, D), normal(i, V, D).round()) for i in (0, 1))
    overlap = overlap_corrected(a, b, rounded_to=torch.bfloat16)
    logits = [(each.hidden["stable"] @ each.head.weight_VD.T).bfloat16().double() for each in (a, b)]
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(400):
        shuffled = [x.numpy() + 1e-6 * rng.random(x.shape) for x in logits]
        drawn.append(np.mean(counted(*(torch.from_numpy(x) for x in shuffled), overlap.k)))
    assert overlap.tied > 0
    assert np.mean(drawn) == pytest.approx(overlap.untied, abs=4 * np.std(drawn) / 20 + 1e-9)
    assert overlap.value == pytest.approx(np.mean(counted(*logits, overlap.k)))


def test_tokens_of_two_tokenizers_are_matched_by_what_they_say() -> None:
    """One model under two tokenizers: the same words at other ids."""
    hidden, weight = normal(0, P, D), normal(1, V, D)
    order = torch.randperm(V, generator=torch.Generator().manual_seed(3))
    moved = {f"word{word}": at for at, word in enumerate(order.tolist())}
    a = answers(hidden, weight)
    b = answers(hidden, weight[order], tokens=vocabulary(moved, key="other"))
    overlap = overlap_corrected(a, b)
    assert (overlap.value, overlap.matched_by, overlap.k) == (1, "token strings", 26)
    assert rank_biased(a, b).value == pytest.approx(1)
    assert overlap_exact(a, b).value < 0.1  # by id, as published
    fewer = {f"word{word}": at for at, word in enumerate(range(0, V, 2))}
    part = answers(hidden, weight[::2], tokens=vocabulary(fewer, key="third"))
    assert (overlap_corrected(a, part).value, overlap_corrected(a, part).k) == (1, 13)


def test_too_few_shared_tokens_are_refused_with_the_share() -> None:
    hidden, weight = normal(0, P, D), normal(1, V, D)
    num_shared = int(MIN_SHARED * V) - 1
    others = {(f"word{at}" if at < num_shared else f"wort{at}"): at for at in range(V)}
    a, b = answers(hidden, weight, name="one"), answers(hidden, weight, tokens=vocabulary(others, key="b"), name="two")
    for measure in (overlap_corrected, rank_biased):
        overlap = measure(a, b)
        assert math.isnan(overlap.value)
        assert overlap.reason == "one and two share 50% of the smaller vocabulary by token strings; under 50% their rarest tokens cannot be compared"  # fmt: skip
    others[f"word{num_shared}"] = others.pop(f"wort{num_shared}")
    again = answers(hidden, weight, tokens=vocabulary(others, key="c"))
    assert overlap_corrected(a, again).value == 1


def test_added_tokens_of_a_derivative_are_left_out() -> None:
    hidden, weight = normal(0, P, D), normal(1, V, D)
    hidden[:, 0], weight[-1, 0] = 5.0, -50.0  # the added token is the least likely of all
    base, child = (answers(hidden, weight, tokens=vocabulary(words(num))) for num in (V - 1, V))
    assert overlap_corrected(child, base).value == 1
    assert overlap_corrected(child, base).chance == pytest.approx(26 / (V - 1))


@pytest.mark.parametrize("measure", [overlap_exact, overlap_corrected, rank_biased])
def test_what_cannot_be_compared_says_why(measure: object) -> None:
    assert callable(measure)
    hidden, weight = normal(0, P, D), normal(1, V, D)
    broken = hidden.clone()
    broken[2, 3] = math.nan
    overlap: Overlap = measure(answers(broken, weight, name="bad"), answers(hidden, weight))
    assert math.isnan(overlap.value)
    assert overlap.reason == "bad: its hidden states are not finite; look at its weights"
    with pytest.raises(ValueError, match="made-up answered base's prompts"):
        measure(answers(hidden, weight, key="x"), answers(hidden, weight))


def brute_rbo(a: list[int], b: list[int], p: float) -> float:
    """The infinite sum of Webber et al., equation 4, with the agreement at k kept beyond it, to depth 20,000."""
    total, agreement = 0.0, 0.0
    for depth in range(1, 20_001):
        if depth <= len(a):
            agreement = len(set(a[:depth]) & set(b[:depth])) / depth
        total += (1 - p) * p ** (depth - 1) * agreement
    return total


@pytest.mark.parametrize("p", [0.5, 0.9, 0.99])
def test_rank_biased_overlap_is_its_definition(p: float) -> None:
    rng = np.random.default_rng(int(100 * p))
    for _ in range(5):
        a, b = (rng.choice(60, size=26, replace=False).tolist() for _ in range(2))
        assert rank_biased_overlap(a, b, p) == pytest.approx(brute_rbo(a, b, p), abs=1e-9)
    swapped = [a[1], a[0], *a[2:]]
    assert rank_biased_overlap(a, swapped, p) < rank_biased_overlap(a, [*a[:-2], a[-1], a[-2]], p) < 1


@pytest.mark.parametrize("k", [10, 26, 200, 2000])
def test_lists_carry_most_of_the_weight_of_rank_biased_overlap(k: int) -> None:
    """Equation 21 of Webber et al.: the weight of the first d ranks."""
    p, d = persistence(k), np.arange(1, k)
    weight = 1 - p ** (k - 1) + (1 - p) / p * k * (math.log(1 / (1 - p)) - float(np.sum(p**d / d)))
    assert 0.955 < weight < 0.97
