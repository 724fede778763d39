"""Artifacts by the recipe that made them: resumable while they are built, whole or absent afterwards, verified before they are used.

::

    artifacts/zoo/5f0c2a9be1d34477/model.safetensors
    artifacts/zoo/5f0c2a9be1d34477/record.json    sealed: where it lies, recipe, times, and size and SHA-256 of every file

What a process uses for the first time is compared with its record: files whole, of those above 16 GiB samples unless
``MODELASSAY_VERIFY=1`` (``run --verify``), which is said. What does not hold what was published, or not under its own name, is made anew, and
said. Files that were not published with it are set aside under hidden names.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from modelassay.errors import AssayError, HostError, UsageError, printable
from modelassay.storage.digests import difference, digests_of, is_sampled, stamp, strangers
from modelassay.storage.durable import in_the_way
from modelassay.storage.files import locked, no_space, publish
from modelassay.storage.sealed import Unsealed, read_sealed, sealed_json

Report = Callable[[str], None]

RECORD: Final = "record.json"
VERIFY: Final = "MODELASSAY_VERIFY"
"""The variable that, set to 1, has large files verified whole."""

_VERIFIED: dict[Path, bytes] = {}
"""Folders that this process has verified, with the `stamp` that each had then."""


def content_key(value: Any) -> str:
    """Return 16 hex digits of BLAKE2b over the canonical JSON of ``value``: equal values, equal keys.

    >>> content_key({"b": 1, "a": 2}) == content_key({"a": 2, "b": 1})
    True
    """
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.blake2b(canonical.encode(), digest_size=8).hexdigest()


def home_folder() -> Path:
    """Return this user's home folder.

    Raises:
        HostError: they have none, as a user of a container that is only a number.
    """
    try:
        return Path.home()
    except RuntimeError as error:
        raise HostError(
            f"user {os.getuid()} has no home folder for caches: HOME is not set; set it, or MODELASSAY_CACHE and HF_HOME"
        ) from error


def cache_root() -> Path:
    """Return the folder of everything that can be made again: ``MODELASSAY_CACHE``, else the XDG cache folder.

    Raises:
        HostError: neither is set and the user has no home folder.
    """
    if explicit := os.environ.get("MODELASSAY_CACHE"):
        return Path(explicit)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else home_folder() / ".cache") / "modelassay"


def say(text: str) -> None:
    """Print ``text`` on stderr, on one line."""
    print(f"note: {text}", file=sys.stderr, flush=True)


class Store:
    """Folders named by the hash of the recipe that made them; the only thing cells share.

    A folder is built as ``X.part`` under a lock and renamed, so whoever sees it sees all of it, and two cells that want
    the same one build it once. Beside what was built lies ``record.json``: the recipe, what it was made from, when, how
    long that took, in how many attempts, and what it held.
    """

    def __init__(self, root: Path | None = None, *, report: Report = say) -> None:
        """Open a store.

        Args:
            root: where it lies; ``artifacts`` under the cache folder if None.
            report: is told what was damaged and is made anew.
        """
        self.root = root if root is not None else cache_root() / "artifacts"
        self.report = report

    def path(self, recipe: Mapping[str, Any]) -> Path:
        """Return where the artifact of ``recipe`` (any JSON-able mapping with a ``kind``) lies or will lie."""
        return self.root / str(recipe["kind"]) / content_key(recipe)

    def holds(self, recipe: Mapping[str, Any]) -> bool:
        """Return whether the artifact of ``recipe`` is there as it was published; nothing is changed."""
        folder = self.path(recipe)
        return os.path.lexists(folder) and damage_of(folder, report=self.report) is None

    def get(self, recipe: Mapping[str, Any], build: Callable[[Path], None]) -> Path:
        """Return the artifact's folder, calling ``build(folder)`` to fill it the first time, from an empty folder."""
        return self.build_folder(self.path(recipe), build, record={"recipe": dict(recipe)})

    def build_folder(
        self, final: Path, build: Callable[[Path], None], *, record: Mapping[str, Any], resumable: bool = False
    ) -> Path:
        """Return the folder ``final``, built by ``build(part)`` the first time and where it is not what was published.

        Args:
            final: where it lies or will lie.
            build: fills the folder it is given.
            record: what ``record.json`` says beside times, attempts and digests.
            resumable: whether ``build`` goes on with what a killed attempt left in its folder; else it begins with an empty one.

        Raises:
            HostError: it is damaged, and cannot be made anew where it lies.
        """
        if os.path.lexists(final) and damage_of(final, report=self.report) is None:
            return final
        try:
            with locked(final.with_suffix(".lock")):
                if not (os.path.lexists(final) and self._repaired(final)):
                    part, tally = final.with_suffix(".part"), final.with_suffix(".attempts")
                    self._fill(part, tally, build, record=record, place=_place(final), resumable=resumable)
                    publish(part, final)
                    tally.unlink(missing_ok=True)
            final.with_suffix(".lock").unlink(
                missing_ok=True
            )  # whoever waits on it holds the file itself and sees the folder
            _VERIFIED[final] = stamp(final)
        except OSError as error:
            raise _unwritable(error, final) from error
        except Exception as error:
            if (full := no_space(error, final)) is not error:  # safetensors has errors of its own
                raise full from error
            raise
        return final

    def _repaired(self, final: Path) -> bool:
        """Return whether ``final`` is what was published by now; else it is removed, and that is said."""
        why = damage_of(final)
        try:
            if why is not None and (aside := _set_strangers_aside(final)):
                shown = ", ".join(map(printable, aside))
                why = damage_of(final)
                self.report(f"{final}: {shown} was not published with it; set aside under a hidden name")
            if why is None:
                return True
            self.report(f"{final}: {why}; it is made anew")
            _remove(final)
        except OSError as error:
            if isinstance(no_space(error, final), HostError):
                raise
            raise HostError(
                f"{final}: {why}, and it cannot be removed ({error.strerror}); make the cache writable, or set MODELASSAY_CACHE"
            ) from error
        return False

    def _fill(self, part: Path, tally: Path, build: Callable[[Path], None], *, record: Mapping[str, Any], place: str,
              resumable: bool) -> None:  # fmt: skip
        """Fill ``part`` and write its record; what a killed attempt left whole is taken as it is."""
        if not resumable or not part.is_dir() or part.is_symlink():
            _remove(part)
        elif os.path.lexists(part / RECORD):  # it was killed between its end and its final name
            why = _unlike_record(part, place, wholly=True)
            if why is None and not strangers(part, _files_of(part)):
                return
            self.report(f"{part}: {why or 'it holds what was not made'}; it is made anew")
            _remove(part)
        attempts = _count(tally)
        began, started = time.monotonic(), time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        try:
            part.mkdir(parents=True, exist_ok=True)
            _remove(part / RECORD)
            build(part)
        except UsageError as error:
            if not resumable or error.damaged is None or not error.damaged.is_relative_to(part):
                raise
            self.report(f"{error.damaged}: what a killed attempt left is damaged; {part} is begun anew")
            _remove(part)
            part.mkdir(parents=True)
            build(part)
        full = {**record, "place": place, "started": started, "seconds": round(time.monotonic() - began, 3),
                "attempts": attempts, "files": digests_of(part)}  # fmt: skip
        (part / RECORD).write_bytes(sealed_json(full, by_lines=True))


