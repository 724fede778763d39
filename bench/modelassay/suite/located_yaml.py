"""YAML 1.2 read into a tree whose every key and value knows where it stands.

Only JSON-like documents are accepted: one document, text keys, no tags. Scalars follow the core schema of YAML 1.2, so
``1e-5`` is a number, ``no`` is text and ``010`` is ten. Anchors, aliases and merge keys (``<<``) work; what they expand
to is bounded, as are depth and file size, so that a hostile file costs no more than an honest one.
"""

from __future__ import annotations

import io
import json
import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
    StreamEndEvent,
)

from modelassay.errors import SuiteError, printable
from modelassay.machine.redact import Mask
from modelassay.machine.scrub import known_secrets
from modelassay.suite.characters import lookalikes, misleading, named, refused
from modelassay.suite.syntax import syntax_message
from modelassay.suite.tabs import TabScanner

JSON: TypeAlias = "None | bool | int | float | str | list[JSON] | dict[str, JSON]"

MAX_BYTES = 1_000_000  # a suite is read by people; the largest one shipped is a hundredth of this
MAX_DEPTH = 32
MAX_NODES = 20_000  # keys and values, counted with aliases expanded

_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_WORDS = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_SURROGATE = re.compile("[\ud800-\udfff]")
NO_SECRETS = "holds a token or password, and a run records all of its suite; leave it out, and set it in the environment, as HF_TOKEN"
_QUOTE_IT = "; quote it where it is text, as a commit is"
_PLAIN_KEY = re.compile(r"[^\s\"'\[\]{}]+")


class Entry(NamedTuple):
    """One ``key: value`` of a mapping."""

    key: Node
    node: Node


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """One key or value, and where it stands; aliases share nodes, so the tree is as large as the text."""

    value: None | bool | int | float | str | list[Node] | dict[str, Entry]
    file: str
    """What an error begins with: the file as the user named it, or the override it came from."""
    path: str = ""
    """The dotted path inside the file, as in ``profiles.paper.steps`` or ``matrix.seed[1]``."""
    line: int | None = None
    """Counted from 1; None for text that is not in a file."""
    column: int | None = None
    inset: int | None = None
    """Columns between the start of a scalar and its first character; None where the text is not verbatim on one line."""
    size: int = 1
    depth: int = 0
    written: str | None = None
    """What an unquoted scalar reads in the file; None for anything else."""

    @property
    def entries(self) -> dict[str, Entry]:
        """The entries of a mapping; empty for anything else."""
        return self.value if isinstance(self.value, dict) else {}

    @property
    def items(self) -> list[Node]:
        """The items of a list; empty for anything else."""
        return self.value if isinstance(self.value, list) else []

    @property
    def place(self) -> str:
        """``file:line``, or what stands for it outside files."""
        return self.file if self.line is None else f"{self.file}:{self.line}"

    def plain(self) -> JSON:
        """Return the value without its places."""
        if isinstance(self.value, dict):
            return {name: entry.node.plain() for name, entry in self.value.items()}
        if isinstance(self.value, list):
            return [item.plain() for item in self.value]
        return self.value

    def error(self, message: str) -> SuiteError:
        """Return ``message`` as an error at this place."""
        return SuiteError(message, file=self.file, line=self.line, column=self.column, path=self.path)


def join(path: str, key: str | int) -> str:
    """Return the dotted path of ``key`` below ``path``; a key that would not read as one word is quoted.

    >>> join(join("matrix", "seed"), 1), join("profiles", "a b")
    ('matrix.seed[1]', 'profiles."a b"')
    """
    if isinstance(key, int):
        return f"{path}[{key}]"
    word = key if _PLAIN_KEY.fullmatch(key) and key.isprintable() else json.dumps(key)
    return f"{path}.{word}" if path else word


