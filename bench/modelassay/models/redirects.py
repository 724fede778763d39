"""Where the Hub sends whoever asks it: to a repository's new name, and to other hosts, which must not see the token."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

if TYPE_CHECKING:
    import httpx

_RESOLVED: Final = re.compile(r"/([^/]+/[^/]+)(/resolve/.+)")
_renamed: dict[str, str] = {}


def renamed(repository: str) -> str | None:
    """Return the name to which the Hub sent those who asked it for ``repository``; None where it did not."""
    return _renamed.get(repository)


def remember_name(request: httpx.Request, response: httpx.Response) -> None:
    """Keep under which name a repository is now, where the answer sends to it."""
    target = response.headers.get("Location") if 300 <= response.status_code < 400 else None
    if target is None:
        return
    before, after = _RESOLVED.match(request.url.path), _RESOLVED.match(urlsplit(target).path)
    if before is not None and after is not None and before[2] == after[2] and before[1] != after[1]:
        _renamed[before[1]] = after[1]


def keep_token(request: httpx.Request, hub: str) -> None:
    """Take the token out of a request to anybody but the Hub: `huggingface_hub` follows redirects to other ports of its host with it."""
    from huggingface_hub import constants

    hosts = getattr(constants, "HF_URL_HOSTS", ())
    if request.headers.get("Authorization", "").startswith("Bearer "):
        address, home = urlsplit(str(request.url)), urlsplit(hub)
        if address[:2] != home[:2] and not (home.hostname in hosts and address.hostname in hosts):
            del request.headers["Authorization"]
