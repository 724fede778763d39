"""What a suite file may hold: its form, the claims it makes, and the JSON Schema that editors read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    PlainSerializer,
    PlainValidator,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError

from modelassay.errors import printable
from modelassay.experiments import find_experiment, known_experiments
from modelassay.suite.located_yaml import Node, scalar
from modelassay.suite.matrix import MAX_CELLS
from modelassay.suite.problems import LABEL, MEMORY, NAME, TEXT, TIME

Label: TypeAlias = bool | int | float | str
Name = Annotated[str, Field(pattern=NAME)]
Text = Annotated[str, Field(pattern=TEXT)]

_METRIC = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*")
_LABEL = re.compile(r"\s*([A-Za-z_][A-Za-z0-9_.-]*)\s*")
_VALUE = re.compile(r"""\s*("[^"]*"|'[^']*'|[^\s,\[\]"'=][^,\[\]"'=]*)""")


@dataclass(frozen=True)
class Selector:
    """Which values of a run a claim is about: a metric's name and the labels they must carry.

    >>> parse_selector("overlap[step=500, language=en]")
    Selector(name='overlap', labels={'step': 500, 'language': 'en'})
    """

    name: str
    labels: Mapping[str, Label]

    def __str__(self) -> str:
        """Return the text that parses to this selector."""
        inner = ", ".join(f"{label}={_written(value)}" for label, value in self.labels.items())
        return f"{self.name}[{inner}]" if inner else self.name


def _written(value: Label) -> str:
    """Return a label's value as it is written; text that would read as something else is quoted."""
    if not isinstance(value, str):
        return str(value).lower() if isinstance(value, bool) else repr(value)
    if _VALUE.fullmatch(value) and value == value.strip() and scalar(value) == value:
        return value
    return f"'{value}'" if '"' in value else f'"{value}"'


def parse_selector(text: object) -> Selector:
    """Return ``name[label=value, ...]`` as a selector; values follow YAML, quotes keep text as it is.

    Raises:
        PydanticCustomError: Not such a text; ``offset`` in its context counts characters before the mistake.
    """
    if isinstance(text, Selector):
        return text
    if not isinstance(text, str):
        raise _selector_error("must be text like overlap[step=500]", 0)
    if not (match := _METRIC.match(text)):
        raise _selector_error("must begin with a metric's name, like overlap[step=500]", 0)
    name, position, labels = match[0], match.end(), dict[str, Label]()
    if position == len(text):
        return Selector(name, labels)
    if text[position] != "[":
        raise _selector_error(f"expected '[' after the metric's name, got {text[position]!r}", position)
    while text[position] != "]":
        label, value, start, position = _parse_label(text, position + 1)
        if label in labels:
            raise _selector_error(f"label '{label}' given twice", start)
        labels[label] = value
    if position + 1 != len(text):
        raise _selector_error("nothing may follow the ']'", position + 1)
    return Selector(name, labels)


def _parse_label(text: str, position: int) -> tuple[str, Label, int, int]:
    """Return a label, its value, where the label starts, and where the ',' or ']' after it is."""
    if not (match := _LABEL.match(text, position)):
        raise _selector_error("expected a label, like step=500", _skip_spaces(text, position))
    label, start, position = match[1], match.start(1), match.end()
    if text[position : position + 1] != "=":
        raise _selector_error(f"expected '=' and a value after '{label}'", position)
    if not (match := _VALUE.match(text, position + 1)):
        position = _skip_spaces(text, position + 1)
        quote = text[position : position + 1] in {"'", '"'}
        raise _selector_error("a quote that is never closed" if quote else f"expected a value for '{label}'", position)
    written, position = match[1].rstrip(), match.end()
    if text[position : position + 1] not in {",", "]"}:
        raise _selector_error("expected ',' or ']' after the value", position)
    try:
        value = written[1:-1] if written[0] in "\"'" else scalar(written)
    except ValueError as error:
        raise _selector_error(f"{printable(written)} is {error}", match.start(1)) from None
    if value is None:
        raise _selector_error(f"'{label}' needs a number or text, not null", match.start(1))
    return label, value, start, position


def _skip_spaces(text: str, position: int) -> int:
    return len(text) - len(text[position:].lstrip())


def _selector_error(problem: str, offset: int) -> PydanticCustomError:
    return PydanticCustomError("selector", "{problem}", {"problem": printable(problem), "offset": offset})


MetricSelector = Annotated[
    Selector,
    PlainValidator(parse_selector),
    PlainSerializer(str),
    WithJsonSchema({"type": "string", "examples": ["overlap[step=500, language=en]"]}),
]


