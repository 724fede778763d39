"""Which code and which libraries a result depends on: the import closure of what computes it, found from the sources.

Nothing is imported. What a module imports inside functions counts; what it imports for type checkers alone does not, and
``importlib.import_module(name)`` is not seen: what decides a result is imported by name.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import importlib.util
import platform
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

from modelassay import __version__
from modelassay.storage.stray import is_stray

LIBRARIES: Final = (
    "torch", "triton", "transformers", "peft", "tokenizers", "safetensors", "numpy", "scipy", "polars",
    "huggingface-hub", "modelassay",
)  # fmt: skip

LIBRARIES_BEHIND: Final = {"transformers": ("tokenizers", "safetensors", "jinja2", "regex"), "torch": ("triton",)}
"""What decides a metric without being imported by us: chat templates are rendered and text is cut into tokens behind transformers."""

NOT_DECIDING: Final = frozenset({"huggingface-hub", "httpx", "polars", "modelassay"})
"""Carry bytes that a commit determines, or read what is recorded; of modelassay itself the sources are compared."""

DATA_SUFFIXES: Final = frozenset({".json", ".txt"})
"""Corpora and recipes beside a module decide its results as much as it does."""


@dataclass(frozen=True)
class Source:
    """One module as it lies on the disk."""

    files: tuple[tuple[str, str], ...]
    """Path as it is imported (``modelassay/recording/meter.py``) and 16 hex digits of BLAKE2b: its own and the data beside it."""
    imports: tuple[str, ...]
    """Modules that it imports, the packages above them included."""


class SourceGraph:
    """The modules of some top-level packages by name, read when first asked for; small, and sent to every cell."""

    def __init__(self) -> None:
        """Begin without any."""
        self._sources: dict[str, Source | None] = {}
        self._versions: dict[str, str | None] = {}

    def closure(self, *roots: str) -> dict[str, str]:
        """Return file -> hash of the modules ``roots`` and all that they import, sorted.

        Only modules of modelassay, of modelassay_kernels and of the packages of ``roots`` are followed; the compiled extension
        counts where modelassay_kernels is among them.

        Raises:
            ModuleNotFoundError: a root cannot be found.
        """
        files: dict[str, str] = {}
        modules = self._reached(roots)
        for source in modules.values():
            files |= source.files
        if "modelassay_kernels" in modules and (native := native_extension()) is not None:
            files["modelassay_kernels/_native"] = _digest(native.read_bytes())
        return dict(sorted(files.items()))

    def libraries(self, *roots: str) -> dict[str, str | None]:
        """Return distribution -> version of what ``roots`` and all that they import are computed with, and of Python.

        These are the libraries that any of those modules imports, and those that work behind them; a new version of one may
        change a metric. None for what is not installed. None of them is imported.

        Raises:
            ModuleNotFoundError: a root cannot be found.
        """
        modules = self._reached(roots)
        tops = {name.split(".")[0] for source in modules.values() for name in source.imports}
        foreign = tops - {module.split(".")[0] for module in modules} - sys.stdlib_module_names
        names = {_distribution(top) for top in foreign if top}
        names |= {behind for name in names for behind in LIBRARIES_BEHIND.get(name, ())}
        return {"python": platform.python_version()} | {
            name: self._version(name) for name in sorted(names - NOT_DECIDING)
        }

    def _version(self, name: str) -> str | None:
        if name not in self._versions:
            self._versions[name] = _version(name)
        return self._versions[name]

    def _reached(self, roots: tuple[str, ...]) -> dict[str, Source]:
        """Return the modules ``roots`` and all that they import, of our packages and theirs."""
        followed = {"modelassay", "modelassay_kernels", *(root.split(".")[0] for root in roots)}
        waiting, reached = [*roots], dict[str, Source]()
        seen = set[str]()
        while waiting:
            module = waiting.pop()
            if module in seen:
                continue
            seen.add(module)
            source = self._read(module)
            if source is not None:
                reached[module] = source
                waiting += [name for name in source.imports if name.split(".")[0] in followed]
            elif module in roots:
                raise ModuleNotFoundError(f"No module named {module!r}", name=module)
        return reached

    def _read(self, module: str) -> Source | None:
        if module not in self._sources:
            path = module_file(module)
            self._sources[module] = None if path is None else _source(module, path)
        return self._sources[module]


def _source(module: str, path: Path) -> Source:
    text = path.read_bytes()
    inside = "/".join(module.split(".")[: None if path.name == "__init__.py" else -1])
    files = [(f"{inside}/{path.name}", _digest(text))]
    if path.name == "__init__.py":  # once a folder
        data = sorted(
            file for file in path.parent.iterdir() if file.suffix in DATA_SUFFIXES and not is_stray(file.name)
        )
        files += [(f"{inside}/{file.name}", _digest(file.read_bytes())) for file in data]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    names = dict.fromkeys(above for name in _imports(package, text) for above in _with_parents(name))
    own = [name for name in (*names, *_with_parents(module)) if name != module]
    return Source(files=tuple(files), imports=tuple(own))


@cache
def _imports(package: str, text: bytes) -> tuple[str, ...]:
    """Return what a module of a package imports, modules and names in them, by its source; none where that cannot be parsed."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):  # the cell that imports it will say so
        return ()
    names: list[str] = []
    for node in _runtime_nodes(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            # a module, or a name in one: then there is no such file
            names += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    return tuple(names)


def _runtime_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            waiting += node.orelse
            continue
        yield node
        waiting += ast.iter_child_nodes(node)


def _with_parents(module: str) -> Iterable[str]:
    parts = module.split(".")
    return [".".join(parts[:length]) for length in range(1, len(parts) + 1)]


def module_file(module: str) -> Path | None:
    """Return the source of a module without importing it or a package above it; None where there is none."""
    top, *below = module.split(".")
    for location in _locations(top):
        folder = location.joinpath(*below)
        for path in (folder / "__init__.py", folder.with_suffix(".py")):
            if path.is_file():
                return path
    return None


@cache
def _locations(top: str) -> tuple[Path, ...]:
    try:
        spec = importlib.util.find_spec(top)
    except ValueError:  # a module that was made by hand, like __main__
        return ()
    return tuple(Path(location) for location in (spec.submodule_search_locations or ())) if spec else ()


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def library_versions() -> dict[str, str | None]:
    """Return the installed version of each of ``LIBRARIES`` without importing any; None where there is none."""
    return {name: _version(name) or (__version__ if name == "modelassay" else None) for name in LIBRARIES}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


@cache
def _distribution(package: str) -> str:
    """Return the name of the distribution that an import package belongs to, the package's own where none says so."""
    name = package.replace("_", "-").lower()
    if _version(name) is None:  # ruamel, yaml, PIL: another name; asking all distributions takes 0.2 s
        name = (importlib.metadata.packages_distributions().get(package) or [name])[0].replace("_", "-").lower()
    return name


def _deciding(versions: Mapping[str, str | None]) -> Mapping[str, str | None]:
    """Return the versions as far as they decide a metric.

    Of Python the language's version, 3.11 of 3.11.2: an image and its host seldom have one patch. No Triton beside a CPU build
    of torch: no tensor of such a build reaches a Triton kernel.
    """
    chosen = {**versions, "python": ".".join((versions.get("python") or "").split(".")[:2]) or None}
    if (versions.get("torch") or "").endswith("+cpu"):
        chosen["triton"] = None
    return chosen


def native_extension() -> Path | None:
    """Return the file of the compiled ``modelassay_kernels._native``, None where it was not built; imports nothing."""
    parent = importlib.util.find_spec("modelassay_kernels")
    for finder in sys.meta_path if parent else ():
        # Asked one by one: importlib.util.find_spec would import the parent package, and that torch.
        find = getattr(finder, "find_spec", None)
        assert parent is not None
        spec = find("modelassay_kernels._native", parent.submodule_search_locations) if find else None
        if spec is not None and spec.origin:
            return Path(spec.origin)
    return None


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Say in words what changed between two states of what decides a run; empty when metrics made by both may be mixed.

    Args:
        old: ``{"code": ..., "libraries": ..., "files": ...}`` of the earlier time, each name -> hash or version; a key that is
            missing, as in older runs, is not compared.
        new: the same of now; of libraries, those that decide.

    >>> then = {"code": {"modelassay/recording/meter.py": "aa", "modelassay/old.py": "bb"}, "libraries": {"torch": "2.11.0"}}
    >>> now = {"code": {"modelassay/recording/meter.py": "ab", "modelassay/new.py": "cc"}, "libraries": {"torch": "2.13.0"}}
    >>> for line in differences(then, now):
    ...     print(line)
    modelassay/new.py was added
    modelassay/old.py was removed
    modelassay/recording/meter.py changed
    torch changed from 2.11.0 to 2.13.0
    """
    lines = []
    for kind in ("code", "files"):
        if kind in old and kind in new:
            before, after = old[kind], new[kind]
            for name in sorted(before.keys() | after.keys()):
                if name not in before:
                    lines.append(f"{name} was added")
                elif name not in after:
                    lines.append(f"{name} was removed")
                elif before[name] != after[name]:
                    lines.append(f"{name} changed")
    if "libraries" in old and "libraries" in new:
        names = [*LIBRARIES, *sorted(new["libraries"].keys() - set(LIBRARIES))]
        before, after = _deciding(old["libraries"]), _deciding(new["libraries"])
        for name in (name for name in names if name in new["libraries"] and name not in NOT_DECIDING):
            was, now = before.get(name) or "not installed", after.get(name) or "not installed"
            if was != now:
                lines.append(f"{name} changed from {was} to {now}")
    return lines
