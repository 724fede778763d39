"""The baseline that reads no weights."""

from dataclasses import replace

import numpy as np
import pytest

from modelassay.fingerprints.configuration import Sizes, config_only
from modelassay.fingerprints.methods import BY_NUMBERS
from support.curve_cases import numbers, walk

ONE = Sizes(
    num_layers=8, hidden_size=64, num_heads=4, num_kv_heads=2, intermediate_size=192, vocab_size=2048, tokenizer_key="x"
)
NUMBERS = ("num_layers", "hidden_size", "num_heads", "num_kv_heads", "intermediate_size", "vocab_size")


def oracle(a: Sizes, b: Sizes) -> float:
    pairs = [(getattr(a, name), getattr(b, name)) for name in NUMBERS if getattr(a, name) and getattr(b, name)]
    ratios = [min(x / y, y / x) for x, y in pairs]
    if a.tokenizer_key and b.tokenizer_key:
        ratios.append(1.0 if a.tokenizer_key == b.tokenizer_key else 0.0)
    return float(np.mean(ratios))


def test_mean_of_ratios_over_what_both_tell() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        a, b = (
            Sizes(
                **dict(zip(NUMBERS, rng.integers(1, 99, 6).tolist(), strict=True)), tokenizer_key=rng.choice(["x", "y"])
            )
            for _ in range(2)
        )
        a = replace(a, intermediate_size=None) if rng.random() < 0.3 else a
        b = replace(b, tokenizer_key=None) if rng.random() < 0.3 else b
        score = config_only(a, b)
        assert score.value == pytest.approx(oracle(a, b), abs=1e-15)
        assert config_only(b, a) == score
        assert 0 < score.value <= 1


def test_one_number_that_differs_is_told_by_name() -> None:
    for name in NUMBERS:
        score = config_only(ONE, replace(ONE, **{name: 3 * getattr(ONE, name)}))
        assert score.per_role[name] == pytest.approx(1 / 3)
        assert score.value == pytest.approx(1 - 2 / 3 / 7)
    assert config_only(ONE, replace(ONE, tokenizer_key="y")).value == pytest.approx(6 / 7)
    assert "tokenizer" not in config_only(ONE, replace(ONE, tokenizer_key=None)).per_role


def test_weights_do_not_matter_to_it() -> None:
    method = BY_NUMBERS["config-only"]
    a, b = numbers(walk("a", 12, seed=1)), numbers(walk("b", 12, seed=2))
    assert method.score(a, b).value == method.score(a, a).value == 1.0
    assert method.score(a, numbers(walk("c", 6, seed=3))).value == pytest.approx(1 - 0.5 / 7)
