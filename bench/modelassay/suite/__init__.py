"""A suite: one experiment, one profile, every cell resolved and validated.

``load_suite`` is the only way in for a user's file; whatever is wrong with it is one line, ``file:line:column: dotted.path:
what is wrong``. Behind it nothing is checked again. A cell is built from layers, low to high: the defaults of the
experiment's ``Params``, the profile's leaves, the matrix (axes and include), the overrides of the command line.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, JsonValue, ValidationError, create_model

import modelassay
from modelassay.errors import SuiteError, did_you_mean, printable
from modelassay.experiments import Experiment, find_experiment
from modelassay.experiments.references import AS_STORED
from modelassay.storage.stray import is_stray
from modelassay.suite.cells import CELL_ID, SCHEMA_VERSION, Cell, resolve, stored_cell_id
from modelassay.suite.form import (
    Claim,
    Derived,
    Evidence,
    Form,
    Name,
    Published,
    Resources,
    Selector,
    SuiteForm,
    Text,
    parse_selector,
    suite_schema,
    without_holders,
)
from modelassay.suite.located_yaml import JSON, Node, read_file
from modelassay.suite.problems import Problems, validate

__all__ = [
    "SCHEMA_VERSION",
    "Cell",
    "Claim",
    "Contents",
    "Derived",
    "Evidence",
    "Published",
    "Resources",
    "Selector",
    "Suite",
    "check_suite",
    "load_suite",
    "parse_selector",
    "read_claims",
    "read_contents",
    "shipped_suites",
    "suite_from_json",
    "suite_schema",
]


@dataclass(frozen=True, kw_only=True)
class Suite:
    """A suite file read under one profile and a command line's overrides."""

    name: str
    """The suite's name."""
    question: str
    """What it answers."""
    image: str
    """The image it runs in, a name in docker/images.lock.json."""
    profile: str
    """The scale; every result carries it."""
    experiment: Experiment
    """What runs a cell and analyses the run."""
    cells: tuple[Cell, ...]
    """In the order of the matrix, the first axis outermost."""
    claims: tuple[Claim, ...]
    """The published numbers that the run is compared with, those of other profiles too."""
    source: Path
    """The file it was read from."""
    provenance: Mapping[str, str]
    """The layer that set each leaf: default, profile NAME (file:line), matrix (file:line), or -o."""
    overrides: tuple[str, ...]
    """As given on the command line."""
    resources: Resources = Resources()
    """What a worker asks of a machine, the suite's under the profile's."""

    def to_json(self) -> dict[str, Any]:
        """Return everything ``suite_from_json`` needs to make this suite again without its file."""
        return {
            "schema_version": SCHEMA_VERSION,
            "suite": self.name,
            "question": self.question,
            "image": self.image,
            "profile": self.profile,
            "experiment": {"name": self.experiment.name, "package": self.experiment.package},
            "source": str(self.source.absolute()),
            "overrides": list(self.overrides),
            "provenance": dict(self.provenance),
            "resources": self.resources.model_dump(mode="json", exclude_unset=True),
            "claims": [claim.model_dump(mode="json") for claim in self.claims],
            "cells": [
                {"id": cell.id, "axes": dict(cell.axes), "params": cell.params.model_dump(mode="json")}
                for cell in self.cells
            ],
        }


