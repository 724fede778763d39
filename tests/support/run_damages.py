"""What a run directory that somebody sends may hold: each case is one damage, and how `show RUN` and `run RUN` must end."""

from __future__ import annotations

import hashlib
import os
import re
import socket
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelassay.experiments import Experiment
from modelassay.recording.line import sealed
from modelassay.storage.sealed import sealed_json, unseal
from modelassay.suite.cells import stored_cell_id

Damage = Callable[[Path, Path], None]
"""Changes the run directory; the second folder is what must be left alone."""

CELL_FILES = ("attempt-1.jsonl", "attempt-1.out", "lock")


@dataclass(frozen=True)
class Case:
    name: str
    damage: Damage
    show: int = 2
    run: int = 2
    says: str = ""
    """Part of what stderr of `show RUN`, or of `run RUN` where `show` succeeds, must hold."""
    within: bool = False
    """Whether the damage lies between the ends of a log, which are all that the list of runs reads."""


def cell_dir(run: Path) -> Path:
    """The cell that is not complete."""
    return min(path for path in (run / "cells").iterdir() if b'"status"' not in (path / "attempt-1.jsonl").read_bytes())


def place(run: Path, name: str) -> Path:
    """``name`` below the run directory; CELL stands for the open cell's folder, CHECKPOINT for its newest checkpoint's."""
    if name.startswith("CHECKPOINT"):
        return max((cell_dir(run) / "checkpoint").iterdir()) / name.removeprefix("CHECKPOINT").lstrip("/")
    return cell_dir(run) / name.removeprefix("CELL").lstrip("/") if name.startswith("CELL") else run / name


def _clear(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        path.rename(
            path.parent.parent / f"{path.name}-away"
            if path.parent.name == "cells"
            else path.with_name(f"{path.name}-away")
        )
    else:
        path.unlink(missing_ok=True)


def link_out(name: str) -> Damage:
    """A link to what was there, moved outside, or to a file or folder of somebody else's."""

    def damage(run: Path, outside: Path) -> None:
        path, target = place(run, name), outside / "target"
        if os.path.lexists(path):
            path.rename(target)
        elif path.suffix or path.name.startswith("run"):
            target.write_text("somebody's own")
        else:
            target.mkdir()
        path.symlink_to(target)

    return damage


def link(name: str, target: str) -> Damage:
    def damage(run: Path, outside: Path) -> None:
        place(run, name).symlink_to(target.replace("OUTSIDE", str(outside)))

    return damage


def special(name: str, kind: str) -> Damage:
    """A pipe, a socket, a device, a folder or a file in the place of ``name``."""

    def damage(run: Path, _outside: Path) -> None:
        path = place(run, name)
        _clear(path)
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "socket":
            here = Path.cwd()
            os.chdir(path.parent)  # a socket's path may hold 107 characters
            try:
                with socket.socket(socket.AF_UNIX) as server:
                    server.bind(path.name)
            finally:
                os.chdir(here)
        elif kind == "device":
            os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 5))
        elif kind == "folder":
            path.mkdir()
        else:
            path.write_text("in the way")

    return damage


def manifest(change: Callable[[dict[str, Any], Path], None]) -> Damage:
    def damage(run: Path, outside: Path) -> None:
        data = unseal((run / "run.json").read_bytes())
        change(data["suite"], outside)
        (run / "run.json").write_bytes(sealed_json(data))

    return damage


def first_id(text: str) -> Damage:
    return manifest(lambda suite, outside: suite["cells"][0].update(id=text.replace("OUTSIDE", str(outside))))


def resealed(change: Callable[[str], str]) -> Damage:
    """Another text of run.json, with the checksum that is due."""

    def damage(run: Path, _outside: Path) -> None:
        path = run / "run.json"
        text = change("{" + path.read_text().partition(",")[2]).encode("utf-8", "surrogateescape")
        checksum = hashlib.blake2b(text, digest_size=8).hexdigest()
        path.write_bytes(b'{"checksum":"%b",' % checksum.encode() + text[1:])

    return damage


def text_of(name: str, change: Callable[[str], str]) -> Damage:
    def damage(run: Path, _outside: Path) -> None:
        path = place(run, name)
        path.write_bytes(change(path.read_text()).encode("utf-8", "surrogateescape"))

    return damage


def logged(line: str) -> Damage:
    """``line`` after the open cell's last, with the checksum that is due; SEQ is its position."""

    def damage(run: Path, _outside: Path) -> None:
        path = place(run, "CELL/attempt-1.jsonl")
        seq = len(path.read_text().splitlines()) - 1
        with path.open("ab") as file:
            file.write(sealed(line.replace("SEQ", str(seq)).encode()))

    return damage


def opened(change: Callable[[bytes], bytes]) -> Damage:
    """Another opening of the open cell's log, with the checksum that is due."""

    def damage(run: Path, _outside: Path) -> None:
        path = place(run, "CELL/attempt-1.jsonl")
        first, *others = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(sealed(change(first.rpartition(b',"crc"')[0] + b"}")) + b"".join(others))

    return damage


