"""From a profile, a matrix and overrides to cells: layer over layer, then validated, then named by a hash."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

from pydantic import BaseModel, ValidationError

from modelassay.errors import did_you_mean
from modelassay.experiments import Experiment
from modelassay.storage.files import MAX_JSON_BYTES
from modelassay.storage.store import content_key
from modelassay.suite.located_yaml import JSON, Entry, Node, scalar
from modelassay.suite.matrix import (
    MAX_STEPS,
    WORDS,
    Combination,
    PathIndex,
    axes_of,
    expand,
    layered,
    leaves,
    merge,
    nested,
    overlaid,
)
from modelassay.suite.model_patterns import with_models
from modelassay.suite.overrides import Overrides, parse_overrides
from modelassay.suite.problems import Problems, exists, paths, suggest, validate

SCHEMA_VERSION = 1
"""Part of every cell's id and of run.json; raised when the meaning of a suite file changes."""

MAX_CHARACTERS = MAX_JSON_BYTES // 2
"""Of a profile's leaves as JSON times its cells: a run.json of more could not be read again."""

CELL_ID = r"^[0-9a-f]{12}$"
"""What ``cell_id`` gives; a cell's folder is called so."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One point of the matrix with every parameter resolved."""

    id: str
    """12 hex digits: a hash of the experiment, the parameters and the schema version."""
    params: BaseModel
    """The experiment's validated ``Params``."""
    axes: Mapping[str, JSON]
    """What the matrix gave this cell: dotted paths and values."""

    @property
    def label(self) -> str:
        """``model=zoo:base,seed=0``; text that reads as another value is quoted."""
        return _label(self.axes)


def cell_id(experiment: Experiment, params: BaseModel) -> str:
    """Return the id of the cell with these validated parameters."""
    return stored_cell_id(experiment, params.model_dump(mode="json"))


def stored_cell_id(experiment: Experiment, params: Mapping[str, JSON]) -> str:
    """Return the id of the cell whose validated parameters were stored as ``params``."""
    recipe = {"experiment": experiment.package, "params": params, "schema": SCHEMA_VERSION}
    return content_key(recipe)[:12]


def resolve(
    experiment: Experiment, profile: Entry, matrix: Entry | None, overrides: Sequence[str], problems: Problems
) -> tuple[tuple[Cell, ...], dict[str, str]]:
    """Return the cells of ``profile`` and, for each leaf, the highest layer that set it in any cell.

    ``matrix`` is the suite's own; the profile's replaces it key by key. What is wrong goes to ``problems``.
    """
    params_type, num_before = experiment.params(), len(problems.errors)
    profile = Entry(profile.key, with_models(profile.node, problems))
    matrix = matrix and Entry(matrix.key, with_models(matrix.node, problems))
    matrices = [entry for entry in (matrix, profile.node.entries.get("matrix")) if entry is not None]
    over = parse_overrides(overrides, params_type, layered(*(entry.node for entry in matrices)), problems)
    axes_and_words = layered(*(entry.node for entry in matrices), over.matrix)
    over.refuse_axes(axes_of(axes_and_words), problems)
    if len(problems.errors) > num_before or not _check_names(axes_and_words, params_type, problems):
        return (), {}
    top = matrices[-1].key if matrices else profile.key
    combinations = expand(axes_and_words, top, problems)
    leaves_only = {name: entry for name, entry in profile.node.entries.items() if name not in {"matrix", "resources"}}
    base = replace(profile.node, value=leaves_only)
    size = len(json.dumps(base.plain()))
    if size * len(combinations) > MAX_CHARACTERS:
        problems.add(
            top,
            f"{len(combinations):,} cells of {size:,} characters each, as JSON, are more than a run can record "
            f"({MAX_CHARACTERS:,} together); shorten the profile or the matrix, or keep data in a file",
        )
        return (), {}
    varied = dict.fromkeys(name for combination in combinations for name in combination)
    validator = _Validator(params_type, Entry(profile.key, base), varied, over, problems)
    cells: dict[str, tuple[Cell, Combination]] = {}
    parameters: dict[str, None] = {}
    for combination in combinations:
        params = validator.params(combination)
        if params is None:
            continue
        stored = params.model_dump(mode="json")
        axes = {name: entry.node.plain() for name, entry in combination.items()}
        cell = Cell(id=stored_cell_id(experiment, stored), params=params, axes=axes)
        if cell.id in cells:
            first, original = cells[cell.id]
            problems.add(_difference(original, combination), f"cell {cell.label} repeats cell {first.label}")
        else:
            cells[cell.id] = (cell, combination)
            parameters |= dict.fromkeys(leaves(stored))
    resolved = tuple(cell for cell, _ in cells.values())
    return resolved, _provenance(profile.key.value, base, combinations, over, parameters)


