"""Across cells: did the text go bad, what did each condition change, what told it beforehand, and was the spectrum worth its price?"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import polars as pl

from modelassay.experiments.findings import Figure, Figures, Finding, Findings, Table
from modelassay.experiments.recursive_training.analyse import contrasts, leads, slices
from modelassay.experiments.recursive_training.analyse import figures as drawn
from modelassay.experiments.recursive_training.analyse.alarms import alarm_findings, lag_findings
from modelassay.experiments.recursive_training.analyse.series import (
    CONTROL,
    SHOWN,
    TREATED,
    Series,
    read_series,
    settings_of,
)
from modelassay.experiments.recursive_training.params import COLLAPSE
from modelassay.recording.tables import RunData
from modelassay.statistics.estimate import Estimate, Range

CAVEATS = (
    "crossings of all measures have one false-alarm rate for a whole trajectory, 1 in as many as there are seeds; a band of standard deviations would favour the "
    "noisier measure",
    "the spectral ratio is lambda_max over the standard deviation of all eigenvalues of the Hessian on fixed human text: other definitions of the bulk give other numbers",
    "a null here is a null for this model, this text and this training, at the power that stands beside it",
)  # fmt: skip


def analyse(tables: RunData) -> Findings:
    """Say what the run found, each setting by itself where more than condition and seed differ, and ``interaction`` between them.

    Findings of a setting (``setting`` among the labels where there are several): see `_analyse`.
    """
    parts = settings_of(tables)
    if len(parts) == 1:
        return _analyse(tables)
    each = {setting: _analyse(part) for setting, part in parts.items()}
    findings = [
        replace(finding, labels={**finding.labels, "setting": setting})
        for setting, part in each.items() for finding in part.findings
    ]  # fmt: skip
    between = contrasts.between_settings({setting: read_series(part) for setting, part in parts.items()})
    columns = ("number", "of", "value", "interval", "p", "kind", "n", "note")
    rows = [_row(finding) for finding in between]
    return Findings(
        findings=[*findings, *between],
        tables=[
            *([Table(title="between settings", columns=columns, rows=rows)] if rows else []),
            *(replace(table, title=f"{table.title}: {setting}") for setting, part in each.items() for table in part.tables),
        ],
        figures=Figures({
            f"{name}-{number}": partial(part.figures.__getitem__, name)
            for number, part in enumerate(each.values(), start=1) for name in part.figures
        }),
        caveats=[
            *(f"{setting}: {sentence}" for setting, part in each.items() for sentence in part.caveats if sentence not in CAVEATS),
            *(f"figures {number}: {setting}" for number, setting in enumerate(each, start=1)), *CAVEATS,
        ],
    )  # fmt: skip


def _analyse(tables: RunData) -> Findings:
    """Say what one setting found.

    Findings: `contrasts.changes`, `contrasts.paired`, `contrasts.among_all`; `leads.lead_findings`, `leads.forecast_findings`, `leads.cost_findings`,
    `leads.normalised`; `alarms.alarm_findings`, `alarms.lag_findings`; ``spectrum_earns_its_cost`` (1 yes, 0 no, undefined where it cannot be told); ``noise`` of the ratio by ``source`` (probes, text) relative to
    it; ``budget`` (1 where all conditions had the same tokens, steps and prompts); ``diverged`` by condition.
    """
    series = read_series(tables)
    if not any(series.seeds.values()):
        return Findings(findings=_diverged(series), caveats=["no trajectory has come to its end"])
    quality = str(tables.cells["quality"][0])
    horizons = tuple(json.loads(tables.cells["horizons"][0]))
    answers = contrasts.went_bad(series, quality)
    enough = answers.get(TREATED) is True and answers.get(CONTROL) is not True
    told = leads.verdict(series, quality, enough)
    findings = [
        *contrasts.changes(series, quality), *contrasts.paired(series), *contrasts.among_all(series), *leads.lead_findings(series, quality),
        *leads.forecast_findings(series, quality, horizons), *alarm_findings(series, quality, horizons), *lag_findings(series, quality), *leads.cost_findings(tables, series), *_noise(series), *_budget(tables), *_diverged(series),
        *_minutes(tables),
    ]  # fmt: skip
    findings += leads.normalised(findings)
    findings.append(_earns(told))
    makers: dict[str, Callable[[], Figure]] = {"trajectories": partial(drawn.trajectory_figure, series)}
    if any(finding.name == "lead" and finding.estimate.low is not None for finding in findings):
        makers["leads"] = partial(drawn.lead_figure, findings)
    if any(finding.name == "forecast" for finding in findings):
        makers["forecasts"] = partial(drawn.forecast_figure, findings)
    if any(finding.name == "lag_correlation" for finding in findings):
        makers["lags"] = partial(slices.lag_figure, findings)
    for name, figure in (("density", slices.density_figure), ("landscape", slices.landscape_figure)):
        if tables.facts(name):
            makers[name] = partial(figure, tables)
    sentences = [
        contrasts.enough(series, quality),
        f"the spectral measure earns its cost: {told.answer} ({told.reason})",
    ]
    return Findings(
        findings=findings, tables=[_means(series), *_tests(findings), *_samples(tables)], figures=Figures(makers),
        caveats=[*sentences, *_reasons(series), *CAVEATS],
    )  # fmt: skip


def _earns(told: leads.Verdict) -> Finding:
    value = {"yes": 1.0, "no": 0.0}.get(told.answer, float("nan"))
    return Finding(
        name="spectrum_earns_its_cost", estimate=Estimate(value=value, exact=True, note=f"{told.answer}: {told.reason}")
    )


def _noise(series: Series) -> list[Finding]:
    """How far the ratio of one checkpoint is uncertain, beside how far seeds and generations move it."""
    findings = []
    ratios = [values for condition in series.conditions if (values := series.of(condition, "ratio")) is not None]
    for source in ("probe_sd", "text_sd"):
        parts = [values for condition in series.conditions if (values := series.of(condition, source)) is not None]
        shares = (
            np.concatenate([(part / ratio).ravel() for part, ratio in zip(parts, ratios, strict=False)])
            if parts
            else np.zeros(0)
        )
        shares = shares[np.isfinite(shares)]
        if shares.size:
            findings.append(Finding(name="noise", labels={"source": source.removesuffix("_sd")}, estimate=Range(
                value=float(np.median(shares)), low=float(shares.min()), high=float(shares.max()), n=int(shares.size),
                note="standard error of the ratio of one checkpoint over the ratio, median over checkpoints")))  # fmt: skip
    between = [values[:, -1].std(ddof=1) / values[:, -1].mean() for values in ratios if len(values) > 1]
    if between:
        findings.append(Finding(name="noise", labels={"source": "seeds"}, estimate=Range(
            value=float(np.median(between)), low=float(min(between)), high=float(max(between)), n=len(between),
            note="standard deviation of the last ratio between seeds over its mean, median over conditions")))  # fmt: skip
    return findings


def _budget(tables: RunData) -> list[Finding]:
    """Whether, seed by seed and generation by generation, all conditions had the same tokens, steps and prompts."""
    done = tables.cells.filter(pl.col("outcome") == "done").select("cell", "condition", "seed")
    names = ("trained_tokens", "trained_steps")
    if "generation" not in tables.metrics.columns:
        return []
    spent = tables.metrics.filter(pl.col("name").is_in(names)).join(done, on="cell")
    unequal = (
        spent
        .group_by("seed", "generation", "name")
        .agg(pl.col("value").n_unique().alias("kinds"))
        .filter(pl.col("kinds") > 1)
    )
    where = {row["cell"]: (row["condition"], row["seed"]) for row in done.to_dicts()}
    prompts: dict[tuple[int, int], set[str]] = {}
    for fact in tables.facts("prompts"):
        if fact["cell"] in where and fact.get("writer") is None:
            prompts.setdefault((where[fact["cell"]][1], fact["generation"]), set()).add(fact["value"])
    others = sum(len(each) > 1 for each in prompts.values())
    note = "tokens, steps, prompts and decoder of all conditions are the same in every generation of every seed"
    if unequal.height or others:
        note = f"{unequal.height} budgets and {others} sets of prompts differ between conditions"
    return [
        Finding(
            name="budget",
            estimate=Estimate(value=float(not unequal.height and not others), exact=True, n=len(prompts), note=note),
        )
    ]


def _diverged(series: Series) -> list[Finding]:
    findings = []
    for condition in series.conditions:
        ended, early = len(series.seeds[condition]), len(series.diverged.get(condition, ()))
        if ended + early:
            findings.append(Finding(name="diverged", labels={"condition": condition}, estimate=Estimate(
                value=early / (ended + early), n=ended + early, exact=True, note="share of trajectories that came to an end before their last generation")))  # fmt: skip
    return findings


def _reasons(series: Series) -> list[str]:
    return [
        f"{condition}: {reason}" for condition, reasons in series.diverged.items() for reason in dict.fromkeys(reasons)
    ]


def _minutes(tables: RunData) -> list[Finding]:
    """Minutes of one Hessian computation and of one generation's training, as they were timed, median."""
    units = tables.units
    if not units.height or "cell" not in units.columns:
        return []
    fresh = units.filter(~pl.col("reused").fill_null(False))
    findings = []
    spectra = fresh.filter(pl.col("stage") == "spectrum")["host_ms"].to_list()
    if spectra:
        findings.append(Finding(name="hessian_minutes", estimate=Range(value=float(np.median(spectra)) / 60_000, low=min(spectra) / 60_000, high=max(spectra) / 60_000,
                                n=len(spectra), unit="min", note="median; of one spectrum, as timed")))  # fmt: skip
    steps = (
        fresh.filter((pl.col("stage") == "step") & (pl.col("generation") > 0))
        if "generation" in fresh.columns
        else fresh.clear()
    )
    sums = [float(part["host_ms"].sum()) for _, part in steps.group_by("cell", "generation")]
    if sums:
        findings.append(Finding(name="training_hours", estimate=Range(value=float(np.median(sums)) / 3.6e6, low=min(sums) / 3.6e6, high=max(sums) / 3.6e6,
                                n=len(sums), unit="h", note="median; the steps of one generation")))  # fmt: skip
    return findings


