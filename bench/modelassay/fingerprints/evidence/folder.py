"""A folder of evidence: one folder per pair, each published whole."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from modelassay.errors import HostError, UsageError, printable
from modelassay.fingerprints.evidence import Evidence, evidence_json
from modelassay.fingerprints.evidence.page import page
from modelassay.storage.durable import in_the_way, publish, unwritable

DOCUMENT: Final = "evidence.json"
PAGE: Final = "report.html"
_FILES: Final = frozenset({DOCUMENT, PAGE})
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


def pair_folder(a: str, b: str) -> str:
    """Return the name of a pair's folder; names that a file system cannot hold as they are carry a digest of what they were.

    >>> pair_folder("base", "Qwen2.5-0.5B"), pair_folder("a/model", "b/model")
    ('base--Qwen2.5-0.5B', 'a-model--b-model--382e6143')
    """
    safe = [_UNSAFE.sub("-", name).lstrip(".-")[:80] for name in (a, b)]
    digest = (
        "" if safe == [a, b] else "--" + hashlib.sha256(f"{a}\0{b}".encode(errors="surrogateescape")).hexdigest()[:8]
    )
    return f"{safe[0]}--{safe[1]}{digest}"


def require_evidence_folder(folder: Path, pairs: Sequence[tuple[str, str]]) -> None:
    """Refuse ``folder`` where it holds anything but the evidence of other pairs; it need not exist.

    Raises:
        UsageError: it holds something else, or one of ``pairs`` already.
        HostError: it cannot be listed.
    """
    where = printable(str(folder))
    if (blocker := in_the_way(folder.absolute())) is not None:
        raise UsageError(f"{printable(str(blocker))}: is a file or a broken link; --evidence takes a folder")
    above = next((place for place in (folder.absolute(), *folder.absolute().parents) if place.is_dir()), folder)
    if not os.access(above, os.W_OK | os.X_OK):
        raise HostError(f"{printable(str(above))}: cannot be written; choose another folder")
    try:
        entries = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
        foreign = [path.name for path in entries if not _is_pair(path)]
    except FileNotFoundError:
        return
    except OSError as error:
        raise HostError(f"{where}: cannot be read ({error.strerror}); choose another folder") from error
    if foreign:
        more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
        raise UsageError(
            f"{where}: not a folder of evidence: it holds {printable(foreign[0])}{more}; name a new or an empty folder"
        )
    if present := [name for pair in pairs if (folder / (name := pair_folder(*pair))).exists()]:
        raise UsageError(f"{where}: holds {present[0]} already; name another folder, or move that one away")


def write_evidence(folder: Path, pairs: Sequence[Evidence]) -> list[Path]:
    """Write ``evidence.json`` and ``report.html`` of each pair into a folder of its own below ``folder``; return these.

    Each appears whole or not at all, and never in the place of another.

    Raises:
        UsageError: as `require_evidence_folder`.
        HostError: it cannot be written.
    """
    require_evidence_folder(folder, [(evidence.a.name, evidence.b.name) for evidence in pairs])
    return [_write(folder, evidence) for evidence in pairs]


def _write(folder: Path, evidence: Evidence) -> Path:
    final = folder / pair_folder(evidence.a.name, evidence.b.name)
    aside = folder / f".{final.name}.part-{secrets.token_hex(4)}"
    document = evidence_json(evidence)
    try:
        aside.mkdir(parents=True)
        (aside / DOCUMENT).write_bytes(document)
        text = page(evidence, sha256=hashlib.sha256(document).hexdigest())
        (aside / PAGE).write_bytes(text.encode(errors="replace"))
        if final.exists():  # an empty folder would be replaced silently
            raise UsageError(f"{printable(str(final))}: appeared meanwhile; name another folder")
        publish(aside, final)
    except OSError as error:
        if final.exists():  # another process was faster
            raise UsageError(f"{printable(str(final))}: appeared meanwhile; name another folder") from error
        raise unwritable(error, final) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return final


def _is_pair(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink() and _names(path) == _FILES


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.startswith(".")}  # desktops leave such files
