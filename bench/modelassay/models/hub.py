"""Where a checkpoint's files come from: a folder, or a repository of the Hugging Face Hub fetched file by file.

`huggingface_hub` does the fetching, the caching and the authentication, and reads HF_HOME, HF_ENDPOINT, HF_TOKEN and
HF_HUB_OFFLINE itself. What is here decides which files are asked for, and what it means that one is not there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, Protocol
from urllib.parse import urlsplit

from modelassay.errors import CheckpointError, HostError, printable
from modelassay.models.commits import COMMIT, keep_commit, kept_commit
from modelassay.models.connection import HubFault, endpoint, log_in
from modelassay.models.gate import INDEX, read_json
from modelassay.models.hub_errors import hub_errors, is_unexplained
from modelassay.models.parts import (
    NUM_CONNECTIONS,
    PartialFile,
    create,
    ensure_header,
    files_in_parts,
    header_end,
    partial_file,
    parts_folder,
)
from modelassay.models.places import ADAPTER, CONFIG, WEIGHTS, find_place
from modelassay.models.presence import refuse_repository, serves
from modelassay.models.redirects import renamed
from modelassay.models.transfer import NoRanges, look_up
from modelassay.storage.store import say
from modelassay.storage.stray import is_stray

SHARD_INDEX = "model.safetensors.index.json"
_REFERENCE = re.compile(r"hf:(?P<repo>[^/@\s]+/[^/@\s]+)(/(?P<file>[^@\s]+))?(@(?P<revision>[^@\s]+))?")
_PAGE: Final = re.compile(
    r"/(?P<repo>[^/\s]+/[^/@\s]+)(/(tree|blob|resolve|raw)/(?P<revision>[^/@\s]+)(/(?P<file>[^@\s]+))?)?/?(@(?P<commit>[^@\s]+))?"
)
_NO_MODELS: Final = ("datasets/", "spaces/", "collections/", "papers/", "docs/", "api/", "models/")


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
    chosen: str | None
    """The file of weights that the reference names; None where it names a folder or a repository."""
    notes: tuple[str, ...]
    """What is read instead of what was named, a sentence each."""
    adapter: Files | None
    """The files of a LoRA adapter that changes the weights; None without one."""
    not_run: str | None
    """Why transformers cannot load the model from these files; None where it can."""

    def get(self, name: str, *, required: bool = False) -> Path | None:
        """Return a file on this machine, fetching it if need be; None where the checkpoint has no such file.

        A file that may or may not be there is also None where that cannot be known, offline; a ``required`` one is an error.
        """

    def open_weights(self, name: str, *, required: bool = False) -> Path | None:
        """Return a safetensors file whose header can be read; whoever reads more of it asks `parts.ensure` before.

        Of a repository only the header is fetched; None and ``required`` as of `get`.
        """

    def open_all(self, names: Iterable[str]) -> None:
        """Do what `open_weights` does for several files, of a repository at once: each costs an answer's time."""

    def list_files(self) -> list[str]:
        """Return the names of all files beside config.json, sorted; of a repository the Hub is asked, or, offline, the cache."""

    def weights_bytes(self) -> int:
        """Return the size of all files of weights that an index names, or of those that were opened."""

    def fetched_bytes(self) -> int:
        """Return how many bytes of weights and their headers this process fetched; 0 of a folder."""

    def release(self) -> None:
        """Take away what was fetched of weights in parts, all but headers, unless another process reads it."""


def open_files(reference: str | Path) -> Files:
    """Return the files of ``hf:ORG/NAME[/FILE][@REVISION]``, in a run at the commit that it first read, or of a local folder.

    The address of a model's page is as good, and what else `find_place` understands. Costs nothing for a folder and one file
    (config.json) for a repository.

    Raises:
        CheckpointError: no such folder or repository, no access to it, or offline and not in the cache.
        HostError: the Hub cannot be reached, or its cache cannot be written.
    """
    text = _of_page(str(reference))
    if not text.startswith("hf:"):
        return LocalFiles(text)
    match = _REFERENCE.fullmatch(text)
    if match is None or (match["file"] is not None and not match["file"].endswith(WEIGHTS)):
        raise CheckpointError(
            f"{text}: not a repository of the Hub; write hf:ORG/NAME or hf:ORG/NAME@COMMIT, as in hf:Qwen/Qwen2.5-0.5B, or "
            "hf:ORG/NAME/FILE.gguf"
        )
    repository, revision, file = match["repo"], match["revision"], match["file"]
    if revision is not None and COMMIT.fullmatch(revision):
        return HubFiles(text, repository, revision, file)
    files = HubFiles(text, repository, kept_commit(text) or revision, file)
    commit = keep_commit(text, files.revision)
    return files if commit == files.revision else HubFiles(text, repository, commit, file)


