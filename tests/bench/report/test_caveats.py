"""Each caveat stands where the data give reason for it, and not where they do not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import polars as pl
import pytest

from modelassay.claims.verdicts import ClaimVerdict
from modelassay.experiments.findings import Finding, Findings
from modelassay.recording.tables import RunData
from modelassay.report.caveats import claim_caveats, data_caveats, distinct, environment_caveats, findings_caveats
from modelassay.report.run import MAX_HEADLINES, headlines
from modelassay.statistics.estimate import Estimate, Range

SOUND = {"outcome": ["done"] * 4, "attempts": [1] * 4, "seed": [0, 1, 2, 3]}


def data(units: dict[str, list[bool]] | None = None, **columns: list[Any]) -> RunData:
    cells = pl.DataFrame({"cell": [str(n) for n in range(4)]} | SOUND | columns)
    return RunData(cells=cells, units=pl.DataFrame(units or {}), metrics=pl.DataFrame(), profile="embedded")


def test_sound_data_have_no_caveat() -> None:
    assert data_caveats(data()) == []
    assert data_caveats(data({"reused": [False], "warmup": [False]})) == []
    assert data_caveats(data(outcome=["done", "done", "done", None])) == []  # of a cell at work `show` tells


@pytest.mark.parametrize(("columns", "says"), [
    ({"outcome": ["done", "diverged", "diverged", "done"]}, "2 of 4 cells diverged"),
    ({"outcome": ["done", "failed", "done", "done"]}, "1 of 4 cells failed"),
    ({"outcome": ["failed"] * 4}, "4 of 4 cells failed"),
    ({"attempts": [1, 3, 2, 1]}, "2 cells took more than one attempt"),
    ({"seed": [5] * 4}, "1 seed: what differs from seed to seed"),
    ({"seed": [0, 1, 2, 2]}, "3 seeds: what differs from seed to seed"),
])  # fmt: skip
def test_what_cells_give_reason_for(columns: dict[str, list[Any]], says: str) -> None:
    (line,) = data_caveats(data(**columns))
    assert line.startswith(says)


def test_units_that_do_not_count_are_told_with_their_number() -> None:
    reused, warm = data_caveats(data({"reused": [True, False, False], "warmup": [False, True, True]}))
    assert reused.startswith("1 of 3 times are reused")
    assert warm.startswith("2 units were warm-up")


def test_findings_without_an_interval_are_counted_and_exact_ones_and_ranges_are_not() -> None:
    def findings(*numbers: Estimate | Range) -> Findings:
        return Findings(findings=[Finding(name=str(n), estimate=number) for n, number in enumerate(numbers)])

    interval = Estimate(value=1.0, low=0.5, high=1.5, level=0.95, method="bootstrap")
    assert findings_caveats(findings()) == []
    assert findings_caveats(findings(interval, Range(value=1.0, low=0.0, high=2.0, n=3))) == []
    assert findings_caveats(findings(Estimate(value=1.0, exact=True))) == []
    (line,) = findings_caveats(findings(interval, Estimate(value=1.0)))
    assert line.startswith("1 of 2 findings have no interval")


def test_claims_that_were_not_tested_are_counted_by_reason() -> None:
    def verdict(word: str, reason: str) -> ClaimVerdict:
        return cast(ClaimVerdict, SimpleNamespace(verdict=word, reason=reason))

    needs = "needs profile paper"
    assert claim_caveats([verdict("reproduced", ""), verdict("refuted", "")]) == []
    assert claim_caveats([verdict("not testable", needs)]) == [f"1 claim not tested: {needs}"]
    lines = claim_caveats([
        verdict("not testable", needs),
        verdict("not testable", needs),
        verdict("not testable", "x"),
    ])
    assert lines == [f"2 claims not tested: {needs}", "1 claim not tested: x"]


PINNED = {"container": {"image_digest": "sha256:1"}, "git": {"commit": "abc", "dirty": False}}


@pytest.mark.parametrize(("about", "says"), [
    (PINNED, []),
    (PINNED | {"git": None}, []),
    (PINNED | {"git": {"commit": "0123456789abcdef", "dirty": True, "changed_files": 1}},
     ["the code had 1 changed file beside commit 0123456789ab"]),
    (PINNED | {"git": {"commit": "ab", "dirty": True, "changed_files": 3}}, ["the code had 3 changed files beside commit ab"]),
    (PINNED | {"container": None}, ["run outside a pinned image: libraries are recorded, not fixed"]),
    (PINNED | {"container": {"image_digest": "sha256:1", "unlocked": True}},
     ["the image is not one that docker/images.lock.json pins"]),
])  # fmt: skip
def test_what_the_environment_gives_reason_for(about: dict[str, Any], says: list[str]) -> None:
    assert environment_caveats(about) == says


def test_a_caveat_stands_once() -> None:
    assert distinct(["b", "a", "b"]) == ["b", "a"]


def test_the_first_findings_stand_in_the_answer_with_their_intervals() -> None:
    number = Estimate(value=0.123456, low=0.1, high=0.2, level=0.95, method="bootstrap")
    several = [Finding(name=f"f{n}", labels={"layer": n}, estimate=number) for n in range(MAX_HEADLINES + 2)]
    lines = headlines(Findings(findings=several))
    assert lines[0] == "f0 (layer 0): 0.1235 [0.1, 0.2]"
    assert lines[-1] == "2 more under Results"
    assert len(lines) == MAX_HEADLINES + 1
    assert headlines(Findings(findings=[Finding(name="bare", estimate=Estimate(value=2.0))])) == ["bare: 2"]
    undefined = Finding(name="gap", estimate=Estimate(value=float("nan"), note="one row"))
    timed = Finding(name="time", estimate=Estimate(value=2.0, unit="ms"))
    assert headlines(Findings(findings=[undefined, timed])) == ["gap: not defined", "time: 2 ms"]
