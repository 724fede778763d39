"""Each word of a placement among strangers, and that nothing is claimed without strangers."""

import re
from dataclasses import asdict, replace
from itertools import combinations

import numpy as np
import pytest

from modelassay.fingerprints.background import rank
from modelassay.fingerprints.curves import ROLES, Curves, corrected, paper_exact
from modelassay.fingerprints.placement import MIN_EFFECT, adjust, place_among
from modelassay.models.checkpoints import Stratum
from support.curve_cases import background_of, child, make, process, walk


def roots(count: int, num_layers: int = 12, seed: int = 100) -> list[Curves]:
    return [walk(f"root{i}", num_layers, seed + i, family=f"root{i}") for i in range(count)]


def test_background_is_all_pairs_of_roots() -> None:
    models = roots(5)
    background = background_of([child(models[0], "aa-child"), *models, walk("unknown", 12, 1)])
    assert len(background.pairs) == 10
    scores = {pair.names: (pair.scores["paper-exact"], pair.scores["corrected"]) for pair in background.pairs}
    for a, b in combinations(models, 2):
        assert scores[frozenset((a.name, b.name))] == pytest.approx((paper_exact(a, b).value, corrected(a, b).value))


def test_a_family_without_its_root_speaks_through_its_first_by_name() -> None:
    lost = walk("lost", 12, 5, family="lost")
    background = background_of([child(lost, "lost-b"), child(lost, "lost-a"), *roots(1)])
    assert [pair.names for pair in background.pairs] == [frozenset(("lost-a", "root0"))]


def test_strangers_must_share_the_strata() -> None:
    shallow, deep = roots(3), [walk(f"deep{i}", 28, i, family=f"deep{i}") for i in range(2)]
    background = background_of([*shallow, *deep])
    assert len(background.of(12, 12)) == 3
    assert len(background.of(28, 28)) == 1
    assert len(background.of(12, 28)) == len(background.of(28, 12)) == 6
    assert background.of(12, 64) == ()


def test_the_judged_pair_is_not_its_own_background() -> None:
    models = roots(4)
    background = background_of(models)
    assert len(background.against(models[0], models[1])) == 5
    assert len(background.against(child(models[0], "x"), child(models[1], "y"))) == 5
    assert len(background.against(models[0], child(models[0], "x"))) == 6
    unlabelled = [Curves(name=m.name, sigma=m.sigma, stratum=m.stratum) for m in models[:2]]
    assert len(background.against(*unlabelled)) == 5


def test_strangers_of_any_shape_speak_for_a_tokenizer() -> None:
    def of(name: str, width: int, key: str | None) -> Curves:
        shape = Stratum(num_layers=12, hidden_size=width, num_heads=2, num_kv_heads=1, vocab_size=9, tokenizer_key=key)
        return make(name, np.random.default_rng(len(name)).normal(size=(4, 12)), name, shape)

    models = [of("a", 8, "x"), of("b", 16, "x"), of("c", 16, "x"), of("d", 16, "y"), of("e", 32, None)]
    background = background_of(models)
    new = of("new", 64, "x")
    assert not background.against(new, models[0])
    named = {tuple(sorted(pair.names)) for pair in background.of_tokenizer(new, models[0])}
    assert named == {("a", "b"), ("a", "c"), ("b", "c")}
    named = {tuple(sorted(pair.names)) for pair in background.of_tokenizer(models[1], models[0])}
    assert named == {("a", "c"), ("b", "c")}
    assert background.of_tokenizer(models[0], models[3]) == background.of_tokenizer(models[4], models[4]) == ()


def test_two_models_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="two models are named 'root0'"):
        background_of([*roots(2), *roots(1)])


