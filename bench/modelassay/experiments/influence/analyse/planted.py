"""Planted facts: how well each method finds their rows, and what removing each method's own best rows does against the noise of retraining."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from modelassay.experiments.findings import Finding, Label
from modelassay.recording.tables import RunData
from modelassay.statistics.estimate import Estimate, undefined
from modelassay.statistics.intervals import bootstrap, student_mean

MIN_QUERIES = 3


def _parts(tables: RunData) -> dict[str, str]:
    cells = tables.cells
    return dict(zip(cells["cell"].to_list(), cells["part"].to_list(), strict=True)) if "part" in cells.columns else {}


def _mean(values: Sequence[float], *, bounded: bool = True) -> Estimate:
    """The mean with a percentile interval over queries, which are what was sampled."""
    if len(values) < MIN_QUERIES:
        return Estimate(
            value=float(np.mean(values)), n=len(values), note=f"no interval: fewer than {MIN_QUERIES} queries"
        )
    estimate = bootstrap([list(values)], np.mean, method="percentile", draws=1999)
    return Estimate(
        value=estimate.value,
        low=estimate.low,
        high=estimate.high,
        level=estimate.level,
        n=len(values),
        method="percentile over queries",
    )


def by_query(tables: RunData, name: str, **labels: Any) -> dict[tuple[str, str], dict[tuple[str, int], float]]:
    """Return a metric as {(part, method): {(cell, query): value}}."""
    parts = _parts(tables)
    frame = tables.metrics.filter(pl.col("name") == name)
    for label, value in labels.items():
        frame = frame.filter(pl.col(label) == value)
    result: dict[tuple[str, str], dict[tuple[str, int], float]] = {}
    for row in frame.to_dicts():
        result.setdefault((parts[row["cell"]], row["method"]), {})[row["cell"], row["query"]] = row["value"]
    return result


def planted_findings(tables: RunData) -> list[Finding]:
    """Return ``recall[part, method, k]``, ``mrr[part, method]``, and their paired differences from BM25, ``recall_minus_bm25`` and ``mrr_minus_bm25``."""
    findings: list[Finding] = []
    measures = [
        ("recall", "recall", {"k": "planted"}),
        ("recall", "recall", {"k": "1 %"}),
        ("mrr", "reciprocal_rank", {}),
    ]
    for name, metric, labels in measures:
        if metric not in tables.metrics["name"].to_list():
            continue
        every = by_query(tables, metric, **labels)
        for (part, method), values in every.items():
            shown: dict[str, Label] = {"part": part, "method": method, **labels}
            findings.append(Finding(name=name, labels=shown, estimate=_mean(list(values.values()))))
            words = every.get((part, "bm25"))
            if words is not None and method != "bm25":
                differences = [value - words[key] for key, value in values.items()]
                findings.append(Finding(name=f"{name}_minus_bm25", labels=shown, estimate=_mean(differences)))
    return findings


def removal_findings(tables: RunData) -> list[Finding]:
    """Return, of each method whose best rows were removed, ``removal_loss``: the rise of the queries' mean loss over retraining with all rows, paired by
    seed (the order of the rows), and ``removal_flips``: the share of answers that become others, with that of ``nothing`` as the noise floor;
    ``flips_minus_nothing`` paired by seed, ``flips_minus_bm25`` likewise.
    """  # noqa: D205
    if "removed_loss" not in tables.metrics["name"].to_list():
        return []
    parts = _parts(tables)
    findings: list[Finding] = []
    loss, flips = (_by_seed(tables, parts, name) for name in ("removed_loss", "flipped"))
    for (part, method), values in flips.items():
        labels: dict[str, Label] = {"part": part, "method": method}
        findings.append(
            Finding(name="removal_flips", labels=labels, estimate=_over_seeds(list(values.values()), bounds=(0, 1)))
        )
        for name, source, other in (
            ("removal_loss", loss, "nothing"),
            ("flips_minus_nothing", flips, "nothing"),
            ("flips_minus_bm25", flips, "bm25"),
        ):
            base = source.get((part, other))
            if base is not None and method != other:
                differences = [value - base[key] for key, value in source[part, method].items() if key in base]
                findings.append(Finding(name=name, labels=labels, estimate=_over_seeds(differences)))
    return findings


def _by_seed(tables: RunData, parts: dict[str, str], name: str) -> dict[tuple[str, str], dict[tuple[str, int], float]]:
    frame = (
        tables.metrics
        .filter(pl.col("name") == name)
        .group_by("cell", "method", "seed")
        .agg(pl.col("value").mean())
        .sort("method", "cell", "seed")
    )
    result: dict[tuple[str, str], dict[tuple[str, int], float]] = {}
    for row in frame.to_dicts():
        result.setdefault((parts[row["cell"]], row["method"]), {})[row["cell"], row["seed"]] = row["value"]
    return result


def _over_seeds(values: Sequence[float], bounds: tuple[float, float] = (-np.inf, np.inf)) -> Estimate:
    return student_mean(values, bounds=bounds) if values else undefined("no retraining of both")
