"""Findings and tables of the evidence against counts by hand."""

from dataclasses import replace

import numpy as np
import pytest

from modelassay.experiments.findings import Finding, Table
from modelassay.experiments.fingerprinting.analyse.pairs import Evidence
from modelassay.experiments.fingerprinting.analyse.scoring import COMPARED, MIN_PAIRS, groups, score_methods
from modelassay.statistics.classification import METRICS
from modelassay.statistics.estimate import Range
from modelassay.statistics.proportions import wilson
from support.evidence_cases import CHILDREN, MINIS, OTHERS, evidence_of, models, numbers, recorded

Scored = tuple[list[Finding], list[Table], list[str]]


@pytest.fixture(scope="module")
def world() -> Evidence:
    summaries = models([*MINIS[:8], *OTHERS[:3], *CHILDREN])
    return evidence_of(summaries, recorded(summaries, "aligned", "modeldna"))


@pytest.fixture(scope="module")
def scored(world: Evidence) -> Scored:
    return score_methods(world)


def values(findings: list[Finding], name: str) -> dict[tuple[str, ...], Finding]:
    return {tuple(map(str, f.labels.values())): f for f in findings if f.name == name}


def auroc_by_counting(world: Evidence, method: str, which: object) -> float:
    pairs = [
        (score, pair.related) for score, pair in zip(world.scores[method], world.pairs, strict=True) if which(pair)
    ]  # type: ignore[operator]
    high = [-np.inf if np.isnan(score) else score for score, related in pairs if related]
    low = [-np.inf if np.isnan(score) else score for score, related in pairs if not related]
    return float(np.mean([(x > y) + 0.5 * (x == y) for x in high for y in low]))


def test_no_finding_stands_twice_under_its_labels(scored: Scored) -> None:
    keys = [(f.name, tuple(sorted((k, str(v)) for k, v in f.labels.items()))) for f in scored[0]]
    assert len(keys) == len(set(keys))
    assert {f.name: set(f.labels) for f in scored[0]} == {
        "accuracy": {"method", "metric", "group"}, "accuracy-difference": {"method", "than", "metric"},
        "detected": {"method", "made_by"}, "related-score": {"method", "made_by"}, "margin": {"method", "made_by"}, "false-positives": {"method"}, "calibration": {"method", "size"},
    }  # fmt: skip
    assert all(np.isfinite(f.value) for f in scored[0])


def test_auroc_of_every_group_is_the_share_of_comparisons_won(world: Evidence, scored: Scored) -> None:
    estimates = values(scored[0], "accuracy")
    counted = 0
    for group in groups(world):
        kinds = [pair.related for pair in world.pairs if group.which(pair)]
        for method in world.scores:
            finding = estimates.get((method, "auroc", group.name))
            if min(sum(kinds), len(kinds) - sum(kinds)) < MIN_PAIRS:
                assert finding is None
                continue
            assert finding is not None
            assert finding.value == pytest.approx(auroc_by_counting(world, method, group.which), abs=1e-12)
            counted += 1
    assert counted > 40
    assert {metric for _, metric, group in estimates if group == "all"} <= set(METRICS)


def test_groups_are_the_pairs_their_name_says(world: Evidence) -> None:
    pairs_of = {group.name: [pair for pair in world.pairs if group.which(pair)] for group in groups(world)}
    assert pairs_of["all"] == list(world.pairs)
    seed = pairs_of["strangers: other seed alone"]
    assert {pair.hardness for pair in seed} == {None, "other seed alone"}
    assert sum(pair.related for pair in seed) == len(CHILDREN)
    assert {pair.suspect.made_by for pair in pairs_of["made by: cpt-25"]} == {"cpt-25"}
    assert {pair.related for pair in pairs_of["made by: cpt-25"]} == {True, False}
    assert "made by: root" not in pairs_of
    assert {pair.suspect.size for pair in pairs_of["size: 8x64"]} == {"8x64"}


def test_differences_are_those_of_the_methods_that_are_there(scored: Scored) -> None:
    accuracies = values(scored[0], "accuracy")
    estimates = values(scored[0], "accuracy-difference")
    measured = {method for method, *_ in accuracies}  # which behaviour is not
    assert set(estimates) == {(method, than, "auroc") for method, than in COMPARED if {method, than} <= measured}
    assert len(estimates) == len(COMPARED) - 3
    for (method, than, _), finding in estimates.items():
        expected = accuracies[method, "auroc", "all"].value - accuracies[than, "auroc", "all"].value
        assert finding.value == pytest.approx(expected, abs=1e-12)


