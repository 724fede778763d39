"""Across cells: what scores are worth by retraining, which rows they find, what removing those changes, and what the factors look like."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import polars as pl

from modelassay.experiments.findings import Figure, Figures, Finding, Findings, Table
from modelassay.experiments.influence.analyse import figures as drawn
from modelassay.experiments.influence.analyse.fidelity import fidelity_findings, judged
from modelassay.experiments.influence.analyse.planted import planted_findings, removal_findings
from modelassay.experiments.influence.analyse.tasks import task_findings, task_table
from modelassay.experiments.influence.params import PLATEAU
from modelassay.recording.tables import RunData
from modelassay.statistics.estimate import Estimate, Range

CAVEATS = (
    "a score is the rise of a query's loss that is expected without a row, in nats; the scores of identity, gradient cosine, words and "
    "representations have other units, and only their order counts",
    "an LDS with halves of the rows is no LDS of 1 % leave-outs: numbers of other protocols are not comparable",
    "rows of all queries are removed together: a query's loss also feels what was removed for others",
    "decoys are made to mislead whoever counts words; facts-plain is the arm without them",
)


def analyse(tables: RunData) -> Findings:
    """Say what the run found.

    Findings: `fidelity.fidelity_findings`, `planted.planted_findings`, `planted.removal_findings`, `tasks.task_findings`; of the fine-tuning ``plateau``, ``gradient_fall`` and
    ``right[model]`` by part; of the factors ``negative_entries``, ``entries_for_90`` and ``small_entries`` (shares of lambda's entries), of the
    approximations ``block_cosine``, ``rank_fidelity``, ``rank_spearman``, ``solver_residual``, ``sgld_loss_rise``; ``minutes`` of fine-tuning.
    """
    cells = judged(tables)
    fidelity, planted, removal = fidelity_findings(cells), planted_findings(tables), removal_findings(tables)
    tasks = task_findings(tables)
    findings = [*fidelity, *planted, *removal, *tasks, *_training(tables), *_factors(tables), *_approximations(tables)]
    seen = tables.facts("lambda")
    makers: dict[str, Callable[[], Figure]] = {}
    if seen:
        makers |= {
            "lambda": partial(drawn.lambda_figure, seen),
            "eigenvalues": partial(drawn.eigenvalue_figure, seen),
            "shares": partial(drawn.share_figure, seen),
        }
    if any(each.curve for each in cells):
        makers["damping"] = partial(drawn.damping_figure, cells)
    if fidelity:
        makers["lds"] = partial(
            drawn.bars, fidelity, "lds", title="LDS", caption="intervals over subsets and queries, crossed"
        )
    if planted:
        chosen = [finding for finding in planted if finding.labels.get("k") == "1 %"]
        makers["recall"] = partial(
            drawn.bars,
            chosen,
            "recall",
            title="planted rows among the first 1 %",
            caption="intervals over queries",
            facet="part",
        )
    if removal:
        makers["removal"] = partial(
            drawn.bars,
            removal,
            "removal_flips",
            title="answers that change",
            caption="retrained without each method's best rows",
            facet="part",
        )
    shown = [_estimates(findings), *task_table(tasks), *_answers(tables)] if findings else []
    return Findings(findings=findings, tables=shown, figures=Figures(makers), caveats=[*_unconverged(tables), *CAVEATS])


def _metric(tables: RunData, name: str) -> pl.DataFrame:
    parts = tables.cells.select("cell", "part") if "part" in tables.cells.columns else tables.cells.select("cell")
    return tables.metrics.filter(pl.col("name") == name).join(parts, on="cell", how="left")


def _training(tables: RunData) -> list[Finding]:
    findings = []
    for name, note in (
        ("plateau", "share of the whole fall of the loss that came with the last quarter of the fine-tuning"),
    ):
        for row in _metric(tables, name).to_dicts():
            findings.append(
                Finding(
                    name=name,
                    labels={"part": row["part"]},
                    estimate=Estimate(value=row["value"], exact=True, note=note),
                )
            )
    first, last = (_metric(tables, name) for name in ("first_gradient", "final_gradient"))
    for row in last.to_dicts():
        before = first.filter(pl.col("cell") == row["cell"])["value"].to_list()
        if before and before[0] > 0:
            note = "norm of the whole gradient after the fine-tuning over that before it"
            findings.append(
                Finding(
                    name="gradient_fall",
                    labels={"part": row["part"]},
                    estimate=Estimate(value=row["value"] / before[0], exact=True, note=note),
                )
            )
    right = _metric(tables, "right")
    if right.height:
        for row in (
            right.group_by("part", "model", maintain_order=True).agg(pl.col("value").mean(), pl.len()).to_dicts()
        ):
            estimate = Estimate(
                value=row["value"],
                n=row["len"],
                exact=True,
                note="share of queries that are answered right, to the letter",
            )
            findings.append(
                Finding(name="right", labels={"part": row["part"], "model": row["model"]}, estimate=estimate)
            )
    if tables.units.height:
        steps = tables.units.filter((pl.col("stage") == "step") & ~pl.col("reused").fill_null(False))
        for row in (
            steps
            .join(tables.cells.select("cell", "part"), on="cell")
            .group_by("part")
            .agg(pl.col("host_ms").sum())
            .to_dicts()
        ):
            findings.append(
                Finding(
                    name="minutes",
                    labels={"part": row["part"]},
                    estimate=Estimate(
                        value=row["host_ms"] / 60_000, exact=True, unit="min", note="of the steps of the fine-tuning"
                    ),
                )
            )
    return findings


def _factors(tables: RunData) -> list[Finding]:
    seen = [fact["value"] for fact in tables.facts("lambda")]
    if not seen:
        return []
    negative = sum(value["min"] < 0 for value in seen)
    of_90 = [value["num_for_90"] / value["size"] for value in seen]
    small = [1 - value["num_for_99"] / value["size"] for value in seen]
    return [
        Finding(name="negative_entries", estimate=Estimate(value=negative, exact=True, note=f"of {len(seen)} layers, how many have an entry of lambda below 0")),
        Finding(name="entries_for_90", estimate=Range(value=float(np.median(of_90)), low=min(of_90), high=max(of_90), n=len(seen),
                note="share of lambda's entries that makes up 90 % of its sum, median over layers")),
        Finding(name="small_entries", estimate=Estimate(value=float(np.median(small)), n=len(seen), exact=True,
                note="share of lambda's entries that together make up the last 1 % of its sum, median over layers")),
    ]  # fmt: skip


def _approximations(tables: RunData) -> list[Finding]:
    notes = {
        "block_cosine": "between a query's gradient under EKFAC and under conjugate gradients on the exact Gauss-Newton matrix, by layer and damping",
        "rank_fidelity": "between a query's gradient and its approximation of the rank, by layer; 1 where nothing is compressed",
        "rank_spearman": "between the scores of whole and of compressed query gradients",
        "solver_residual": "of conjugate gradients, relative, by damping",
        "sgld_loss_rise": "mean loss per token of weights drawn by Langevin dynamics, less that of the trained ones, in nats",
    }  # fmt: skip
    findings = []
    for name, note in notes.items():
        values = [
            value for value in _metric(tables, name)["value"].to_list() if value is not None and np.isfinite(value)
        ]
        if values:
            findings.append(
                Finding(
                    name=name,
                    estimate=Range(
                        value=float(np.median(values)),
                        low=min(values),
                        high=max(values),
                        n=len(values),
                        note=f"median; {note}",
                    ),
                )
            )
    return findings


def _unconverged(tables: RunData) -> list[str]:
    return [
        f"part {row['part']}: {row['value']:.1%} of the fall of the loss came with the last quarter of the fine-tuning, more than {PLATEAU:.0%}: it is no minimum, "
        "and influence functions assume one"
        for row in _metric(tables, "plateau").to_dicts() if row["value"] > PLATEAU
    ]  # fmt: skip


def _estimates(findings: list[Finding]) -> Table:
    rows = []
    for finding in findings:
        estimate = finding.estimate
        ends = "" if estimate.low is None else f"[{estimate.low:.3g}, {estimate.high:.3g}]"
        kind = "range" if isinstance(estimate, Range) else estimate.method or ("exact" if estimate.exact else "")
        rows.append([finding.name, ", ".join(f"{key}={value}" for key, value in finding.labels.items()), f"{estimate.value:.3g}", ends, kind,
                     str(estimate.n or ""), finding.note])  # fmt: skip
    return Table(title="influence", columns=("number", "of", "value", "interval", "kind", "n", "note"), rows=rows)


def _answers(tables: RunData) -> list[Table]:
    """Base beside fine-tuned answers, with the first rows of EKFAC and of BM25 beside each."""
    tops = {(fact["cell"], fact["query"], fact["method"]): fact["value"] for fact in tables.facts("top")}
    rows = []
    for fact in tables.facts("answer")[:24]:
        value = fact["value"]
        best = [
            "; ".join(
                f"[{row['kind']}] {row['text']}" for row in tops.get((fact["cell"], fact["query"], method), [])[:2]
            )
            for method in ("ekfac", "bm25")
        ]
        rows.append([value["prompt"], value["right"], value["base"], value["fine-tuned"], *best])
    columns = ("query", "right", "base says", "fine-tuned says", "first rows by EKFAC", "first rows by BM25")
    return [Table(title="answers", columns=columns, rows=rows)] if rows else []