def _means(series: Series) -> Table:
    """The trajectories in numbers: mean over seeds at the first, the middle and the last generation."""
    last = series.generations
    at = sorted({0, 1, last // 2, last})
    rows = []
    for measure in (
        each
        for each in (
            *COLLAPSE,
            "own_loss",
            "moved",
            "ended",
            "empty",
            "commonest_token",
            "unknown_share",
            "bleu",
            "rouge_l",
            "update_norm",
            "coherence_chance",
            "sigma_bound",
            "activation_rms",
            "activation_kurtosis",
            "activation_largest",
            "activation_anisotropy",
        )
        if each in series.measures
    ):
        for condition in series.conditions:
            values = series.of(condition, measure)
            if values is not None and len(values):
                rows.append([measure, COLLAPSE.get(measure, ""), SHOWN.get(condition, condition), *(f"{values[:, each].mean():.4g}" for each in at), str(len(values))])  # fmt: skip
    columns = ("measure", "collapse", "condition", *(f"generation {each}" for each in at), "seeds")
    return Table(title="trajectories", columns=columns, rows=rows)


_TESTS = (
    ("tests at the last generation", ("difference", "d", "g", "welch", "games_howell")),
    ("leads", ("crossing", "crossed", "lead", "lead_per_100_passes", "cost", "noise", "spectrum_earns_its_cost")),
    ("forecasts", ("forecast", "forecast_alone")),
    ("thresholds chosen on other seeds", ("sensitivity", "false_alarm")),
    ("correlations of changes", ("lag_correlation",)),
    ("conditions", ("change", "budget", "diverged", "hessian_minutes", "training_hours")),
)


def _tests(findings: list[Finding]) -> list[Table]:
    tables = []
    for title, names in _TESTS:
        rows = [_row(finding) for name in names for finding in findings if finding.name == name]
        if rows:
            tables.append(
                Table(title=title, columns=("number", "of", "value", "interval", "p", "kind", "n", "note"), rows=rows)
            )
    return tables


def _row(finding: Finding) -> list[str]:
    estimate = finding.estimate
    ends = "" if estimate.low is None else f"[{estimate.low:.3g}, {estimate.high:.3g}]"
    p = getattr(estimate, "p", None)
    kind = "range" if isinstance(estimate, Range) else estimate.method or ("exact" if estimate.exact else "")
    return [finding.name, ", ".join(f"{key}={value}" for key, value in finding.labels.items()), f"{estimate.value:.3g}", ends,
            "" if p is None else f"{p:.3g}", kind, str(estimate.n or ""), finding.note]  # fmt: skip


def _samples(tables: RunData) -> list[Table]:
    """What the first seed of each condition wrote first, at its first and last generation."""
    where = {row["cell"]: row for row in tables.cells.to_dicts()}
    rows = []
    for fact in tables.facts("sample"):
        cell = where[fact["cell"]]
        first = (
            fact["number"] == 0 and fact.get("writer") is None and fact.get("generation") in {0, cell["generations"]}
        )
        if first and cell["seed"] == min(row["seed"] for row in where.values()):
            rows.append([str(cell["condition"]), str(fact["generation"]), str(fact["value"])])
    return [Table(title="samples", columns=("condition", "generation", "text"), rows=rows)] if rows else []
