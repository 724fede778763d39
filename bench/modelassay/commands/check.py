"""Validating files without running them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from modelassay.commands.view import View
from modelassay.errors import UsageError
from modelassay.experiments.findings import Table
from modelassay.recording.log import read_segment
from modelassay.suite import Contents, read_contents


def check_files(files: Sequence[str], *, families: Path | None = None) -> View:
    """Validate each file; return what is in it, of a table of similarities its statistics.

    Raises:
        UsageError: the first file that is invalid, with the place; or ``families`` without a table they could be of.
    """
    checked: list[dict[str, Any]] = []
    for name in files:
        if name.endswith(".jsonl"):
            if not Path(name).is_file():
                raise UsageError(f"{name}: no such file")
            checked.append({"file": name, "content": f"{sum(1 for _ in read_segment(Path(name)))} records"})
        elif name.lower().endswith((".csv", ".json")):
            from modelassay.data.similarities.statistics import summary  # SciPy takes as long as a suite
            from modelassay.data.similarities.table import read_similarities

            table = read_similarities(Path(name), families=families)
            content = f"{table.scores_P.size:,} pairs of {len(table.names):,} models"
            checked.append({"file": name, "content": content, "similarities": summary(table)})
        else:
            suite = read_contents(name)
            sizes = ", ".join(f"{profile}: {num_cells} cells" for profile, num_cells in suite.sizes.items())
            checked.append({"file": name, "content": sizes, "missing": _tables_missing(name, suite)})
    tables = [entry["similarities"] for entry in checked if "similarities" in entry]
    if families is not None and not tables:
        raise UsageError(f"--families {families} needs a similarity table (.csv, .json); name one")
    rows = [(entry["file"], entry["content"]) for entry in checked]
    return View(
        data=checked,
        tables=[Table(title="", columns=("file", "valid"), rows=rows), *([_summary_table(tables)] if tables else [])],
        lines=[*_summary_lines(tables), *(line for entry in checked for line in entry.get("missing", ()))],
    )


def _summary_lines(summaries: Sequence[Mapping[str, Any]]) -> Sequence[str]:
    if not summaries:
        return ()
    from modelassay.data.similarities.statistics import summary_lines

    return summary_lines(summaries)


def _tables_missing(file: str, suite: Contents) -> list[str]:
    """Return which tables that the claims of the suite in ``file`` name are not at hand.

    Raises:
        UsageError: a table is there and cannot be read, or is not there and nothing says where to get it.
    """
    origins = [
        origin for claim in suite.claims for origin in (claim.derived, *claim.counter_evidence) if origin is not None
    ]
    if not origins:
        return []
    from modelassay.claims.published import PublishedTables

    tables = PublishedTables(Path(file).parent, suite.experiment)
    numbers = [tables.number(origin) for origin in origins]
    if broken := next((number for number in numbers if number.status == "unreadable"), None):
        raise UsageError(broken.missing())
    return [*dict.fromkeys(line for number in numbers if (line := number.missing()))]


def _summary_table(summaries: Sequence[Mapping[str, Any]]) -> Table:
    """Return the statistics of tables, a row for each of their kinds of pairs."""
    from modelassay.data.similarities.statistics import SHOWN

    rows = [
        (summed["file"], kind, f"{group['n']:,}", *(f"{group[key]:.4g}" for key in SHOWN), " · ".join(group["max_pair"]),
         f"{100 * group['share_above_0.9']:.3g} %")
        for summed in summaries for kind, group in summed["groups"].items()
    ]  # fmt: skip
    columns = ("file", "pairs", "n", "median", "95 %", "99 %", "max", "highest pair", "above 0.9")
    return Table(title="similarities", columns=columns, rows=rows)