def sparse(name: str, size: int) -> Damage:
    def damage(run: Path, _outside: Path) -> None:
        os.truncate(place(run, name), size)

    return damage


def _without_default(suite: dict[str, Any], _outside: Path) -> None:
    params = suite["cells"][0]["params"]
    params["steps"] = params["steps"] + 1
    del params["note"]


def _rehashed_out(suite: dict[str, Any], _outside: Path) -> None:
    cell = suite["cells"][0]
    cell["params"]["steps"] = 0
    cell["id"] = stored_cell_id(Experiment("walk", "toy"), cell["params"])


def _table(suite: dict[str, Any], outside: Path) -> None:
    (outside / "table.csv").write_text("a,b\n0,0.5\n0.5,0\n")
    (outside / "suite").write_text("not a suite")
    suite["source"] = str(outside / "suite")
    table = {"reader": "similarities", "file": str(outside / "table.csv"), "statistic": "median"}
    suite["claims"][0]["derived"] = {"source": "nobody", "published": table}


def _hard_link(run: Path, outside: Path) -> None:
    (outside / "keys").write_text("4711")
    (run / "run.lock").unlink(missing_ok=True)
    (run / "run.lock").hardlink_to(outside / "keys")


def _nested(run: Path, _outside: Path) -> None:
    path = place(run, "CELL/artifacts") / "/".join("d" * 100)
    path.mkdir(parents=True)


METRIC = '{"seq":SEQ,"kind":"metric","name":"value","value":%s,"labels":{%s}}'
UNIT = '{"seq":SEQ,"kind":"microbatch","stage":"step","index":%s,"host_ns":%s,"labels":%s}'
DEEP = "[" * 100_000 + "]" * 100_000