def load_suite(reference: str, *, profile: str | None = None, overrides: Sequence[str] = ()) -> Suite:
    """Read the shipped suite or the ``.yaml`` file called ``reference`` under ``profile`` and ``overrides``.

    Without ``profile``: ``embedded`` if there is one, else the only one. An override is ``a.b=c`` for a parameter or
    ``matrix.AXIS=[...]`` for an axis, its value YAML.

    Raises:
        SuiteError: The first mistake in file order, and how many more there are.
    """
    path = _find(reference)
    file = _File(path)
    chosen = file.choose(profile)
    cells, provenance = file.resolve(chosen, overrides) if chosen else ((), {})
    resources = file.resources(chosen)
    file.problems.raise_first()
    form, experiment = file.complete()
    return Suite(
        name=form.suite,
        question=form.question,
        image=form.image,
        profile=chosen,
        experiment=experiment,
        cells=cells,
        claims=form.claims,
        source=path,
        provenance=provenance,
        overrides=tuple(overrides),
        resources=resources,
    )


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What is in a valid suite file."""

    sizes: Mapping[str, int]
    """The number of cells of each profile."""
    claims: tuple[Claim, ...]
    """Its claims."""
    experiment: Experiment
    """Whose readers read the data that the claims name."""


def read_contents(path: str | Path) -> Contents:
    """Read the file at ``path`` once, validate it under each of its profiles, and return what is in it.

    Raises:
        SuiteError: As ``load_suite``, over all profiles.
    """
    file = _File(Path(path))
    sizes = {name: len(file.resolve(name, ())[0]) for name in file.profiles}
    for name in file.profiles:
        file.resources(name)
    file.problems.raise_first()
    form, experiment = file.complete()
    return Contents(sizes=sizes, claims=form.claims, experiment=experiment)


def check_suite(path: str | Path) -> list[tuple[str, int]]:
    """Validate the file at ``path`` under each of its profiles; return their names and numbers of cells.

    Raises:
        SuiteError: As ``load_suite``, over all profiles.
    """
    return [*read_contents(path).sizes.items()]


def read_claims(path: str | Path) -> tuple[tuple[Claim, ...], Experiment]:
    """Return the claims of the file at ``path``, and the experiment whose readers read the data they name.

    Raises:
        SuiteError: As ``check_suite``.
    """
    file = _File(Path(path))
    file.problems.raise_first()
    form, experiment = file.complete()
    return form.claims, experiment


def shipped_suites() -> dict[str, Path]:
    """Return the suites that come with modelassay by name, sorted: a wheel has them inside, a checkout beside ``bench``."""
    package = Path(modelassay.__file__).parent
    folder = package / "suites" if (package / "suites").is_dir() else package.parents[1] / "suites"
    return {path.stem: path for path in sorted(folder.glob("*.yaml")) if not is_stray(path.name)}


def suite_from_json(data: Any, *, file: str = "run.json") -> Suite:
    """Make a suite again from what ``Suite.to_json`` gave; ``file`` is where errors say it came from.

    A cell keeps its id where this version's ``Params`` fills in a parameter that did not exist when the run began: the id
    is the hash of the parameters as they were stored.

    Raises:
        SuiteError: Not such data, parameters that this version's ``Params`` refuses, or parameters changed by hand.
    """
    try:
        stored = _Stored.model_validate_json(json.dumps(data), strict=True)
        experiment = find_experiment(stored.experiment.name, package=stored.experiment.package)
        params_type = experiment.params()
        cells = tuple(_restore(params_type, experiment, cell) for cell in stored.cells)
        if len({cell.id for cell in cells}) < len(cells):
            raise SuiteError("a cell stands twice; run.json was changed by hand", path="cells")
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise SuiteError(
            f"{first['msg']}; written by another version, or changed by hand?", file=file, path=printable(where)
        ) from None
    except SuiteError as error:
        raise SuiteError(error.message, file=file, path=error.path) from None
    return Suite(
        name=stored.suite,
        question=stored.question,
        image=stored.image,
        profile=stored.profile,
        experiment=experiment,
        cells=cells,
        claims=stored.claims,
        source=Path(stored.source),
        provenance=stored.provenance,
        overrides=stored.overrides,
        resources=stored.resources,
    )


class _StoredExperiment(Form):
    name: str
    package: str


class _StoredCell(Form):
    id: str = Field(pattern=CELL_ID)
    axes: dict[str, JsonValue]
    params: dict[str, JsonValue]


class _Stored(Form):
    """What ``Suite.to_json`` writes."""

    schema_version: Literal[1]
    suite: Name
    question: Text
    image: Name
    profile: Name
    experiment: _StoredExperiment
    source: str
    overrides: tuple[str, ...]
    provenance: dict[str, str]
    resources: Resources = Resources()
    claims: tuple[Claim, ...]
    cells: tuple[_StoredCell, ...]


def _restore(params_type: type[BaseModel], experiment: Experiment, stored: _StoredCell) -> Cell:
    params = params_type.model_validate_json(json.dumps(stored.params), strict=True, context=AS_STORED)
    if stored_cell_id(experiment, stored.params) != stored.id:
        raise SuiteError(
            "its parameters do not give its id; they were changed by hand", path=f"cells.{printable(stored.id)}"
        )
    return Cell(id=stored.id, params=params, axes=stored.axes)


class _File:
    """A suite file with what was found wrong in it so far; sections that are sound are looked at even if others are not."""

    def __init__(self, path: Path) -> None:
        """Read the file and validate its form; raise at once only for what is no YAML mapping."""
        self.root = without_holders(read_file(path))
        self.problems = Problems()
        if not isinstance(self.root.value, dict):
            what = "empty" if self.root.value is None else "not a mapping"
            raise self.root.error(f"{what}; a suite has at least 'suite', 'question' and 'profiles'")
        self.form = validate(SuiteForm, self.root, self.problems)
        broken = {str(error.path).partition(".")[0].partition("[")[0] for error in self.problems.errors.values()}
        self.sound = "profiles" in self.root.entries and not broken & {"profiles", "matrix"}
        # A misspelt key may be the one that names the experiment.
        misspelt = "experiment" not in self.root.entries and broken - set(SuiteForm.model_fields)
        nameless = "suite" not in self.root.entries or broken & {"suite", "experiment"}
        self.experiment = None if misspelt or nameless else self._experiment()
        if self.sound:
            self._check_claims()
        if self.experiment is not None:
            self._check_published(self.experiment)

    @property
    def profiles(self) -> list[str]:
        """The profiles that can be resolved: none where they or the matrix are malformed."""
        return list(self.root.entries["profiles"].node.entries) if self.sound else []

    def complete(self) -> tuple[SuiteForm, Experiment]:
        """Return the parts that are there once no problem was raised."""
        assert self.form is not None
        assert self.experiment is not None
        return self.form, self.experiment

    def choose(self, profile: str | None) -> str:
        """Return the profile to read, empty where there is none to read."""
        names = self.profiles
        if not names or profile in names:
            return profile or ""
        if profile is None and ("embedded" in names or len(names) == 1):
            return "embedded" if "embedded" in names else names[0]
        wrong = f"no profile {profile!r}{did_you_mean(profile, names)}; " if profile is not None else ""
        self.problems.add(self.root.entries["profiles"].key, f"{wrong}choose one of {', '.join(names)} with --profile")
        return ""

    def resolve(self, profile: str, overrides: Sequence[str]) -> tuple[tuple[Cell, ...], dict[str, str]]:
        """Return the cells of ``profile`` and the layer that set each leaf; what is wrong goes to ``problems``."""
        if self.experiment is None:
            return (), {}
        matrix = self.root.entries.get("matrix")
        return resolve(
            self.experiment, self.root.entries["profiles"].node.entries[profile], matrix, overrides, self.problems
        )

    def resources(self, profile: str) -> Resources:
        """Return the suite's resources under those of ``profile``; a type of GPU without GPUs goes to ``problems``."""
        if self.form is None or profile not in self.form.profiles:
            return Resources()
        resources = self.form.resources.under(self.form.profiles[profile].resources)
        if resources.gpu_type is not None and not resources.gpus:
            within = [self.root, self.root.entries["profiles"].node.entries[profile].node]
            named = [node.entries["resources"].node.entries for node in within if "resources" in node.entries]
            place = next(entries["gpu_type"].key for entries in reversed(named) if "gpu_type" in entries)
            self.problems.add(place, f"names a type of GPU, and 'gpus' is 0 under profile {profile}; add gpus: 1")
        return resources

    def _experiment(self) -> Experiment | None:
        """Return the experiment if it and its Params can be imported."""
        place = self.root.entries.get("experiment") or self.root.entries["suite"]
        package = self.root.entries["experiment"].node.value if "experiment" in self.root.entries else None
        try:
            experiment = find_experiment(
                str(self.root.entries["suite"].node.value), package=str(package) if package else None
            )
            experiment.params()
        except SuiteError as error:
            self.problems.add(place.node, error.message)
            return None
        return experiment

    def _check_claims(self) -> None:
        """Note claims that share an id, and claims whose profile does not exist."""
        claims = self.root.entries["claims"].node.items if "claims" in self.root.entries else []
        first: dict[JSON, Node] = {}
        for claim in claims:
            claim_id, profile = claim.entries.get("id"), claim.entries.get("profile")
            if claim_id is not None and isinstance(claim_id.node.value, str):
                if claim_id.node.value in first:
                    self.problems.add(
                        claim_id.node, f"used already by {first[claim_id.node.value].path}; ids are unique"
                    )
                first.setdefault(claim_id.node.value, claim)
            if profile is not None and isinstance(name := profile.node.value, str) and name not in self.profiles:
                hint = did_you_mean(name, self.profiles) or f"; it has {', '.join(self.profiles)}"
                self.problems.add(profile.node, f"no profile {name!r}{hint}")

    def _check_published(self, experiment: Experiment) -> None:
        """Note `published:` mappings whose reader does not exist or refuses them."""
        readers = experiment.readers()
        claims = self.root.entries["claims"].node.items if "claims" in self.root.entries else []
        for claim in claims:
            evidence = claim.entries["counter_evidence"].node.items if "counter_evidence" in claim.entries else []
            derived = [claim.entries["derived"].node] if "derived" in claim.entries else []
            for item in (*derived, *evidence):
                entry = item.entries.get("published")
                reader = None if entry is None else entry.node.entries.get("reader")
                if entry is None or reader is None or not isinstance(name := reader.node.value, str):
                    continue  # none, or the form refuses it
                if name in readers:
                    holder = create_model("Holder", published=(readers[name], ...))
                    validate(holder, replace(item, value={"published": entry}), self.problems)
                else:
                    hint = did_you_mean(name, readers) or f"; it has {', '.join(readers) or 'none'}"
                    self.problems.add(reader.node, f"{experiment.package}.published has no reader {name!r}{hint}")


def _find(reference: str) -> Path:
    """Return the path that ``reference`` names, relative to here where it can be."""
    if reference.endswith((".yaml", ".yml")) or "/" in reference:
        return Path(reference)
    suites = shipped_suites()
    if reference not in suites:
        hint = did_you_mean(reference, suites) or f"; shipped: {', '.join(suites) or 'none'}"
        raise SuiteError(f"no suite of this name{hint} (or give the path of a .yaml file)", file=printable(reference))
    here = Path.cwd()
    return suites[reference].relative_to(here) if suites[reference].is_relative_to(here) else suites[reference]
