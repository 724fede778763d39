"""The way to the Hub: one HTTP client for `huggingface_hub` that gives up soon where nobody answers, and says why.

`huggingface_hub` tries each request six times over 24 s, with a line on stderr for each, whether a server is busy or there is no
network. Here a server that has never answered gets one try and ``CONNECT_S`` seconds to take a connection; one that is busy, or
that has answered before, gets two more. What is raised is no error of `httpx`, so that nothing above tries again.

A login in HF_ENDPOINT is kept from the library: it would stand in every address that it warns of or raises.
"""

from __future__ import annotations

import base64
import contextvars
import os
import threading
import time
from collections.abc import Callable, MutableMapping
from concurrent.futures import Future
from functools import cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

from modelassay.errors import UsageError, printable
from modelassay.machine.scrub import scrub_text, split_login
from modelassay.models.redirects import keep_token, remember_name
from modelassay.models.token import require_plain_token, token_source

if TYPE_CHECKING:
    import httpx

LOGIN: Final = "MODELASSAY_HUB_LOGIN"
"""The variable that holds HF_ENDPOINT as it was set, where it was set with a login."""

CONNECT_S: Final = 2.0
"""For the name, the connection and TLS together; through a proxy for the first answer too."""

READ_S: Final = 60.0
"""Between two pieces of an answer, where `huggingface_hub` sets no limit."""

WAITS_S: Final = (1.0, 4.0)
"""Before the second and the third try."""

LONGEST_WAIT_S: Final = 30.0
"""A server that asks for more patience than this is not asked again."""

REMEMBERED_S: Final = 30.0
"""How long a server that was not there is not tried again."""

MAX_BREAKS: Final = 3
"""How often the same transfer may break off at the same place."""

OWN_RETRIES: Final = "modelassay.own_retries"
"""The extension of a request whose sender counts himself how often the transfer breaks off."""

_BUSY: Final = frozenset({408, 429, 500, 502, 503, 504})


class HubFault(Exception):  # noqa: N818 - ConnectionError and its kin make huggingface_hub try again
    """A request that got no answer of use; the text says why, ``fix`` what to do."""

    def __init__(self, reason: str, fix: str, *, is_temporary: bool = False, is_answer: bool = False) -> None:
        """Keep ``fix``, whether the next request may be answered, and whether the server answered that it cannot."""
        super().__init__(reason)
        self.fix, self.is_temporary, self.is_answer = fix, is_temporary, is_answer


class Transfer(NamedTuple):
    """A request for a file and its answer."""

    url: str
    begin: str
    """The range asked for."""
    num_breaks: int
    """How often in a row it had come no further before."""
    most_bytes: int
    """How many bytes came of it at most before."""
    response: httpx.Response


_NETWORK: Final = "check the network, or set HF_ENDPOINT to a mirror"
_LATER: Final = "try again later"

_answered: set[tuple[str, str]] = set()
_pauses: dict[tuple[str, str], float] = {}
"""Until when, by the monotonic clock, a server has asked all who ask it to wait."""
_absent: dict[tuple[str, str], tuple[float, HubFault]] = {}
_last: list[Transfer] = []
"""The last request for a file, if any: `huggingface_hub` asks again at once for what broke off, for as long as bytes come."""


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
    """Give `huggingface_hub` our client, which sends the login of HF_ENDPOINT to that host, and to no other.

    Raises:
        UsageError: HF_ENDPOINT is no address, or the token cannot be read or cannot be one.
    """
    set_login_aside(os.environ)
    _require_address(os.environ.get("HF_ENDPOINT", ""))  # before the library, which dies of some
    from huggingface_hub import is_offline_mode
    from huggingface_hub.utils import logging

    if not is_offline_mode():
        require_plain_token()
    if "HF_HUB_VERBOSITY" not in os.environ:
        logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # a line for each try; what came of them is told once
    _install(*split_login(os.environ.get(LOGIN, "")))


