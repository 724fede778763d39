"""What is wrong with a suite, in plain words and in the order of the file.

Pydantic says what is wrong with plain data; here each of its errors is brought back to the key or value that caused it.
"""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from modelassay.errors import SuiteError, did_you_mean, printable
from modelassay.suite.characters import lookalikes, named
from modelassay.suite.located_yaml import Node, join

Model = TypeVar("Model", bound=BaseModel)

NAME = r"^[a-z0-9]+(-[a-z0-9]+)*$"
TEXT = r"\S"
LABEL = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,61}[A-Za-z0-9]$"
MEMORY = r"^[1-9][0-9]{0,5}[mgt]$"
TIME = r"^[1-9][0-9]{0,5}[mhd]$"
_PATTERNS = {
    NAME: "must be lower-case words joined by '-'",
    TEXT: "must not be empty",
    LABEL: "must be letters, digits, '-', '_' and '.', as h100 or NVIDIA-H100-80GB-HBM3",
    MEMORY: "must be a whole number and m, g or t, as 64g",
    TIME: "must be a whole number and m, h or d, as 12h",
}


@dataclass
class Problems:
    """Everything found wrong so far, one per place."""

    errors: dict[tuple[object, ...], SuiteError] = field(default_factory=dict)

    def add(self, place: Node, message: str) -> None:
        """Note ``message`` at ``place``; a place says only the first thing that is wrong with it."""
        error = place.error(message)
        self.errors.setdefault((error.file, error.line, error.column, error.path), error)

    def raise_first(self) -> None:
        """Raise the first problem in file order, those of overrides last, and say how many more there are.

        Raises:
            SuiteError: There was a problem.
        """
        if not self.errors:
            return
        first = min(self.errors.values(), key=lambda error: (error.line is None, error.line or 0, error.column or 0))
        more = f" (and {len(self.errors) - 1} more)" if len(self.errors) > 1 else ""
        raise SuiteError(first.message + more, file=first.file, line=first.line, column=first.column, path=first.path)


def validate(
    model: type[Model], tree: Node, problems: Problems, *, top: Node | None = None, context: str = ""
) -> Model | None:
    """Return ``tree`` as a ``model``; what is wrong goes to ``problems`` and None comes back.

    Types are taken as written: text is no number, true is no 1. A key that is missing because it is misspelt is one
    mistake. ``top`` stands for the tree where it has no place of its own, ``context`` is what something is missing from.
    """
    try:
        return model.model_validate_json(json.dumps(tree.plain()), strict=True)
    except ValidationError as error:
        details = error.errors(include_url=False)
        unknown = [
            (detail["loc"], suggest(model, detail["loc"])) for detail in details if detail["type"] == "extra_forbidden"
        ]
        messages: dict[Node, str] = {}
        hints: dict[Node, str] = {}
        for detail in details:
            if detail["type"] == "missing" and _misspelt(detail["loc"], unknown):
                continue
            place = locate(tree, detail, top or tree)
            message = f"missing{context}" if detail["type"] == "missing" else explain(detail, model)
            if (hint := _hint(detail, place)) and place not in messages:
                hints[place] = hint
            messages[place] = _either(messages[place], message) if place in messages else message
        for place, message in messages.items():
            problems.add(place, message + hints.get(place, ""))
    return None


def _hint(detail: ErrorDetails, place: Node) -> str:
    """Return what to do about a value that YAML does not take for what it looks like."""
    if detail["type"] == "string_type" and place.written:
        return f'; quote it where it is text: "{printable(place.written)}"'
    if isinstance(place.value, str) and (places := lookalikes(place.value)) and not detail["type"].startswith("string"):
        return f"; it holds {named(place.value[places[0]])}"
    return ""


def _misspelt(loc: Sequence[str | int], unknown: Iterable[tuple[Sequence[str | int], str]]) -> bool:
    """Whether an unknown key beside it was probably meant to be the missing ``loc``."""
    return any(other[:-1] == loc[:-1] and f"'{loc[-1]}'" in hint for other, hint in unknown)


def _either(one: str, other: str) -> str:
    """Return what two branches of a union say of one place as one sentence."""
    if one == other or not (one.startswith("must be ") and other.startswith("must be ")):
        return one
    return f"{one.rpartition(', got ')[0]} or {other.removeprefix('must be ')}"


def locate(tree: Node, detail: ErrorDetails, top: Node) -> Node:
    """Return the key or value of ``tree`` that caused ``detail``: the parent of what is missing, the key if unknown.

    Parts of pydantic's path that name a branch of a union, not a key, are passed over.
    """
    loc: list[str | int] = [*detail["loc"]]
    if field_name := detail.get("ctx", {}).get("field"):
        loc.append(field_name)
    missing = loc.pop() if detail["type"] == "missing" and loc else None
    names_key = bool(loc) and loc[-1] == "[key]"
    key, node = top, tree
    for part in loc:
        if isinstance(part, int) and part < len(node.items):
            key = node = node.items[part]
        elif isinstance(part, str) and part in node.entries:
            key, node = node.entries[part]
    if missing is not None:
        return replace(key, path=join(key.path, missing))
    if node is tree:
        return top
    offset = detail.get("ctx", {}).get("offset")
    if offset is not None and node.inset is not None and node.column is not None:
        return replace(node, column=node.column + node.inset + offset)
    return key if names_key or detail["type"] == "extra_forbidden" else node


