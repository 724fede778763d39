"""A run directory and what its ``run.json`` says."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from modelassay.errors import HostError, UsageError, did_you_mean, printable
from modelassay.machine import environment
from modelassay.machine.code import SourceGraph, library_versions
from modelassay.recording.parquet import FOLDER as TABLES
from modelassay.recording.status import CellStatus, read_status
from modelassay.recording.tables import RunData, read_tables
from modelassay.runs.folder import CELLS, MANIFEST, MANIFEST_DRAFT, Scaffold, is_run, require_free
from modelassay.runs.inputs import file_digests, require_absolute
from modelassay.storage.durable import sync_file
from modelassay.storage.files import no_space, require_folders, require_regular_tree, unwritable
from modelassay.storage.needs import Need
from modelassay.storage.sealed import Unsealed, read_sealed, sealed_json
from modelassay.suite import Cell, Suite, shipped_suites, suite_from_json

SCHEMA = 3
"""Version of run.json; no other is read. 2: code by import closure, digests of input files, facts. 3: checksums, here and in logs."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One execution of a suite: its directory and what ``run.json`` says."""

    folder: Path
    suite: Suite
    environment: dict[str, Any]
    code: dict[str, str]
    """Source file -> hash, of everything that can change a metric."""
    files: dict[str, str]
    """Input file or folder -> digest."""

    def needs(self, cells: Iterable[Cell]) -> list[Need]:
        """Return what ``cells`` need before they start."""
        return needs_of(self.suite, cells)

    def cell_dir(self, cell: Cell) -> Path:
        """Return the folder of ``cell``."""
        return self.folder / "cells" / cell.id

    def statuses(self) -> dict[str, CellStatus]:
        """Return how each cell stands, by its id."""
        return {cell.id: read_status(self.cell_dir(cell)) for cell in self.suite.cells}

    def data(self) -> RunData:
        """Return what the logs say now."""
        cells = {cell.id: (self.cell_dir(cell), cell.params.model_dump(mode="json")) for cell in self.suite.cells}
        data = read_tables(cells, profile=self.suite.profile, beside=self.folder / TABLES)
        return replace(data, environment=self.environment)


def needs_of(suite: Suite, cells: Iterable[Cell]) -> list[Need]:
    """Return what ``cells`` of ``suite`` need before they start."""
    return [need for cell in cells for need in suite.experiment.needs(cell.params)]


def code_of(suite: Suite, sources: SourceGraph | None = None) -> dict[str, str]:
    """Return file -> hash of all code that decides the metrics of ``suite``: what runs a cell, and its experiment's ``run``."""
    return (sources or SourceGraph()).closure("modelassay.runs.cell", f"{suite.experiment.package}.run")


def libraries_of(suite: Suite, sources: SourceGraph | None = None) -> dict[str, str | None]:
    """Return the version of Python and of each library that decides the metrics of ``suite``."""
    return (sources or SourceGraph()).libraries("modelassay.runs.cell", f"{suite.experiment.package}.run")


def new_folder(suite: Suite, root: Path) -> Path:
    """Return the name of a run directory under ``root`` that does not exist yet."""
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    return root / f"{suite.name}-{stamp}-{secrets.token_hex(3)}"


def create_run(suite: Suite, folder: Path) -> Run:
    """Make ``folder`` a run directory: write its ``run.json``. Where that fails, ``folder`` is left as it was.

    Raises:
        UsageError: it is one already, holds anything else, or an input file cannot be read.
        HostError: the folder cannot be made or written.
    """
    require_free(folder)
    require_absolute(suite)
    sources, here = SourceGraph(), environment.capture()
    manifest = {
        "schema": SCHEMA,
        "suite": suite.to_json(),
        "environment": {**here, "libraries": {**library_versions(), **libraries_of(suite, sources)}},
        "code": code_of(suite, sources),
        "files": file_digests(suite, present=True),
    }
    scaffold = Scaffold()
    try:
        _write_manifest(manifest, folder, scaffold)
    except BaseException as error:
        scaffold.remove()
        if not isinstance(error, OSError):
            raise
        if isinstance(no_space(error, folder), HostError):
            raise HostError(f"{folder}: the disk is full; free some space and start the run anew") from error
        raise unwritable(error, folder) from error
    return open_run(folder)