def endpoint() -> str:
    """Return the Hub's address without a login."""
    from huggingface_hub import constants

    return split_login(constants.ENDPOINT)[0]


def _require_address(address: str) -> None:
    try:
        parts = urlsplit(address)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        is_address = is_address and address.isprintable() and " " not in address.strip()
    except ValueError:  # a bracket or a port
        is_address = False
    if address and not is_address:
        raise UsageError(f"HF_ENDPOINT: {printable(split_login(address)[0])} is no address; write it as https://HOST")


@cache
def _install(address: str, login: str | None) -> None:
    import httpx
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils._http import default_client_factory

    class Client(httpx.Client):
        def send(self, request: httpx.Request, **options: Any) -> httpx.Response:
            return _send(super().send, request, options)

    authorize = _authorization(httpx.URL(address), unquote(login)) if login else None

    def client() -> httpx.Client:
        try:
            with default_client_factory() as plain:
                hooks = plain.event_hooks
            return Client(event_hooks=hooks, follow_redirects=True, timeout=None, auth=authorize)
        except (ValueError, ImportError, OSError) as error:
            raise _unusable_settings(error) from None

    set_client_factory(client)


def _authorization(hub: httpx.URL, login: str) -> Callable[[httpx.Request], httpx.Request]:
    header = f"Basic {base64.b64encode(login.encode()).decode()}"

    def authorize(request: httpx.Request) -> httpx.Request:
        if (request.url.scheme, request.url.netloc) == (hub.scheme, hub.netloc):
            request.headers["Authorization"] = header
        return request

    return authorize


def _unusable_settings(error: Exception) -> HubFault:
    """Say which variable the client cannot be made with; the value of a proxy's may hold a password."""
    if isinstance(error, OSError):
        names = [name for name in ("SSL_CERT_FILE", "SSL_CERT_DIR") if name in os.environ]
        return HubFault(
            f"its certificates cannot be read: {error}", f"mend or unset {' or '.join(names) or 'SSL_CERT_FILE'}"
        )
    names = [name for name in os.environ if name.lower() in ("http_proxy", "https_proxy", "all_proxy")]
    why = (
        "needs a package for SOCKS: pip install 'httpx[socks]'"
        if isinstance(error, ImportError)
        else "is no proxy's address"
    )
    return HubFault(f"{' or '.join(names) or 'the proxy'} {why}", "write it as http://HOST:PORT, or unset it")


def _send(send: Callable[..., httpx.Response], request: httpx.Request, options: dict[str, Any]) -> httpx.Response:
    """Return the answer to ``request``, asked for again where that can help.

    Raises:
        HubFault: nobody answers, or the server stays busy.
    """
    origin = (request.url.scheme, request.url.netloc.decode())
    when, fault = _absent.get(origin, (0.0, None))
    if fault is not None and time.monotonic() - when < REMEMBERED_S:
        raise fault
    keep_token(request, endpoint())
    _refuse_broken_transfer(request)
    _limit_waits(request)
    waits = iter(WAITS_S)
    while True:
        _wait_as_told(origin)
        try:
            response = _ask(send, request, options, is_new=origin not in _answered)
        except HubFault as fault:
            is_senders = fault.is_temporary and OWN_RETRIES in request.extensions
            wait_s = next(waits, None) if origin in _answered and not is_senders else None
            if wait_s is None:
                if not fault.is_temporary:
                    _absent[origin] = (time.monotonic(), fault)
                raise
        else:
            _answered.add(origin)
            remember_name(request, response)
            if response.status_code not in _BUSY or request.method not in ("GET", "HEAD"):
                _remember_transfer(request, response, is_stream=bool(options.get("stream")))
                return response
            response.close()
            wait_s = next(waits, None)
            pause_s = _pause_s(response)
            if wait_s is None or pause_s > LONGEST_WAIT_S:
                raise _busy(response, pause_s)
            if pause_s:  # of all who ask this server, not of one thread alone
                _pauses[origin] = time.monotonic() + pause_s
            wait_s = max(wait_s, pause_s)
        time.sleep(wait_s)


