"""What the verbs print: each function turns one thing into a `View`, which is JSON and rich tables at once."""

from __future__ import annotations

import json
import os
import re
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

from modelassay.claims import MEANINGLESS, ClaimVerdict, Findings, Table, assess
from modelassay.errors import AssayError, HostError, SuiteError, displayed
from modelassay.ledger import Entry, enter, ledger_lines, ledger_table
from modelassay.published.numbers import Shelf
from modelassay.record import encode_value, read_cell
from modelassay.runner import Planned, Run, counts, open_run, runs_under
from modelassay.suite import Claim, PublishedTable, Suite, claims_of, load_suite, shipped_suites

if TYPE_CHECKING:
    from rich.console import Console

    from modelassay.doctor import Check
    from modelassay.images import Image

Read = TypeVar("Read")

_STEM = re.compile(r"\w[\w.-]{0,99}")

MAX_CELLS_SHOWN = 40
"""Cells up to which a run's table lists them all; beyond, those that are not done."""


@dataclass(frozen=True, kw_only=True)
class View:
    """One answer: ``data`` for --json, ``tables`` and ``lines`` for people."""

    data: Any
    tables: Sequence[Table] = ()
    lines: Sequence[str] = ()
    failure: AssayError | None = None
    """What kept the answer from being whole; raised once the rest is printed."""


def emit(view: View, *, as_json: bool) -> None:
    """Print ``view`` on stdout, JSON in ASCII so that any terminal and any path can be written.

    Raises:
        AssayError: the view's failure.
    """
    if as_json:
        _write(json.dumps(view.data, indent=1, allow_nan=False) + "\n")
    else:
        console = _console()
        with console.capture() as captured:
            for table in view.tables:
                _print_table(console, table)
            for line in view.lines:
                console.print(displayed(line), markup=False, highlight=False, emoji=False, soft_wrap=True)
        _write(captured.get())
    if view.failure is not None:
        raise view.failure


def _write(text: str) -> None:
    stdout: TextIO | None = sys.stdout
    if stdout is None:  # closed by whoever started this process
        return
    try:
        stdout.write(text.encode(stdout.encoding, "backslashreplace").decode(stdout.encoding))
        stdout.flush()
    except BrokenPipeError:  # the reader has seen enough; what Python flushes at its end must not fail again
        os.dup2(os.open(os.devnull, os.O_WRONLY), stdout.fileno())


def _console() -> Console:
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=190)


