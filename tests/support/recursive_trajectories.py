"""Trajectories of a finished run as a small table, and trajectories drawn anew from them.

``python tests/support/recursive_trajectories.py RUN > tests/support/recursive_trajectories.csv`` made the table beside this file. Each row is one measure of
one condition and seed: its values by generation, to five digits.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from modelassay.experiments.recursive_training.analyse.series import CONTROL, TREATED, Series, read_series
from modelassay.experiments.recursive_training.params import COLLAPSE

Floats = NDArray[np.float64]
LOSS = "held_out_loss"
TABLE = Path(__file__).with_suffix(".csv")


def write_table(series: Series) -> None:
    """Print the measures that are tested, of T and A."""
    lines = csv.writer(sys.stdout, lineterminator="\n")
    lines.writerow(["condition", "measure", "seed", *range(series.generations + 1)])
    for condition in (TREATED, CONTROL):
        for measure in COLLAPSE:
            values = series.of(condition, measure)
            for seed, row in zip(series.seeds[condition], () if values is None else values, strict=False):
                lines.writerow([condition, measure, seed, *(f"{value:.5g}" for value in row)])


def read_table() -> dict[tuple[str, str], Floats]:
    """Return (condition, measure) -> [S, G + 1] of the table."""
    rows: dict[tuple[str, str], list[list[float]]] = {}
    with TABLE.open(encoding="utf-8", newline="") as file:
        for condition, measure, _, *values in list(csv.reader(file))[1:]:
            rows.setdefault((condition, measure), []).append([float(value) for value in values])
    return {key: np.array(values) for key, values in rows.items()}


def drawn(
    real: Mapping[tuple[str, str], Floats],
    rng: np.random.Generator,
    *,
    delay: Mapping[str, int],
    seeds: int,
    trend: float,
) -> Series:
    """Return trajectories of new seeds: of A about the real mean of A, of T that and a real effect, delayed by measure.

    A seed's deviation from the mean is a random combination of the real seeds' deviations in A, with one set of Gaussian weights for all measures: it has their
    covariance over generations and between measures, whatever those are. To it a random slope of ``trend`` times the deviations' size a
    generation is added. The effect is that of the loss, in units of its deviations in A and in the measure's own direction, so that it shows in every measure
    as soon: the real mean of T less that of A, from ``delay`` generations on as it was from generation 1. A measure
    without a delay has none. Generation 0 is shared by the conditions of a seed.
    """
    values: dict[tuple[str, str], Floats] = {}
    in_deviations = (real[TREATED, LOSS].mean(axis=0) - real[CONTROL, LOSS].mean(axis=0)) / _size(real[CONTROL, LOSS])
    weights = {name: rng.normal(size=(seeds, len(next(iter(real.values()))))) for name in (TREATED, CONTROL)}
    for measure in dict.fromkeys(name for _, name in real):
        control = real[CONTROL, measure]
        mean, size = control.mean(axis=0), _size(control)
        deviations = (control - mean) / np.sqrt(len(control) - 1)
        effect = np.zeros_like(mean)
        if measure in delay:
            late, sign = delay[measure], 1 if COLLAPSE[measure] == COLLAPSE[LOSS] else -1
            effect[1 + late :] = sign * size * in_deviations[1 : len(in_deviations) - late]
        for condition in (TREATED, CONTROL):
            slopes = trend * size * rng.normal(size=(seeds, 1)) * np.arange(len(mean))
            values[condition, measure] = (
                mean + weights[condition] @ deviations + slopes + (effect if condition == TREATED else 0.0)
            )
        values[TREATED, measure][:, 0] = values[CONTROL, measure][:, 0]
    each = dict.fromkeys((TREATED, CONTROL), tuple(range(seeds)))
    return Series(conditions=(TREATED, CONTROL), seeds=each, generations=len(mean) - 1, values=values)


def _size(control_SG: Floats) -> float:
    """Standard deviation of seeds about their mean, over all generations."""
    return float(np.nanstd((control_SG - control_SG.mean(axis=0)) * np.sqrt(len(control_SG) / (len(control_SG) - 1))))


if __name__ == "__main__":
    from modelassay.runs.directory import open_run

    write_table(read_series(open_run(Path(sys.argv[1])).data()))