def test_a_child_is_closer_than_all_strangers() -> None:
    models = roots(8)
    placement = place_among(models[0], child(models[0], "sft"), background_of(models))
    assert placement.word == "closer than all strangers"
    assert placement.background is not None
    assert placement.phase is not None
    assert placement.background.p == placement.background.min_p == 1 / 29
    strangers = [corrected(a, b).value for a, b in combinations(models, 2)]
    assert placement.background.median == pytest.approx(np.median(strangers))
    assert placement.background.q95 == pytest.approx(np.quantile(strangers, 0.95))
    assert placement.background.max == pytest.approx(max(strangers))
    assert placement.sentence.startswith("root0 and sft: closer than all strangers, 28 of them. Corrected score 0.9")
    for part in ("28 unrelated pairs (same stratum 12)", "rank p = 0.034", "5 free phases"):
        assert part in placement.sentence


def test_strangers_are_not_distinguishable_and_the_order_of_the_pair_does_not_matter() -> None:
    models = roots(9)
    background = background_of(models)
    placements = [place_among(a, b, background) for a, b in combinations(models, 2)]
    words = [placement.word for placement in placements]
    assert words.count("among strangers") >= 33  # rank p <= 0.05 can hold for one of 36
    assert "uncalibrated" not in words
    forth, back = place_among(models[0], models[1], background), place_among(models[1], models[0], background)
    assert (forth.corrected, forth.phase, forth.background, forth.interval) == (
        back.corrected, back.phase, back.background, back.interval)  # fmt: skip


def test_without_strangers_no_p_value_is_given_anywhere() -> None:
    models = roots(8)
    odd = walk("odd", 28, 1)
    placement = place_among(odd, child(odd, "copy"), background_of(models))
    assert placement.word == "uncalibrated"
    assert placement.phase is None
    assert placement.background is None
    assert placement.paper_background is None
    assert placement.corrected.value > 0.99
    assert not re.search(r"\bp\b", placement.sentence)
    assert "no unrelated pair of stratum 28 is known" in placement.sentence
    assert adjust([placement]) == (placement,)


def test_strangers_of_weights_are_said_by_shape_without_vocabulary() -> None:
    def of(name: str, seed: int, vocab_size: int) -> Curves:
        shape = Stratum(
            num_layers=12, hidden_size=64, num_heads=4, num_kv_heads=2, vocab_size=vocab_size, tokenizer_key=None
        )
        return replace(walk(name, 12, seed, family=name), stratum=shape)

    models = [of(f"root{number}", number, 512 + number) for number in range(5)]
    sentence = place_among(models[0], models[1], background_of(models)).sentence
    assert "(same stratum 12 layers of 64, 4/2 heads)" in sentence
    assert "tokens" not in sentence
    alone = place_among(models[0], models[1], background_of(models[:2])).sentence
    assert "no unrelated pair of stratum 12 layers of 64, 4/2 heads is known" in alone


def test_too_few_strangers_are_inconclusive_even_for_a_copy() -> None:
    models = roots(5)
    placement = place_among(models[0], child(models[0], "copy"), background_of(models))
    assert placement.word == "inconclusive"
    assert "10 unrelated pairs cannot give a p below 0.091, alpha is 0.05" in placement.sentence
    assert (
        place_among(models[0], child(models[0], "copy"), background_of(models), alpha=0.1).word
        == "closer than all strangers"
    )


def test_an_undefined_score_is_inconclusive_with_its_reason() -> None:
    models = roots(8)
    flat = Curves(name="flat", sigma={**models[0].sigma, "o": np.full(12, 0.02)}, stratum=12)
    placement = place_among(models[0], flat, background_of(models))
    assert placement.word == "inconclusive"
    assert "flat: role o is a straight line" in placement.sentence
    assert placement.background is placement.phase is placement.interval is None
    assert "nan" not in placement.sentence