def damage_of(folder: Path, *, report: Report | None = None) -> str | None:
    """Say in words what of the artifact ``folder`` is not as it was published; None where all is.

    Its files are read once in a process, and again where one was changed, which their times tell. ``report`` is told of files
    that were compared in part.
    """
    try:
        now = stamp(folder)
        if _VERIFIED.get(folder) == now:
            return None
    except NotADirectoryError:
        return "no folder"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    wholly = os.environ.get(VERIFY, "") not in ("", "0")
    why = _unlike_record(folder, _place(folder), wholly=wholly)
    if why is not None:
        return why
    files = _files_of(folder)
    if others := strangers(folder, files):
        return f"{printable(others[0])} was not published with it"
    sampled = [printable(name) for name, digest in files.items() if digest and is_sampled(digest)]
    if report is not None and sampled and not wholly:
        report(
            f"{folder}: {', '.join(sampled)}: only samples were compared with what was written; run with --verify compares all"
        )
    _VERIFIED[folder] = now
    return None


def _place(folder: Path) -> str:
    """What an artifact's record calls the place where it was published: one that was moved to another is not taken for it."""
    return f"{folder.parent.name}/{folder.name}"


def _unlike_record(folder: Path, place: str, *, wholly: bool) -> str | None:
    """Say what of ``folder``, to be published at ``place``, is not as its record says; files it does not name are passed over."""
    if folder.is_symlink() or not folder.is_dir():
        return "no folder"
    try:
        record = read_sealed(folder / RECORD, plain=False)
        if record["place"] != place:
            return f"{RECORD} says that it is {printable(str(record['place']))}"
        return difference(folder, record["files"], wholly=wholly)
    except FileNotFoundError:
        return f"{RECORD} is missing"
    except Unsealed:
        return f"{RECORD} holds no digests, as those of earlier versions"
    except OSError as error:
        return f"{RECORD} cannot be read ({error.strerror})"
    except (ValueError, KeyError, TypeError, AttributeError, AssayError) as error:
        return f"{RECORD} is damaged ({error})"


def _files_of(folder: Path) -> dict[str, Any]:
    """Return the files that the sound record of ``folder`` names, itself included."""
    files: dict[str, Any] = {**read_sealed(folder / RECORD, plain=False)["files"], RECORD: None}
    return files


def _unwritable(error: OSError, final: Path) -> Exception:
    """Return a HostError in place of an ``error`` about the store's own files, others unchanged."""
    full, name = no_space(error, final), error.filename
    own = {final, *final.parents, *map(final.with_suffix, (".lock", ".part", ".attempts"))}
    if isinstance(full, HostError) or not isinstance(name, str | bytes) or Path(os.fsdecode(name)) not in own:
        return full
    culprit = in_the_way(final.parent) or Path(os.fsdecode(name))
    return HostError(
        f"{culprit}: {error.strerror}, so {final.name} cannot be made; remove what is in the way, or set MODELASSAY_CACHE"
    )


def _set_strangers_aside(final: Path) -> list[str]:
    """Hide the files in ``final`` that were not published with it, where all that were are as they were; return their names."""
    if _unlike_record(final, _place(final), wholly=False) is not None:
        return []
    names = strangers(final, _files_of(final))
    for path in (final / name for name in names):
        path.rename(path.with_name(f".{path.name}.aside"))
    return names


def _remove(path: Path) -> None:
    """Remove ``path``, whatever it is; a folder gives up its name first, so that nobody sees a part of it."""
    if path.is_dir() and not path.is_symlink():
        away = path.with_name(f"{path.name}.damaged")
        shutil.rmtree(away, ignore_errors=True)
        path.rename(away)
        shutil.rmtree(away, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _count(tally: Path) -> int:
    """Count one more attempt in the file ``tally``; what is no number of attempts counts as none."""
    try:
        attempts = 1 + min(int(tally.read_bytes()[:6] if tally.stat().st_size < 7 else 0), 999_998)
    except (OSError, ValueError):
        attempts = 1
    _remove(tally)
    tally.parent.mkdir(parents=True, exist_ok=True)
    tally.write_bytes(b"%d" % attempts)
    return attempts