def test_detected_is_the_share_of_decidable_suspects_called(world: Evidence, scored: Scored) -> None:
    estimates = values(scored[0], "detected")
    for method in ("corrected", "aligned", "config-only"):
        for made_by in ("sft-en", "cpt-25", "cpt-100"):
            ranks = world.ranks(method, lambda p, made_by=made_by: world.can_decide(p) and p.suspect.made_by == made_by)
            share = wilson(int(np.sum(ranks.p <= world.alpha + 1e-12)), ranks.p.size)
            finding = estimates[method, made_by]
            assert finding.value == share.value
            assert finding.estimate.low <= share.low
            assert finding.estimate.high >= share.high
            assert finding.note.startswith(f"{share.note} at alpha = 0.05")
    assert estimates["corrected", "sft-en"].value == 1.0
    assert ("corrected", "depth") not in estimates  # three families of 4 layers are too few strangers for it
    assert ("invariant", "sft-en") not in estimates  # which was not measured


def test_related_scores_are_medians_between_the_extremes(world: Evidence, scored: Scored) -> None:
    estimates = values(scored[0], "related-score")
    for method in world.scores:
        for made_by in ("sft-en", "depth"):
            related = [score for score, pair in zip(world.scores[method], world.pairs, strict=True)
                    if pair.related and pair.suspect.made_by == made_by and np.isfinite(score)]  # fmt: skip
            if not related:
                assert (method, made_by) not in estimates
                continue
            finding = estimates[method, made_by]
            assert isinstance(finding.estimate, Range)
            assert (finding.estimate.low, finding.value, finding.estimate.high) == (
                min(related),
                np.median(related),
                max(related),
            )
            assert finding.estimate.n == len(related)


def test_training_since_the_root_is_in_classes(world: Evidence) -> None:
    pairs_of = {group.name: [pair for pair in world.pairs if group.which(pair)] for group in groups(world)}
    made_by = {name.removeprefix("training: "): {pair.suspect.made_by for pair in pairs}
               for name, pairs in pairs_of.items() if name.startswith("training: ")}  # fmt: skip
    assert made_by == {"none": {"depth"}, "up to half": {"cpt-25"}, "up to twice": {"cpt-100", "sft-en"}}


def test_false_positives_are_those_of_unrelated_suspects_of_the_roots_stratum(world: Evidence, scored: Scored) -> None:
    estimates = values(scored[0], "false-positives")
    for method in ("corrected", "aligned"):
        ranks = world.ranks(method, lambda p: not p.related and p.suspect.stratum == p.root.stratum)
        called = int(np.sum(ranks.p <= world.alpha + 1e-12))
        assert estimates[method,].value == called / ranks.p.size
    assert ("invariant",) not in estimates


def test_calibration_is_per_size(scored: Scored) -> None:
    estimates = values(scored[0], "calibration")
    assert ("corrected", "6x48") in estimates
    assert 0 <= estimates["corrected", "6x48"].value <= 1
    assert estimates["corrected", "6x48"].note.startswith("45 unrelated pairs, p = ")  # ten roots of that stratum


def test_tables_say_what_the_findings_say(world: Evidence, scored: Scored) -> None:
    findings, tables, _ = scored
    titles = [table.title for table in tables]
    assert len(titles) == len(set(titles)) == 8
    for table in tables:
        assert table.rows
        assert all(len(row) == len(table.columns) for row in table.rows)
        assert not [cell for row in table.rows for cell in row if not isinstance(cell, str) or "nan" in cell]
        assert all(cell for row in table.rows for cell in row[:-1])  # the last may be a note
    overall = {row[0]: row for row in tables[0].rows}
    assert list(overall) == list(world.scores)
    assert "12 related and 175 unrelated pairs of 11 roots (3 with descendants)" in tables[0].title
    estimates = values(findings, "accuracy")
    assert overall["corrected"][2].startswith(f"{estimates['corrected', 'auroc', 'all'].value:.3f} [")
    assert overall["invariant"][1] == "0%"
    survival = {row[0]: row for row in tables[5].rows}
    assert tables[5].title.startswith("survival")
    column = list(tables[5].columns).index("corrected")
    assert survival["sft-en"][column] == "3 of 3"
    assert survival["sft-en"][list(tables[5].columns).index("invariant")] == "cannot compare"


