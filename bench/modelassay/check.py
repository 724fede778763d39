"""Validating files without running them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from modelassay.claims import Table
from modelassay.errors import UsageError
from modelassay.published.numbers import Shelf
from modelassay.published.statistics import summary, summary_lines, summary_table
from modelassay.published.table import read_similarities
from modelassay.record import read_segment
from modelassay.show import View
from modelassay.suite import check_suite, claims_of


def check_files(files: Sequence[str], *, families: Path | None = None) -> View:
    """Validate each file; return what is in it, of a table of similarities its statistics.

    Raises:
        UsageError: the first file that is invalid, with the place; or ``families`` without a table they could be of.
    """
    found: list[dict[str, Any]] = []
    for name in files:
        if name.endswith(".jsonl"):
            if not Path(name).is_file():
                raise UsageError(f"{name}: no such file")
            found.append({"file": name, "content": f"{sum(1 for _ in read_segment(Path(name)))} records"})
        elif name.lower().endswith((".csv", ".json")):
            table = read_similarities(Path(name), families=families)
            content = f"{table.scores_P.size:,} pairs of {len(table.names):,} models"
            found.append({"file": name, "content": content, "similarities": summary(table)})
        else:
            profiles = ", ".join(f"{profile}: {num_cells} cells" for profile, num_cells in check_suite(name))
            found.append({"file": name, "content": profiles, "missing": _tables_missing(name)})
    tables = [entry["similarities"] for entry in found if "similarities" in entry]
    if families is not None and not tables:
        raise UsageError(f"--families {families}: says something of a table of similarities (.csv, .json); name one")
    rows = [(entry["file"], entry["content"]) for entry in found]
    return View(
        data=found,
        tables=[Table(title="", columns=("file", "valid"), rows=rows), *([summary_table(tables)] if tables else [])],
        lines=[*summary_lines(tables), *(line for entry in found for line in entry.get("missing", ()))],
    )


def _tables_missing(suite: str) -> list[str]:
    """Return which tables that a suite's claims name are not at hand.

    Raises:
        UsageError: a table is there and cannot be read, or is not there and nothing says where to get it.
    """
    shelf = Shelf(Path(suite).parent)
    given = [
        item
        for claim in claims_of(suite)
        for item in (*([claim.derived] if claim.derived else ()), *claim.counter_evidence)
    ]
    numbers = [shelf.number(item) for item in given]
    if broken := next((number for number in numbers if number.standing == "unreadable"), None):
        raise UsageError(broken.missing())
    return [*dict.fromkeys(line for number in numbers if (line := number.missing()))]
