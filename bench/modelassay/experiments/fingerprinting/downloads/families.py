"""What a run recorded of families, ready to be counted: members, which of them are copies, and the strangers of each base."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from modelassay.experiments.fingerprinting.downloads.statistics import Floats
from modelassay.experiments.fingerprinting.measure import family_of, short_names
from modelassay.record import Tables

POOLS = ("same-tokenizer", "other-tokenizer", "all")
"""Which strangers a base is told from: those whose tokens have its ids, those whose tokens have not, both."""


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One member of a family, as it was listed and measured."""

    name: str
    downloads: float | None
    """None where they are not known; such a member is on neither side of the filter."""
    status: str
    reason: str
    relation: str
    created: str
    earlier: bool
    popular: bool
    weights: str | None
    """Key of its weights; None where they are not known."""
    tokenizer: str | None
    zero: bool
    """Whether a table gives it 0 downloads, which may mean that it was gone; they are then not known."""
    answers: str | None
    """Key of its overlaps per prompt, of a table that has them."""
    overlaps: Mapping[str, float]
    """With its own base, by method; NaN where a method cannot compare the two."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """A base and its members."""

    name: str
    """What tables and claims call the base."""
    base: str
    root: str
    """The root that the base is known to descend from; bases of one root are no strangers to each other."""
    members: tuple[Compared, ...]
    copies: Mapping[str, str]
    """Measured members whose weights are the base's or an earlier member's: the name of what they copy."""
    more_than: int
    threshold: float | None
    """The published one."""
    listing: str
    """Where the list of members comes from, in words."""
    strangers: Mapping[tuple[str, str], Floats]
    """Overlaps of unrelated models with the base, by method and pool."""

    def counted(self, method: str) -> list[Compared]:
        """Return the measured members that are no copies and that ``method`` could compare."""
        return [member for member in self.members
                if member.name not in self.copies and np.isfinite(member.overlaps.get(method, math.nan))]  # fmt: skip

    def cohorts(self, method: str) -> dict[str, list[Compared]]:
        """Return the published cohorts: drawn whatever their downloads, those of them that pass the filter, the most popular.

        ``before`` and ``after`` are all of them, and those that pass.
        """
        everyone = self.counted(method)
        earlier = [member for member in everyone if member.earlier]
        return {
            "earlier": earlier, "filtered": [member for member in earlier if self.passes(member)],
            "popular": [member for member in everyone if member.popular],
            "before": everyone, "after": [member for member in everyone if self.passes(member)],
        }  # fmt: skip

    def passes(self, member: Compared) -> bool:
        """Whether a member's downloads are known and more than the filter asks for."""
        return member.downloads is not None and member.downloads > self.more_than

    def fails(self, member: Compared) -> bool:
        """Whether a member's downloads are known and not more than that."""
        return member.downloads is not None and member.downloads <= self.more_than


def overlaps_of(members: Iterable[Compared], method: str) -> Floats:
    """Return the overlaps of some members."""
    return np.array([member.overlaps[method] for member in members], dtype=np.float64)


def families_of(tables: Tables) -> list[Family]:
    """Return the families of a run in the order of its cells; cells that are not done yet are left out."""
    cells = [row for row in tables.cells.iter_rows(named=True) if row["outcome"] == "done"]
    by_cell: dict[str, list[dict[str, Any]]] = {row["cell"]: [] for row in cells}
    for row in tables.metrics.iter_rows(named=True):
        if row["cell"] in by_cell:
            by_cell[row["cell"]].append(row)
    names = short_names([row["model"] for row in cells])
    recorded = {row["cell"]: _members(row["model"], by_cell[row["cell"]]) for row in cells}
    roots = {row["cell"]: family_of(row["model"], row["family"]) or row["model"] for row in cells}
    copies = {row["cell"]: _copies(recorded[row["cell"]], _about(by_cell[row["cell"]])) for row in cells}
    found = []
    for name, row in zip(names, cells, strict=True):
        cell, about = row["cell"], _about(by_cell[row["cell"]])
        kin = [other for other in by_cell if roots[other] == roots[cell]]
        ours = {
            known for other in kin for member in recorded[other] for known in (member.name, member.weights) if known
        }
        theirs = [(entry, other) for other in by_cell if other not in kin for entry in recorded[other]
                  if entry.name not in copies[other] and not ours.intersection((entry.name, entry.weights))]  # fmt: skip
        elsewhere = {(str(entry["method"]), entry["cell"], entry["member"]): float(entry["value"])
                     for rows in by_cell.values() for entry in rows
                     if entry["name"] == "overlap" and entry.get("base") == row["model"]}  # fmt: skip
        found.append(Family(
            name=name, base=row["model"], root=roots[cell], members=tuple(recorded[cell]), copies=copies[cell],
            more_than=int(row["members.more_than"]), threshold=row["members.threshold"], listing=_listing(about),
            strangers=_strangers(theirs, elsewhere, by_cell[cell], about),
        ))  # fmt: skip
    return found