class _Validator:
    """Makes a cell's parameters from its layers: on plain data, with places only where something is wrong."""

    def __init__(
        self, model: type[BaseModel], profile: Entry, axes: Iterable[str], over: Overrides, problems: Problems
    ) -> None:
        """Begin with the leaves of ``profile``, which ``axes`` vary; what is wrong goes to ``problems``."""
        self._model, self._profile, self._over, self._problems = model, profile, over, problems
        base = profile.node.plain()
        assert isinstance(base, dict)
        self._base = base
        self._overrides = [(name, entry.node.plain()) for name, entry in over.leaves.items()]
        self._noted: set[tuple[object, ...]] = set()
        self._index = PathIndex(axes)

    def params(self, combination: Combination) -> BaseModel | None:
        """Return the validated parameters, or note what is wrong with them and return None."""
        axes = [(name, entry.node.plain()) for name, entry in combination.items()]
        tree = overlaid(self._base, [*axes, *self._overrides])
        try:
            return self._model.model_validate_json(json.dumps(tree), strict=True)
        except ValidationError as error:
            # Cells that share a mistake say it once; to find its place and a hint takes a thousand times as long as a cell.
            mistake = tuple(
                (detail["type"], detail["loc"], self._source(detail["loc"], combination))
                for detail in error.errors(include_url=False, include_context=False, include_input=False)
            )
            if mistake not in self._noted:
                self._noted.add(mistake)
                self._note(combination)
        return None

    def _source(self, loc: Sequence[str | int], combination: Combination) -> Node | None:
        """Return the value of an axis that ``loc`` lies within or holds, None where the profile decides."""
        path = ".".join(str(step) for step in loc)
        axis = self._index.covering(path) or (self._index.covering(str(loc[0])) if loc else None)
        return None if axis is None or axis not in combination else combination[axis].node

    def _note(self, combination: Combination) -> None:
        tree = self._profile.node
        for name, entry in [*combination.items(), *self._over.leaves.items()]:
            tree = merge(tree, nested(name, entry))
        label = _label({name: entry.node.plain() for name, entry in combination.items()})
        context = f" in cell {label}; set it in the profile or the matrix"
        validate(self._model, tree, self._problems, top=self._profile.key, context=context)


def _check_names(matrix: Mapping[str, Entry], params: type[BaseModel], problems: Problems) -> bool:
    """Note axes and included keys that are no parameters; return whether the others can be laid over a profile."""
    included = [
        entry
        for item in (matrix["include"].node.items if "include" in matrix else [])
        for entry in item.entries.values()
    ]
    sound = True

    @cache
    def wrong(name: str) -> str | None:
        if exists(params, name):
            return None
        return f"not a parameter{did_you_mean(name, [*paths(params), *WORDS]) or suggest(params, name.split('.'))}"

    for entry in [*axes_of(matrix).values(), *included]:
        name = str(entry.key.value)
        if name.count(".") >= MAX_STEPS:
            problems.add(entry.key, f"names a parameter more than {MAX_STEPS} levels deep")
            sound = False
        elif (message := wrong(name)) is not None:
            problems.add(entry.key, message)
    return sound


def _difference(original: Combination, repeated: Combination) -> Node:
    """Return the value that stands elsewhere in the file than in the combination it repeats."""
    nodes = [
        entry.node for name, entry in repeated.items() if name not in original or original[name].node is not entry.node
    ]
    return (nodes or [entry.node for entry in repeated.values()])[0]


def _provenance(
    profile: object, base: Node, combinations: Sequence[Combination], over: Overrides, parameters: Iterable[str]
) -> dict[str, str]:
    axes: dict[str, Node] = {}
    for combination in combinations:
        for name, entry in combination.items():
            axes.setdefault(name, entry.key)
    by_axis, by_override = PathIndex(axes), PathIndex(over.leaves)
    set_by: dict[str, str] = {}
    for leaf in parameters:
        axis = by_axis.covering(leaf)
        place = _place_of(base, leaf)
        if by_override.covering(leaf) is not None:
            set_by[leaf] = "-o"
        elif axis is not None:
            set_by[leaf] = f"matrix ({axes[axis].place})"
        else:
            set_by[leaf] = f"profile {profile} ({place})" if place else "default"
    return set_by


def _place_of(tree: Node, leaf: str) -> str | None:
    """Return where ``leaf`` is set in ``tree``, None if it is not."""
    entry: Entry | None = None
    for name in leaf.split("."):
        entry = tree.entries.get(name)
        if entry is None:
            return None
        tree = entry.node
    return entry.key.place if entry else None


def _label(axes: Mapping[str, JSON]) -> str:
    return ",".join(f"{name}={_shown(value)}" for name, value in axes.items()) or "the only cell"


def _shown(value: JSON) -> str:
    """Return an axis value as a label shows it."""
    if isinstance(value, str):
        try:
            plain = scalar(value) == value and value.isprintable()
        except ValueError:
            plain = False
        if plain:
            return value
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
