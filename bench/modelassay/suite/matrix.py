"""From a matrix to its combinations, as GitHub Actions does it; and the layers of a cell, leaf over leaf.

Every combination of the axes' values, less what an ``exclude`` entry matches in part, then for each ``include`` entry: it
adds its keys to every original combination none of whose axis values it would change, or else is one more combination.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from modelassay.errors import did_you_mean
from modelassay.suite.located_yaml import JSON, Entry, Node
from modelassay.suite.problems import Problems
from modelassay.zoo.patterns import is_pattern, matching

MAX_CELLS = 256  # what GitHub allows; matrix.max_cells raises it
MAX_PRODUCT = 65_536
WORDS = ("include", "exclude", "max_cells")

Combination = dict[str, Entry]


def layered(*matrices: Node | None) -> dict[str, Entry]:
    """Return the keys of several matrices, later ones replacing earlier ones key by key."""
    return {name: entry for matrix in matrices if matrix is not None for name, entry in matrix.entries.items()}


def axes_of(matrix: Mapping[str, Entry]) -> dict[str, Entry]:
    """Return the axes of a matrix: every key that is not a word of the format."""
    return {name: entry for name, entry in matrix.items() if name not in WORDS}


def covers(one: str, other: str) -> bool:
    """Whether two dotted paths are the same or one lies within the other.

    >>> covers("walk", "walk.width"), covers("walk", "walker")
    (True, False)
    """
    return f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}.")


def expand(matrix: Mapping[str, Entry], top: Node, problems: Problems) -> list[Combination]:
    """Return the combinations of ``matrix`` in the order of its axes, the first axis outermost.

    No axes and no include gives one empty combination. What is wrong goes to ``problems``, and where it cannot be listed
    nothing comes back; ``top`` is the place of the whole.
    """
    axes = axes_of(matrix)
    include, exclude = (matrix[word].node.items if word in matrix else [] for word in ("include", "exclude"))
    if not _check_axes(axes, include, problems):
        return []
    product = math.prod(len(entry.node.items) for entry in axes.values())
    if product > MAX_PRODUCT:
        problems.add(top, f"{product:,} combinations before exclude; at most {MAX_PRODUCT:,} can be listed")
        return []
    combinations = list(_product(axes))
    combinations = _excluded(combinations, exclude, axes, problems)
    combinations = _included(combinations if axes else [], include, axes) if include else combinations
    limit = matrix["max_cells"].node if "max_cells" in matrix else replace(top, value=MAX_CELLS)
    if not combinations:
        problems.add(matrix["exclude"].key, "leaves no cell to run; exclude less, or include one")
    elif isinstance(limit.value, int) and len(combinations) > limit.value:
        problems.add(
            limit, f"the matrix has {len(combinations)} cells, max_cells is {limit.value}; shorten an axis or raise it"
        )
        return []
    return combinations


def _check_axes(axes: Mapping[str, Entry], include: Iterable[Node], problems: Problems) -> bool:
    """Note values given twice, and names that lie within one another: their order would decide. Whether there are none such."""
    sound = True
    for name, entry in axes.items():
        values = entry.node.items
        for index, item in enumerate(values):
            if any(_same(item.plain(), other.plain()) for other in values[:index]):
                problems.add(item, "given twice in this axis")
        if clash := next((other for other in axes if name.startswith(f"{other}.")), None):
            problems.add(entry.key, f"lies within the axis '{clash}'; make it part of that axis's values")
            sound = False
    for key in (entry.key for item in include for entry in item.entries.values()):
        name = str(key.value)
        if clash := next((axis for axis in axes if axis != name and covers(axis, name)), None):
            problems.add(key, f"overlaps the axis '{clash}', whose values include may not change")
            sound = False
    return sound


def _product(axes: Mapping[str, Entry]) -> Iterator[Combination]:
    choices = ([Entry(entry.key, item) for item in entry.node.items] for entry in axes.values())
    return (dict(zip(axes, choice, strict=True)) for choice in itertools.product(*choices))


def _excluded(
    combinations: list[Combination], exclude: Sequence[Node], axes: Mapping[str, Entry], problems: Problems
) -> list[Combination]:
    """Return the combinations that no entry of ``exclude`` matches."""
    kept = combinations
    for item in exclude:
        unknown = [entry for name, entry in item.entries.items() if name not in axes]
        for entry in unknown:
            axes_text = f"the axes are {', '.join(axes)}" if axes else "the matrix has no axes"
            problems.add(entry.key, f"not an axis{did_you_mean(str(entry.key.value), axes) or f'; {axes_text}'}")
        if unknown:
            continue
        if not any(_matches(item, combination) for combination in combinations) and _beside(item, axes):
            problems.add(item, "matches no combination; check its values against the axes")
        kept = [combination for combination in kept if not _matches(item, combination)]
    return kept


def _included(originals: list[Combination], include: Iterable[Node], axes: Mapping[str, Entry]) -> list[Combination]:
    """Return the combinations with those of ``include``: an added key may be changed by a later entry, an axis may not."""
    grown, added = [dict(original) for original in originals], []
    for item in include:
        fixed = replace(item, value={name: entry for name, entry in item.entries.items() if name in axes})
        hosts = [index for index, original in enumerate(originals) if _matches(fixed, original)]
        for index in hosts:
            grown[index].update({name: entry for name, entry in item.entries.items() if name not in axes})
        if not hosts:
            added.append(dict(item.entries))
    return grown + added


def _matches(item: Node, combination: Combination) -> bool:
    """Whether every key of ``item`` has its value in ``combination``."""
    return all(
        name in combination and _means(entry.node.plain(), combination[name].node.plain())
        for name, entry in item.entries.items()
    )


def _means(written: JSON, value: JSON) -> bool:
    """Whether ``value`` is what is ``written``, or among the models that a pattern means."""
    return value in matching(str(written)) if is_pattern(written) else _same(written, value)


def _beside(item: Node, axes: Mapping[str, Entry]) -> bool:
    """Whether the axes an exclude entry names stand in the same mapping as it: a profile's or -o's values may differ."""
    home = item.path.rpartition(".exclude")[0]
    return all((axes[name].key.file, axes[name].key.path) == (item.file, f"{home}.{name}") for name in item.entries)


def _same(one: JSON, other: JSON) -> bool:
    """Whether two plain values are equal; true is not 1, but 1 is 1.0."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[name], other[name]) for name in one)
    return one == other


def nested(path: str, entry: Entry) -> Node:
    """Return a mapping that holds ``entry`` at the dotted ``path``; every level stands where the entry's key stands."""
    *groups, leaf = path.split(".")
    node = replace(entry.key, value={leaf: entry})
    for name in reversed(groups):
        node = replace(entry.key, value={name: Entry(entry.key, node)})
    return node


def merge(base: Node, over: Node) -> Node:
    """Return ``base`` with the leaves of ``over`` on top; lists and scalars replace, mappings merge."""
    if not isinstance(base.value, dict) or not isinstance(over.value, dict):
        return over
    entries = dict(base.value)
    for name, entry in over.value.items():
        entries[name] = Entry(entry.key, merge(entries[name].node, entry.node)) if name in entries else entry
    return replace(base, value=entries)


def leaves(value: JSON, prefix: str = "") -> Iterator[str]:
    """Yield the dotted path of every leaf of plain data; lists and empty mappings are leaves.

    >>> list(leaves({"a": {"b": 1, "c": [2]}, "d": {}}))
    ['a.b', 'a.c', 'd']
    """
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from leaves(inner, f"{prefix}.{name}" if prefix else name)
    elif prefix:
        yield prefix
