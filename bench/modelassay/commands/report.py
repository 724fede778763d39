"""The verb `report`: a run or a comparison as one file, or as a tracker shows it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path

from modelassay.commands.show import judge
from modelassay.errors import HostError, UsageError
from modelassay.report.comparison import comparison_page, read_comparison
from modelassay.report.html import html
from modelassay.report.markdown import markdown
from modelassay.report.page import Page
from modelassay.report.run import run_page
from modelassay.report.upload import tracker_named, upload
from modelassay.runs.directory import require_run
from modelassay.storage.durable import write_whole


def is_comparison(target: str) -> bool:
    """Whether ``target`` is meant as the file of a comparison."""
    return target.endswith(".json") or Path(target).is_file()


def page_of(target: str, runs: Path) -> Page:
    """Return the report of a run or of the file of a comparison.

    Raises:
        UsageError: there is neither.
        AssayError: a log is damaged.
    """
    if is_comparison(target):
        return comparison_page(read_comparison(Path(target)), Path(target))
    run = require_run(target, runs)
    data = run.data()
    judged = judge(run, data)
    return run_page(
        run, data, findings=judged.findings, entries=judged.entries, standings=judged.standings, caveats=judged.caveats,
        failure=None if judged.failure is None else str(judged.failure),
    )  # fmt: skip


def write_report(target: str, *, runs: Path, as_markdown: bool, into: Path | None) -> str:
    """Write a report and return what to print: the path of the HTML, or the Markdown where no file is named.

    Raises:
        UsageError: the file is a folder or lies in none.
        HostError: it cannot be written.
    """
    page = page_of(target, runs)
    content = markdown(page) if as_markdown else html(page)
    if into is None and as_markdown:
        return content.rstrip()
    path = into or _beside(target, runs)
    try:
        write_whole(path, content.encode())
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise UsageError(
            f"{path}: cannot be written ({error.strerror}); name a file in a folder that exists: --into FILE"
        ) from error
    except OSError as error:
        raise HostError(
            f"{path}: the report cannot be written: {error.strerror}; name another file: --into FILE"
        ) from error
    return str(path)


def send(target: str, *, runs: Path, to: str, report: Callable[[str], None]) -> str:
    """Send a run to the tracker ``to`` and return what was sent in a sentence.

    Raises:
        UsageError: there is no such run.
        HostError: the tracker is not installed.
        AssayError: it refused a cell.
    """
    if is_comparison(target):
        raise UsageError(f"--to {to}: only a run is sent, {target} is a comparison")
    run, tracker = require_run(target, runs), tracker_named(to)
    data = run.data()
    with redirect_stdout(sys.stderr):  # trackers talk, and stdout is data
        sent, before = upload(data, run.folder, project=run.suite.name, name=to, tracker=tracker, report=report)
    missing = len(run.suite.cells) - sent - before
    left = f"; {missing} have not ended and are sent by the same command once they have" if missing else ""
    return f"{to}, project {run.suite.name}: {sent} cells sent, {before} were there{left}"


def _beside(target: str, runs: Path) -> Path:
    if is_comparison(target):
        return Path(target).with_suffix(".html")
    return require_run(target, runs).folder / "report.html"
