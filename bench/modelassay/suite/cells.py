"""From a profile, a matrix and overrides to cells: layer over layer, then validated, then named by a hash."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pydantic import BaseModel

from modelassay.errors import did_you_mean
from modelassay.experiments import Experiment
from modelassay.storage.store import content_key
from modelassay.suite.located_yaml import JSON, Entry, Node, scalar
from modelassay.suite.matrix import WORDS, Combination, axes_of, covers, expand, layered, leaves, merge, nested
from modelassay.suite.model_patterns import with_models
from modelassay.suite.overrides import Overrides, parse_overrides
from modelassay.suite.problems import Problems, exists, paths, suggest, validate

SCHEMA_VERSION = 1
"""Part of every cell's id and of run.json; raised when the meaning of a suite file changes."""

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
    if len(problems.errors) > num_before:
        return (), {}
    _check_names(axes_and_words, params_type, problems)
    combinations = expand(axes_and_words, matrices[-1].key if matrices else profile.key, problems)
    leaves_only = {name: entry for name, entry in profile.node.entries.items() if name != "matrix"}
    base = replace(profile.node, value=leaves_only)
    cells: dict[str, tuple[Cell, Combination]] = {}
    for combination in combinations:
        tree = base
        for name, entry in [*combination.items(), *over.leaves.items()]:
            tree = merge(tree, nested(name, entry))
        axes = {name: entry.node.plain() for name, entry in combination.items()}
        context = f" in cell {_label(axes)}; set it in the profile or the matrix"
        params = validate(params_type, tree, problems, top=profile.key, context=context)
        if params is None:
            continue
        cell = Cell(id=cell_id(experiment, params), params=params, axes=axes)
        if cell.id in cells:
            first, original = cells[cell.id]
            problems.add(_difference(original, combination), f"cell {cell.label} repeats cell {first.label}")
        else:
            cells[cell.id] = (cell, combination)
    resolved = tuple(cell for cell, _ in cells.values())
    return resolved, _provenance(profile.key.value, base, combinations, over, resolved)


def _check_names(matrix: Mapping[str, Entry], params: type[BaseModel], problems: Problems) -> None:
    """Note axes and included keys that are no parameters."""
    included = [
        entry
        for item in (matrix["include"].node.items if "include" in matrix else [])
        for entry in item.entries.values()
    ]
    for entry in [*axes_of(matrix).values(), *included]:
        name = str(entry.key.value)
        if not exists(params, name):
            hint = did_you_mean(name, [*paths(params), *WORDS]) or suggest(params, name.split("."))
            problems.add(entry.key, f"not a parameter{hint}")


def _difference(original: Combination, repeated: Combination) -> Node:
    """Return the value that stands elsewhere in the file than in the combination it repeats."""
    nodes = [
        entry.node for name, entry in repeated.items() if name not in original or original[name].node is not entry.node
    ]
    return (nodes or [entry.node for entry in repeated.values()])[0]


def _provenance(
    profile: object, base: Node, combinations: Sequence[Combination], over: Overrides, cells: Sequence[Cell]
) -> dict[str, str]:
    axes: dict[str, Node] = {}
    for combination in combinations:
        for name, entry in combination.items():
            axes.setdefault(name, entry.key)
    set_by: dict[str, str] = {}
    for leaf in dict.fromkeys(leaf for cell in cells for leaf in leaves(cell.params.model_dump(mode="json"))):
        axis = next((key for name, key in axes.items() if covers(name, leaf)), None)
        place = _place_of(base, leaf)
        if any(covers(name, leaf) for name in over.leaves):
            set_by[leaf] = "-o"
        elif axis is not None:
            set_by[leaf] = f"matrix ({axis.place})"
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
