"""What the verbs print: each function turns one thing into a `View`, which is JSON and rich tables at once."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelassay.claims import ClaimVerdict, Findings, Table, assess
from modelassay.record import read_cell
from modelassay.runner import Planned, Run, counts, open_run, runs_under
from modelassay.suite import Suite, load_suite, shipped_suites

if TYPE_CHECKING:
    from rich.console import Console

    from modelassay.doctor import Check
    from modelassay.images import Image

_RELATIONS = {"equal": "=", "at_least": "≥", "at_most": "≤"}
_MEANINGLESS = "profile smoke only walks the path: its numbers mean nothing"


@dataclass(frozen=True, kw_only=True)
class View:
    """One answer: ``data`` for --json, ``tables`` and ``lines`` for people."""

    data: Any
    tables: Sequence[Table] = ()
    lines: Sequence[str] = ()


def emit(view: View, *, as_json: bool) -> None:
    """Print ``view`` on stdout."""
    if as_json:
        print(json.dumps(view.data, indent=1, ensure_ascii=False, allow_nan=False))
        return
    console = _console()
    for table in view.tables:
        _print_table(console, table)
    for line in view.lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _console() -> Console:
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=190)


def _print_table(console: Console, table: Table) -> None:
    from rich import box
    from rich.table import Table as RichTable

    drawn = RichTable(title=table.title or None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in table.columns:
        drawn.add_column(column, overflow="fold")
    for row in table.rows:
        drawn.add_row(*[_escape(cell) for cell in row])
    console.print(drawn)


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def everything(root: Path) -> View:
    """List the shipped suites and the runs under ``root``."""
    suites = {name: load_suite(name) for name in shipped_suites()}
    runs = [open_run(folder) for folder in runs_under(root)]
    run_rows = [(run.folder.name, run.suite.profile, _status(run)) for run in runs]
    return View(
        data={
            "suites": [{"suite": s.name, "question": s.question, "cells": len(s.cells)} for s in suites.values()],
            "runs": [{"run": str(run.folder), "profile": run.suite.profile, "status": _status(run)} for run in runs],
        },
        tables=[
            Table(title="suites", columns=("suite", "question"), rows=[(s.name, s.question) for s in suites.values()]),
            Table(title=f"runs in {root}", columns=("run", "profile", "cells"), rows=run_rows),
        ],
    )


def _status(run: Run) -> str:
    return counts([read_cell(run.cell_dir(cell)) for cell in run.suite.cells])


def suite_view(suite: Suite) -> View:
    """Show a resolved suite: its cells, and for each leaf the layer that set it."""
    return View(
        data=suite.to_json(),
        tables=[
            Table(title=f"{suite.name} ({suite.profile}): {suite.question}", columns=("parameter", "set by"),
                  rows=sorted(suite.provenance.items())),
            Table(title="cells", columns=("id", "cell"), rows=[(cell.id, cell.label) for cell in suite.cells]),
            Table(title="claims", columns=("claim", "published", "profile", "source"),
                  rows=[(c.id, f"{c.published:g}", c.profile, c.source) for c in suite.claims]),
        ],
    )  # fmt: skip


def plan_view(planned: Sequence[Planned]) -> View:
    """Show what would run, what is reused and why, and what it will cost."""
    known = [p.estimate_s for p in planned if p.action != "reuse" and p.estimate_s is not None]
    num_open = sum(p.action != "reuse" for p in planned)
    cost = f"{num_open} of {len(planned)} cells to run"
    if known:
        cost += f"; {len(known)} of them took {sum(known):.0f} s in earlier runs"
    if len(known) < num_open:
        cost += f"; {num_open - len(known)} never ran here, their cost is not known"
    return View(
        data=[{"cell": p.cell.id, "label": p.cell.label, "action": p.action, "why": p.why, "estimate_s": p.estimate_s}
              for p in planned],
        tables=[Table(title="", columns=("cell", "action", "why", "cost"),
                      rows=[(p.cell.label, p.action, p.why, "not known" if p.estimate_s is None else f"{p.estimate_s:.0f} s")
                            for p in planned])],
        lines=[cost],
    )  # fmt: skip


def run_view(run: Run) -> View:
    """Show a run's cells and, once all are complete, what its analysis found and says of the claims."""
    logs = {cell.id: read_cell(run.cell_dir(cell)) for cell in run.suite.cells}
    cells = [(cell.label, logs[cell.id].outcome or ("cut off" if logs[cell.id].num_attempts else "not run"),
              str(logs[cell.id].num_attempts), str((logs[cell.id].status or {}).get("reason", "")))
             for cell in run.suite.cells]  # fmt: skip
    findings = run_findings(run)
    verdicts = assess(
        run.suite.claims, findings, profile=run.suite.profile, why_none="cells of the run are not complete"
    )
    here = [verdict for verdict in verdicts if verdict.claim.profile == run.suite.profile]
    caveats = list(findings.caveats) if findings else []
    if run.suite.profile == "smoke":
        caveats.insert(0, _MEANINGLESS)
    return View(
        data={
            "run": str(run.folder), "suite": run.suite.name, "profile": run.suite.profile,
            "cells": [{"cell": cell.id, "label": label, "outcome": outcome, "attempts": int(attempts), "reason": reason}
                      for cell, (label, outcome, attempts, reason) in zip(run.suite.cells, cells, strict=True)],
            "findings": None if findings is None else _findings_json(findings),
            "claims": [verdict.to_json() for verdict in verdicts], "caveats": caveats,
        },
        tables=[
            Table(title=f"{run.suite.name} ({run.suite.profile})", columns=("cell", "outcome", "attempts", "reason"), rows=cells),
            *(findings.tables if findings else ()),
            *([claims_table(here, run.suite.name)] if here else []),
        ],
        lines=[*(f"note: {caveat}" for caveat in caveats), *_elsewhere(verdicts, run), f"run directory: {run.folder}"],
    )  # fmt: skip


