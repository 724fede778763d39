"""The ``-o a.b=c`` of the command line: the top layer of every cell.

What stands after the first ``=`` is one value, not a YAML document. It is a list or mapping in brackets, a text in quotes, or
else a number, ``true``, ``false``, ``null`` or text as it is: in ``run #5`` and ``a: b`` there is neither comment nor mapping.
``@FILE`` is the list of the file's lines, texts as they are, without empty lines and those that begin with ``#``.
What is not consumed, and what YAML would take for something else than a value, is an error.
"""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from pydantic import BaseModel
from ruamel.yaml.tokens import BlockMappingStartToken, DirectiveToken, DocumentEndToken, DocumentStartToken

from modelassay.errors import SuiteError, UsageError, did_you_mean, printable
from modelassay.machine.redact import Mask, masked
from modelassay.machine.scrub import is_here, known_secrets, scrub_text
from modelassay.storage.files import read_limited
from modelassay.suite.characters import refused
from modelassay.suite.form import Matrix
from modelassay.suite.located_yaml import NO_SECRETS, Entry, Node, parse, plain_scalar, yaml
from modelassay.suite.matrix import covers
from modelassay.suite.model_patterns import with_models
from modelassay.suite.problems import Problems, exists, paths, suggest, validate

_PATH = re.compile(r"[A-Za-z_][\w-]*(\.[\w-]+)*", re.ASCII)
_RESERVED = re.compile(r"[&*!|>%@`,\]}]|[-?:](?=\s|$)|(---|\.\.\.)(?=\s|$)")
"""What begins something else than a value in YAML."""
_NO_PART = (BlockMappingStartToken, DirectiveToken, DocumentEndToken, DocumentStartToken)
"""What no value in brackets or quotes holds."""


@dataclass
class Overrides:
    """Overrides by what they reach; the last one of a path counts."""

    leaves: dict[str, Entry] = field(default_factory=dict)
    """Parameters by dotted path."""
    matrix: Node = Node({}, "-o", "matrix")
    """Axes and words of the matrix, as one more matrix to lay on top."""

    def refuse_axes(self, axes: Mapping[str, Entry], problems: Problems) -> None:
        """Note parameters that the matrix varies: one value for all cells would make them the same cell."""
        for path, entry in self.leaves.items():
            if axis := next((axis for axis in axes if covers(axis, path)), None):
                problems.add(entry.key, f"is an axis of the matrix; give its values with -o 'matrix.{axis}=[...]'")


def parse_overrides(
    texts: Sequence[str], params: type[BaseModel], matrix: Mapping[str, Entry], problems: Problems
) -> Overrides:
    """Return ``texts`` as entries whose errors begin with the override itself; ``matrix`` is what may be replaced.

    A parameter that is no axis yet may be made one. What is wrong goes to ``problems``.
    """
    over = Overrides()
    axes: dict[str, Entry] = {}
    for text in texts:
        try:
            path, entry = _parse(text)
        except SuiteError as error:
            problems.add(Node(None, str(error.file), error.path), error.message)
            continue
        entry = Entry(entry.key, with_models(entry.node, problems))
        group, _, name = path.partition(".")
        if group == "matrix" and name and (name in {*matrix, *Matrix.model_fields} or exists(params, name)):
            axes[name] = Entry(replace(entry.key, value=name), entry.node)
        elif group != "matrix" and exists(params, path):
            over.leaves.pop(path, None)  # the last counts, over what an earlier one of a path above it set too
            over.leaves[path] = entry
        else:
            every = [*paths(params), *(f"matrix.{axis}" for axis in matrix)]
            hint = did_you_mean(path, every) or suggest(params, [*path.split(".")])
            problems.add(entry.key, f"unknown parameter{hint}")
    tree = replace(over.matrix, value=axes)
    if validate(Matrix, tree, problems) is not None:
        over.matrix = tree
    return over


def _parse(text: str) -> tuple[str, Entry]:
    """Return the path of ``path=value`` and the value, both placed at the override.

    Raises:
        SuiteError: Not of this form, or a value that is not YAML.
    """
    path, equals, value = text.partition("=")
    path = path.strip()
    clean = scrub_text(text, known_secrets(os.environ))  # whole, since half a token is one that no pattern knows
    key = Node(path, f"-o {printable(clean if len(clean) <= 80 else f'{clean[:77]}...')}", printable(masked(path)))
    mask, place = Mask(os.environ), value.strip(" \t\"'")
    if mask.refuses(path) or mask.refuses(place if is_here(place) else text):  # a comment in it is recorded too
        raise key.error(NO_SECRETS)
    if not equals or not _PATH.fullmatch(path):
        raise replace(key, path="").error("must be PATH=VALUE, as in -o train.steps=100 or -o 'matrix.seed=[0, 1]'")
    return path, Entry(key, _value(value.strip(" \t"), key))


def _value(text: str, key: Node) -> Node:
    """Return what ``text``, without the blanks around it, means for the parameter ``key``.

    Raises:
        SuiteError: It is no value, or more than one.
    """
    if not text:
        raise key.error("has no value; write null for none, '\"\"' for a text without characters")
    if (trouble := refused(text)) is not None:
        raise key.error(trouble[1])
    if text[0] == "@":
        return parse(
            json.dumps(_lines(Path(text[1:]), key), ensure_ascii=False), key.file, path=key.path, located=False
        )
    if text[0] in "[{\"'":
        node = parse(text, key.file, path=key.path, located=False)
        _require_consumed(text, key)
        return node
    if "\n" in text or "\r" in text:
        raise key.error(r'holds a line break; write it as \n in double quotes, as in "a\nb"')
    if reserved := _RESERVED.match(text):
        raise key.error(f"begins with {reserved[0]!r}, which YAML reserves; quote text, as in -o '{key.value}=\"...\"'")
    return plain_scalar(text, key)


def _lines(path: Path, key: Node) -> list[str]:
    """Return the lines of a list.

    Raises:
        SuiteError: The file cannot be read as one, or holds none.
    """
    try:
        text = read_limited(path).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError, UsageError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise key.error(f"{printable(str(path))} cannot be read as a list of lines: {reason}") from error
    lines = [line.strip() for line in text.splitlines()]
    if not (values := [line for line in lines if line and not line.startswith("#")]):
        raise key.error(f"{printable(str(path))} holds no line; write one value a line")
    if Mask(os.environ).refuses(text):
        raise key.error(NO_SECRETS)
    return values


def _require_consumed(text: str, key: Node) -> None:
    """Raise SuiteError where ``text``, which is valid YAML, is more than one value, holds a comment or folds lines together."""
    end = 0
    for token in yaml().scan(io.StringIO(text)):
        if text[end : token.start_mark.index].strip():
            raise key.error("a '#' would begin a comment; quote the text that it belongs to, or leave the comment out")
        if token.start_mark.line != token.end_mark.line:
            raise key.error(r"a text runs over a line's end; quote it whole, with \n for the line break")
        if isinstance(token, _NO_PART):
            raise key.error("something follows the value; quote the whole if it is one text")
        end = max(end, token.end_mark.index)
