"""Published tables of similarities, with families that say which models are related.

``table`` and ``families`` read one, ``statistics`` says what is in it; this module is what suites name.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self, TypeAlias

from pydantic import model_validator
from pydantic_core import PydanticCustomError

from modelassay.data.published import Computed, Reader, Text

if TYPE_CHECKING:  # NumPy is loaded only where a table is at hand
    from modelassay.data.similarities.table import Similarities

Statistic: TypeAlias = Literal["quantile", "median", "max", "mean", "share_above", "auroc", "tpr_at_fpr"]
_LEVELS = {"quantile": (0.0, 1.0), "share_above": (-math.inf, math.inf), "tpr_at_fpr": (0.0, 1.0)}
_OF_BOTH_KINDS = {"auroc", "tpr_at_fpr"}


class SimilarityTable(Reader):
    """A table of similarities, and the statistic of it that is meant; computed wherever the claim is shown."""

    reader: Literal["similarities"]
    """CSV or JSON of pairs of models."""
    format: Literal["matrix", "pairs"] | None = None
    """A square matrix or one pair per line; seen from the file if not given."""
    families: Text | None = None
    """CSV (name, cluster) or JSON that says which models are related, relative to the suite's file."""
    statistic: Statistic
    """What is computed."""
    at: float | None = None
    """Level of `quantile`, score of `share_above`, false-positive rate of `tpr_at_fpr`; the others have none."""
    pairs: Literal["unrelated", "related", "all"] = "unrelated"
    """The pairs it is computed over; `auroc` and `tpr_at_fpr` set related against unrelated ones."""

    @model_validator(mode="after")
    def _level_fits_the_statistic(self) -> Self:
        """A level is set exactly where the statistic has one, and lies in its range."""
        if (self.statistic in _LEVELS) != (self.at is not None):
            problem = "needs 'at'" if self.at is None else "has no 'at'; leave it out"
            raise self._error("at", f"statistic '{self.statistic}' {problem}")
        low, high = _LEVELS.get(self.statistic, (0.0, 0.0))
        if self.at is not None and not low <= self.at <= high:
            raise self._error("at", f"must lie between {low:g} and {high:g}")
        if self.statistic == "tpr_at_fpr" and self.at == 0:
            raise self._error("at", "must be above 0")
        if self.statistic in _OF_BOTH_KINDS and self.pairs != "unrelated":
            raise self._error(
                "pairs", f"statistic '{self.statistic}' sets related pairs against unrelated ones; leave it out"
            )
        return self

    @staticmethod
    def _error(field: str, problem: str) -> PydanticCustomError:
        return PydanticCustomError("statistic", "{problem}", {"problem": problem, "field": field})

    def files(self, folder: Path) -> list[Path]:
        """Return the table, and its families where there are some."""
        return [folder / name for name in (self.file, self.families) if name is not None]

    def source(self) -> Hashable:
        """Return the files and their format: statistics of one table share the reading."""
        return (self.file, self.format, self.families)

    def read(self, folder: Path) -> Similarities:
        """Return the table below ``folder``.

        Raises:
            UsageError: It cannot be read; the message begins with file and place.
        """
        from modelassay.data.similarities.table import read_similarities

        families = None if self.families is None else folder / self.families
        return read_similarities(folder / self.file, form=self.format, families=families)

    def compute(self, data: Similarities) -> Computed:
        """Return the statistic and the number of pairs it rests on.

        Raises:
            UsageError: The table has no pairs of the kind that it needs.
        """
        from modelassay.data.similarities.statistics import compute

        value, num_pairs = compute(data, self.statistic, at=self.at, pairs=self.pairs)
        hashes = {"file": data.sha256}
        if data.families_sha256 is not None:
            hashes["families"] = data.families_sha256
        return Computed(value=value, n=num_pairs, unit="pairs", sha256=hashes)

    def worded(self, value: float) -> str:
        """Return ``value`` with what it is, where it is not simply a score.

        >>> table = SimilarityTable(reader="similarities", file="x.csv", statistic="share_above", at=0.9)
        >>> table.worded(0.023)
        '2.3 % above 0.9'
        """
        match self.statistic:
            case "share_above":
                return f"{100 * value:.3g} % above {self.at:g}"
            case "auroc":
                return f"AUROC {value:.3f}"
            case "tpr_at_fpr":
                return f"TPR {value:.3f} at {100 * (self.at or 0):g} % FPR"
            case _:
                return super().worded(value)
