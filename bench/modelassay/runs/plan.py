"""What would run, what is reused and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from modelassay.errors import UsageError
from modelassay.machine.code import SourceGraph, differences
from modelassay.recording.resume import latest_checkpoint
from modelassay.recording.status import read_status
from modelassay.runs.directory import Run, code_of, libraries_of, needs_of, runs_under
from modelassay.runs.inputs import file_digests
from modelassay.runs.needs import missing_artifacts
from modelassay.runs.predicted import Rates
from modelassay.runs.standing import standing
from modelassay.storage.files import require_regular_tree
from modelassay.storage.needs import in_order
from modelassay.storage.store import Store
from modelassay.suite import Cell, Suite

Action = Literal["run", "resume", "retry", "reuse"]


@dataclass(frozen=True, kw_only=True)
class Planned:
    """What will happen to one cell, and why."""

    cell: Cell
    action: Action
    why: str
    estimate_s: float | None
    """Seconds the same cell took in the newest earlier run beside this one; None when it never ran there."""
    predicted_s: float | None = None
    """Seconds of its stages by the rates of another run; None without one, or where that run does not tell."""


def plan(suite: Suite, *, root: Path, run: Run | None = None, rates: Rates | None = None) -> list[Planned]:
    """Say for each cell of ``suite`` whether it runs, resumes, is retried or is reused in ``run`` (None: a new one); ``rates`` predict its cost.

    Raises:
        UsageError: cells would have to run, and the code changed since ``run`` began.
    """
    costs = _earlier_costs(suite, root)
    planned = []
    for cell in suite.cells:
        action, why = _action(run, cell)
        predicted = None if rates is None else rates.predict(suite, cell)
        planned.append(Planned(cell=cell, action=action, why=why, estimate_s=costs.get(cell.id), predicted_s=predicted))
    if run is not None and any(entry.action != "reuse" for entry in planned):
        refuse_changes(run)
    return planned


def _action(run: Run | None, cell: Cell) -> tuple[Action, str]:
    if run is None:
        return "run", "a new run"
    status = read_status(run.cell_dir(cell))
    if status.is_complete:
        return "reuse", f"{status.outcome} in attempt {status.num_attempts}"
    if status.num_attempts == 0:
        return "run", "never started"
    saved = latest_checkpoint(run.cell_dir(cell), status.position)
    at = "from its start" if saved is None else f"from position {saved.position}"
    if status.outcome == "failed" and status.status is not None:
        return "retry", f"{at}; attempt {status.num_attempts} failed: {status.status['reason']}"
    word = standing(run.cell_dir(cell), status).word
    return "resume", f"{at}; attempt {status.num_attempts} {'is running now' if word == 'running' else 'was cut off'}"


def _earlier_costs(suite: Suite, root: Path) -> dict[str, float]:
    """Return how long each cell took in the newest run that has it whole; no more runs are opened than it takes."""
    missing = {cell.id for cell in suite.cells}
    costs: dict[str, float] = {}
    for folder in reversed(runs_under(root)):
        if not missing:
            break
        try:
            require_regular_tree(folder)
            names = missing.intersection(path.name for path in folder.glob("cells/*"))
        except (UsageError, OSError):  # another run's damage is no matter of this one; its cost stays unknown
            continue
        for name in names:
            try:
                standing = read_status(folder / "cells" / name)
            except (UsageError, OSError):
                continue
            if standing.is_complete and standing.status is not None and standing.num_attempts == 1:
                costs[name] = float(standing.status["wall_s"])  # a later attempt did but a part
        missing -= costs.keys()
    return costs


def refuse_changes(run: Run, sources: SourceGraph | None = None) -> None:
    """Refuse to go on with code, libraries or input files other than those the run began with.

    Raises:
        UsageError: with the differences.
    """
    then = {"code": run.code, "libraries": run.environment["libraries"], "files": run.files}
    now = {
        "code": code_of(run.suite, sources), "libraries": libraries_of(run.suite, sources),
        "files": file_digests(run.suite, present=False),
    }  # fmt: skip
    changes = differences(then, now)
    if changes:
        listed = "; ".join(changes[:6]) + (f"; and {len(changes) - 6} more" if len(changes) > 6 else "")
        raise UsageError(
            f"{run.folder}: what decides its numbers changed since this run began: {listed}; start a new run of {run.suite.name}"
        )


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """What the cells that will run need first, and what they will leave."""

    num_built: int
    """Artifacts that are there already."""
    num_missing: int
    seconds: float
    """About how much work the missing ones are, on one core."""
    tokens: int
    """That stages train on, generate or read."""
    bytes_kept: int
    """That stages leave on the disk."""


def prepare(suite: Suite, cells: Sequence[Cell]) -> Preparation:
    """Add up what ``cells`` of ``suite`` need and what their stages cost, as far as their parameters tell."""
    needs, store = needs_of(suite, cells), Store()
    artifacts, missing = in_order(needs), missing_artifacts(needs, store)
    stages = [stage for cell in cells for stage in suite.experiment.stages(cell.params)]
    return Preparation(
        num_built=len(artifacts) - len(missing),
        num_missing=len(missing),
        seconds=sum(artifact.work for artifact in missing),
        tokens=sum(stage.tokens for stage in stages),
        bytes_kept=sum(stage.bytes_kept for stage in stages),
    )
