"""Pairs, what is known of them, and their ranks, against the zoo's own table and brute force."""

import math
from itertools import product

import numpy as np
import polars as pl
import pytest

from modelassay import zoo
from modelassay.experiments.fingerprinting.analyse.pairs import HARDNESS, Evidence, Pair, gather
from modelassay.experiments.fingerprinting.analyse.read import recorded_scores
from modelassay.fingerprints.background import Background
from modelassay.fingerprints.methods import BY_NUMBERS, BY_WEIGHTS
from modelassay.recording.tables import RunData
from support.evidence_cases import CHILDREN, MINIS, WORLD, copy_of, evidence_of, models, numbers, recorded


@pytest.fixture(scope="module")
def world() -> Evidence:
    summaries = models()
    return evidence_of(summaries, recorded(summaries, "norm-vectors", "aligned", "modeldna"))


def test_every_suspect_meets_every_root_and_roots_meet_once(world: Evidence) -> None:
    roots = [reference for reference in WORLD if zoo.parent(reference) is None]
    expected = {(s, r) for s, r in product(WORLD, roots) if s not in roots}
    expected |= {(b, a) for at, b in enumerate(roots) for a in roots[:at]}
    references = [(pair.suspect.reference, pair.root.reference) for pair in world.pairs]
    assert len(references) == len(set(references))
    assert set(references) == expected
    assert len({frozenset(pair) for pair in references}) == len(references)
    for pair in world.pairs:
        assert pair.related == zoo.related(pair.suspect.reference, pair.root.reference)


def test_what_is_known_of_a_zoo_model_is_what_its_table_says(world: Evidence) -> None:
    for pair in world.pairs:
        suspect, root = pair.suspect, pair.root
        above = zoo.family(suspect.reference)
        assert suspect.family == above
        assert suspect.is_root == (zoo.parent(suspect.reference) is None)
        assert suspect.made_by == ("+".join(zoo.transformations(suspect.reference)) or "root")
        assert suspect.size == zoo.member(above).size
        assert suspect.training == (zoo.tokens_between(suspect.reference, above) or 0) / zoo.tokens_of(above)
        assert root.is_root
        if pair.related:
            assert pair.hardness is None
        else:
            assert pair.hardness == HARDNESS[zoo.relation(suspect.reference, root.reference)]
    assert {pair.hardness for pair in world.pairs} == {None, "other seed alone", "other text", "other shape"}


def test_scores_are_each_methods_own_or_what_was_recorded(world: Evidence) -> None:
    summaries = models()
    scores = recorded(summaries, "norm-vectors", "aligned", "modeldna")
    assert list(world.scores) == [*BY_NUMBERS, *BY_WEIGHTS, "modeldna"]
    for index, pair in enumerate(world.pairs):
        a, b = summaries[pair.suspect.reference], summaries[pair.root.reference]
        for name, method in BY_NUMBERS.items():
            np.testing.assert_equal(world.scores[name][index], method.score(a, b).value)
        for name, value in scores[frozenset((pair.suspect.name, pair.root.name))].items():
            np.testing.assert_equal(world.scores[name][index], value)
    assert np.isnan(world.scores["invariant"]).all()  # whose products nobody measured
    assert 0 < np.isnan(world.scores["aligned"]).mean() < 0.3


def test_scored_pairs_carry_the_roots_of_both_sides(world: Evidence) -> None:
    def of_mini_one(pair: Pair) -> bool:
        return pair.suspect.family == "mini-1"

    chosen = [pair for pair in world.pairs if of_mini_one(pair)]
    scored = world.scored("corrected", of_mini_one)
    assert [world.roots[root] for root in scored.group_a] == [pair.suspect.family for pair in chosen]
    assert [world.roots[root] for root in scored.group_b] == [pair.root.family for pair in chosen]
    assert scored.positive.tolist() == [pair.related for pair in chosen]
    places = [index for index, pair in enumerate(world.pairs) if of_mini_one(pair)]
    np.testing.assert_array_equal(scored.score, world.scores["corrected"][places])
    assert world.scored("corrected").score.size == len(world.pairs)


