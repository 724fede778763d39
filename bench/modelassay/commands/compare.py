"""``modelassay compare``: results against results, and ``--rerun``, which measures two environments in turns."""

from __future__ import annotations

import datetime
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from modelassay.commands.view import View
from modelassay.compare import history as nights
from modelassay.compare.document import cell_of, gate_document, stored_document
from modelassay.compare.gate.environments import KERNELS, environment
from modelassay.compare.gate.rerun import Report, rerun
from modelassay.compare.gate.session import Clock
from modelassay.compare.load import load
from modelassay.compare.stored import compare
from modelassay.errors import AssayError, Inconclusive, Regression, UsageError
from modelassay.experiments.findings import Table

MAX_LEFT_OUT = 12
"""Lines about what was left out; --json has them all."""


def compare_stored(references: Sequence[str], root: Path, *, relative: float, figure: Path | None) -> View:
    """Compare the runs and files meant by ``references`` with the first of them.

    Raises:
        UsageError: fewer than two, or nothing that can be compared.
    """
    if len(references) < 2:
        raise UsageError("compare: name two results or more, runs or JSON files of benchmarks; the first is the base")
    result = compare([load(reference, root) for reference in references], relative=relative)
    document = stored_document(result, relative=relative)
    return _view(document, [given.name for given in result.sources], figure)


def gate(references: Sequence[str], *, workload: Path | None, cases: Sequence[str], relative: float, clock: Clock,
         limit_s: float | None, figure: Path | None, report: Report) -> View:  # fmt: skip
    """Measure BASE and CANDIDATE in turns; the view's failure is `Regression` or `Inconclusive` where that is the verdict.

    Raises:
        UsageError: not two environments, or an unknown case.
        HostError: a process cannot be started or dies.
    """
    if len(references) != 2:
        raise UsageError(f"compare --rerun: name two environments, BASE CANDIDATE; got {len(references)}")
    script = KERNELS if workload is None else workload.absolute()
    if not script.is_file():
        raise UsageError(f"{workload}: no such file; --workload names a Python file with `package` and `cases()`")
    with tempfile.TemporaryDirectory(prefix="modelassay-gate-") as folder:
        scratch = Path(folder)
        scratch.chmod(0o755)  # a container's user reads the request
        base, candidate = (environment(reference, scratch, workload=script) for reference in references)
        result = rerun(base, candidate, scratch=scratch, workload=script, cases=cases or None, relative=relative, clock=clock,
                       limit_s=limit_s, report=report)  # fmt: skip
    document = gate_document(result, (base.name, candidate.name), relative=relative)
    return _view(document, references, figure)


def remember(document: Mapping[str, Any] | None, references: Sequence[str], root: Path, folder: Path) -> View:
    """Append a gate, or the results meant by ``references``, to the history in ``folder``, and show how all its nights went.

    Draws ``trend-<suite>.png`` into ``folder`` where there are two nights or more. Change points are advice: no exit code.

    Raises:
        HostError: the folder cannot be written.
    """
    utc = datetime.datetime.now(datetime.UTC)
    if document is not None:
        device = document["sources"][0]["device"] if document["sources"] else None
        nights.append(folder, nights.rows_of_gate(document), suite="gate", device=device, utc=utc)
    without = []
    for source in [] if document is not None else [load(reference, root) for reference in references]:
        rows = nights.rows_of_source(source)
        if nights.append(folder, rows, suite=source.suite or source.name, device=source.device, utc=utc) is None:
            without.append(f"nothing of {source.name} was appended: it holds no time that counts")
    frame, left_out = nights.read(folder)
    points = nights.change_points(frame)
    drawn = []
    for suite in sorted(frame["suite"].unique().to_list()):
        own = frame.filter(frame["suite"] == suite)
        if own["night"].n_unique() > 1:
            from modelassay.charts import write_figure

            drawn.append(folder / f"trend-{suite}.png")
            write_figure(nights.trend_figure(own, suite=suite), drawn[-1])
    shown = [
        (suite, device, case, measure, str(len(values)), f"{values[-1][1]:.4g}", f"{values[-1][1] / values[0][1]:.3f}")
        for (suite, device, case, measure), values in nights.series(frame).items()
    ]
    return View(
        data={"nights": frame["night"].n_unique(), "series": len(shown), "figures": [str(path) for path in drawn],
              "change_points": [vars(point) for point in points], "left_out": left_out},
        tables=[Table(title=f"history of {frame['night'].n_unique()} nights in {folder}",
                      columns=("suite", "device", "case", "measure", "nights", "last", "over the first"), rows=shown)],
        lines=[
            *(f"advice: {p.case} ({p.suite}, {p.device}): {p.measure} changed to {p.ratio:.3f} times on {p.night}" for p in points),
            *(f"trend: {path}" for path in drawn),
            *without,
            *left_out,
        ],
    )  # fmt: skip


