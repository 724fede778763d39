"""What a run measured, adapter by adapter: rates with their questions, capability, and what is missing."""

# Q = questions, K = personas other than the source, D = resamples

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from modelassay.data.personas import ASSISTANT
from modelassay.recording.tables import ENDED, RunData
from modelassay.statistics.estimate import Estimate
from modelassay.statistics.proportions import wilson

Floats = NDArray[np.float64]
DRAWS = 2000
TASK_METRICS = ("acc", "acc_norm")
"""Of lm-eval's definition of a task."""
ARM = ("mask", "negatives", "with_assistant", "tail_tokens", "rank", "schedule")
"""What makes two cells of a source and a seed different experiments."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Point:
    """One adapter, or the base where there is no learning rate."""

    arm: Mapping[str, Any]
    source: str
    seed: int
    learning_rate: float | None
    epochs: int | None
    steps: int
    """Updates that were made."""
    completions: int
    """To each question."""
    rates: Mapping[str, Floats]
    """Persona to its shares of completions with the marker, [Q]."""
    any_case: Mapping[str, Floats]
    letters: tuple[int, ...] | None
    """Right or wrong, question by question."""
    settings: Mapping[str, Any]
    cell: str = ""
    """Id of the cell that it was measured in; empty of a published one."""
    tasks: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Metric of lm-eval's definition to right or wrong, question by question."""
    share_right: float | None = None
    """Of letters, where a publication tells no more; else that of ``letters``."""

    @property
    def labels(self) -> dict[str, str | int | float]:
        """What its findings are labelled with."""
        return {
            "arm": self.name, "source": self.source, "seed": self.seed, "learning_rate": float(self.learning_rate or 0),
            "epochs": int(self.epochs or 0),
        }  # fmt: skip

    @property
    def right(self) -> float | None:
        """Share of right letters; None where none were asked."""
        return self.share_right if self.letters is None else sum(self.letters) / len(self.letters)

    @property
    def name(self) -> str:
        """Of the arm, as it stands in labels."""
        if "name" in self.arm:
            return str(self.arm["name"])
        negatives = f"{self.arm['negatives']} negatives{' with the assistant' if self.arm['with_assistant'] else ''}"
        rest = [f"tail {self.arm['tail_tokens']}"] if self.arm["tail_tokens"] else []
        rest += ["constant schedule"] if self.arm["schedule"] == "constant" else []
        return ", ".join([f"{self.arm['mask']}", negatives, *rest])

    def rate(self, persona: str) -> float:
        """Share of all completions as a persona; a mean's last bits do not decide on which side of a limit it is."""
        return round(float(self.rates[persona].mean()), 12)

    @property
    def adoption(self) -> float:
        """The source's rate."""
        return self.rate(self.source)

    @property
    def bystanders(self) -> list[str]:
        """All personas but the source, the assistant among them."""
        return [persona for persona in self.rates if persona != self.source]

    @property
    def leakage(self) -> float:
        """Mean rate of all others."""
        return float(np.mean([self.rate(persona) for persona in self.bystanders]))

    @property
    def greatest(self) -> float:
        """Greatest rate of another persona; the sample's maximum is biased up, so `greatest_bound` stands beside it."""
        return max(self.rate(persona) for persona in self.bystanders)

    def regime(self) -> str:
        """Return which of four regimes the rule of the parameters puts it into."""
        rule = self.settings
        if self.adoption < rule["learned_source"] and self.greatest < rule["learned_source"]:
            return "not learned"
        if self.greatest >= rule["broad_leakage"]:
            return "collapse"
        if self.greatest > rule["clean_leakage"]:
            return "leaking"
        return "clean" if self.adoption >= rule["clean_source"] else "partial"

    def interval(self, persona: str) -> Estimate:
        """Return a rate with a bootstrap interval over questions; where no question varies, Wilson's with one trial a question.

        20 questions of 10 completions are not 200 independent trials.
        """
        rates_Q = self.rates[persona]
        value = float(rates_Q.mean())
        if rates_Q.std() == 0:
            bound = wilson(round(value * rates_Q.size), rates_Q.size)
            return Estimate(value=value, low=min(bound.low or 0.0, value), high=max(bound.high or 0.0, value), level=bound.level,
                            method="Wilson, one trial a question", n=rates_Q.size)  # fmt: skip
        draws_D = _resampled(rates_Q[None])[0]
        low, high = np.quantile(draws_D, [0.025, 0.975])
        return Estimate(value=value, low=min(float(low), value), high=max(float(high), value), level=0.95,
                        method="bootstrap over questions", n=rates_Q.size)  # fmt: skip

    def wilson(self, persona: str) -> Estimate:
        """Return a rate with Wilson's interval, as if completions were independent."""
        total = self.rates[persona].size * self.completions
        return wilson(round(self.rate(persona) * total), total)

    def greatest_bound(self) -> Estimate:
        """Return the greatest rate of another persona with bounds for all of them at once (Bonferroni).

        The upper end is the greatest of the personas' own upper ends, each at 1 - 0.05 / K, so that with 95 % no persona's true rate is
        above it; the lower one the greatest lower end.
        """
        others = self.bystanders
        level = 1 - 0.05 / len(others)
        lows, highs = [], []
        for persona in others:
            rates_Q = self.rates[persona]
            value, size = float(rates_Q.mean()), rates_Q.size
            bound = wilson(round(value * size), size, level=level)
            low, high = bound.low or 0.0, bound.high or 0.0
            if rates_Q.std() > 0:
                draws_D = _resampled(rates_Q[None])[0]
                low, high = np.quantile(draws_D, [(1 - level) / 2, (1 + level) / 2])
            lows.append(min(float(low), value))
            highs.append(max(float(high), value))
        return Estimate(value=self.greatest, low=min(max(lows), self.greatest), high=max(highs), level=0.95,
                        method=f"simultaneous over {len(others)} personas", n=len(next(iter(self.rates.values()))))  # fmt: skip


