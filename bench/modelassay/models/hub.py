"""Where a checkpoint's files come from: a folder, or a repository of the Hugging Face Hub fetched file by file.

`huggingface_hub` does the fetching, the caching and the authentication, and reads HF_HOME, HF_ENDPOINT, HF_TOKEN and
HF_HUB_OFFLINE itself. What is here decides which files are asked for, and what it means that one is not there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from modelassay.errors import CheckpointError
from modelassay.models.commits import COMMIT, keep_commit, kept_commit
from modelassay.models.connection import HubFault, endpoint, log_in
from modelassay.models.hub_errors import hub_errors, is_unexplained
from modelassay.models.presence import refuse_repository, serves
from modelassay.storage.stray import is_stray

_REFERENCE = re.compile(r"hf:(?P<repo>[^/@\s]+/[^/@\s]+)(@(?P<revision>[^@\s]+))?")


class Files(Protocol):
    """The files of one checkpoint, wherever they are."""

    reference: str
    """What the user typed."""
    folder: Path
    """Where the files lie on this machine once they have been got."""
    revision: str | None
    """Commit of the Hub; None for a folder."""
    local: bool
    """Whether getting a file is free."""

    def get(self, name: str, *, required: bool = False) -> Path | None:
        """Return a file on this machine, fetching it if need be; None where the checkpoint has no such file.

        A file that may or may not be there is also None where that cannot be known, offline; a ``required`` one is an error.
        """

    def weight_files(self) -> list[str]:
        """Return the names of the safetensors files beside config.json, sorted."""


def open_files(reference: str | Path) -> Files:
    """Return the files of ``hf:ORG/NAME[@REVISION]``, in a run at the commit that it first read, or of a local folder.

    Costs nothing for a folder and one file (config.json) for a repository.

    Raises:
        CheckpointError: no such folder or repository, no access to it, or offline and not in the cache.
        HostError: the Hub cannot be reached, or its cache cannot be written.
    """
    text = str(reference)
    if not text.startswith("hf:"):
        return LocalFiles(text)
    match = _REFERENCE.fullmatch(text)
    if match is None:
        raise CheckpointError(
            f"{text}: not a repository of the Hub; write hf:ORG/NAME or hf:ORG/NAME@COMMIT, as in hf:Qwen/Qwen2.5-0.5B"
        )
    repository, revision = match["repo"], match["revision"]
    if revision is not None and COMMIT.fullmatch(revision):
        return HubFiles(text, repository, revision)
    files = HubFiles(text, repository, kept_commit(text) or revision)
    commit = keep_commit(text, files.revision)
    return files if commit == files.revision else HubFiles(text, repository, commit)


def require_models(references: Iterable[str]) -> None:
    """Find each of ``references``, of a repository by its config.json: what cannot be had is told before anything heavy is imported.

    Raises:
        CheckpointError: one is not there, or may not be read.
        HostError: the Hub cannot be reached, or its cache cannot be written.
    """
    for reference in references:
        open_files(reference)


class LocalFiles:
    """A folder in the Hugging Face layout."""

    revision: str | None = None
    local = True

    def __init__(self, reference: str) -> None:
        """Check that the folder is there."""
        self.reference, self.folder = reference, Path(reference)
        if not self.folder.is_dir():
            hub = reference.count("/") == 1 and not reference.startswith(("/", "."))
            hint = f"; a repository of the Hub is written hf:{reference}" if hub else "; check the path"
            got = "a file" if self.folder.exists() else "nothing there"
            raise CheckpointError(f"{reference}: expected a folder with config.json, got {got}{hint}")

    def get(self, name: str, *, required: bool = False) -> Path | None:
        """Return the file's path, None where there is no such file."""
        path = self.folder / name
        return path if path.is_file() else None

    def weight_files(self) -> list[str]:
        """Return the names of the folder's safetensors files, sorted."""
        return sorted(path.name for path in self.folder.glob("*.safetensors") if not is_stray(path.name))


class HubFiles:
    """A repository of the Hub at one commit; whatever was fetched before is taken from the cache without a request."""

    local = False

    def __init__(self, reference: str, repo: str, revision: str | None) -> None:
        """Resolve the revision to a commit by fetching config.json; a full commit that is cached needs no request."""
        self.reference, self.repository = reference, repo
        self._is_served = False
        log_in()
        config = self._fetch("config.json", revision, required=True)
        if config is None:
            raise CheckpointError(
                f"{reference}: the repository has no config.json; name one that holds a transformers model"
            )
        self.folder = config.parent
        self.revision: str | None = config.parent.name

    def get(self, name: str, *, required: bool = False) -> Path | None:
        """Return the file, fetched if it was not in the cache; None where the commit has none."""
        from huggingface_hub import _CACHED_NO_EXIST, try_to_load_from_cache

        cached = try_to_load_from_cache(self.repository, name, revision=self.revision)
        if cached is _CACHED_NO_EXIST:
            return None
        return Path(cached) if isinstance(cached, str) else self._fetch(name, self.revision, required=required)

    def weight_files(self) -> list[str]:
        """Return the repository's safetensors files by asking the Hub; offline, those in the cache."""
        from huggingface_hub import HfApi, is_offline_mode

        if is_offline_mode():
            return LocalFiles(str(self.folder)).weight_files()
        with hub_errors(self.reference, "its list of files", parses=True):
            names = HfApi().list_repo_files(self.repository, revision=self.revision)
        return sorted(
            name for name in names if name.endswith(".safetensors") and "/" not in name and not is_stray(name)
        )

    def _fetch(self, name: str, revision: str | None, *, required: bool = False) -> Path | None:
        from huggingface_hub import hf_hub_download, is_offline_mode
        from huggingface_hub.errors import LocalEntryNotFoundError, RemoteEntryNotFoundError

        with hub_errors(self.reference, name):
            try:
                return Path(hf_hub_download(self.repository, name, revision=revision))
            except RemoteEntryNotFoundError:
                return None
            except HubFault as fault:  # what is cached serves, also for a branch whose newest commit nobody can tell
                try:
                    return Path(hf_hub_download(self.repository, name, revision=revision, local_files_only=True))
                except LocalEntryNotFoundError as error:
                    raise error from fault
            except LocalEntryNotFoundError as error:
                if is_unexplained(error.__cause__):
                    self._require_repository(name, revision)
                    return None
                if required or not is_offline_mode():
                    raise
                return None

    def _require_repository(self, name: str, revision: str | None) -> None:
        """Make sure that ``name`` alone is not there, where the server only says that something is not.

        Raises:
            CheckpointError: the repository or its commit is not there, or nobody can tell which.
        """
        if name == "config.json":
            refuse_repository(self.reference, self.repository, revision)
            return
        if not self._is_served:
            self._is_served = serves(self.repository, "config.json", revision)
        if not self._is_served:
            raise CheckpointError(
                f"{self.reference}: {endpoint()} does not serve the commit {revision}, of which config.json is in the cache and"
                f" {name} is not; set HF_ENDPOINT to a Hub that has it"
            )
