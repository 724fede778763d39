"""Bytes of one file of the Hub by range: where they come from, and asking again for what breaks off.

The Hub answers with the address of the file's contents, as a rule on another host and signed for an hour. That address is used until
it is refused, so that one range costs one request. The token goes to the Hub alone. Nothing here needs hf_xet: contents kept
by Xet are served over HTTP too.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from modelassay.models.connection import OWN_RETRIES, HubFault, endpoint
from modelassay.models.hub_errors import HubUnavailable

if TYPE_CHECKING:
    import httpx

MAX_BREAKS: Final = 4
"""How often in a row a transfer may break off without a byte having come."""

WAIT_S: Final = 0.25
"""Before the first further try; each next one waits twice as long, `LONGEST_WAIT_S` at most."""

LONGEST_WAIT_S: Final = 4.0

_EXPIRED: Final = frozenset({400, 401, 403, 404, 410})
"""What a host of contents answers when its address is no longer signed."""

_OTHER_HUB: Final = "try again, or set HF_ENDPOINT to another mirror"


class NoRanges(HubUnavailable):
    """The server sends whole files only; at the first request for one that is fetched whole instead."""


class Stopped(Exception):  # noqa: N818 - not an error of its own: another transfer failed
    """The other transfers were given up."""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """A file of the Hub at one commit."""

    reference: str
    """The repository as the user wrote it, for messages."""
    repository: str
    commit: str
    name: str
    size: int
    """Bytes."""
    etag: str
    """What the Hub calls its contents: of large files their SHA-256."""


def look_up(reference: str, repository: str, commit: str, name: str) -> tuple[Origin, str] | None:
    """Ask the Hub for a file's size and hash, and for the address of its contents; None where it does not tell.

    Raises:
        HfHubHTTPError: it is not there, or may not be read.
        HubFault: nobody answers.
    """
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url

    told = get_hf_file_metadata(hf_hub_url(repository, name, revision=commit), timeout=constants.HF_HUB_ETAG_TIMEOUT)
    if told.size is None or told.etag is None or not urlsplit(told.location).hostname:
        return None
    origin = Origin(
        reference=reference, repository=repository, commit=commit, name=name, size=told.size, etag=told.etag
    )
    return origin, told.location


class Source:
    """Where the contents of one file come from; may be used by several threads."""

    def __init__(self, origin: Origin) -> None:
        """Ask for nothing yet."""
        self._origin = origin
        self._address: str | None = None
        self._lock = threading.Lock()
        self._etags: dict[str, str] = {}
        self.num_bytes = 0
        """How many came so far."""

    def locate(self, address: str) -> None:
        """Say where the contents are, which was asked for already."""
        with self._lock:
            self._address = address

    def fetch(self, begin: int, end: int, write: Callable[[int, bytes], None], stop: threading.Event) -> None:
        """Give the bytes from ``begin`` up to ``end`` to ``write(offset, bytes)`` as they come, in order.

        Raises:
            NoRanges: the server sends whole files only.
            Stopped: ``stop`` was set.
            HubUnavailable: the transfer breaks off again and again, or the file was replaced.
            HubFault: nobody answers.
            HfHubHTTPError: the Hub refuses.
        """
        at, num_breaks = begin, 0
        while at < end:
            before = at
            at, fault = self._fetch_once(at, end, write, stop)
            if at >= end:
                return
            num_breaks = 1 if at > before else num_breaks + 1
            if num_breaks > MAX_BREAKS:
                raise fault
            if stop.wait(min(WAIT_S * 2 ** (num_breaks - 1), LONGEST_WAIT_S)):
                raise Stopped

    def _fetch_once(
        self, begin: int, end: int, write: Callable[[int, bytes], None], stop: threading.Event
    ) -> tuple[int, Exception]:
        """Ask once; return how far that went, and what is to be said if it never goes further."""
        import httpx

        at, reason = begin, "the connection ends early"
        try:
            for chunk in self._chunks(begin, end):
                if stop.is_set():
                    raise Stopped
                if len(chunk) > end - at:
                    raise self._unusable("more bytes come than were asked for")
                write(at, chunk)
                at += len(chunk)
                with self._lock:
                    self.num_bytes += len(chunk)
        except (httpx.TimeoutException, httpx.NetworkError, httpx.RemoteProtocolError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
        except HubFault as fault:
            if not fault.is_temporary or fault.is_answer:  # a busy server has been asked again already
                raise
            return at, fault
        return at, HubUnavailable(
            f"{self._where}: the server breaks the transfer off at the same place each time (byte {at:,}: {reason}); try again later,"
            " what came is kept"
        )

    @property
    def _where(self) -> str:
        return f"{self._origin.reference}: {self._origin.name}"

    def _chunks(self, begin: int, end: int) -> Any:
        """Ask for one range and go through its bytes as they come."""
        from huggingface_hub import constants, get_session
        from huggingface_hub.utils._headers import build_hf_headers
        from huggingface_hub.utils._http import hf_raise_for_status

        for attempt in (0, 1, 2):
            address = self._located()
            headers = {"Range": f"bytes={begin}-{end - 1}", "Accept-Encoding": "identity"}
            if urlsplit(address).netloc == urlsplit(endpoint()).netloc:
                headers = build_hf_headers(headers=headers)
            with get_session().stream(
                "GET",
                address,
                headers=headers,
                follow_redirects=True,
                timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
                extensions={OWN_RETRIES: True},
            ) as response:
                if response.status_code in _EXPIRED and attempt < 2:
                    self._forget(address)
                    time.sleep(attempt * WAIT_S)
                    continue
                if response.status_code >= 400 and response.status_code != 416:
                    response.read()
                    hf_raise_for_status(response)
                self._check(response, begin, end)
                yield from response.iter_raw()
            return

    def _located(self) -> str:
        with self._lock:
            if self._address is None:
                origin = self._origin
                found = look_up(origin.reference, origin.repository, origin.commit, origin.name)
                if found is None or found[0] != origin:
                    raise self._unusable(
                        f"the Hub now has another file there ({origin.size:,} bytes, {origin.etag[:12]} before)"
                        if found is not None
                        else "the Hub no longer says how long it is"
                    )
                self._address = found[1]
            return self._address

    def _forget(self, address: str) -> None:
        with self._lock:
            if self._address == address:
                self._address = None

    def _check(self, response: httpx.Response, begin: int, end: int) -> None:
        """Make sure that an answer holds the bytes asked for, of the file that the others came from."""
        size = self._origin.size
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise NoRanges(f"{self._where}: comes packed ({response.headers['Content-Encoding']}); {_OTHER_HUB}")
        if response.status_code == 200:
            if (begin, end) != (0, size):
                raise NoRanges(f"{self._where}: {response.url.host} sends whole files only; {_OTHER_HUB}")
            told: tuple[int, int] | None = (0, int(response.headers.get("Content-Length", size)))
        else:
            match = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+)", response.headers.get("Content-Range", "").strip())
            told = None if match is None else (int(match[1] or -1), int(match[2]))
        if told is not None and told[1] != size:
            raise self._unusable(f"it has {told[1]:,} bytes now, {size:,} before")
        if told is None or told[0] != begin:
            raise self._unusable(f"bytes from {begin:,} on were asked for, others come ({response.status_code})")
        etag = response.headers.get("ETag", "").removeprefix("W/").strip('"')
        with self._lock:
            first = self._etags.setdefault(response.url.host, etag)
        if etag and first and etag != first:
            raise self._unusable(f"it was replaced while it came ({first[:12]}, then {etag[:12]})")

    def _unusable(self, why: str) -> HubUnavailable:
        return HubUnavailable(f"{self._where}: parts of one file do not fit together: {why}; {_OTHER_HUB}")
