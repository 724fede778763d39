"""Parameters that name a model or a file, declared by their type; any other text names nothing, whatever it looks like.

::

    class Params(BaseModel):
        model: ModelReference
        tables: tuple[FileReference, ...] = ()

A container sees what such parameters name, and has a network only where one names a model of the Hub.

A path is made absolute when it is validated, from the folder in which the command was given: what a run goes on with later does
not depend on where that is done. A run's own parameters, read again, are absolute already, and refused where they are not.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Final, Literal, TypeAlias, Union, get_args, get_origin

from pydantic import BaseModel, GetCoreSchemaHandler, ValidationInfo
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from modelassay.data.corpus import CORPUS
from modelassay.errors import printable

Kind: TypeAlias = Literal["model", "file"]


AS_STORED: Final = {"paths": "stored"}
"""The context in which a run's parameters are validated again: a path that is not absolute is an error."""

_SCHEMES: Final = {"model": re.compile(r"(hf|zoo):"), "file": re.compile(r"[a-z][a-z0-9_-]*:(?!/)")}
"""How the text begins that names no path."""


@dataclass(frozen=True)
class Names:
    """Marks the type of a parameter whose text names something outside of the suite."""

    kind: Kind

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Make the paths in a valid value absolute."""

        def placed(value: Any, info: ValidationInfo) -> Any:
            return _placed(value, self.kind, stored=info.context == AS_STORED)

        return core_schema.with_info_after_validator_function(placed, handler(source))


def _placed(value: Any, kind: Kind, *, stored: bool) -> Any:
    """Return ``value`` with every text and path in it absolute."""
    if isinstance(value, str):
        return absolute(value, kind, stored=stored)
    if isinstance(value, Path):
        return Path(absolute(str(value), kind, stored=stored))
    if type(value) in {list, tuple, set, frozenset}:
        return type(value)(_placed(item, kind, stored=stored) for item in value)
    if type(value) is dict:
        return {_placed(key, kind, stored=stored): _placed(item, kind, stored=stored) for key, item in value.items()}
    return value


def absolute(text: str, kind: Kind, *, stored: bool = False) -> str:
    """Return the path that ``text`` names, absolute; what names no path, and an absolute path, as it is.

    Args:
        text: what the user wrote.
        kind: what it is to name.
        stored: whether it comes from a run, whose folder then is not known any more.

    Raises:
        PydanticCustomError: it begins with ``~``, or with ``..`` steps back over a link, or it is relative and ``stored``.

    >>> absolute("zoo:base", "model"), absolute("/models/a", "model"), absolute("corpus:en", "file"), absolute("", "file")
    ('zoo:base', '/models/a', 'corpus:en', '')
    """
    if not text or os.path.isabs(text) or (_SCHEMES[kind].match(text) and not _is_file(text, kind)):  # noqa: PTH117 - a Path takes ten times as long
        return text
    if stored:
        raise _error("is a path from a folder that the run does not record; start the run anew")
    if text.startswith("~") and not os.path.lexists(text):
        raise _error("only a shell expands '~'; write the whole path")
    try:
        folder = os.getcwd()  # noqa: PTH109 - as text: no link in it is followed
    except FileNotFoundError:
        raise _error("is a path from the current folder, which is gone; go to another") from None
    path = os.path.normpath(os.path.join(folder, text))  # noqa: PTH118
    if ".." in Path(text).parts and os.path.realpath(path) != (real := os.path.realpath(text)):
        raise _error(f"steps back with '..' over a link; write the whole path, which may be {printable(real)}")
    return path


def _is_file(text: str, kind: Kind) -> bool:
    """Whether a text with a scheme is a file's name all the same; ``corpus:en`` never is."""
    return kind == "file" and not text.startswith(CORPUS) and os.path.lexists(text)


def _error(problem: str) -> PydanticCustomError:
    return PydanticCustomError("reference", "{problem}", {"problem": problem})


ModelReference: TypeAlias = Annotated[str, Names("model")]
"""A local folder, ``hf:ORG/NAME[@REVISION]`` or ``zoo:NAME``."""

FileReference: TypeAlias = Annotated[str, Names("file")]
"""A file of this machine, or the name of something that modelassay makes, such as ``corpus:en``."""


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What one parameter names."""

    parameter: str
    """Dotted path, as in ``members.measured.earlier[0]``."""
    kind: Kind
    text: str

    @property
    def of_hub(self) -> bool:
        """Whether it is a model of the Hugging Face Hub."""
        return self.kind == "model" and self.text.startswith("hf:")


def references(params: BaseModel) -> Iterator[Reference]:
    """Yield what the parameters of a cell name, in the order of their fields, those of nested models too.

    >>> class Params(BaseModel):
    ...     model: ModelReference
    ...     note: str
    ...     tables: tuple[FileReference, ...]
    >>> [each.parameter for each in references(Params(model="zoo:base", note="/root", tables=("a.csv",)))]
    ['model', 'tables[0]']
    """
    return _of_model(params, "")


def _of_model(model: Any, prefix: str) -> Iterator[Reference]:
    for name, field in type(model).__pydantic_fields__.items():
        # pydantic takes the marker off the outermost type.
        yield from _of_value(field.annotation, getattr(model, name), f"{prefix}{name}", _kind(field.metadata))


def _kind(metadata: Iterable[Any]) -> Kind | None:
    return next((each.kind for each in metadata if isinstance(each, Names)), None)


def _of_value(declared: Any, value: Any, where: str, kind: Kind | None) -> Iterator[Reference]:
    """Yield the references in ``value``, which was validated as ``declared``; ``kind`` is what surrounds it was marked with."""
    if value is None or isinstance(value, (bool, int, float)):
        return
    origin, arguments = get_origin(declared), get_args(declared)
    if origin is Annotated:
        yield from _of_value(arguments[0], value, where, _kind(declared.__metadata__) or kind)
    elif origin in {Union, UnionType}:
        options = [each for option in arguments for each in _of_value(option, value, where, kind)]
        yield from dict.fromkeys(options)
    elif isinstance(value, str | Path):
        if kind is not None:
            yield Reference(parameter=where, kind=kind, text=str(value))
    elif hasattr(type(value), "__pydantic_fields__"):  # a model, or a dataclass of pydantic's
        yield from _of_model(value, f"{where}.")
    elif isinstance(origin, type) and isinstance(value, origin):
        yield from _of_items(origin, arguments, value, where, kind)


def _of_items(
    origin: type, arguments: tuple[Any, ...], value: Any, where: str, kind: Kind | None
) -> Iterator[Reference]:
    """Yield the references in the entries of a mapping, a sequence or a set."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _of_value(arguments[0], key, f"{where}.{key}", kind)
            yield from _of_value(arguments[1], item, f"{where}.{key}", kind)
    elif isinstance(value, list | tuple | AbstractSet):
        fixed = origin is tuple and ... not in arguments
        for index, item in enumerate(value):
            yield from _of_value(arguments[index if fixed else 0], item, f"{where}[{index}]", kind)