def brute_rank(world: Evidence, method: str, pair: Pair, score: float) -> tuple[float, float]:
    """The rank of one pair among strangers of its own two strata that share no family with it; of one family pair the best."""
    strata = frozenset((pair.suspect.stratum, pair.root.stratum))
    own = {pair.suspect.family, pair.root.family}
    best: dict[frozenset[str], float] = {}
    for stranger in world.background.pairs:
        value = stranger.scores.get(method, np.nan)
        if stranger.strata == strata and not own & stranger.families and np.isfinite(value):
            best[stranger.families] = max(value, best.get(stranger.families, -np.inf))
    if not best or np.isnan(score):
        return np.nan, np.nan
    return (1 + sum(value >= score - 1e-12 for value in best.values())) / (1 + len(best)), 1 / (1 + len(best))


@pytest.mark.parametrize("method", ["config-only", "corrected", "aligned", "invariant"])
@pytest.mark.parametrize("related", [True, False])
def test_ranks_are_those_among_strangers_of_the_same_strata(world: Evidence, method: str, related: bool) -> None:
    ranks = world.ranks(method, lambda pair: pair.related == related)
    expected = []
    for index, pair in enumerate(world.pairs):
        if pair.related == related:
            score = float(world.scores[method][index])
            ends = (world.roots.index(pair.suspect.family), world.roots.index(pair.root.family))
            expected.append((*ends, score, *brute_rank(world, method, pair, score)))
    pairs = ranks.pairs
    rows = zip(pairs.group_a, pairs.group_b, pairs.score, ranks.p, ranks.min_p, strict=True)
    np.testing.assert_allclose(sorted(rows, key=str), sorted(expected, key=str), rtol=1e-12)
    if method == "corrected" and related:
        assert (
            len(set(np.round(ranks.min_p[np.isfinite(ranks.min_p)], 9))) > 1
        )  # judged by backgrounds of several sizes


def test_who_can_be_decided_is_who_has_strangers_enough(world: Evidence) -> None:
    decided = {pair.suspect.name for pair in world.pairs if world.can_decide(pair)}
    expected = set()
    for pair in world.pairs:
        if pair.related and brute_rank(world, "config-only", pair, 1.0)[1] <= world.alpha + 1e-12:
            expected.add(pair.suspect.name)
    assert decided == expected
    assert "mini-1+sft-en" in decided
    assert "base+cpt-25" not in decided  # two roots of its size are one pair of strangers, and that is its own
    strict = evidence_of(models(), alpha=0.001)
    assert not any(strict.can_decide(pair) for pair in strict.pairs)


def test_only_the_way_it_was_made_is_chosen(world: Evidence) -> None:
    ranks = world.ranks_of_decidable("corrected", "sft-en")
    assert ranks.pairs.score.size == 3
    assert ranks.pairs.positive.all()
    assert world.ranks_of_decidable("corrected", "nothing").p.size == 0


def test_no_pairs_are_no_ranks(world: Evidence) -> None:
    ranks = world.ranks("corrected", lambda _pair: False)
    assert (ranks.p.size, ranks.min_p.size, ranks.pairs.score.size) == (0, 0, 0)


def test_strangers_of_a_stratum_are_its_pairs_of_roots(world: Evidence) -> None:
    roots = [model.curves for reference, model in models().items() if zoo.parent(reference) is None]
    members = [curves for curves in roots if curves.stratum == (6, 48, "t")]
    assert world.stranger_scores("corrected", (6, 48, "t")).size == math.comb(len(members), 2) == 55
    assert world.stranger_scores("corrected", "nowhere").size == 0
    ranks = world.stranger_ranks("corrected", (6, 48, "t"))
    assert ranks.among_themselves
    assert ranks.p.size == 55


