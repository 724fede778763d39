"""What a run recorded of families, ready to be counted: members, which of them are copies, and the strangers of each base."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from modelassay.experiments.downloads.statistics import Floats
from modelassay.models.reference import short_names
from modelassay.recording.tables import RunData
from modelassay.zoo.resolve import family_of

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
    """Why it was not measured; empty where it was."""
    relation: str
    created: str
    random_sample: bool
    """Whether it was drawn whatever its downloads."""
    most_downloaded: bool
    """Whether it was taken for having the most."""
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
        drawn = [member for member in everyone if member.random_sample]
        return {
            "earlier": drawn, "filtered": [member for member in drawn if self.passes(member)],
            "popular": [member for member in everyone if member.most_downloaded],
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


def families_of(data: RunData) -> list[Family]:
    """Return the families of a run in the order of its cells; cells that are not done yet are left out."""
    cells = [row for row in data.cells.iter_rows(named=True) if row["outcome"] == "done"]
    listings = {fact["cell"]: fact["value"] for fact in data.facts("listing")}
    overlaps, tabled = _overlaps(data), _tabled_strangers(data)
    members = _members(data, overlaps)
    copies = {row["cell"]: _copies(members[row["cell"]], listings.get(row["cell"])) for row in cells}
    roots = {row["cell"]: family_of(row["model"], row["family"]) or row["model"] for row in cells}
    families = []
    for name, row in zip(short_names([row["model"] for row in cells]), cells, strict=True):
        cell, listing = row["cell"], listings.get(row["cell"])
        kin = [other for other in roots if roots[other] == roots[cell]]
        relatives = {key for other in kin for member in members[other] for key in (member.name, member.weights) if key}
        unrelated = [(member, other) for other in roots if other not in kin for member in members[other]
                     if member.name not in copies[other] and not relatives.intersection((member.name, member.weights))]  # fmt: skip
        families.append(Family(
            name=name, base=row["model"], root=roots[cell], members=tuple(members[cell]), copies=copies[cell],
            more_than=int(row["more_than"]), threshold=row["threshold"], listing=_source(listing),
            strangers=_strangers(unrelated, overlaps.get(row["model"], {}), tabled.get(cell, ()), listing),
        ))  # fmt: skip
    return families


def _source(listing: Mapping[str, Any] | None) -> str:
    if listing is None:
        return "tables that others measured"
    return f"{listing['members']} models listed by {listing['endpoint']} at {listing['taken']} (listing {listing['digest']})"


def _overlaps(data: RunData) -> dict[str, dict[tuple[str, str, str], float]]:
    """Return base -> (cell, member, method) -> overlap."""
    overlaps: dict[str, dict[tuple[str, str, str], float]] = {}
    for base, cell, member, method, value in _rows(data, "overlap", "base", "cell", "member", "method", "value"):
        overlaps.setdefault(base, {})[cell, member, method] = float(value)
    return overlaps


def _rows(data: RunData, name: str, *columns: str) -> Iterable[tuple[Any, ...]]:
    """Return some columns of the metrics of a name; labels that nobody recorded have no column."""
    metrics = data.metrics.filter(pl.col("name") == name)
    return () if metrics.is_empty() else metrics.select(columns).iter_rows()


def _members(data: RunData, overlaps: Mapping[str, Mapping[tuple[str, str, str], float]]) -> dict[str, list[Compared]]:
    """Return the members by cell, none for a cell that recorded none."""
    bases = {row["cell"]: row["model"] for row in data.cells.iter_rows(named=True)}
    own: dict[tuple[str, str], dict[str, float]] = {}
    for base, values in overlaps.items():
        for (cell, member, method), value in values.items():
            if bases[cell] == base:
                own.setdefault((cell, member), {})[method] = value
    members: dict[str, list[Compared]] = {cell: [] for cell in bases}
    for fact in data.facts("member"):
        value, cell, name = fact["value"], fact["cell"], fact["member"]
        members[cell].append(Compared(
            name=name, downloads=value["downloads"], status=value["status"], reason=value["reason"],
            relation=value["relation"], created=value["created"] or "unknown",
            random_sample=value.get("random_sample", False), most_downloaded=value.get("most_downloaded", False),
            weights=value.get("weights"), tokenizer=value.get("tokenizer"), zero=value.get("zero", False),
            answers=value.get("answers"), overlaps=own.get((cell, name), {}),
        ))  # fmt: skip
    return members


def _tabled_strangers(data: RunData) -> dict[str, list[tuple[str, str, float]]]:
    """Return cell -> method, pool and overlap of the strangers that its tables hold."""
    strangers: dict[str, list[tuple[str, str, float]]] = {}
    for cell, method, tokenizer, value in _rows(data, "stranger", "cell", "method", "tokenizer", "value"):
        strangers.setdefault(cell, []).append((method, f"{tokenizer}-tokenizer", float(value)))
    return strangers


def _copies(members: Iterable[Compared], listing: Mapping[str, Any] | None) -> dict[str, str]:
    """Return which members have the weights of the base or of a member made before them (of equal age, with more downloads)."""
    first = {} if listing is None else {listing["weights"]: "its base"}
    copies = {}
    for member in sorted(members, key=lambda member: (member.created, -(member.downloads or 0), member.name)):
        if member.weights is not None and first.setdefault(member.weights, member.name) != member.name:
            copies[member.name] = first[member.weights]
    return copies


def _strangers(unrelated: Sequence[tuple[Compared, str]], overlaps: Mapping[tuple[str, str, str], float],
               tabled: Iterable[tuple[str, str, float]], listing: Mapping[str, Any] | None) -> dict[tuple[str, str], Floats]:  # fmt: skip
    """Return the overlaps with one base of the members of other families, each weights once, and of a table's strangers."""
    pools: dict[tuple[str, str], list[float]] = {}

    def add(method: str, pool: str, value: float) -> None:
        if np.isfinite(value):
            pools.setdefault((method, pool), []).append(value)
            pools.setdefault((method, "all"), []).append(value)

    keys: set[tuple[str, str]] = set()
    for member, cell in unrelated:
        same = listing is not None and member.tokenizer == listing["tokenizer"]
        for method in member.overlaps:
            key = (method, member.weights or member.name)
            if key not in keys and (cell, member.name, method) in overlaps:
                keys.add(key)
                add(method, POOLS[0] if same else POOLS[1], overlaps[cell, member.name, method])
    for method, pool, value in tabled:
        add(method, pool, value)
    return {key: np.array(values) for key, values in pools.items()}