def _wait_as_told(origin: tuple[str, str]) -> None:
    time.sleep(max(0.0, min(_pauses.get(origin, 0.0) - time.monotonic(), LONGEST_WAIT_S)))


def _limit_waits(request: httpx.Request) -> None:
    limits = dict(request.extensions.get("timeout") or {})
    for name, default in (("connect", CONNECT_S), ("read", READ_S), ("write", READ_S), ("pool", READ_S)):
        limits[name] = default if limits.get(name) is None else limits[name]
    limits["connect"] = min(limits["connect"], CONNECT_S)
    request.extensions = {**request.extensions, "timeout": limits}


def _ask(
    send: Callable[..., httpx.Response], request: httpx.Request, options: dict[str, Any], *, is_new: bool
) -> httpx.Response:
    import httpx

    proxy = _proxy_of(request)
    host, fix = (
        (f"the proxy {proxy}", _proxy_fix(request.url.host)) if proxy else (request.url.host, _fix(request.url.host))
    )
    try:
        return _ask_in_time(send, request, options) if is_new else send(request, **options)
    except httpx.ProxyError as error:
        raise HubFault(f"{host} refuses: {_words(error)}", fix) from None
    except httpx.ConnectTimeout:
        raise HubFault(f"{host} takes no connection within {CONNECT_S:g} s", fix) from None
    except httpx.ConnectError as error:
        raise HubFault(f"{host}: {_words(error).lower()}", _certificate_fix(error) or fix) from None
    except httpx.TimeoutException:
        limit = request.extensions["timeout"]["read"]
        raise HubFault(f"{host} does not answer within {limit:g} s",
                       f"{_LATER}, with more patience: HF_HUB_ETAG_TIMEOUT and HF_HUB_DOWNLOAD_TIMEOUT are seconds",
                       is_temporary=True) from None  # fmt: skip
    except (httpx.NetworkError, httpx.RemoteProtocolError) as error:
        raise HubFault(
            f"{host} breaks the connection off: {_words(error).lower()}", _LATER, is_temporary=True
        ) from None
    except (httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
        raise HubFault(f"{endpoint()} is no address: {_words(error)}", "write HF_ENDPOINT as https://HOST") from None
    except httpx.TooManyRedirects:
        raise HubFault(f"{host} redirects in a circle", "check HF_ENDPOINT and the proxy") from None


def _ask_in_time(
    send: Callable[..., httpx.Response], request: httpx.Request, options: dict[str, Any]
) -> httpx.Response:
    """Ask a server that has not answered yet; it must be reached in time, and through a proxy answer in time.

    The name's resolution has no limit of its own, so the asking happens in a thread that may be left behind.
    """
    progress, proxy = threading.Event(), _proxy_of(request)
    host, fix = (
        (f"the proxy {proxy}", _proxy_fix(request.url.host)) if proxy else (request.url.host, _fix(request.url.host))
    )
    is_https = request.url.scheme == "https"
    ready = ("start_tls.complete",) if is_https else ("connect_tcp.complete", "send_request_headers.started")

    def trace(step: str, _: object) -> None:
        if step.endswith(ready):
            progress.set()

    request.extensions["trace"] = trace
    answer: Future[httpx.Response] = Future()
    context = contextvars.copy_context()  # in which huggingface_hub marks a download

    def ask() -> None:
        try:
            answer.set_result(context.run(send, request, **options))
        except BaseException as error:
            answer.set_exception(error)

    answer.add_done_callback(lambda _: progress.set())
    threading.Thread(target=ask, name="first request", daemon=True).start()
    if not progress.wait(CONNECT_S + 0.1):
        raise HubFault(f"{host} cannot be found or takes no connection within {CONNECT_S:g} s", fix)
    patience_s = _proxy_patience_s() if proxy else None
    try:
        return answer.result(patience_s)
    except TimeoutError:
        raise HubFault(f"{host} does not answer within {patience_s:g} s", fix) from None


def _proxy_patience_s() -> float:
    from huggingface_hub import constants

    return max(CONNECT_S, constants.HF_HUB_ETAG_TIMEOUT) if "HF_HUB_ETAG_TIMEOUT" in os.environ else CONNECT_S


def _proxy_of(request: httpx.Request) -> str | None:
    """Return host and port of the proxy through which ``request`` goes."""
    proxies = getproxies()
    proxy = proxies.get(request.url.scheme) or proxies.get("all")
    if not proxy or proxy_bypass(request.url.host):
        return None
    return urlsplit(proxy).netloc.rpartition("@")[2] or "in between"


def _fix(host: str) -> str:
    return (
        _NETWORK if host == urlsplit(endpoint()).hostname else f"check the network: the Hub sends its files from {host}"
    )


def _proxy_fix(host: str) -> str:
    return f"check HTTP_PROXY, HTTPS_PROXY and ALL_PROXY, or put {host} into NO_PROXY"


def _certificate_fix(error: Exception) -> str | None:
    if "CERTIFICATE" not in str(error):
        return None
    return "a login page or a proxy stands in between, or its certificate is missing here: name it with SSL_CERT_FILE"


def _words(error: Exception) -> str:
    """Return what ``error`` says on one line, without numbers of the system's and secrets."""
    text = " ".join(str(error).split()) or type(error).__name__
    return printable(scrub_text(text.partition("] ")[2] if text.startswith("[Errno") else text))[:200]


def _pause_s(response: httpx.Response) -> float:
    """Return how long the server asks to wait, 0 where it does not say; as seconds, or until a moment."""
    from email.utils import parsedate_to_datetime

    from huggingface_hub.utils._http import parse_ratelimit_headers

    text = response.headers.get("Retry-After", "").strip()
    if text.isdigit():
        return float(text)
    if text:
        try:
            return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
        except ValueError:
            return 0.0
    limit = parse_ratelimit_headers(response.headers) if response.status_code == 429 else None
    return float(limit.reset_in_seconds) if limit is not None and limit.remaining == 0 else 0.0


def _busy(response: httpx.Response, pause_s: float) -> HubFault:
    status = response.status_code
    fix = f"try again in {pause_s:.0f} s" if pause_s else _LATER
    if status == 429:
        fix += "" if token_source() else ", or log in (hf auth login): whoever is known may ask more often"
    return HubFault(f"the Hub answered {status}", fix, is_temporary=True, is_answer=True)


def _num_breaks(request: httpx.Request) -> int:
    """Return how often the transfer that ``request`` asks for has broken off where it would begin now."""
    if not _last or (str(request.url), request.headers.get("Range", "")) != _last[0][:2]:
        return 0
    size = _last[0].response.headers.get("Content-Length", "")
    num_bytes = _last[0].response.num_bytes_downloaded
    is_whole = not size.isdigit() or num_bytes >= int(size)
    return 0 if num_bytes > _last[0].most_bytes or is_whole and not _last[0].begin else _last[0].num_breaks + 1


def _remember_transfer(request: httpx.Request, response: httpx.Response, *, is_stream: bool) -> None:
    if request.method == "GET" and is_stream and OWN_RETRIES not in request.extensions:
        url, begin = str(request.url), request.headers.get("Range", "")
        most = max(_last[0].most_bytes, _last[0].response.num_bytes_downloaded) if _last and _last[0].url == url else 0
        _last[:] = [Transfer(url, begin, _num_breaks(request), most, response)]


def _refuse_broken_transfer(request: httpx.Request) -> None:
    if request.method == "GET" and OWN_RETRIES not in request.extensions and _num_breaks(request) >= MAX_BREAKS:
        raise HubFault(f"{request.url.host} breaks the transfer off at the same place each time",
                       f"{_LATER}; a proxy or a mirror in between may cut it", is_temporary=True)  # fmt: skip
