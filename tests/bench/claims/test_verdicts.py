"""Verdicts on published numbers."""

import math
from typing import Any

import pytest

from modelassay.claims.verdicts import assess
from modelassay.experiments.findings import Finding, Findings
from modelassay.statistics.estimate import Estimate, Range
from modelassay.suite import Claim, parse_selector


def claim(**changes: Any) -> Claim:
    fields: dict[str, Any] = {
        "id": "c", "source": "made up", "metric": "overlap[step=500, language=en]", "published": 0.5, "tolerance": 0.1,
        "profile": "paper",
    }  # fmt: skip
    return Claim.model_validate({**fields, **changes})


def ours(value: float, low: float | None = None, high: float | None = None) -> Findings:
    return Findings(findings=[
        Finding(name="overlap", labels={"step": 499, "language": "en"}, estimate=Estimate(value=-1.0)),
        Finding(name="overlap", labels={"step": 500, "language": "en"},
                estimate=Estimate(value=value, low=low, high=high, exact=low is None)),
    ])  # fmt: skip


@pytest.mark.parametrize(
    ("relation", "tolerance", "value", "low", "high", "verdict"),
    [
        ("equal", 0.1, 0.55, None, None, "reproduced"),
        ("equal", 0.1, 0.65, None, None, "refuted"),
        ("equal", 0.1, 0.55, 0.41, 0.59, "reproduced"),
        ("equal", 0.1, 0.55, 0.45, 0.65, "inconclusive"),
        ("equal", 0.1, 0.75, 0.61, 0.9, "refuted"),
        ("equal", 0.1, 0.5, 0.0, 1.0, "inconclusive"),
        ("at_least", 0.0, 0.51, None, None, "reproduced"),
        ("at_least", 0.0, 0.49, None, None, "refuted"),
        ("at_least", 0.02, 0.49, None, None, "reproduced"),
        ("at_least", 0.0, 0.6, 0.4, 0.8, "inconclusive"),
        ("at_most", 0.0, 0.2, 0.1, 0.3, "reproduced"),
        ("at_most", 0.0, math.inf, None, None, "refuted"),
    ],
)
def test_interval_decides(relation: str, tolerance: float, value: float, low: float | None, high: float | None, verdict: str) -> None:  # fmt: skip
    (result,) = assess([claim(relation=relation, tolerance=tolerance)], ours(value, low, high), profile="paper")
    assert result.verdict == verdict
    assert result.ours is not None
    assert result.ours.value == value


def test_what_cannot_be_tested_says_why() -> None:
    wrong_profile, no_metric = assess(
        [claim(profile="embedded"), claim(metric="overlap[step=501]")], ours(0.5), profile="paper"
    )
    assert (wrong_profile.verdict, wrong_profile.reason) == (
        "not testable",
        "needs profile embedded, this run is paper",
    )
    assert no_metric.verdict == "not testable"
    assert "overlap[step=501]" in no_metric.reason
    (no_run,) = assess([claim()], None, profile="paper", why_none="cells are missing")
    assert (no_run.verdict, no_run.reason, no_run.ours) == ("not testable", "cells are missing", None)


def test_nan_decides_nothing() -> None:
    (verdict,) = assess([claim()], ours(math.nan), profile="paper")
    assert verdict.verdict == "inconclusive"


@pytest.mark.parametrize("relation", ["equal", "at_least", "at_most"])
@pytest.mark.parametrize(("low", "high"), [(0.49, 0.51), (0.5, 0.5), (0.0, 1.0), (0.9, 1.0)])
def test_a_range_reproduces_and_refutes_nothing(relation: str, low: float, high: float) -> None:
    """All values seen may lie in the claimed region, or outside: the smallest and the largest of them are no interval."""
    spread = Range(value=(low + high) / 2, low=low, high=high, n=12)
    findings = Findings(findings=[Finding(name="overlap", labels={"step": 500, "language": "en"}, estimate=spread)])
    (verdict,) = assess([claim(relation=relation)], findings, profile="paper")
    assert verdict.verdict == "inconclusive"
    assert "the 12 values lie from" in verdict.reason
    assert verdict.to_json()["ours"] == {"value": spread.value, "low": low, "high": high, "kind": "range"}


@pytest.mark.parametrize("relation", ["equal", "at_least", "at_most"])
@pytest.mark.parametrize("value", [0.5, 5.0, -5.0])
def test_a_value_without_an_interval_reproduces_and_refutes_nothing_unless_it_is_exact(relation: str, value: float) -> None:  # fmt: skip
    findings = Findings(findings=[Finding(name="overlap", labels={"step": 500, "language": "en"},
                                          estimate=Estimate(value=value, n=1, note="one pair"))])  # fmt: skip
    (verdict,) = assess([claim(relation=relation)], findings, profile="paper")
    assert verdict.verdict == "inconclusive"
    assert verdict.reason.startswith(f"{value:.4g} without an interval (one pair)")
    (exact,) = assess([claim(relation=relation)], ours(value), profile="paper")
    assert exact.verdict in ("reproduced", "refuted")


@pytest.mark.parametrize("low", [None, 0.1])
def test_a_cost_of_another_machine_is_shown_and_tests_nothing(low: float | None) -> None:
    """Twenty seconds here would have reproduced a published 45 minutes."""
    minutes = ours(0.3, low, None if low is None else 0.4)
    (verdict,) = assess([claim(relation="at_most", published=45, machine="an H100")], minutes, profile="paper")
    assert verdict.verdict == "not testable"
    assert verdict.reason.startswith("published of an H100; ")
    assert verdict.ours is not None
    assert verdict.ours.value == 0.3


def test_selector_reads_names_and_numbers() -> None:
    selector = parse_selector("overlap[step=500, language=en]")
    assert (selector.name, dict(selector.labels)) == ("overlap", {"step": 500, "language": "en"})
