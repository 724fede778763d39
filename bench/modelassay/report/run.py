"""The page of a run."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

from modelassay.claims.ledger import Entry, ledger_lines, ledger_table
from modelassay.experiments.findings import Figure, Findings, Table
from modelassay.recording.tables import RunData, flatten
from modelassay.report.caveats import claim_caveats, data_caveats, distinct, environment_caveats, findings_caveats
from modelassay.report.page import Page, Section
from modelassay.report.timing import timing_figure, timing_table
from modelassay.runs.directory import Run
from modelassay.runs.standing import Standing, in_numbers

MAX_HEADLINES: Final = 6
"""Findings that stand in the answer where no claim does."""


def run_page(
    run: Run,
    data: RunData,
    *,
    findings: Findings | None,
    entries: Sequence[Entry],
    standings: Sequence[Standing],
    caveats: Sequence[str],
    failure: str | None,
) -> Page:
    """Return what a report says of ``run``.

    Args:
        run: the run.
        data: what its logs say.
        findings: what its analysis says; None where it says nothing yet.
        entries: a line of the ledger for each claim of its suite.
        standings: how each cell stands, in the suite's order.
        caveats: what `show` notes.
        failure: why the analysis failed.
    """
    suite = run.suite
    here = [entry for entry in entries if entry.claim.profile == suite.profile]
    verdicts = Counter[str](entry.verdict.verdict for entry in entries)
    answers = [
        f"{entry.claim.statement or entry.claim.id}: {entry.verdict.verdict} ({entry.verdict.reason})" for entry in here
    ]
    if not here:
        answers += [f"no claim can be tested at profile {suite.profile}", *(headlines(findings) if findings else ())]
    if failure is not None:
        answers.insert(0, f"the analysis failed: {failure}")
    names = {cell.id: cell.label or cell.id for cell in suite.cells}
    figures: Mapping[str, Figure] = findings.figures if findings else {}
    all_caveats = distinct([
        *caveats, *data_caveats(data), *(findings_caveats(findings) if findings else ()),
        *claim_caveats(entry.verdict for entry in entries), *environment_caveats(run.environment),
    ])  # fmt: skip
    sections = [
        Section(title="Claims", tables=[ledger_table(entries)], details=ledger_lines(entries), narrow=True),
        Section(
            title="Results", tables=list(findings.tables) if findings else [], lines=[] if findings else ["none yet"]
        ),
        Section(title="Figures", figures=figures),
        _timing(data, names),
        Section(title="Cells", tables=[_cells(run, standings)], narrow=True),
        Section(title="Environment", tables=[_environment(run)]),
    ]
    return Page(
        title=f"{suite.name}, profile {suite.profile}",
        subtitle=f"run {run.folder.resolve().name}: {in_numbers(standings)}",
        question=suite.question,
        answers=answers,
        verdicts=verdicts,
        caveats=all_caveats,
        sections=[section for section in sections if _has_content(section)],
    )


def headlines(findings: Findings) -> list[str]:
    """Return the first findings in a sentence each, with their intervals, and how many more there are.

    Args:
        findings: what the analysis says, the main thing first.
    """
    lines = []
    for finding in findings.findings[:MAX_HEADLINES]:
        number = finding.estimate
        labels = ", ".join(f"{name} {value}" for name, value in finding.labels.items())
        interval = "" if number.low is None or number.high is None else f" [{number.low:.4g}, {number.high:.4g}]"
        shown = f"{number.value:.4g}{interval} {number.unit}".rstrip() if math.isfinite(number.value) else "not defined"
        lines.append(f"{finding.name}{f' ({labels})' if labels else ''}: {shown}")
    more = len(findings.findings) - len(lines)
    return [*lines, f"{more} more under Results"] if more > 0 else lines


def _has_content(section: Section) -> bool:
    return bool(section.lines or section.figures or any(table.rows for table in section.tables))


def _timing(data: RunData, names: Mapping[str, str]) -> Section:
    table = timing_table(data.units, names)
    if table is None:
        return Section(title="Times")
    figure = timing_figure(data.units, names)
    return Section(title="Times", tables=[table], figures={} if figure is None else {"time_of_each_unit": figure})


def _cells(run: Run, standings: Sequence[Standing]) -> Table:
    rows = [
        (cell.label or cell.id, each.word, str(each.num_attempts), each.note)
        for cell, each in zip(run.suite.cells, standings, strict=True)
    ]
    return Table(title="", columns=("cell", "outcome", "attempts", "reason"), rows=rows)


def _environment(run: Run) -> Table:
    about: dict[str, Any] = flatten({
        **run.environment,
        "command": " ".join(map(str, run.environment.get("command", ()))),
    })
    rows = [(name, str(value)) for name, value in about.items() if value not in (None, "", "[]")]
    rows.append(("sources that decide a metric", f"{len(run.code)} files"))
    rows += [(f"input {path}", digest) for path, digest in run.files.items()]
    return Table(title="", columns=("what", "recorded"), rows=rows)