def test_smoke_names_know_their_ancestry() -> None:
    names = ["base", "stranger-1", "stranger-data", "stranger-shape", "child-sft", "base+depth"]
    world = evidence_of(models([f"zoo:smoke/{name}" for name in names]))
    pairs = {(pair.suspect.name, pair.root.name): pair for pair in world.pairs}
    assert len(pairs) == 6 + 8
    assert sorted(key for key, pair in pairs.items() if pair.related) == [("base+depth", "base"), ("child-sft", "base")]
    assert pairs["child-sft", "base"].suspect.made_by == "sft-ja"
    assert pairs["stranger-1", "base"].suspect.is_root
    assert pairs["stranger-1", "base"].hardness == "other seed alone"
    assert {pair.families for pair in world.background.pairs if len(pair.strata) == 1} == {
        frozenset((f"smoke/{a}", f"smoke/{b}")) for a, b in (("base", "stranger-1"), ("base", "stranger-data"), ("stranger-1", "stranger-data"))
    }  # fmt: skip


def test_folders_are_known_by_the_family_that_was_declared() -> None:
    summaries = {f"models/{name}": numbers(f"models/{name}", name, family=name) for name in "abc"}
    summaries["models/a-child"] = numbers("models/a-child", "a-child", family="a", parent=summaries["models/a"])
    summaries["models/by-path"] = numbers("models/by-path", "by-path", family="models/by-path", tokenizer="u")
    summaries["models/orphan"] = numbers("models/orphan", "orphan", family="lost")
    summaries["models/asked"] = numbers("models/asked", "asked")
    world = evidence_of(summaries)
    pairs = {(pair.suspect.name, pair.root.name): pair for pair in world.pairs}
    assert ("asked", "a") not in pairs
    assert {root for _, root in pairs} == {"a", "b", "c", "by-path"}
    assert pairs["a-child", "a"].related
    assert (pairs["a-child", "a"].suspect.made_by, pairs["a-child", "a"].suspect.training) == ("not known", None)
    assert pairs["b", "a"].suspect.made_by == "root"
    assert pairs["b", "a"].hardness == "same shape and tokenizer"
    assert pairs["by-path", "a"].hardness == "other shape or tokenizer"
    assert pairs["by-path", "a"].suspect.is_root
    assert [pair.related for key, pair in pairs.items() if key[0] == "orphan"] == [False] * 4
    assert world.scored("corrected").positive.sum() == 1  # which also checks every root's index


def test_the_zoo_and_folders_in_one_run() -> None:
    summaries = models(["zoo:mini-1", "zoo:mini-2", "zoo:mini-1+sft-en"])
    summaries["models/x"] = numbers("models/x", "x", family="x")
    summaries["models/stolen"] = numbers("models/stolen", "stolen", family="mini-1", parent=summaries["zoo:mini-1"])
    world = evidence_of(summaries)
    pairs = {(pair.suspect.name, pair.root.name): pair for pair in world.pairs}
    assert pairs["stolen", "mini-1"].related
    assert pairs["stolen", "mini-1"].suspect.size == "6x48"
    assert pairs["stolen", "mini-2"].hardness == "same shape and tokenizer"
    assert pairs["mini-1+sft-en", "x"].hardness == "same shape and tokenizer"
    assert pairs["mini-1+sft-en", "mini-2"].hardness == "other seed alone"
    assert world.made_by == {
        ("zoo:mini-1+sft-en", "zoo:mini-1"): "sft-en",
        ("models/stolen", "zoo:mini-1"): "not known",
    }


def test_a_zoo_model_declared_to_be_of_another_family_is_taken_at_that_word() -> None:
    summaries = models(["zoo:mini-1", "zoo:mini-2"])
    summaries["zoo:mini-3"] = numbers("zoo:mini-3", "mini-3", family="mini-1", parent=summaries["zoo:mini-1"])
    pairs = {(pair.suspect.name, pair.root.name): pair for pair in evidence_of(summaries).pairs}
    assert pairs["mini-3", "mini-1"].related
    assert pairs["mini-3", "mini-1"].suspect.made_by == "not known"


def test_recorded_pairs_are_the_pairs_there_are() -> None:
    summaries = models()
    scores = recorded(summaries, "aligned")
    some = {
        names: value
        for names, value in scores.items()
        if "mini-5" not in names and names != frozenset(("mini-2", "mini-1"))
    }
    world = evidence_of(summaries, some)
    names = {frozenset((pair.suspect.name, pair.root.name)) for pair in world.pairs}
    assert (
        names == {frozenset((p.suspect.name, p.root.name)) for p in evidence_of(summaries, scores).pairs} & some.keys()
    )
    assert frozenset(("mini-2", "mini-1")) not in names
    assert not any("mini-5" in pair for pair in names)
    assert np.isnan(world.scores["norm-vectors"]).all()


