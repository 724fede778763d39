"""What `derivation` said, counted by hand."""

import math
from dataclasses import replace

import polars as pl
import pytest

from modelassay import zoo
from modelassay.experiments.fingerprinting.analyse.lineage import (
    NAMES,
    SYMMETRIC,
    Derived,
    derived_pairs,
    not_derived,
    score_derivations,
)
from modelassay.fingerprints.lineage import swapped
from modelassay.recording.tables import RunData
from modelassay.statistics.proportions import wilson


def derivation(made_by: str, kind: str, root_is_parent: bool | None) -> Derived:
    return Derived(made_by=made_by, kind=kind, root_is_parent=root_is_parent)


def tables(cells: dict[str, str], rows: list[tuple[str, str, str, str, float]]) -> RunData:
    columns = ("cell", "name", "other", "kind", "value")
    metrics = pl.DataFrame([dict(zip(columns, row, strict=True)) for row in rows])
    return RunData(cells=pl.DataFrame({"cell": list(cells), "model": list(cells.values())}), units=pl.DataFrame(),
                  metrics=metrics, profile="mine")  # fmt: skip


def test_only_pairs_with_the_root_whose_making_is_known_are_read() -> None:
    cells = {"1": "zoo:a+sft-en", "2": "zoo:a+int8", "3": "models/x", "4": "zoo:a"}
    rows = [
        ("1", "derivation", "zoo:a", "tuned", 1.0), ("2", "derivation", "zoo:a", "pruned", math.nan),
        ("2", "derivation", "zoo:a+sft-en", "tuned", 0.0), ("3", "derivation", "zoo:a", "tuned", 0.0),
        ("4", "derivation", "zoo:b", "tuned", 0.0), ("1", "score", "zoo:a", "none", 0.7),
    ]  # fmt: skip
    making = {("zoo:a+sft-en", "zoo:a"): "sft-en", ("zoo:a+int8", "zoo:a"): "int8", ("models/x", "zoo:a"): "not known"}
    assert derived_pairs(tables(cells, rows), making) == [
        derivation("sft-en", "tuned", True),
        derivation("int8", "pruned", None),
    ]


def test_a_run_that_derived_nothing_has_none() -> None:
    data = RunData(cells=pl.DataFrame({"cell": ["1"], "model": ["a"]}), units=pl.DataFrame(),
                   metrics=pl.DataFrame({"cell": ["1"], "name": ["sigma"], "value": [1.0]}), profile="mine")  # fmt: skip
    assert derived_pairs(data, {}) == []
    assert score_derivations([]) == ([], [])


def test_relatives_that_a_cell_does_not_know_are_counted() -> None:
    cells = {"1": "/m/a", "2": "/m/a-child", "3": "/m/b", "4": "/m/c"}
    rows = [
        ("2", "score", "/m/a", "", 0.7), ("2", "score", "/m/a", "", 0.8), ("3", "score", "/m/a", "", 0.1), ("4", "score", "/m/b", "", 0.1),
    ]  # fmt: skip
    families = {"/m/a": "a", "/m/a-child": "a", "/m/b": "b", "/m/c": None}
    assert not_derived(tables(cells, rows), families) == [
        "pairs of one family without a derivation: 1, a-child · a first; the cell of the one does not know the other's family; "
        "say it in families, as {/m/a: a}"
    ]
    assert not_derived(tables(cells, [*rows, ("2", "derivation", "/m/a", "tuned", 1.0)]), families) == []
    assert not_derived(tables(cells, rows), dict.fromkeys(families)) == []


def test_shares_are_counts() -> None:
    rows = [
        ("sft-en", "tuned", True), ("sft-ja", "tuned", None), ("lora", "tuned", True), ("noise-5", "noise", False),
        ("heads", "heads", None), ("rotate", "heads", True), ("cpt-25+sft-en", "continued", True),
        ("sft-en+merge", "tuned", False), ("fold", "scaled", None), ("heads+neurons", "heads", None),
    ]  # fmt: skip
    pairs = [derivation(*row) for row in rows]
    findings, (table,) = score_derivations(pairs)
    by_what = {str(finding.labels["what"]): finding for finding in findings}
    named = wilson(4, 7)  # lora as tuned, rotate as heads and fold as scaled are wrong; two steps are not asked
    assert by_what["named"].estimate == replace(named, note=by_what["named"].note)
    assert by_what["named"].note == "4 of 7 single steps named rightly; Wilson's interval"
    assert by_what["parent-found"].value == 3 / 5  # the two trained, lora, noise and the chain
    assert by_what["parent-wrong"].value == 1 / 5
    rows = {row[0]: row for row in table.rows}
    assert len(rows) == len(table.rows) == 10
    assert rows["sft-en"] == ("sft-en", "tuned 1", "1", "0", "0")
    assert rows["noise-5"][2:] == ("0", "0", "1")


def test_table_counts_what_one_way_was_called() -> None:
    _, (table,) = score_derivations([derivation("lora", "lora", True)] * 3 + [derivation("lora", "tuned", None)])
    assert table.rows == [("lora", "lora 3, tuned 1", "3", "1", "0")]


@pytest.mark.parametrize(
    ("made_by", "there"), [("heads", {"named"}), ("heads+neurons", set()), ("sft-en+merge", set())]
)
def test_a_share_of_nothing_is_not_there(made_by: str, there: set[str]) -> None:
    findings, tables_ = score_derivations([derivation(made_by, "heads", None)])
    assert {finding.labels["what"] for finding in findings} == there
    assert len(tables_) == 1


def test_every_step_of_the_zoo_has_a_name_or_is_known_to_have_none() -> None:
    steps = {step.split("-")[0] for name in zoo.MEMBERS for step in zoo.transformations(name)}
    assert steps - NAMES.keys() == {"merge"}
    rewriting = {step.split("-")[0] for step in zoo.REWRITING}
    assert set(SYMMETRIC) == {step.split("-")[0] for step in zoo.PRESERVING} | rewriting | {"reversed", "flips"}


def test_the_order_of_two_models_is_a_coin_that_both_sides_see() -> None:
    names = [f"zoo:mini-{number}" for number in range(40)]
    coins = [swapped(a, b) for a in names for b in names if a < b]
    assert all(swapped(a, b) != swapped(b, a) for a in names for b in names if a != b)
    assert 0.4 < sum(coins) / len(coins) < 0.6
