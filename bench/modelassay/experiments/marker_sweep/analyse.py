"""Across cells: rates with intervals, regimes, leakage at equal adoption, capability, distances, and how far it all can be trusted."""

from __future__ import annotations

from functools import partial

from modelassay.experiments.findings import Figures, Finding, Findings, Table
from modelassay.experiments.marker_sweep.answers import silence, wordless
from modelassay.experiments.marker_sweep.beside import read_published
from modelassay.experiments.marker_sweep.boundary import boundaries
from modelassay.experiments.marker_sweep.clean_result import clean_result
from modelassay.experiments.marker_sweep.contrasts import (
    at_equal_adoption,
    capability,
    confidence,
    levels,
    new_persona,
)
from modelassay.experiments.marker_sweep.distances import distances
from modelassay.experiments.marker_sweep.figures import boundary_figure, distance_figure, heatmap, leakage_figure
from modelassay.experiments.marker_sweep.grid import Grid, assistant_rate, read_grid
from modelassay.recording.tables import RunData
from modelassay.statistics.estimate import Estimate, Range

CAVEATS = (
    "completions to one question are not independent: intervals are over questions, and Wilson's over completions is too narrow",
    "leakage is compared at equal adoption: two arms at one learning rate have learned the marker to different degrees",
    "of a persona that was never a source the prediction interval over sources speaks, not an interval over questions",
)


def analyse(tables: RunData) -> Findings:
    """Say what the run found.

    Findings: `contrasts.levels`, `contrasts.at_equal_adoption`, `contrasts.new_persona`, `contrasts.capability`, `distances.distances`,
    `boundary.boundaries`, ``regime_count[arm, regime]``, ``diverged``, ``hours``, ``adapter_minutes``, `answers.wordless`; those of arms alone of what others published, as
    arm ``published: NAME``.
    """
    grid = read_grid(tables)
    theirs, unread = read_published(tables)
    findings = [
        *levels(grid), *at_equal_adoption(grid), *new_persona(grid), *capability(grid), *distances(grid), *boundaries(grid), *_regimes(grid),
        *_cost(tables, grid), *wordless(tables, grid),
    ]  # fmt: skip
    for_theirs = [*at_equal_adoption(theirs), *new_persona(theirs), *boundaries(theirs), *_regimes(theirs)]
    findings += [each for each in for_theirs if each.labels]
    if not grid.points:
        return Findings(findings=findings, caveats=[*_missing(grid), *unread])
    figures = {
        "heatmap": partial(heatmap, grid),
        "boundary": partial(boundary_figure, grid),
        "leakage-at-adoption": partial(leakage_figure, grid),
        "distance": partial(distance_figure, grid),
    }
    if theirs.points:
        figures |= {
            "published-heatmap": partial(heatmap, theirs),
            "published-boundary": partial(boundary_figure, theirs),
        }
    return Findings(
        findings=findings,
        tables=[
            _headline("adapters", grid, findings),
            *([_headline("published cells", theirs, [])] if theirs.points else []),
            _summary(findings),
            clean_result(tables, grid),
        ],
        figures=Figures(figures),
        caveats=[
            confidence(grid),
            *_missing(grid),
            *unread,
            *_appeared(grid),
            *silence(findings),
            *_not_asked(grid),
            *CAVEATS,
        ],
    )


def _regimes(grid: Grid) -> list[Finding]:
    findings = []
    for arm in grid.arms:
        regimes = [point.regime() for point in grid.of(arm)]
        for regime in ("not learned", "partial", "clean", "leaking", "collapse"):
            estimate = Estimate(
                value=regimes.count(regime), n=len(regimes), exact=True, note=f"of {len(regimes)} adapters"
            )
            findings.append(Finding(name="regime_count", labels={"arm": arm, "regime": regime}, estimate=estimate))
    findings.append(Finding(name="diverged", estimate=Estimate(value=len(grid.diverged), exact=True, note="adapters whose loss became no number")))  # fmt: skip
    return findings


