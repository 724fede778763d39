"""A local stand-in that speaks the part of the Hugging Face Hub's protocol that downloads and listings need.

It serves folders as repositories over HTTP on the loopback interface, lists them by tag, page by page, and logs every request,
so that a test can tell what was fetched and that offline nothing was. Contents may come from a second host (`contents`), as those
of large files do from the Hub's. It is not the Hub: no Xet, and tokens are only logged.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlencode, urlsplit


class Request(NamedTuple):
    """One line of the log."""

    method: str
    path: str
    range: tuple[int, int] | None = None
    """First byte asked for and the one after the last; None: all."""
    token: str = ""
    """What the request says of who asks."""


class VirtualFile:
    """A file of any length whose bytes are made when they are asked for."""

    def __init__(self, size: int, read: Callable[[int, int], bytes]) -> None:
        """``read(begin, end)`` returns bytes."""
        self.size, self.read = size, read
        self.etag = hashlib.sha256(f"{size}".encode() + read(0, min(size, 4096))).hexdigest()

    @classmethod
    def of(cls, path: Path) -> VirtualFile:
        """Serve a file of this machine."""
        data = path.read_bytes()
        file = cls(len(data), lambda begin, end: data[begin:end])
        file.etag = hashlib.sha256(data).hexdigest()
        return file


class Revision(NamedTuple):
    """A folder that is served at one commit of a repository."""

    repository: str
    commit: str
    folder: Path


@dataclass
class HubServer:
    """What is served, and the log of what was asked."""

    url: str
    revisions: dict[tuple[str, str], Revision] = field(default_factory=dict)
    """By repository and commit, tag or branch."""
    failures: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Status and X-Error-Code that answer a request for the file of this name instead of what is served."""
    refusals: dict[str, list[tuple[int, str]]] = field(default_factory=dict)
    """By repository, ``api/models`` for listings: statuses and codes that answer its next requests, one each."""
    listed: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What the listing says of each repository, in the Hub's words; one that is not served as well is gone."""
    page_size: int = 1000
    explains: bool = True
    """Whether failures carry the Hub's X-Error-Code and X-Error-Message; plain mirrors have neither."""
    describes: bool = True
    """Whether it has the interface for programs under /api; plain mirrors have not."""
    pages: bool = False
    """Whether every request is answered with a page for people, as a login page that stands in between does."""
    headers: dict[str, dict[str, str]] = field(default_factory=dict)
    """By file name: headers that its answers carry instead of the usual ones."""
    cuts: dict[str, list[int]] = field(default_factory=dict)
    """By file name: after how many bytes the next transfers of it break off, one each."""
    ignores_ranges: bool = False
    virtual: dict[tuple[str, str], VirtualFile] = field(default_factory=dict)
    """By repository and file name: what is served beside the folder's files."""
    contents: HubServer | None = None
    """The host that safetensors files are fetched from; None: this one."""
    renamed: dict[str, str] = field(default_factory=dict)
    """Former to present names of repositories."""
    pauses_s: float = 0.0
    """Between two pieces of 64 KiB of a file."""
    silent_s: float = 0.0
    """Before the answer to each request for contents."""
    busy: list[tuple[int, str]] = field(default_factory=list)
    """Status and Retry-After that answer the next requests for ranges, one each."""
    broken: list[int] = field(default_factory=list)
    """After how many bytes the next ranges break off, one each."""
    expires: list[int] = field(default_factory=list)
    """Statuses by which the next requests for contents are told that their address is no longer signed."""
    num_bytes_sent: int = 0
    """Of files, since the log was last cleared with `clear`."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    login: str = ""
    """``user:password`` that every request must carry; empty: none."""
    requests: list[Request] = field(default_factory=list)

    def add(self, name: str, folder: Path, *, tag: str = "main") -> str:
        """Serve ``folder`` as the newest commit of ``ORG/NAME``, to which main and ``tag`` now point; return the commit."""
        commit = hashlib.sha1(f"{name} {folder}".encode()).hexdigest()
        for reference in ("main", tag, commit):
            self.revisions[name, reference] = Revision(name, commit, folder)
        return commit

    def clear(self) -> None:
        """Forget what was asked and sent."""
        self.requests.clear()
        self.num_bytes_sent = 0

    def files_sent(self) -> set[str]:
        """Return the names of files whose contents were sent since the log was last cleared."""
        return {
            request.path.rsplit("/", 1)[1]
            for request in self.requests
            if request.method == "GET" and "/resolve/" in request.path
        }


@contextmanager
def serve_hub() -> Iterator[HubServer]:
    """Run a stand-in on a free port; stop it at the end."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    hub = server.hub = HubServer(f"http://127.0.0.1:{server.server_address[1]}")  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else the body of an answer waits 40 ms for the client to acknowledge the head

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: object) -> None:
        """Stay silent; the log is `HubServer.requests`."""

    def _answer(self) -> None:
        hub: HubServer = self.server.hub  # type: ignore[attr-defined]
        path = unquote(urlsplit(self.path).path)
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        span = None if asked is None else (int(asked[1]), int(asked[2]) + 1 if asked[2] else 2**63)
        hub.requests.append(Request(self.command, path, span, self.headers.get("Authorization", "")))
        if hub.login and self.headers["Authorization"] != f"Basic {b64encode(hub.login.encode()).decode()}":
            self._fail(401, "Unauthorized")
            return
        if hub.pages:
            self._send(200, b"<html><body>Please log in</body></html>", {"Content-Type": "text/html"})
            return
        if path.startswith("/api/") and not hub.describes:
            self._fail(404, "")
            return
        if path == "/api/models":
            self._list(hub)
            return
        self._answer_of_repository(hub, path)

    def _answer_of_repository(self, hub: HubServer, path: str) -> None:
        info = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(?:revision|tree)/(.+))?", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        match = info or file
        if match is not None and match[1] in hub.renamed:
            self._send(307, b"", {"Location": self.path.replace(match[1], hub.renamed[match[1]], 1)})
            return
        if match is not None and hub.refusals.get(match[1]):
            self._fail(*hub.refusals[match[1]].pop(0))
        elif match is None or not any(name == match[1] for name, _ in hub.revisions):
            self._fail(404, "RepoNotFound")
        elif (name := path.rsplit("/", 1)[1]) in hub.failures:
            self._fail(*hub.failures[name])
        elif (revision := hub.revisions.get((match[1], match[2] or "main"))) is None:
            self._fail(404, "RevisionNotFound")
        elif file:
            self._send_file(revision, file[3])
        else:
            self._describe(revision, tree="/tree/" in path)

    def _list(self, hub: HubServer) -> None:
        """Answer with the listed repositories that carry all tags asked for; only what ``expand`` names, as the Hub does."""
        if hub.refusals.get("api/models"):
            self._fail(*hub.refusals["api/models"].pop(0))
            return
        query = parse_qs(urlsplit(self.path).query)
        wanted, fields = set(query.get("filter", [])), set(query.get("expand", []))
        found = [{"id": name, **{key: value for key, value in said.items() if key in fields}}
                 for name, said in hub.listed.items() if wanted <= set(said["tags"])]  # fmt: skip
        begin = int(query.get("cursor", ["0"])[0])
        end = begin + hub.page_size
        headers = {"Content-Type": "application/json"}
        if end < len(found):
            following = urlencode({**query, "cursor": end}, doseq=True)
            headers["Link"] = f'<{hub.url}/api/models?{following}>; rel="next"'
        self._send(200, json.dumps(found[begin:end]).encode(), headers)

    def _describe(self, revision: Revision, *, tree: bool) -> None:
        paths = sorted(path for path in revision.folder.rglob("*") if path.is_file())
        names = [path.relative_to(revision.folder).as_posix() for path in paths]
        body: object = {
            "id": revision.repository,
            "sha": revision.commit,
            "siblings": [{"rfilename": n} for n in names],
        }
        if tree:
            sizes = [path.stat().st_size for path in paths]
            body = [{"type": "file", "path": file, "size": size, "oid": revision.commit}
                    for file, size in zip(names, sizes, strict=True)]  # fmt: skip
        self._send(200, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def _send_file(self, revision: Revision, name: str) -> None:
        commit = {"X-Repo-Commit": revision.commit}
        hub: HubServer = self.server.hub  # type: ignore[attr-defined]
        path = revision.folder / name
        file = hub.virtual.get((revision.repository, name)) or (VirtualFile.of(path) if path.is_file() else None)
        if file is None:
            self._fail(404, "EntryNotFound", commit)
            return
        headers = commit | {"ETag": f'"{file.etag}"', "Accept-Ranges": "bytes"} | hub.headers.get(name, {})
        if hub.contents is not None and name.endswith(".safetensors"):
            linked = {"X-Linked-ETag": f'"{file.etag}"', "X-Linked-Size": str(file.size)}
            self._send(
                302, b"", commit | linked | {"Location": f"{hub.contents.url}{urlsplit(self.path).path}?signature=abc"}
            )
            return
        self._send_contents(hub, name, file, headers)

    def _send_contents(self, hub: HubServer, name: str, file: VirtualFile, headers: dict[str, str]) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        is_range, size = wanted is not None and not hub.ignores_ranges, file.size
        begin, end = 0, size
        if is_range:
            assert wanted is not None
            begin, end = int(wanted[1]), min(int(wanted[2]) + 1 if wanted[2] else size, size)
            headers = headers | {"Content-Range": f"bytes {begin}-{end - 1}/{size}"}
        status = 206 if is_range else 200
        time.sleep(hub.silent_s)
        if self.command == "GET":
            with hub.lock:
                expired = hub.expires.pop(0) if is_range and hub.expires else None
                busy = hub.busy.pop(0) if is_range and hub.busy else None
                cuts = hub.cuts.get(name) or (hub.broken if is_range else [])
                cut = cuts.pop(0) if cuts and not expired and not busy else None
            if expired or busy:
                self._send(expired or busy[0], b"", {"Retry-After": busy[1]} if busy else {})  # type: ignore[index]
                return
            if cut is not None:
                self._break_off(status if is_range else 206 if begin else 200, file.read(begin, end), cut, headers)
                return
        self._send_head(status, {"Content-Length": str(end - begin)} | headers)
        for at in range(begin, end, 65_536) if self.command == "GET" else ():
            piece = file.read(at, min(at + 65_536, end))
            self.wfile.write(piece)
            with hub.lock:
                hub.num_bytes_sent += len(piece)
            time.sleep(hub.pauses_s)

    def _break_off(self, status: int, data: bytes, num_bytes: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data[:num_bytes])
        self.wfile.flush()
        self.close_connection = True

    def _fail(self, status: int, code: str, headers: dict[str, str] | None = None) -> None:
        hub: HubServer = self.server.hub  # type: ignore[attr-defined]
        words = {"X-Error-Code": code, "X-Error-Message": code} if hub.explains else {}
        self._send(status, b"", (headers or {}) | words | hub.headers.get(f"{status}", {}))

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self._send_head(status, {"Content-Length": str(len(body))} | headers)
        if self.command == "GET":
            self.wfile.write(body)

    def _send_head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
