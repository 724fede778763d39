"""What a container sees of a model folder or a file that a parameter names, and what it never sees.

A model folder may be somebody else's: what is in it must not decide what else of this machine is shown. So a link in it is
followed only where that cannot lead away: within the folder, or from a snapshot in the Hub's cache to a blob of the same
repository. Any other link is refused rather than left out, since without it the command inside would miss a file and
could not say why. A folder with a socket is refused too: mounted to be read, a socket can still be spoken to.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from modelassay.errors import UsageError, printable
from modelassay.experiments.references import Reference

MAX_ENTRIES: Final = 100_000
"""Files and folders that a model folder may hold; all are looked at before the container begins."""

_SYSTEM: Final = frozenset(map(Path, (
    "/", "/bin", "/home", "/lib", "/lib64", "/media", "/mnt", "/opt", "/root", "/sbin", "/srv", "/tmp", "/usr", "/usr/bin",
    "/usr/lib", "/usr/local", "/usr/share", "/var", "/var/lib", "/var/log", "/var/tmp",
)))  # fmt: skip
"""Folders that hold more than one thing; a model may lie below them."""

_NEVER: Final = tuple(map(Path, ("/boot", "/dev", "/etc", "/proc", "/run", "/sys", "/var/lib/docker", "/var/run")))
"""Settings, secrets and interfaces of the machine; nothing in them is shown."""

_CREDENTIALS: Final = frozenset({
    ".aws", ".azure", ".config", ".docker", ".git-credentials", ".gnupg", ".kube", ".netrc", ".password-store", ".ssh",
})  # fmt: skip
"""Files and folders by these names hold keys and passwords."""

_STORAGE: Final = tuple(map(Path, ("/dev/shm", "/run/media")))
"""What lies in them all the same."""

_KINDS: Final = {stat.S_IFSOCK: "a socket", stat.S_IFIFO: "a FIFO", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}

_OF_A_MODEL: Final = ("config.json", ".safetensors", ".gguf")
"""How the name of at least one file of a model folder ends."""


@dataclass(frozen=True, kw_only=True)
class View:
    """A path inside, and what of this machine lies there."""

    path: Path
    source: Path
    """Free of symlinks."""


def views(reference: Reference, *, hub: Path, private: Mapping[Path, str]) -> Iterator[View]:
    """Yield what the container sees of what a parameter names: nothing of what is not there, of the Hub or of the zoo.

    Args:
        reference: the parameter.
        hub: the Hub's cache.
        private: folders that must not lie in what is shown, and what each is.

    Raises:
        UsageError: it names a folder that holds more than a model, credentials, a socket, a device or a FIFO, or its folder
            holds a link that leads out of it, or one of the latter.
    """
    if not reference.text or (reference.kind == "model" and reference.text.startswith(("hf:", "zoo:"))):
        return
    path = Path(os.path.abspath(reference.text))  # noqa: PTH100 - not resolve(): the command inside names it like this
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):  # not there, longer than any name, or with a null byte: the command inside says so
        return
    label, source = f"{reference.parameter}={printable(reference.text)}", path.resolve()
    expected = "the folder of one model" if reference.kind == "model" else "a file"
    if trouble := _why_private(source, private) or _why_special(mode):
        raise UsageError(f"{label}: {trouble}; a container is not shown it: name {expected}")
    if stat.S_ISREG(mode):
        yield View(path=path, source=source)
    elif reference.kind == "file":
        raise UsageError(f"{label}: a folder; name {expected}")
    else:
        yield from _folder(path, source, label, _blobs(source, hub))


def require_place(folder: Path, what: str) -> None:
    """Raise UsageError where the container would see, as ``what``, a folder of the system."""
    if trouble := _why_private(folder.resolve(), {}):
        raise UsageError(f"{folder}: {trouble}; choose another folder for {what}")


def require_file(path: Path, what: str) -> None:
    """Raise UsageError where ``path`` is not a regular file."""
    if not path.is_file():
        raise UsageError(f"{path}: not a regular file; a container is shown only such {what}: save it as one")


def _why_private(source: Path, private: Mapping[Path, str]) -> str:
    """Return why ``source`` is not shown, "" if it may be."""
    if source in _SYSTEM:
        return "a folder of the system"
    root = next((root for root in _NEVER if source.is_relative_to(root)), None)
    if root is not None and not any(source != each and source.is_relative_to(each) for each in _STORAGE):
        return f"lies in {root}, which belongs to the system"
    if named := next((part for part in source.parts if part in _CREDENTIALS), None):
        return f"lies in {named}, which holds credentials"
    holds = next((path for path in private if path.is_relative_to(source)), None)
    return "" if holds is None else f"holds {private[holds]} ({holds})"


def _why_special(mode: int) -> str:
    return "" if stat.S_ISREG(mode) or stat.S_ISDIR(mode) else _KINDS.get(stat.S_IFMT(mode), "neither file nor folder")


def _folder(path: Path, source: Path, label: str, blobs: Path | None) -> Iterator[View]:
    """Yield a model folder and the blobs that its links lead to."""
    yield View(path=path, source=source)
    of_a_model = False
    for number, (entry, mode) in enumerate(_entries(source, label)):
        of_a_model |= entry.parent == source and entry.name.endswith(_OF_A_MODEL)
        where = f"{label}: {printable(str(entry.relative_to(source)))}"
        if number == MAX_ENTRIES:
            raise UsageError(f"{label}: holds more than {MAX_ENTRIES:,} files; name the folder of one model")
        if stat.S_ISLNK(mode):
            yield from _link(entry, path, source, where, blobs)
        elif trouble := _why_special(mode):
            raise UsageError(f"{where}: {trouble}; a container is not shown it: remove it from the model folder")
    if not of_a_model:
        raise UsageError(f"{label}: holds no {_OF_A_MODEL[0]}; name the folder of one model")


def _entries(folder: Path, label: str) -> Iterator[tuple[Path, int]]:
    """Yield everything in a folder and the folders below it with its mode; no link is followed."""
    waiting = [folder]
    try:
        while waiting:
            for entry in sorted(waiting.pop().iterdir()):
                mode = entry.lstat().st_mode
                yield entry, mode
                if stat.S_ISDIR(mode):
                    waiting.append(entry)
    except OSError as error:
        raise UsageError(f"{label}: cannot be read: {printable(str(error))}; check its permissions") from error


def _link(link: Path, path: Path, source: Path, where: str, blobs: Path | None) -> Iterator[View]:
    """Yield the blob that a link in a snapshot leads to; nothing for a link within the folder ``path``, which is ``source``."""
    target, inside = Path(os.path.realpath(link)), path / link.relative_to(source)
    named = Path(os.path.normpath(inside.parent / link.readlink()))
    if target.is_relative_to(source) and named.is_relative_to(path):
        return
    if blobs is not None and target.parent == blobs and named.parent.name == "blobs":
        if target.is_file():
            yield View(path=named, source=target)
            return
        if not target.exists():
            return  # removed since: the command inside misses it, as one outside would
    raise UsageError(
        f"{where}: a link to {printable(str(target))}, out of the model folder, where a container does not follow;"
        " if that file belongs to the model, put it there instead of the link (a snapshot's links are followed where"
        " HF_HUB_CACHE names the cache it lies in)"
    )


def _blobs(folder: Path, hub: Path) -> Path | None:
    """Return where the files of the repository lie whose snapshot ``folder`` is, None where it is none in ``hub``.

    >>> _blobs(Path("/hub/models--a--b/snapshots/c0ffee"), Path("/hub"))
    PosixPath('/hub/models--a--b/blobs')
    >>> _blobs(Path("/elsewhere/models--a--b/snapshots/c0ffee"), Path("/hub")) is None
    True
    """
    match folder.relative_to(hub).parts if folder.is_relative_to(hub) else ():
        case (repository, "snapshots", _, *_):
            return hub / repository / "blobs"
    return None