def _of_page(reference: str) -> str:
    """Return the reference to a repository that the address of its page, or of a file's, means; anything else as it is.

    >>> _of_page("https://huggingface.co/Qwen/Qwen2.5-0.5B/tree/main"), _of_page("https://hf.co/a/b/blob/v1/b-Q4_0.gguf")
    ('hf:Qwen/Qwen2.5-0.5B@main', 'hf:a/b/b-Q4_0.gguf@v1')
    """
    parts = urlsplit(reference) if reference.startswith(("https://", "http://", "huggingface.co/", "hf.co/")) else None
    if parts is None:
        return reference
    if not parts.scheme:
        parts = urlsplit(f"https://{reference}")
    if parts.hostname not in {"huggingface.co", "hf.co", "www.huggingface.co", urlsplit(endpoint()).hostname}:
        return reference
    match = _PAGE.fullmatch(parts.path)
    if match is None or parts.path.lstrip("/").startswith(_NO_MODELS):
        raise CheckpointError(f"{printable(reference)}: not the page of a model; write hf:ORG/NAME")
    revision = match["commit"] or match["revision"]
    file = match["file"] if match["file"] is not None and match["file"].endswith(WEIGHTS) else None
    return f"hf:{match['repo']}{'/' + file if file else ''}{'@' + revision if revision else ''}"


def require_models(references: Iterable[str]) -> None:
    """Find each of ``references``, of a repository by its config.json: what cannot be had is told before anything heavy is imported.

    Raises:
        CheckpointError: one is not there, or may not be read.
        HostError: the Hub cannot be reached, or its cache cannot be written.
    """
    for reference in references:
        open_files(reference)


class LocalFiles:
    """A folder in the Hugging Face layout, or one file of weights in it."""

    revision: str | None = None
    local = True
    adapter: Files | None = None
    not_run: str | None = None

    def __init__(self, reference: str) -> None:
        """Find the folder, as `find_place`."""
        place = find_place(reference)
        self.reference, self.folder, self.chosen = reference, place.folder, place.chosen
        self.notes: tuple[str, ...] = () if place.note is None else (place.note,)

    def get(self, name: str, *, required: bool = False) -> Path | None:
        """Return the file's path, None where there is no such file."""
        path = self.folder / name
        return path if path.is_file() else None

    def open_weights(self, name: str, *, required: bool = False) -> Path | None:
        """Return the file's path, None where there is no such file."""
        return self.get(name, required=required)

    def open_all(self, names: Iterable[str]) -> None:
        """Do nothing: opening a file is free."""

    def list_files(self) -> list[str]:
        """Return the names of what lies in the folder and is no folder, sorted; links that lead nowhere, too."""
        return sorted(path.name for path in self.folder.iterdir() if not path.is_dir() and not is_stray(path.name))

    def weights_bytes(self) -> int:
        """Return the size of the folder's files of weights, or of the one that was named."""
        names = (
            [self.chosen] if self.chosen is not None else [name for name in self.list_files() if name.endswith(WEIGHTS)]
        )
        return sum(path.stat().st_size for name in names if (path := self.folder / name).is_file())

    def fetched_bytes(self) -> int:
        """Return 0: nothing is fetched."""
        return 0

    def release(self) -> None:
        """Do nothing: a folder is the user's."""