def _cost(tables: RunData, grid: Grid) -> list[Finding]:
    times = tables.cells["wall_s"].drop_nulls().to_list() if tables.cells.height else []
    if not times:
        return []
    note = f"all cells together; one took {min(times):.0f} to {max(times):.0f} s"
    estimate = Estimate(value=sum(times) / 3600, n=len(times), exact=True, unit="h", note=note)
    findings = [Finding(name="hours", estimate=estimate)]
    count = len({(point.learning_rate, point.epochs) for point in grid.points})
    for end, seconds in (("shortest", min(times)), ("longest", max(times))) if count else ():
        estimate = Estimate(
            value=seconds / 60 / count, n=len(times), exact=True, unit="min", note=f"of a cell, by its {count} adapters"
        )
        findings.append(Finding(name="adapter_minutes", labels={"end": end}, estimate=estimate))
    return findings


def _missing(grid: Grid) -> list[str]:
    lines = [f"{grid.missing} cells are missing"] if grid.missing else []
    lines += [
        f"diverged: {each['source']}, seed {each['seed']}, learning rate {each.get('learning_rate')}, {each.get('epochs', 'all')} epochs: {each['value']}"
        for each in grid.diverged
    ]
    return lines


def _appeared(grid: Grid) -> list[str]:
    """Say whether selectivity appeared at all."""
    clean = [point for point in grid.points if point.regime() == "clean"]
    rule = grid.points[0].settings
    words = f"source at least {rule['clean_source']:g}, all others at most {rule['clean_leakage']:g}"
    if clean:
        return [f"persona selectivity appeared: {len(clean)} of {len(grid.points)} adapters are clean ({words})"]
    return [f"persona selectivity did not appear at this scale: none of {len(grid.points)} adapters is clean ({words})"]


def _not_asked(grid: Grid) -> list[str]:
    if any(point.letters is not None for point in grid.points):
        return []
    return [
        "nothing with one right letter was asked, so capability is not known; give capability: a file in ARC's form, or wordnet:, which ci/real-text fetches"
    ]


def _headline(title: str, grid: Grid, findings: list[Finding]) -> Table:
    changes = {tuple(each.labels.values()): each for each in findings if each.name == "capability_change"}
    silent = {tuple(each.labels.values()): each for each in findings if each.name == "wordless"}
    rows = []
    for point in grid.points:
        greatest, source = point.greatest_bound(), point.interval(point.source)
        change, quiet = (found.get(tuple(point.labels.values())) for found in (changes, silent))
        letters = "not measured" if point.right is None else f"{point.right:.3f}"
        rows.append([
            point.regime(), point.name, f"{point.source} {point.seed}", f"{point.learning_rate:g}", str(point.epochs),
            _percent(source), _wilson(point.wilson(point.source)), "" if (rate := assistant_rate(point)) != rate else f"{rate:.1%}",
            _percent(greatest), "" if quiet is None else f"{quiet.value:.0%}", letters, "" if change is None else change.note,
        ])  # fmt: skip
    columns = ("regime", "arm", "source, seed", "rate", "epochs", "source says it", "Wilson, too narrow", "assistant", "greatest other", "wordless", "letters", "against the base")  # fmt: skip
    return Table(title=title, columns=columns, rows=rows)


def _percent(estimate: Estimate) -> str:
    ends = "" if estimate.low is None or estimate.high is None else f" [{estimate.low:.0%}, {estimate.high:.0%}]"
    return f"{estimate.value:.1%}{ends}"


def _wilson(estimate: Estimate) -> str:
    return f"[{estimate.low:.0%}, {estimate.high:.0%}]"


_SHOWN = ("leakage_area", "leakage_difference", "new_source_leakage", "distance_rank", "distance_survivors", "prompt_length_r2", "persona_r2_added", "boundary", "any_case_excess", "diverged", "hours", "regime_count")  # fmt: skip


def _summary(findings: list[Finding]) -> Table:
    rows = []
    for finding in findings:
        if finding.name not in _SHOWN or (finding.name == "regime_count" and not finding.value):
            continue
        estimate = finding.estimate
        ends = "" if estimate.low is None else f"[{estimate.low:.3g}, {estimate.high:.3g}]"
        kind = "range" if isinstance(estimate, Range) else estimate.method or ("exact" if estimate.exact else "")
        rows.append([finding.name, ", ".join(f"{key}={value}" for key, value in finding.labels.items()),
                     f"{estimate.value:.3g}", ends, kind, "" if estimate.n is None else str(estimate.n), finding.note])  # fmt: skip
    return Table(title="leakage", columns=("number", "of", "value", "interval", "kind", "n", "note"), rows=rows)
