"""The numbering of pairs of known ancestry: what is counted, by hand, and p-values against the tests' own laws."""

import math
from typing import Any

import numpy as np
import polars as pl
import pytest

from modelassay.charts import data_of
from modelassay.experiments.fingerprinting.analyse.figures import quantile_figure
from modelassay.experiments.fingerprinting.analyse.numbering import (
    Numbered,
    kin_called,
    numbered_pairs,
    score_numbering,
    steps_of,
    uniformities,
)
from modelassay.experiments.fingerprinting.analyse.tools import compare_tools
from modelassay.fingerprints.peers import PEERS
from modelassay.recording.tables import RunData
from modelassay.statistics.permutations import fixed_points_log_p
from modelassay.statistics.proportions import clopper_pearson
from support.evidence_cases import CHILDREN, MINIS, OTHERS, evidence_of, models, recorded

REFERENCES = (*MINIS[:8], *OTHERS[:3], *CHILDREN)
UNITS = 48


def outcome(word: str, count: int, *, near: int = 12, agreement: bool = False) -> dict[str, Any]:
    log10_p = fixed_points_log_p(count, [UNITS], [UNITS]) / math.log(10)
    test = {"name": "hidden dimensions by body", "statistic": "fixed points", "count": count, "of": UNITS, "expected": 1.0,
            "log10_p": log10_p, "groups": 1, "near_count": near, "near_of": UNITS, "near_expected": UNITS / 4, "all_log10_p": log10_p}  # fmt: skip
    agreed = {"count": 90, "of": 100, "expected": 1.0, "log10_p": -60.0} if agreement else None
    return {
        "word": word,
        "log10_p": log10_p,
        "tests": [test],
        "agreement": agreed,
        "equal": 0,
        "tensors": 9,
        "reasons": [],
    }


def run_of(values: dict[tuple[str, str], dict[str, Any]]) -> RunData:
    """A run whose cells recorded these outcomes, by suspect and root."""
    cells = {
        reference: f"{place:04x}"
        for place, reference in enumerate(dict.fromkeys((*REFERENCES, *(a for a, _ in values))))
    }
    frame = pl.DataFrame(
        {"cell": list(cells.values()), "model": list(cells), "family": [None] * len(cells)},
        schema_overrides={"family": pl.String},
    )
    facts = [{"cell": cells[a], "fact": "numbering", "value": value, "other": b} for (a, b), value in values.items()]
    about = [{"cell": cell, "fact": "model", "value": {"architecture": "qwen2"}} for cell in cells.values()]
    empty = pl.DataFrame()
    return RunData(cells=frame, units=empty, metrics=empty, profile="mine", fact_rows=[*facts, *about])