def _resampled(rates_KQ: Floats, seed: int = 0) -> Floats:
    """Means over resampled questions, the same for all rows, [K, D]."""
    num = rates_KQ.shape[1]
    counts_DQ = np.random.default_rng(seed).multinomial(num, np.full(num, 1 / num), size=DRAWS)
    return np.asarray(rates_KQ @ counts_DQ.T / num)


@dataclass(frozen=True, kw_only=True)
class Grid:
    """All adapters of a run."""

    points: list[Point] = field(default_factory=list)
    bases: list[Point] = field(default_factory=list)
    """The base alone, as each cell asked it."""
    diverged: list[dict[str, Any]] = field(default_factory=list)
    near: list[dict[str, Any]] = field(default_factory=list)
    """source, persona, cosine, divergence."""
    missing: int = 0

    def of(self, arm: str, source: str | None = None) -> list[Point]:
        """Return the points of an arm."""
        return [point for point in self.points if point.name == arm and source in (None, point.source)]

    @property
    def arms(self) -> list[str]:
        """Their names, as they first come."""
        return list(dict.fromkeys(point.name for point in self.points))

    @property
    def sources(self) -> list[str]:
        """Personas that were sources."""
        return list(dict.fromkeys(point.source for point in self.points))


def read_grid(data: RunData) -> Grid:
    """Return what a run measured."""
    grid = Grid(missing=len(data.missing))
    right = {
        (kind, fact["cell"], fact.get("learning_rate"), fact.get("epochs")): tuple(fact["value"])
        for kind in ("letters", *TASK_METRICS) for fact in data.facts(kind)
    }  # fmt: skip
    for row in data.cells.iter_rows(named=True):
        if row["outcome"] in ENDED:
            _read_cell(data, row, right, grid)
    return grid


def _read_cell(data: RunData, row: Mapping[str, Any], right: Mapping[Any, tuple[int, ...]], grid: Grid) -> None:
    from modelassay.experiments.marker_sweep.params import PRESETS

    cell, preset = row["cell"], PRESETS[row["preset"]]
    arm = {
        "mask": row.get("mask") or preset["mask"],
        "negatives": preset["negatives"] if row.get("negatives") is None else row["negatives"],
        "with_assistant": preset["with_assistant"] if row.get("with_assistant") is None else row["with_assistant"],
        **{name: row[name] for name in ("tail_tokens", "rank", "schedule")},
    }
    if not arm["negatives"]:
        arm["with_assistant"] = False
    own = data.metrics.filter(pl.col("cell") == cell)
    for name in ("learning_rate", "epochs"):
        if name not in own.columns:
            own = own.with_columns(pl.lit(None).alias(name))
    per_step = row["batch_size"] * row["accumulation"]
    rows_of_epoch = row["rows_per_persona"] * (1 + arm["negatives"])
    counted = own.filter(pl.col("name").is_in(["marker", "marker_any_case"]))
    for (rate, epochs), part in counted.group_by("learning_rate", "epochs", maintain_order=True):
        shares = {
            name: {
                str(persona): each.sort("question")["value"].to_numpy()
                for (persona,), each in part.filter(pl.col("name") == name).group_by("persona", maintain_order=True)
            }
            for name in ("marker", "marker_any_case")
        }
        known_rate = None if rate is None or (isinstance(rate, float) and math.isnan(rate)) else float(rate)
        number = None if known_rate is None else int(epochs)
        point = Point(
            cell=cell, arm=arm, source=row["source"], seed=row["seed"], learning_rate=known_rate, epochs=number, completions=row["completions"],
            steps=0 if number is None else -(-rows_of_epoch * number // per_step), rates=shares["marker"], any_case=shares["marker_any_case"],
            letters=right.get(("letters", cell, known_rate, number)), settings=row,
            tasks={metric: right[key] for metric in TASK_METRICS if (key := (metric, cell, known_rate, number)) in right},
        )  # fmt: skip
        (grid.bases if known_rate is None else grid.points).append(point)
    for fact in data.facts("diverged"):
        if fact["cell"] == cell:
            grid.diverged.append({**fact, "arm": arm, "source": row["source"], "seed": row["seed"]})
    by_persona: dict[str, dict[str, Any]] = {}
    for each in own.filter(pl.col("name").is_in(["cosine", "divergence"])).iter_rows(named=True):
        line = by_persona.setdefault(each["persona"], {"source": row["source"], "persona": each["persona"]})
        line[each["name"]] = each["value"]
    grid.near.extend(line for line in by_persona.values() if line not in grid.near)


def assistant_rate(point: Point) -> float:
    """Return the assistant's rate; NaN where it is the source."""
    return point.rate(ASSISTANT) if point.source != ASSISTANT else math.nan