def _about(rows: Iterable[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    return next((row for row in rows if row["name"] == "listing"), None)


def _listing(about: Mapping[str, Any] | None) -> str:
    if about is None:
        return "tables that others measured"
    return f"{about['value']:.0f} models listed by {about['endpoint']} at {about['taken']} (listing {about['digest']})"


def _members(base: str, rows: Sequence[Mapping[str, Any]]) -> list[Compared]:
    overlaps: dict[str, dict[str, float]] = {}
    for row in rows:
        if row["name"] == "overlap" and row.get("base") in (None, base):
            overlaps.setdefault(row["member"], {})[row["method"]] = float(row["value"])
    return [
        Compared(
            name=row["member"], downloads=None if math.isnan(row["value"]) else row["value"], status=row["status"],
            reason=row["reason"], relation=row["relation"], created=row["created"], earlier=row.get("earlier") == 1,
            popular=row.get("popular") == 1, weights=row.get("weights"), tokenizer=row.get("tokenizer"),
            zero=row.get("zero") == 1, answers=row.get("answers"), overlaps=overlaps.get(row["member"], {}),
        )
        for row in rows if row["name"] == "member"
    ]  # fmt: skip


def _copies(members: Iterable[Compared], about: Mapping[str, Any] | None) -> dict[str, str]:
    """Return which members have the weights of the base or of a member made before them (of equal age, with more downloads)."""
    first = {} if about is None else {about["weights"]: "its base"}
    copies = {}
    for member in sorted(members, key=lambda member: (member.created, -(member.downloads or 0), member.name)):
        if member.weights is not None and first.setdefault(member.weights, member.name) != member.name:
            copies[member.name] = first[member.weights]
    return copies


def _strangers(theirs: Sequence[tuple[Compared, str]], elsewhere: Mapping[tuple[str, str, str], float],
               own: Iterable[Mapping[str, Any]], about: Mapping[str, Any] | None) -> dict[tuple[str, str], Floats]:  # fmt: skip
    """Return the overlaps with one base of the members of other families, each weights once, and of a table's strangers."""
    pools: dict[tuple[str, str], list[float]] = {}

    def add(method: str, pool: str, value: float) -> None:
        if np.isfinite(value):
            pools.setdefault((method, pool), []).append(value)
            pools.setdefault((method, "all"), []).append(value)

    seen: set[tuple[str, str]] = set()
    for member, cell in theirs:
        same = about is not None and member.tokenizer == about["tokenizer"]
        for method in member.overlaps:
            key = (method, member.weights or member.name)
            if key not in seen and (method, cell, member.name) in elsewhere:
                seen.add(key)
                add(method, POOLS[0] if same else POOLS[1], elsewhere[method, cell, member.name])
    for row in own:
        if row["name"] == "stranger":
            add(row["method"], f"{row['tokenizer']}-tokenizer", float(row["value"]))
    return {key: np.array(values) for key, values in pools.items()}


def asks_for_families(tables: Tables) -> bool:
    """Whether the run's cells compare families; a run does so in all its cells or in none."""
    return "members.more_than" in tables.cells.columns and bool(tables.cells["members.more_than"].is_not_null().any())


def mixed(tables: Tables) -> list[str]:
    """Return the models of cells that compare no family, in a run in which others do."""
    return [str(model) for model in tables.cells.filter(pl.col("members.more_than").is_null())["model"]]