def test_caveats_name_the_few_roots_and_whom_they_are_about(world: Evidence, scored: Scored) -> None:
    notes = scored[2]
    assert len(notes) == len(set(notes))
    assert "positive pairs come from 3 groups: intervals over so few cover too little" in notes
    lacking = {method: int(np.isnan(score).sum()) for method, score in world.scores.items() if np.isnan(score).any()}
    assert len(set(lacking.values())) > 1
    for number in set(lacking.values()):
        methods = ", ".join(method for method, count in lacking.items() if count == number)
        assert (
            f"{methods}: {number} of {len(world.pairs)} pairs cannot be compared and count as below every score"
            in notes
        )
    assert len(notes) == 1 + len(set(lacking.values()))


def test_a_method_that_compares_nothing_is_chance_and_not_an_error(world: Evidence, scored: Scored) -> None:
    estimates = values(scored[0], "accuracy")
    assert estimates["invariant", "auroc", "all"].value == 0.5
    assert estimates["invariant", "partial-auc", "all"].value == pytest.approx(0.05 / 2)
    assert ("invariant", "mahalanobis", "all") not in estimates
    nothing = replace(world, scores={"corrected": np.full(len(world.pairs), np.nan)})
    findings, tables, _ = score_methods(nothing)
    assert values(findings, "accuracy")["corrected", "auroc", "all"].value == 0.5
    assert tables


@pytest.mark.parametrize("names", [[], MINIS[:1], MINIS, [*MINIS, *CHILDREN[:2]]])
def test_too_few_related_pairs_are_not_scored(names: list[str]) -> None:
    assert score_methods(evidence_of(models(names))) == ([], [], [])


def test_three_related_and_three_unrelated_pairs_are_enough() -> None:
    findings, tables, _ = score_methods(evidence_of(models(["zoo:mini-1", "zoo:mini-2", *CHILDREN[:4]])))
    assert values(findings, "accuracy")["corrected", "auroc", "all"].value > 0.5
    assert not values(findings, "detected")  # without strangers of their own nobody can be called
    assert not values(findings, "false-positives")
    assert all(table.rows for table in tables)
    assert {f.labels["than"] for f in findings if f.name == "accuracy-difference"} == {
        "config-only",
        "paper-exact",
        "corrected",
    }


def test_two_strata_of_one_size_have_one_calibration_of_the_larger() -> None:
    summaries = {f"m/{t}{at}": numbers(f"m/{t}{at}", f"{t}{at}", family=f"{t}{at}", tokenizer=t)
             for t, count in (("t", 10), ("u", 9)) for at in range(count)}  # fmt: skip
    for at in range(4):
        summaries[f"m/c{at}"] = numbers(f"m/c{at}", f"c{at}", family=f"t{at}", parent=summaries[f"m/t{at}"])
    findings, _, _ = score_methods(evidence_of(summaries))
    calibrated = [f for f in findings if f.name == "calibration" and f.labels["method"] == "corrected"]
    assert [f.note.split(",")[0] for f in calibrated] == ["45 unrelated pairs"]


def test_intervals_that_the_roots_cannot_give_leave_wilsons() -> None:
    """Unrelated suspects of two roots alone: half of the resamples lack one, and no bootstrap interval is left."""
    children = [f"zoo:mini-1+{step}" for step in ("sft-en", "cpt-25", "cpt-100")]
    summaries = models([*MINIS, *children])
    pairs = {frozenset((child.removeprefix("zoo:"), root)) for child in children for root in ("mini-1", "mini-2")}
    world = evidence_of(summaries, {names: {"aligned": 0.5} for names in pairs})
    findings, tables, _ = score_methods(world)
    finding = values(findings, "false-positives")["corrected",]
    share = wilson(round(3 * finding.value), 3)
    assert (finding.estimate.low, finding.estimate.high) == (share.low, share.high)
    assert f"{share.note} at alpha = 0.05" in finding.note
    assert not any("nan" in cell for table in tables for row in table.rows for cell in row)
    assert all(f.estimate.has_interval for f in findings if f.name == "detected")