def _elsewhere(verdicts: Sequence[ClaimVerdict], run: Run) -> list[str]:
    """Count the claims that this run's profile cannot test; the ledger lists them."""
    profiles = [verdict.claim.profile for verdict in verdicts if verdict.claim.profile != run.suite.profile]
    return [
        f"claims: {profiles.count(profile)} more are not testable at profile {run.suite.profile}, they need {profile}: "
        "modelassay show --claims"
        for profile in dict.fromkeys(profiles)
    ]


def run_findings(run: Run) -> Findings | None:
    """Return the analysis of a run, None while cells are missing: an analysis sees all of the matrix or nothing."""
    tables = run.tables()
    if not set(tables.cells["outcome"]) <= {"done", "diverged"}:
        return None
    found = run.suite.experiment.analyse()(tables)
    if not isinstance(found, Findings):
        raise TypeError(f"{run.suite.experiment.package}.analyse returned {type(found).__name__}, not Findings")
    return found


def _findings_json(findings: Findings) -> list[dict[str, Any]]:
    return [
        {"name": f.name, "labels": dict(f.labels), "value": _json_number(f.value), "low": _json_number(f.low),
         "high": _json_number(f.high), "note": f.note}
        for f in findings.findings
    ]  # fmt: skip


def _json_number(value: float | None) -> float | str | None:
    from modelassay.record import encode_value

    return None if value is None else encode_value(value)


def claims_table(verdicts: Sequence[ClaimVerdict], suite: str) -> Table:
    """Return the ledger of one suite: published, counter-evidence, ours, verdict."""
    rows = []
    for verdict in verdicts:
        claim, ours = verdict.claim, verdict.ours
        counter = "; ".join(f"{c.statement} ({c.source})" for c in claim.counter_evidence)
        stated = f"{claim.statement}: " if claim.statement else ""
        published = f"{stated}{_RELATIONS[claim.relation]} {claim.published:g} ({claim.source})"
        shown = "not measured" if ours is None else f"{ours.value:.4g}"
        rows.append((f"{suite}/{claim.id}", published, counter or "none known", shown, verdict.verdict, verdict.reason))
    return Table(
        title="claims", columns=("claim", "published", "counter-evidence", "ours", "verdict", "why"), rows=rows
    )


def ledger(root: Path) -> View:
    """Show every claim of every shipped suite against the newest complete run of its profile under ``root``."""
    verdicts: list[tuple[str, ClaimVerdict]] = []
    runs = [open_run(folder) for folder in reversed(runs_under(root))]
    for name in shipped_suites():
        suite = load_suite(name)
        for claim in suite.claims:
            newest = next((run for run in runs if _answers(run, name, claim.profile)), None)
            findings = None if newest is None else run_findings(newest)
            why = f"no complete run of profile {claim.profile} under {root}"
            verdicts += [(name, v) for v in assess([claim], findings, profile=claim.profile, why_none=why)]
    rows = [row for name, verdict in verdicts for row in claims_table([verdict], name).rows]
    columns = claims_table([], "").columns
    return View(data=[{"suite": name, **v.to_json()} for name, v in verdicts],
                tables=[Table(title="claims", columns=columns, rows=rows)])  # fmt: skip


def doctor_view(checks: Sequence[Check]) -> View:
    """Show what `doctor` found, each fault with its fix."""
    rows = [(check.name, check.status if check.required or check.status == "ok" else f"{check.status} (optional)",
             check.detail, check.fix or "") for check in checks]  # fmt: skip
    return View(data=[asdict(check) for check in checks],
                tables=[Table(title="", columns=("check", "status", "found", "fix"), rows=rows)])  # fmt: skip


def _answers(run: Run, suite: str, profile: str) -> bool:
    complete = all(read_cell(run.cell_dir(cell)).is_complete for cell in run.suite.cells)
    return run.suite.name == suite and run.suite.profile == profile and not run.suite.overrides and complete


def images_view(images: Mapping[str, Image]) -> View:
    """List the images: reference, base and its digest, requirements, and whether a registry confirmed the pin."""
    rows = [
        (image.reference, image.base, (image.base_index_digest or "none known")[:19], image.lock_sha256[:12],
         image.verified_at or "not confirmed by a registry")
        for image in images.values()
    ]  # fmt: skip
    columns = ("image", "base", "base digest", "requirements", "verified")
    return View(data={name: asdict(image) for name, image in images.items()},
                tables=[Table(title="images", columns=columns, rows=rows)])  # fmt: skip


def built_view(built: Mapping[str, Any]) -> View:
    """Say what a build gave, and whether it is what the lock pins."""
    why = built["why_not_locked"]
    lines = [f"{built['reference']}: {built['id']}, {built['size_bytes'] / 1e9:.2f} GB",
             f"not what the lock pins: {why}" if why else "it is what docker/images.lock.json pins"]  # fmt: skip
    return View(data=dict(built), lines=lines)
