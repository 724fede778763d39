"""A cell that runs in this process, or goes on, and what it recorded."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from modelassay.machine.code import SourceGraph
from modelassay.recording.context import CellContext
from modelassay.recording.log import CellLog, read_cell
from modelassay.storage.store import Store


def run_cell(run: Callable[[Any, CellContext], None], params: Any, folder: Path, *, name: str = "c") -> CellLog:
    """Run the cell ``name`` of ``folder``, whose store lies beside it; return its log."""
    cell_folder = folder / "cells" / name
    cell_folder.mkdir(parents=True, exist_ok=True)
    cell = CellContext(cell_folder, cell=name, seed=params.seed, store=Store(folder / "store"), sources=SourceGraph())
    try:
        run(params, cell)
    finally:
        cell.meter.settle()
        cell.meter.log.close()
    return read_cell(cell_folder)


def texts_of(log: CellLog) -> dict[tuple[str, tuple[tuple[str, Any], ...]], str]:
    """Return metrics by name and labels, as text, where NaN is equal to itself."""
    return {(line["name"], tuple(sorted(line["labels"].items()))): repr(line["value"]) for line in log.metrics}
