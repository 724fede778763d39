"""What goes wrong with the Hub, in words that say what to do."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final
from urllib.parse import urlsplit

from modelassay.errors import CheckpointError, HostError
from modelassay.models.connection import HubFault, endpoint
from modelassay.models.token import token_source

_FULL_DISK: Final = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_MISSING: Final = (404, 410)


class HubUnavailable(HostError):
    """The Hub was reached and did not serve one request: a refusal with a status, or a timeout. The next may be served."""


@contextmanager
def hub_errors(reference: str, name: str, *, parses: bool = False) -> Iterator[None]:
    """Say in our words what went wrong in here while ``name`` of ``reference`` was asked for.

    Args:
        reference: the repository, as the user wrote it.
        name: what is asked for.
        parses: whether the library reads an answer in here, so that what it trips over means a server that is no Hub.

    Raises:
        CheckpointError: no such repository or revision, no access to it, or offline and not in the cache.
        HubUnavailable: the Hub did not serve it.
        HostError: the Hub cannot be reached, or the cache cannot be written.
    """
    import httpx
    from huggingface_hub import errors

    try:
        yield
    except (HubFault, httpx.HTTPError, httpx.InvalidURL, errors.XetDownloadError, OSError) as error:
        raise _in_words(reference, name, error) from None
    except errors.HFValidationError as error:
        raise CheckpointError(f"{reference}: not a repository's name: {error}; write hf:ORG/NAME") from None
    except (ValueError, KeyError, TypeError):  # of an answer that is no JSON, or not the Hub's
        if not parses:
            raise
        raise _no_hub(reference, name) from None


def _in_words(reference: str, name: str, error: Exception) -> CheckpointError | HostError:
    import httpx
    from huggingface_hub import errors

    if isinstance(error, HubFault):
        return _not_answered(reference, name, error)
    if isinstance(error, errors.LocalEntryNotFoundError):
        return _not_cached(reference, name, error.__cause__ or error)
    if isinstance(error, errors.FileMetadataError):
        return _no_hub(reference, name)
    if isinstance(error, errors.HfHubHTTPError):
        return _refused(reference, name, error)
    if isinstance(error, httpx.InvalidURL):
        return HostError(f"{reference}: {endpoint()} is no address ({error}); write HF_ENDPOINT as https://HOST")
    if isinstance(error, httpx.TooManyRedirects):
        return HostError(f"{reference}: {endpoint()} redirects {name} in a circle; check HF_ENDPOINT and the proxy")
    text = " ".join(str(error).split())
    if isinstance(error, httpx.HTTPError | errors.XetDownloadError | ConnectionError):
        return _incomplete(reference, name, text)
    if text.startswith("Consistency check failed"):
        return _incomplete(reference, name, text.partition(": ")[2].partition(" (")[0])
    remedy = "free some space" if isinstance(error, OSError) and error.errno in _FULL_DISK else "check its permissions"
    return HostError(f"{reference}: {name} cannot be kept in the cache: {error}; {remedy}, or point HF_HOME elsewhere")


def is_unexplained(error: BaseException | None) -> bool:
    """Tell whether ``error`` says that something is not there and not what: a 404 without the Hub's X-Error-Code."""
    from huggingface_hub.errors import HfHubHTTPError

    return isinstance(error, HfHubHTTPError) and _explanation(error) is None and error.response.status_code in _MISSING


def _not_answered(reference: str, name: str, fault: HubFault) -> HostError:
    kind = HubUnavailable if fault.is_temporary else HostError
    if fault.is_answer:
        return kind(f"{reference}: {fault} for {name}; {fault.fix}")
    return kind(f"{reference}: {name} was not fetched ({fault}); {fault.fix}")


def _not_cached(reference: str, name: str, cause: BaseException) -> CheckpointError | HostError:
    from huggingface_hub import is_offline_mode
    from huggingface_hub.errors import FileMetadataError, HfHubHTTPError

    if is_offline_mode():
        return CheckpointError(
            f"{reference}: {name} is not in the cache and HF_HUB_OFFLINE is set; run once without it, or copy a cache and set HF_HOME"
        )
    if isinstance(cause, HfHubHTTPError):
        return _refused(reference, name, cause)
    if isinstance(cause, FileMetadataError):
        return _no_hub(reference, name)
    if isinstance(cause, HubFault) and (cause.is_answer or cause.is_temporary):
        return _not_answered(reference, name, cause)
    fix = cause.fix if isinstance(cause, HubFault) else "check the network, or set HF_ENDPOINT to a mirror"
    return HostError(f"{reference}: {name} is not in the cache and the Hub cannot be reached ({cause}); {fix}")


def _explanation(error: BaseException) -> str | None:
    """Return what the Hub itself says is the matter, None where the server only gives a status."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return "the repository is gated; accept its terms on its page, then `hf auth login` or set HF_TOKEN"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "no such repository, or a private one; check the spelling, or `hf auth login` if it is yours"
    if isinstance(error, errors.RevisionNotFoundError):
        return "the repository has no such commit, tag or branch; check what follows the @"
    if isinstance(error, errors.RemoteEntryNotFoundError):
        return "the repository has no such file"
    if isinstance(error, errors.DisabledRepoError):
        return "the Hub has disabled the repository; its page may say why"
    return None


def _refused(reference: str, name: str, error: BaseException) -> CheckpointError | HostError:
    explanation = _explanation(error)
    if explanation is not None:
        return CheckpointError(f"{reference}: {explanation}")
    status = error.response.status_code  # type: ignore[attr-defined]
    if status in {401, 403}:
        source = token_source()
        sent = f"; the token of {source} was sent and may be expired" if source else ""
        return CheckpointError(
            f"{reference}: the Hub refused {name} ({status}){sent}; `hf auth login` with an account that may read it"
        )
    if status == 407:
        return HostError(f"{reference}: {name} was not fetched: the proxy asks for a login (407); write it into HTTPS_PROXY"
                         " and HTTP_PROXY as http://USER:PASSWORD@HOST:PORT")  # fmt: skip
    if status in _MISSING:
        return CheckpointError(f"{reference}: {endpoint()} does not have {name} ({status}); check the spelling, and whether"
                               " HF_ENDPOINT is a Hub that has it")  # fmt: skip
    if status == 416:
        return _incomplete(reference, name, "the Hub says that it is longer than what it sends")
    return HubUnavailable(f"{reference}: the Hub answered {status} for {name}; try again later")


def _no_hub(reference: str, name: str) -> HostError:
    host = urlsplit(endpoint()).netloc or endpoint()
    return HostError(
        f"{reference}: {host} answers for {name}, but not as a Hub does; a login page or a proxy may stand in between: open it"
        " in a browser, and check HF_ENDPOINT"
    )


def _incomplete(reference: str, name: str, why: str) -> HostError:
    return HubUnavailable(
        f"{reference}: {name} came damaged or not whole ({why}); try again, or set HF_ENDPOINT to a mirror"
    )
