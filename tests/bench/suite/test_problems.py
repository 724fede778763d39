"""Pydantic's errors come back to the right key in plain words, whatever shape the parameters have."""

from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from modelassay.experiments import Experiment
from modelassay.suite import form
from modelassay.suite.form import suite_schema
from modelassay.suite.located_yaml import parse
from modelassay.suite.problems import Problems, exists, paths, validate


class Strict(BaseModel):
    """As parameters are."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Adam(Strict):
    """One branch of a union."""

    kind: Literal["adam"]
    betas: tuple[float, float] = (0.9, 0.99)


class Sgd(Strict):
    """Another."""

    kind: Literal["sgd"]
    momentum: float = Field(default=0.0, ge=0.0, lt=1.0)


class Stage(Strict):
    """An item of a list."""

    name: str
    num_steps: int = Field(ge=1, multiple_of=2)


class Shapes(Strict):
    """Every way to nest."""

    optimizer: Annotated[Adam | Sgd, Field(discriminator="kind")] = Sgd(kind="sgd")
    stages: list[Stage] = []
    named: dict[str, Stage] = {}
    control: Stage | None = None
    size: int | Literal["auto"] = "auto"
    word: str = Field(default="ab", min_length=2, max_length=4, pattern="^[a-z]*$")

    @field_validator("word")
    @classmethod
    def _no_x(cls, word: str) -> str:
        if "x" in word:
            raise ValueError("no x here\nplease")
        return word

    @model_validator(mode="after")
    def _together(self) -> "Shapes":
        if self.size == 13:
            raise ValueError("size 13 brings bad luck")
        return self


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("optimizer: {kind: sgd, momentum: «1.0}", "optimizer.momentum: must be below 1.0, got 1.0"),
        ("optimizer: {kind: sgd, «momentun: 0.5}", "optimizer.momentun: unknown key; did you mean 'momentum'?"),
        ("optimizer: {kind: adam, betas: [0.9, «x]}", "optimizer.betas[1]: must be a number, got 'x'"),
        ("optimizer: «{kind: adamw}", "optimizer: Input tag 'adamw' found using 'kind' does not match"),
        ("optimizer: «{momentum: 0.5}", "optimizer: Unable to extract tag using discriminator 'kind'"),
        (
            "stages: [{name: a, num_steps: 2}, {name: b, num_steps: «3}]",
            "stages[1].num_steps: must be a multiple of 2, got 3",
        ),
        ("stages: [«{name: a}]", "stages[0].num_steps: missing"),
        ("stages: [{name: a, num_steps: 2, «nume: b}]", "stages[0].nume: unknown key; did you mean 'name'?"),
        ("named: {warm: {name: a, num_steps: «no}}", "named.warm.num_steps: must be a whole number, got 'no'"),
        ("named: {«warm: {name: a}}", "named.warm.num_steps: missing"),
        ("control: {name: a, num_steps: «0}", "control.num_steps: must be at least 1, got 0"),
        ("control: «3", "control: must be a mapping, got 3"),
        ("size: «big", "size: must be a whole number or 'auto', got 'big'"),
        ("word: «a", "word: needs at least 2 characters, got 'a'"),
        ("word: «abcde", "word: must have at most 4 characters, got 'abcde'"),
        ("word: «AB", "word: must match ^[a-z]*$, got 'AB'"),
        ("word: «axb", "word: no x here\\nplease"),
        ("«size: 13", "size 13 brings bad luck"),
    ],
)
def test_errors_are_brought_back(text: str, expected: str) -> None:
    before, _, after = text.partition("«")
    problems = Problems()
    assert validate(Shapes, parse(before + after, "f"), problems) is None
    (error,) = problems.errors.values()
    assert str(error).startswith(f"f:1:{len(before) + 1}: {expected}")
    assert str(error).isprintable()


def test_paths_reach_every_field() -> None:
    assert set(paths(Shapes)) >= {"optimizer", "optimizer.betas", "optimizer.momentum", "control.num_steps", "word"}
    for path in (*paths(Shapes), "named.any.name", "named.any"):
        assert exists(Shapes, path)
    for path in ("word.x", "stages.name", "named.any.nume", "optimizer.beta", "", "size.auto"):
        assert not exists(Shapes, path)


def test_schema_carries_the_parameters_of_shipped_experiments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(form, "known_experiments", lambda: ["toy-walk"])
    monkeypatch.setattr(form, "find_experiment", lambda name: Experiment(name, "toy"))
    schema = suite_schema()
    (rule,) = schema["allOf"]
    assert rule["if"]["properties"] == {"suite": {"const": "toy-walk"}}
    profile = rule["then"]["properties"]["profiles"]["additionalProperties"]
    assert profile["properties"]["steps"]["maximum"] == 10_000
    assert "required" not in profile
    assert profile["additionalProperties"] is False
    assert schema["$defs"]["toy-walk.Walk"]["properties"]["width"]["minimum"] == 1
    assert _references(schema) <= {f"#/$defs/{name}" for name in schema["$defs"]}


def _references(schema: Any) -> set[str]:
    """Return every $ref of a schema."""
    if isinstance(schema, list):
        return set().union(*map(_references, schema))
    if not isinstance(schema, dict):
        return set()
    own = {schema["$ref"]} if isinstance(schema.get("$ref"), str) else set()
    return own.union(*map(_references, schema.values()))
