"""Where a checkpoint's files come from: a folder, or a repository of the Hugging Face Hub fetched file by file.

`huggingface_hub` does the fetching, the caching and the authentication, and reads HF_HOME, HF_ENDPOINT, HF_TOKEN and
HF_HUB_OFFLINE itself. What is here decides which files are asked for, and turns its errors into ours.

A login in HF_ENDPOINT is kept from it: it would stand in every address that the library warns of or raises.
"""

from __future__ import annotations

import base64
import errno
import os
import re
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol
from urllib.parse import unquote

from modelassay.errors import CheckpointError, HostError
from modelassay.machine.scrub import split_login

if TYPE_CHECKING:
    import httpx

LOGIN: Final = "MODELASSAY_HUB_LOGIN"
"""The variable that holds HF_ENDPOINT as it was set, where it was set with a login."""

_REFERENCE = re.compile(r"hf:(?P<repo>[^/@\s]+/[^/@\s]+)(@(?P<revision>[^@\s]+))?")
_FULL_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class HubUnavailable(HostError):
    """The Hub was reached and did not serve one request: a refusal with a status, or a timeout. The next may be served."""


def set_login_aside(environ: MutableMapping[str, str]) -> None:
    """Take user and password out of HF_ENDPOINT, for this process and all that it starts; `log_in` gives them to the Hub.

    >>> environ = {"HF_ENDPOINT": "https://me:word@hub.example/api"}
    >>> set_login_aside(environ)
    >>> environ
    {'HF_ENDPOINT': 'https://hub.example/api', 'MODELASSAY_HUB_LOGIN': 'https://me:word@hub.example/api'}
    """
    endpoint = environ.get("HF_ENDPOINT", "")
    bare, login = split_login(endpoint)
    if login:
        environ.update({"HF_ENDPOINT": bare, LOGIN: endpoint})


def log_in() -> None:
    """Let `huggingface_hub` send the login of HF_ENDPOINT to that host, and to no other, without it being in an address."""
    set_login_aside(os.environ)
    endpoint, login = split_login(os.environ.get(LOGIN, ""))
    if login:
        _send_login(endpoint, unquote(login))


@cache
def _send_login(endpoint: str, login: str) -> None:
    import httpx
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils._http import default_client_factory

    hub, header = httpx.URL(endpoint), f"Basic {base64.b64encode(login.encode()).decode()}"

    def authorize(request: httpx.Request) -> httpx.Request:
        if (request.url.scheme, request.url.netloc) == (hub.scheme, hub.netloc):
            request.headers["Authorization"] = header
        return request

    def client() -> httpx.Client:
        made = default_client_factory()
        made.auth = authorize
        return made

    set_client_factory(client)


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
    """Return the files of ``hf:ORG/NAME[@REVISION]`` or of a local folder.

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
    return HubFiles(text, match["repo"], match["revision"])


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
        return sorted(path.name for path in self.folder.glob("*.safetensors"))


class HubFiles:
    """A repository of the Hub at one commit; whatever was fetched before is taken from the cache without a request."""

    local = False

    def __init__(self, reference: str, repo: str, revision: str | None) -> None:
        """Resolve the revision to a commit by fetching config.json; a full commit that is cached needs no request."""
        self.reference, self.repository = reference, repo
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
        with hub_errors(self.reference, "its list of files"):
            names = HfApi().list_repo_files(self.repository, revision=self.revision)
        return sorted(name for name in names if name.endswith(".safetensors") and "/" not in name)

    def _fetch(self, name: str, revision: str | None, *, required: bool = False) -> Path | None:
        from huggingface_hub import hf_hub_download, is_offline_mode
        from huggingface_hub.errors import LocalEntryNotFoundError, RemoteEntryNotFoundError

        with hub_errors(self.reference, name):
            try:
                return Path(hf_hub_download(self.repository, name, revision=revision))
            except RemoteEntryNotFoundError:
                return None
            except LocalEntryNotFoundError:
                if required or not is_offline_mode():
                    raise
                return None


@contextmanager
def hub_errors(reference: str, name: str) -> Iterator[None]:
    """Say in our words what went wrong in here while ``name`` of ``reference`` was asked for.

    Raises:
        CheckpointError: no such repository or revision, no access to it, or offline and not in the cache.
        HubUnavailable: the Hub did not serve it.
        HostError: the Hub cannot be reached, or the cache cannot be written.
    """
    import httpx
    from huggingface_hub import errors

    try:
        yield
    except errors.LocalEntryNotFoundError as error:
        raise _not_cached(reference, name, error.__cause__ or error) from None
    except errors.GatedRepoError:
        raise CheckpointError(
            f"{reference}: the repository is gated; accept its terms on its page, then `hf auth login` or set HF_TOKEN"
        ) from None
    except errors.RepositoryNotFoundError:
        raise CheckpointError(
            f"{reference}: no such repository, or a private one; check the spelling, or `hf auth login` if it is yours"
        ) from None
    except errors.RevisionNotFoundError:
        raise CheckpointError(
            f"{reference}: the repository has no such commit, tag or branch; check what follows the @"
        ) from None
    except errors.HFValidationError as error:
        raise CheckpointError(f"{reference}: not a repository's name: {error}; write hf:ORG/NAME") from None
    except errors.HfHubHTTPError as error:
        raise _refused(reference, name, error.response.status_code) from None
    except (httpx.HTTPError, errors.XetDownloadError, ConnectionError) as error:
        raise _kind_of(error)(
            f"{reference}: {name} was not fetched ({error}); try again, or set HF_ENDPOINT to a mirror"
        ) from None
    except OSError as error:
        remedy = "free some space" if error.errno in _FULL_DISK else "check its permissions"
        raise HostError(
            f"{reference}: {name} cannot be kept in the cache: {error}; {remedy}, or point HF_HOME elsewhere"
        ) from None


def _not_cached(reference: str, name: str, cause: BaseException) -> CheckpointError | HostError:
    from huggingface_hub import is_offline_mode
    from huggingface_hub.errors import HfHubHTTPError

    if is_offline_mode():
        return CheckpointError(
            f"{reference}: {name} is not in the cache and HF_HUB_OFFLINE is set; run once without it, or copy a cache and set HF_HOME"
        )
    if isinstance(cause, HfHubHTTPError):
        return _refused(reference, name, cause.response.status_code)
    return _kind_of(cause)(
        f"{reference}: {name} is not in the cache and the Hub cannot be reached ({cause}); check the network, or set HF_ENDPOINT to a mirror"
    )


def _refused(reference: str, name: str, status: int) -> CheckpointError | HostError:
    if status in {401, 403}:
        return CheckpointError(
            f"{reference}: the Hub refused {name} ({status}); `hf auth login` with an account that may read it"
        )
    return HubUnavailable(f"{reference}: the Hub answered {status} for {name}; try again later")


def _kind_of(error: BaseException) -> type[HostError]:
    """Return what an error of the connection is: a server that is slow may answer the next time, one that is not there will not."""
    import httpx

    slow = isinstance(error, httpx.TimeoutException) and not isinstance(error, httpx.ConnectTimeout)
    return HubUnavailable if slow or isinstance(error, httpx.RemoteProtocolError) else HostError
