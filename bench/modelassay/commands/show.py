"""What the verbs print: each function turns one thing into a `View`, which is JSON and rich tables at once."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from modelassay.claims.ledger import Entry, enter, ledger_lines, ledger_table
from modelassay.claims.published import PublishedTables
from modelassay.claims.verdicts import ClaimVerdict, assess, number_json
from modelassay.commands.ledger import from_here, published_of
from modelassay.commands.view import View
from modelassay.errors import AssayError, SuiteError
from modelassay.experiments.findings import MEANINGLESS, Findings, Table
from modelassay.machine.place import differ
from modelassay.recording.tables import RunData
from modelassay.runs.analysis import draw, run_findings, try_read
from modelassay.runs.directory import Run, open_run, require_run, runs_under
from modelassay.runs.plan import Planned, Preparation
from modelassay.runs.predicted import Rates
from modelassay.runs.progress import Report, board, in_words
from modelassay.runs.standing import Standing, in_numbers, standing
from modelassay.runs.watch import watch
from modelassay.statistics.estimate import Estimate, Range
from modelassay.storage.store import Store
from modelassay.suite import Published, Suite, load_suite, read_claims, shipped_suites

MAX_CELLS_SHOWN = 40
"""Cells up to which a run's table lists them all; beyond, those that are not done."""

POLL_SECONDS = 1.0
"""Between two looks at a run that is watched."""


def everything(root: Path) -> View:
    """List the shipped suites and the runs under ``root``, those that cannot be read any more too."""
    suites = {name: load_suite(name) for name in shipped_suites()}
    run_rows = [(folder.name, *_listed(folder)) for folder in runs_under(root)]
    return View(
        data={
            "suites": [{"suite": s.name, "question": s.question, "cells": len(s.cells)} for s in suites.values()],
            "runs": [
                {"run": str(root / name), "profile": profile, "status": status} for name, profile, status in run_rows
            ],
        },
        tables=[
            Table(title="suites", columns=("suite", "question"), rows=[(s.name, s.question) for s in suites.values()]),
            Table(
                title=f"runs in {root}",
                columns=("run", "profile", "cells"),
                rows=[(name, profile or "", status) for name, profile, status in run_rows],
            ),
        ],
    )


def _listed(folder: Path) -> tuple[str | None, str]:
    """Return a run's profile and how its cells ended, as far as that can be read."""
    run, why = try_read(partial(open_run, folder))
    if run is None:
        return None, f"unreadable: {why}"
    status, why = try_read(lambda: in_numbers([standing(run.cell_dir(cell)) for cell in run.suite.cells]))
    return run.suite.profile, status or f"unreadable: {why}"


def suite_view(suite: Suite) -> View:
    """Show a resolved suite: its cells, and for each leaf the layer that set it."""
    return View(
        data=suite.to_json(),
        tables=[
            Table(
                title=f"{suite.name} ({suite.profile}): {suite.question}",
                columns=("parameter", "set by"),
                rows=sorted(suite.provenance.items()),
            ),
            Table(title="cells", columns=("id", "cell"), rows=[(cell.id, cell.label) for cell in suite.cells]),
            Table(
                title="claims",
                columns=("claim", "published", "profile", "source"),
                rows=[(c.id, f"{c.published:g}", c.profile, c.source) for c in suite.claims],
            ),
        ],
    )


def rows_view(suite: Suite, count: int) -> View:
    """Show the first training rows of a suite's first cell: the rendered prompt, and each token of the answer with its loss.

    Raises:
        SuiteError: the suite has no cell, or its experiment no rows.
    """
    if not suite.cells:
        raise SuiteError(f"{suite.name}: the profile has no cell whose rows could be shown")
    cell = suite.cells[0]
    rows = suite.experiment.rows(cell.params, count, Store())
    tables = []
    for row in rows:
        lines = [
            [str(token["position"]), str(token["id"]), repr(token["token"]), "loss" if token["loss"] else ""]
            for token in row["tokens"]
        ]
        title = f"{row['row']}: {row['num_tokens']} tokens, prompt {row['prompt']!r}"
        tables.append(Table(title=title, columns=("at", "id", "token", ""), rows=lines))
    trained = [[token["token"] for token in row["tokens"] if token["loss"]] for row in rows]
    return View(
        data={"suite": suite.name, "cell": cell.label, "rows": rows},
        tables=tables,
        lines=[
            f"{row['row']}: loss on {', '.join(map(repr, each)) or 'nothing'}"
            for row, each in zip(rows, trained, strict=True)
        ],
    )


