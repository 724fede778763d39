"""The ``-o a.b=c`` of the command line: the top layer of every cell."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from pydantic import BaseModel

from modelassay.errors import SuiteError, did_you_mean, printable
from modelassay.machine.redact import Mask, masked
from modelassay.machine.scrub import known_secrets, scrub_text
from modelassay.suite.form import Matrix
from modelassay.suite.located_yaml import NO_SECRETS, Entry, Node, parse
from modelassay.suite.matrix import covers
from modelassay.suite.model_patterns import with_models
from modelassay.suite.problems import Problems, exists, paths, suggest, validate

_PATH = re.compile(r"[A-Za-z_][\w-]*(\.[\w-]+)*", re.ASCII)


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
    if Mask(os.environ).refuses(text):  # a comment in it is recorded too
        raise key.error(NO_SECRETS)
    if not equals or not _PATH.fullmatch(path):
        raise replace(key, path="").error("must be PATH=VALUE, as in -o train.steps=100 or -o 'matrix.seed=[0, 1]'")
    node = parse(value, key.file, path=key.path, located=False)
    return path, Entry(key, node)