def test_the_phase_test_can_withdraw_closer_but_not_when_it_has_no_power() -> None:
    depth = np.linspace(0, 2 * np.pi, 16)
    rng = np.random.default_rng(0)
    strangers = background_of([make(f"white{i}", x, f"white{i}") for i, x in enumerate(process(rng, 8, 16, phi=0.0))])
    smooth = [make(n, np.stack([np.cos(depth + turn)] * 4) + 0.2 * x)
              for n, turn, x in zip("ab", (0.0, 0.9), process(rng, 2, 16, phi=0.0), strict=True)]  # fmt: skip
    withdrawn = place_among(*smooth, strangers)
    assert withdrawn.background is not None
    assert withdrawn.phase is not None
    assert withdrawn.background.p <= 0.05 < withdrawn.phase.p
    assert withdrawn.phase.copy_p <= 0.05
    assert withdrawn.word == "inconclusive"
    assert "curves as smooth as these do by chance" in withdrawn.sentence


def test_a_calibrated_zoo_rejects_strangers_that_share_a_bow() -> None:
    """The phase null is fooled by a shared curved trend (test_null); the rank among strangers is not."""
    worlds = process(np.random.default_rng(4), 150 * 8, 12, phi=1.0, bow=1.0).reshape(150, 8, 4, 12)
    called = 0
    for world in worlds:
        models = [make(f"m{i}", x, f"m{i}") for i, x in enumerate(world)]
        strangers = background_of(models).against(models[0], models[1])
        place = rank(corrected(models[0], models[1]).value, (pair.scores["corrected"] for pair in strangers))
        assert place is not None
        called += place.p <= 0.05
    assert 0 < called / 150 <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 150)


def test_the_interval_resamples_layers_of_both_models_together() -> None:
    models = roots(8)
    placement = place_among(models[0], models[1], background_of(models))
    x = np.arange(12)

    residuals = [
        np.stack([y - np.polyval(np.polyfit(x, y, 1), x) for y in np.log([model.sigma[r] for r in ROLES])])
        for model in models[:2]
    ]
    rng = np.random.default_rng(0)
    draws = []
    for layers in rng.integers(0, 12, (1500, 12)):
        both = zip(*(rows[:, layers] for rows in residuals), strict=True)
        draws.append(np.mean([np.corrcoef(p, q)[0, 1] for p, q in both]))
    assert placement.interval is not None
    assert placement.interval.method == "percentile"
    assert [placement.interval.low, placement.interval.high] == pytest.approx(
        np.quantile(draws, [0.025, 0.975]), abs=0.06
    )


def test_holm_is_added_beside_the_words() -> None:
    models = roots(8)
    background = background_of(models)
    table = [place_among(models[0], child(models[0], "sft"), background), place_among(models[0], models[1], background),
             place_among(walk("odd", 28, 1), models[0], background)]  # fmt: skip
    adjusted = adjust(table)
    assert [v.word for v in adjusted] == [v.word for v in table]
    assert adjusted[0].p_adjusted == pytest.approx(2 / 29)
    assert adjusted[2].p_adjusted is None
    assert asdict(adjusted[0])["background"]["n"] == 28


@pytest.mark.parametrize(
    ("score", "word"), [(0.0115, "among strangers"), (0.09, "among strangers"), (0.164, "closer than all strangers")]
)
def test_closest_by_a_little_is_not_called_closer(score: float, word: str) -> None:
    """Of twelve unrelated roots two were the closest of all at 0.0115, where a copy scores 1; a merge at 30 % scores 0.164."""
    models = roots(12)
    recorded = {frozenset((a.name, b.name)): {"aligned": 0.001} for a, b in combinations(models, 2)}
    background = background_of(models, recorded)
    placement = place_among(models[0], child(models[0], "x"), background, by_weights={"aligned": score})
    assert placement.primary == "aligned"
    assert placement.background is not None
    assert placement.background.p == placement.background.min_p
    assert placement.effect == pytest.approx((score - 0.001) / 0.999)
    assert (placement.effect >= MIN_EFFECT) == (word != "among strangers")
    assert placement.word == word
    assert (f"only {100 * placement.effect:.1f} % of the way" in placement.sentence) == (word == "among strangers")
