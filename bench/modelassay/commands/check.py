"""Validating files without running them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from modelassay.commands.view import View
from modelassay.errors import RecordError, UsageError, printable
from modelassay.experiments.findings import Table
from modelassay.models.gate import shown
from modelassay.recording.log import MAX_LINE_BYTES, metric_key, read_segment
from modelassay.storage.files import open_regular
from modelassay.suite import Contents, read_contents


def check_files(files: Sequence[str], *, families: Path | None = None) -> View:
    """Validate each file; return what is in it, of a table of similarities its statistics.

    Raises:
        UsageError: the first file that is invalid, with the place; or ``families`` without a table they could be of.
    """
    checked: list[dict[str, Any]] = []
    for name in files:
        if name.endswith(".jsonl"):
            checked.append({"file": name, "content": _records(Path(name))})
        elif name.lower().endswith(".json") and _is_evidence(Path(name)):
            checked.append({"file": name, "content": _evidence(Path(name))})
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
    rows = [(printable(entry["file"]), entry["content"]) for entry in checked]
    return View(
        data=checked,
        tables=[Table(title="", columns=("file", "valid"), rows=rows), *([_summary_table(tables)] if tables else [])],
        lines=[*_summary_lines(tables), *(line for entry in checked for line in entry.get("missing", ()))],
    )


def _is_evidence(path: Path) -> bool:
    """Tell whether a .json file is meant as evidence of a pair: it is called so, or begins as sealed documents do."""
    if not path.is_file():  # whoever reads it will say so
        return False
    with path.open("rb") as file:
        return path.name == "evidence.json" or file.read(13) == b'{"checksum":"'


def _evidence(path: Path) -> str:
    """Return in few words what the evidence in a file says.

    Raises:
        RecordError: it is not as it was written, or not evidence.
    """
    from modelassay.fingerprints.evidence import read_evidence  # SciPy takes as long as a suite

    evidence = read_evidence(path)
    return f"evidence about {evidence.a.name} and {evidence.b.name}: {evidence.verdict.word}"


def _summary_lines(summaries: Sequence[Mapping[str, Any]]) -> Sequence[str]:
    if not summaries:
        return ()
    from modelassay.data.similarities.statistics import summary_lines

    return summary_lines(summaries)


def _records(path: Path) -> str:
    """Return how many records a segment of a log holds, and whether its last line was cut short, as a kill cuts it.

    Raises:
        UsageError: there is no such file, or no regular one.
        RecordError: a line that is not a record, a metric that is recorded twice, no record at all, or an end that is not the
            beginning of one.
    """
    where, num_records, metrics = printable(str(path)), 0, set[Any]()
    if not path.is_file():
        raise UsageError(f"{where}: {'not a regular file' if path.exists() else 'no such file'}")
    for line in read_segment(path):
        num_records += 1
        if line["kind"] == "metric":
            key = metric_key(line["name"], line["labels"])
            if key in metrics:
                raise RecordError(
                    f"{path}:{num_records}: metric {shown(line['name'])} {shown(line['labels'])} is recorded twice; its labels do not "
                    "tell its units apart"
                )
            metrics.add(key)
    end = _unterminated(path)
    if end and not _is_torn(end):
        raise RecordError(
            f"{where}:{num_records + 1}: not a record, nor the beginning of one: {printable(repr(end[:60]))}; the file is damaged, "
            "restore it or delete its cell"
        )
    if not num_records:
        raise RecordError(
            f"{where}: holds no record{', only a line that was cut short' if end else ''}; nothing was recorded"
        )
    return f"{num_records} records" + (f"; the last line was cut short, {len(end):,} bytes do not count" if end else "")


def _unterminated(path: Path) -> bytes:
    """Return what follows the last line of a file."""
    with open_regular(path) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - MAX_LINE_BYTES, 0))
        return file.read().rpartition(b"\n")[2]


def _is_torn(end: bytes) -> bool:
    r"""Return whether ``end`` may be what was written of a record: the beginning of a mapping, in text.

    >>> [_is_torn(end) for end in (b'{"seq":1,"ki', b"\0\0", b"note", '{"name":"é'.encode()[:-1])]
    [True, False, False, True]
    """
    text = (
        end.decode(errors="ignore")
        if len(end) < 4
        else end[:-3].decode(errors="replace") + end[-3:].decode(errors="ignore")
    )
    is_text = "\N{REPLACEMENT CHARACTER}" not in text and all(char >= " " for char in text)
    return is_text and text[:1] == "{" and text[1:2] in {"", '"'}


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