class Form(BaseModel):
    """A mapping of the file: typed, complete, nothing else in it."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, defer_build=True)


class Published(Form):
    """Published data that a number follows from; what else it takes is the reader's, and checked by that."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, JsonValue] = Field(init=False)

    reader: Text
    """What reads the data: one of the experiment's `published.READERS`."""


class Derived(Form):
    """What the published data themselves give: a number, what to compute it from, or both."""

    value: float | None = None
    """The number as it was worked out; in the claim's units unless the published data's statistic says otherwise."""
    source: Text
    """How it was worked out, or by whom."""
    published: Published | None = None
    """The published data it follows from."""

    @model_validator(mode="after")
    def _has_a_number(self) -> Self:
        """Without a number there is nothing derived."""
        if self.value is None and self.published is None:
            raise PydanticCustomError("number", "needs a 'value', 'published' data to compute it from, or both")
        return self


class Evidence(Form):
    """What speaks against a claim: the authors' own data or others' work."""

    statement: Text
    """What contradicts the claim, in a sentence."""
    value: float | None = None
    """Its number, where there is one; in the claim's units unless the published data's statistic says otherwise."""
    source: Text
    """Where that stands."""
    published: Published | None = None
    """The published data it follows from."""


class Claim(Form):
    """A published number, where it stands, and what a run must show for it to hold."""

    id: Name
    """Unique within the suite."""
    statement: Text | None = None
    """The claim in a sentence."""
    source: Text
    """Document, section, table: enough to look the number up."""
    metric: MetricSelector
    """The run's value that is compared: ``name[label=value, ...]``."""
    published: float = Field(ge=-1e300, le=1e300)
    """The published number."""
    tolerance: float = Field(default=0.0, ge=0.0, le=1e300)
    """How far the run's value may lie from the published one, in its units, and still reproduce it."""
    relation: Literal["equal", "at_least", "at_most"] = "equal"
    """What must hold between the run's value and the published number."""
    profile: Name
    """The profile whose scale can test the claim; others print `not testable`."""
    machine: Text | None = None
    """The machine that a time or a memory was published of; what a run takes on another is shown beside it and tests nothing."""
    derived: Derived | None = None
    """What the published data themselves give when worked out again."""
    counter_evidence: tuple[Evidence, ...] = ()
    """What is known to contradict the claim."""

    @model_validator(mode="after")
    def _equality_has_a_tolerance(self) -> Self:
        """No measurement equals a number exactly."""
        if self.relation == "equal" and not self.tolerance:
            raise PydanticCustomError("tolerance", "relation 'equal' needs a tolerance above 0", {"field": "tolerance"})
        return self


class Resources(Form):
    """What one worker, which runs one cell at a time, asks of a machine; engines pass it on, and nothing else reads it."""

    cpus: int | None = Field(default=None, ge=1, le=4096)
    """Cores; if not given, what the engine gives."""
    gpus: int = Field(default=0, ge=0, le=64)
    """GPUs."""
    gpu_type: str | None = Field(default=None, pattern=LABEL)
    """Which GPUs, by the name that a cluster has for them: a feature or type in Slurm, a label of the nodes in Ray."""
    memory: str | None = Field(default=None, pattern=MEMORY)
    """Main memory, as 500m or 64g (powers of 1024)."""
    time: str | None = Field(default=None, pattern=TIME)
    """After so long the engine may stop a worker, which goes on where it was; as 90m, 12h or 2d."""

    @property
    def memory_bytes(self) -> int | None:
        """The memory in bytes.

        >>> Resources(memory="2g").memory_bytes
        2147483648
        """
        return None if self.memory is None else int(self.memory[:-1]) << 10 * "bkmgt".index(self.memory[-1])

    @property
    def minutes(self) -> int | None:
        """The time in minutes.

        >>> Resources(time="12h").minutes
        720
        """
        return None if self.time is None else int(self.time[:-1]) * {"m": 1, "h": 60, "d": 1440}[self.time[-1]]

    def under(self, own: Resources) -> Resources:
        """Return these with what a profile says of its ``own`` in their place; one that wants no GPUs wants no type of them."""
        said = own.model_dump(exclude_unset=True)
        if said.get("gpus") == 0:
            said.setdefault("gpu_type", None)
        return self.model_copy(update=said)


Row = Annotated[dict[str, JsonValue], Field(min_length=1)]


