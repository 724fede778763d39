"""Published curves of overlap over training steps: CSV with a column of steps and one of values."""

from __future__ import annotations

import csv
import hashlib
import io
import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from pydantic import model_validator
from pydantic_core import PydanticCustomError

from modelassay.data.published import Computed, Reader, Text
from modelassay.errors import UsageError

Statistic = Literal["at", "min", "argmin", "drop", "first_below", "gap_mean", "gap_max", "gap_at"]
_WITH_LEVEL: tuple[Statistic, ...] = ("at", "first_below", "gap_at")
_OF_TWO: tuple[Statistic, ...] = ("gap_mean", "gap_max", "gap_at")
_VALUES = ("avg_overlap_ratio", "overlap", "value")


@dataclass(frozen=True, kw_only=True)
class PublishedCurve:
    """Values by step."""

    values: Mapping[float, float]
    sha256: str


class OverlapCurve(Reader):
    """A curve, and the statistic of it that is meant; with ``other``, of the distance of two."""

    reader: Literal["overlap-curve"]
    """CSV with columns ``step`` and ``avg_overlap_ratio`` (or ``overlap``, ``value``)."""
    other: Text | None = None
    """A second curve, relative to the suite's file, of which the distance is meant."""
    statistic: Statistic
    """The value at a step, the least, the step of the least, first less last, the first step below a level; or the distance's mean, largest, at a step."""
    at: float | None = None
    """Step of `at` and `gap_at`, level of `first_below`; the others have none."""

    @model_validator(mode="after")
    def _fits_the_statistic(self) -> Self:
        if (self.statistic in _WITH_LEVEL) != (self.at is not None):
            problem = "needs 'at'" if self.at is None else "has no 'at'; leave it out"
            raise PydanticCustomError(
                "statistic", "{problem}", {"problem": f"statistic '{self.statistic}' {problem}", "field": "at"}
            )
        if (self.statistic in _OF_TWO) != (self.other is not None):
            problem = "needs 'other'" if self.other is None else "has no 'other'; leave it out"
            raise PydanticCustomError(
                "statistic", "{problem}", {"problem": f"statistic '{self.statistic}' {problem}", "field": "other"}
            )
        return self

    def files(self, folder: Path) -> list[Path]:
        """Return the curve, and the other where there is one."""
        return [folder / name for name in (self.file, self.other) if name is not None]

    def source(self) -> Hashable:
        """Return the files."""
        return (self.file, self.other)

    def read(self, folder: Path) -> list[PublishedCurve]:
        """Return the curves below ``folder``.

        Raises:
            UsageError: One cannot be read; the message begins with file and place.
        """
        return [read_curve(path) for path in self.files(folder)]

    def compute(self, data: list[PublishedCurve]) -> Computed:
        """Return the statistic and the number of steps it rests on.

        Raises:
            UsageError: The curve has no such step, or the two have none in common.
        """
        curve = dict(data[0].values)
        if len(data) == 2:
            curve = {step: abs(value - data[1].values[step]) for step, value in curve.items() if step in data[1].values}
            if not curve:
                raise UsageError(f"{self.file}: has no step in common with {self.other}")
        hashes = dict(zip(("file", "other"), (each.sha256 for each in data), strict=False))
        return Computed(value=self._statistic(curve), n=len(curve), unit="steps", sha256=hashes)

    def _statistic(self, curve: Mapping[float, float]) -> float:
        steps = sorted(curve)
        match self.statistic:
            case "at" | "gap_at":
                if self.at is None or self.at not in curve:
                    raise UsageError(
                        f"{self.file}: has no step {self.at}; its steps go from {steps[0]:g} to {steps[-1]:g}"
                    )
                return curve[self.at]
            case "min":
                return min(curve.values())
            case "argmin":
                return min(steps, key=lambda step: curve[step])
            case "drop":
                return curve[steps[0]] - curve[steps[-1]]
            case "first_below":
                return next((step for step in steps if curve[step] < (self.at or 0.0)), math.inf)
            case "gap_mean":
                return math.fsum(curve.values()) / len(curve)
            case "gap_max":
                return max(curve.values())


def read_curve(path: Path) -> PublishedCurve:
    """Read a published curve.

    Raises:
        UsageError: it cannot be read, or a row is not two finite numbers, or a step comes twice.
    """
    try:
        content = path.read_bytes()
        text = content.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read as text: {error}") from error
    rows = csv.DictReader(io.StringIO(text))
    names = rows.fieldnames or []
    column = next((name for name in _VALUES if name in names), None)
    if column is None or "step" not in names:
        raise UsageError(
            f"{path}:1: needs a column step and one of {', '.join(_VALUES)}, got {', '.join(names) or 'nothing'}"
        )
    values: dict[float, float] = {}
    for row in rows:
        try:
            step, value = float(row["step"]), float(row[column])
        except (TypeError, ValueError):
            raise UsageError(
                f"{path}:{rows.line_num}: needs two numbers, got {row['step']!r} and {row[column]!r}"
            ) from None
        if not (math.isfinite(step) and math.isfinite(value)):
            raise UsageError(f"{path}:{rows.line_num}: needs finite numbers, got {step} and {value}")
        if step in values:
            raise UsageError(f"{path}:{rows.line_num}: step {step:g} comes twice")
        values[step] = value
    if not values:
        raise UsageError(f"{path}: holds no step")
    return PublishedCurve(values=values, sha256=hashlib.sha256(content).hexdigest())
