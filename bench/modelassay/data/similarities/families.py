"""Reading the file that says which of a table's models belong together."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from modelassay.data.strict_text import MAX_NAME, csv_rows, decode, more, shown, strict_json
from modelassay.errors import UsageError, did_you_mean
from modelassay.models.gate import one_line

# N = number of names


def read_families(file: Path, data: bytes) -> dict[str, str | None]:
    """Return the family of each name, None where it is not known.

    A CSV has columns name (or model) and cluster (or family); a JSON is a mapping of names to families, a mapping of
    families to lists of names, or a list of such lists.

    Raises:
        UsageError: not such a file, or a name that stands in it twice.
    """
    families: dict[str, str | None] = {}
    members = _json_members if file.suffix.lower() == ".json" else _csv_members
    for where, name, family in members(file, decode(file, data)):
        if not name:
            raise UsageError(f"{one_line(file)}{where}: a name is missing")
        if len(name) > MAX_NAME:
            raise UsageError(f"{one_line(file)}{where}: {shown(name)}: a name of more than {MAX_NAME} characters")
        if name in families:
            raise UsageError(f"{one_line(file)}{where}: {shown(name)} is listed twice; a model has one family")
        families[name] = family or None
    return families


def _csv_members(file: Path, text: str) -> Iterator[tuple[str, str, str]]:
    rows = csv_rows(file, text)
    titles = [title.lower() for title in rows[0][1]]
    name = next((title for title in ("name", "model") if title in titles), None)
    family = next((title for title in ("family", "cluster") if title in titles), None)
    if name is None or family is None:
        raise UsageError(
            f"{one_line(file)}:{rows[0][0]}: columns {', '.join(map(shown, titles[:4]))}: the first line must be name,cluster"
        )
    for line, cells in rows[1:]:
        if len(cells) != len(titles):
            raise UsageError(f"{one_line(file)}:{line}: {len(cells)} cells, the first line has {len(titles)}")
        yield f":{line}", cells[titles.index(name)], cells[titles.index(family)]


def _json_members(file: Path, text: str) -> Iterator[tuple[str, str, str]]:
    data = strict_json(file, text)
    if isinstance(data, dict) and all(not isinstance(value, list | dict) for value in data.values()):
        yield from (("", name, "" if family is None else str(family)) for name, family in data.items())
        return
    groups = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    if not isinstance(data, dict | list):
        raise UsageError(f"{one_line(file)}: must be a mapping of names to families or a list of lists of names")
    for family, members in groups:
        if not isinstance(members, list) or not all(isinstance(name, str) for name in members):
            raise UsageError(
                f"{one_line(file)}: family {shown(family)} must be a list of names, got {shown(json.dumps(members))}"
            )
        yield from (("", name, str(family)) for name in members)


def family_of(names: Sequence[str], families: Mapping[str, str | None], file: Path, source: Path) -> list[str | None]:
    """Return the family of each of ``names``; a '/' may have become a '_', as it must in a file's name.

    Raises:
        UsageError: a name has no family, or two names of the families become one.
    """
    folded: dict[str, list[str]] = {}
    for name in families:
        folded.setdefault(name.replace("/", "_"), []).append(name)
    missing = [name for name in names if name not in families and len(folded.get(name.replace("/", "_"), ())) != 1]
    if missing:
        hint = did_you_mean(missing[0], families) or "; add it, with an empty cluster if its family is not known"
        raise UsageError(
            f"{one_line(source)}: no family for {shown(missing[0])}{more(missing)} of {one_line(file)}{hint}"
        )
    return [families[name] if name in families else families[folded[name.replace("/", "_")][0]] for name in names]


def related_by(families: Sequence[str | None]) -> NDArray[np.int8]:
    """Return [N, N]: 1 for one family, 0 for two, -1 where either is not known."""
    number = {family: index for index, family in enumerate(dict.fromkeys(families))}
    index_N = np.array([number[family] for family in families], dtype=np.int64)
    known_N = np.array([family is not None for family in families], dtype=bool)
    same_NN = (index_N[:, None] == index_N[None, :]).astype(np.int8)
    return np.where(known_N[:, None] & known_N[None, :], same_NN, np.int8(-1))