class Matrix(Form):
    """Axes (any other key: a parameter's dotted path and its values), crossed as in GitHub Actions."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Annotated[list[JsonValue], Field(min_length=1)]] = Field(init=False)

    include: tuple[Row, ...] = ()
    """Each adds its keys to the combinations whose axis values it does not change, or is a combination of its own."""
    exclude: tuple[Row, ...] = ()
    """Each removes the combinations that have all its values."""
    max_cells: int = Field(default=MAX_CELLS, ge=1, le=100_000)
    """A matrix of more cells than this is refused."""


class Profile(Form):
    """A named scale: parameters of the experiment, and what its matrix has of its own."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, JsonValue] = Field(init=False)

    matrix: Matrix = Matrix()
    """Replaces the suite's matrix key by key."""
    resources: Resources = Resources()
    """Replaces the suite's resources key by key."""


HOLDERS: dict[str, JsonValue] = {
    "patternProperties": {"^x-": {"description": "Holds keys that others share by anchors."}}
}
"""What editors are told of keys that only hold an anchor."""


class SuiteForm(Form):
    """A suite file: one experiment, its scales, its matrix, and the claims it tests."""

    model_config = ConfigDict(json_schema_extra=HOLDERS)

    suite: Name
    """The suite's name, and its experiment's unless `experiment` says otherwise."""
    question: Text
    """What the suite answers, in a sentence."""
    image: Name = "core"
    """A name in docker/images.lock.json."""
    experiment: Text | None = None
    """A shipped experiment's name or your own package's dotted path; the suite's name if not given."""
    profiles: dict[Name, Profile] = Field(min_length=1)
    """`embedded` is the default; `smoke` and `paper` are the other usual ones."""
    matrix: Matrix = Matrix()
    """What is crossed into cells."""
    resources: Resources = Resources()
    """What a worker asks of a machine under `run --on`."""
    claims: tuple[Claim, ...] = ()
    """Published numbers that runs are compared with."""


def without_holders(root: Node) -> Node:
    """Return a suite without the keys and profiles called ``x-...``, which only hold what others share by anchors."""
    if not isinstance(root.value, dict):
        return root
    entries = {name: entry for name, entry in root.value.items() if not name.startswith("x-")}
    if "profiles" in entries and isinstance((profiles := entries["profiles"].node).value, dict):
        scales = {name: entry for name, entry in profiles.value.items() if not name.startswith("x-")}
        entries["profiles"] = entries["profiles"]._replace(node=replace(profiles, value=scales))
    return replace(root, value=entries)


def suite_schema() -> dict[str, Any]:
    """Return the JSON Schema of a suite file, with the parameters and the readers of each shipped experiment."""
    schema = SuiteForm.model_json_schema()
    for name in known_experiments():
        experiment = find_experiment(name)

        params = _own_schema(experiment.params(), name, schema["$defs"], partial=True)
        params.setdefault("properties", {})["matrix"] = {"$ref": "#/$defs/Matrix"}
        params["properties"]["resources"] = {"$ref": "#/$defs/Resources"}
        properties: dict[str, Any] = {"profiles": {**HOLDERS, "additionalProperties": params}}
        if readers := [_own_schema(reader, name, schema["$defs"]) for reader in experiment.readers().values()]:
            published = {"properties": {"published": {"anyOf": readers}}}
            claim = {"derived": published, "counter_evidence": {"items": published}}
            properties["claims"] = {"items": {"properties": claim}}
        schema.setdefault("allOf", []).append({
            "if": {
                "properties": {"suite": {"const": name}},
                "required": ["suite"],
                "not": {"required": ["experiment"]},
            },
            "then": {"properties": properties},
        })
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "modelassay suite"}


def _own_schema(
    model: type[BaseModel], experiment: str, definitions: dict[str, Any], *, partial: bool = False
) -> dict[str, Any]:
    """Return the schema of an experiment's model; what it refers to moves into ``definitions``."""
    schema = model.model_json_schema(ref_template=f"#/$defs/{experiment}.{{model}}")
    schema = _partial(schema) if partial else schema
    definitions |= {f"{experiment}.{name}": part for name, part in schema.pop("$defs", {}).items()}
    return schema


def _partial(schema: Any) -> Any:
    """Return a schema in which nothing is required: a profile may leave parameters to the matrix."""
    if isinstance(schema, dict):
        return {
            key: _partial(value) for key, value in schema.items() if not (key == "required" and isinstance(value, list))
        }
    return [_partial(item) for item in schema] if isinstance(schema, list) else schema
