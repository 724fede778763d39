"""The trajectories of a run as arrays: a row for each seed, a column for each generation."""

# S = seeds, G = generations, 0 among them

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

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
