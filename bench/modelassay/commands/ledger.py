"""The ledger over all suites, as a verb prints it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

from modelassay.claims.ledger import Entry, enter, ledger_lines, ledger_table
from modelassay.claims.published import PublishedTables
from modelassay.claims.verdicts import assess
from modelassay.commands.view import View
from modelassay.experiments.findings import Findings
from modelassay.runs.analysis import run_findings, try_read
from modelassay.runs.directory import Run, open_run, runs_under
from modelassay.suite import Claim, Published, load_suite, shipped_suites


def published_of(claims: Sequence[Claim]) -> list[Published]:
    """Return the published data that claims name."""
    items = [item for claim in claims for item in (claim.derived, *claim.counter_evidence) if item is not None]
    return [item.published for item in items if item.published is not None]


def from_here(folder: Path) -> Path:
    """Return ``folder`` relative to the working directory where it lies below it."""
    return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder


def ledger(root: Path) -> View:
    """Show every claim of every shipped suite against the newest complete run of its profile under ``root``."""
    entries: list[Entry] = []
    runs = _Newest(root)
    for name, path in shipped_suites().items():
        suite = load_suite(name)
        tables = PublishedTables(from_here(path.parent), suite.experiment)
        newest = {
            profile: _newest_findings(name, profile, runs) for profile in {claim.profile for claim in suite.claims}
        }
        for claim in suite.claims:
            findings, run, why = newest[claim.profile]
            why = why or f"no complete {claim.profile} run under {root}"
            entries += enter(name, assess([claim], findings, profile=claim.profile, why_none=why), tables, run)
    return View(
        data=[entry.to_json() for entry in entries], tables=[ledger_table(entries)], lines=ledger_lines(entries)
    )


class _Newest:
    """The runs under a folder that can be read, the newest first; each is opened once, when it is first asked for."""

    def __init__(self, root: Path) -> None:
        self._folders = runs_under(root)
        self._runs: list[Run | None] = []

    def __iter__(self) -> Iterator[Run]:
        for number in range(len(self._runs) + len(self._folders)):
            if number == len(self._runs):
                self._runs.append(try_read(partial(open_run, self._folders.pop()))[0])
            if (run := self._runs[number]) is not None:
                yield run


def _newest_findings(name: str, profile: str, runs: Iterable[Run]) -> tuple[Findings | None, Path | None, str]:
    """Return the findings of the first complete one of ``runs``, or None and what is wrong with the first that is broken.

    Only runs of exactly the cells that the shipped suite has now speak for its claims: no copy of it with other models,
    no overridden parameters.
    """
    cells: set[str] | None = None
    first_why = ""
    for run in runs:
        if (run.suite.name, run.suite.profile) != (name, profile):
            continue
        cells = cells or {cell.id for cell in load_suite(name, profile=profile).cells}
        if {cell.id for cell in run.suite.cells} == cells:
            statuses, why = try_read(run.statuses)
            if statuses is not None and not all(status.is_complete for status in statuses.values()):
                continue
            findings, why = (None, why) if statuses is None else try_read(partial(run_findings, run))
            if findings is not None:
                return findings, run.folder, ""
            first_why = first_why or why
    return None, None, first_why