def open_run(folder: Path) -> Run:
    """Read a run directory, whoever filled it.

    Raises:
        UsageError: it is not one, it holds anything but folders and regular files, its run.json is damaged or of another
            version, or its experiment is gone.
    """
    path = folder / "run.json"
    try:
        require_regular_tree(folder)
        manifest = read_sealed(path)
        if manifest["schema"] != SCHEMA:
            raise UsageError(_other_version(path, manifest))
        mappings = (manifest["environment"]["libraries"], manifest["code"], manifest["files"])
        if not all(isinstance(mapping, dict) for mapping in mappings):
            raise TypeError("environment.libraries, code and files must be mappings")
        run = Run(folder=folder, suite=suite_from_json(manifest["suite"], file=str(path)),
                  environment=manifest["environment"], code=manifest["code"], files=manifest["files"])  # fmt: skip
        cell_dirs = [run.cell_dir(cell) for cell in run.suite.cells]
        require_folders([folder / "cells", folder / "figures", folder / TABLES, *cell_dirs])
        require_folders(cell_dir / name for cell_dir in cell_dirs for name in ("checkpoint", "artifacts"))
        return run
    except Unsealed as error:
        raise UsageError(_other_version(path, error.document)) from error
    except OSError as error:
        raise UsageError(f"{folder}: not a run directory ({error.strerror}); a run directory holds run.json") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{path}: damaged ({type(error).__name__}: {error}); restore it, or start a new run"
        ) from error


def _other_version(path: Path, manifest: Any) -> str:
    """Say which modelassay reads a ``manifest`` of another schema, or that it is damaged."""
    schema = manifest.get("schema") if isinstance(manifest, dict) else None
    if type(schema) is not int or schema == SCHEMA:
        return f"{path}: damaged (it has no checksum); restore it, or start a new run"
    about = manifest.get("environment") if isinstance(manifest.get("environment"), dict) else {}
    commit = (about.get("git") or {}).get("commit") if isinstance(about.get("git"), dict) else None
    at = f", at commit {printable(str(commit))[:12]}" if commit else ""
    return f"{path}: schema {schema}, this modelassay reads {SCHEMA}; read it with the version that wrote it{at}, or start a new run"


def runs_under(root: Path) -> list[Path]:
    """Return the run directories under ``root``, oldest first, those that cannot be read too."""
    by_age = []
    for folder in root.glob("*"):
        with suppress(OSError):  # it holds no run.json
            by_age.append(((folder / "run.json").lstat().st_mtime_ns, folder))
    return [folder for _, folder in sorted(by_age)]


def find_run(reference: str, root: Path) -> Path | None:
    """Return the run directory meant by a path, a name under ``root`` or its short id; None when it names none.

    The name of a shipped suite means the suite wherever one stands; ``./NAME`` means a folder that is called like one.

    Raises:
        UsageError: it is the folder of a run that has lost its run.json.
    """
    if reference in shipped_suites():
        return None
    for folder in (Path(reference), root / reference):
        with suppress(FileNotFoundError, NotADirectoryError):
            if (folder / CELLS).is_dir() and not os.path.lexists(folder / MANIFEST):
                raise UsageError(f"{folder}: run.json is missing; restore it, or start a new run")
            (folder / "run.json").lstat()
            return folder
    matching = [folder for folder in runs_under(root) if folder.name.endswith(f"-{reference}")]
    return matching[0] if len(matching) == 1 else None


def require_run(reference: str, root: Path) -> Run:
    """Return the run meant by ``reference``.

    Raises:
        UsageError: there is none.
    """
    folder = find_run(reference, root)
    if folder is None:
        known = [path.name for path in runs_under(root)]
        raise UsageError(f"{reference}: no such run under {root}{did_you_mean(reference, known)}")
    return open_run(folder)


def _write_manifest(manifest: dict[str, Any], folder: Path, scaffold: Scaffold) -> None:
    draft = folder / MANIFEST_DRAFT
    scaffold.folder(folder / CELLS)
    with scaffold.file(draft) as handle:
        handle.write(sealed_json(manifest, by_lines=True))
        handle.flush()
        sync_file(handle.fileno())  # what is renamed before it is synced is an empty file after a power cut
    if is_run(folder):  # by another process, before this one had the draft to itself
        raise UsageError(f"{folder}: holds a run already; `modelassay run {folder}` goes on with it")
    draft.rename(folder / MANIFEST)
