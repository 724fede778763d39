"""A local stand-in that speaks the part of the Hugging Face Hub's protocol that downloads and listings need.

It serves folders as repositories over HTTP on the loopback interface, lists them by tag, page by page, and logs every request,
so that a test can tell what was fetched and that offline nothing was. It is not the Hub: no LFS redirects, no Xet, no
tokens.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from base64 import b64encode
from collections.abc import Iterator
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
    login: str = ""
    """``user:password`` that every request must carry; empty: none."""
    requests: list[Request] = field(default_factory=list)

    def add(self, name: str, folder: Path, *, tag: str = "main") -> str:
        """Serve ``folder`` as the newest commit of ``ORG/NAME``, to which main and ``tag`` now point; return the commit."""
        commit = hashlib.sha1(f"{name} {folder}".encode()).hexdigest()
        for reference in ("main", tag, commit):
            self.revisions[name, reference] = Revision(name, commit, folder)
        return commit

    def files_sent(self) -> set[str]:
        """Return the names of files whose contents were sent since the log was last cleared."""
        return {path.rsplit("/", 1)[1] for method, path in self.requests if method == "GET" and "/resolve/" in path}


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
        hub.requests.append(Request(self.command, path))
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
        info = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(?:revision|tree)/(.+))?", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        match = info or file
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
        path = revision.folder / name
        if not path.is_file():
            self._fail(404, "EntryNotFound", commit)
            return
        data = path.read_bytes()
        headers = commit | {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "Accept-Ranges": "bytes"}
        hub: HubServer = self.server.hub  # type: ignore[attr-defined]
        headers |= hub.headers.get(name, {})
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if hub.cuts.get(name) and self.command == "GET":
            begin = int(wanted[1]) if wanted and not hub.ignores_ranges else 0
            if begin:
                headers |= {"Content-Range": f"bytes {begin}-{len(data) - 1}/{len(data)}"}
            self._break_off(206 if begin else 200, data[begin:], hub.cuts[name].pop(0), headers)
            return
        if wanted is None or hub.ignores_ranges:
            self._send(200, data, headers)
            return
        first, last = int(wanted[1]), min(int(wanted[2] or len(data)), len(data) - 1)
        span = {"Content-Range": f"bytes {first}-{last}/{len(data)}"}
        self._send(206, data[first : last + 1], headers | span)

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
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)
