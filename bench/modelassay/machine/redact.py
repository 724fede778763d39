"""Keeps secrets out of what a process prints and out of what a suite may say.

`modelassay.machine.scrub` masks a command line, where losing a harmless word costs nothing. Here a mistake costs a number or a
suite, so only what is certain counts: values that the environment holds under a secret-like name or in a URL, tokens of
providers at their full length, and logins in URLs.
"""

from __future__ import annotations

import json
import os
import re
import sys
import threading
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final, TextIO

from modelassay.machine.scrub import MASK, is_here, known_secrets

# By how each begins, which is looked for first: that makes it ten times as fast. Every repetition that something must
# follow is bounded, so that a line of a megabyte costs linear time. None crosses a quote or the end of a line: what was
# JSON stays JSON.
_TOKENS: Final = {
    start: re.compile(rf"{start}(?<![A-Za-z0-9]{start}){rest}")
    for start, rest in (
        *((start, r"[A-Za-z0-9]{20,}") for start in ("hf_", "api_org_")),  # Hugging Face
        ("sk-", r"[A-Za-z0-9_-]{20,}"),  # OpenAI, Anthropic
        *((start, r"[A-Za-z0-9_]{20,}") for start in ("gho_", "ghp_", "ghr_", "ghs_", "ghu_", "github_pat_")),
        ("glpat-", r"[A-Za-z0-9_-]{20,}"),  # GitLab
        *((start, r"[0-9A-Z]{16}(?![0-9A-Za-z])") for start in ("AKIA", "ASIA")),  # AWS access key ids
        ("eyJ", r"[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*"),  # JSON web tokens
        *((start, r"[ \t]+(?=[A-Za-z._~+/-]{0,64}[0-9])[\w.~+/-]{16,}=*") for start in ("Bearer", "Basic")),  # headers
    )
}
_SLASHES: Final = r":/(/|(?<=http:/)|(?<=https:/))"  # pathlib makes one of two
_LOGINS: Final = (
    re.compile(_SLASHES + r"[^/\s?#\"'<>@]{1,256}(?=@)"),
    # A slash or an @ in the password.
    re.compile(_SLASHES + r"[^/\s:@\"'<>]{1,256}:(?!\d{1,5}[/?#])[^\s\"'<>]{1,256}(?=@)"),
)
_NUMBER: Final = re.compile(r"[-+\d.eE]+")
_WORD: Final = re.compile(r"[A-Za-z]+")

_LONGEST_LINE: Final = 1 << 16
"""Bytes that are held back until their line ends."""

DRAIN_SECONDS: Final = 5.0
"""How long what a dead cell printed may take to reach its file; longer only where a process of it escaped."""


class Mask:
    """Replaces secrets in text by ``***``.

    >>> mask = Mask({"WANDB_API_KEY": "0123456789abcdef", "HTTPS_PROXY": "http://me:pass-word1@proxy:3128"})
    >>> mask("key 0123456789abcdef; https://a:b@hub.example/x; said pass-word1"), mask.refuses("embedded")
    ('key ***; https://***@hub.example/x; said ***', False)
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        """Take the secrets of ``environ``."""
        values = [value for value in known_secrets(environ) if not _NUMBER.fullmatch(value)]
        self._values = list(dict.fromkeys(form for value in values for form in (value, json.dumps(value)[1:-1])))
        # A variable such as SSO_AUTH=disabled must not forbid a word.
        self._peculiar = [value for value in self._values if not _WORD.fullmatch(value)]

    def __call__(self, text: str) -> str:
        """Return ``text`` without secrets."""
        for value in self._values:
            text = text.replace(value, MASK)
        for start, token in _TOKENS.items():
            if start in text:
                text = token.sub(MASK, text)
        if "@" in text:
            for login in _LOGINS:
                text = login.sub(rf":/\1{MASK}", text)
        return text

    def refuses(self, text: str) -> bool:
        """Tell whether ``text`` holds what may not stand in a suite; a path of something here may look like a token."""
        if any(value in text for value in self._peculiar):
            return True
        return any(pattern.search(text) for pattern in (*_TOKENS.values(), *_LOGINS)) and not is_here(text)


def masked(text: str) -> str:
    """Return ``text`` without the secrets of this process."""
    return Mask(os.environ)(text)


class MaskedStream:
    """A text stream that masks what is written to it, all else as of the stream behind it."""

    def __init__(self, stream: TextIO, mask: Mask) -> None:
        """Write to ``stream``."""
        self._stream, self._mask = stream, mask

    def write(self, text: str) -> int:
        """Write ``text`` masked; return its own length, as callers expect."""
        self._stream.write(self._mask(text))
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Write each of ``lines``."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        """Return the attribute of the stream behind."""
        return getattr(self._stream, name)


def mask_streams() -> None:
    """Mask from now on what Python prints: our own lines, the warnings of libraries, tracebacks."""
    mask = Mask(os.environ)
    for name in ("stdout", "stderr"):
        if (stream := getattr(sys, name)) is not None:  # None: closed before Python began
            setattr(sys, name, MaskedStream(stream, mask))


class Printed:
    """What a cell and its children print, on its way through a pipe into the cell's folder.

    The thread that reads the pipe belongs to the runner: a cell killed at any point loses nothing that it had printed,
    native code that holds Python's lock cannot block itself, and the cell pays no more than for writing to a file.
    """

    def __init__(self, reader: Connection, folder: Path) -> None:
        """Read ``reader`` until all its writers are gone; the first line names the file in ``folder``."""
        self._error: OSError | None = None
        self._file: int | None = None
        self._thread = threading.Thread(target=self._pump, args=(reader, folder), name="printed", daemon=True)
        self._thread.start()

    def finish(self) -> OSError | None:
        """Wait until everything is written; return the reason if it could not be."""
        self._thread.join(DRAIN_SECONDS)
        return self._error

    def _pump(self, reader: Connection, folder: Path) -> None:
        mask, remainder = Mask(os.environ), b""
        with os.fdopen(os.dup(reader.fileno()), "rb") as stream:
            name = stream.readline().decode().strip()
            while name and (chunk := stream.read1(_LONGEST_LINE)):
                lines, remainder = _whole_lines(remainder + chunk)
                self._write(folder / name, lines, mask)
            self._write(folder / name, remainder, mask)
        if self._file is not None:
            os.close(self._file)

    def _write(self, path: Path, data: bytes, mask: Mask) -> None:
        """Append to the file; after an error read on without it, since a full pipe would block the cell."""
        if not data or self._error is not None:
            return
        data = mask(data.decode(errors="surrogateescape")).encode(errors="surrogateescape")
        try:
            if self._file is None:
                self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o644)
            while data:
                data = data[os.write(self._file, data) :]
        except OSError as error:
            error.filename = error.filename or str(path)
            self._error = error


def print_into(writer: Connection, name: str) -> None:
    """Send what this process and its children print through ``writer`` to the file ``name`` (see `Printed`)."""
    os.write(writer.fileno(), f"{name}\n".encode())
    os.dup2(writer.fileno(), 1)
    os.dup2(writer.fileno(), 2)


def _whole_lines(data: bytes) -> tuple[bytes, bytes]:
    """Split after the last line or, where one has no end, after its last blank, so that no token is cut in two."""
    end = 1 + max(data.rfind(b"\n"), data.rfind(b"\r"))
    if not end and len(data) > _LONGEST_LINE:
        end = 1 + data.rfind(b" ") or len(data)
    return data[:end], data[end:]
