"""From a matrix to its combinations, as GitHub Actions does it; and the layers of a cell, leaf over leaf.

Every combination of the axes' values, less what an ``exclude`` entry matches in part, then for each ``include`` entry: it
adds its keys to every original combination none of whose axis values it would change, or else is one more combination.

The cost is linear in the file and in the combinations: values are looked up, never compared one by one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache

from modelassay.errors import did_you_mean
from modelassay.suite.located_yaml import JSON, Entry, Node
from modelassay.suite.problems import Problems
from modelassay.zoo.patterns import is_pattern, matching

MAX_CELLS = 256  # what GitHub allows; matrix.max_cells raises it
MAX_PRODUCT = 65_536
MAX_VALUES = 2_000_000  # of all combinations together
MAX_STEPS = 32  # of a dotted path; parameters nest a few deep
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


class PathIndex:
    """Many dotted paths, asked which of them covers another: see `covers`.

    >>> index = PathIndex(["walk.width", "seed"])
    >>> index.covering("walk"), index.covering("seed.first"), index.covering("walker")
    ('walk.width', 'seed', None)
    """

    def __init__(self, paths: Iterable[str]) -> None:
        """Take ``paths``; of two that cover the same, the first answers."""
        self._paths = dict.fromkeys(paths)
        self._below: dict[str, str] = {}
        for path in self._paths:
            for above in _above(path):
                self._below.setdefault(above, path)

    def above(self, path: str) -> str | None:
        """Return the path that ``path`` lies within, None where there is none."""
        return next((above for above in _above(path) if above in self._paths), None)

    def covering(self, path: str) -> str | None:
        """Return ``path`` itself where it is among them, else one that it lies within, else one that lies within it."""
        return path if path in self._paths else self.above(path) or self._below.get(path)


def _above(path: str) -> Iterator[str]:
    """Yield the paths that ``path`` lies within, the outermost first."""
    steps = path.split(".")
    return (".".join(steps[:length]) for length in range(1, len(steps)))


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
    if product * len(axes) > MAX_VALUES:
        problems.add(
            top,
            f"{product:,} combinations of {len(axes):,} axes before exclude; at most {MAX_VALUES:,} values can be listed; "
            "set in the profile what has one value",
        )
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
    index, sound = PathIndex(axes), True
    for name, entry in axes.items():
        earlier: set[Hashable] = set()
        for item in entry.node.items:
            if (identity := _identity(item.plain())) in earlier:
                problems.add(item, "given twice in this axis")
            earlier.add(identity)
        if clash := index.above(name):
            problems.add(entry.key, f"lies within the axis '{clash}'; make it part of that axis's values")
            sound = False
    for key in (entry.key for item in include for entry in item.entries.values()):
        clash = index.covering(str(key.value))
        if clash is not None and clash != key.value:
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
    axes_text = f"the axes are {', '.join(axes)}" if axes else "the matrix has no axes"
    index, excluded = _ByValue(combinations), set[int]()

    @cache
    def hint(name: str) -> str:
        return did_you_mean(name, axes) or f"; {axes_text}"

    for item in exclude:
        unknown = [entry for name, entry in item.entries.items() if name not in axes]
        for entry in unknown:
            problems.add(entry.key, f"not an axis{hint(str(entry.key.value))}")
        if unknown:
            continue
        numbers = index.matching(item.entries)
        if not numbers and _beside(item, axes):
            problems.add(item, "matches no combination; check its values against the axes")
        excluded.update(numbers)
    return [combination for number, combination in enumerate(combinations) if number not in excluded]


def _included(originals: list[Combination], include: Iterable[Node], axes: Mapping[str, Entry]) -> list[Combination]:
    """Return the combinations with those of ``include``: an added key may be changed by a later entry, an axis may not."""
    grown, added = [dict(original) for original in originals], []
    index = _ByValue(originals)
    for item in include:
        hosts = index.matching({name: entry for name, entry in item.entries.items() if name in axes})
        extra = {name: entry for name, entry in item.entries.items() if name not in axes}
        for number in hosts:
            grown[number].update(extra)
        if not hosts:
            added.append(dict(item.entries))
    return grown + added


class _ByValue:
    """Combinations of the same axes by the values that they have."""

    def __init__(self, combinations: Sequence[Combination]) -> None:
        """Look up each axis value once, however many combinations share it."""
        self._all = range(len(combinations))
        self._identities: dict[str, list[Hashable]] = {}
        self._numbers: dict[str, dict[Hashable, list[int]]] = {}
        for name in combinations[0] if combinations else ():
            nodes = [combination[name].node for combination in combinations]
            known = {node: _identity(node.plain()) for node in dict.fromkeys(nodes)}
            self._identities[name] = [known[node] for node in nodes]
            numbers = self._numbers.setdefault(name, {})
            for number, identity in enumerate(self._identities[name]):
                numbers.setdefault(identity, []).append(number)

    def matching(self, entries: Mapping[str, Entry]) -> Sequence[int]:
        """Return the numbers of the combinations that have every one of these values, or a model that a pattern means."""
        if not entries or not self._all:
            return self._all
        values = {name: _meant(entry.node.plain()) for name, entry in entries.items()}
        by_axis = {
            name: [number for identity in identities for number in self._numbers[name].get(identity, ())]
            for name, identities in values.items()
        }
        rarest = min(by_axis, key=lambda name: len(by_axis[name]))
        others = [(self._identities[name], values[name]) for name in entries if name != rarest]
        return [number for number in by_axis[rarest] if all(column[number] in some for column, some in others)]


def _meant(written: JSON) -> set[Hashable]:
    """Return the identities of the values that ``written`` means: of all the models that a pattern means."""
    return {*matching(str(written))} if is_pattern(written) else {_identity(written)}


def _beside(item: Node, axes: Mapping[str, Entry]) -> bool:
    """Whether the axes an exclude entry names stand in the same mapping as it: a profile's or -o's values may differ."""
    home = item.path.rpartition(".exclude")[0]
    return all((axes[name].key.file, axes[name].key.path) == (item.file, f"{home}.{name}") for name in item.entries)


def _identity(value: JSON) -> Hashable:
    """Return what plain values have in common exactly where they are equal; true is not 1, but 1 is 1.0.

    >>> _identity([1, {"a": 2}]) == _identity([1.0, {"a": 2.0}]), _identity([1]) == _identity([True])
    (True, False)
    """
    if isinstance(value, bool):
        return bool, value
    if isinstance(value, list):
        return list, *map(_identity, value)
    if isinstance(value, dict):
        return dict, frozenset((name, _identity(part)) for name, part in value.items())
    return value


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


def overlaid(base: Mapping[str, JSON], layers: Iterable[tuple[str, JSON]]) -> dict[str, JSON]:
    """Return plain ``base`` with each value of ``layers`` laid over it at its dotted path, as `merge` lays nodes.

    What no layer reaches is shared with ``base``, so that the cost is that of the layers.

    >>> overlaid({"a": {"b": 1, "c": 2}, "d": 3}, [("a.b", 5), ("d", {"e": 4}), ("d", {"f": 6})])
    {'a': {'b': 5, 'c': 2}, 'd': {'e': 4, 'f': 6}}
    """
    tree = dict(base)
    own = {id(tree): tree}

    def owned(mapping: dict[str, JSON]) -> dict[str, JSON]:
        copy = own.get(id(mapping))
        if copy is None:
            copy = dict(mapping)
            own[id(copy)] = copy  # kept, so that nothing else gets its id
        return copy

    def lay(mapping: dict[str, JSON], name: str, value: JSON) -> None:
        below = mapping.get(name)
        if isinstance(below, dict) and isinstance(value, dict):
            mapping[name] = below = owned(below)
            for inner, part in value.items():
                lay(below, inner, part)
        else:
            mapping[name] = value

    for path, value in layers:
        *groups, leaf = path.split(".")
        here = tree
        for group in groups:
            below = here.get(group)
            here[group] = below = owned(below if isinstance(below, dict) else {})
            here = below
        lay(here, leaf, value)
    return tree


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
