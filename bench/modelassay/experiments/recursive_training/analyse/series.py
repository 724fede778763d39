"""The trajectories of a run as arrays: a row for each seed, a column for each generation."""

# S = seeds, G = generations, 0 among them

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import polars as pl
from numpy.typing import NDArray

from modelassay.curvature.over_text import TESTED
from modelassay.recording.tables import RunData

Floats = NDArray[np.float64]
TREATED, CONTROL, REPEATED = "replace", "fresh", "same"
SHOWN = {"replace": "T replace", "fresh": "A fresh", "same": "A' same", "mixed": "B mixed"}
"""Names of the arms as the plan calls them."""


@dataclass(frozen=True, kw_only=True)
class Series:
    """All measures of all whole trajectories."""

    conditions: tuple[str, ...]
    seeds: Mapping[str, tuple[int, ...]]
    """Of each condition, those whose trajectory ended."""
    generations: int
    """After generation 0."""
    values: Mapping[tuple[str, str], Floats]
    """(condition, measure) -> [S, G + 1], NaN where a number was not defined."""
    diverged: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Of each condition the reasons of trajectories that ended early."""

    @property
    def measures(self) -> list[str]:
        """All that was measured."""
        return list(dict.fromkeys(measure for _, measure in self.values))

    def of(self, condition: str, measure: str, seeds: Sequence[int] | None = None) -> Floats | None:
        """Return the rows of some seeds, all if None; None where the measure was not taken."""
        found = self.values.get((condition, measure))
        if found is None or seeds is None:
            return found
        places = {seed: at for at, seed in enumerate(self.seeds[condition])}
        return found[[places[seed] for seed in seeds]]

    def common(self, *conditions: str) -> tuple[int, ...]:
        """Return the seeds that all the conditions have, in order."""
        first, *others = (self.seeds.get(condition, ()) for condition in conditions)
        return tuple(seed for seed in first if all(seed in other for other in others))


_OF_A_TRAJECTORY = frozenset({"cell", "outcome", "reason", "attempts", "wall_s", "condition", "seed"})


def settings_of(tables: RunData) -> dict[str, RunData]:
    """Return the cells of each combination of the parameters that differ beside condition and seed: a dose, a decoder, a model.

    Named by them, as ``samples=1000, temperature=0.3``; one that is named ``""`` where nothing else differs.
    """
    cells = tables.cells
    if not cells.height:
        return {"": tables}
    varied = [name for name in cells.columns if name not in _OF_A_TRAJECTORY and cells[name].n_unique() > 1]
    parts: dict[str, RunData] = {}
    for row in cells.select(varied).unique(maintain_order=True).to_dicts() if varied else [{}]:
        kept = cells
        for name, value in row.items():
            kept = kept.filter(pl.col(name).is_null() if value is None else pl.col(name) == value)
        ids = kept["cell"].to_list()
        setting = ", ".join(f"{name}={value}" for name, value in row.items())
        parts[setting] = replace(
            tables, cells=kept, metrics=_of(tables.metrics, ids), units=_of(tables.units, ids),
            fact_rows=[fact for fact in tables.fact_rows if fact["cell"] in set(ids)],
        )  # fmt: skip
    return parts


def _of(frame: pl.DataFrame, ids: list[str]) -> pl.DataFrame:
    return frame.filter(pl.col("cell").is_in(ids)) if "cell" in frame.columns else frame


def read_series(tables: RunData) -> Series:
    """Read the whole trajectories; of a spectrum that was taken twice the one that is tested is the first of ``embeddings``."""
    cells = tables.cells
    if not cells.height or "condition" not in cells.columns:
        return Series(conditions=(), seeds={}, generations=0, values={})
    conditions = tuple(dict.fromkeys(cells["condition"].to_list()))
    done = cells.filter(pl.col("outcome") == "done").select("cell", "condition", "seed")
    generations = int(cells["generations"].max() or 0)  # type: ignore[arg-type]
    seeds = {name: tuple(sorted(done.filter(pl.col("condition") == name)["seed"].to_list())) for name in conditions}
    failed = cells.filter(pl.col("outcome") == "diverged")
    diverged = {
        name: [str(reason) for reason in part["reason"].to_list()] for (name,), part in failed.group_by("condition")
    }  # fmt: skip
    frame = _tested(tables.metrics).join(done, on="cell")
    values: dict[tuple[str, str], Floats] = {}
    places = {name: {seed: at for at, seed in enumerate(each)} for name, each in seeds.items()}
    for row in frame.select("condition", "seed", "generation", "name", "value").iter_rows():
        condition, seed, generation, name, value = row
        array = values.setdefault((condition, name), np.full((len(seeds[condition]), generations + 1), np.nan))
        array[places[condition][seed], int(generation)] = value
    return Series(conditions=conditions, seeds=seeds, generations=generations, values=values, diverged=diverged)


def _tested(metrics: pl.DataFrame) -> pl.DataFrame:
    """Keep what has a generation and no other label, and of the spectrum the definition and the weights that are tested."""
    columns = metrics.columns
    if "generation" not in columns:
        return metrics.clear().with_columns(pl.lit(None).alias("generation"))
    kept = metrics.filter(pl.col("generation").is_not_null())
    for label in ("step", "layer", "writer"):
        if label in columns:
            kept = kept.filter(pl.col(label).is_null())
    if "definition" in columns:
        kept = kept.filter(pl.col("definition").is_null() | (pl.col("definition") == TESTED))
    if "embeddings" in columns and (names := kept["embeddings"].drop_nulls().to_list()):
        kept = kept.filter(pl.col("embeddings").is_null() | (pl.col("embeddings") == names[0]))
    return kept
