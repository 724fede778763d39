"""Which parameters name a model or a file: those declared so, wherever they lie, and no others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, NamedTuple, TypeVar

import pytest
from pydantic import BaseModel, Field, RootModel
from pydantic.dataclasses import dataclass

from modelassay.experiments.downloads.params import Params as Downloads
from modelassay.experiments.fingerprinting.params import Params as Fingerprinting
from modelassay.experiments.references import FileReference, ModelReference, Names, references
from modelassay.experiments.spectral.params import Params as Spectral

T = TypeVar("T")


class Inner(BaseModel):
    base: ModelReference = "inner"
    note: str = "note"


class Wide(Inner):
    table: FileReference = "wide.csv"


class Listed(RootModel[list[ModelReference]]):
    pass


class Box(BaseModel, Generic[T]):
    held: T


@dataclass
class Plain:
    model: ModelReference


class Pair(NamedTuple):
    left: str


CASES: list[tuple[Any, Any, list[str]]] = [
    (ModelReference, "m", ["one"]),
    (Annotated[ModelReference, Field(min_length=1)], "m", ["one"]),
    (Annotated[Literal["zoo:a", "zoo:b"], Names("model")], "zoo:a", ["one"]),
    (ModelReference | None, "m", ["one"]),
    (ModelReference | None, None, []),
    (Annotated[str | None, Names("file")], "m", ["one"]),
    (ModelReference | int, "m", ["one"]),
    (ModelReference | FileReference, "m", ["one", "one"]),
    (Annotated[Path, Names("file")], "m", ["one"]),
    (list[ModelReference], ["a", "b"], ["one[0]", "one[1]"]),
    (Sequence[ModelReference], ["a"], ["one[0]"]),
    (frozenset[ModelReference], ["a"], ["one[0]"]),
    (tuple[str, ModelReference], ["a", "b"], ["one[1]"]),
    (Annotated[tuple[str, ...], Names("file")], ["a", "b"], ["one[0]", "one[1]"]),
    (dict[str, ModelReference], {"left": "a"}, ["one.left"]),
    (Mapping[str, list[FileReference]] | None, {"left": ["a"]}, ["one.left[0]"]),
    (Inner, {}, ["one.base"]),
    (Inner | None, {}, ["one.base"]),
    (list[Inner], [{}, {}], ["one[0].base", "one[1].base"]),
    (Listed, ["a"], ["one.root[0]"]),
    (Box[ModelReference], {"held": "a"}, ["one.held"]),
    (Box[str], {"held": "a"}, []),
    (Plain, {"model": "a"}, ["one.model"]),
    (str, "/root", []),
    (Path, "/root", []),
    (list[str], ["/root"], []),
    (dict[str, str], {"/root": "/root"}, []),
    (object, "/root", []),
    (Pair, ["/root"], []),
]


@pytest.mark.parametrize(("declared", "value", "parameters"), CASES, ids=[str(declared) for declared, *_ in CASES])
def test_only_what_is_declared_is_a_reference(declared: Any, value: Any, parameters: list[str]) -> None:
    class Params(BaseModel):
        one: declared

    assert [each.parameter for each in references(Params.model_validate({"one": value}))] == parameters


def test_what_a_value_declares_beyond_its_declared_type_counts() -> None:
    class Params(BaseModel):
        one: Inner

    assert [each.parameter for each in references(Params(one=Wide()))] == ["one.base", "one.table"]


def test_what_the_shipped_experiments_declare() -> None:
    """Every parameter of theirs that is read as a model or a file, and none that is only written down."""
    fingerprinting = Fingerprinting(model="a", family="/f", against=("b", "hf:o/c"))
    assert [(each.parameter, each.kind, each.of_hub) for each in references(fingerprinting)] == [
        ("model", "model", False), ("against[0]", "model", False), ("against[1]", "model", True),
    ]  # fmt: skip
    names = ("random_sample", "most_downloaded", "same_tokenizer", "other_tokenizer")
    tables = {"model": "hf:o/a", "family": "/f", "measured": {name: (f"{name}.csv",) for name in names}}
    assert [(each.parameter, each.kind, each.of_hub) for each in references(Downloads.model_validate(tables))] == [
        ("model", "model", True), *((f"measured.{name}[0]", "file", False) for name in names)
    ]  # fmt: skip
    downloads = Downloads(model="a", bases=("b", "hf:o/c"), listing="l.json")
    assert [(each.parameter, each.kind, each.of_hub) for each in references(downloads)] == [
        ("model", "model", False), ("bases[0]", "model", False), ("bases[1]", "model", True), ("listing", "file", False),
    ]  # fmt: skip
    spectral = Spectral(model="a", data="notes.txt", parameters=("/root",))
    assert [(each.parameter, each.kind) for each in references(spectral)] == [("model", "model"), ("data", "file")]
