"""A probabilistic context-free grammar: what a rule file means, how it derives a sentence, and how it recognises one.

A rule file is text: a symbol, a colon, its alternatives with ``|`` between them (a line that begins with one continues
the line before), each with an optional weight before ``*`` (1 if absent)::

    Sentence      : 3* Clause.{n} . | Clause.{n} and Clause.{m} .
    Clause.{n}    : the Noun.{n} Verb.{n}

A name that begins with an ASCII capital is a symbol (a rule or a word class), anything else is a word. ``{n}`` is a
feature: the rule stands for one rule per value, and where only the right side has it for one alternative per value.
Agreement is nothing but the same letter twice. No right side may begin with its own symbol, directly or through others
(no left recursion), and no symbol derives nothing: that keeps recognition a plain memoised descent.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

_CONTINUATION = re.compile(r"\n\s*\|")
_FEATURE = re.compile(r"\{(\w+)\}")

Units = tuple[str, ...]
_Trie = dict[str, "_Trie"]
_END = ""


@dataclass(frozen=True, kw_only=True)
class Production:
    """One alternative of a rule."""

    weight: float
    """Relative probability among the alternatives that still fit the depth left."""
    symbols: tuple[str, ...]
    """Rules, word classes and words, in order; never empty."""


@dataclass(frozen=True, kw_only=True)
class Grammar:
    """A checked grammar; made by `compile_grammar`."""

    rules: Mapping[str, tuple[Production, ...]]
    words: Mapping[str, tuple[str, ...]]
    """Word class -> its words, most frequent first; a word that a rule names is a class of itself."""
    heights: Mapping[str, int]
    """Symbol -> height of its lowest derivation tree (0 for a word class); what a depth limit is compared with."""
    split: Callable[[str], Units]
    """Text -> the units recognition steps over: words in English, characters in Japanese."""
    _tries: Mapping[str, _Trie] = field(repr=False)
    """Word class -> its words by units."""
    _first: Mapping[str, frozenset[str]] = field(repr=False)
    """Symbol -> the units that can begin it."""

    def choices(self, symbol: str, depth: int) -> Sequence[Production]:
        """Return the alternatives whose lowest tree fits in ``depth`` levels; the lowest ones where none does."""
        productions = self.rules[symbol]
        heights = [max(self.heights[part] for part in production.symbols) + 1 for production in productions]
        limit = max(depth, min(heights))
        return [production for production, height in zip(productions, heights, strict=True) if height <= limit]

    def derives(self, symbol: str, units: Units) -> bool:
        """Return whether ``symbol`` derives exactly these units.

        Memoised descent over (symbol, position) -> set of end positions, so overlapping words are all followed. Costs
        O(rules x length^2) at worst; in practice the first unit rules nearly everything out.
        """
        memo: dict[tuple[str, int], frozenset[int]] = {}

        def ends(part: str, start: int) -> frozenset[int]:
            if start >= len(units) or units[start] not in self._first[part]:
                return frozenset()
            key = (part, start)
            if key not in memo:
                memo[key] = self._word_ends(part, units, start) if part in self._tries else rule_ends(part, start)
            return memo[key]

        def rule_ends(rule: str, start: int) -> frozenset[int]:
            after: set[int] = set()
            for production in self.rules[rule]:
                positions = {start}
                for part in production.symbols:
                    positions = {end for position in positions for end in ends(part, position)}
                    if not positions:
                        break
                after |= positions
            return frozenset(after)

        return len(units) in ends(symbol, 0)

    def _word_ends(self, word_class: str, units: Units, start: int) -> frozenset[int]:
        node, ends = self._tries[word_class], set()
        for position in range(start, len(units)):
            if (following := node.get(units[position])) is None:
                break
            node = following
            if _END in node:
                ends.add(position + 1)
        return frozenset(ends)


def compile_grammar(rules: str, *, features: Mapping[str, Sequence[str]], words: Mapping[str, Sequence[str]],
                    split: Callable[[str], Units]) -> Grammar:  # fmt: skip
    """Compile a rule file (see the module) and its word classes.

    Args:
        rules: the rule file; empty lines and lines that begin with ``#`` are skipped.
        features: feature letter -> its values.
        words: word class -> its words.
        split: text -> the units that recognition steps over.

    Raises:
        ValueError: an unknown symbol or feature, a symbol defined twice, left recursion, or no finite
            derivation.

    >>> g = compile_grammar("S : the N.{n} V.{n}", features={"n": ["sg", "pl"]}, split=lambda text: tuple(text.split()),
    ...                     words={"N.sg": ["dog"], "N.pl": ["dogs"], "V.sg": ["runs"], "V.pl": ["run"]})
    >>> [g.derives("S", tuple(text.split())) for text in ("the dog runs", "the dogs run", "the dog run", "the dog")]
    [True, True, False, False]
    """
    expanded = _expand(rules, features)
    classes = {name: tuple(entries) for name, entries in words.items()}
    if twice := expanded.keys() & classes.keys():
        raise ValueError(f"defined both as a rule and as a word class: {', '.join(sorted(twice))}")
    for part in itertools.chain.from_iterable(p.symbols for productions in expanded.values() for p in productions):
        if part in expanded or part in classes:
            continue
        if _is_symbol(part):
            raise ValueError(f"unknown symbol {part!r}: neither a rule nor a word class")
        classes[part] = (part,)
    tries = {name: _trie(map(split, entries)) for name, entries in classes.items()}
    first = {name: frozenset(trie) for name, trie in tries.items()}
    for rule in expanded:
        _fill_first(rule, expanded, first, ())
    heights = _heights(expanded, classes)
    return Grammar(rules=expanded, words=classes, heights=heights, split=split, _tries=tries, _first=first)


def _is_symbol(name: str) -> bool:
    return name[0].isascii() and name[0].isupper()


def _expand(text: str, features: Mapping[str, Sequence[str]]) -> dict[str, tuple[Production, ...]]:
    expanded: dict[str, tuple[Production, ...]] = {}
    for line in _CONTINUATION.sub(" |", text).splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        left, _, right = line.partition(" : ")
        for bound, name in _instances(left.strip(), features, {}):
            if name in expanded:
                raise ValueError(f"rule {name!r} is defined twice")
            expanded[name] = tuple(
                _production(body) for part in right.split("|") for _, body in _instances(part.strip(), features, bound)
            )
    return expanded


def _instances(
    template: str, features: Mapping[str, Sequence[str]], bound: Mapping[str, str]
) -> list[tuple[dict[str, str], str]]:
    """Every way to fill the features of ``template`` that ``bound`` leaves open, with the filled text."""
    letters = list(dict.fromkeys(_FEATURE.findall(template)))
    if unknown := [letter for letter in letters if letter not in features]:
        raise ValueError(f"unknown feature {unknown[0]!r} in {template!r}")
    values = [[bound[letter]] if letter in bound else features[letter] for letter in letters]
    fillings = [dict(zip(letters, combination, strict=True)) for combination in itertools.product(*values)]
    return [(filling, template.format(**filling)) for filling in fillings]


def _production(body: str) -> Production:
    weight, star, rest = body.partition("*")
    symbols = tuple((rest if star else body).split())
    if not symbols:
        raise ValueError(f"an alternative must derive something, got {body!r}")
    return Production(weight=float(weight) if star else 1.0, symbols=symbols)


def _heights(rules: Mapping[str, tuple[Production, ...]], classes: Mapping[str, Units]) -> dict[str, int]:
    heights = dict.fromkeys(classes, 0)
    while len(heights) < len(rules) + len(classes):
        level = {}
        for rule in rules.keys() - heights.keys():
            finite = [p for p in rules[rule] if heights.keys() >= set(p.symbols)]
            if finite:
                level[rule] = 1 + min(max(heights[part] for part in p.symbols) for p in finite)
        if not level:
            raise ValueError(f"no finite derivation: {', '.join(sorted(rules.keys() - heights.keys()))}")
        heights |= level
    return heights


def _trie(entries: Iterable[Units]) -> _Trie:
    root: _Trie = {}
    for units in entries:
        node = root
        for unit in units:
            node = node.setdefault(unit, {})
        node[_END] = {}
    return root


def _fill_first(symbol: str, rules: Mapping[str, tuple[Production, ...]], first: dict[str, frozenset[str]],
                path: tuple[str, ...]) -> frozenset[str]:  # fmt: skip
    if symbol in path:
        raise ValueError(f"left recursion: {' -> '.join((*path[path.index(symbol) :], symbol))}")
    if symbol not in first:
        starts = (_fill_first(production.symbols[0], rules, first, (*path, symbol)) for production in rules[symbol])
        first[symbol] = frozenset().union(*starts)
    return first[symbol]
