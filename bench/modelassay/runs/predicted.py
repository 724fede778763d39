"""What cells will cost, predicted from the microbatches of an earlier run.

A stage's time is its planned tokens times what a planned token of the same stage took in that run, so what is planned at its greatest (a
completion that may stop early) is measured as it came. Stages with one name are one only where the experiment says that a token takes as
long: the same model, precision and engine. What no microbatch times, loading models above all, is not in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelassay.experiments import StageCost
from modelassay.suite import Cell, Suite

if TYPE_CHECKING:
    from modelassay.runs.directory import Run

Key = tuple[str, tuple[str, ...]]
"""A stage's name, and what decides its speed."""


@dataclass(frozen=True, kw_only=True)
class Rates:
    """What a run tells of the cost of a token."""

    seconds: Mapping[Key, float]
    """Of a planned token."""
    num_units: int
    """Microbatches that it rests on."""
    device: str
    """Where they were timed."""
    is_gpu: bool

    def predict(self, suite: Suite, cell: Cell) -> float | None:
        """Return the seconds of a cell's stages; None where one of them was not measured, or none has a cost."""
        costs = [stage for stage in suite.experiment.stages(cell.params) if stage.tokens]
        if not costs or any(_key(stage) not in self.seconds for stage in costs):
            return None
        return sum(stage.tokens * self.seconds[_key(stage)] for stage in costs)


def measured_rates(run: Run) -> Rates:
    """Return what the cells of a run that have ended took a token, by stage."""
    import polars as pl

    data = run.data()
    planned: dict[Key, int] = {}
    spent: dict[Key, float] = {}
    num_units = 0
    for cell in _ended(run):
        own = data.units.filter(pl.col("cell") == cell.id) if data.units.height else data.units
        for key, units, tokens in _summed(run.suite.experiment.stages(cell.params)):
            timed = own.filter(pl.col("stage").is_in(units)) if own.height else own
            if timed.height:
                planned[key] = planned.get(key, 0) + tokens
                spent[key] = spent.get(key, 0.0) + float(timed["host_ms"].sum()) / 1000
                num_units += timed.height
    device, is_gpu = _device(run.environment)
    return Rates(
        seconds={key: spent[key] / planned[key] for key in planned}, num_units=num_units, device=device, is_gpu=is_gpu
    )


def _summed(stages: Iterable[StageCost]) -> Iterable[tuple[Key, list[str], int]]:
    """Return each key of a cell's stages that have units and tokens, with all of both."""
    by_key: dict[Key, list[StageCost]] = {}
    for stage in stages:
        if stage.units and stage.tokens:
            by_key.setdefault(_key(stage), []).append(stage)
    for key, own in by_key.items():
        yield key, sorted({unit for stage in own for unit in stage.units}), sum(stage.tokens for stage in own)


def _ended(run: Run) -> Iterable[Cell]:
    statuses = run.statuses()
    return (cell for cell in run.suite.cells if statuses[cell.id].is_complete)


def _key(stage: StageCost) -> Key:
    return stage.name, stage.speed


def _device(environment: Mapping[str, Any]) -> tuple[str, bool]:
    """Return the first GPU's name, else the processor's with its threads, and whether it is a GPU."""
    gpus = environment["gpu"]["devices"]
    if gpus:
        return str(gpus[0]["name"]), True
    threads = environment["threads"].get("OMP_NUM_THREADS") or environment["cpu"]["usable_cores"]
    return f"{environment['cpu']['model']}, {threads} thread{'s' * (str(threads) != '1')}", False
