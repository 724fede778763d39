"""Files of the Hub of which only the parts that somebody reads are on this machine.

Such a file lies under ``hub/ORG--NAME/COMMIT/`` of the cache in its full size, with holes where nothing was fetched::

    model.safetensors               the bytes, in their places
    model.safetensors.origin.json   of which file of which commit, its size and hash
    model.safetensors.parts         the ranges that are there, a line each

A line of ``.parts`` is written after its bytes are on the disk, so that a kill or a power cut never leaves a range that claims more than
there is; a torn line counts as none. Whoever reads such a file says so before (`ensure`), and what is not there is fetched:
nobody reads a hole.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import threading
import zlib
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from modelassay.errors import CheckpointError, HostError
from modelassay.models.connection import log_in
from modelassay.models.decoded import decoded_file, stored_ranges
from modelassay.models.gate import HEADER
from modelassay.models.hub_errors import hub_errors
from modelassay.models.ranges import Range, Ranges, plan
from modelassay.models.transfer import Origin, Source, Stopped
from modelassay.storage.durable import sync_file, sync_folder
from modelassay.storage.files import locked
from modelassay.storage.store import cache_root

NUM_CONNECTIONS: Final = 8
"""Ranges that are fetched at once."""

REQUEST_BYTES: Final = 32 << 20
"""The longest range of one request."""

PIECE_BYTES: Final = 4 << 20
"""Bytes after which what came is put on the disk and written down: what a kill may lose of each connection."""

FIRST_BYTES: Final = 8192
"""What is asked for of a file first: the length of its header, and all of most headers."""

_ORIGIN: Final = ".origin.json"
_PARTS: Final = ".parts"


def parts_folder(repository: str, commit: str) -> Path:
    """Return where the files of one commit lie that are fetched in parts."""
    return cache_root().absolute() / "hub" / repository.replace("/", "--") / commit


def files_in_parts(repository: str, commit: str) -> list[str]:
    """Return the names of a commit's files that lie here in parts, those beside config.json."""
    return [path.name.removesuffix(_ORIGIN) for path in parts_folder(repository, commit).glob(f"*{_ORIGIN}")]


