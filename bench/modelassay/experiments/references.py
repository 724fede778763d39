"""Parameters that name a model or a file, declared by their type; any other text names nothing, whatever it looks like.

::

    class Params(BaseModel):
        model: ModelReference
        tables: tuple[FileReference, ...] = ()

A container sees what such parameters name, and has a network only where one names a model of the Hub.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeAlias, Union, get_args, get_origin

from pydantic import BaseModel

Kind: TypeAlias = Literal["model", "file"]


@dataclass(frozen=True)
class Names:
    """Marks the type of a parameter whose text names something outside of the suite."""

    kind: Kind


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
