"""A folder for the sockets of `multiprocessing`: an address may take no more than 107 bytes, which a long TMPDIR uses up."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from multiprocessing import process, util
from pathlib import Path
from typing import Final

from modelassay.errors import HostError, printable

_SOCKET_NAME: Final = "listener-12345678"
"""As long as what `multiprocessing` puts into its folder."""

_SHORT: Final = ("/tmp", "/var/tmp", "/dev/shm")


def place_sockets() -> None:
    """Let `multiprocessing` keep the sockets of this process and its children where sockets can be: TMPDIR, else a short folder.

    Raises:
        HostError: no folder of this machine takes a socket.
    """
    config: dict[str, object] = process.current_process()._config  # type: ignore[attr-defined]
    if Path(str(config.get("tempdir") or "/nowhere")).is_dir():
        return
    config.pop("tempdir", None)
    troubles = []
    for folder in _candidates():
        trouble = _why_no_socket(folder)
        if trouble is None:
            chosen, tempfile.tempdir = tempfile.tempdir, str(folder)
            try:
                util.get_temp_dir()  # keeps the folder and removes it at the end
            finally:
                tempfile.tempdir = chosen
            return
        troubles.append(f"{printable(str(folder))} ({trouble})")
    raise HostError(
        f"no folder for the sockets through which processes talk: {'; '.join(troubles)}; set TMPDIR to a writable folder"
        " with a short name, as /tmp"
    )


def _candidates() -> Iterator[Path]:
    """Yield the folders in which sockets may be, the user's own choice first."""
    try:
        first = [tempfile.gettempdir()]
    except FileNotFoundError:  # none is writable, as far as tempfile looks
        first = [os.environ.get("TMPDIR", "")]
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    yield from dict.fromkeys(Path(folder) for folder in (*first, runtime, *_SHORT) if folder)


def _why_no_socket(folder: Path) -> str | None:
    """Return why a socket cannot be made in a folder of its own in ``folder``, None if it can. Asked by doing."""
    try:
        own = tempfile.mkdtemp(prefix="pymp-", dir=folder)
    except OSError as error:
        return (error.strerror or str(error)).lower()
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(f"{own}/{_SOCKET_NAME}")
    except OSError as error:  # without a number where the address is too long
        return (error.strerror or f"its {len(os.fsencode(folder))} bytes are too many: {error}").lower()
    finally:
        shutil.rmtree(own, ignore_errors=True)
    return None