def scalar(text: str) -> None | bool | int | float | str:
    """Return what an unquoted ``text`` means under the core schema of YAML 1.2.

    Raises:
        ValueError: A number that is not finite or too small to be told from 0, or an integer beyond 64 bits.

    >>> [scalar(text) for text in ("1e-5", "010", "0x1F", "no", "yes", "True", "~", "1_000")]
    [1e-05, 10, 31, 'no', 'yes', True, None, '1_000']
    """
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        # int() refuses thousands of digits with a message of its own, so length is looked at first.
        number = int(text, 0) if text[:2] in {"0o", "0x"} else int(text) if len(text) < 40 else None
        if number is None or not -(2**63) <= number < 2**63:
            raise ValueError(f"an integer beyond 64 bits{_QUOTE_IT}")
        return number
    if _NOT_FINITE.fullmatch(text):
        raise ValueError("not a finite number")
    if not _FLOAT.fullmatch(text):
        return text
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"not a finite number{_QUOTE_IT}")
    if value == 0 and re.search("[1-9]", re.split("[eE]", text)[0]):
        raise ValueError(f"a number too small to be told from 0{_QUOTE_IT}")
    return value


def read_file(path: Path) -> Node:
    """Read the YAML file at ``path``; the root is any value, None for an empty file.

    Raises:
        SuiteError: The file is missing, is no file, is too large, is not UTF-8, or is not YAML of the kind described above;
            located, at line 1 column 1 where nothing better is known.
    """
    file = printable(str(path))
    top = Node(None, file, line=1, column=1)
    try:
        if path.is_dir():
            raise top.error("a folder, not a suite file; name one .yaml file in it")
        if not path.is_file():
            raise top.error("no such file" if not path.exists() else "not a regular file")
        with path.open("rb") as handle:
            data = handle.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        raise top.error(f"cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if len(data) > MAX_BYTES:
        raise top.error(f"larger than {MAX_BYTES:,} bytes; a suite holds settings, keep data in files of its own")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start].decode("utf-8-sig", errors="replace")
        raise _after(before, file).error(
            f"byte 0x{data[error.start]:02x} is not UTF-8; save the file as UTF-8"
        ) from None
    return _parsed(text, file, tuple(known_secrets(os.environ)))


@lru_cache(maxsize=16)
def _parsed(text: str, file: str, secrets: tuple[str, ...]) -> Node:
    """Parse a file's text once: the ledger reads each suite under several profiles, and nothing changes a node.

    ``secrets`` are those that the text may not hold: with others it may be refused.
    """
    return parse(text, file)


def parse(text: str, file: str, *, path: str = "", located: bool = True) -> Node:
    """Parse ``text``; errors begin with ``file`` and, where ``located``, line and column.

    Raises:
        SuiteError: Not YAML of the kind described above.
    """
    if (trouble := refused(text)) is not None:
        index, message = trouble
        place = _after(text[:index], file)
        raise (place if located else replace(place, path=path, line=None, column=None)).error(message)
    return _Composer(text, file, located=located).document(path)


def _after(text: str, file: str) -> Node:
    """Return the place just after ``text``, the file's beginning."""
    lines = re.split("\r\n|\r|\n", text)
    return Node(None, file, line=len(lines), column=len(lines[-1]) + 1)


def yaml() -> YAML:
    """Return a parser of YAML 1.2 that accepts tabs where that does."""
    parser = YAML(typ="safe", pure=True)
    parser.Scanner = TabScanner
    return parser


def plain_scalar(text: str, place: Node) -> Node:
    """Return ``place`` with what an unquoted ``text`` means; its text is verbatim where ``place.inset`` is 0.

    Raises:
        SuiteError: A number that cannot be kept, or a character that only looks like a space.
    """
    _refuse_lookalikes(text, place)
    try:
        value = scalar(text)
    except ValueError as error:
        raise place.error(f"{printable(text[:40])!s} is {error}") from None
    return replace(place, value=value, written=None if isinstance(value, str) else text)


def _refuse_lookalikes(text: str, place: Node, *, key: bool = False) -> None:
    if (trouble := misleading(text, key=key)) is not None:
        index, message = trouble
        exact = place.inset == 0 and place.column is not None
        raise (replace(place, column=(place.column or 0) + index) if exact else place).error(message)


