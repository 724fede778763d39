"""What disks, people and other programs do to a run that was cut off and to a cache: each case is one damage."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

Change = Callable[[Path], object]
"""Does something to a file or folder."""
Wear = Callable[[Path], object]
"""Changes what lies in the run directory, or in the cache."""


def only(folder: Path, pattern: str) -> Path:
    """The first path below ``folder`` that matches."""
    return min(folder.glob(pattern))


def at(pattern: str, change: Change) -> Wear:
    return lambda folder: change(only(folder, pattern))


def flip(path: Path, place: float = 0.5) -> None:
    """One bit of ``path`` is another, at ``place`` of its length."""
    data = bytearray(path.read_bytes())
    data[min(int(len(data) * place), len(data) - 1)] ^= 4
    path.write_bytes(data)


def lines(change: Callable[[list[bytes]], list[bytes]]) -> Change:
    return lambda path: path.write_bytes(b"".join(change(path.read_bytes().splitlines(keepends=True))))


def cut(path: Path, share: float = 0.5) -> None:
    os.truncate(path, int(path.stat().st_size * share))


def swap(one: Path, other: Path) -> None:
    aside = one.with_name("swapped-aside")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)


def instead(make: Change) -> Change:
    """Something else in the place of a path."""

    def change(path: Path) -> None:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
        make(path)

    return change


def bits(name: str, pattern: str, *places: float) -> dict[str, Wear]:
    """A case for each bit that is another."""
    return {f"{name} a bit at {place}": at(pattern, partial(flip, place=place)) for place in places}


def cuts(name: str, pattern: str, *shares: float) -> dict[str, Wear]:
    return {f"{name} cut off at {share}": at(pattern, partial(cut, share=share)) for share in shares}


def rewritten(change: Callable[[str], str]) -> Change:
    return lambda path: path.write_text(change(path.read_text()))


def steps(*changes: Change) -> Change:
    """One change after another."""

    def change(path: Path) -> None:
        for step in changes:
            step(path)

    return change


def inside(name: str, change: Change) -> Change:
    """A change of a file in a folder."""
    return lambda folder: change(folder / name)


def each(pattern: str, change: Change) -> Wear:
    def wear(folder: Path) -> None:
        for path in sorted(folder.glob(pattern)):
            change(path)

    return wear


def as_part(folder: Path) -> None:
    """What a killed attempt would have left."""
    folder.rename(folder.with_suffix(".part"))


LOG, STATE = "cells/*/attempt-1.jsonl", "cells/*/checkpoint/*/state.json"
RUN: dict[str, Wear] = {
    **bits("log:", LOG, 0, 0.01, 0.3, 0.6, 0.99, 1),
    **cuts("log:", LOG, 0, 0.1, 0.5, 0.9, 0.999),
    "log: a line twice": at(LOG, lines(lambda all: [*all[:5], all[4], *all[5:]])),
    "log: a line less": at(LOG, lines(lambda all: [*all[:4], *all[5:]])),
    "log: two lines change places": at(LOG, lines(lambda all: [*all[:4], all[5], all[4], *all[6:]])),
    "log: an empty line": at(LOG, lines(lambda all: [*all[:4], b"\n", *all[4:]])),
    "log: zeros at its end": at(LOG, lambda path: os.truncate(path, path.stat().st_size + 4096)),
    "log: zeros inside": at(LOG, lines(lambda all: [*all[:4], b"\0" * len(all[4]), *all[5:]])),
    "log: other ends of lines": at(LOG, lambda path: path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))),
    "log: another encoding": at(LOG, lambda path: path.write_bytes(path.read_bytes().decode().encode("utf-16"))),
    "log: gone": at(LOG, Path.unlink),
    "log: under another name": at(LOG, lambda path: path.rename(path.with_name("attempt-3.jsonl"))),
    "log: a copy as the next attempt": at(LOG, lambda path: shutil.copy(path, path.with_name("attempt-2.jsonl"))),
    "log: numbers formatted anew": at(LOG, rewritten(lambda text: text.replace('":', '": '))),
    **bits("checkpoint:", STATE, 0, 0.002, 0.3, 0.6, 1),
    **cuts("checkpoint:", STATE, 0, 0.5, 0.99),
    "checkpoint: a number by hand": at(STATE, rewritten(lambda text: text.replace('"step": 8', '"step": 7'))),
    "checkpoint: its state gone": at(STATE, Path.unlink),
    "checkpoint: gone": at("cells/*/checkpoint/*", shutil.rmtree),
    "checkpoint: a file of a file manager": at("cells/*/checkpoint", inside(".DS_Store", Path.touch)),
    "checkpoint: a newer one, empty": at("cells/*/checkpoint", inside("99", Path.mkdir)),
    "checkpoint: an older one beside it": at("cells/*/checkpoint/*", lambda path: shutil.copytree(path, path.with_name("1"))),
    **bits("run.json:", "run.json", 0, 0.001, 0.3, 0.8, 1),
    **cuts("run.json:", "run.json", 0, 0.5),
    "run.json: gone": at("run.json", Path.unlink),
    "run.json: formatted anew": at("run.json", rewritten(lambda text: text.replace("\n ", "\n    "))),
    "cells: gone": at("cells", shutil.rmtree),
    "cells: one more, of nobody": at("cells", inside("0123456789ab", Path.mkdir)),
}  # fmt: skip
"""Of a run that was cut off at step 9, with a checkpoint at step 8."""

TABLE, STAGE = "artifacts/toy-table/*", "artifacts/stages/sum/*"
CACHE: dict[str, Wear] = {
    **bits("table:", f"{TABLE}/table.txt", 0, 0.5, 1),
    "table: another text": at(f"{TABLE}/table.txt", rewritten(lambda _: "3 2 1")),
    "table: empty": at(f"{TABLE}/table.txt", rewritten(lambda _: "")),
    "table: gone": at(f"{TABLE}/table.txt", Path.unlink),
    "table: its folder empty": at(TABLE, instead(Path.mkdir)),
    "table: a file for its folder": at(TABLE, instead(Path.touch)),
    "table: a file for its kind": at("artifacts/toy-table", instead(Path.touch)),
    "table: a folder for its text": at(f"{TABLE}/table.txt", instead(Path.mkdir)),
    "table: a pipe for its text": at(f"{TABLE}/table.txt", instead(os.mkfifo)),
    **bits("stage: its product,", f"{STAGE}/total.txt", 0, 0.5),
    "stage: another product": at(f"{STAGE}/total.txt", rewritten(lambda _: "9.5")),
    **cuts("stage: its product", f"{STAGE}/total.txt", 0, 0.5),
    "stage: its product gone": at(f"{STAGE}/total.txt", Path.unlink),
    **bits("stage: its log,", f"{STAGE}/attempt-1.jsonl", 0, 0.5, 1),
    **cuts("stage: its log", f"{STAGE}/attempt-1.jsonl", 0.5),
    "stage: its log without its end": at(f"{STAGE}/attempt-1.jsonl", lines(lambda all: all[:-1])),
    "stage: its log gone": at(f"{STAGE}/attempt-1.jsonl", Path.unlink),
    "stage: a log more": at(f"{STAGE}/attempt-1.jsonl", lambda path: shutil.copy(path, path.with_name("attempt-2.jsonl"))),
    "stage: its record gone": at(f"{STAGE}/record.json", Path.unlink),
    **bits("stage: its record,", f"{STAGE}/record.json", 0, 0.5, 1),
    "stage: a record of an earlier version": at(f"{STAGE}/record.json", rewritten(lambda _: '{"attempts": 1}')),
    "stage: a foreign file": at(STAGE, inside("total (1).txt", Path.touch)),
    "stage: a link for its product": at(f"{STAGE}/total.txt", instead(lambda path: path.symlink_to("/etc/hostname"))),
    "stages: swapped": lambda cache: swap(*sorted(cache.glob(STAGE))[:2]),
    "stages: one twice": lambda cache: instead(partial(shutil.copytree, min(cache.glob(STAGE))))(max(cache.glob(STAGE))),
    "stages: all empty": each(f"{STAGE}/*", rewritten(lambda _: "")),
    "stages: a file of a file manager": at(STAGE, inside(".DS_Store", Path.touch)),
    "stages: as parts": each(STAGE, as_part),
    "stages: as damaged parts": each(STAGE, steps(inside("total.txt", flip), as_part)),
    "stages: as parts with a damaged log": each(STAGE, steps(inside("attempt-1.jsonl", flip), as_part)),
    "stages: as parts without a record, damaged": each(
        STAGE, steps(inside("record.json", Path.unlink), inside("total.txt", flip), as_part)),
    "stages: a part with a damaged checkpoint": each(
        STAGE, steps(inside("record.json", Path.unlink), inside("checkpoint/3", partial(Path.mkdir, parents=True)), as_part)),
    "stages: a file for them": at("artifacts/stages", instead(Path.touch)),
    "stages: a folder for a lock": at(
        STAGE, steps(inside("total.txt", flip), lambda path: path.with_suffix(".lock").mkdir())),
    "stages: a pipe for a lock": at(STAGE, steps(inside("total.txt", flip), lambda path: os.mkfifo(path.with_suffix(".lock")))),
    "cache: a file for it": instead(Path.touch),
    "cache: a dangling link for it": instead(lambda path: path.symlink_to("gone")),
    "cache: empty": instead(Path.mkdir),
}  # fmt: skip
"""Of a cache that holds a table and two stages."""