class HubFiles:
    """A repository of the Hub at one commit; whatever was fetched before is taken from the cache without a request."""

    local = False
    notes: tuple[str, ...] = ()
    adapter: Files | None = None
    not_run: str | None = None

    def __init__(self, reference: str, repo: str, revision: str | None, chosen: str | None = None) -> None:
        """Resolve the revision to a commit by fetching config.json; a full commit that is cached needs no request.

        Where there is none, an adapter's configuration serves, or a GGUF file, which tells of itself.
        """
        self.reference, self.repository, self.chosen = reference, repo, chosen
        self._is_served = False
        self._opened: dict[str, Path] = {}
        self._names: list[str] | None = None
        self._is_anchored = False
        log_in()
        anchor = self._fetch(CONFIG, revision, required=True) or self._fetch(ADAPTER, revision)
        if (name := renamed(repo)) is not None:
            say(f"{reference}: the Hub has renamed the repository to {name}")
        self.revision: str | None = self._commit(revision) if anchor is None else anchor.parent.name
        self.folder = self._snapshot() if anchor is None else anchor.parent
        self._is_anchored = True

    def get(self, name: str, *, required: bool = False) -> Path | None:
        """Return the file, fetched if it was not in the cache; None where the commit has none."""
        from huggingface_hub import _CACHED_NO_EXIST, try_to_load_from_cache

        cached = try_to_load_from_cache(self.repository, name, revision=self.revision)
        if cached is _CACHED_NO_EXIST:
            return None
        path = Path(cached) if isinstance(cached, str) else self._fetch(name, self.revision, required=required)
        if path is not None:
            self._opened.pop(name, None)  # where it was opened in parts, it is whole now
        return path

    def open_weights(self, name: str, *, required: bool = False) -> Path | None:
        """Return a file in parts whose header is there, or the whole one where it is in the cache or the server sends no parts."""
        if name not in self._opened:
            path = self._open(name, required=required)
            if path is None:
                return None
            self._opened[name] = path
        return self._opened[name]

    def open_all(self, names: Iterable[str]) -> None:
        """Do what `open_weights` does for several files at once."""
        lacking = [name for name in dict.fromkeys(names) if name not in self._opened]
        if len(lacking) > 1:
            with ThreadPoolExecutor(NUM_CONNECTIONS, thread_name_prefix="header") as pool:
                list(pool.map(lambda name: self.open_weights(name, required=True), lacking))

    def parts(self) -> list[PartialFile]:
        """Return the files that were opened and lie here in parts."""
        parts = (partial_file(path) for path in self._opened.values())
        return [part for part in parts if part is not None]

    def weights_bytes(self) -> int:
        """Return what the index says of the size of all weights, at least that of the files that were opened."""
        total = 0
        if (index := self.get(SHARD_INDEX)) is not None:
            metadata = read_json(index, INDEX).get("metadata")
            stated = metadata.get("total_size") if isinstance(metadata, dict) else None
            total = stated if type(stated) is int else 0
        return max(total, sum(path.stat().st_size for path in self._opened.values()))

    def fetched_bytes(self) -> int:
        """Return how many bytes of weights and their headers this process fetched in parts."""
        return sum(part.num_fetched for part in self.parts())

    def release(self) -> None:
        """Take the weights that were fetched in parts from the disk, all but the headers, unless another process reads them."""
        for part in self.parts():
            part.release((0, header_end(part.path)))

    def _open(self, name: str, *, required: bool) -> Path | None:
        from huggingface_hub import _CACHED_NO_EXIST, is_offline_mode, try_to_load_from_cache
        from huggingface_hub.errors import HfHubHTTPError

        cached = try_to_load_from_cache(self.repository, name, revision=self.revision)
        if cached is _CACHED_NO_EXIST:
            return None
        if isinstance(cached, str):
            return Path(cached)
        if not name.endswith((
            ".safetensors",
            ".gguf",
        )):  # an index may name anything, also our notes beside another file
            return self._fetch(name, self.revision, required=required)
        assert self.revision is not None
        part = partial_file(parts_folder(self.repository, self.revision) / name)
        if part is None:
            if is_offline_mode():
                return self._fetch(name, self.revision, required=required)
            with hub_errors(self.reference, name):
                try:
                    place = look_up(self.reference, self.repository, self.revision, name)
                except HfHubHTTPError as error:
                    if error.response.status_code in (404, 410):
                        return self._fetch(name, self.revision, required=required)  # which notes that it is not there
                    raise
            if place is None:
                return self._fetch(name, self.revision, required=required)
            part = create(*place)
        try:
            ensure_header(part)
        except NoRanges:
            return self._fetch(name, self.revision, required=required)
        return part.path

    def list_files(self) -> list[str]:
        """Return the names of the repository's files beside config.json by asking the Hub; offline, of those in the cache."""
        from huggingface_hub import HfApi, is_offline_mode

        if is_offline_mode():
            assert self.revision is not None
            cached = [path.name for path in self.folder.iterdir()] if self.folder.is_dir() else []
            return sorted({*cached, *files_in_parts(self.repository, self.revision)})
        if self._names is None:
            with hub_errors(self.reference, "its list of files", parses=True):
                self._names = HfApi().list_repo_files(self.repository, revision=self.revision)
        return sorted(name for name in self._names if "/" not in name and not is_stray(name))

    def _commit(self, revision: str | None) -> str:
        """Return the commit of a repository without config.json, if it has a GGUF file.

        Raises:
            CheckpointError: it has none, and so holds no model.
        """
        from huggingface_hub import HfApi

        try:
            with hub_errors(self.reference, "its list of files", parses=True):
                info = HfApi().model_info(self.repository, revision=revision)
            self._names, commit = [entry.rfilename for entry in info.siblings or []], info.sha
        except (CheckpointError, HostError):  # a mirror that serves files alone, and said that this one is not there
            self._names, commit = [], None
        if commit is None or not any(name.endswith(".gguf") for name in self._names):
            raise CheckpointError(
                f"{self.reference}: the repository has no config.json; name one that holds a transformers model"
            )
        return commit

    def _snapshot(self) -> Path:
        from huggingface_hub import constants

        assert self.revision is not None
        return (
            Path(constants.HF_HUB_CACHE) / f"models--{self.repository.replace('/', '--')}" / "snapshots" / self.revision
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
        if name == CONFIG or not self._is_anchored:
            refuse_repository(self.reference, self.repository, revision)
            return
        if not self._is_served:
            self._is_served = serves(self.repository, "config.json", revision)
        if not self._is_served:
            raise CheckpointError(
                f"{self.reference}: {endpoint()} does not serve the commit {revision}, of which config.json is in the cache and"
                f" {name} is not; set HF_ENDPOINT to a Hub that has it"
            )
