"""What the cells of a run recorded, as curves."""

# P = prompts, T = measured steps

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from modelassay.experiments.sft_drift.params import MAIN, PRECISIONS
from modelassay.recording.tables import RunData

Floats = NDArray[np.float64]
PROMPTED = ("overlap", "overlap_exact", "kl_forward")
PREFERRED = ("en", "ja")
"""The languages that are compared, where a run has them."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One training as it was measured."""

    cell: str
    arm: str
    language: str
    seed: int
    text: str
    """Its name."""
    digest: str
    """Of its tokens: texts of one digest are one text."""
    model: str
    precision: str
    bits: int
    """Of a trained weight."""
    steps_T: Floats
    by_prompt: dict[str, Floats]
    """Name to [P, T] of `PROMPTED`."""
    by_step: dict[str, dict[int, float]]
    """Name to step to value of everything else that has a step."""
    once: dict[str, float]
    ended: str
    every: int

    def mean(self, name: str = "overlap") -> Floats:
        """Mean over prompts at each step, [T]."""
        result: Floats = self.by_prompt[name].mean(axis=0)
        return result

    @property
    def is_whole(self) -> bool:
        """Whether all of it is finite."""
        return bool(np.isfinite(self.by_prompt["overlap"]).all())

    def last(self, name: str) -> float:
        """The last value of what is measured at some steps; NaN where it never was."""
        values = self.by_step.get(name, {})
        return values[max(values)] if values else np.nan


@dataclass(frozen=True, kw_only=True)
class Drifts:
    """All curves of a run, and what is missing."""

    curves: list[Curve] = field(default_factory=list)
    languages: tuple[str, ...] = ()

    def of(self, arm: str, language: str | None = None) -> list[Curve]:
        """Return the curves of one arm, by language and seed."""
        chosen = [curve for curve in self.curves if curve.arm == arm and language in {None, curve.language}]
        return sorted(chosen, key=lambda curve: (curve.language, curve.seed))

    @property
    def arms(self) -> list[str]:
        """Arms in the order of the suite."""
        return list(dict.fromkeys(curve.arm for curve in self.curves))

    def text_arms(self) -> list[str]:
        """Return the arms that differ from the main one in their text alone."""
        main = next(iter(self.of(MAIN)), None)
        if main is None:
            return []
        alike = [
            arm for arm in self.arms
            if (first := self.of(arm)[0]).model == main.model and (arm == MAIN or (first.text != main.text and arm == first.text))
        ]  # fmt: skip
        digests: set[tuple[str, ...]] = set()
        distinct = []
        for arm in alike:
            key = tuple(sorted({curve.digest for curve in self.of(arm)}))
            if key not in digests:
                distinct.append(arm)
            digests.add(key)
        return distinct


def read_curves(tables: RunData) -> Drifts:
    """Return the curves of the cells that have ended."""
    facts = {kind: {fact["cell"]: fact["value"] for fact in tables.facts(kind)} for kind in ("text", "ended")}
    frames = {str(cell): part for (cell,), part in tables.metrics.group_by("cell", maintain_order=True)}
    curves = []
    for row in tables.cells.iter_rows(named=True):
        if row["cell"] in frames and row["cell"] in facts["ended"]:
            curves.append(_curve(row, frames[row["cell"]], facts["text"][row["cell"]], facts["ended"][row["cell"]]))
    present = dict.fromkeys(curve.language for curve in curves)
    ordered = [*(name for name in PREFERRED if name in present), *(name for name in present if name not in PREFERRED)]
    return Drifts(curves=curves, languages=tuple(ordered))


def _setting(row: dict[str, Any], name: str) -> Any:
    """What holds in a cell's arm."""
    changed = row.get(f"arms.{row['arm']}.{name}")
    return row[name] if changed is None else changed


def _curve(row: dict[str, Any], frame: pl.DataFrame, digest: str, ended: str) -> Curve:
    by_prompt: dict[str, Floats] = {}
    steps_T = np.zeros(0)
    for name in PROMPTED:
        part = frame.filter(pl.col("name") == name).sort("prompt", "step")
        steps_T = part["step"].unique().sort().to_numpy().astype(np.float64)
        by_prompt[name] = part["value"].to_numpy().astype(np.float64).reshape(-1, len(steps_T))
    by_step: dict[str, dict[int, float]] = {}
    once: dict[str, float] = {}
    for line in frame.filter(~pl.col("name").is_in(PROMPTED)).iter_rows(named=True):
        if line["name"] == "distance":
            by_step.setdefault(f"distance {line['layer']}", {})[line["step"]] = line["value"]
        elif line["step"] is None:
            once[line["name"]] = line["value"]
        else:
            by_step.setdefault(line["name"], {})[line["step"]] = line["value"]
    precision = _setting(row, "precision")
    weights = str(PRECISIONS[precision].get("weights", "float32"))
    return Curve(
        cell=row["cell"], arm=row["arm"], language=row["language"], seed=row["seed"], text=_setting(row, "text"), digest=digest,
        model=_setting(row, "model"), precision=precision, bits=32 if weights == "float32" else 16, steps_T=steps_T,
        by_prompt=by_prompt, by_step=by_step, once=once, ended=ended, every=_setting(row, "every"),
    )  # fmt: skip


def paired(one: Sequence[Curve], other: Sequence[Curve], *, by_language: bool = False) -> list[tuple[Curve, Curve]]:
    """Return the curves of two lists that have a seed (and a language) in common, in its order."""

    def key(curve: Curve) -> tuple[int, str]:
        return curve.seed, "" if by_language else curve.language

    others = {key(curve): curve for curve in other}
    return [(curve, others[key(curve)]) for curve in sorted(one, key=key) if key(curve) in others]