def test_without_comparisons_only_what_numbers_tell_is_scored() -> None:
    assert list(evidence_of(models()).scores) == list(BY_NUMBERS)


def test_roots_alone_make_no_related_pairs() -> None:
    world = evidence_of(models(MINIS))
    assert len(world.pairs) == math.comb(9, 2)
    assert not any(pair.related for pair in world.pairs)
    assert not any(world.can_decide(pair) for pair in world.pairs)
    assert evidence_of({}).pairs == []


def test_a_copy_of_a_root_under_another_name_and_its_descendants_are_no_strangers() -> None:
    summaries = models([*MINIS, *CHILDREN])
    plain = evidence_of(summaries)
    keyed = {ref: copy_of(m, m.curves.name, family=m.curves.family, key=ref) for ref, m in summaries.items()}
    keyed["models/thief"] = copy_of(summaries["zoo:mini-1"], "thief", family="thief", key="zoo:mini-1")
    keyed["models/thief-child"] = copy_of(summaries["zoo:mini-1+sft-en"], "thief-child", family="thief", key="other")
    world = evidence_of(keyed)
    assert world.background.duplicates == (("thief", "mini-1"),)
    assert [(p.suspect.name, p.root.name) for p in world.pairs] == [(p.suspect.name, p.root.name) for p in plain.pairs]
    assert {pair.names for pair in world.background.pairs} == {pair.names for pair in plain.background.pairs}


def tables(models_of_cells: dict[str, str], metrics: list[dict[str, object]]) -> RunData:
    cells = pl.DataFrame({"cell": list(models_of_cells), "model": list(models_of_cells.values())})
    return RunData(cells=cells, units=pl.DataFrame(), metrics=pl.DataFrame(metrics), profile="mine")


def test_recorded_scores_by_the_names_of_both_models() -> None:
    def score(cell: str, other: str, method: str, value: float) -> dict[str, object]:
        return {"cell": cell, "name": "score", "value": value, "method": method, "other": other}

    by_names = recorded_scores(
        tables({"1": "zoo:a", "2": "zoo:b", "3": "zoo:gone"}, [
            score("2", "zoo:a", "aligned", 0.5), score("2", "zoo:a", "norm-vectors", math.nan), score("2", "zoo:gone", "aligned", 0.1),
            score("3", "zoo:a", "aligned", 0.2), score("2", "zoo:elsewhere", "aligned", 0.3),
            {"cell": "2", "name": "peer-signal", "value": 9.0, "method": None, "other": "zoo:a"},
        ]),
        {"zoo:a": "a", "zoo:b": "b"},
    )  # fmt: skip
    assert list(by_names) == [frozenset("ab")]
    assert by_names[frozenset("ab")]["aligned"] == 0.5
    assert math.isnan(by_names[frozenset("ab")]["norm-vectors"])
    assert set(by_names[frozenset("ab")]) == {"aligned", "norm-vectors"}


def test_a_run_without_comparisons_has_no_recorded_scores() -> None:
    assert recorded_scores(tables({"1": "zoo:a"}, [{"cell": "1", "name": "sigma", "value": 1.0}]), {"zoo:a": "a"}) == {}


def test_all_recorded_of_models_outside_the_run_is_as_if_nothing_was() -> None:
    summaries = models(MINIS)
    outside = tables({"1": "zoo:mini-1"}, [
        {"cell": "1", "name": "score", "value": 0.5, "method": "aligned", "other": "zoo:base"}
    ])  # fmt: skip
    scores = recorded_scores(outside, {reference: model.curves.name for reference, model in summaries.items()})
    world = gather(summaries, scores, Background.from_models(summaries.values(), scores), alpha=0.05)
    assert len(world.pairs) == 36
    assert list(world.scores) == list(BY_NUMBERS)
