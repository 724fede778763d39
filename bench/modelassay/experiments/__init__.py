"""One folder per experiment: params.py (torch-free), run.py, analyse.py; published.py where it reads what others published.

Nothing else knows which experiment it is: a name leads to a package, the package to its three parts, each imported when
it is first asked for.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from modelassay.data.published import Reader
from modelassay.errors import SuiteError, did_you_mean
from modelassay.storage.needs import Need
from modelassay.storage.store import Store

_DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class StageCost:
    """What one stage of a cell will take, as far as its parameters tell; ``run --plan`` adds these up."""

    name: str
    index: int = 0
    tokens: int = 0
    """That are trained on, generated or read."""
    bytes_kept: int = 0
    """On the disk afterwards."""
    units: tuple[str, ...] = ()
    """Names of the microbatches that time it; without them no run can tell what it costs."""
    speed: tuple[str, ...] = ()
    """What decides how long a token takes, beside the machine: model, precision, engine."""


@dataclass(frozen=True)
class Experiment:
    """A package with ``params.Params``, ``run.run`` and ``analyse.analyse``.

    ``params`` may also define, torch-free, ``needs(params)``: what must be there before a cell starts, ``stages(params)``: what it
    will do and keep, and ``cores(params)``: that its times mean nothing, and how many cores it keeps busy.
    """

    name: str
    """The name of the suite it belongs to, or the package's own."""
    package: str
    """What is imported, as in ``modelassay.experiments.sft_drift``."""

    def params(self) -> type[BaseModel]:
        """Import and return ``Params``: every parameter of a cell, frozen, refusing unknown keys.

        Raises:
            SuiteError: The package has no such model.
        """
        params: Any = getattr(self._part("params"), "Params", None)
        if not (isinstance(params, type) and issubclass(params, BaseModel)):
            raise SuiteError(f"{self.package}.params has no pydantic model named Params")
        if not params.model_config.get("frozen") or params.model_config.get("extra") != "forbid":
            raise SuiteError(
                f"{self.package}.params.Params needs model_config = ConfigDict(frozen=True, extra='forbid')"
            )
        return params

    def needs(self, params: BaseModel) -> list[Need]:
        """Return the files and artifacts that a cell needs before it starts; none where ``params.needs`` is not defined."""
        needs: Callable[[BaseModel], list[Need]] | None = getattr(self._part("params"), "needs", None)
        return [] if needs is None else needs(params)

    def stages(self, params: BaseModel) -> list[StageCost]:
        """Return the stages of a cell and what they cost; none where ``params.stages`` is not defined."""
        stages: Callable[[BaseModel], list[StageCost]] | None = getattr(self._part("params"), "stages", None)
        return [] if stages is None else stages(params)

    def cores(self, params: BaseModel) -> int | None:
        """Return how many cores a cell keeps busy; None for one that is timed, as where ``params.cores`` is not defined."""
        cores: Callable[[BaseModel], int | None] | None = getattr(self._part("params"), "cores", None)
        return None if cores is None else cores(params)

    def run(self) -> Callable[..., None]:
        """Import and return ``run(params, cell)``, which runs one cell."""
        run: Callable[..., None] = self._part("run").run
        return run

    def analyse(self) -> Callable[..., Any]:
        """Import and return ``analyse(tables)``, which looks across cells."""
        analyse: Callable[..., Any] = self._part("analyse").analyse
        return analyse

    def readers(self) -> Mapping[str, type[Reader]]:
        """Import and return the readers of published data by name: ``published.READERS``, none without such a module."""
        if not _exists(f"{self.package}.published"):
            return {}
        readers: Mapping[str, type[Reader]] = self._part("published").READERS
        return readers

    def reader(self, published: Mapping[str, Any]) -> Reader:
        """Return a validated `published:` mapping of a suite as the reader that it names."""
        return self.readers()[published["reader"]].model_validate(published)

    def rows(self, params: BaseModel, count: int, store: Store) -> list[dict[str, Any]]:
        """Return the first ``count`` training rows of a cell: ``rows.preview``, where the experiment has one.

        Each has ``row`` (its name), ``prompt`` (as the template renders it), ``num_tokens`` and ``tokens``: position, id, token, loss.

        Raises:
            SuiteError: it trains on no rows that could be shown.
        """
        if not _exists(f"{self.package}.rows"):
            raise SuiteError(f"{self.name} has no training rows to show")
        preview: Callable[..., list[dict[str, Any]]] = self._part("rows").preview
        return preview(params, count, store=store)

    def _part(self, part: str) -> Any:
        module = f"{self.package}.{part}"
        try:
            return importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{module}.".startswith(f"{error.name}."):
                raise
            raise SuiteError(
                f"there is no module {module}; an experiment is a package with params, run and analyse"
            ) from None


def known_experiments() -> list[str]:
    """Return the names of the shipped experiments, sorted."""
    return sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(__path__) if module.ispkg)


def find_experiment(name: str, *, package: str | None = None) -> Experiment:
    """Return the shipped experiment called ``name``, or the one that ``package`` names: shipped, or any importable package.

    Raises:
        SuiteError: There is none.
    """
    choice, names = package or name, known_experiments()
    if choice in names:
        return Experiment(name, f"{__name__}.{choice.replace('-', '_')}")
    if package is not None and _DOTTED.fullmatch(package) and _exists(package):
        return Experiment(name, package)
    hint = did_you_mean(choice, names) or f"; shipped: {', '.join(names) or 'none'}"
    advice = "your own must be importable (PYTHONPATH)" if package else "name your own package with 'experiment:'"
    raise SuiteError(f"no experiment {choice!r}{hint}; {advice}")


def _exists(package: str) -> bool:
    if package == "__main__":  # whoever started Python, which is no experiment
        return False
    try:
        return importlib.util.find_spec(package) is not None
    except (ModuleNotFoundError, ValueError):  # ValueError: a module that was made by hand, like __main__
        return False
