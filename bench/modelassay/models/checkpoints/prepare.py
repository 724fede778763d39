"""Having the bytes of spans on this machine before they are read in place, and how many that takes."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from modelassay.models.decoded import stored_ranges
from modelassay.models.parts import partial_file, prepare
from modelassay.models.ranges import Range, Ranges

if TYPE_CHECKING:
    from modelassay_kernels import FileSpan


@dataclass(frozen=True, kw_only=True)
class Need:
    """What reading some spans takes of a checkpoint on the Hub."""

    wanted_bytes: int
    """Of the spans, or of what is stored in their place."""
    missing_bytes: int
    """Of those, what is not on this machine."""
    file_bytes: int
    """Of the files that hold them, whole."""


def prepare_spans(spans: Iterable[FileSpan]) -> int:
    """Fetch or make what lacks of some spans, of files on the Hub several ranges at once; return how many bytes came.

    Raises:
        CheckpointError: something lacks, and it is offline.
        HostError: the Hub cannot be reached, or the cache cannot be written.
    """
    return prepare(_ranges(spans))


def read_ahead(spans: Iterable[FileSpan]) -> None:
    """Say that spans will be read soon, so that the disk works meanwhile; what keeps the system from hearing it costs no more than time."""
    if not hasattr(os, "posix_fadvise"):
        return
    for path, ranges in _ranges(spans).items():
        with suppress(OSError):
            file = os.open(path, os.O_RDONLY)
            try:
                for begin, end in ranges:
                    os.posix_fadvise(file, begin, end - begin, os.POSIX_FADV_WILLNEED)
            finally:
                os.close(file)


def need(spans: Iterable[FileSpan]) -> Need:
    """Return what `prepare_spans` would fetch; of files that are not on the Hub all is here."""
    wanted = missing = size = 0
    for path, ranges in stored_ranges(_ranges(spans)).items():
        part, pieces = partial_file(path), Ranges(ranges)
        wanted += pieces.num_bytes
        if part is not None:
            missing += sum(end - begin for begin, end in part.missing(pieces))
            size += part.origin.size
    return Need(wanted_bytes=wanted, missing_bytes=missing, file_bytes=size)


def _ranges(spans: Iterable[FileSpan]) -> dict[str, list[Range]]:
    ranges: dict[str, list[Range]] = {}
    for span in spans:
        ranges.setdefault(span.path, []).append((span.offset, span.end))
    return ranges