def joined(view: View, more: View) -> View:
    """Return one view of a comparison and the history it was appended to."""
    return replace(
        view,
        data={**view.data, "history": more.data},
        tables=[*view.tables, *more.tables],
        lines=[*view.lines, *more.lines],
    )


def failure_of(document: Mapping[str, Any]) -> AssayError | None:
    """Return what ends a gate with another exit code than 0."""
    if document["kind"] != "gate":
        return None
    cells = document["cells"]
    bad = [f"{cell['case']} ({cell['verdict']})" for cell in cells if cell["verdict"] in ("slower", "wrong")]
    if bad:
        return Regression(f"the candidate is slower or wrong in {len(bad)} of {len(cells)} cases: {', '.join(bad[:6])}")
    open_cases = [cell["case"] for cell in cells if cell["verdict"] in ("inconclusive", "invalid")]
    if open_cases or not cells:
        return Inconclusive(f"{len(open_cases)} of {len(cells)} cases are not decided: {', '.join(open_cases[:6])}")
    return None


def _view(document: dict[str, Any], names: Sequence[str], figure: Path | None) -> View:
    if figure is not None and document["figures"]:
        from modelassay.charts import write_figure

        write_figure(document["figures"]["ratios"], figure)
    return View(
        data=document,
        summary=document["answer"],
        tables=[table for table in _tables(document, names) if table.rows],
        lines=[
            *_gate_lines(document["gate"]),
            *_left_out(document, names),
            *(f"note: {note}" for note in document["notes"]),
        ],
        failure=failure_of(document),
    )


def _tables(document: Mapping[str, Any], names: Sequence[str]) -> list[Table]:
    cells = [
        (cell["case"], names[cell["source"]], cell["measure"], _number(cell["base_ms"]), _number(cell["candidate_ms"]),
         *cell_of(cell), cell["why"])
        for cell in document["cells"]
    ]  # fmt: skip
    levels = [
        (level["case"], names[level["source"]], f"{level['median_ms']:.4g}", _share(level["share_of_peak"]),
         level["reference"] or "", _times(level["speed_over_reference"]))
        for level in document["levels"]
    ]  # fmt: skip
    metrics = [
        (row["name"], names[row["source"]], f"{row['equal']:,}", f"{row['differ']:,}", f"{row['only_base'] + row['only_candidate']:,}",
         "" if not row["differ"] or row["largest_relative"] is None else f"{row['largest_relative']:.3g}")
        for row in document["metrics"]
    ]  # fmt: skip
    return [
        Table(title=f"over {names[0]}",
              columns=("case", "candidate", "of", "base ms", "ms", "ratio", "interval", "verdict", "why"), rows=cells),
        Table(title="of each device's own",
              columns=("case", "source", "ms", "of its measured peak", "reference", "speed over it"), rows=levels),
        Table(title="metrics", columns=("name", "of", "equal", "differ", "only in one", "largest relative difference"), rows=metrics),
    ]  # fmt: skip


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _share(value: Mapping[str, Any] | None) -> str:
    return "" if value is None else f"{value['value']:.1%} [{value['low']:.1%}, {value['high']:.1%}]"


def _times(value: Mapping[str, Any] | None) -> str:
    return "" if value is None else f"{value['value']:.2f}x [{value['low']:.2f}, {value['high']:.2f}]"


def _gate_lines(gate: Mapping[str, Any] | None) -> list[str]:
    if gate is None:
        return []
    cleared = [
        f"cleared: {row['case']}: {row['ratio']:.3f} at look {row['look']}, {row['why']}" for row in gate["cleared"]
    ]
    return [*cleared, *(f"guard: {row['text']}" for row in gate["guards"])]


def _left_out(document: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    lines = [
        f"refused: {row['case']} of {names[row['source']]}: {'; '.join(row['differs'])}" for row in document["refused"]
    ]
    lines += [f"ignored: {row['what']} of {names[row['source']]}: {row['why']}" for row in document["ignored"]]
    more = [f"... and {len(lines) - MAX_LEFT_OUT} more, see --json"] if len(lines) > MAX_LEFT_OUT else []
    return lines[:MAX_LEFT_OUT] + more