def plan_view(planned: Sequence[Planned], preparation: Preparation, rates: Rates | None = None) -> View:
    """Show what would run, what is reused and why, and what it will cost, as far as earlier runs or ``rates`` tell."""
    waiting = [p for p in planned if p.action != "reuse"]
    seconds = [p.estimate_s for p in waiting if p.estimate_s is not None]
    cost = f"{len(waiting)} of {len(planned)} cells to run"
    if seconds:
        cost += f"; {len(seconds)} of them took {sum(seconds):.0f} s in earlier runs"
    if len(seconds) < len(waiting):
        cost += f"; {len(waiting) - len(seconds)} never ran here, their cost is not known"
        cost += "" if rates is not None else " (--measured RUN predicts it)"
    return View(
        data=[
            {
                "cell": p.cell.id, "label": p.cell.label, "action": p.action, "why": p.why, "estimate_s": p.estimate_s,
                "predicted_s": p.predicted_s,
            }
            for p in planned
        ],
        tables=[
            Table(
                title="",
                columns=("cell", "action", "why", "cost"),
                rows=[(p.cell.label, p.action, p.why, _cost(p)) for p in planned],
            )
        ],
        lines=[cost, *_predicted_lines(waiting, rates), *_preparation_lines(preparation)],
    )  # fmt: skip


def _cost(planned: Planned) -> str:
    if planned.estimate_s is not None:
        return f"{planned.estimate_s:.0f} s"
    return "not known" if planned.predicted_s is None else f"{planned.predicted_s:.0f} s, predicted"


def _predicted_lines(waiting: Sequence[Planned], rates: Rates | None) -> list[str]:
    """Say what all cells that will run cost by ``rates``, on which device, and what is not in it."""
    if rates is None:
        return []
    predicted = [p.predicted_s for p in waiting if p.predicted_s is not None]
    lines = []
    if predicted:
        lines.append(
            f"predicted: {in_words(sum(predicted))} for {len(predicted)} cells one after the other, from {rates.num_units} microbatches "
            f"on {rates.device}; loading models is not in it"
        )
    if len(predicted) < len(waiting):
        lines.append(
            f"not predicted: {len(waiting) - len(predicted)} cells, of which the run measured another model, precision or engine, or not all stages"
        )
    return lines if rates.is_gpu else [*lines, "on a GPU: not measured"]


def _preparation_lines(preparation: Preparation) -> list[str]:
    """Say what must be built first, and what stages will do and keep."""
    lines = []
    if preparation.num_missing:
        lines.append(f"{preparation.num_missing} artifacts are built first, about {in_words(preparation.seconds)} of work on one core; "
                     f"{preparation.num_built} are there")  # fmt: skip
    elif preparation.num_built:
        lines.append(f"all {preparation.num_built} artifacts that the cells need are there")
    if preparation.tokens or preparation.bytes_kept:
        lines.append(f"stages: {preparation.tokens:,} tokens, {preparation.bytes_kept / 2**20:,.0f} MiB kept")
    return lines


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What a run says: its cells, its analysis, and what follows for the claims of its suite."""

    standings: Sequence[Standing]
    """How each cell stands, in the suite's order."""
    findings: Findings | None
    """None where no cell has ended yet, or the analysis failed."""
    failure: AssayError | None
    """Why the analysis failed."""
    entries: Sequence[Entry]
    """A line of the ledger for each claim."""
    caveats: Sequence[str]


def judge(run: Run, data: RunData | None = None) -> Judged:
    """Return what ``run`` says; ``data`` is what its logs say, None: they are read."""
    statuses = run.statuses()
    standings = [standing(run.cell_dir(cell), statuses[cell.id]) for cell in run.suite.cells]
    findings: Findings | None = None
    failure: AssayError | None = None
    try:
        findings = run_findings(run, data)
    except AssayError as error:
        failure = error
    num_missing = sum(not status.is_complete for status in statuses.values())
    why_none = "the analysis failed" if failure else f"not testable yet: {num_missing} cells are missing"
    verdicts = assess(run.suite.claims, None if num_missing else findings, profile=run.suite.profile, why_none=why_none)
    caveats = list(findings.caveats) if findings else []
    if note := differ(about for status in statuses.values() for about in status.places):
        caveats.append(note)
    if run.suite.profile == "smoke":
        caveats.insert(0, MEANINGLESS)
    entries = enter(run.suite.name, verdicts, _published_tables(run.suite), run.folder)
    return Judged(standings=standings, findings=findings, failure=failure, entries=entries, caveats=caveats)