def explain(detail: ErrorDetails, model: type[BaseModel] | None = None) -> str:
    """Return pydantic's ``detail`` in plain words, saying what was got and what would do."""
    kind, ctx, value = detail["type"], detail.get("ctx", {}), detail["input"]
    if kind == "extra_forbidden":
        return f"unknown key{suggest(model, detail['loc']) if model else ''}"
    if kind in {"value_error", "assertion_error"}:
        return printable(str(ctx.get("error", detail["msg"])))
    if kind in {"literal_error", "enum"}:
        expected = str(ctx["expected"])
        choices = [word.strip("'") for word in expected.replace(" or ", ", ").split(", ")]
        hint = did_you_mean(value, choices) if isinstance(value, str) else ""
        return f"must be {expected}, got {shown(value)}{hint}"
    if kind in _WORDING:
        return _WORDING[kind](ctx, shown(value))
    message = detail["msg"].replace("Input should be", "must be")
    has_value = kind.startswith(("bytes", "date", "time", "uuid", "url", "path", "decimal", "frozen", "set", "tuple"))
    return printable(f"{message}, got {shown(value)}" if has_value else message)


def _size(word: str, limit: str) -> Callable[[dict[str, Any], str], str]:
    """Return the wording of a collection's length limit."""

    def wording(ctx: dict[str, Any], got: str) -> str:
        one, many = ("entry", "entries") if ctx.get("field_type") == "Dictionary" else ("item", "items")
        return f"needs {word} {ctx[limit]} {one if ctx[limit] == 1 else many}, has {ctx['actual_length']}"

    return wording


_WORDING: dict[str, Callable[[dict[str, Any], str], str]] = {
    "int_type": lambda ctx, got: f"must be a whole number, got {got}",
    "int_from_float": lambda ctx, got: f"must be a whole number, got {got}",
    "float_type": lambda ctx, got: f"must be a number, got {got}",
    "finite_number": lambda ctx, got: f"must be a finite number, got {got}",
    "bool_type": lambda ctx, got: f"must be true or false, got {got}",
    "string_type": lambda ctx, got: f"must be text, got {got}",
    "string_too_short": lambda ctx, got: f"needs at least {ctx['min_length']} characters, got {got}",
    "string_too_long": lambda ctx, got: f"must have at most {ctx['max_length']} characters, got {got}",
    "string_pattern_mismatch": lambda ctx, got: (
        f"{_PATTERNS.get(ctx['pattern']) or 'must match ' + ctx['pattern']}, got {got}"
    ),
    "greater_than": lambda ctx, got: f"must be above {ctx['gt']}, got {got}",
    "greater_than_equal": lambda ctx, got: f"must be at least {ctx['ge']}, got {got}",
    "less_than": lambda ctx, got: f"must be below {ctx['lt']}, got {got}",
    "less_than_equal": lambda ctx, got: f"must be at most {ctx['le']}, got {got}",
    "multiple_of": lambda ctx, got: f"must be a multiple of {ctx['multiple_of']}, got {got}",
    "list_type": lambda ctx, got: f"must be a list, got {got}",
    "tuple_type": lambda ctx, got: f"must be a list, got {got}",
    "set_type": lambda ctx, got: f"must be a list, got {got}",
    "dict_type": lambda ctx, got: f"must be a mapping, got {got}",
    "model_type": lambda ctx, got: f"must be a mapping, got {got}",
    "none_required": lambda ctx, got: f"must be null, got {got}",
    "too_short": _size("at least", "min_length"),
    "too_long": _size("at most", "max_length"),
}


def shown(value: object) -> str:
    """Return ``value`` as an error shows it.

    >>> [shown(value) for value in ("60", 60, True, None, [1], {})]
    ["'60'", '60', 'true', 'nothing', 'a list', 'a mapping']
    """
    if value is None:
        return "nothing"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, dict):
        return "a mapping"
    text = repr(value) if isinstance(value, str) else json.dumps(value, default=str)
    return printable(text if len(text) <= 60 else f"{text[:57]}...")


def step(annotation: object, part: str | int) -> object | None:
    """Return the annotation of what ``part`` names inside ``annotation``, None if it can hold no such part."""
    if annotation is Any or annotation is object:
        return annotation
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        field_info = annotation.model_fields.get(str(part))
        return field_info.annotation if field_info is not None else None
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in {typing.Union, types.UnionType, typing.Annotated}:
        return next((inner for arg in args if (inner := step(arg, part)) is not None), None)
    if isinstance(part, int):
        return args[min(part, len([arg for arg in args if arg is not Ellipsis]) - 1)] if args else None
    return args[1] if len(args) == 2 and isinstance(origin, type) and issubclass(origin, typing.Mapping) else None


def exists(model: type[BaseModel], path: str) -> bool:
    """Whether the dotted ``path`` names a field of ``model`` or something inside one."""
    annotation: object | None = model
    for part in path.split("."):
        annotation = step(annotation, part)
        if annotation is None:
            return False
    return True


def names(annotation: object) -> list[str]:
    """Return the fields of every model that ``annotation`` can be."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return list(annotation.model_fields)
    if typing.get_origin(annotation) in {typing.Union, types.UnionType, typing.Annotated}:
        return [name for arg in typing.get_args(annotation) for name in names(arg)]
    return []


def paths(annotation: object, prefix: str = "") -> Iterator[str]:
    """Yield the dotted path of every field below ``annotation``, groups before their leaves."""
    for name in dict.fromkeys(names(annotation)):
        path = f"{prefix}{name}"
        yield path
        yield from paths(step(annotation, name), f"{path}.")


def suggest(model: type[BaseModel], loc: Sequence[str | int]) -> str:
    """Return a hint for the unknown key at ``loc``: a field beside it of like name, else any field of ``model``."""
    here: object = model
    for part in loc[:-1]:
        here = step(here, part) or here
    fields = names(here)
    return did_you_mean(str(loc[-1]), fields, paths(model)) or (f"; known: {', '.join(fields)}" if fields else "")