@pytest.fixture(scope="module")
def numbered() -> list[Numbered]:
    """All root pairs independent but one false alarm; children of mini-1 found, of mini-2 by agreement, sft-en of mini-3 missed."""
    evidence = evidence_of(models(REFERENCES))
    rng, values = np.random.default_rng(3), {}
    for pair in evidence.pairs:
        key = pair.suspect.reference, pair.root.reference
        if pair.related and pair.root.name == "mini-3" and pair.suspect.made_by == "sft-en":
            values[key] = outcome("not distinguishable from independent", 2)
        elif pair.related:
            values[key] = outcome(
                "inherited", 2 if pair.root.name == "mini-2" else UNITS, agreement=pair.root.name == "mini-2"
            )
        elif pair.suspect.is_root or pair.root.name == "mini-4":
            fixed = int((rng.permutation(UNITS) == np.arange(UNITS)).sum())
            near = sum(int((rng.permutation(4) == np.arange(4)).sum()) for _ in range(UNITS // 4))
            values[key] = outcome("not distinguishable from independent", fixed, near=near)
    values["zoo:mini-8", "zoo:mini-1"] = outcome("inherited", UNITS)
    return numbered_pairs(run_of(values), evidence)


def test_false_alarms_are_counted_on_roots_and_descendants_apart(numbered: list[Numbered]) -> None:
    findings, tables, counts = score_numbering(numbered)
    false = {f.labels["pairs"]: f.estimate for f in findings if f.name == "numbering-false"}
    roots = [one for one in numbered if one.pair.suspect.is_root]
    assert len(roots) == 11 * 10 / 2
    assert sum(one.pair.hardness == "other seed alone" for one in roots) == 8 * 7 / 2
    seeds, everything = false["roots, other seed alone"], false["roots, all"]
    assert (seeds.value, seeds.n, everything.value, everything.n) == (1 / 28, 28, 1 / 55, 55)
    exact = clopper_pearson(1, 55)
    assert (everything.low, everything.high) == (exact.low, exact.high)
    repeated = false["descendants of one root with another root, which repeat these"]
    assert (repeated.value, repeated.n) == (0, len(CHILDREN))
    assert counts[0].startswith(
        "numbering was tested in 55 independent pairs of roots, 28 of one recipe and data; 12 more"
    )
    strata = next(table for table in tables if "by architecture" in table.title)
    assert [row[:4] for row in strata.rows if row[0] == "qwen2 6x48, trained like mini-1"] == [
        ("qwen2 6x48, trained like mini-1", "8", "28", "1")
    ]


def test_power_is_by_transformation_and_by_whole_roots(numbered: list[Numbered]) -> None:
    findings, tables, _ = score_numbering(numbered)
    power = {f.labels["made_by"]: f.estimate for f in findings if f.name == "numbering-power"}
    assert (power["sft-en"].value, power["sft-en"].n, power["depth"].value) == (2 / 3, 3, 1.0)
    assert power["depth"].low == pytest.approx(0.025 ** (1 / 3))
    (families,) = [f.estimate for f in findings if f.name == "numbering-families"]
    assert (families.value, families.n) == (2 / 3, 3)
    (table,) = [table for table in tables if table.title.startswith("descendants")]
    rows = {row[0]: row for row in table.rows}
    assert rows["cpt-25"][1:6] == ("3 of 3", "0.29 to 1.00", "0", "2", "1")  # mini-2's by agreement alone
    assert rows["all"][1] == "11 of 12"


def test_p_is_compared_with_the_law_that_made_it(numbered: list[Numbered]) -> None:
    """The distance is the largest between the share of pairs with so many fixed points and its probability."""
    roots = [one for one in numbered if one.pair.suspect.is_root]
    uniform = uniformities(roots)["hidden dimensions by body"]
    assert uniform.ks.n == 55
    counts = np.array([one.result.tests[0].count for one in roots])
    tail = [math.exp(fixed_points_log_p(count, [UNITS], [UNITS])) for count in range(8)]
    far = max(abs((counts >= count).mean() - p) for count, p in enumerate(tail))
    assert uniform.ks.value == pytest.approx(far, abs=1e-9)
    assert 0.0005 < uniform.ks.p <= 1
    honest = [one for one in roots if not one.called]
    for one, p in zip(sorted(honest, key=lambda one: one.result.tests[0].log10_p), uniform.observed[1:], strict=True):
        assert p == pytest.approx(10 ** (one.result.tests[0].log10_p), rel=1e-9)
    neighbours = uniformities(roots)["hidden dimensions by body, among neighbours"]
    counts = np.array([one.result.tests[0].near_count for one in roots])
    tail = [math.exp(fixed_points_log_p(count, [4] * 12, [4] * 12)) for count in range(UNITS + 1)]
    assert neighbours.ks.value == pytest.approx(
        max(abs((counts >= n).mean() - p) for n, p in enumerate(tail)), abs=1e-9
    )
    assert 0.0005 < neighbours.ks.p <= 1
    drawn = data_of(quantile_figure({"body": uniform}), "numbering-p: body")
    assert len(drawn) == 55
    assert [point["p"] for point in drawn] == sorted(point["p"] for point in drawn)


def test_steps_are_the_law_of_fixed_points() -> None:
    law = steps_of(6, 2, 2.0)  # two permutations of three
    assert law[-1] == 1
    expected = [math.exp(fixed_points_log_p(count, [3, 3], [3, 3])) for count in range(7)]
    np.testing.assert_allclose(law[::-1][: len(expected)], expected)
    part = steps_of(2, 1, 0.5)  # two units into four
    assert part[::-1][1] == pytest.approx(math.exp(fixed_points_log_p(1, [2], [4])))


def test_nothing_is_said_where_nothing_was_tested() -> None:
    assert score_numbering([]) == ([], [], [])


def test_models_of_one_beginning_are_neither_heirs_nor_strangers() -> None:
    run = run_of({
        ("zoo:same-init-mini-4", "zoo:mini-4"): outcome("inherited", UNITS),
        ("zoo:distilled-mini-4", "zoo:mini-4"): outcome("not distinguishable from independent", 1),
        ("zoo:same-order-mini-4", "zoo:mini-4"): outcome("not distinguishable from independent", 1),
        ("zoo:mini-4+quarot", "zoo:mini-4"): outcome("inherited", UNITS),
    })  # fmt: skip
    assert kin_called(run) == {"same-init": [True], "distilled": [False]}


def test_tools_are_rated_on_the_same_pairs_and_on_strangers_of_one_configuration(numbered: list[Numbered]) -> None:
    summaries = models(REFERENCES)
    scores = recorded(summaries, "modeldna")
    evidence = evidence_of(summaries, scores)
    findings, (table,) = compare_tools(evidence, numbered)
    places = {(one.pair.suspect.name, one.pair.root.name) for one in numbered}
    pairs = [(pair, score) for pair, score in zip(evidence.pairs, evidence.scores["modeldna"], strict=True)
             if (pair.suspect.name, pair.root.name) in places]  # fmt: skip
    strangers = [
        score for pair, score in pairs if pair.suspect.is_root and pair.hardness in ("other seed alone", "other text")
    ]
    called = {(f.labels["tool"], f.labels["pairs"]): f.estimate for f in findings}
    name = f"modeldna {PEERS['modeldna'].version}"
    assert called[name, "roots of one configuration"].n == len(strangers) == 10 * 9 / 2
    assert called[name, "roots of one configuration"].value == np.mean(np.array(strangers) >= 0.9)
    assert called[name, "related"].n == len(CHILDREN)
    assert called["independent numbering", "related"].value == 11 / 12
    high = [-np.inf if np.isnan(score) else score for pair, score in pairs if pair.related]
    low = [-np.inf if np.isnan(score) else score for score in strangers]
    won = np.mean([(x > y) + 0.5 * (x == y) for x in high for y in low])
    assert table.rows[0][-1] == f"{won:.3f}"
    apart = [one for one in numbered if one.pair.related]
    assert compare_tools(evidence, apart) == ([], [])  # no strangers of one configuration: no rating
    assert compare_tools(evidence_of(summaries), numbered) == ([], [])  # no peer