def run_view(run: Run, *, figures: Path | None = None) -> View:
    """Show a run's cells, what its analysis says of those that are complete and, once all are, of the claims.

    Its figures are drawn into the folder ``figures`` if one is given. An analysis that fails is the view's failure: the
    cells are shown all the same.
    """
    judged = judge(run)
    findings, failure, caveats = judged.findings, judged.failure, judged.caveats
    cells = [
        (cell.label, each.word, str(each.num_attempts), each.note)
        for cell, each in zip(run.suite.cells, judged.standings, strict=True)
    ]
    drawn: list[Path] = []
    if findings is not None and figures is not None:
        try:
            drawn = draw(findings, figures)
        except AssayError as error:
            failure = error
    here = [entry for entry in judged.entries if entry.claim.profile == run.suite.profile]
    return View(
        data={
            "run": str(run.folder),
            "suite": run.suite.name,
            "profile": run.suite.profile,
            "cells": [
                {"cell": cell.id, "label": label, "outcome": outcome, "attempts": int(attempts), "reason": reason}
                for cell, (label, outcome, attempts, reason) in zip(run.suite.cells, cells, strict=True)
            ],
            "findings": None if findings is None else _findings_json(findings),
            "claims": [entry.to_json() for entry in judged.entries],
            "caveats": caveats,
            "figures": [str(path) for path in drawn],
        },
        tables=[
            Table(
                title=f"{run.suite.name} ({run.suite.profile}), {in_numbers(judged.standings)}",
                columns=("cell", "outcome", "attempts", "reason"),
                rows=cells if len(cells) <= MAX_CELLS_SHOWN else [cell for cell in cells if cell[1] != "done"],
            ),
            *(findings.tables if findings else ()),
            *([ledger_table(here)] if here else []),
        ],
        lines=[
            *ledger_lines(here),
            *(f"note: {caveat}" for caveat in caveats),
            *_elsewhere([entry.verdict for entry in judged.entries], run),
            *([f"figures: {', '.join(str(path) for path in drawn)}"] if drawn else []),
            f"run directory: {run.folder}",
        ],
        failure=failure,
    )


def watch_run(target: str, root: Path, *, report: Report) -> str:
    """Show the run ``target`` until it is complete and nobody is at it; return how it stands then.

    Raises:
        UsageError: there is no such run, or it was removed meanwhile.
    """
    run = require_run(target, root)
    with board(report) as shown:
        return watch(run, shown, every_s=POLL_SECONDS)


def _published_tables(suite: Suite) -> PublishedTables:
    """Return the data beside the file of a run's suite, or beside the shipped file where that is gone.

    A run says where its suite's file was and may name any file as a table; only what the suite's file itself names is read.
    """
    shipped = shipped_suites().get(suite.name)
    at_hand = suite.source.is_absolute() and suite.source.suffix in (".yaml", ".yml") and suite.source.is_file()
    path = suite.source if at_hand or shipped is None else from_here(shipped)
    named: list[Published] = []
    if published_of(suite.claims) and (at_hand or shipped is not None):
        with suppress(SuiteError):  # no suite any more, so it names nothing
            named = published_of(read_claims(path)[0])
    return PublishedTables(path.parent, suite.experiment, named)


def _elsewhere(verdicts: Sequence[ClaimVerdict], run: Run) -> list[str]:
    """Count the claims that this run's profile cannot test; the ledger lists them."""
    profiles = [verdict.claim.profile for verdict in verdicts if verdict.claim.profile != run.suite.profile]
    return [
        f"claims: {profiles.count(profile)} more are not testable at profile {run.suite.profile}, they need {profile}: "
        "modelassay show --claims"
        for profile in dict.fromkeys(profiles)
    ]


def _findings_json(findings: Findings) -> list[dict[str, Any]]:
    return [
        {"name": f.name, "labels": dict(f.labels), **number_json(f.estimate), **_basis_json(f.estimate), "note": f.note}
        for f in findings.findings
    ]


def _basis_json(number: Estimate | Range) -> dict[str, Any]:
    """Return what an estimate rests on."""
    if isinstance(number, Range):
        return {"n": number.n, "unit": number.unit}
    return {
        "level": number.level,
        "method": number.method,
        "n": number.n,
        "p": number.p,
        "min_p": number.min_p,
        "unit": number.unit,
    }
