"""One folder per experiment: params.py (torch-free), run.py, analyse.py.

Nothing else knows which experiment it is: a name leads to a package, the package to its three parts, each imported when
it is first asked for.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from modelassay.errors import SuiteError, did_you_mean

_DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)


@dataclass(frozen=True)
class Experiment:
    """A package with ``params.Params``, ``run.run`` and ``analyse.analyse``."""

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

    def run(self) -> Callable[..., None]:
        """Import and return ``run(params, meter, state)``, which runs one cell."""
        run: Callable[..., None] = self._part("run").run
        return run

    def analyse(self) -> Callable[..., Any]:
        """Import and return ``analyse(tables)``, which looks across cells."""
        analyse: Callable[..., Any] = self._part("analyse").analyse
        return analyse

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
    return sorted(found.name.replace("_", "-") for found in pkgutil.iter_modules(__path__) if found.ispkg)


def find_experiment(name: str, *, package: str | None = None) -> Experiment:
    """Return the shipped experiment called ``name``, or the one that ``package`` names: shipped, or any importable package.

    Raises:
        SuiteError: There is none.
    """
    wanted, known = package or name, known_experiments()
    if wanted in known:
        return Experiment(name, f"{__name__}.{wanted.replace('-', '_')}")
    if package is not None and _DOTTED.fullmatch(package) and _exists(package):
        return Experiment(name, package)
    hint = did_you_mean(wanted, known) or f"; shipped: {', '.join(known) or 'none'}"
    advice = "your own must be importable (PYTHONPATH)" if package else "name your own package with 'experiment:'"
    raise SuiteError(f"no experiment {wanted!r}{hint}; {advice}")


def _exists(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except (ModuleNotFoundError, ValueError):  # ValueError: a module that was made by hand, like __main__
        return False
