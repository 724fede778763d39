"""What an experiment's analysis says of a run, and its figures."""

from __future__ import annotations

import re
import sys
import traceback
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from modelassay.errors import AssayError
from modelassay.experiments.findings import Findings
from modelassay.recording.tables import RunData
from modelassay.runs.directory import Run

Read = TypeVar("Read")

_STEM = re.compile(r"\w[\w.-]{0,99}")


def try_read(read: Callable[[], Read]) -> tuple[Read | None, str]:
    """Return what ``read`` gives, or None and why not: one broken run must not hide the others."""
    try:
        return read(), ""
    except AssayError as error:
        return None, str(error)
    except Exception as error:  # an experiment's own code, of any time: it may fail in any way
        return None, f"{type(error).__name__}: {error}"


def draw(findings: Findings, folder: Path) -> list[Path]:
    """Draw the figures of an analysis as PNG into ``folder``, each beside its specification, and return the pictures.

    Raises:
        HostError: the folder cannot be written.
    """
    if not findings.figures:
        return []
    from modelassay.charts import write_figure, write_specification  # here: it loads the plotting library

    paths = []
    for name in findings.figures:
        if not _STEM.fullmatch(name):
            raise AssayError(f"{name}: not the stem of a figure's file; letters, digits, '.', '_' and '-' make one")
        path = folder / f"{name}.png"
        try:
            figure = findings.figures[name]
        except Exception as error:  # an experiment's own code
            traceback.print_exc()
            raise AssayError(f"{path}: the analysis failed to make it: {type(error).__name__}: {error}") from error
        write_figure(figure, path)
        write_specification(figure, folder / f"{name}.vl.json")
        paths.append(path)
    return paths


def run_findings(run: Run, data: RunData | None = None) -> Findings | None:
    """Return what the analysis says of what is there, None where no cell has ended yet; ``data`` (None: read) is what the logs say.

    Where cells are missing the findings say how many; what needs them is not among them.

    Raises:
        AssayError: the analysis says so, or fails on a whole run: then its traceback is on stderr.
    """
    data = run.data() if data is None else data
    if len(data.missing) == len(run.suite.cells):
        return None
    try:
        with redirect_stdout(sys.stderr):  # stdout is data
            findings = run.suite.experiment.analyse()(data)
        if not isinstance(findings, Findings):
            raise TypeError(f"{run.suite.experiment.package}.analyse returned {type(findings).__name__}, not Findings")
    except AssayError:
        raise
    except Exception as error:
        if data.missing:  # it may need what is not there yet
            return None
        traceback.print_exc()
        raise AssayError(f"{run.folder}: the analysis of {run.suite.name} failed: {type(error).__name__}: {error}; every "
                         "measurement is kept") from error  # fmt: skip
    if not data.missing:
        return findings
    caveat = f"{len(data.missing)} of {len(run.suite.cells)} cells are missing; this is what the others say"
    return replace(findings, caveats=[caveat, *findings.caveats])
