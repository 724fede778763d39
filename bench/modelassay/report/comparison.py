"""The page of a comparison, from the JSON that ``compare --json`` prints."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from modelassay.errors import UsageError, printable
from modelassay.experiments.findings import Table
from modelassay.report.page import Page, Section

SCHEMA: Final = 1
MAX_BYTES: Final = 100_000_000

Row = Mapping[str, Any]


def read_comparison(path: Path) -> dict[str, Any]:
    """Read a file of ``compare --json``.

    Raises:
        UsageError: it cannot be read, is no comparison, or one of another version.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UsageError(f"{path}: larger than {MAX_BYTES / 1e6:.0f} MB; that is no comparison")
        document = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: no JSON ({error}); `modelassay compare ... --json` writes a comparison") from error
    if not isinstance(document, dict) or "comparison" not in document:
        raise UsageError(f"{path}: no comparison; `modelassay compare ... --json > {path.name}` writes one")
    if document["comparison"] != SCHEMA:
        got = printable(str(document["comparison"]))[:20]
        raise UsageError(f"{path}: a comparison of version {got}, this modelassay reads {SCHEMA}; compare anew")
    return document


def comparison_page(document: Row, path: Path) -> Page:
    """Return what a report says of a comparison.

    Raises:
        UsageError: the file lacks what a comparison holds.
    """
    try:
        return _page(document, path)
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        raise UsageError(f"{path}: damaged ({type(error).__name__}: {error}); compare anew") from error


def _page(document: Row, path: Path) -> Page:
    sources: list[Row] = document["sources"]
    names = [str(source["name"]) for source in sources]
    against = f"{', '.join(names[1:])} against {names[0]}" if len(names) > 1 else ", ".join(names)
    counts = Counter(str(cell["verdict"]) for cell in document["cells"])
    gate = document.get("gate")
    figures = document.get("figures") or {}
    sections = [
        Section(title="Cells", tables=[_cells(document, names)], narrow=True),
        Section(title="Figures", figures={str(name): spec for name, spec in figures.items()}),
        Section(title="Levels", tables=[_levels(document, names)], narrow=True),
        Section(title="Other metrics", tables=[_metrics(document, names)], narrow=True),
        Section(title="Gate", lines=_gate_lines(gate), tables=[_cleared(gate)]) if gate else None,
        Section(title="Left out", tables=[_ignored(document, names), _refused(document, names)]),
        Section(title="Method", lines=[str(line) for line in document.get("method", ())]),
        Section(title="Sources", tables=[_sources(sources)], narrow=True),
    ]
    return Page(
        title=f"Comparison: {document['verdict']}",
        subtitle=f"{against} ({'measured in turns' if document['kind'] == 'gate' else 'stored results'}), {path.name}",
        question=f"Does {names[-1]} differ from {names[0]}?" if len(names) == 2 else f"How do {against} differ?",
        answers=[str(line) for line in document["answer"]],
        verdicts=counts,
        caveats=[*(f"{name} is synthetic: no device gave its numbers" for name, source in zip(names, sources, strict=True)
                   if source.get("synthetic")), *(str(note) for note in document.get("notes", ()))],
        sections=[section for section in sections
                  if section and (section.lines or section.figures or any(table.rows for table in section.tables))],
    )  # fmt: skip


def _cells(document: Row, names: list[str]) -> Table:
    rows = [
        (str(cell["case"]), names[cell["source"]], _number(cell.get("base_ms")), _number(cell.get("candidate_ms")),
         f"{_estimate(cell.get('ratio'))}{'' if cell.get('measure', 'time') == 'time' else ' of ' + str(cell['measure'])}",
         _number(cell.get("p")), str(cell["verdict"]), str(cell.get("why") or ""))
        for cell in document["cells"]
    ]  # fmt: skip
    columns = ("case", "source", f"{names[0]}, ms", "ms", "ratio", "p", "verdict", "why")
    return Table(title="", columns=columns, rows=rows)


def _levels(document: Row, names: list[str]) -> Table:
    rows = [
        (str(row["case"]), names[row["source"]], _number(row.get("median_ms")), _estimate(row.get("share_of_peak")),
         str(row.get("reference") or ""), _estimate(row.get("speed_over_reference")))
        for row in document.get("levels", ())
    ]  # fmt: skip
    columns = ("case", "source", "median, ms", "share of the measured peak", "reference", "speed over reference")
    return Table(title="what each source reaches of its own device", columns=columns, rows=rows)


def _metrics(document: Row, names: list[str]) -> Table:
    keys = ("equal", "differ", "only_base", "only_candidate", "largest_relative")
    rows = [
        (names[row["source"]], str(row["name"]), *(_number(row.get(key)) for key in keys))
        for row in document.get("metrics", ())
    ]
    columns = ("source", "metric", "equal", "differ", "only base", "only candidate", "largest relative difference")
    return Table(title="", columns=columns, rows=rows)


def _ignored(document: Row, names: list[str]) -> Table:
    rows = [(names[row["source"]], str(row["what"]), str(row["why"])) for row in document.get("ignored", ())]
    return Table(title="ignored", columns=("source", "what", "why"), rows=rows)


def _refused(document: Row, names: list[str]) -> Table:
    rows = [
        (names[row["source"]], str(row["case"]), "; ".join(map(str, row["differs"])))
        for row in document.get("refused", ())
    ]
    return Table(title="not compared: the workloads differ", columns=("source", "case", "differs in"), rows=rows)


def _gate_lines(gate: Row) -> list[str]:
    pairs = gate.get("pairs") or {}
    lines = [f"{pairs.get('measured')} pairs were measured, of {pairs.get('least')} to {pairs.get('most')}, in {gate.get('looks')} looks; "
             f"level {gate.get('alpha')}"]  # fmt: skip
    if (alarms := gate.get("false_alarms")) is not None:
        lines.append(f"false alarms, base against base: {_estimate(alarms)}, n = {alarms.get('n')}")
    return [*lines, *(str(guard["text"]) for guard in gate.get("guards", ()))]


def _cleared(gate: Row) -> Table:
    rows = [
        (str(row["case"]), _number(row.get("look")), _number(row.get("ratio")), str(row["why"]))
        for row in gate.get("cleared", ())
    ]
    return Table(title="first seen as slower, not confirmed", columns=("case", "look", "ratio", "why"), rows=rows)


def _sources(sources: list[Row]) -> Table:
    rows = [
        (str(source["name"]), str(source["kind"]), str(source.get("device") or ""), str(source.get("suite") or ""),
         str(source.get("profile") or ""), ", ".join(f"{key} {value}" for key, value in (source.get("facts") or {}).items()))
        for source in sources
    ]  # fmt: skip
    return Table(title="", columns=("source", "kind", "device", "suite", "profile", "facts"), rows=rows)


def _estimate(number: Row | None) -> str:
    """Return a value and its interval.

    >>> _estimate({"value": 1.05, "low": 1.02, "high": 1.08}), _estimate(None)
    ('1.05 [1.02, 1.08]', '')
    """
    if number is None or number.get("value") is None:
        return ""
    low, high = number.get("low"), number.get("high")
    shown = _number(number["value"])
    return shown if low is None or high is None else f"{shown} [{_number(low)}, {_number(high)}]"


def _number(value: float | None) -> str:
    return "" if value is None or not math.isfinite(value) else f"{value:.4g}"


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number")