def _print_table(console: Console, table: Table) -> None:
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text  # what stands in a cell is never markup

    title = Text(displayed(table.title), style="table.title") if table.title else None
    drawn = RichTable(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in table.columns:
        drawn.add_column(Text(displayed(column)), overflow="fold")
    for row in table.rows:
        drawn.add_row(*[Text(displayed(cell)) for cell in row])
    console.print(drawn)


def _unless_broken(read: Callable[[], Read]) -> tuple[Read | None, str]:
    """Return what ``read`` gives, or None and why not: one broken run must not hide the others."""
    try:
        return read(), ""
    except AssayError as error:
        return None, str(error)
    except Exception as error:  # an experiment's own code, of any time: it may fail in any way
        return None, f"{type(error).__name__}: {error}"


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
    run, why = _unless_broken(partial(open_run, folder))
    if run is None:
        return None, f"unreadable: {why}"
    status, why = _unless_broken(lambda: counts([read_cell(run.cell_dir(cell)) for cell in run.suite.cells]))
    return run.suite.profile, status or f"unreadable: {why}"


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


def run_view(run: Run, *, figures: Path | None = None) -> View:
    """Show a run's cells and, once all are complete, what its analysis found and says of the claims.

    Its figures are drawn into the folder ``figures`` if one is given. An analysis that fails is the view's failure: the
    cells are shown all the same.
    """
    logs = {cell.id: read_cell(run.cell_dir(cell)) for cell in run.suite.cells}
    cells = [(cell.label, logs[cell.id].outcome or ("cut off" if logs[cell.id].num_attempts else "not run"),
              str(logs[cell.id].num_attempts), str((logs[cell.id].status or {}).get("reason", "")))
             for cell in run.suite.cells]  # fmt: skip
    findings: Findings | None = None
    failure: AssayError | None = None
    try:
        findings = run_findings(run)
    except AssayError as error:
        failure = error
    verdicts = assess(run.suite.claims, findings, profile=run.suite.profile,
                      why_none="the analysis failed" if failure else "cells of the run are not complete")  # fmt: skip
    drawn: list[Path] = []
    if findings is not None and figures is not None:
        try:
            drawn = draw(findings, figures)
        except HostError as error:
            failure = error
    entries = enter(run.suite.name, verdicts, _shelf_of(run.suite), run.folder)
    here = [entry for entry in entries if entry.claim.profile == run.suite.profile]
    caveats = list(findings.caveats) if findings else []
    if run.suite.profile == "smoke":
        caveats.insert(0, MEANINGLESS)
    return View(
        data={
            "run": str(run.folder), "suite": run.suite.name, "profile": run.suite.profile,
            "cells": [{"cell": cell.id, "label": label, "outcome": outcome, "attempts": int(attempts), "reason": reason}
                      for cell, (label, outcome, attempts, reason) in zip(run.suite.cells, cells, strict=True)],
            "findings": None if findings is None else _findings_json(findings),
            "claims": [entry.to_json() for entry in entries], "caveats": caveats, "figures": [str(path) for path in drawn],
        },
        tables=[
            Table(title=f"{run.suite.name} ({run.suite.profile}), {counts(logs.values())}",
                  columns=("cell", "outcome", "attempts", "reason"),
                  rows=cells if len(cells) <= MAX_CELLS_SHOWN else [cell for cell in cells if cell[1] != "done"]),
            *(findings.tables if findings else ()),
            *([ledger_table(here)] if here else []),
        ],
        lines=[*ledger_lines(here), *(f"note: {caveat}" for caveat in caveats), *_elsewhere(verdicts, run),
               *([f"figures: {', '.join(str(path) for path in drawn)}"] if drawn else []), f"run directory: {run.folder}"],
        failure=failure,
    )  # fmt: skip


def draw(findings: Findings, folder: Path) -> list[Path]:
    """Draw the figures of an analysis as PNG into ``folder`` and return their files.

    Raises:
        HostError: the folder cannot be written.
    """
    paths = []
    for name, save in findings.figures.items():
        if not _STEM.fullmatch(name):
            raise AssayError(f"{name}: not the stem of a figure's file; letters, digits, '.', '_' and '-' make one")
        path, aside = folder / f"{name}.png", folder / f".{name}.new.png"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            save(aside)
            aside.replace(path)
        except OSError as error:
            raise HostError(f"{path}: the figure cannot be written: {error.strerror or error}") from error
        finally:
            aside.unlink(missing_ok=True)
        paths.append(path)
    return paths


def _shelf_of(suite: Suite) -> Shelf:
    """Return the tables beside the file of a run's suite, or beside the shipped file where that is gone.

    A run says where its suite's file was and may name any file as a table; only what the suite's file itself names is read.
    """
    shipped = shipped_suites().get(suite.name)
    at_hand = suite.source.suffix in (".yaml", ".yml") and suite.source.is_file()
    path = suite.source if at_hand or shipped is None else _from_here(shipped)
    named: frozenset[PublishedTable] = frozenset()
    if _tables_of(suite.claims) and (at_hand or shipped is not None):
        with suppress(SuiteError):  # no suite any more, so it names nothing
            named = _tables_of(claims_of(path))
    return Shelf(path.parent, named)


def _tables_of(claims: Sequence[Claim]) -> frozenset[PublishedTable]:
    items = [item for claim in claims for item in (claim.derived, *claim.counter_evidence) if item is not None]
    return frozenset(item.table for item in items if item.table is not None)


def _from_here(folder: Path) -> Path:
    """Return ``folder`` relative to the working directory where it lies below it."""
    return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder


def _elsewhere(verdicts: Sequence[ClaimVerdict], run: Run) -> list[str]:
    """Count the claims that this run's profile cannot test; the ledger lists them."""
    profiles = [verdict.claim.profile for verdict in verdicts if verdict.claim.profile != run.suite.profile]
    return [
        f"claims: {profiles.count(profile)} more are not testable at profile {run.suite.profile}, they need {profile}: "
        "modelassay show --claims"
        for profile in dict.fromkeys(profiles)
    ]


def run_findings(run: Run) -> Findings | None:
    """Return the analysis of a run, None while cells are missing: an analysis sees all of the matrix or nothing.

    Raises:
        AssayError: the analysis says so, or fails: then its traceback is on stderr.
    """
    tables = run.tables()
    if not set(tables.cells["outcome"]) <= {"done", "diverged"}:
        return None
    try:
        with redirect_stdout(sys.stderr):  # stdout is data
            found = run.suite.experiment.analyse()(tables)
        if not isinstance(found, Findings):
            raise TypeError(f"{run.suite.experiment.package}.analyse returned {type(found).__name__}, not Findings")
    except AssayError:
        raise
    except Exception as error:
        traceback.print_exc()
        raise AssayError(f"{run.folder}: the analysis of {run.suite.name} failed: {type(error).__name__}: {error}; every "
                         "measurement is kept") from error  # fmt: skip
    return found


def _findings_json(findings: Findings) -> list[dict[str, Any]]:
    return [
        {"name": f.name, "labels": dict(f.labels), "value": _json_number(f.value), "low": _json_number(f.low),
         "high": _json_number(f.high), "note": f.note}
        for f in findings.findings
    ]  # fmt: skip


def _json_number(value: float | None) -> float | str | None:
    return None if value is None else encode_value(value)


def ledger(root: Path) -> View:
    """Show every claim of every shipped suite against the newest complete run of its profile under ``root``."""
    entries: list[Entry] = []
    opened = [_unless_broken(partial(open_run, folder))[0] for folder in reversed(runs_under(root))]
    runs = [run for run in opened if run is not None]
    for name, path in shipped_suites().items():
        claims, shelf = load_suite(name).claims, Shelf(_from_here(path.parent))
        found = {profile: _newest_findings(name, profile, runs) for profile in {claim.profile for claim in claims}}
        for claim in claims:
            findings, run, why = found[claim.profile]
            why = why or f"no complete {claim.profile} run under {root}"
            entries += enter(name, assess([claim], findings, profile=claim.profile, why_none=why), shelf, run)
    return View(
        data=[entry.to_json() for entry in entries], tables=[ledger_table(entries)], lines=ledger_lines(entries)
    )


def doctor_view(checks: Sequence[Check]) -> View:
    """Show what `doctor` found, each fault with its fix."""
    rows = [(check.name, check.status if check.required or check.status == "ok" else f"{check.status} (optional)",
             check.detail, check.fix or "") for check in checks]  # fmt: skip
    return View(data=[asdict(check) for check in checks],
                tables=[Table(title="", columns=("check", "status", "found", "fix"), rows=rows)])  # fmt: skip


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


def _newest_findings(name: str, profile: str, runs: Sequence[Run]) -> tuple[Findings | None, Path | None, str]:
    """Return what the first of ``runs`` that is complete found, or None and what is wrong with the first that is broken.

    Only runs of exactly the cells that the shipped suite has now speak for its claims: no copy of it with other models,
    no overridden parameters.
    """
    cells = {cell.id for cell in load_suite(name, profile=profile).cells}
    first_why = ""
    for run in runs:
        if (run.suite.name, run.suite.profile, {cell.id for cell in run.suite.cells}) == (name, profile, cells):
            findings, why = _unless_broken(partial(run_findings, run))
            if findings is not None:
                return findings, run.folder, ""
            first_why = first_why or why
    return None, None, first_why
