"""Likelihood ratios of methods over families held out, and shares of unrelated pairs, by counting."""

import numpy as np
import pytest

from modelassay.charts import data_of
from modelassay.experiments.fingerprinting.analyse.pairs import Evidence
from modelassay.experiments.fingerprinting.analyse.ratios import held_out, score_ratios, tippett_figure
from modelassay.experiments.fingerprinting.analyse.scoring import score_methods
from modelassay.experiments.fingerprinting.analyse.unrelated import unrelated_scores
from modelassay.statistics.lr import calibrate, cllr
from modelassay.statistics.proportions import clopper_pearson
from support.evidence_cases import CHILDREN, MINIS, OTHERS, evidence_of, models, recorded


@pytest.fixture(scope="module")
def world() -> Evidence:
    summaries = models([*MINIS[:8], *OTHERS[:3], *CHILDREN])
    return evidence_of(summaries, recorded(summaries, "aligned"))


def test_each_pair_is_weighed_by_a_calibration_without_its_roots(world: Evidence) -> None:
    ratios = held_out(world)["aligned"]
    scored = ratios.scored
    for place in (0, 5, len(world.pairs) - 1):
        own = {scored.group_a[place], scored.group_b[place]}
        apart = np.array([not own & {a, b} for a, b in zip(scored.group_a, scored.group_b, strict=True)])
        expected = calibrate(scored, apart).log10(float(scored.score[place]))
        assert ratios.held_out.log10_lr[place] == pytest.approx(expected, abs=1e-6)
    assert ratios.cllr.value == pytest.approx(cllr(ratios.held_out.log10_lr, scored.positive, ratios.held_out.weights))
    assert ratios.cllr.low <= ratios.cllr.value <= ratios.cllr.high


def test_errors_are_counted_by_independent_roots(world: Evidence) -> None:
    findings, (table,) = score_ratios(held_out(world))
    assert {f.name for f in findings} == {"cllr", "separated"}
    assert [row[0] for row in table.rows] == [
        name for name, scores in world.scores.items() if np.isfinite(scores).any()
    ]
    for method in (row[0] for row in table.rows):
        scores = world.scores[method]
        unrelated = [s for s, pair in zip(scores, world.pairs, strict=True) if not pair.related and np.isfinite(s)]
        by_root: dict[str, list[bool]] = {}
        for score, pair in zip(scores, world.pairs, strict=True):
            if pair.related:
                by_root.setdefault(pair.root.name, []).append(bool(score > max(unrelated, default=-np.inf)))
        (share,) = [f.estimate for f in findings if f.name == "separated" and f.labels["method"] == method]
        expected = clopper_pearson(sum(map(all, by_root.values())), len(by_root))
        assert (share.value, share.n, share.low, share.high) == (expected.value, 3, expected.low, expected.high)


def test_tippett_curves_begin_at_one_and_each_root_counts_once(world: Evidence) -> None:
    ratios = held_out(world)["aligned"]
    points = data_of(tippett_figure({"aligned": ratios}), "tippett: aligned")
    related = [point for point in points if point["kind"] == "related"]
    assert related[0]["share"] == related[1]["share"] == 1
    shares = [point["share"] for point in related]
    assert shares == sorted(shares, reverse=True)
    assert {point["kind"] for point in points} == {"related", "unrelated"}


def test_unrelated_pairs_above_a_level_are_roots_counted_once(world: Evidence) -> None:
    found = {
        tuple(f.labels.values())[1]: f.estimate
        for f in unrelated_scores("aligned", world.background)
        if f.name == "unrelated-above"
    }
    scores = np.array([pair.scores["aligned"] for pair in world.background.pairs])
    finite = scores[np.isfinite(scores)]
    exact = clopper_pearson(int((finite > 0.7).sum()), finite.size)
    assert found[0.7].value == exact.value
    assert found[0.7].low <= exact.low
    assert found[0.7].high >= exact.high
    quantiles = {
        f.labels["quantile"]: f.estimate for f in unrelated_scores("aligned", world.background) if f.name == "unrelated"
    }
    assert quantiles[0.5].low < quantiles[0.5].value == np.median(finite) < quantiles[0.5].high
    assert not quantiles[1.0].has_interval
    assert not quantiles[1.0].exact


def test_a_margin_is_the_mean_over_roots_above_the_median_stranger(world: Evidence) -> None:
    margins = {tuple(f.labels.values()): f.estimate for f in score_methods(world)[0] if f.name == "margin"}
    estimate = margins["paper-exact", "sft-en"]
    above = []
    for pair, score in zip(world.pairs, world.scores["paper-exact"], strict=True):
        if pair.related and pair.suspect.made_by == "sft-en":
            above.append(score - np.median(world.stranger_scores("paper-exact", pair.root.stratum)))
    assert len(above) == estimate.n == 3
    assert estimate.value == pytest.approx(np.mean(above))
    assert estimate.has_interval