class _Composer:
    """Builds nodes from the parser's events; recursion is bounded by MAX_DEPTH, work by MAX_NODES."""

    def __init__(self, text: str, file: str, *, located: bool) -> None:
        self.lines = text.splitlines()
        self.file, self.located = file, located
        self.events: Iterator[Event] = yaml().parse(io.StringIO(text))
        self.anchors: dict[str, Node] = {}
        self.num_nodes = 0
        self.mask = Mask(os.environ)

    def document(self, path: str) -> Node:
        """Compose the only document, located at ``path``."""
        try:
            event = self._next()
            if isinstance(event, StreamEndEvent):
                return Node(None, self.file, path, *self._mark(0, 0))
            if isinstance(event, DocumentStartEvent) and event.version not in {None, (1, 2)}:
                raise self._place(event, path).error("suites are YAML 1.2; remove the %YAML line")
            node = self._node(self._next(), path, 0)
            self._next()  # the document's end
            after = self._next()
        except MarkedYAMLError as error:
            raise self._yaml_error(error, path) from None
        except UnicodeError:
            raise Node(None, self.file, path, *self._mark(0, 0)).error("holds an escape that is no character") from None
        if not isinstance(after, StreamEndEvent):
            raise self._place(after, path).error("a second document; a file holds one suite")
        return node

    def _next(self) -> Event:
        """Return the next event that matters."""
        event: Event = next(self.events)
        return next(self.events) if type(event).__name__ == "StreamStartEvent" else event

    def _node(self, event: Event, path: str, depth: int) -> Node:
        """Compose the value that starts with ``event``."""
        place = self._place(event, path)
        self.num_nodes += 1
        if self.num_nodes > MAX_NODES:
            raise place.error(f"more than {MAX_NODES:,} keys and values; a suite holds settings, keep data in files")
        if depth > MAX_DEPTH:
            raise place.error(f"nested deeper than {MAX_DEPTH} levels")
        if isinstance(event, AliasEvent):
            if event.anchor not in self.anchors:
                raise place.error(f"alias *{event.anchor} has no anchor &{event.anchor} that ends before it")
            return self.anchors[event.anchor]
        if (tag := getattr(event, "tag", None)) is not None:
            raise place.error(f"tag {printable(str(tag))} is not used in suites; quote text, write numbers plainly")
        if isinstance(event, ScalarEvent):
            node = self._scalar(event, place)
        elif isinstance(event, SequenceStartEvent):
            node = self._bounded(self._sequence(place, depth), place)
        else:
            node = self._bounded(self._mapping(place, depth), place)
        if anchor := getattr(event, "anchor", None):
            self.anchors[anchor] = node
        return node

    def _scalar(self, event: ScalarEvent, place: Node) -> Node:
        """Resolve a scalar; only an unquoted one is anything but text."""
        text: str = event.value
        if self.mask.refuses(text):
            raise replace(place, path=self.mask(place.path)).error(NO_SECRETS)
        if _SURROGATE.search(text):
            raise place.error("holds half of a surrogate pair, which is no character")
        if event.style:
            return replace(place, value=text, inset=1 if self._verbatim(event, text, 1) else None)
        return plain_scalar(text, replace(place, inset=0 if self._verbatim(event, text, 0) else None))

    def _verbatim(self, event: ScalarEvent, text: str, inset: int) -> bool:
        """Whether the source shows ``text`` as it is, ``inset`` columns after the event's start."""
        return self._line(event.start_mark.line).startswith(text, event.start_mark.column + inset)

    def _sequence(self, place: Node, depth: int) -> Node:
        items: list[Node] = []
        while not isinstance(event := self._next(), SequenceEndEvent):
            items.append(self._node(event, join(place.path, len(items)), depth + 1))
        return _collection(place, items, items)

    def _mapping(self, place: Node, depth: int) -> Node:
        entries: dict[str, Entry] = {}
        merged: list[Node] = []
        while not isinstance(event := self._next(), MappingEndEvent):
            key = self._key(event, place.path)
            name = str(key.value)
            is_merge = name == "<<" and isinstance(event, ScalarEvent) and not event.style
            if name in entries or (is_merge and merged):
                first = f" (first on line {entries[name].key.line})" if name in entries and self.located else ""
                raise key.error(f"key given twice{first}")
            value_event = self._next()
            node = self._node(value_event, key.path, depth + 1)
            if isinstance(value_event, ScalarEvent) and not value_event.value and not value_event.style:
                # The parser places a value that is not there at the next token, often lines below.
                node = replace(node, line=key.line, column=key.column)
            if is_merge:
                merged = node.items or [node]
                if bad := next((item for item in merged if not isinstance(item.value, dict)), None):
                    raise replace(bad, path=key.path).error("'<<' merges mappings only: give an alias of a mapping")
            else:
                entries[name] = Entry(key, node)
        for node in merged:
            entries = {**node.entries, **entries}
        return _collection(place, entries, [entry.node for entry in entries.values()])

    def _key(self, event: Event, path: str) -> Node:
        """Compose a key: plain or quoted text."""
        place = self._place(event, path)
        if not isinstance(event, ScalarEvent):
            raise place.error("a key must be a word")
        if not event.style:
            inset = 0 if self._verbatim(event, event.value, 0) else None
            _refuse_lookalikes(event.value, replace(place, path=path, inset=inset), key=True)
        key = self._node(event, join(path, event.value), 0)
        if not isinstance(key.value, str) or not key.value:
            shown = f"{printable(event.value)} is not a word; quote it" if event.value else "empty key"
            raise replace(key, path=path).error(f"a key must be a word: {shown}")
        return key

    def _bounded(self, node: Node, place: Node) -> Node:
        """Return ``node`` if what it expands to, aliases included, is within the limits."""
        if node.size > MAX_NODES:
            raise place.error(f"expands to more than {MAX_NODES:,} keys and values through its aliases")
        if node.depth > MAX_DEPTH:
            raise place.error(f"nested deeper than {MAX_DEPTH} levels through its aliases")
        return node

    def _mark(self, line: int, column: int) -> tuple[int | None, int | None]:
        """Return line and column counted from 1, or nothing where the text is not in a file."""
        return (line + 1, column + 1) if self.located else (None, None)

    def _place(self, event: Event, path: str) -> Node:
        return Node(None, self.file, path, *self._mark(event.start_mark.line, event.start_mark.column))

    def _yaml_error(self, error: MarkedYAMLError, path: str) -> SuiteError:
        """Return a syntax error in plain words, at what was opened and never closed or at what cannot stand there."""
        context, problem = str(error.context or ""), str(error.problem or "")
        opened = any(word in context for word in ("flow", "simple key")) or "end of stream" in problem
        mark: Any = error.context_mark if opened and error.context_mark is not None else error.problem_mark
        line, column = (mark.line, mark.column) if mark is not None else (0, 0)
        message = syntax_message(context, problem, self._line(line), column)
        for number in (line, line - 1):
            text = self._line(number)
            words = text.lstrip(" ")
            if (trouble := misleading(words)) is not None:
                line, column, message = number, len(text) - len(words) + trouble[0], trouble[1]
                break
            if places := lookalikes(text):
                message += f"; {named(text[places[0]])} in line {number + 1} is no space to YAML"
                break
        return Node(None, self.file, path, *self._mark(line, column)).error(f"not valid YAML: {message}")

    def _line(self, number: int) -> str:
        """Return a line of the source, counted from 0, empty where there is none."""
        return self.lines[number] if 0 <= number < len(self.lines) else ""


def _collection(place: Node, value: list[Node] | dict[str, Entry], children: Sequence[Node]) -> Node:
    """Return the list or mapping at ``place`` with its size and depth, aliases expanded."""
    size = 1 + sum(child.size for child in children)
    return replace(place, value=value, size=size, depth=1 + max((child.depth for child in children), default=0))
