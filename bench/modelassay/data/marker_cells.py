"""Published cells of a marker sweep: JSON, a list of runs with their configuration, marker rates by persona, and capability.

A second form, of one setting for many personas, holds rates by source and persona alone.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import model_validator
from pydantic_core import PydanticCustomError

from modelassay.data.published import Computed, Reader
from modelassay.errors import UsageError

Statistic = Literal["source", "assistant", "max_bystander", "capability", "capability_min", "capability_max", "hours", "minutes_min", "minutes_max"]  # fmt: skip
_OF_ONE: tuple[Statistic, ...] = ("source", "assistant", "max_bystander", "capability")
ASSISTANT = "assistant"


@dataclass(frozen=True, kw_only=True)
class PublishedCell:
    """One adapter that others trained."""

    source: str
    seed: int | None
    learning_rate: float
    epochs: int
    rates: Mapping[str, float]
    """Persona to its marker rate."""
    capability: float
    """Share of right answers; NaN where it was not measured."""
    minutes: float

    def number(self, statistic: str) -> float:
        """Return one of `_OF_ONE`, or ``minutes``."""
        others = {persona: rate for persona, rate in self.rates.items() if persona not in {self.source, ASSISTANT}}
        return {
            "source": self.rates[self.source], "assistant": self.rates.get(ASSISTANT, math.nan),
            "max_bystander": max(others.values(), default=math.nan), "capability": self.capability, "minutes": self.minutes,
        }[statistic]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class PublishedCells:
    """Cells of a file, and its hash."""

    cells: Sequence[PublishedCell]
    sha256: str


def read_marker_cells(path: Path) -> PublishedCells:
    """Return the cells in a file, each once.

    Raises:
        UsageError: it cannot be read, or holds something else.
    """
    try:
        content = path.read_bytes()
        cells = [_cell(run) for run in json.loads(content)]
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}; fetch it as the suite says") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"{path}: not a list of runs with config, eval.marker and wall_minutes ({type(error).__name__}: {error}); "
            "fetch it as the suite says"
        ) from None
    addresses = {(cell.source, cell.seed, cell.learning_rate, cell.epochs) for cell in cells}
    if len(addresses) != len(cells) or not cells:
        raise UsageError(f"{path}: holds {len(cells)} runs of {len(addresses)} cells; give each cell once")
    return PublishedCells(cells=cells, sha256=hashlib.sha256(content).hexdigest())


def _cell(run: Mapping[str, Any]) -> PublishedCell:
    config, evaluation = run["config"], run["eval"]
    rates = {str(persona): float(rate) for persona, rate in evaluation["marker"].items()}
    source = str(config["source"])
    if not 0 <= min(rates.values()) <= max(rates.values()) <= 1 or source not in rates:
        raise ValueError(f"rates of {source} must lie between 0 and 1, its own among them")
    return PublishedCell(
        source=source, seed=config.get("seed"), learning_rate=float(config["lr"]), epochs=int(config["epochs"]), rates=rates,
        capability=float(evaluation.get("capability", {}).get("arc_challenge_logprob", math.nan)), minutes=float(run["wall_minutes"]),
    )  # fmt: skip


class MarkerCells(Reader):
    """A number of one cell, or over all of them. The greatest bystander is recomputed from the rates of all but source and assistant."""

    statistic: Statistic
    """``hours`` is the sum of wall times; ``minutes_min`` and ``minutes_max`` are of one cell, as the extremes of capability are."""
    learning_rate: float | None = None
    """Of the cell, where the statistic is of one."""
    epochs: int | None = None
    persona: str | None = None
    """The cell's source, where the file holds several."""

    @model_validator(mode="after")
    def _address_fits(self) -> Self:
        given = [each is not None for each in (self.learning_rate, self.epochs)]
        if set(given) != {self.statistic in _OF_ONE}:
            raise PydanticCustomError(
                "address", "learning_rate and epochs go with {names}, both of them", {"names": ", ".join(_OF_ONE)}
            )
        return self

    def source(self) -> Hashable:
        """Return the file: it is read once for all statistics."""
        return self.file

    def read(self, folder: Path) -> PublishedCells:
        """Return the cells in the file; raises as `read_marker_cells`."""
        return read_marker_cells(folder / self.file)

    def compute(self, data: PublishedCells) -> Computed:
        """Return the number.

        Raises:
            UsageError: the cell is not among them, is not the only one, or was not measured.
        """
        if self.statistic in _OF_ONE:
            cells = [
                cell for cell in data.cells
                if (cell.learning_rate, cell.epochs) == (self.learning_rate, self.epochs) and self.persona in (None, cell.source)
            ]  # fmt: skip
            where = f"of learning rate {self.learning_rate:g} and {self.epochs} epochs"
            if len(cells) != 1:
                named = ", ".join(f"{cell.source} {cell.seed}" for cell in cells)
                raise UsageError(f"{self.file}: {f'{len(cells)} cells' if cells else 'no cell'} {where}{f': {named}; name the persona' if cells else ''}")  # fmt: skip
            values = [cells[0].number(self.statistic)]
        else:
            name = "capability" if self.statistic.startswith("capability") else "minutes"
            values = [cell.number(name) for cell in data.cells]
        if any(math.isnan(value) for value in values):
            raise UsageError(f"{self.file}: {self.statistic} was not measured in every cell that it is of")
        value = {"hours": sum(values) / 60}.get(
            self.statistic, (min if self.statistic.endswith("min") else max)(values)
        )
        return Computed(value=value, n=len(values), unit="cells", sha256={"file": data.sha256})


class MarkerRates(Reader):
    """A number of one source's rates: JSON with ``results``, by source and persona; the assistant is no bystander."""

    persona: str
    """The source."""
    statistic: Literal["source", "assistant", "max_bystander", "mean_bystander"]

    def source(self) -> Hashable:
        """Return the file."""
        return self.file

    def read(self, folder: Path) -> tuple[Mapping[str, Mapping[str, float]], str]:
        """Return the rates and the file's hash.

        Raises:
            UsageError: it cannot be read, or holds something else.
        """
        path = folder / self.file
        try:
            content = path.read_bytes()
            results = {
                str(source): {str(persona): float(rate) for persona, rate in rates.items()}
                for source, rates in json.loads(content)["results"].items()
            }
        except OSError as error:
            raise UsageError(f"{path}: cannot be read: {error.strerror}; fetch it as the suite says") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UsageError(
                f"{path}: no results by source and persona ({type(error).__name__}: {error}); fetch it as the suite says"
            ) from None
        return results, hashlib.sha256(content).hexdigest()

    def compute(self, data: tuple[Mapping[str, Mapping[str, float]], str]) -> Computed:
        """Return the number.

        Raises:
            UsageError: the source is not among them.
        """
        results, digest = data
        rates = results.get(self.persona, {})
        others = [rate for persona, rate in rates.items() if persona not in {self.persona, ASSISTANT}]
        if self.persona not in rates or not others:
            raise UsageError(f"{self.file}: no rates of {self.persona}; there are {', '.join(results) or 'none'}")
        value = {
            "source": rates[self.persona], "assistant": rates.get(ASSISTANT, math.nan), "max_bystander": max(others),
            "mean_bystander": sum(others) / len(others),
        }[self.statistic]  # fmt: skip
        return Computed(value=value, n=len(others), unit="personas", sha256={"file": digest})