class PartialFile:
    """One such file; to be had from `partial_file`."""

    def __init__(self, path: Path, origin: Origin) -> None:
        """Read which ranges are there."""
        self.path, self.origin = path, origin
        self._journal = _beside(path, _PARTS)
        self._source = Source(origin)
        self._lock = threading.Lock()
        self._use: int | None = None
        self._is_held = False
        self._present, self._journal_size = Ranges(), -1
        self._refresh()

    @property
    def present(self) -> Ranges:
        """The ranges that are on this machine."""
        return self._present

    @property
    def num_fetched(self) -> int:
        """Bytes of it that this process fetched."""
        return self._source.num_bytes

    def locate(self, address: str) -> None:
        """Say where its contents are, which was asked for already."""
        self._source.locate(address)

    def missing(self, ranges: Iterable[Range]) -> list[Range]:
        """Return what of ``ranges`` is not there, cut to the file's size."""
        return [gap for begin, end in ranges for gap in self._present.missing(begin, min(end, self.origin.size))]

    def requests(self, ranges: Iterable[Range]) -> list[Range]:
        """Return what has to be asked for so that ``ranges`` are there."""
        return plan(self.missing(ranges), self._present, longest=REQUEST_BYTES)

    def ensure(self, ranges: Iterable[Range]) -> None:
        """Fetch what of ``ranges`` is not there; raises as `ensure`."""
        ranges = list(ranges)
        if not self._is_held:
            self._hold()
        if self.missing(ranges):
            fetch([(self, ranges)])

    def _hold(self) -> None:
        """Keep other processes from taking away what is read here, as far as the file system can lock."""
        with contextlib.suppress(OSError):  # of a cache that can only be read, in which nobody can take anything away
            self._use = os.open(_beside(self.path, ".use"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            fcntl.flock(self._use, fcntl.LOCK_SH)
        self._is_held = True
        self._refresh()

    def _refresh(self) -> None:
        """Read the journal again, if it changed."""
        try:
            size = self._journal.stat().st_size
            if size == self._journal_size:
                return
            lines = self._journal.read_bytes().split(b"\n")
            is_whole = self.path.stat().st_size == self.origin.size
        except FileNotFoundError:
            self._present, self._journal_size = Ranges(), -1
            return
        ranges = (_parsed(line) for line in lines if is_whole)
        self._present, self._journal_size = Ranges(entry for entry in ranges if entry is not None), size

    def begin(self) -> int:
        """Return the open file in its full size, the journal read anew; the caller holds its lock."""
        file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        if os.fstat(file).st_size != self.origin.size:
            self._journal.unlink(missing_ok=True)
            os.ftruncate(file, self.origin.size)
            sync_folder(self.path.parent)
        self._refresh()
        return file

    def fetch_range(self, file: int, begin: int, end: int, stop: threading.Event) -> None:
        """Fetch one range into the open ``file``, and write down what came, also where it breaks off."""
        written = begin

        def write(at: int, chunk: bytes) -> None:
            nonlocal written
            try:
                view = memoryview(chunk)
                while view:
                    count = os.pwrite(file, view, at)
                    view, at = view[count:], at + count
                if at - written >= PIECE_BYTES or at == end:
                    written = self._note(file, written, at)
            except OSError as error:
                raise _unwritable(self, error) from None
            reached[0] = at

        reached = [begin]
        try:
            self._source.fetch(begin, end, write, stop)
        finally:
            if reached[0] > written:
                with contextlib.suppress(OSError):
                    self._note(file, written, reached[0])

    def _note(self, file: int, begin: int, end: int) -> int:
        """Put a range that was written on the disk, then say that it is there; return its end."""
        sync_file(file)
        with self._lock:
            journal = os.open(self._journal, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
            try:
                size = os.fstat(journal).st_size
                torn = size > 0 and os.pread(journal, 1, size - 1) != b"\n"
                line = (b"\n" if torn else b"") + _line(begin, end)
                os.write(journal, line)
                sync_file(journal)
            finally:
                os.close(journal)
            self._present.add(begin, end)
            self._journal_size = size + len(line)
        return end

    def release(self, keep: Range) -> bool:
        """Take away all but the range ``keep``, unless another process reads the file; return whether it was."""
        if self._use is not None:
            os.close(self._use)
        self._use, self._is_held = None, False
        with locked(_beside(self.path, ".lock")):
            use = os.open(_beside(self.path, ".use"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(use, fcntl.LOCK_EX | fcntl.LOCK_NB)
                is_kept = not self.missing([keep])
                self._journal.unlink(missing_ok=True)  # first, so that nothing claims what is gone
                sync_folder(self.path.parent)
                file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
                try:
                    os.ftruncate(file, keep[1] if is_kept else 0)
                    os.ftruncate(file, self.origin.size)
                    self._present, self._journal_size = Ranges(), -1
                    if is_kept:
                        self._note(file, *keep)
                finally:
                    os.close(file)
            except OSError:  # in use, or a file system without locks
                return False
            finally:
                os.close(use)
        return True


def _beside(path: Path, ending: str) -> Path:
    return path.with_name(path.name + ending)


def _line(begin: int, end: int) -> bytes:
    text = f"{begin} {end}"
    return f"{text} {zlib.crc32(text.encode()):08x}\n".encode()


def _parsed(line: bytes) -> Range | None:
    """Return the range of a line; None for a torn one."""
    words = line.split(b" ")
    if len(words) != 3 or not all(word.isdigit() for word in words[:2]):
        return None
    entry = int(words[0]), int(words[1])
    return entry if _line(*entry) == line + b"\n" and entry[0] < entry[1] else None


def _unwritable(part: PartialFile, error: OSError) -> HostError:
    return HostError(
        f"{part.origin.reference}: {part.origin.name} cannot be kept in the cache {part.path.parent}: {error.strerror};"
        " free some space, or point MODELASSAY_CACHE elsewhere"
    )


def create(origin: Origin, address: str) -> PartialFile:
    """Make the file of ``origin`` without any of its bytes; what is there of it already stays.

    Raises:
        HostError: the cache cannot be written.
    """
    path = parts_folder(origin.repository, origin.commit) / origin.name
    place = _beside(path, _ORIGIN)
    with hub_errors(origin.reference, origin.name):
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            draft = place.with_name(f"{place.name}.{os.getpid()}.{threading.get_ident()}.new")
            draft.write_text(json.dumps(asdict(origin)) + "\n")
            draft.rename(place)
        except OSError as error:
            raise _unwritable(PartialFile(path, origin), error) from None
    part = partial_file(path)
    assert part is not None
    part.locate(address)
    return part


_opened: dict[str, PartialFile] = {}


def _root() -> str:
    """Return what the paths of such files begin with; where there is no cache, what no path does."""
    try:
        return f"{cache_root().absolute() / 'hub'}{os.sep}"
    except HostError:
        return "\0"


def partial_file(path: Path | str) -> PartialFile | None:
    """Return the file of the Hub that lies at ``path`` in parts; None for any other file, and whatever lies outside of our cache."""
    key = str(path)
    if key not in _opened:
        if not key.startswith(_root()):
            return None
        try:
            origin = Origin(**json.loads(Path(key + _ORIGIN).read_bytes()))
        except (OSError, ValueError, TypeError):
            return None
        _opened[key] = PartialFile(Path(key), origin)
    return _opened[key]


def header_end(path: Path) -> int:
    """Return where the header of a safetensors file ends, of which the first eight bytes must be there; 0 of a GGUF file, which does not say."""
    if path.suffix == ".gguf":
        return 0
    with path.open("rb") as file:
        return 8 + int.from_bytes(file.read(8), "little")


def ensure_header(part: PartialFile) -> None:
    """Fetch the header of a safetensors file: with the first request, or the second where it is long; raises as `ensure`.

    Of a GGUF file only its beginning: whoever reads the header asks for as much as it turns out to be long.
    """
    part.ensure([(0, 8)] if not part.missing([(0, 8)]) else [(0, FIRST_BYTES)])
    end = header_end(part.path)
    if end <= 8 + HEADER.size_bytes:  # else it is refused by whoever reads it
        part.ensure([(0, end)])


def ensure(path: Path | str, offset: int, count: int) -> None:
    """Make sure that ``count`` bytes from ``offset`` on can be read in the file at ``path``.

    Of the Hub's what lacks is fetched; tensors that are stored in another form are made (`decoded`).

    Raises:
        CheckpointError: it lacks and cannot be had, offline, or cannot be made.
        HostError: the Hub cannot be reached, or the cache cannot be written.
    """
    made = decoded_file(path)
    if made is not None:
        prepare({str(path): [(offset, offset + count)]})
        return
    part = partial_file(path)
    if part is not None:
        part.ensure([(offset, offset + count)])


def prepare(ranges: Mapping[str, Iterable[Range]]) -> int:
    """Fetch what lacks of many ranges, by path of the file, several at once; return how many bytes; raises as `ensure`."""
    asked = {path: list(pieces) for path, pieces in ranges.items()}
    wanted = []
    for path, pieces in stored_ranges(asked).items():
        part = partial_file(path)
        if part is not None:
            part.ensure(())
            wanted.append((part, pieces))
    num_bytes = fetch([(part, pieces) for part, pieces in wanted if part.missing(pieces)])
    for path, pieces in asked.items():
        made = decoded_file(path)
        if made is not None:
            made.ensure(pieces)
    return num_bytes


def fetch(wanted: list[tuple[PartialFile, list[Range]]]) -> int:
    """Fetch ranges of several files over `NUM_CONNECTIONS` connections, each file under its lock; return how many bytes.

    Raises:
        CheckpointError: offline.
        HostError: the Hub cannot be reached, or the cache cannot be written.
        NoRanges: the server sends whole files only.
    """
    if not wanted:
        return 0
    from huggingface_hub import is_offline_mode

    if is_offline_mode():
        part, ranges = wanted[0]
        lacking = sum(end - begin for begin, end in part.missing(ranges))
        raise CheckpointError(
            f"{part.origin.reference}: {lacking:,} bytes of {part.origin.name} are not in the cache and HF_HUB_OFFLINE is set;"
            " run once without it"
        )
    log_in()
    before, stop = sum(part.num_fetched for part, _ in wanted), threading.Event()
    with contextlib.ExitStack() as stack:
        jobs: list[tuple[PartialFile, int, Range]] = []
        for part, ranges in sorted(wanted, key=lambda item: str(item[0].path)):
            stack.enter_context(locked(_beside(part.path, ".lock")))
            try:
                file = part.begin()
            except OSError as error:
                raise _unwritable(part, error) from None
            stack.callback(os.close, file)
            jobs.extend((part, file, piece) for piece in part.requests(ranges))
        _run([_job(*job, stop) for job in jobs], stop)
    return sum(part.num_fetched for part, _ in wanted) - before


def _job(part: PartialFile, file: int, piece: Range, stop: threading.Event) -> Callable[[], None]:
    def run() -> None:
        with hub_errors(part.origin.reference, part.origin.name):
            part.fetch_range(file, *piece, stop)

    return run


def _run(jobs: list[Callable[[], None]], stop: threading.Event) -> None:
    """Run all; at the first failure the others stop, and it is raised."""
    if len(jobs) == 1:
        jobs[0]()
        return
    with ThreadPoolExecutor(NUM_CONNECTIONS, thread_name_prefix="range") as pool:
        futures = [pool.submit(job) for job in jobs]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            if not all(future.done() for future in futures):
                stop.set()
                pool.shutdown(cancel_futures=True)
    failures: list[Any] = [future.exception() for future in futures if not future.cancelled()]
    first = next((error for error in failures if error is not None and not isinstance(error, Stopped)), None)
    if first is not None:
        raise first
