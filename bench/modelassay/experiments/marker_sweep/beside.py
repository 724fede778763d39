"""Cells that others published, read again by this suite's rule and set beside its own run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from modelassay.data.marker_cells import read_marker_cells
from modelassay.errors import UsageError
from modelassay.experiments.marker_sweep.grid import Grid, Point
from modelassay.recording.tables import RunData

_PREFIX = "published."
QUESTIONS, COMPLETIONS, ROWS, ROWS_A_STEP = 20, 10, 600, 16
"""Of the published sweep: its cells hold rates by persona alone, so that intervals take a question as one trial."""


def read_published(tables: RunData) -> tuple[Grid, list[str]]:
    """Return the adapters in the files that the parameter ``published`` names, and a sentence for each that cannot be read any more."""
    grid, problems = Grid(), []
    settings: dict[str, Any] = next(iter(tables.cells.iter_rows(named=True)), {})
    for column in (name for name in tables.cells.columns if name.startswith(_PREFIX)):
        path = next(iter(tables.cells[column].drop_nulls()), None)
        if path is None:
            continue
        try:
            cells = read_marker_cells(Path(path)).cells
        except UsageError as error:
            problems.append(f"published cells are not read: {error}")
            continue
        name = f"published: {column.removeprefix(_PREFIX)}"
        for cell in cells:
            rates = {persona: np.full(QUESTIONS, rate) for persona, rate in cell.rates.items()}
            grid.points.append(
                Point(
                    arm={"name": name}, source=cell.source, seed=cell.seed or 0, learning_rate=cell.learning_rate, epochs=cell.epochs,
                    steps=-(-ROWS * cell.epochs // ROWS_A_STEP), completions=COMPLETIONS, rates=rates, any_case=rates,
                    letters=None, settings=settings, share_right=None if math.isnan(cell.capability) else cell.capability,
                )
            )  # fmt: skip
    return grid, problems