CASES = [
    *(Case(f"link out: {name}", link_out(name), says="a symbolic link where")
      for name in ("run.json", "run.lock", "client.lock", "cells", "CELL", *(f"CELL/{file}" for file in CELL_FILES),
                   "CELL/attempt-2.jsonl", "CELL/attempt-2.out", "CELL/checkpoint", "CHECKPOINT", "CHECKPOINT/state.json",
                   "CELL/artifacts", "CELL/artifacts/model.bin", "figures", "figures/final.png", "run.json.new")),
    *(Case(f"{kind}: {name}", special(name, kind), says=f"{word} where")
      for kind, word, names in (
          ("pipe", "a named pipe", ("run.json", "run.lock", "cells", "CELL/attempt-1.jsonl", "CELL/attempt-1.out",
                                    "CELL/attempt-2.jsonl", "CELL/attempt-1.lease", "CHECKPOINT/state.json", "CELL/artifacts/x")),
          ("socket", "a socket", ("run.json", "run.lock", "CELL/attempt-1.jsonl", "CELL/attempt-1.lease")),
          ("device", "a device", ("run.json", "run.lock", "CELL/attempt-1.jsonl", "CHECKPOINT/state.json")),
          ("folder", "a folder", ("run.json", "CELL/attempt-1.jsonl")),
          ("file", "a regular file", ("cells", "CELL", "CELL/checkpoint", "CELL/artifacts", "figures")),
      ) for name in names),
    Case("folder: run.lock", special("run.lock", "folder"), show=0, says="a folder where"),
    Case("dangling link", link("CELL/artifacts/gone", "/nonexistent"), says="a symbolic link"),
    Case("link to itself", link("CELL/artifacts/loop", "loop"), says="a symbolic link"),
    Case("link within the run", link("latest", "cells"), says="a symbolic link"),
    Case("link to the root", link("CELL/artifacts/root", "/"), says="a symbolic link"),
    Case("hard link to another's file as lock", _hard_link, show=0, says="a hard link"),
    Case("another's text as lock", text_of("run.lock", lambda _: "my notes"), show=0, says="not a lock"),
    Case("huge lock", sparse("run.lock", 1 << 40), show=0, says="not a lock"),
    Case("folders nest", _nested, says="nest more than"),
    Case("id goes up", first_id("../../../outside/x"), says="cells.0.id"),
    Case("id is absolute", first_id("OUTSIDE/x"), says="cells.0.id"),
    Case("id is a dot", first_id("."), says="cells.0.id"),
    Case("id ends in a new line", first_id("0123456789ab\n"), says="cells.0.id"),
    Case("id of other parameters", first_id("0123456789ab"), says="changed by hand"),
    Case("default missing, another changed", manifest(_without_default), says="changed by hand"),
    Case("default missing", manifest(lambda suite, _: suite["cells"][0]["params"].pop("note")), says="changed by hand"),
    Case("refused parameter under its own id", manifest(_rehashed_out), says="steps"),
    Case("cell twice", manifest(lambda suite, _: suite["cells"].append(suite["cells"][0])), says="stands twice"),
    Case("cells a mapping", manifest(lambda suite, _: suite.update(cells={})), says="cells"),
    Case("parameters a list", manifest(lambda suite, _: suite["cells"][0].update(params=[])), says="params"),
    Case("package that is no experiment", manifest(lambda suite, _: suite["experiment"].update(package="os")), says="os"),
    Case("name that goes up", manifest(lambda suite, _: suite.update(suite="../x")), says="suite"),
    Case("changed by hand", text_of("run.json", lambda text: text.replace('"seed": 0', '"seed": 1', 1)), says="the checksum differs"),
    Case("checksum taken out", text_of("run.json", lambda text: "{" + text.partition(",")[2]), says="damaged (it has no checksum"),
    Case("run.json of an older version", text_of("run.json", lambda text: "{" + text.partition(",")[2].replace(
        '"schema": 3', '"schema": 2')), says="schema 2, this modelassay reads 3; read it with the version that wrote it"),
    Case("key twice", resealed(lambda text: text.replace("{", '{"schema": 1, ', 1)), says="stands twice"),
    Case("NaN", resealed(lambda text: text.replace('"rate": 0.01', '"rate": NaN', 1)), says="NaN"),
    Case("1e999", resealed(lambda text: text.replace('"rate": 0.01', '"rate": 1e999', 1)), says="1e999"),
    Case("thousands of digits", resealed(lambda text: text.replace('"seed": 0', f'"seed": {"9" * 5000}', 1)),
         says="damaged"),
    Case("deep run.json", text_of("run.json", lambda _: DEEP), says="nested more than"),
    Case("deep suite", resealed(lambda text: text.replace('"note": "none"', f'"note": {"[" * 80}{"]" * 80}', 1)),
         says="nested more than"),
    Case("a list", text_of("run.json", lambda _: "[]"), says="damaged"),
    Case("a number", text_of("run.json", lambda _: "1"), says="damaged"),
    Case("not UTF-8", resealed(lambda text: text.replace('"none"', '"\udcff"', 1)), says="damaged"),
    Case("half a character", resealed(lambda text: text.replace('"none"', '"\\ud800"', 1)), says="damaged"),
    Case("huge run.json", sparse("run.json", 1 << 40), says="larger than"),
    Case("huge log", sparse("CELL/attempt-1.jsonl", 1 << 40), says="longer than"),
    Case("deep line", logged(DEEP), says="not a record"),
    Case("key twice in a line", logged('{"seq":SEQ,"kind":"clocks","a" :1,"a":2}'), says="not a record"),
    Case("NaN in a line", logged(METRIC % ("NaN", "")), says="without a valid value"),
    Case("1e999 in a line", logged(METRIC % ("1e999", "")), says="without a valid value"),
    Case("integer beyond floats", logged(METRIC % ("9" * 400, "")), says="without a valid value"),
    Case("label that is a list", logged(METRIC % ("1", '"a":[1]')), says="without a valid labels"),
    Case("label that is a column", logged(METRIC % ("1", '"cell":"b"')), says="without a valid labels"),
    Case("half a character in a line", logged(METRIC % ("1", '"a":"\\ud800"')), says="not a record"),
    Case("labels that are a list", logged(UNIT % ("1", "1", "[1]")), says="without a valid labels"),
    Case("duration beyond floats", logged(UNIT % ("1", "9" * 400, "{}")), says="without a valid host_ns"),
    Case("index that is no number", logged(UNIT % ("true", "1", "{}")), says="without a valid index"),
    Case("infinite wall time", logged('{"seq":SEQ,"kind":"status","outcome":"done","reason":"","wall_s":1e999}'),
         says="without a valid wall_s"),
    Case("outcome that is a list", logged('{"seq":SEQ,"kind":"status","outcome":["done"],"reason":"","wall_s":1}'),
         says="without a valid outcome"),
    Case("resumes before the start", opened(lambda line: line.replace(b'"resumed_at":0', b'"resumed_at":-1')),
         says="without a valid resumed_at"),
    Case("segment of another attempt", opened(lambda line: line.replace(b'"attempt":1', b'"attempt":2')),
         says="the segment of attempt 2 under the name of another"),
    Case("log of an older version", text_of("CELL/attempt-1.jsonl", lambda text: re.sub(
        r',"crc":"\w+"', "", text).replace('"schema":3', '"schema":1')), says="schema 1, without checksums"),
    Case("line without a checksum", text_of("CELL/attempt-1.jsonl", lambda text: re.sub(r',"crc":"\w+"', "", text)),
         says="not as it was written"),
    Case("number changed by hand", text_of("CELL/attempt-1.jsonl", lambda text: text.replace('"step":2,', '"step":3,', 1)), within=True,
         says="not as it was written"),
    Case("state that is a list", text_of("CHECKPOINT/state.json", lambda _: "[]"), show=0, run=3, says="a damaged checkpoint"),
    Case("control characters", logged('{"seq":SEQ,"kind":"status","outcome":"done","reason":"\\u001b[2J\\u0007","wall_s":1}'),
         show=0, run=0),
    Case("table that the suite does not name", manifest(_table), show=0, run=0),
]  # fmt: skip
